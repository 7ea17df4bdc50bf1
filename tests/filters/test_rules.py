"""Rules print themselves for the funnel and say what they read."""

from __future__ import annotations

import dataclasses

import pytest

from winnow.filters.rules import BalancedRows, PriorityCover, RandomRows, TopFraction


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


def test_balanced_rows() -> None:
    def rule(**parts: object) -> BalancedRows:
        values = {"by": ("language",), "present": (), "caps": None, "weights": None, "total": None}
        return BalancedRows(**{**values, "seed": 2, **parts})  # type: ignore[arg-type]

    counts = {"en": 1000, "de": 30, "fr": 7}
    capped = rule(caps=(("*", 20),))
    assert str(capped) == "at most 20 rows of each language, seed 2"
    assert capped.num_kept(counts) == {"en": 20, "de": 20, "fr": 7}
    named = rule(caps=(("*", 5), ("en", 100)))
    assert str(named) == "at most (* 5, en 100) rows of each language, seed 2"
    assert named.num_kept(counts) == {"en": 100, "de": 5, "fr": 5}
    assert rule(caps=(("en", 1),)).num_kept(counts) == {"en": 1, "de": 30, "fr": 7}
    weighted = rule(weights=(("de", 2.0), ("en", 3.0)))
    assert weighted.num_kept(counts) == {"en": 45, "de": 30, "fr": 0}
    assert weighted.num_kept({}) == {}
    # 100 rows in parts of 1/3: the odd one goes to the first by name.
    exact = rule(weights=(("*", 1.0),), total=100)
    assert exact.num_kept({"c": 99, "a": 99, "b": 99}) == {"c": 33, "a": 34, "b": 33}
    assert exact.num_kept(counts) == {"en": 33, "de": 30, "fr": 7}
    assert str(exact) == "rows of each language by weight (* 1), 100 in all, seed 2"
