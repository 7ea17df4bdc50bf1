"""Where a language model's files are and what they contain, without loading the model.

A model is named in one of three ways, told apart by the name alone:

    tiny-lm                     packaged with Winnow
    ./folder  /folder  ~/folder config.json, weights and tokenizer files, as transformers saves them
    org/name  name  [@revision] the same files on the Hugging Face hub ("hf-hub:" before it is fine)
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from winnow.contracts.errors import SetupError
from winnow.contracts.paths import user_path
from winnow.models.file_digest import files_digest

PACKAGED = "tiny-lm"
"""The packaged model: it speaks about drawn scenes, and about nothing else."""
HUB_PREFIX = "hf-hub:"
INSTALL = 'pip install "winnow-data[captions]"'

CONFIG_NAME = "config.json"
_SAFE = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
_BIN = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
"""What decides how text becomes tokens, in transformers' folders."""


def tokenizer_files(folder: Path) -> list[Path]:
    """Return those of ``TOKENIZER_FILES`` that are in a folder, in their order."""
    return [path for name in TOKENIZER_FILES if (path := folder / name).is_file()]


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageFiles:
    """A language model that was found: nothing is loaded yet.

    name: what the recipe called it.  folder: where its files are.
    """

    name: str
    folder: Path

    @property
    def config(self) -> Path:
        """The architecture."""
        return self.folder / CONFIG_NAME

    @property
    def weights(self) -> list[Path]:
        """The files that hold the weights, in a fixed order; empty where there are none.

        safetensors win over .bin; an index wins over a single file, as in transformers.
        """
        for single, index, pieces in (_SAFE, _BIN):
            if (self.folder / single).is_file():
                return [self.folder / single]
            if (self.folder / index).is_file():
                return [self.folder / index, *sorted(self.folder.glob(pieces))]
        return []

    @property
    def safe(self) -> bool:
        """Whether the weights are safetensors."""
        return any((self.folder / name).is_file() for name in _SAFE[:2])

    @property
    def tokenizer(self) -> list[Path]:
        """The files that decide how text becomes tokens, in a fixed order."""
        return tokenizer_files(self.folder)

    def digest(self) -> str:
        """Return 32 hex digits over configuration, weights and tokenizer; not over the path.

        A model without weights has a digest too; the seed that fills it is not in it.
        """
        return files_digest([self.config, *self.weights, *self.tokenizer])


def find_language_model(name: str, *, allow_random: bool = False) -> LanguageFiles:
    """Return a model's files; those on the hub are downloaded into its cache once.

    Fails: SetupError where files are missing or the hub cannot be reached; where there is only a
    configuration, unless ``allow_random``.
    """
    if name == PACKAGED:
        folder = Path(__file__).parent / "checkpoints" / PACKAGED
    elif is_path(name):
        folder = user_path(name)
    else:
        who = f"language_model={name!r} is neither {PACKAGED} nor a folder (./folder), and"
        folder = hub_folder_with_weights(name, (CONFIG_NAME, *TOKENIZER_FILES), who=who)
    files = LanguageFiles(name=name, folder=folder)
    if not files.config.is_file():
        msg = f"language_model={name!r}: {files.config} is missing; a model needs its configuration"
        raise SetupError(msg)
    if not files.tokenizer:
        msg = (
            f"language_model={name!r}: there is no tokenizer in {folder}; expected tokenizer.json, "
            "as transformers' save_pretrained writes it"
        )
        raise SetupError(msg)
    if not files.weights and not allow_random:
        msg = (
            f"language_model={name!r}: there are no weights in {folder} (model.safetensors), so it "
            "would be randomly initialised and know no language; give a trained model, such as "
            f"{PACKAGED}, or set allow_random_lm: true if that is meant"
        )
        raise SetupError(msg)
    return files


def is_path(name: str) -> bool:
    """Whether a name means a folder. What lies in the working directory does not matter."""
    if name.startswith(HUB_PREFIX):
        return False
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).is_absolute()


def hub_folder(name: str, patterns: tuple[str, ...], *, who: str) -> Path:
    """As ``hub_snapshot``; ``who`` begins the message of a model that cannot be had.

    Fails: SetupError.
    """
    try:
        return hub_snapshot(name, patterns)
    except (OSError, ValueError) as error:
        hint = f"; for a folder write ./{name}" if Path(name).is_dir() else ""
        msg = f"{who} cannot be had from the Hugging Face hub{hint}: {error}"
        raise SetupError(msg) from error


def hub_folder_with_weights(name: str, patterns: tuple[str, ...], *, who: str) -> Path:
    """As ``hub_folder``, with weights; .bin files only where there are no safetensors."""
    for weights in (_SAFE, _BIN):
        folder = hub_folder(name, (*patterns, *weights), who=who)
        if LanguageFiles(name=name, folder=folder).weights:
            break
    return folder


@functools.cache
def hub_snapshot(name: str, patterns: tuple[str, ...]) -> Path:
    """Return the folder of a hub's model ("org/name@revision"), downloaded once.

    Fails: SetupError without huggingface_hub; OSError or ValueError where it cannot be had.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        msg = f"a model of the Hugging Face hub needs: {INSTALL}"
        raise SetupError(msg) from error
    repository, _, revision = name.removeprefix(HUB_PREFIX).partition("@")
    return Path(
        snapshot_download(repository, revision=revision or None, allow_patterns=list(patterns))
    )
