"""What training loops share, against torch's schedules and naive counts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from winnow.contracts.errors import ShardError
from winnow.stages.train._steps import (
    check_loss,
    check_weights,
    checkpoint_due,
    cosine_rate,
    decay_groups,
    step_seed,
    thinned,
)


@pytest.mark.parametrize(("warm", "num_steps"), [(2, 3), (4, 20), (10, 11), (7, 100)])
def test_the_rate_is_torchs_warm_up_and_cosine(warm: int, num_steps: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule = SequentialLR(
        optimizer,
        [
            LinearLR(optimizer, start_factor=1 / warm, total_iters=warm - 1),
            CosineAnnealingLR(optimizer, T_max=num_steps - warm),
        ],
        milestones=[warm],
    )
    for step in range(num_steps):
        rate = cosine_rate(0.3, step, warm=warm, num_steps=num_steps)
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()


def test_without_warm_up_the_first_step_has_the_whole_rate() -> None:
    assert cosine_rate(0.5, 0, warm=0, num_steps=10) == 0.5
    assert cosine_rate(0.5, 0, warm=1, num_steps=1) == 0.5


def test_gains_biases_and_embeddings_do_not_decay() -> None:
    network = nn.ModuleDict({"embedding": nn.Embedding(3, 2), "layer": nn.Linear(2, 2)})
    named = dict(network.named_parameters())
    decayed, free = decay_groups(named.items(), 0.2, lambda name: "embedding" in name)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.2, 0.0)
    assert [id(p) for p in decayed["params"]] == [id(named["layer.weight"])]
    assert {id(p) for p in free["params"]} == {
        id(named[name]) for name in ("embedding.weight", "layer.bias")
    }


@pytest.mark.parametrize(("size", "every"), [(4, 4), (4, 6), (4, 3), (5, 100), (7, 0)])
def test_a_checkpoint_is_due_where_a_multiple_was_reached(size: int, every: int) -> None:
    for steps in range(1, 60):
        seen = range((steps - 1) * size + 1, steps * size + 1)
        assert checkpoint_due(steps * size, size, every) is any(
            every and n % every == 0 for n in seen
        )


def test_a_curve_is_thinned_to_means_of_equal_stretches() -> None:
    assert thinned([1.0, 2.0, 3.0]) == [1.0, 2.0, 3.0]
    assert thinned([1.0, 2.0, 3.0, 4.0, 6.0], points=3) == [1.5, 3.5, 6.0]
    assert thinned([]) == []
    assert len(thinned([0.5] * 1001)) <= 200


def test_what_is_not_finite_ends_the_run() -> None:
    layer = nn.Linear(2, 1)
    check_loss(3.0, 1, "train x")
    check_weights(layer.named_parameters(), 1, "train x")
    for loss in (math.nan, math.inf):
        with pytest.raises(ShardError, match="at step 7") as caught:
            check_loss(loss, 7, "train x")
        assert not caught.value.retryable
    with torch.no_grad():
        layer.bias.fill_(math.nan)
    with pytest.raises(ShardError, match=r"bias .* after step 7"):
        check_weights(layer.named_parameters(), 7, "train x")


def test_seeds_of_different_steps_and_runs_differ() -> None:
    assert len({step_seed(seed, step) for seed in range(5) for step in range(1000)}) == 5000
