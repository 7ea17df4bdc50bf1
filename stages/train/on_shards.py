"""Train a contrastive model on exported shards; write a folder that ``clip_score`` can load."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from winnow.contracts.errors import SetupError
from winnow.stages.train._config import Batch, Extras, Progress, TrainConfig
from winnow.stages.train._network import Setup, network_plan
from winnow.stages.train.distributed import current_workers
from winnow.stages.train.shards import Reading, Samples, batch_indices, load_samples, shard_paths

if TYPE_CHECKING:
    from winnow.models.caption_vectors import CaptionVectors
    from winnow.models.tokenizer import Tokenizer

REPORT_NAME = "training.json"
_WORK_SCALE = 1.125  # room for the random crop
_TOKENIZED_TOGETHER = 16_384
_UNREADABLE = ("undecodable", "too_large")

Tokens = npt.NDArray[np.int32]


def train_on_shards(
    shards: Sequence[str],
    folder: Path,
    config: TrainConfig,
    *,
    model: str = "tiny",
    vocabulary: int | None = None,
    captions: str = "txt",
    num_threads: int = 2,
    report: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Train on shards; write open_clip_config.json, model.safetensors, training.json, vocabulary.

    ``model``: an architecture, freshly initialised: see ``winnow.models.checkpoint.architecture``.
    ``vocabulary``: number of tokens; the merges that the captions need are chosen. None: as many
    as the architecture says, chosen so where that is fewer than CLIP's 49,408.
    Returns what training.json holds.

    Fails: RecipeError and SetupError before training starts; ShardError where the loss is not
    finite.
    """
    setup = Setup(model=model, vocabulary=vocabulary, captions=captions, num_threads=num_threads)
    return train_setup(shards, folder, config, setup, report=report)


def train_setup(
    shards: Sequence[str],
    folder: Path,
    config: TrainConfig,
    setup: Setup,
    *,
    report: Callable[[Progress], None] = lambda progress: None,
    saved: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """As ``train_on_shards``, with everything that can be chosen.

    In a torch.distributed group every process reads the shards and the first one writes.
    """
    import torch

    from winnow.models.contrastive import Preprocess, save_model
    from winnow.stages.train.loop import forget_state, train_contrastive

    plan = network_plan(setup, config)
    torch.set_num_threads(setup.num_threads)
    paths = shard_paths(shards)
    samples = _samples(paths, _made(folder), setup, plan.preprocess)
    _check(samples, config, setup)
    wrong = _hard_negatives(samples, setup.hard_negatives)
    network, tokenizer, merges = plan.build([*samples.texts, *(wrong or ())], seed=config.seed)
    vectors, meanings = _meanings(samples.texts, config, setup)
    source = _Source(
        samples=samples,
        tokens=_tokens(tokenizer, samples.texts),
        negatives=None if wrong is None else _tokens(tokenizer, wrong),
        present=None if wrong is None else np.array([bool(text) for text in wrong]),
        meanings=vectors,
        config=config,
    )
    outcome = train_contrastive(
        network,
        source.batches,
        config,
        normalize=Preprocess(plan.preprocess).normalize,
        image_size=plan.image_size,
        folder=folder,
        data=json.dumps([samples.digest, plan.config, meanings.get("vectors"), plan.start]),
        report=report,
        saved=saved,
    )
    workers = current_workers()
    if workers.is_first:
        save_model(folder, network, config=plan.config, preprocess=plan.preprocess, merges=merges)
    described = {"separation_encoder": meanings} if meanings else {}
    document = _document(config, setup, source, paths) | described | outcome
    document["started_from"] = plan.start
    if workers.is_first:
        text = json.dumps(document, indent=1) + "\n"
        (folder / REPORT_NAME).write_text(text, encoding="utf-8")
        forget_state(folder)
    return document


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    """Batches of samples that were read; see ``batch_indices`` for their order.

    negatives, present: K texts per sample after each other, (N * K, T) and (N * K,).
    """

    samples: Samples
    tokens: Tokens
    negatives: Tokens | None
    present: npt.NDArray[np.bool_] | None
    meanings: CaptionVectors | None
    config: TrainConfig

    def batches(self, step: int) -> Iterator[Batch]:
        """Yield batches from a step on."""
        import torch

        num_samples = len(self.tokens)
        for rows in batch_indices(num_samples, self.config.batch_size, self.config.seed, step):
            tokens = torch.from_numpy(self.tokens[rows].astype(np.int64))
            yield self.samples.pixels[rows], tokens, self._extras(rows)

    def _extras(self, rows: npt.NDArray[np.int64]) -> Extras:
        import torch

        meanings = None if self.meanings is None else torch.from_numpy(self.meanings.take(rows))
        if self.negatives is None or self.present is None:
            return Extras(meanings=meanings)
        count = len(self.negatives) // len(self.tokens)
        places = (rows[:, None] * count + np.arange(count)).ravel()
        return Extras(
            negatives=torch.from_numpy(self.negatives[places].astype(np.int64)),
            has_negative=torch.from_numpy(self.present[places]),
            meanings=meanings,
        )


def _document(
    config: TrainConfig, setup: Setup, source: _Source, paths: Sequence[str]
) -> dict[str, Any]:
    present, samples = source.present, source.samples
    data = {
        "digest": samples.digest,
        "num_samples": len(samples.texts),
        "num_hard_negatives": 0 if present is None else int(present.sum()),
        "skipped": samples.skipped,
        "shards": [Path(path).name for path in paths],
    }
    return {
        "model": setup.model,
        "config": dataclasses.asdict(config),
        "setup": setup.recorded(),
        "data": data,
        "ran_on": _ran_on(config),
    }


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"{folder} cannot be written: {error}"
        raise SetupError(msg) from error
    return folder


def _samples(
    paths: Sequence[str], folder: Path, setup: Setup, preprocess: dict[str, Any]
) -> Samples:
    from winnow.models.contrastive import Preprocess
    from winnow.stages.train._sample_cache import SampleCache, cached_samples

    work = tuple(round(side * _WORK_SCALE) for side in preprocess["size"])
    changed = {**preprocess, "size": work}
    resize = Preprocess(changed).pixels
    columns = () if setup.hard_negatives is None else (setup.hard_negatives,)
    if setup.cache_folder is None:
        return load_samples(
            paths,
            resize,
            scratch=folder,
            captions=setup.captions,
            columns=columns,
            num_threads=setup.num_threads,
        )
    reading = Reading(captions=setup.captions, columns=columns, num_threads=setup.num_threads)
    where = Path(setup.cache_folder).expanduser()
    cache = SampleCache(folder=where, resized=json.dumps(changed, sort_keys=True))
    return cached_samples(cache, paths, resize, reading)


def _check(samples: Samples, config: TrainConfig, setup: Setup) -> None:
    unreadable = {why: n for why, n in samples.skipped.items() if why in _UNREADABLE}
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


def _hard_negatives(samples: Samples, column: str | None) -> list[str] | None:
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


def _meanings(
    texts: Sequence[str], config: TrainConfig, setup: Setup
) -> tuple[CaptionVectors | None, dict[str, Any]]:
    if not config.separation_weight:
        return None, {}
    from winnow.models.caption_vectors import caption_vectors, describe

    described = describe(setup.separation_encoder)
    vectors = caption_vectors(texts, setup.separation_encoder, device=config.device)
    content = hashlib.blake2b(vectors.vectors.tobytes(), digest_size=16).hexdigest()
    return vectors, {**described, "vectors": content}


def _tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> Tokens:
    parts = []
    for start in range(0, len(texts), _TOKENIZED_TOGETHER):
        chunk = tokenizer(texts[start : start + _TOKENIZED_TOGETHER])
        parts.append(chunk.numpy().astype(np.int32))
    return np.concatenate(parts)


def _ran_on(config: TrainConfig) -> dict[str, str]:
    import open_clip
    import torch

    from winnow.models.contrastive import choose_device

    device = choose_device(config.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": device.type,
        "device_name": name,
        "torch": str(torch.__version__),
        "open_clip": str(open_clip.__version__),
    }
