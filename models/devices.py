"""Where a model runs, and in which numbers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import torch

from winnow.contracts.errors import SetupError

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: Mapping[Precision, torch.dtype] = MappingProxyType(
    {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
)


def choose_device(device: str) -> torch.device:
    """Return the device for ``auto``, ``cpu`` or ``cuda``.

    Fails: SetupError for ``cuda`` where there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        msg = "device=cuda, but torch sees no GPU here; use device=auto, or give the stage num_gpus"
        raise SetupError(msg)
    use_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_gpu else "cpu")
