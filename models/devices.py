"""Where a model runs."""

from __future__ import annotations

import torch

from winnow.contracts.errors import SetupError


def choose_device(device: str) -> torch.device:
    """Return the device for ``auto``, ``cpu`` or ``cuda``.

    Fails: SetupError for ``cuda`` where there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        msg = "device=cuda, but torch sees no GPU here; use device=auto, or give the stage num_gpus"
        raise SetupError(msg)
    use_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_gpu else "cpu")
