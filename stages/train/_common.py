"""What every trainer refuses, holds and records in the same way."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.stage import Resources
from winnow.contracts.trial import Dataset

if TYPE_CHECKING:
    import torch


def check_resources(
    trainer: str, *, num_cpus: float | None, num_gpus: float | None, device: str
) -> None:
    """Raise RecipeError for resources that no machine can have."""
    for name, value in (("num_cpus", num_cpus), ("num_gpus", num_gpus)):
        if value is not None and not 0 <= value <= 1024:
            msg = f"{trainer}: {name}={value}; use a number from 0 to 1024"
            raise RecipeError(msg)
    if device == "cpu" and num_gpus:
        msg = f"{trainer}: device=cpu with num_gpus={num_gpus}; leave one of them out"
        raise RecipeError(msg)


def resources(
    *, num_threads: int, num_cpus: float | None, num_gpus: float | None, device: str
) -> Resources:
    """Return a core per thread, and one GPU for device=cuda, where nothing else is said."""
    default = 1.0 if device == "cuda" else 0.0
    return Resources(
        num_cpus=float(num_threads) if num_cpus is None else num_cpus,
        num_gpus=default if num_gpus is None else num_gpus,
    )


def check_rows(data: Dataset, batch_size: int) -> None:
    """Raise SetupError for an empty selection, or one smaller than a batch."""
    if not data.num_rows:
        msg = f"{data.name}: the selection is empty; nothing can be trained on it"
        raise SetupError(msg)
    if data.num_rows < batch_size:
        msg = (
            f"{data.name} has {data.num_rows} rows, fewer than a batch of {batch_size}; "
            "lower batch_size or select more"
        )
        raise SetupError(msg)


def made(folder: Path) -> Path:
    """Return a folder that is there. Fails: SetupError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"{folder} cannot be written: {error}"
        raise SetupError(msg) from error
    return folder


def ran_on(device: torch.device) -> dict[str, str]:
    """Return what training.json says of the machine and the libraries that all trainers use."""
    import open_clip
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": device.type,
        "device_name": name,
        "torch": str(torch.__version__),
        "open_clip": str(open_clip.__version__),
    }
