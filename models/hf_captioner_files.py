"""Where an image-to-text model of Hugging Face is and what it contains, without loading it.

A model is named by a folder (``./folder``, ``/folder``, ``~/folder``) or by its name on the hub
(``org/name``, ``org/name@revision``).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from winnow.contracts.errors import SetupError
from winnow.contracts.paths import user_path
from winnow.models.language_files import LanguageFiles, hub_folder, is_path

_PROCESSOR = (
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
_PATTERNS = ("*.json", "*.jinja", "*.safetensors", "*.txt", "*.model")


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionerFiles:
    """A captioner that was found: nothing is loaded yet."""

    name: str
    folder: Path

    def digest(self) -> str:
        """Return 32 hex digits over configuration, weights, tokenizer and preprocessing."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(LanguageFiles(name=self.name, folder=self.folder).digest().encode())
        for path in (self.folder / name for name in _PROCESSOR):
            if path.is_file():
                digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
        return digest.hexdigest()


def find_captioner(name: str) -> CaptionerFiles:
    """Return a model's files; those on the hub are downloaded into its cache once.

    Fails: SetupError where files are missing, where there are only pickled weights, where the hub
    cannot be reached.
    """
    if is_path(name):
        folder = user_path(name)
    else:
        folder = hub_folder(name, _PATTERNS, who=f"model={name!r}")
    if not (folder / "config.json").is_file():
        msg = f"model={name!r}: {folder / 'config.json'} is missing; a model needs it"
        raise SetupError(msg)
    weights = LanguageFiles(name=name, folder=folder).weights
    if not any(path.suffix == ".safetensors" for path in weights):
        msg = (
            f"model={name!r}: there are no weights in {folder} as safetensors; others are not read"
        )
        raise SetupError(msg)
    return CaptionerFiles(name=name, folder=folder)
