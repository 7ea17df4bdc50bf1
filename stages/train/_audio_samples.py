"""Shards with audio as training data: log-mels and small pictures in scratch files, once.

Any member may be missing: a sample is used by the pairs of modalities that it has.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from winnow.contracts.errors import SetupError
from winnow.contracts.media import MediaCaps
from winnow.stages._audio import decode_audio, to_mono
from winnow.stages._media import decode_image
from winnow.stages.sources._files import printable
from winnow.stages.train._audio_config import PAIRS
from winnow.stages.train._shard_reader import KEY, Sample
from winnow.stages.train.shards import IMAGE_MEMBERS, Pixels, image_member, read_samples

if TYPE_CHECKING:
    from winnow.models.audio_tower import AudioTowerConfig, Frames

AUDIO_MEMBERS = ("wav", "flac", "mp3", "ogg", "opus", "m4a")
_CHUNK = 64
_SPARE_BYTES = 1 << 30
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


def audio_member(sample: Sample) -> bytes:
    """Return the encoded recording of a sample, b"" where it has none."""
    return next((sample[name] for name in AUDIO_MEMBERS if name in sample), b"")


def decoded(sample: Sample, reading: AudioReading) -> Decoded:
    """Decode what a reading asks for; a bad member never raises."""
    found = Decoded()
    if "text" in reading.modalities:
        text = sample.get(reading.captions, b"").decode("utf-8", "replace").strip()
        found.text = text or None
    data = image_member(sample) if "image" in reading.modalities else b""
    if data:
        picture = decode_image(data, MediaCaps())
        if isinstance(picture, str):
            found.unreadable.append(f"image {picture}")
        else:
            found.image = reading.resize(picture.pixels)
    data = audio_member(sample) if "audio" in reading.modalities else b""
    if data:
        sound = decode_audio(data, MediaCaps())
        if isinstance(sound, str):
            found.unreadable.append(f"audio {sound}")
        else:
            rate = reading.tower.log_mel.sample_rate
            mono_N = to_mono(sound.samples, sound.sample_rate, rate)
            found.audio = reading.tower.frames(mono_N)
    return found


def read_audio_samples(paths: Sequence[str], reading: AudioReading, scratch: Path) -> AudioSamples:
    """Read all shards; large parts lie in nameless scratch files in the folder ``scratch``.

    Fails: SetupError for a tar that cannot be read, a full disk, or no sample with a whole pair.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=scratch) as mels, tempfile.TemporaryFile(dir=scratch) as images:
        store = _Store(mels=mels, images=images, reading=reading)
        for sample, parts in _decoded_samples(paths, reading, scratch):
            store.add(sample, parts)
        mels.flush()
        images.flush()
        return store.samples(len(paths))


def _decoded_samples(
    paths: Sequence[str], reading: AudioReading, scratch: Path
) -> Iterator[tuple[Sample, Decoded]]:
    stream = read_samples(paths, reading.wanted)
    with ThreadPoolExecutor(reading.num_threads, "decode") as pool:
        while chunk := list(islice(stream, _CHUNK)):
            if shutil.disk_usage(scratch).free < _SPARE_BYTES:
                msg = f"less than 1 GB is left at {scratch}; train on a larger disk"
                raise SetupError(msg)
            yield from zip(chunk, pool.map(lambda s: decoded(s, reading), chunk), strict=True)


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
            self.digest.update(hashlib.blake2b(part, digest_size=16).digest())
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
            clips=_mapped(self.mels, np.float16, (self.starts[-1],)),
            starts=np.array(self.starts, np.int64),
            num_bins=self.reading.tower.log_mel.num_bins,
            pixels=_mapped(self.images, np.uint8, (self.num_images, *self.shape)),
            texts=self.texts,
            digest=self.digest.hexdigest(),
            skipped=dict(sorted(self.skipped.items())),
            unreadable=dict(sorted(self.unreadable.items())),
        )


def _mapped(file: IO[bytes], kind: type[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    if not all(shape):
        return np.empty(shape, kind)
    return np.memmap(file, kind, "r", shape=shape)  # type: ignore[call-overload, no-any-return]
