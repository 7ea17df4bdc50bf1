"""Shards with audio as training data: log-mels and small pictures in scratch files, once.

Any member may be missing: a sample is used by the pairs of modalities that it has.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from winnow.contracts.errors import SetupError
from winnow.contracts.identity import content_digest
from winnow.stages.sources._files import printable
from winnow.stages.train._audio_config import PAIRS
from winnow.stages.train._members import (
    AUDIO_MEMBERS,
    IMAGE_MEMBERS,
    Pixels,
    audio_member,
    decoded_frames,
    decoded_picture,
    image_member,
    text_member,
)
from winnow.stages.train._scratch import mapped, scratch_file
from winnow.stages.train._shard_reader import KEY, Sample
from winnow.stages.train.shards import decoded_samples

if TYPE_CHECKING:
    from winnow.models.audio_tower import AudioTowerConfig, Frames

T = TypeVar("T")
_NONE = -1

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioReading:
    """What is read of each sample.

    modalities: those that some pair trains.  pairs: a sample with none of them whole is left out.
    resize: a decoded picture -> uint8 (H, W, 3) of one size.  captions: the caption's member.
    """

    tower: AudioTowerConfig
    resize: Callable[[Any], Pixels]
    modalities: tuple[str, ...]
    pairs: tuple[str, ...]
    captions: str = "txt"
    num_threads: int = 2

    def wanted(self, extension: str) -> bool:
        """Whether a member with this extension is needed."""
        members = {"audio": AUDIO_MEMBERS, "image": IMAGE_MEMBERS, "text": (self.captions,)}
        return any(extension in members[m] for m in self.modalities)


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioSamples:
    """N samples in the order of the shards.

    place: modality -> int64 (N,), where in its store the sample's is; -1 = it has none.
    clips: float16, all log-mels after each other; starts: (A + 1,) where each begins.
    pixels: uint8 (P, H, W, 3).  texts: T captions.  digest: 32 hex digits over keys and members.
    skipped: samples left out, by reason.  unreadable: members that cannot be decoded, by reason.
    """

    keys: list[str]
    place: dict[str, Indices]
    clips: npt.NDArray[np.float16]
    starts: Indices
    num_bins: int
    pixels: Pixels
    texts: list[str]
    digest: str
    skipped: dict[str, int]
    unreadable: dict[str, int]

    def clip(self, place: int) -> Frames:
        """Return a log-mel (M, T)."""
        return self.clips[self.starts[place] : self.starts[place + 1]].reshape(self.num_bins, -1)

    def whole(self, pair: str) -> npt.NDArray[np.bool_]:
        """Return which samples have both sides of a pair."""
        one, two = PAIRS[pair]
        whole: npt.NDArray[np.bool_] = (self.place[one] >= 0) & (self.place[two] >= 0)
        return whole


@dataclass(kw_only=True, slots=True)
class Decoded:
    """The parts of one sample; None: it has none. unreadable: codes of what cannot be decoded."""

    image: Pixels | None = None
    text: str | None = None
    audio: Frames | None = None
    unreadable: list[str] = field(default_factory=list)


def decoded(sample: Sample, reading: AudioReading) -> Decoded:
    """Decode what a reading asks for; a bad member never raises."""
    found = Decoded()
    if "text" in reading.modalities:
        found.text = text_member(sample, reading.captions) or None
    if "image" in reading.modalities and (data := image_member(sample)):
        picture = decoded_picture(data, reading.resize)
        found.image = _readable("image", picture, found.unreadable)
    if "audio" in reading.modalities and (data := audio_member(sample)):
        frames = decoded_frames(data, reading.tower)
        found.audio = _readable("audio", frames, found.unreadable)
    return found


def _readable(modality: str, part: T | str, unreadable: list[str]) -> T | None:
    if isinstance(part, str):
        unreadable.append(f"{modality} {part}")
        return None
    return part


def read_audio_samples(paths: Sequence[str], reading: AudioReading, scratch: Path) -> AudioSamples:
    """Read all shards; large parts lie in nameless scratch files in the folder ``scratch``.

    Fails: SetupError for a tar that cannot be read, a full disk, or no sample with a whole pair.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    with scratch_file(scratch) as mels, scratch_file(scratch) as images:
        store = _Store(mels=mels, images=images, reading=reading)
        stream = decoded_samples(
            paths,
            reading.wanted,
            lambda sample: decoded(sample, reading),
            num_threads=reading.num_threads,
            scratch=scratch,
        )
        for sample, parts in stream:
            store.add(sample, parts)
        return store.samples(len(paths))


class _Store:
    """Collects samples; large parts go to files."""

    def __init__(self, *, mels: IO[bytes], images: IO[bytes], reading: AudioReading) -> None:
        self.mels, self.images, self.reading = mels, images, reading
        self.keys: list[str] = []
        self.place: dict[str, list[int]] = {"image": [], "text": [], "audio": []}
        self.starts, self.texts = [0], list[str]()
        self.shape: tuple[int, ...] = (0, 0, 3)
        self.num_images = 0
        self.skipped: Counter[str] = Counter()
        self.unreadable: Counter[str] = Counter()
        self.digest = hashlib.blake2b(digest_size=16)

    def add(self, sample: Sample, parts: Decoded) -> None:
        """Keep a sample that some pair can use."""
        self.unreadable.update(parts.unreadable)
        has = {name: getattr(parts, name) is not None for name in self.place}
        if not any(
            has[one] and has[two] for one, two in map(PAIRS.__getitem__, self.reading.pairs)
        ):
            lacks = [name for name in self.reading.modalities if not has[name]]
            self.skipped[f"no {' and no '.join(lacks)}"] += 1
            return
        for part in (sample[KEY].encode("utf-8", "surrogateescape"), *self._members(sample)):
            self.digest.update(content_digest(part))
        self.keys.append(printable(sample[KEY]))
        numbers = {"image": self.num_images, "text": len(self.texts), "audio": len(self.starts) - 1}
        for name, number in numbers.items():
            self.place[name].append(number if has[name] else _NONE)
        if parts.image is not None:
            self.images.write(parts.image.tobytes())
            self.shape = parts.image.shape
            self.num_images += 1
        if parts.text is not None:
            self.texts.append(parts.text)
        if parts.audio is not None:
            self.mels.write(np.ascontiguousarray(parts.audio).tobytes())
            self.starts.append(self.starts[-1] + parts.audio.size)

    def _members(self, sample: Sample) -> tuple[bytes, bytes, bytes]:
        return image_member(sample), audio_member(sample), sample.get(self.reading.captions, b"")

    def samples(self, num_shards: int) -> AudioSamples:
        """Return what was kept."""
        if not self.keys:
            counts = dict(self.skipped | self.unreadable)
            msg = f"no sample of {num_shards} shards can be trained on; left out: {counts}"
            raise SetupError(msg)
        return AudioSamples(
            keys=self.keys,
            place={name: np.array(places, np.int64) for name, places in self.place.items()},
            clips=mapped(self.mels, np.float16, (self.starts[-1],)),
            starts=np.array(self.starts, np.int64),
            num_bins=self.reading.tower.log_mel.num_bins,
            pixels=mapped(self.images, np.uint8, (self.num_images, *self.shape)),
            texts=self.texts,
            digest=self.digest.hexdigest(),
            skipped=dict(sorted(self.skipped.items())),
            unreadable=dict(sorted(self.unreadable.items())),
        )
