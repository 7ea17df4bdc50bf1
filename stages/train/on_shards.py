"""Train a contrastive model on exported shards; write a folder that ``clip_score`` can load."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from winnow.contracts.errors import RecipeError, SetupError
from winnow.models.checkpoint import architecture
from winnow.models.tokenizer import (
    MERGES_NAME,
    NUM_FIXED_TOKENS,
    Tokenizer,
    trimmed_merges,
    write_merges,
)
from winnow.stages.train.contrastive import Progress, TrainConfig, train_contrastive
from winnow.stages.train.shards import Pixels, Samples, batch_indices, load_samples, shard_paths

if TYPE_CHECKING:
    import torch

REPORT_NAME = "training.json"
CLIP_VOCABULARY = 49_408
_WORK_SCALE = 1.125  # room for the random crop


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

    ``model``: an architecture, freshly initialised: "tiny", an open_clip name, or a config file.
    ``vocabulary``: number of tokens; the merges that the captions need are chosen. None: as many
    as the architecture says, chosen so where that is fewer than CLIP's 49,408.
    Returns what training.json holds.

    Fails: RecipeError and SetupError before training starts; ShardError where the loss is not
    finite.
    """
    import torch

    from winnow.models.contrastive import Preprocess, build_network, save_model

    described = architecture(model)
    network_config = _with_loss(described["model_cfg"], config)
    size = int(network_config["vision_cfg"].get("image_size", 224))
    preprocess_config = {**described.get("preprocess_cfg", {}), "size": (size, size)}
    work = round(size * _WORK_SCALE)
    torch.set_num_threads(num_threads)
    paths = shard_paths(shards)
    samples = load_samples(
        paths,
        Preprocess({**preprocess_config, "size": (work, work)}).pixels,
        scratch=_made(folder),
        captions=captions,
        num_threads=num_threads,
    )
    _check(samples, config)
    merges = _merges(network_config, samples.texts, vocabulary)
    tokens = _tokenizer(network_config, merges)(samples.texts)
    network = build_network(network_config, seed=config.seed)
    outcome = train_contrastive(
        network,
        lambda step: _batches(samples.pixels, tokens, config, step),
        config,
        normalize=Preprocess(preprocess_config).normalize,
        image_size=size,
        folder=folder,
        data=f"{samples.digest} {json.dumps(network_config, sort_keys=True)}",
        report=report,
    )
    save_model(folder, network, config=network_config, preprocess=preprocess_config, merges=merges)
    data = {
        "digest": samples.digest,
        "num_samples": len(samples.texts),
        "skipped": samples.skipped,
        "shards": [Path(path).name for path in paths],
    }
    document = {"model": model, "config": dataclasses.asdict(config), "data": data, **outcome}
    (folder / REPORT_NAME).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return document


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"{folder} cannot be written: {error}"
        raise SetupError(msg) from error
    return folder


def _check(samples: Samples, config: TrainConfig) -> None:
    if len(samples.texts) < config.batch_size:
        msg = (
            f"the shards hold {len(samples.texts)} usable samples (left out: {samples.skipped}), "
            f"fewer than a batch of {config.batch_size}; lower --batch-size"
        )
        raise SetupError(msg)


def _with_loss(model_config: dict[str, Any], config: TrainConfig) -> dict[str, Any]:
    """SigLIP starts at temperature 10 and bias -10 (Zhai et al. 2023, section 3.2)."""
    changed = copy.deepcopy(model_config)
    if changed["text_cfg"].get("hf_tokenizer_name"):
        msg = "only architectures with CLIP's byte-pair tokenizer can be trained; see --model tiny"
        raise RecipeError(msg)
    changed["text_cfg"].pop("tokenizer_kwargs", None)
    if config.loss == "siglip":
        changed |= {"init_logit_scale": math.log(10), "init_logit_bias": -10.0}
    return changed


def _merges(
    network_config: dict[str, Any], texts: list[str], vocabulary: int | None
) -> list[str] | None:
    """Choose the vocabulary and set its size in the configuration; None: CLIP's whole list."""
    text = network_config["text_cfg"]
    wanted = vocabulary or int(text.get("vocab_size", CLIP_VOCABULARY))
    if wanted >= CLIP_VOCABULARY:
        text["vocab_size"] = CLIP_VOCABULARY
        return None
    if wanted < NUM_FIXED_TOKENS:
        msg = f"vocabulary={wanted}: use at least {NUM_FIXED_TOKENS} tokens, such as 4096"
        raise RecipeError(msg)
    merges = trimmed_merges(texts, wanted)
    text["vocab_size"] = NUM_FIXED_TOKENS + len(merges)
    return merges


def _tokenizer(network_config: dict[str, Any], merges: list[str] | None) -> Tokenizer:
    from open_clip.tokenizer import SimpleTokenizer

    length = int(network_config["text_cfg"].get("context_length", 77))
    if merges is None:
        return Tokenizer(SimpleTokenizer(context_length=length), length)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MERGES_NAME
        write_merges(merges, path)
        return Tokenizer(SimpleTokenizer(bpe_path=str(path), context_length=length), length)


def _batches(
    pixels: Pixels, tokens: torch.Tensor, config: TrainConfig, step: int
) -> Iterator[tuple[Pixels, torch.Tensor]]:
    for rows in batch_indices(len(pixels), config.batch_size, config.seed, step):
        yield pixels[rows], tokens[rows]
