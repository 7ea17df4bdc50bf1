"""Rules print themselves for the funnel and say what they read."""

from __future__ import annotations

import dataclasses

import pytest

from winnow.filters.rules import PriorityCover, TopFraction


def test_top_fraction() -> None:
    rule = TopFraction(column="clip_score", fraction=0.3)
    assert str(rule) == "clip_score in the top 0.3 of unrepeated rows"
    assert rule.columns() == {"clip_score"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.fraction = 0.5  # type: ignore[misc]


def test_priority_cover() -> None:
    rule = PriorityCover(neighbors="near_duplicates", prefer=(("width", "largest"),))
    assert str(rule) == "no kept row of near_duplicates is preferred (largest width)"
    assert rule.columns() == {"near_duplicates", "width"}
    bare = PriorityCover(neighbors="n", prefer=())
    assert str(bare) == "no kept row of n is preferred (smallest uid)"
    grouped = PriorityCover(neighbors="n", prefer=(), groups="g")
    assert grouped.columns() == {"n", "g"}
