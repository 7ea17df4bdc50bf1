"""Decoded media, shared by all the stages of a pass: bytes are decoded once per row and pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

if TYPE_CHECKING:
    from PIL import Image

Samples = npt.NDArray[np.float32]

MediaFailure = Literal[
    "missing", "too_large", "undecodable", "too_long", "no_audio", "is_video", "not_finite"
]
"""Why a row has no decoded media: null bytes, over the recipe's cap, or not decodable.

Of audio also: longer than the recipe's cap, by its header or as decoded; a file without an audio
stream or that announces no sample; a file with moving pictures (a cover is none); a sample that is
NaN, infinite or beyond 2^20 times full scale.
"""

REDUCED_SIDE = 64
"""The ``min_side`` of ``Media.facts``; a stage that asks for the same shares its decode."""

MEDIA_REF = pa.struct(
    [
        pa.field("path", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("length", pa.int64()),
        pa.field("digest", pa.binary(16)),
    ]
)
"""Where the bytes of local media are: fsspec path, offset and length in bytes, BLAKE2b-128.

A source that has local media writes the column ``<payload>_ref`` of this type; the pipeline reads
the payload column (``image``, ``audio``) from it when a stage asks for it, and nulls a payload
whose bytes no longer have that digest.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaCaps:
    """Recipe-wide caps on what is decoded; they enter the fingerprint of every media stage."""

    max_pixels: int = 89_478_485
    """Width times height, read from the header before any pixel is decoded (Pillow's default)."""
    max_duration_s: float = 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedImage:
    """One decoded image.

    pixels: first frame, EXIF orientation applied, in the mode that Pillow decoded it to
        (so ``pixels.convert("L")`` equals what imagehash sees for an unrotated file). LAB is RGB,
        16-bit grey its upper 8 bits ("L"; "LA" with a transparent level), where imagehash sees it
        clipped. Every mode converts to L, RGB and RGBA.
    format: Pillow's name ("JPEG", "PNG", "WEBP", "GIF", ...).
    exif_orientation: 1 to 8 as stored in the file; 1 where there is none.
    animated: more than one frame.  alpha: an alpha channel or a transparent palette entry.
    scale: ``pixels`` has one in so many of the picture's columns and rows: 1, 2, 4 or 8.
    covered: left, upper, right, lower edge, within ``pixels``, of what the picture covers: a
        fraction of the last column and row where ``scale`` does not divide its size. None: all.
    """

    pixels: Image.Image
    format: str
    exif_orientation: int = 1
    animated: bool = False
    alpha: bool = False
    scale: int = 1
    covered: tuple[float, float, float, float] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture, upright, at full size."""
        left, upper, right, lower = self.covered or (0, 0, *self.pixels.size)
        return int((right - left) * self.scale), int((lower - upper) * self.scale)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedAudio:
    """One decoded recording.

    samples: float32 (channels, samples) as decoded; 1 is full scale of an integer format, and a
        float format may exceed it.
    sample_rate: in Hz.  codec, container: FFmpeg's names ("pcm_s16le", "mp3"; "wav", "ogg").
    bit_rate: in bit/s, as the header has it; None where it has none.
    header_duration_s: as the header says; None where it does not.
    truncated: the file ends before its header says, or a part of it is damaged.
    """

    samples: Samples
    sample_rate: int
    codec: str
    container: str
    bit_rate: int | None = None
    header_duration_s: float | None = None
    truncated: bool = False

    @property
    def num_channels(self) -> int:
        """Channels."""
        return self.samples.shape[0]

    @property
    def duration_s(self) -> float:
        """Seconds that were decoded."""
        return self.samples.shape[1] / self.sample_rate


class AudioFeature(Protocol):
    """What is computed of a waveform and shared by the stages of a pass: log-mel spectrograms.

    A frozen, hashable value: two equal ones are computed once.
    """

    @property
    def sample_rate(self) -> int:
        """The rate, in Hz, of the waveform that ``compute`` takes."""
        ...

    def compute(self, samples_N: Samples) -> Samples:  # noqa: N803
        """Return the feature of a mono waveform; any shape, float32."""
        ...


class Media(Protocol):
    """Decoded media of the batch that a stage is annotating."""

    def images(
        self, column: str = "image", *, min_side: int | None = None
    ) -> Iterator[DecodedImage | MediaFailure]:
        """Yield one decoded image or failure code per row, in row order.

        Decodes in parallel threads ahead of the reader and keeps what fits the memory budget, so
        that the next stage of the pass gets the same pixels without decoding again. Do not modify
        ``pixels``.

        min_side: a JPEG is decoded at 1/8, 1/4 or 1/2 of its size where both sides then have this
            many pixels or more, for about half the time. The pixels depend on the bytes and
            ``min_side`` alone, never on what other stages ask for; a row fails exactly where it
            fails at full size. None: full size.
        """
        ...

    def facts(self, column: str = "image") -> Iterator[DecodedImage | MediaFailure]:
        """Yield the same for a stage that looks at all but ``pixels``, ``scale`` and ``covered``.

        Takes what the pass decodes for another stage; else decodes for ``REDUCED_SIDE``.
        """
        ...

    def audio(self, column: str = "audio") -> Iterator[DecodedAudio | MediaFailure]:
        """Yield one decoded recording or failure code per row, in row order, as it was recorded.

        Decodes and keeps as ``images`` does. Do not modify ``samples``.
        """
        ...

    def waveforms(
        self, column: str = "audio", *, sample_rate: int
    ) -> Iterator[Samples | MediaFailure]:
        """Yield mono waveforms, float32 (N,): the mean of the channels, resampled (soxr, HQ).

        A recording of that rate and one channel is passed on as it is. The same for every stage of
        the pass that asks for this rate.
        """
        ...

    def features(
        self, column: str = "audio", *, feature: AudioFeature
    ) -> Iterator[Samples | MediaFailure]:
        """Yield ``feature.compute`` of each row's waveform at ``feature.sample_rate``."""
        ...
