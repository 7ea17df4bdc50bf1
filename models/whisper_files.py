"""Where a Whisper model's files are and what they contain, without loading it.

A model is named in one of these ways, told apart by the name alone:

    ./folder  /folder  ~/folder   the files that its engine reads
    package:NAME/FOLDER           a folder inside an installed Python package
    org/name[@revision]           the same files on the Hugging Face hub
    tiny.en, large-v3, ...        engine faster_whisper only: faster-whisper's own short names

Engine faster_whisper reads models in CTranslate2's format (model.bin, which holds arrays and no
code), engine hf what transformers saves (safetensors only).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from winnow.contracts.errors import SetupError
from winnow.contracts.paths import user_path
from winnow.models.file_digest import files_digest
from winnow.models.hf_captioner_files import CaptionerFiles, find_captioner
from winnow.models.language_files import hub_snapshot, is_path
from winnow.models.package_files import package_folder

Engine = Literal["faster_whisper", "hf"]
INSTALL = 'pip install "winnow-data[audio]"'
PACKAGE_PREFIX = "package:"

_CONVERTED = (
    "config.json",
    "model.bin",
    "preprocessor_config.json",
    "tokenizer.json",
    "vocabulary.json",
    "vocabulary.txt",
)
"""What decides a text, in CTranslate2's folders."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WhisperFiles:
    """A model that was found: nothing is loaded yet."""

    name: str
    folder: Path
    engine: Engine

    def digest(self) -> str:
        """Return 32 hex digits over configuration, weights and tokenizer; not over the path."""
        if self.engine == "hf":
            return CaptionerFiles(name=self.name, folder=self.folder).digest()
        paths = (self.folder / name for name in _CONVERTED)
        return files_digest(path for path in paths if path.is_file())


def find_whisper(name: str, engine: Engine) -> WhisperFiles:
    """Return a model's files; those on the hub are downloaded into its cache once.

    Fails: SetupError where files are missing or the hub cannot be reached.
    """
    if name.startswith(PACKAGE_PREFIX):
        folder = _package_folder(name)
    elif is_path(name):
        folder = user_path(name)
    elif engine == "hf":
        folder = find_captioner(name).folder
    else:
        folder = _converted_on_hub(name)
    if engine == "hf":
        _check_transformers(name, folder)
    else:
        _check_converted(name, folder)
    return WhisperFiles(name=name, folder=folder, engine=engine)


def _check_converted(name: str, folder: Path) -> None:
    for needed in ("model.bin", "config.json", "tokenizer.json"):
        if (folder / needed).is_file():
            continue
        hint = (
            "; it holds a model of transformers: convert it with ct2-transformers-converter, or "
            "use engine: hf"
            if (folder / "model.safetensors").is_file()
            else ""
        )
        msg = f"model={name!r}: {folder / needed} is missing; engine=faster_whisper needs it{hint}"
        raise SetupError(msg)


def _check_transformers(name: str, folder: Path) -> None:
    find_captioner(str(folder.resolve()))
    for needed in ("generation_config.json", "preprocessor_config.json"):
        if not (folder / needed).is_file():
            msg = f"model={name!r}: {folder / needed} is missing; engine=hf needs it"
            raise SetupError(msg)


def _package_folder(name: str) -> Path:
    package, _, rest = name.removeprefix(PACKAGE_PREFIX).partition("/")
    folder = package_folder(package)
    if folder is None or ".." in Path(rest).parts or Path(rest).is_absolute():
        msg = (
            f"model={name!r}: no package {package!r} is installed here; install it, or write "
            f"{PACKAGE_PREFIX}NAME/FOLDER for a folder inside an installed Python package"
        )
        raise SetupError(msg)
    return folder / rest


@functools.cache
def _converted_on_hub(name: str) -> Path:
    try:
        if "/" in name:
            return hub_snapshot(name, _CONVERTED)
        import faster_whisper

        return Path(faster_whisper.download_model(name))
    except ImportError as error:
        msg = f"model={name!r} is a short name of faster-whisper, which is missing: {INSTALL}"
        raise SetupError(msg) from error
    except (OSError, ValueError) as error:
        hint = f"; for a folder write ./{name}" if Path(name).is_dir() else ""
        msg = f"model={name!r} cannot be had from the Hugging Face hub{hint}: {error}"
        raise SetupError(msg) from error
