"""Where a matching head's files are and what they contain, without loading torch or the model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from winnow.contracts.errors import SetupError
from winnow.contracts.paths import user_path
from winnow.models.file_digest import file_digest
from winnow.models.language_files import is_path
from winnow.models.projector_files import LANGUAGE_FOLDER, TOWER_FOLDER

CONFIG_NAME = "matching.json"
WEIGHTS_NAME = "matching.safetensors"
FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class MatchingFiles:
    """A matching head that was found: nothing is loaded yet."""

    folder: Path
    config: Mapping[str, Any]

    def part(self, what: str) -> str:
        """Return where "tower" or "language_model" is: the copy in the projector's folder, else its
        name."""
        copied = self.folder.resolve() / (TOWER_FOLDER if what == "tower" else LANGUAGE_FOLDER)
        return str(copied) if copied.is_dir() else str(self.config[what])

    def digest(self) -> str:
        """Return 32 hex digits over sizes, weights, the tower's and the tokenizer's digests; not
        over any name."""
        named = {**self.config, "tower": None, "language_model": None}
        digest = hashlib.blake2b(json.dumps(named, sort_keys=True).encode(), digest_size=16)
        digest.update(file_digest(self.folder / WEIGHTS_NAME, 64))
        return digest.hexdigest()


def find_matching(name: str) -> MatchingFiles:
    """Return the matching head in a projector's folder.

    Fails: SetupError where there is none, or one that this version cannot read.
    """
    folder = user_path(name)
    path = folder / CONFIG_NAME
    if not path.is_file() or not (folder / WEIGHTS_NAME).is_file():
        msg = (
            f"there is no matching head in {folder} ({CONFIG_NAME}, {WEIGHTS_NAME}); it is trained "
            "by the first stage of a projector whose connector is qformer or instruct_qformer"
        )
        raise SetupError(msg)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read: {error}"
        raise SetupError(msg) from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        msg = f"{path} is of another format than {FORMAT}; train the model again"
        raise SetupError(msg)
    return MatchingFiles(folder=folder, config=config)


def lasting_name(name: str) -> str:
    """A local folder by its absolute path, because a run may start anywhere."""
    path = user_path(name)
    return str(path.resolve()) if is_path(name) and path.exists() else name
