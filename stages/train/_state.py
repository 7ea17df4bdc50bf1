"""The resumable state of a training run: one file, whole or not there."""

from __future__ import annotations

import os
import pickle
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from winnow.contracts.errors import SetupError
from winnow.stages.train.distributed import current_workers

if TYPE_CHECKING:
    import torch
    from torch import nn

STATE_NAME = "training_state.pt"
_PART = f".{STATE_NAME}.part"
_FOREIGN = (
    RuntimeError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    EOFError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What damaged or foreign contents raise in torch."""


@dataclass(kw_only=True, slots=True)
class Done:
    """What a run has behind it: steps, the loss of each, samples it could not use by reason."""

    steps: int = 0
    curve: list[float] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def save(
    folder: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: str,
    done: Done,
) -> None:
    """Replace the state in ``folder``."""
    import torch

    state = {
        "identity": identity,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": done.steps,
        "curve": done.curve,
        "skipped": dict(done.skipped),
    }
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / _PART
    with part.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / STATE_NAME)


def resume(
    folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer, identity: str
) -> Done:
    """Load the state where there is one; return what it has behind it.

    Of several workers the first one reads its own folder, and all of them get what is in it.
    Fails: SetupError where it cannot be read, or is of another run or network.
    """
    workers = current_workers()
    found = workers.from_first(_load(folder, identity) if workers.is_first else None)
    if isinstance(found, SetupError):
        raise found
    if found is None:
        return Done()
    try:
        done = Done(
            steps=int(found["step"]),
            curve=list(found["curve"]),
            skipped=Counter(found.get("skipped", {})),  # older states have none
        )
        network.load_state_dict(found["network"])
        optimizer.load_state_dict(found["optimizer"])
    except _FOREIGN as error:
        msg = f"{folder / STATE_NAME} does not fit this run: {error}; delete it"
        raise SetupError(msg) from error
    return done


def _load(folder: Path, identity: str) -> Mapping[str, Any] | SetupError | None:
    """Return the state, why it cannot be used, or None where there is none."""
    import torch

    path = folder / STATE_NAME
    if not path.is_file():
        return None
    try:
        if not _is_whole(path):
            return SetupError(f"{path} cannot be read: it is damaged, or cut short; delete it")
        state: Mapping[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        same = isinstance(state, dict) and bool(state["identity"] == identity)
    except _FOREIGN as error:
        return SetupError(f"{path} cannot be read: {error}; delete it to train from the start")
    if same:
        return state
    return SetupError(
        f"{path} is of a run with other parameters or data, or of another network; "
        "use another folder, or delete it"
    )


def _is_whole(path: Path) -> bool:
    """Whether it is what torch.save writes, with the checksums that it wrote: torch reads older
    formats too, and checks none."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return archive.testzip() is None


def forget(folder: Path) -> None:
    """Remove the state, and what a killed process left of an unfinished one."""
    for name in (STATE_NAME, _PART):
        (folder / name).unlink(missing_ok=True)
