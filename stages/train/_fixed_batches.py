"""Batches of one shape for frozen networks: the last bits of what they compute depend on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def fixed_batches(
    compute: Callable[[list[Any]], torch.Tensor], values: Any, *, nothing: Any, size: int
) -> torch.Tensor:
    """Return a row for each of the values (a sequence or an array), on the CPU.

    ``compute`` always gets ``size`` of them, the last ones filled up with ``nothing``.
    """
    import torch

    rows = []
    for start in range(0, max(1, len(values)), size):
        part = list(values[start : start + size])
        rows.append(compute([*part, *[nothing] * (size - len(part))])[: len(part)].cpu())
    return torch.cat(rows)
