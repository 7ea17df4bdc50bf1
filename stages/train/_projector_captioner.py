"""A trained projector model's view of an evaluation set: it answers about pictures and sounds."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from winnow.contracts.errors import SetupError
from winnow.contracts.trial import Captioner, Floats, Generated
from winnow.stages.train._embed import CAPTIONS, rows_table
from winnow.stages.train._members import (
    AUDIO_MEMBERS,
    IMAGE_MEMBERS,
    Pixels,
    audio_member,
    decoded_picture,
    image_member,
    text_member,
)
from winnow.stages.train._projector_senses import senses_writer
from winnow.stages.train._projector_sound import Senses, heard_frames
from winnow.stages.train._shard_reader import KEY, Sample
from winnow.stages.train.shards import decoded_samples, json_values

if TYPE_CHECKING:
    from winnow.models.audio_tower import Frames
    from winnow.models.projector import Projector


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
    writer = senses_writer(
        projector,
        shards,
        _writable(viewing.scratch),
        cache_bytes=viewing.cache_bytes,
        num_threads=viewing.num_threads,
    )
    ears = writer.ears
    keys: list[str] = []
    captions: list[str | None] = []
    values: list[list[Any]] = []
    num_without = 0
    heard = () if ears is None else AUDIO_MEMBERS
    wanted = {*IMAGE_MEMBERS, *heard, CAPTIONS, *(["json"] if columns else [])}

    def perceived(sample: Sample) -> tuple[Pixels | None, Frames | None]:
        pixels = decoded_picture(image_member(sample), projector.tower.pixels)
        frames = None if ears is None else heard_frames(ears, audio_member(sample))
        return (
            None if isinstance(pixels, str) else pixels,
            None if isinstance(frames, str) else frames,
        )

    stream = decoded_samples(
        shards, wanted.__contains__, perceived, num_threads=viewing.num_threads
    )
    for sample, (pixels, frames) in stream:
        if pixels is None and frames is None:
            num_without += 1
            continue
        writer.add([] if pixels is None else [pixels], frames)
        keys.append(str(sample[KEY]).removeprefix("./"))
        captions.append(text_member(sample, CAPTIONS) or None)
        values.append(json_values(sample, columns))
    if not keys:
        what = "picture" if ears is None else "picture or a recording"
        msg = f"none of the {num_without} samples has a {what} that can be read"
        raise SetupError(msg)
    return _Seen(writer.done(), rows_table(keys, captions, columns, values), num_without)


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
