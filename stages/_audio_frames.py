"""The samples of a file as they come out of the decoder, frame by frame, in little memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from av.audio.frame import AudioFrame

from winnow.contracts.media import MediaFailure, Samples

MAX_DECODED_BYTES = 1 << 30
"""Of float32 samples, all channels together."""

MAX_LEVEL = 2.0**20
"""A float sample beyond this many times full scale is no sound; its square is still finite."""

MAX_CHANGES = 16
"""Changes of rate or channels within a file; more of them are damage."""

MAX_PLANES = 8
"""PyAV looks for the end of a frame's list of planes with a null that only shorter lists have."""

_BLOCK = 1 << 18

_TYPES = {"u8": np.uint8, "s16": np.int16, "s32": np.int32, "flt": np.float32, "dbl": np.float64}
_FULL_SCALE = {"u8": 2.0**7, "s16": 2.0**15, "s32": 2.0**31}


@dataclass(kw_only=True, slots=True)
class Segment:
    """What came at one rate, with one number of channels, in one of FFmpeg's sample formats."""

    rate: int
    num_channels: int
    kind: str
    planar: bool
    num_samples: int = 0
    blocks: list[Samples] = field(default_factory=list)
    loose: list[list[npt.NDArray[np.generic]]] = field(default_factory=list)
    num_loose: int = 0
    finite: bool = True

    @classmethod
    def of(cls, frame: AudioFrame) -> Segment:
        """Begin with this frame, which is not yet in it."""
        return cls(
            rate=frame.sample_rate,
            num_channels=frame.layout.nb_channels,
            kind=frame.format.name.removesuffix("p"),
            planar=frame.format.is_planar,
        )

    def takes(self, frame: AudioFrame) -> bool:
        """Return whether the frame is of the same kind."""
        return (
            frame.sample_rate == self.rate
            and frame.layout.nb_channels == self.num_channels
            and frame.format.name.removesuffix("p") == self.kind
            and frame.format.is_planar == self.planar
        )

    def add(self, frame: AudioFrame) -> None:
        """Append; a block at a time is made float, as one call per frame would cost more."""
        num = frame.samples if self.planar else frame.samples * self.num_channels
        kind = _TYPES[self.kind]
        planes: tuple[Any, ...] = frame.planes
        self.loose.append([np.frombuffer(plane, kind, num) for plane in planes])
        self.num_loose += frame.samples
        self.num_samples += frame.samples
        if self.num_loose >= _BLOCK:
            self.pack()

    def pack(self) -> None:
        """Make a block of what is loose."""
        if not self.loose:
            return
        planes = [np.concatenate(parts) for parts in zip(*self.loose, strict=True)]
        raw = np.stack(planes) if self.planar else planes[0].reshape(-1, self.num_channels).T
        self.loose, self.num_loose = [], 0
        block = _as_float(raw, self.kind)
        if self.kind in ("flt", "dbl"):
            self.finite = self.finite and bool((np.abs(block) <= MAX_LEVEL).all())
        self.blocks.append(block)

    def joined(self) -> Samples:
        """Return all samples and forget them, block by block."""
        self.pack()
        out, at = np.empty((self.num_channels, self.num_samples), np.float32), 0
        while self.blocks:
            block = self.blocks.pop(0)
            out[:, at : at + block.shape[1]] = block
            at += block.shape[1]
        return out


def _as_float(raw_CN: npt.NDArray[np.generic], kind: str) -> Samples:
    """Return float32 samples, full scale 1."""
    with np.errstate(over="ignore", invalid="ignore"):
        floats = raw_CN.astype(np.float32)
    if kind == "u8":
        floats -= 128.0
    if kind in _FULL_SCALE:
        floats *= np.float32(1 / _FULL_SCALE[kind])
    return floats


@dataclass(kw_only=True, slots=True)
class Heard:
    """What has been decoded so far."""

    max_duration_s: float
    segments: list[Segment] = field(default_factory=list)
    duration_s: float = 0.0
    num_bytes: int = 0
    num_good: int = 0
    num_failed: int = 0
    cut_packet: bool = False
    failure: MediaFailure | None = None

    def add(self, frame: AudioFrame) -> None:
        """Append a frame, or note why there has been enough."""
        if not frame.samples:
            return
        if frame.format.is_planar and frame.layout.nb_channels > MAX_PLANES:
            self.failure = "undecodable"
            return
        if not self.segments or not self.segments[-1].takes(frame):
            if len(self.segments) > MAX_CHANGES:
                self.failure = "undecodable"
                return
            self.segments.append(Segment.of(frame))
        last = self.segments[-1]
        self.duration_s += frame.samples / last.rate
        self.num_bytes += 4 * frame.samples * last.num_channels
        if self.duration_s > self.max_duration_s + 1e-6:
            self.failure = "too_long"
        elif self.num_bytes > MAX_DECODED_BYTES:
            self.failure = "too_large"
        else:
            last.add(frame)
