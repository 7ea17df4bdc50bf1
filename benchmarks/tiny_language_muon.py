"""Muon (Jordan et al. 2024) in float32: momentum, made orthogonal by Newton-Schulz steps.

torch's own computes the steps in bfloat16, which is slow on most CPUs; matrices of one shape are
done together here.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonal(matrices_NRC: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Return matrices with the same singular vectors, and singular values near 1."""
    tall = matrices_NRC.shape[1] > matrices_NRC.shape[2]
    x_NRC = matrices_NRC.mT if tall else matrices_NRC
    x_NRC = x_NRC / (x_NRC.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x_NRC @ x_NRC.mT
        x_NRC = _A * x_NRC + (_B * square + _C * square @ square) @ x_NRC
    return x_NRC.mT if tall else x_NRC


class Muon(torch.optim.Optimizer):
    """For matrices inside a network. The step is as long as AdamW's (Liu et al. 2025)."""

    def __init__(
        self,
        matrices: Iterable[torch.nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.05,
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the matrices; those of one shape together."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for matrix in group["params"]:
                shapes.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in shapes.items():
                updates = []
                for matrix in matrices:
                    assert matrix.grad is not None
                    kept = self.state[matrix].setdefault("kept", torch.zeros_like(matrix))
                    kept.lerp_(matrix.grad, 1 - group["momentum"])
                    updates.append(torch.lerp(matrix.grad, kept, group["momentum"]))
                rate = group["lr"]
                length = -rate * 0.2 * max(shape) ** 0.5
                for matrix, update in zip(matrices, orthogonal(torch.stack(updates)), strict=True):
                    matrix.mul_(1 - rate * group["weight_decay"]).add_(update, alpha=length)
