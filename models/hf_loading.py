"""Loading a model of transformers: no code from its folder runs, and no weight is left random."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from safetensors import SafetensorError

from winnow.contracts.errors import SetupError
from winnow.models.language_files import INSTALL

FROM_FOLDER: Mapping[str, bool] = MappingProxyType(
    {"trust_remote_code": False, "local_files_only": True}
)
"""What every ``from_pretrained`` is told."""
LOAD_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    LookupError,
    TypeError,
    ImportError,
    SafetensorError,
    pickle.UnpicklingError,
)
"""What transformers raises for a folder that it cannot load."""


class Found(Protocol):
    """The files of a model that was found."""

    @property
    def name(self) -> str:
        """What the recipe called it."""
        ...

    @property
    def folder(self) -> Path:
        """Where they are."""
        ...


def import_transformers(who: str) -> Any:
    """Return transformers. who: of the message where it is missing, such as "CLAP needs".

    Fails: SetupError where it is missing.
    """
    try:
        import transformers
    except ImportError as error:
        msg = f"{who} transformers: {INSTALL}"
        raise SetupError(msg) from error
    return transformers


def load_whole(
    files: Found, classes: Sequence[str], *, dtype: torch.dtype, kind: str, who: str
) -> tuple[Any, ...]:
    """Return a network that does not learn, and what goes with it (extractor, tokenizer).

    classes: their names in transformers, the network's first. kind: what a message calls such a
    model. who: see ``import_transformers``.

    Fails: SetupError where transformers is missing, where the folder holds no such model, or one
    whose weights are not all there; weights that are not safetensors are not read.
    """
    transformers = import_transformers(who)
    first, *others = classes
    try:
        with no_progress_bar(transformers):
            network, loading = getattr(transformers, first).from_pretrained(
                files.folder,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                **FROM_FOLDER,
            )
        parts = [
            getattr(transformers, name).from_pretrained(files.folder, **FROM_FOLDER)
            for name in others
        ]
    except LOAD_ERRORS as error:
        msg = f"model={files.name!r} cannot be loaded from {files.folder} as {kind}: {error}"
        raise SetupError(msg) from error
    check_whole(files.name, loading)
    return network.requires_grad_(False), *parts


def check_whole(name: str, loading: Mapping[str, Any]) -> None:
    """Raise SetupError for weights that transformers' loading information says are not there."""
    problems = [*loading["missing_keys"], *loading["mismatched_keys"]]
    if problems:
        first = min(map(str, problems))  # transformers gives sets
        msg = (
            f"model={name!r}: {first} is missing in the weights or has another shape, and would be "
            "random"
        )
        raise SetupError(msg)


@contextlib.contextmanager
def no_progress_bar(transformers: Any) -> Iterator[None]:
    """Show no progress bar inside."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
