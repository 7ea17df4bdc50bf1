"""Phases share out all steps; rates rise and fall; texts are evenly spread."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from winnow.stages.train._projector_schedule import Phase, Plan, shared_out


def _plan(**values: Any) -> Plan:
    defaults: dict[str, Any] = {
        "schedule": "connector", "interleaved": False, "first_share": 0.5,
        "representation_share": 0.0, "learning_rate": 1e-3, "second_learning_rate": None,
        "representation_learning_rate": 1e-4, "warmup": 0.1, "text_share": 0.0,
        "texts_reach_connector": False, "batch_size": 1, "representation_batch_size": 1,
    }  # fmt: skip
    return Plan(**{**defaults, **values})


def _short(plan: Plan, num_steps: int) -> list[tuple[Any, ...]]:
    return [(p.objective, p.trains, p.data, p.num_steps, p.learning_rate, p.text_share)
            for p in plan.phases(num_steps)]  # fmt: skip


def test_schedules_are_as_published() -> None:
    language = "language"
    assert _short(_plan(), 10) == [(language, "connector", "conversations", 10, 1e-3, 0.0)]
    assert _short(_plan(schedule="llava", first_share=0.3, text_share=0.4), 10) == [
        (language, "connector", "captions", 3, 1e-3, 0.0),
        (language, "connector+lm", "conversations", 7, 2e-5, 0.4),
    ]
    lora = _plan(schedule="llava_lora", representation_share=0.5)
    assert _short(lora, 40) == [
        ("representation", "connector", "captions", 20, 1e-4, 0.0),
        (language, "connector", "captions", 10, 1e-3, 0.0),
        (language, "connector+lora", "conversations", 10, 2e-4, 0.0),
    ]
    gated = _plan(interleaved=True, text_share=0.2, texts_reach_connector=True)
    assert _short(gated, 5) == [(language, "connector", "interleaved", 5, 1e-3, 0.2)]
    assert _short(_plan(schedule="llava", first_share=1.0), 5)[-1][1] == "connector"


def test_a_first_stage_of_larger_batches_sees_its_share_of_the_samples() -> None:
    plan = _plan(representation_share=0.25, batch_size=8, representation_batch_size=64)
    first, second = plan.phases(12_005)
    assert (first.batch_size, second.batch_size) == (64, 8)
    assert first.num_samples == pytest.approx(3000, abs=64)
    assert 12_005 <= first.num_samples + second.num_samples <= 12_005 + 64
    assert [p.num_samples for p in _plan(batch_size=8).phases(12_005)] == [12_008]


@given(
    st.integers(1, 1000),
    st.lists(st.floats(0, 1), min_size=1, max_size=4).filter(lambda s: sum(s) > 0.01),
)
def test_all_steps_are_shared_out(num_steps: int, shares: list[float]) -> None:
    steps = shared_out(num_steps, tuple(shares))
    assert sum(steps) == num_steps
    assert min(steps) >= 0
    wanted = [count for count, share in zip(steps, shares, strict=True) if share > 0]
    if num_steps >= len(wanted):
        assert min(wanted) > 0
    for count, share in zip(steps, shares, strict=True):
        assert abs(count - num_steps * share / sum(shares)) <= len(shares)


def _phase(**values: Any) -> Phase:
    defaults: dict[str, Any] = {
        "name": "x", "objective": "language", "trains": "connector", "data": "captions",
        "num_steps": 20, "batch_size": 1, "learning_rate": 0.5, "warmup": 0.2,
    }  # fmt: skip
    return Phase(**{**defaults, **values})


def test_the_rate_rises_in_a_line_and_falls_in_a_cosine() -> None:
    rates = [_phase().rate(step) for step in range(20)]
    assert rates[:4] == pytest.approx([0.125, 0.25, 0.375, 0.5])
    expected = [0.25 * (1 + math.cos(math.pi * i / 16)) for i in range(16)]
    assert rates[4:] == pytest.approx(expected)
    assert _phase(warmup=0.0).rate(0) == 0.5


@pytest.mark.parametrize("share", [0.0, 0.1, 1 / 3, 0.3, 0.5])
def test_texts_are_evenly_spread(share: float) -> None:
    phase = _phase(text_share=share, num_steps=300)
    are_texts = [phase.is_text(step) for step in range(300)]
    assert sum(are_texts) == round(300 * share)
    for step in range(300):
        assert phase.texts_before(step) == sum(are_texts[:step])
        assert abs(phase.texts_before(step) - step * share) <= 1
