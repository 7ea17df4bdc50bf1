"""Which network is trained, on which members of the samples, from which weights and vocabulary."""

from __future__ import annotations

import copy
import dataclasses
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from winnow.contracts.errors import RecipeError
from winnow.models.checkpoint import ModelFiles, architecture, architecture_folder, find_model
from winnow.models.file_digest import files_digest
from winnow.models.hub_text import (
    starts_from_weights,
    tokenizer_files,
    tokenizer_folder,
    transformer_digest,
    without_paths,
)
from winnow.models.tokenizer import (
    CLIP_VOCABULARY,
    MERGES_NAME,
    NUM_FIXED_TOKENS,
    Tokenizer,
    trimmed_merges,
    write_merges,
)
from winnow.stages.train._config import TrainConfig
from winnow.stages.train.streaming import StreamConfig

if TYPE_CHECKING:
    from torch import nn


NUM_LANES = 1
BUFFER_SAMPLES = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What is trained, beside the loop's own parameters.

    model: an architecture, see ``winnow.models.checkpoint.architecture``.  init: a model to start
    from (its weights and vocabulary), see ``winnow.models.checkpoint``; it must fit ``model``.
    vocabulary: number of tokens; None: the architecture's.  captions: the member with the caption.
    hard_negatives: a column of the .json members: a text or list of texts that is wrong for the
    sample's image; null where there is none.  caption_choices: a column of the .json members: a
    list of captions, one of which is drawn each epoch.  shared_transformer: as in AlignCLIP.
    separation_encoder: see ``winnow.models.caption_vectors``.  skip_unreadable: leave pictures that
    cannot be decoded out, instead of refusing to train.  cache_folder: where decoded pictures are
    kept for other runs.  stream: never hold more than a buffer of samples; then num_lanes and
    buffer_samples are those of ``streaming.StreamConfig``, and data_digest says what the shards
    hold, where that is known.
    """

    model: str = "tiny"
    init: str | None = None
    vocabulary: int | None = None
    captions: str = "txt"
    hard_negatives: str | None = None
    caption_choices: str | None = None
    shared_transformer: bool = False
    separation_encoder: str = "hashed_words"
    skip_unreadable: bool = True
    num_threads: int = 2
    cache_folder: str | None = None
    stream: bool = False
    num_lanes: int = NUM_LANES
    buffer_samples: int = BUFFER_SAMPLES
    data_digest: str = ""

    def recorded(self) -> dict[str, Any]:
        """Return what training.json says of it: nothing that depends on the machine's paths."""
        values = dataclasses.asdict(self)
        names = ["model", "init", "cache_folder", "separation_encoder", "data_digest"]
        names += [] if self.stream else ["stream", "num_lanes", "buffer_samples"]
        names += [] if self.caption_choices else ["caption_choices"]
        for name in names:
            del values[name]
        return values

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the .json members that are read."""
        named = (self.hard_negatives, self.caption_choices)
        return tuple(name for name in named if name is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkPlan:
    """A network that can be built: open_clip's model_cfg and preprocess_cfg.

    tokenizer: folder of a Hugging Face tokenizer, None for CLIP's.  folder: of the model to start
    from, or of the architecture, where its text tower's configuration may lie.
    start: digest of the weights it starts from (of the text tower, where that is a model of the
    hub), "" for fresh ones.
    """

    config: dict[str, Any]
    preprocess: dict[str, Any]
    setup: Setup
    init: ModelFiles | None
    tokenizer: Path | None
    folder: Path | None
    start: str

    @property
    def image_size(self) -> int:
        """Side of the square that the network takes."""
        return int(self.preprocess["size"][0])

    def build(
        self, texts: Sequence[str], *, seed: int
    ) -> tuple[nn.Module, Tokenizer, list[str] | None]:
        """Return network, tokenizer and the merges to save; sets the vocabulary's size.

        ``texts`` choose the vocabulary where it is smaller than CLIP's; None for merges: all.
        Fails: SetupError where the weights to start from do not fit.
        """
        from winnow.models.contrastive import load_tokenizer, load_weights, text_tokenizer

        merges = None
        if self.init is not None:
            tokenizer = load_tokenizer(self.init)
            merges = None if self.init.tokenizer is None else tokenizer.merges
        elif self.tokenizer is not None:
            tokenizer = text_tokenizer(self.config, self.tokenizer, name=self.setup.model)
        else:
            merges = _merges(self.config, texts, self.setup.vocabulary)
            tokenizer = _tokenizer(self.config, merges)
        network = _built(self.config, self.setup, seed, self.folder)
        if self.init is not None:
            load_weights(network, self.init)
        return network, tokenizer.bounded(network), merges


def stream_config(setup: Setup, config: TrainConfig) -> StreamConfig:
    """Return the order of a stream.

    Fails: RecipeError for what needs all samples before the first step, and for numbers that do
    not divide each other.
    """
    if setup.vocabulary is not None and setup.vocabulary < CLIP_VOCABULARY:
        msg = (
            f"vocabulary={setup.vocabulary} with stream: to choose one takes all captions, which a "
            "stream has not read; leave vocabulary out (CLIP's whole list is used), or give init"
        )
        raise RecipeError(msg)
    if config.separation_weight:
        msg = (
            f"separation_weight={config.separation_weight} with stream: it compares the captions "
            "of all samples, which a stream has not read; leave one of them out"
        )
        raise RecipeError(msg)
    return StreamConfig(
        batch_size=config.batch_size,
        seed=config.seed,
        num_lanes=setup.num_lanes,
        buffer_samples=setup.buffer_samples,
        captions=setup.captions,
        columns=() if setup.hard_negatives is None else (setup.hard_negatives,),
        caption_choices=setup.caption_choices,
        num_threads=setup.num_threads,
    )


def network_plan(setup: Setup, config: TrainConfig) -> NetworkPlan:
    """Check everything about the network that needs no data.

    Fails: RecipeError for names and numbers that cannot be meant, and for micro_batch_size with an
    architecture that normalises by the rows of a pass; SetupError for missing files and for weights
    to start from that are of another architecture.
    """
    described = architecture(setup.model)
    network = _trainable(described["model_cfg"], config)
    if setup.shared_transformer:
        from winnow.models.alignclip import shared_config

        network = shared_config(network)
    if setup.stream:
        stream_config(setup, config)
    _check_vocabulary(network, setup)
    if config.separation_weight:
        from winnow.models.caption_vectors import describe

        describe(setup.separation_encoder)
    init = None if setup.init is None else _init(network, setup)
    folder = _own_folder(setup, init)
    size: Any = network["vision_cfg"].get("image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        msg = f"model={setup.model!r} takes images of {width} x {height}; only squares are trained"
        raise RecipeError(msg)
    if 0 < config.micro_batch_size < config.batch_size:
        _check_rows_apart(network, setup, config, folder)
    text = network["text_cfg"]
    if init is None:
        digest = transformer_digest(text, folder)
        start = digest if starts_from_weights(text) else ""
        tokenizer = tokenizer_folder(text, folder)
    else:
        tokenizer = init.tokenizer if text.get("hf_tokenizer_name") else None
        start = init.digest()
    if tokenizer is not None:
        from winnow.models.contrastive import text_tokenizer

        text_tokenizer(network, tokenizer, name=setup.model)
    return NetworkPlan(
        config=network,
        preprocess={**described.get("preprocess_cfg", {}), "size": (height, width)},
        setup=setup,
        init=init,
        tokenizer=tokenizer,
        folder=folder,
        start=start,
    )


def architecture_parts(model: str, init: ModelFiles | None = None) -> list[Any]:
    """Return what an architecture is, as its digest takes it: its description, without the paths
    in it, then digests of what it takes from the hub (tokenizer, text transformer).

    Of a model that starts from ``init``, whose digest says the rest, only the configuration of a
    text tower that was not saved with it. Fails: SetupError where something cannot be had.
    """
    described = architecture(model)
    network, folder = described["model_cfg"], architecture_folder(model)
    text = network["text_cfg"]
    parts: list[Any] = [{**described, "model_cfg": {**network, "text_cfg": without_paths(text)}}]
    if init is None:
        tokenizer = tokenizer_folder(text, folder)
        parts += [] if tokenizer is None else [files_digest(tokenizer_files(tokenizer))]
    elif init.text_transformer is None:
        text = {**text, "hf_model_pretrained": False}
    else:
        return parts
    transformer = transformer_digest(text, folder)
    return [*parts, transformer] if transformer else parts


def _own_folder(setup: Setup, init: ModelFiles | None) -> Path | None:
    """The folder where the text tower's configuration may lie."""
    if init is not None and init.text_transformer is not None:
        return init.weights.parent
    return architecture_folder(setup.model)


def _check_vocabulary(network: dict[str, Any], setup: Setup) -> None:
    """Refuse a size that cannot be; a stream takes CLIP's whole list, unless init has its own."""
    text = network["text_cfg"]
    if text.get("hf_tokenizer_name"):
        if setup.vocabulary is not None:
            msg = (
                f"vocabulary={setup.vocabulary}: model={setup.model!r} has the tokenizer "
                f"{text['hf_tokenizer_name']}, which is taken as it is; leave vocabulary out"
            )
            raise RecipeError(msg)
        return
    if text.get("hf_model_name"):
        msg = (
            f"model={setup.model!r} has the text tower {text['hf_model_name']} and no tokenizer; "
            "add hf_tokenizer_name to text_cfg"
        )
        raise RecipeError(msg)
    if setup.vocabulary is not None and setup.vocabulary < NUM_FIXED_TOKENS:
        _refuse_vocabulary(setup.vocabulary)
    if setup.stream:
        text["vocab_size"] = CLIP_VOCABULARY


def _trainable(model_config: Mapping[str, Any], config: TrainConfig) -> dict[str, Any]:
    """Return the two towers as they start; of CoCa those without its captioning decoder.

    SigLIP starts at temperature 10 and bias -10 (Zhai et al. 2023, section 3.2); CLIP's loss has no
    bias, whatever the architecture says.
    """
    changed = copy.deepcopy(dict(model_config))
    text = changed["text_cfg"]
    if not text.get("hf_tokenizer_name"):
        text.pop("tokenizer_kwargs", None)
    if changed.pop("multimodal_cfg", None) is not None:
        for tower in (text, changed["vision_cfg"]):
            tower.pop("output_tokens", None)
    if config.loss == "siglip":
        changed |= {"init_logit_scale": math.log(10), "init_logit_bias": -10.0}
    else:
        changed.pop("init_logit_bias", None)
    return changed


def _init(network: dict[str, Any], setup: Setup) -> ModelFiles:
    """Find the weights to start from, take their tokenizer and its size, and try them on."""
    from winnow.models.contrastive import CONTEXT_LENGTH, load_weights

    assert setup.init is not None
    if setup.vocabulary is not None:
        msg = f"vocabulary={setup.vocabulary} with init: the model to start from has its own; "
        raise RecipeError(msg + "leave vocabulary out")
    files = find_model(setup.init)
    text, given = network["text_cfg"], files.config["text_cfg"]
    text["vocab_size"] = int(given.get("vocab_size", CLIP_VOCABULARY))
    for key in ("hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs"):
        text.pop(key, None)
        if given.get("hf_tokenizer_name") and given.get(key) is not None:
            text[key] = given[key]
    if text.get("hf_model_name"):
        text["hf_model_pretrained"] = False
        text["context_length"] = int(given.get("context_length", CONTEXT_LENGTH))
    load_weights(_built(network, setup, 0, _own_folder(setup, files)), files)
    return files


def _built(network: dict[str, Any], setup: Setup, seed: int, folder: Path | None) -> nn.Module:
    from winnow.models.alignclip import build_shared_network
    from winnow.models.contrastive import build_network

    if setup.shared_transformer:
        return build_shared_network(network, seed=seed)
    return build_network(network, seed=seed, folder=folder)


def _check_rows_apart(
    network: dict[str, Any], setup: Setup, config: TrainConfig, folder: Path | None
) -> None:
    """GradCache gives the whole batch's gradient only where no row depends on its neighbours."""
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    bare = {**network, "text_cfg": {**network["text_cfg"], "hf_model_pretrained": False}}
    with torch.device("meta"):  # modules without memory
        built = _built(bare, setup, 0, folder)
    if any(isinstance(module, _BatchNorm) for module in built.modules()):
        msg = (
            f"micro_batch_size={config.micro_batch_size}: model={setup.model!r} has BatchNorm, "
            "which normalises by the rows of a pass, so the gradient would not be that of the "
            "whole batch; leave micro_batch_size out, or use a model without, such as ViT-B-32"
        )
        raise RecipeError(msg)


def _refuse_vocabulary(vocabulary: int) -> None:
    msg = f"vocabulary={vocabulary}: use at least {NUM_FIXED_TOKENS} tokens, such as 4096"
    raise RecipeError(msg)


def _merges(
    network_config: dict[str, Any], texts: Sequence[str], vocabulary: int | None
) -> list[str] | None:
    """Choose the vocabulary and set its size in the configuration; None: CLIP's whole list."""
    text = network_config["text_cfg"]
    wanted = vocabulary or int(text.get("vocab_size", CLIP_VOCABULARY))
    if wanted >= CLIP_VOCABULARY:
        text["vocab_size"] = CLIP_VOCABULARY
        return None
    if wanted < NUM_FIXED_TOKENS:
        _refuse_vocabulary(wanted)
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
