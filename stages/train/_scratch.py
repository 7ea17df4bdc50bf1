"""Nameless scratch files: what does not fit into memory is written once and mapped.

They are gone with the process.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from winnow.contracts.errors import SetupError

_SPARE_BYTES = 1 << 30


def scratch_file(folder: Path) -> IO[bytes]:
    """Return an empty file in a folder that is there."""
    return tempfile.TemporaryFile(dir=folder)


def check_room(folder: Path) -> None:
    """Raise SetupError where the disk is full but for 1 GB."""
    if shutil.disk_usage(folder).free < _SPARE_BYTES:
        msg = f"less than 1 GB is left at {folder}; use a larger disk"
        raise SetupError(msg)


def mapped(file: IO[bytes], kind: type[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return what a file holds, read only; it may be closed then."""
    if not all(shape):
        return np.empty(shape, kind)
    file.flush()
    return np.memmap(file, kind, "r", shape=shape)  # type: ignore[call-overload, no-any-return]
