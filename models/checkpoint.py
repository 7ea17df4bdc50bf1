"""Where a contrastive model's files are and what they contain, without loading the model.

A model is named in one of five ways; all of them end as the same four things (architecture,
preprocessing, weights, tokenizer), and their content alone is the model's identity:

    tiny, patches               packaged with Winnow
    path/to/folder              open_clip_config.json, weights, tokenizer files
    path/to/weights.safetensors the folder's open_clip_config.json, or weights.json beside it
    hf-hub:org/name[@revision]  the same files on the Hugging Face hub
    ViT-B-32 + pretrained       an open_clip architecture with a pretrained tag or a weights file
"""

from __future__ import annotations

import copy
import difflib
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.model_names import TRAINED_PREFIX
from winnow.contracts.paths import user_path
from winnow.models.file_digest import named_digest
from winnow.models.hub_text import saved_transformer, tokenizer_files, tokenizer_folder
from winnow.models.language_files import CONFIG_NAME as TRANSFORMER_CONFIG
from winnow.models.language_files import tokenizer_files as listed_files
from winnow.models.package_files import package_folder
from winnow.models.tokenizer import MERGES_NAME

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "model.safetensors"
HUB_PREFIX = "hf-hub:"
PACKAGED = {name: Path(__file__).parent / "checkpoints" / name for name in ("tiny", "patches")}
ARCHITECTURES = {p.stem: p for p in sorted((Path(__file__).parent / "architectures").glob("*"))}
"""Packaged configurations without weights, to train afresh."""

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_WEIGHT_NAMES = (  # open_clip's own order of preference, safetensors first
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    WEIGHTS_NAME,
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFiles:
    """A model that was found: nothing is loaded yet.

    name: what the recipe called it.  config: open_clip's model_cfg.  preprocess: open_clip's
    preprocess_cfg, only the keys that differ from its defaults.  tokenizer: the folder with the
    tokenizer's files; None for the tokenizer that ships with open_clip.
    """

    name: str
    config: Mapping[str, Any]
    preprocess: Mapping[str, Any]
    weights: Path
    tokenizer: Path | None

    def digest(self) -> str:
        """Return 32 hex digits over architecture, preprocessing, tokenizer and weights."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.config, self.preprocess):
            digest.update(json.dumps(part, sort_keys=True).encode() + b"\0")
        tokenizer = [(path.name, path) for path in self.tokenizer_files()]
        named = [*tokenizer, ("weights", self.weights)]
        transformer = self.text_transformer
        named += [] if transformer is None else [("text", transformer / TRANSFORMER_CONFIG)]
        digest.update(named_digest(named))
        return digest.hexdigest()

    @property
    def text_transformer(self) -> Path | None:
        """The folder with the configuration of a text tower of the hub, where it was saved."""
        named = self.config["text_cfg"].get("hf_model_name")
        return saved_transformer(self.weights.parent) if named else None

    def tokenizer_files(self) -> list[Path]:
        """Return the files that decide how text becomes tokens, in a fixed order."""
        if self.tokenizer is None:
            return [_open_clip_folder() / "bpe_simple_vocab_16e6.txt.gz"]
        merges = self.tokenizer / MERGES_NAME
        named = self.config["text_cfg"].get("hf_tokenizer_name")
        files = tokenizer_files(self.tokenizer) if named else listed_files(self.tokenizer)
        return [merges, *files] if merges.is_file() else files


def embedding_width(model: str, pretrained: str | None = None) -> int:
    """Return the width of a model's embeddings, from its configuration alone."""
    return int(_config(model, pretrained)["model_cfg"]["embed_dim"])


def architecture(model: str) -> dict[str, Any]:
    """Return ``model_cfg`` and ``preprocess_cfg`` of an architecture, to train it afresh.

    ``model``: "tiny", "small", "nano", "patches", a configuration file (.json), a model's folder,
    or an open_clip name.
    """
    path = user_path(model)
    if path.suffix == ".json":
        config = read_config(path)
    elif model in ARCHITECTURES:
        config = read_config(ARCHITECTURES[model])
    elif model in PACKAGED or is_path(model):
        config = read_config(PACKAGED.get(model, path) / CONFIG_NAME)
    else:
        check_name(model, "any")
        config = read_config(_architectures()[model])
    return {"preprocess_cfg": {}, **config}


def architecture_folder(model: str) -> Path | None:
    """Return the folder whose files go with an architecture: a configuration's, or a model's."""
    path = user_path(model)
    if path.suffix == ".json":
        return path.parent
    if model in ARCHITECTURES:
        return None
    return PACKAGED.get(model, path if is_path(model) else None)


def find_model(model: str, pretrained: str | None = None) -> ModelFiles:
    """Return a model's files; those on a hub are downloaded into its cache once.

    Fails: RecipeError for a name that means nothing; SetupError where files are missing or the
    hub cannot be reached.
    """
    config = _config(model, pretrained)
    architecture, preprocess = config["model_cfg"], config.get("preprocess_cfg", {})
    if model in PACKAGED or is_path(model):
        weights = _local_weights(model)
        folder = weights.parent
    elif model.startswith(HUB_PREFIX):
        weights = _hub_weights(model)
        folder = weights.parent
    else:
        weights, preprocess = _tagged_weights(model, str(pretrained), architecture)
        folder = None
    return ModelFiles(
        name=model if pretrained is None else f"{model} {pretrained}",
        config=architecture,
        preprocess=preprocess,
        weights=weights,
        tokenizer=_tokenizer_folder(model, architecture, folder),
    )


def find_tower(name: str) -> ModelFiles:
    """Return the files of a model named in one string, as vision towers are.

    ``name``: as ``model`` of ``find_model``, or an open_clip architecture and its tag or weights
    file, with a space ("ViT-L-14 openai").
    """
    first, _, rest = name.partition(" ")
    if "/" in first or (is_path(name) and first not in _architectures()):
        return find_model(name)
    return find_model(first, rest or None)


def check_name(model: str, pretrained: str | None) -> None:
    """Raise RecipeError where the two names cannot mean a model; reads no weights."""
    described = model in PACKAGED or is_path(model)
    described = described or model.startswith((HUB_PREFIX, TRAINED_PREFIX))
    if described and pretrained is not None:
        msg = (
            f"pretrained={pretrained!r} goes with the name of an open_clip architecture, but "
            f"model={model!r} brings its own weights; leave pretrained out"
        )
        raise RecipeError(msg)
    if described:
        return
    names = _architectures()
    if model not in names:
        near = difflib.get_close_matches(model, [*names, *PACKAGED], n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        msg = (
            f"model={model!r} is no model; {hint}Allowed: {', '.join(PACKAGED)}, a folder or "
            f"weights file (with a slash, such as ./{model}), {HUB_PREFIX}ORG/NAME, or the name of "
            "an open_clip architecture with pretrained"
        )
        raise RecipeError(msg)
    if pretrained is None:
        msg = (
            f"model={model!r} is an architecture without weights; name them with pretrained: a tag "
            "(python -c 'import open_clip; print(open_clip.list_pretrained())') or a file"
        )
        raise RecipeError(msg)


def read_config(path: Path) -> dict[str, Any]:
    """Return an open_clip configuration with a ``model_cfg``; a bare one is wrapped."""
    if not path.is_file():
        msg = f"{path} is missing: a model needs its open_clip configuration"
        raise SetupError(msg)
    stat = path.stat()
    return copy.deepcopy(_parsed_config(path, stat.st_mtime_ns, stat.st_size))


@functools.lru_cache(maxsize=64)
def _parsed_config(path: Path, _mtime_ns: int, _size: int) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        msg = f"{path} is not JSON: {error}"
        raise SetupError(msg) from error
    if isinstance(config, dict) and "model_cfg" not in config:
        config = {"model_cfg": config}
    architecture = config.get("model_cfg") if isinstance(config, dict) else None
    wanted = {"embed_dim", "vision_cfg", "text_cfg"}
    if not isinstance(architecture, dict) or not wanted <= architecture.keys():
        msg = f"{path} is no open_clip configuration: model_cfg needs {', '.join(sorted(wanted))}"
        raise SetupError(msg)
    kinds = {"embed_dim": int, "vision_cfg": dict, "text_cfg": dict}
    wrong = [name for name, kind in kinds.items() if not isinstance(architecture[name], kind)]
    wrong += [] if isinstance(config.get("preprocess_cfg", {}), dict) else ["preprocess_cfg"]
    if wrong:
        msg = f"{path} is no open_clip configuration: {wrong[0]} is of the wrong kind"
        raise SetupError(msg)
    return config


def _config(model: str, pretrained: str | None) -> dict[str, Any]:
    check_name(model, pretrained)
    if model.startswith(TRAINED_PREFIX):
        msg = f"model={model!r} stands for a model that a study trains; there is no study here"
        raise RecipeError(msg)
    if model in PACKAGED:
        return read_config(PACKAGED[model] / CONFIG_NAME)
    if model.startswith(HUB_PREFIX):
        return read_config(_hub_file(model, CONFIG_NAME))
    if not is_path(model):
        return read_config(_architectures()[model])
    path = user_path(model)
    if path.suffix not in _WEIGHT_SUFFIXES:
        return read_config(path / CONFIG_NAME)
    beside = path.with_suffix(".json")
    return read_config(beside if beside.is_file() else path.parent / CONFIG_NAME)


def is_path(model: str) -> bool:
    """Decided by the name alone: what lies in the working directory must not change a recipe."""
    if model.startswith(HUB_PREFIX):
        return False
    return "/" in model or model.endswith(_WEIGHT_SUFFIXES) or model in (".", "..", "~")


def _local_weights(model: str) -> Path:
    path = PACKAGED.get(model, user_path(model))
    if path.is_file():
        return path
    if path.suffix in _WEIGHT_SUFFIXES:
        msg = f"the model's weights {path} do not exist"
        raise SetupError(msg)
    for name in _WEIGHT_NAMES:
        if (path / name).is_file():
            return path / name
    msg = f"there are no weights in {path}; expected one of {', '.join(_WEIGHT_NAMES)}"
    raise SetupError(msg)


def _open_clip_folder() -> Path:
    folder = package_folder("open_clip")
    if folder is None:
        msg = "open_clip is not installed: pip install open_clip_torch"
        raise SetupError(msg)
    return folder


@functools.cache
def _architectures() -> dict[str, Path]:
    """open_clip's architectures, from its files: importing it costs seconds (torch)."""
    return {path.stem: path for path in sorted((_open_clip_folder() / "model_configs").glob("*"))}


def _tagged_weights(
    model: str, pretrained: str, architecture: Mapping[str, Any]
) -> tuple[Path, Mapping[str, Any]]:
    if Path(pretrained).is_file():
        return Path(pretrained), {}
    from open_clip import pretrained as catalogue

    entry = catalogue.get_pretrained_cfg(model, pretrained)
    if not entry:
        tags = catalogue.list_pretrained_tags_by_model(model)
        msg = (
            f"pretrained={pretrained!r} is neither a file nor a tag of {model}; "
            f"its tags: {', '.join(tags) or 'none'}"
        )
        raise RecipeError(msg)
    timm = "timm_model_name" in architecture["vision_cfg"]
    if not timm and entry.get("quick_gelu", False) != architecture.get("quick_gelu", False):
        # open_clip only warns, and then every score is subtly wrong.
        other = model.removesuffix("-quickgelu") if model.endswith("-quickgelu") else ""
        msg = (
            f"the weights {pretrained!r} were trained with another activation than {model} has; "
            f"use model={other or f'{model}-quickgelu'}"
        )
        raise RecipeError(msg)
    try:
        path = catalogue.download_pretrained(entry)
    except (OSError, RuntimeError) as error:
        msg = f"the weights {model} {pretrained} cannot be had: {error}"
        raise SetupError(msg) from error
    keys = ("size", "mean", "std", "interpolation", "resize_mode", "fill_color")
    return Path(path), {key: entry[key] for key in keys if entry.get(key) is not None}


@functools.cache
def _hub_file(model: str, name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    repository, _, revision = model.removeprefix(HUB_PREFIX).partition("@")
    try:
        return Path(hf_hub_download(repository, name, revision=revision or None))
    except (OSError, HfHubHTTPError, ValueError) as error:
        msg = f"{model}: {name} cannot be had from the Hugging Face hub: {error}"
        raise SetupError(msg) from error


def _hub_weights(model: str) -> Path:
    problem: SetupError | None = None
    for name in _WEIGHT_NAMES:
        try:
            return _hub_file(model, name)
        except SetupError as error:
            problem = problem or error
    assert problem is not None
    raise problem


def _tokenizer_folder(
    model: str, architecture: Mapping[str, Any], folder: Path | None
) -> Path | None:
    """The folder that holds the tokenizer's files; downloads those that a hub model names."""
    text = architecture["text_cfg"]
    if not text.get("hf_tokenizer_name"):
        return folder if folder is not None and (folder / MERGES_NAME).is_file() else None
    return tokenizer_folder(text, None if model.startswith(HUB_PREFIX) else folder)
