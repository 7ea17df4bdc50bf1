"""The resumable state: the same steps after it, and nothing learned from one that was damaged."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from winnow.contracts.errors import SetupError
from winnow.stages.train._state import STATE_NAME, Done, forget, resume, save

Run = tuple[nn.Linear, torch.optim.AdamW]


def fresh(width: int = 3) -> Run:
    network = nn.Linear(width, 2)
    nn.init.constant_(network.weight, 0.5)
    nn.init.zeros_(network.bias)
    return network, torch.optim.AdamW(network.parameters(), lr=0.1)


def steps(run: Run, numbers: range) -> None:
    network, optimizer = run
    for number in numbers:
        optimizer.zero_grad()
        (network(torch.full((1, 3), float(number))) ** 2).sum().backward()
        optimizer.step()


def weights(run: Run) -> bytes:
    return b"".join(w.detach().numpy().tobytes() for w in run[0].parameters())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five steps of a run, saved."""
    run, folder = fresh(), tmp_path / "a run \u00fc"
    steps(run, range(5))
    done = Done(steps=5, curve=[0.5] * 5, skipped=Counter({"no image": 2}))
    save(folder, *run, "this run", done)
    return folder


def test_a_run_goes_on_to_the_same_bytes(folder: Path) -> None:
    whole, second = fresh(), fresh()
    steps(whole, range(9))
    done = resume(folder, *second, "this run")
    assert (done.steps, done.curve, done.skipped) == (5, [0.5] * 5, {"no image": 2})
    steps(second, range(5, 9))
    assert weights(second) == weights(whole)
    forget(folder)
    assert resume(folder, *fresh(), "this run").steps == 0
    assert not list(folder.iterdir())


def test_a_damaged_state_is_refused_whatever_bytes_are_damaged(folder: Path) -> None:
    """Single bits, and blocks of zeros that a disk gives back; cuts at any place."""
    path, draw = folder / STATE_NAME, np.random.default_rng(0)
    whole = path.read_bytes()
    expected = fresh()
    resume(folder, *expected, "this run")
    damaged = [whole[:size] for size in range(0, len(whole), 211)]
    for place in draw.integers(0, len(whole), 100).tolist():
        torn = bytearray(whole)
        torn[place] ^= 1 << int(draw.integers(8))
        damaged.append(bytes(torn))
    for place in range(0, len(whole), 128):
        damaged.append(whole[:place] + bytes(64) + whole[place + 64 :])
    refused = 0
    for data in damaged:
        path.write_bytes(data)
        run = fresh()
        try:
            done = resume(folder, *run, "this run")
        except SetupError as error:
            assert STATE_NAME in str(error)
            refused += 1
            continue
        assert (weights(run), done.steps, done.curve) == (weights(expected), 5, [0.5] * 5)
    assert refused > len(damaged) // 2


@pytest.mark.parametrize(
    "foreign",
    [
        None,
        [1],
        torch.ones(2),
        {"identity": "this run"},
        {"identity": torch.ones(3)},
        {"identity": "this run", "network": {}, "optimizer": {}, "step": 1, "curve": []},
        {"identity": "this run", "network": [], "optimizer": {}, "step": "x", "curve": None},
        {"identity": "another run", "network": {}, "optimizer": {}, "step": 1, "curve": []},
    ],
)
def test_what_is_no_state_of_this_run_is_refused(folder: Path, foreign: Any) -> None:
    torch.save(foreign, folder / STATE_NAME)
    with pytest.raises(SetupError, match=STATE_NAME):
        resume(folder, *fresh(), "this run")


def test_a_state_of_another_network_is_refused(folder: Path) -> None:
    with pytest.raises(SetupError, match="does not fit this run"):
        resume(folder, *fresh(width=4), "this run")
