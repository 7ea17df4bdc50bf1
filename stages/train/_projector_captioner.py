"""A trained projector model's view of an evaluation set: it answers about the pictures."""

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
from winnow.stages.train._embed import rows_table
from winnow.stages.train._projector_lessons import member_text, tower_pixels
from winnow.stages.train._projector_pictures import Pictures, PictureWriter, features_bytes
from winnow.stages.train._shard_reader import KEY, shard_sizes
from winnow.stages.train.shards import IMAGE_MEMBERS, image_member, json_values, read_samples

if TYPE_CHECKING:
    from winnow.models.projector import Projector

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
    ``samples_without_picture`` counts them.

    Fails: SetupError for a tar that cannot be read, and where no picture can.
    """
    seen = _see(projector, shards, columns, viewing)
    answers = _Answers(projector, seen.pictures, viewing.batch_size)
    return Captioner(
        rows=seen.rows,
        generate=answers.generate,
        token_log_likelihoods=answers.token_log_likelihoods,
        tokens=answers.tokens,
        use_of_image=answers.use_of_image,
        use_kind=projector.use_kind,
        facts={**projector.facts(), "samples_without_picture": float(seen.num_blind)},
    )


@dataclass(frozen=True, slots=True)
class _Seen:
    """Pictures that can be read and their rows; num_blind: samples that have none."""

    pictures: Pictures
    rows: pa.Table
    num_blind: int


def _see(
    projector: Projector, shards: Sequence[str], columns: Sequence[str], viewing: Viewing
) -> _Seen:
    tower = projector.tower
    most = sum(shard_sizes(shards, num_threads=viewing.num_threads).values())
    needed = features_bytes(tower, most, projector.config.max_tiles)
    keep = needed <= viewing.cache_bytes
    writer = PictureWriter(tower, _writable(viewing.scratch), projector.device, keep_features=keep)
    keys: list[str] = []
    captions: list[str | None] = []
    values: list[list[Any]] = []
    num_blind = 0
    wanted = {*IMAGE_MEMBERS, CAPTIONS, *(["json"] if columns else [])}
    stream = read_samples(shards, wanted.__contains__)
    with ThreadPoolExecutor(viewing.num_threads, "decode") as pool:
        while chunk := list(islice(stream, _CHUNK)):
            found = pool.map(lambda s: tower_pixels(tower, image_member(s)), chunk)
            for sample, pixels in zip(chunk, found, strict=True):
                if isinstance(pixels, str):
                    num_blind += 1
                    continue
                writer.add([pixels])
                keys.append(str(sample[KEY]).removeprefix("./"))
                captions.append(member_text(sample, CAPTIONS) or None)
                values.append(json_values(sample, columns))
    if not keys:
        msg = f"none of the {num_blind} samples has a picture that can be read"
        raise SetupError(msg)
    return _Seen(writer.done(), rows_table(keys, captions, columns, values), num_blind)


def _writable(folder: Path) -> Path:
    """A packaged model's folder may belong to somebody else."""
    return folder if os.access(folder, os.W_OK) else Path(tempfile.gettempdir())


class _Answers:
    """The functions of a Captioner, in batches."""

    def __init__(self, projector: Projector, pictures: Pictures, batch_size: int) -> None:
        self.projector, self.pictures, self.batch_size = projector, pictures, batch_size
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
            features_BPV, mask_BP = self.pictures.features(rows[start:end])
            found += ask(features_BPV, mask_BP, *(part[start:end] for part in texts))
        return found
