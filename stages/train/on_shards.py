"""Train a contrastive model on exported shards; write a folder that ``clip_score`` can load."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from winnow.contracts.errors import SetupError
from winnow.stages.train import _memory_source as memory
from winnow.stages.train._common import made, ran_on
from winnow.stages.train._config import Batches, Progress, TrainConfig
from winnow.stages.train._network import NetworkPlan, Setup, network_plan, stream_config
from winnow.stages.train._shard_reader import shard_sizes
from winnow.stages.train._stream_source import StreamSource, check_has_choices, check_has_text
from winnow.stages.train.distributed import current_workers
from winnow.stages.train.shards import shard_paths

if TYPE_CHECKING:
    from torch import nn

REPORT_NAME = "training.json"


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

    In a torch.distributed group every process reads the shards and the first one writes; of a
    stream every process reads its own part.
    """
    import torch

    from winnow.models.contrastive import Preprocess, save_model
    from winnow.models.devices import choose_device
    from winnow.stages.train.loop import forget_state, train_contrastive

    plan = network_plan(setup, config)
    torch.set_num_threads(setup.num_threads)
    paths = shard_paths(shards)
    data = (_streamed if setup.stream else _in_memory)(paths, made(folder), config, plan)
    outcome = train_contrastive(
        data.network,
        data.batches,
        config,
        normalize=Preprocess(plan.preprocess).normalize,
        image_size=plan.image_size,
        folder=folder,
        data=json.dumps([data.digest, plan.config, data.encoder.get("vectors"), plan.start]),
        report=report,
        saved=saved,
    )
    document = {
        "model": setup.model,
        "config": dataclasses.asdict(config),
        "setup": setup.recorded(),
        "data": {
            "digest": data.digest,
            **data.counts(outcome.pop("skipped")),
            "shards": [Path(path).name for path in paths],
        },
        "ran_on": ran_on(choose_device(config.device)),
        **({"separation_encoder": data.encoder} if data.encoder else {}),
        **outcome,
        "started_from": plan.start,
    }
    if current_workers().is_first:
        save_model(
            folder,
            data.network,
            config=plan.config,
            preprocess=plan.preprocess,
            merges=data.merges,
            tokenizer=plan.tokenizer,
        )
        text = json.dumps(document, indent=1) + "\n"
        (folder / REPORT_NAME).write_text(text, encoding="utf-8")
        forget_state(folder)
    return document


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Data:
    """A network and what it is trained on.

    digest: of what ``batches`` yields.  counts: what the loop skipped -> training.json's counts.
    encoder: what training.json says of AlignCLIP's text encoder.
    """

    network: nn.Module
    merges: list[str] | None
    batches: Batches
    digest: str
    counts: Callable[[Mapping[str, int]], dict[str, Any]]
    encoder: dict[str, Any]


def _in_memory(paths: Sequence[str], folder: Path, config: TrainConfig, plan: NetworkPlan) -> _Data:
    """Read all samples; the vocabulary is chosen for their captions."""
    setup = plan.setup
    samples = memory.read_all(paths, folder, setup, plan.preprocess)
    memory.check_samples(samples, config, setup)
    wrong = memory.hard_negatives(samples, setup.hard_negatives)
    lists = memory.caption_lists(samples, setup.caption_choices)
    captions = [text for texts in lists for text in texts]
    network, tokenizer, merges = plan.build([*captions, *(wrong or ())], seed=config.seed)
    vectors, encoder = memory.caption_meanings(samples.texts, config, setup)
    present = None if wrong is None else np.array([bool(text) for text in wrong])
    source = memory.MemorySource(
        samples=samples,
        tokens=memory.all_tokens(tokenizer, captions),
        starts=np.cumsum([0, *map(len, lists)]),
        negatives=None if wrong is None else memory.all_tokens(tokenizer, wrong),
        present=present,
        meanings=vectors,
        config=config,
    )
    counts = {
        "num_samples": len(samples.texts),
        "num_hard_negatives": 0 if present is None else int(present.sum()),
        "skipped": samples.skipped,
        **({"num_captions": len(captions)} if setup.caption_choices else {}),
    }
    return _Data(
        network=network,
        merges=merges,
        batches=source.batches,
        digest=":".join(filter(None, (samples.digest, setup.caption_choices))),
        counts=lambda skipped: counts,
        encoder=encoder,
    )


def _streamed(paths: Sequence[str], folder: Path, config: TrainConfig, plan: NetworkPlan) -> _Data:
    """Read nothing yet but the shards' sizes; the vocabulary is CLIP's, or that of ``init``."""
    from winnow.models.contrastive import Preprocess

    setup = plan.setup
    sizes = shard_sizes(paths, num_threads=setup.num_threads)
    num_samples = sum(sizes.values())
    if num_samples < config.batch_size:
        msg = (
            f"the shards hold {num_samples} samples, fewer than a batch of {config.batch_size}; "
            "lower the batch size"
        )
        raise SetupError(msg)
    if setup.hard_negatives is not None:
        check_has_text(paths, setup.hard_negatives)
    if setup.caption_choices is not None:
        check_has_choices(paths, setup.caption_choices)
    network, tokenizer, merges = plan.build((), seed=config.seed)
    source = StreamSource(
        sizes,
        Preprocess(memory.working_preprocess(plan.preprocess)).pixels,
        tokenizer,
        stream_config(setup, config),
        skip_unreadable=setup.skip_unreadable,
    )

    def counts(skipped: Mapping[str, int]) -> dict[str, Any]:
        return {
            "num_samples": num_samples - sum(skipped.values()),
            "num_hard_negatives": 0 if setup.hard_negatives is None else None,
            "skipped": dict(sorted(skipped.items())),
        }

    return _Data(
        network=network,
        merges=merges,
        batches=source.batches,
        digest=source.digest(setup.data_digest),
        counts=counts,
        encoder={},
    )
