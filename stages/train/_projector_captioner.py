"""A trained projector model's view of an evaluation set: it answers about pictures and sounds."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from winnow.contracts.errors import SetupError
from winnow.contracts.trial import Captioner, Floats, Generated
from winnow.stages.train._audio_samples import AUDIO_MEMBERS, audio_member
from winnow.stages.train._embed import rows_table
from winnow.stages.train._projector_lessons import member_text, tower_pixels
from winnow.stages.train._projector_pictures import PictureWriter, Pixels, features_bytes
from winnow.stages.train._projector_sound import NONE, Senses, SoundWriter, heard_frames
from winnow.stages.train._shard_reader import KEY, Sample, shard_sizes
from winnow.stages.train.shards import IMAGE_MEMBERS, image_member, json_values, read_samples

if TYPE_CHECKING:
    from winnow.models.audio_tower import Frames
    from winnow.models.projector import Projector
    from winnow.models.vision_tower import VisionTower

_CHUNK = 64
CAPTIONS = "txt"


@dataclass(frozen=True, kw_only=True, slots=True)
class Viewing:
    """How an evaluation set is read and asked; nothing here changes an answer but the batch size,
    and that the last bits only."""

    batch_size: int
    num_threads: int
    cache_bytes: int
    scratch: Path


def captioner(
    projector: Projector, shards: Sequence[str], columns: Sequence[str], viewing: Viewing
) -> Captioner:
    """Return the model's answers about all pictures of the shards, in their order.

    A sample whose picture is missing or cannot be decoded has no row; the fact
    ``samples_without_picture`` counts them. With an audio tower a picture or a recording is enough:
    the facts are ``samples_without_both``, ``rows_without_picture``, ``rows_without_recording``.

    Fails: SetupError for a tar that cannot be read, and where nothing in them can.
    """
    seen = _see(projector, shards, columns, viewing)
    answers = _Answers(projector, seen.senses, viewing.batch_size)
    return Captioner(
        rows=seen.rows,
        generate=answers.generate,
        token_log_likelihoods=answers.token_log_likelihoods,
        tokens=answers.tokens,
        use_of_image=answers.use_of_image,
        use_kind=projector.use_kind,
        facts={**projector.facts(), **_missing(seen)},
    )


@dataclass(frozen=True, slots=True)
class _Seen:
    """What can be perceived, and its rows; num_without: samples of which nothing can."""

    senses: Senses
    rows: pa.Table
    num_without: int


def _missing(seen: _Seen) -> dict[str, float]:
    if seen.senses.sounds is None:
        return {"samples_without_picture": float(seen.num_without)}
    return {
        "samples_without_both": float(seen.num_without),
        "rows_without_picture": float(seen.senses.without("image")),
        "rows_without_recording": float(seen.senses.without("audio")),
    }


def _see(
    projector: Projector, shards: Sequence[str], columns: Sequence[str], viewing: Viewing
) -> _Seen:
    store = _store(projector, shards, viewing)
    keys: list[str] = []
    captions: list[str | None] = []
    values: list[list[Any]] = []
    num_without = 0
    heard = () if store.sounds is None else AUDIO_MEMBERS
    wanted = {*IMAGE_MEMBERS, *heard, CAPTIONS, *(["json"] if columns else [])}
    stream = read_samples(shards, wanted.__contains__)
    with ThreadPoolExecutor(viewing.num_threads, "decode") as pool:
        while chunk := list(islice(stream, _CHUNK)):
            for sample, found in zip(chunk, pool.map(store.perceived, chunk), strict=True):
                if all(part is None for part in found):
                    num_without += 1
                    continue
                store.add(*found)
                keys.append(str(sample[KEY]).removeprefix("./"))
                captions.append(member_text(sample, CAPTIONS) or None)
                values.append(json_values(sample, columns))
    if not keys:
        what = "picture" if store.sounds is None else "picture or a recording"
        msg = f"none of the {num_without} samples has a {what} that can be read"
        raise SetupError(msg)
    return _Seen(store.done(), rows_table(keys, captions, columns, values), num_without)


class _Store:
    """Collects what is seen and heard."""

    def __init__(
        self, tower: VisionTower, pictures: PictureWriter, sounds: SoundWriter | None
    ) -> None:
        self.tower, self.pictures, self.sounds = tower, pictures, sounds
        self.picture_of: list[int] = []
        self.sound_of: list[int] = []

    def perceived(self, sample: Sample) -> tuple[Pixels | None, Frames | None]:
        """Decode what a sample has; None for what it lacks or what cannot be decoded."""
        pixels = tower_pixels(self.tower, image_member(sample))
        seen = None if isinstance(pixels, str) else pixels
        if self.sounds is None:
            return seen, None
        frames = heard_frames(self.sounds.tower, audio_member(sample))
        return seen, None if isinstance(frames, str) else frames

    def add(self, pixels: Pixels | None, frames: Frames | None) -> None:
        """Append a row."""
        self.picture_of.append(NONE if pixels is None else len(self.pictures))
        self.pictures.add([] if pixels is None else [pixels])
        if self.sounds is not None:
            self.sound_of.append(NONE if frames is None else len(self.sounds))
            self.sounds.add(frames)

    def done(self) -> Senses:
        """Return what was added."""
        return Senses(
            pictures=self.pictures.done(),
            picture_of=self.picture_of,
            sounds=None if self.sounds is None else self.sounds.done(),
            sound_of=self.sound_of,
        )


def _store(projector: Projector, shards: Sequence[str], viewing: Viewing) -> _Store:
    tower, folder = projector.tower, _writable(viewing.scratch)
    most = sum(shard_sizes(shards, num_threads=viewing.num_threads).values())
    needed = features_bytes(tower, most, projector.config.max_tiles)
    keep = needed <= viewing.cache_bytes
    pictures = PictureWriter(tower, folder, projector.device, keep_features=keep)
    audio, sounds = projector.audio, None
    if audio is not None:
        sounds = SoundWriter(audio.tower, folder, projector.device)
    return _Store(tower, pictures, sounds)


def _writable(folder: Path) -> Path:
    """A packaged model's folder may belong to somebody else."""
    return folder if os.access(folder, os.W_OK) else Path(tempfile.gettempdir())


class _Answers:
    """The functions of a Captioner, in batches."""

    def __init__(self, projector: Projector, senses: Senses, batch_size: int) -> None:
        self.projector, self.senses, self.batch_size = projector, senses, batch_size
        projector.eval()

    def generate(
        self, rows: Sequence[int], prompts: Sequence[str], max_tokens: int
    ) -> list[Generated]:
        from winnow.models.generation import Sampling

        sampling = Sampling(max_tokens=max_tokens)

        def answer(features: Any, mask: Any, asked: Sequence[str]) -> list[Any]:
            return self.projector.generate(features, mask, asked, sampling, None)

        return self._batched(answer, rows, prompts)

    def token_log_likelihoods(
        self, rows: Sequence[int], prompts: Sequence[str], answers: Sequence[str]
    ) -> list[Floats]:
        return self._batched(self.projector.token_log_likelihoods, rows, prompts, answers)

    def use_of_image(
        self, rows: Sequence[int], prompts: Sequence[str], answers: Sequence[str]
    ) -> list[Floats]:
        return self._batched(self.projector.use_of_image, rows, prompts, answers)

    def tokens(self, answer: str) -> list[tuple[int, int]]:
        return self.projector.tokens(answer)

    def _batched(
        self, ask: Callable[..., list[Any]], rows: Sequence[int], *texts: Sequence[str]
    ) -> list[Any]:
        found: list[Any] = []
        for start in range(0, len(rows), self.batch_size):
            end = start + self.batch_size
            with self.senses.of(self.projector, rows[start:end]) as (features_BPV, mask_BP):
                found += ask(features_BPV, mask_BP, *(part[start:end] for part in texts))
        return found
