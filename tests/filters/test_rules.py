"""Rules print themselves for the funnel and say what they read."""

from __future__ import annotations

import dataclasses

import pytest

from winnow.filters.rules import PriorityCover, RandomRows, TopFraction


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


def test_random_rows() -> None:
    some = RandomRows(count=1200, fraction=None, seed=2)
    assert str(some) == "1,200 remaining rows at random, seed 2"
    assert some.columns() == frozenset()
    assert [some.num_kept(n) for n in (0, 1199, 1200, 5000)] == [0, 1199, 1200, 1200]
    share = RandomRows(count=None, fraction=0.29, seed=2)
    assert str(share) == "0.29 of the remaining rows at random, seed 2"
    assert [share.num_kept(n) for n in (0, 1, 100, 1000)] == [0, 0, 29, 290]
