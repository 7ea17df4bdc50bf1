"""What open_clip's configurations name on the Hugging Face hub: tokenizers and text transformers.

    hf_tokenizer_name   the tokenizer of SigLIP, CLIPA and others; a model's own files come first
    hf_model_name       a transformer as the text tower (roberta, mt5, nllb ...)

Both are names on the hub (without a network: in its cache), or folders:
``./folder``, ``/folder``, ``~/folder``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from winnow.contracts.errors import SetupError
from winnow.contracts.paths import user_path
from winnow.models.file_digest import files_digest
from winnow.models.language_files import (
    CONFIG_NAME,
    TOKENIZER_FILES,
    LanguageFiles,
    hub_folder,
    hub_folder_with_weights,
    is_path,
)
from winnow.models.language_files import tokenizer_files as listed_files

TRANSFORMER_FOLDER = "text_transformer"
"""In a saved model's folder: the configuration of a text tower that is a transformer of the hub."""


def tokenizer_folder(text: Mapping[str, Any], own: Path | None) -> Path | None:
    """Return the folder with the tokenizer that ``text_cfg`` names, None where it names none.

    ``own``: the model's folder; tokenizer files in it are the model's, whatever the name says.
    Fails: SetupError where there are no such files.
    """
    name = text.get("hf_tokenizer_name")
    if not name:
        return None
    if own is not None and tokenizer_files(own):
        return own
    folder = _folder(str(name), (*TOKENIZER_FILES, CONFIG_NAME), what="tokenizer")
    if not tokenizer_files(folder):
        msg = f"the tokenizer {name}: {folder} holds none of {', '.join(TOKENIZER_FILES)}"
        raise SetupError(msg)
    return folder


def tokenizer_files(folder: Path) -> list[Path]:
    """Return what decides how text becomes tokens, in a fixed order.

    Where tokenizer_config.json names no class (bert-base-uncased, roberta-base), config.json does.
    """
    found = listed_files(folder)
    config = folder / CONFIG_NAME
    named = _read(folder / "tokenizer_config.json").get("tokenizer_class")
    return [*found, config] if found and not named and config.is_file() else found


def saved_transformer(own: Path | None) -> Path | None:
    """Return the folder with the configuration of the text tower that was saved with a model."""
    folder = None if own is None else own / TRANSFORMER_FOLDER
    return folder if folder is not None and (folder / CONFIG_NAME).is_file() else None


def text_transformer(
    text: Mapping[str, Any], own: Path | None = None, *, weights: bool
) -> LanguageFiles | None:
    """Return the transformer that ``text_cfg`` names as its text tower, None where it names none.

    ``own``: the model's folder; without ``weights`` the configuration saved in it wins.
    Fails: SetupError where its configuration, or with ``weights`` these, cannot be had.
    """
    name = text.get("hf_model_name")
    if not name:
        return None
    saved = None if weights else saved_transformer(own)
    if saved is not None:
        return LanguageFiles(name=str(name), folder=saved)
    folder = _folder(str(name), (CONFIG_NAME,), what="text tower", weights=weights)
    files = LanguageFiles(name=str(name), folder=folder)
    if not files.config.is_file():
        msg = f"the text tower {name}: {files.config} is missing"
        raise SetupError(msg)
    if weights and not files.weights:
        msg = (
            f"the text tower {name}: there are no weights in {files.folder}; set "
            "hf_model_pretrained: false in text_cfg to start from fresh ones"
        )
        raise SetupError(msg)
    return files


def starts_from_weights(text: Mapping[str, Any]) -> bool:
    """Whether a text transformer starts from the weights on the hub: open_clip's default."""
    return bool(text.get("hf_model_pretrained", True))


def transformer_digest(text: Mapping[str, Any], own: Path | None) -> str:
    """Return 32 hex digits over the text transformer's configuration, and its weights where it
    starts from them; "" where ``text_cfg`` names none.

    Whatever else lies in the same folder of the hub's cache does not count.
    """
    weights = starts_from_weights(text)
    files = text_transformer(text, own, weights=weights)
    if files is None:
        return ""
    return files_digest([files.config, *(files.weights if weights else [])])


def saved_text_config(text: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ``text_cfg`` as a saved model has it: its weights are there, and no path is.

    What was a folder's path becomes the folder's name: the files themselves lie with the model.
    """
    saved = without_paths(text)
    if saved.get("hf_model_name"):
        saved["hf_model_pretrained"] = False
    return saved


def without_paths(text: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ``text_cfg`` in which the folders that it names are their last part only."""
    named = dict(text)
    for key in ("hf_tokenizer_name", "hf_model_name"):
        if named.get(key) and is_path(str(named[key])):
            named[key] = user_path(str(named[key])).resolve().name
    return named


def save_text_files(folder: Path, network: Any, tokenizer: Path | None) -> None:
    """Write the tokenizer's files, and a text transformer's configuration, beside the weights."""
    for path in tokenizer_files(tokenizer) if tokenizer is not None else []:
        if path.parent.resolve() == folder.resolve():
            continue
        if path.name == CONFIG_NAME:  # of the model that it is named after: only the class counts
            kinds = {k: v for k, v in _read(path).items() if k in ("model_type", "tokenizer_class")}
            (folder / CONFIG_NAME).write_text(json.dumps(kinds) + "\n", encoding="utf-8")
        else:
            shutil.copyfile(path, folder / path.name)
    config = getattr(getattr(network, "text", None), "config", None)
    if config is not None:
        described = config.to_dict()
        described.pop("_name_or_path", None)
        target = folder / TRANSFORMER_FOLDER
        target.mkdir(exist_ok=True)
        text = json.dumps(described, indent=2, sort_keys=True) + "\n"
        (target / CONFIG_NAME).write_text(text, encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    """Return a JSON object, empty where there is none (a loader says what is wrong)."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _folder(name: str, patterns: tuple[str, ...], *, what: str, weights: bool = False) -> Path:
    who = f"the {what} {name}"
    if not is_path(name):
        had = hub_folder_with_weights if weights else hub_folder
        return had(name, patterns, who=who)
    folder = user_path(name)
    if not folder.is_dir():
        msg = f"{who}: there is no such folder"
        raise SetupError(msg)
    return folder
