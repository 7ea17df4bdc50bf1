"""Batches for the training loop from samples in a scratch file: what ``on_shards`` starts with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from winnow.contracts.errors import SetupError
from winnow.contracts.paths import user_path
from winnow.stages.train._captions import caption_number, check_found, texts_of
from winnow.stages.train._config import Batch, Extras, TrainConfig
from winnow.stages.train._network import Setup
from winnow.stages.train.shards import Reading, Samples, batch_indices, load_samples

if TYPE_CHECKING:
    from winnow.models.caption_vectors import CaptionVectors
    from winnow.models.tokenizer import Tokenizer

WORK_SCALE = 1.125  # room for the random crop
UNREADABLE = ("undecodable", "too_large")
_TOKENIZED_TOGETHER = 16_384

Tokens = npt.NDArray[np.int32]


def working_preprocess(preprocess: dict[str, Any]) -> dict[str, Any]:
    """Return the transform of the pictures that are kept, a little larger than the network's."""
    work = tuple(round(side * WORK_SCALE) for side in preprocess["size"])
    return {**preprocess, "size": work}


@dataclass(frozen=True, kw_only=True, slots=True)
class MemorySource:
    """Batches of samples that were read; see ``batch_indices`` for their order.

    tokens: the captions of all samples after each other; starts: (N + 1,) where each sample's
    begin and end.  negatives, present: K texts per sample after each other, (N * K, T) and
    (N * K,).
    """

    samples: Samples
    tokens: Tokens
    starts: npt.NDArray[np.int64]
    negatives: Tokens | None
    present: npt.NDArray[np.bool_] | None
    meanings: CaptionVectors | None
    config: TrainConfig

    def batches(self, step: int) -> Iterator[Batch]:
        """Yield batches from a step on."""
        import torch

        num_samples, size = len(self.samples.texts), self.config.batch_size
        for rows in batch_indices(num_samples, size, self.config.seed, step):
            places = np.arange(step * size, (step + 1) * size)
            captions = self._captions(rows, places // num_samples)
            tokens = torch.from_numpy(self.tokens[captions].astype(np.int64))
            yield self.samples.pixels[rows], tokens, self._extras(rows)
            step += 1

    def _captions(
        self, rows: npt.NDArray[np.int64], epochs: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Return the places in ``tokens`` of the captions that samples have in these epochs."""
        counts = self.starts[rows + 1] - self.starts[rows]
        drawn = [
            caption_number(self.config.seed, epoch, self.samples.keys[row], count)
            for row, epoch, count in zip(
                rows.tolist(), epochs.tolist(), counts.tolist(), strict=True
            )
            if count > 1
        ]
        places = self.starts[rows]
        places[counts > 1] += np.array(drawn, np.int64)
        return places

    def _extras(self, rows: npt.NDArray[np.int64]) -> Extras:
        import torch

        meanings = None if self.meanings is None else torch.from_numpy(self.meanings.take(rows))
        if self.negatives is None or self.present is None:
            return Extras(meanings=meanings)
        count = len(self.negatives) // len(self.samples.texts)
        places = (rows[:, None] * count + np.arange(count)).ravel()
        return Extras(
            negatives=torch.from_numpy(self.negatives[places].astype(np.int64)),
            has_negative=torch.from_numpy(self.present[places]),
            meanings=meanings,
        )


def read_all(
    paths: Sequence[str], folder: Path, setup: Setup, preprocess: dict[str, Any]
) -> Samples:
    """Read all samples, or take them from the cache where the setup has one.

    Fails: as ``load_samples``.
    """
    from winnow.models.contrastive import Preprocess
    from winnow.stages.train._sample_cache import SampleCache, cached_samples

    changed = working_preprocess(preprocess)
    resize = Preprocess(changed).pixels
    if setup.cache_folder is None:
        return load_samples(
            paths,
            resize,
            scratch=folder,
            captions=setup.captions,
            columns=setup.columns,
            num_threads=setup.num_threads,
        )
    reading = Reading(captions=setup.captions, columns=setup.columns, num_threads=setup.num_threads)
    where = user_path(setup.cache_folder)
    cache = SampleCache(folder=where, resized=json.dumps(changed, sort_keys=True))
    return cached_samples(cache, paths, resize, reading)


def check_samples(samples: Samples, config: TrainConfig, setup: Setup) -> None:
    """Raise SetupError for pictures that cannot be read, or for less than a batch of samples."""
    unreadable = {why: n for why, n in samples.skipped.items() if why in UNREADABLE}
    if unreadable and not setup.skip_unreadable:
        found = ", ".join(f"{n} {why}" for why, n in unreadable.items())
        msg = (
            f"the shards hold pictures that cannot be read: {found}; filter them out and export "
            "again, or set skip_unreadable: true to leave them out"
        )
        raise SetupError(msg)
    if len(samples.texts) < config.batch_size:
        msg = (
            f"the shards hold {len(samples.texts)} usable samples (left out: {samples.skipped}), "
            f"fewer than a batch of {config.batch_size}; lower the batch size"
        )
        raise SetupError(msg)


def caption_lists(samples: Samples, column: str | None) -> list[list[str]]:
    """Return the captions that each sample is drawn from: those of a column, or its only one.

    Fails: SetupError for a column without lists of texts.
    """
    if column is None:
        return [[text] for text in samples.texts]
    values = zip(samples.keys, samples.columns[column], strict=True)
    found = [texts_of(value, column=column, key=key) for key, value in values]
    check_found(found, column)
    return [texts or [text] for texts, text in zip(found, samples.texts, strict=True)]


def hard_negatives(samples: Samples, column: str | None) -> list[str] | None:
    """Return K texts per sample after each other, "" for none; None where none are asked for."""
    if column is None:
        return None
    rows: list[list[str]] = []
    for key, value in zip(samples.keys, samples.columns[column], strict=True):
        texts = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            msg = f"hard_negatives: {column} of sample {key} is no text and no list of texts"
            raise SetupError(msg)
        rows.append([text.strip() for text in texts if text.strip()])
    count = max(map(len, rows))
    if not count:
        msg = f"hard_negatives: no sample has a text in the column {column} of its .json member"
        raise SetupError(msg)
    return [text for texts in rows for text in [*texts, *[""] * (count - len(texts))]]


def caption_meanings(
    texts: Sequence[str], config: TrainConfig, setup: Setup
) -> tuple[CaptionVectors | None, dict[str, Any]]:
    """Return the captions in a frozen encoder, and what training.json says of it."""
    if not config.separation_weight:
        return None, {}
    from winnow.models.caption_vectors import caption_vectors, describe

    described = describe(setup.separation_encoder)
    vectors = caption_vectors(texts, setup.separation_encoder, device=config.device)
    content = hashlib.blake2b(vectors.vectors.tobytes(), digest_size=16).hexdigest()
    return vectors, {**described, "vectors": content}


def all_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> Tokens:
    """Return the tokens of many texts, int32 (N, T)."""
    parts = []
    for start in range(0, len(texts), _TOKENIZED_TOGETHER):
        chunk = tokenizer(texts[start : start + _TOKENIZED_TOGETHER])
        parts.append(chunk.numpy().astype(np.int32))
    return np.concatenate(parts)
