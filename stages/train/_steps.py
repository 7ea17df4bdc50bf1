"""What the training loops share: rates, weight decay, seeds, what ends a run, the loss curve.

Sources: AdamW (Loshchilov and Hutter 2019); CLIP's settings of it, a cosine with warm-up, no decay
of gains and biases, a temperature of at most 100 (Radford et al. 2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from winnow.contracts.errors import ShardError

if TYPE_CHECKING:
    import torch
    from torch import nn

MAX_LOG_SCALE = math.log(100)
_SEED_STRIDE = 1_000_003


def step_seed(seed: int, step: int) -> int:
    """Return the seed of what is drawn at a step."""
    return seed * _SEED_STRIDE + step


def cosine_rate(highest: float, step: int, *, warm: int, num_steps: int) -> float:
    """Return the learning rate at a step: a linear rise over ``warm`` steps, a cosine to 0."""
    warm = max(1, warm)
    if step < warm:
        return highest * (step + 1) / warm
    done = (step - warm) / max(1, num_steps - warm)
    return highest * 0.5 * (1 + math.cos(math.pi * done))


def decay_groups(
    parameters: Iterable[tuple[str, nn.Parameter]],
    weight_decay: float,
    is_embedding: Callable[[str], bool],
) -> list[dict[str, Any]]:
    """Return AdamW's two groups: what decays, then gains, biases and embeddings, which do not.

    The order of the parameters is part of saved states.
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in parameters:
        (free if parameter.ndim < 2 or is_embedding(name) else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]


def clip_optimizer(groups: list[dict[str, Any]], learning_rate: float) -> torch.optim.Optimizer:
    """Return AdamW with CLIP's momenta."""
    import torch

    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), eps=1e-6, fused=True)


def checkpoint_due(seen: int, batch_size: int, checkpoint_samples: int) -> bool:
    """Whether the last batch reached a multiple of ``checkpoint_samples``; 0 = never."""
    if not checkpoint_samples:
        return False
    return seen // checkpoint_samples > (seen - batch_size) // checkpoint_samples


def check_loss(loss: float, step: int, stage: str) -> None:
    """Raise ShardError, not retryable, for a loss that is not finite."""
    if not math.isfinite(loss):
        msg = f"the loss is {loss} at step {step}; use a smaller learning rate"
        raise ShardError(msg, stage=stage, retryable=False)


def check_weights(parameters: Iterable[tuple[str, nn.Parameter]], step: int, stage: str) -> None:
    """Raise ShardError, not retryable, for weights that are not finite, before they are written.

    The loss is that before a step: only the weights tell of what the last one did. A run that goes
    on from broken ones could never end well.
    """
    import torch

    broken = next((name for name, p in parameters if not torch.isfinite(p).all()), None)
    if broken is not None:
        msg = (
            f"the weights ({broken} ...) are not finite after step {step}; use a smaller "
            "learning rate"
        )
        raise ShardError(msg, stage=stage, retryable=False)


def thinned(curve: Sequence[float], points: int = 200) -> list[float]:
    """Return the mean loss of each of up to ``points`` equal stretches."""
    width = max(1, -(-len(curve) // points))
    return [round(float(np.mean(curve[i : i + width])), 4) for i in range(0, len(curve), width)]
