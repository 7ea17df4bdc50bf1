"""GradCache: the gradient of a large batch with the memory of a small one.

A contrastive loss compares every sample with every other one, so adding up the gradients of small
batches is not the gradient of a large one: it has fewer negatives. Gao et al. 2021 ("Scaling Deep
Contrastive Learning Batch Size under Memory Limited Setup"): embed all parts without a graph; take
the loss and its gradient with respect to the embeddings; embed each part again, with a graph and
the same random numbers, and pass its share of that gradient on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Tower:
    """One encoder with its inputs: ``encode(start, stop)`` embeds rows [start, stop) of num_rows.

    It must give the same embeddings for the same rows and the same state of torch's generators, and
    no row may depend on those beside it: with BatchNorm the parts are another function than the
    whole.
    """

    encode: Callable[[int, int], torch.Tensor]
    num_rows: int


def cached_backward(
    towers: Sequence[Tower],
    loss_of: Callable[..., torch.Tensor],
    rows_per_part: int,
    device: torch.device,
) -> torch.Tensor:
    """Add the gradient of ``loss_of(*embeddings)`` to all parameters; return the detached loss.

    Dropout inside an encoder draws the same numbers in both passes; the generators end where one
    pass ends. Parameters that only ``loss_of`` uses (the temperature) get theirs directly.

    Cost: one more forward pass than a plain step; memory of one part, plus all embeddings.
    """
    states: list[list[torch.Tensor]] = []
    embedded: list[torch.Tensor] = []
    with torch.no_grad():
        for tower in towers:
            parts = []
            for start, stop in _cuts(tower.num_rows, rows_per_part):
                states.append(_generator_states(device))
                parts.append(tower.encode(start, stop))
            embedded.append(torch.cat(parts))
    leaves = [part.requires_grad_() for part in embedded]
    loss = loss_of(*leaves)
    loss.backward()  # type: ignore[no-untyped-call]
    state = iter(states)
    with torch.random.fork_rng(devices=_devices(device)):
        for tower, leaf in zip(towers, leaves, strict=True):
            for start, stop in _cuts(tower.num_rows, rows_per_part):
                _restore(next(state), device)
                if leaf.grad is not None:
                    torch.autograd.backward(tower.encode(start, stop), leaf.grad[start:stop])
    return loss.detach()


def plain_backward(towers: Sequence[Tower], loss_of: Callable[..., torch.Tensor]) -> torch.Tensor:
    """The same in one piece: the whole batch's graph in memory."""
    loss = loss_of(*(tower.encode(0, tower.num_rows) for tower in towers))
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def _cuts(num_rows: int, rows_per_part: int) -> Iterator[tuple[int, int]]:
    for start in range(0, num_rows, rows_per_part):
        yield start, min(start + rows_per_part, num_rows)


def _devices(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def _generator_states(device: torch.device) -> list[torch.Tensor]:
    here = [torch.get_rng_state()]
    return [*here, torch.cuda.get_rng_state(device)] if device.type == "cuda" else here


def _restore(states: list[torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
