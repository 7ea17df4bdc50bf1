"""Paired comparisons against scipy, naive loops, closed tests and simulations of a known truth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from winnow.pipeline.statistics import (
    Estimate,
    Items,
    holm,
    interval,
    make_items,
    mean_interval,
    paired_estimate,
    paired_items,
    verdict,
)


def test_without_items_it_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(1)
    left, right = rng.normal(0.5, 0.02, 7), rng.normal(0.48, 0.02, 7)
    found = paired_estimate((left - right).tolist())
    expected = stats.ttest_rel(left, right)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-12)
    assert (found.num_seeds, found.num_items, found.note) == (7, 0, "seeds alone: no paired items")
    low, high = interval(found, share=1.0, rejected=False, alpha=0.05) or (0, 0)
    reference = expected.confidence_interval(0.95)
    assert (low, high) == pytest.approx((reference.low, reference.high), rel=1e-12)


def test_the_items_variance_is_added() -> None:
    seeds = [0.02, 0.05, 0.03, 0.04]
    items = np.array([0.0, 0.1, -0.1, 0.2, 0.05])
    found = paired_estimate(seeds, items)
    mean = sum(seeds) / 4
    s2_seeds = sum((x - mean) ** 2 for x in seeds) / 3
    center = sum(items) / 5
    s2_items = sum((x - center) ** 2 for x in items) / 4
    error = (s2_seeds / 4 + s2_items / 5) ** 0.5
    assert found.difference == pytest.approx(mean)
    assert found.standard_error == pytest.approx(error, rel=1e-12)
    assert found.p == pytest.approx(2 * stats.t.sf(mean / error, 3), rel=1e-12)
    assert (found.num_items, found.note) == (5, "")


@pytest.mark.parametrize(
    ("differences", "p", "note"),
    [
        ([], None, "no seed of both arms"),
        ([0.1], None, "one seed"),
        ([0.1] * 5, None, "every seed gave the same difference"),
        ([0.0] * 5, 1.0, ""),
    ],
)
def test_what_cannot_be_judged(differences: list[float], p: float | None, note: str) -> None:
    found = paired_estimate(differences)
    assert found.p == p and found.note.startswith(note)
    said = verdict(found, corrected=1.0, alpha=0.05, higher_is_better=True)
    ends = interval(found, share=1.0, rejected=False, alpha=0.05)
    if p is None:
        assert (said, ends) == ("not measured", None)
    else:
        assert (said, ends) == ("no difference shown", (0.0, 0.0))


def test_equal_seeds_are_judged_by_the_items_if_there_are_any() -> None:
    found = paired_estimate([0.1] * 5, np.array([0.0, 0.2, 0.1, 0.1]))
    assert found.p == pytest.approx(
        2 * stats.t.sf(0.1 / np.sqrt(np.var([0, 2, 1, 1], ddof=1) / 400), 4)
    )


def test_changing_sides_and_the_order_of_seeds_changes_only_the_sign() -> None:
    rng = np.random.default_rng(2)
    d, items = rng.normal(0.01, 0.02, 6), rng.normal(0.01, 0.2, 50)
    one = paired_estimate(d.tolist(), items)
    other = paired_estimate((-d[::-1]).tolist(), -items[::-1])
    assert other.difference == pytest.approx(-one.difference)
    assert other.p == pytest.approx(one.p, rel=1e-9)


def test_items_are_matched_by_key() -> None:
    left = [make_items(["a", "b", "c"], np.array([1.0, 2.0, 3.0]))] * 2
    right = [
        make_items(["c", "a"], np.array([0.5, 0.25])),
        make_items(["c", "z", "a"], np.array([1.5, 9.0, 0.75])),
    ]
    found = paired_items(left, right)
    assert found is not None and found.tolist() == [1.0 - 0.5, 3.0 - 1.0]
    assert paired_items(left[:1], [make_items(["q"], np.array([1.0]))]) is None
    assert paired_items([], []) is None


def test_a_repeated_item_counts_with_its_mean() -> None:
    found = make_items(["b", "a", "b"], np.array([1.0, 5.0, 2.0]))
    assert isinstance(found, Items)
    assert (found.keys.tolist(), found.values.tolist()) == (["a", "b"], [5.0, 1.5])


def test_holm_on_a_worked_example() -> None:
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.5, 0.9]) == [1.0, 1.0]


@pytest.mark.parametrize("weighted", [False, True])
def test_holm_is_the_closed_bonferroni_test(weighted: bool) -> None:
    """Rejected: every set that holds the hypothesis has a member with p <= alpha w / sum w."""
    rng = np.random.default_rng(3)
    for _ in range(40):
        m = int(rng.integers(1, 6))
        p = rng.random(m) ** 3
        w = rng.random(m) + 0.1 if weighted else np.ones(m)
        found = holm(p.tolist(), w.tolist())
        for i in range(m):
            worst = 0.0
            for size in range(1, m + 1):
                for group in itertools.combinations(range(m), size):
                    if i in group:
                        total = sum(w[j] for j in group)
                        worst = max(worst, min(p[j] * total / w[j] for j in group))
            assert found[i] == pytest.approx(min(1.0, worst), rel=1e-12)


def test_holm_does_not_depend_on_the_order() -> None:
    rng = np.random.default_rng(4)
    p, w = rng.random(12) ** 2, rng.random(12) + 0.1
    order = rng.permutation(12)
    assert holm(p[order].tolist(), w[order].tolist()) == pytest.approx(
        np.array(holm(p.tolist(), w.tolist()))[order]
    )


def test_an_interval_excludes_zero_exactly_where_holm_rejects() -> None:
    rng = np.random.default_rng(5)
    for _ in range(50):
        estimates = [
            paired_estimate(rng.normal(rng.choice([0, 0.02, -0.05]), 0.01, 5).tolist())
            for _ in range(8)
        ]
        shares = np.array([0.25, 0.25] + [0.5 / 6] * 6)
        corrected = holm([e.p or 0.0 for e in estimates], shares.tolist())
        for estimate, share, p in zip(estimates, shares, corrected, strict=True):
            low, high = interval(estimate, share=share, rejected=p <= 0.05, alpha=0.05) or (0, 0)
            inside = low < 0 < high
            assert inside != (p <= 0.05)
            assert low <= estimate.difference <= high


def test_verdicts() -> None:
    up = Estimate(difference=0.1, standard_error=0.01, num_seeds=5, num_items=0, p=0.001)
    cases = {True: "better", False: "worse", None: "higher"}
    for direction, said in cases.items():
        assert verdict(up, corrected=0.01, alpha=0.05, higher_is_better=direction) == said
        open_ = verdict(up, corrected=0.051, alpha=0.05, higher_is_better=direction)
        assert open_ == "no difference shown"


def test_mean_interval_is_scipys() -> None:
    values = [0.3, 0.35, 0.28, 0.4]
    mean, half = mean_interval(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert np.isnan(mean_interval([0.1])[1]) and np.isnan(mean_interval([])[0])


def _draw(
    rng: np.random.Generator, n: int, m: int, *, seed_sd: float, item_sd: float
) -> tuple[list[float], np.ndarray]:
    """Return seed differences and seed-mean item differences of a contrast whose truth is zero."""
    values = rng.normal(0, seed_sd, (n, 1)) + rng.normal(0, item_sd, m) + rng.normal(0, 0.1, (n, m))
    return values.mean(axis=1).tolist(), values.mean(axis=0)


@pytest.mark.parametrize(("seed_sd", "item_sd"), [(0.02, 0.0), (0.01, 0.3), (0.0, 0.3)])
def test_coverage_with_effects_of_seeds_and_items(seed_sd: float, item_sd: float) -> None:
    rng = np.random.default_rng(6)
    covered = seeds_alone = 0
    for _ in range(1000):
        d, items = _draw(rng, 5, 200, seed_sd=seed_sd, item_sd=item_sd)
        low, high = interval(paired_estimate(d, items), share=1, rejected=False, alpha=0.05) or (
            1,
            1,
        )
        covered += low <= 0 <= high
        low, high = interval(paired_estimate(d), share=1, rejected=False, alpha=0.05) or (1, 1)
        seeds_alone += low <= 0 <= high
    # Nominal 950, standard deviation 7; too wide where few degrees of freedom meet many items.
    assert 930 <= covered <= 1000
    if item_sd:
        # What the items' variance is there for: other items would have given another answer.
        assert seeds_alone < 700
    else:
        assert 925 <= covered <= 975


def test_a_table_without_any_difference_is_rarely_wrong_anywhere() -> None:
    """30 contrasts that share their controls: any verdict but "no difference shown" is false."""
    rng = np.random.default_rng(7)
    wrong = missed = single = 0
    weights = [0.25, 0.25] + [0.5 / 28] * 28
    for _ in range(500):
        control = rng.normal(0, 0.01, (5, 1)) + rng.normal(0, 0.02, 60)
        estimates = []
        for _ in range(30):
            arm = rng.normal(0, 0.01, (5, 1)) + rng.normal(0, 0.02, 60)
            difference = arm - control + rng.normal(0, 0.01, (5, 60))
            estimates.append(
                paired_estimate(difference.mean(axis=1).tolist(), difference.mean(axis=0))
            )
        corrected = holm([e.p or 0.0 for e in estimates], weights)
        wrong += min(corrected) <= 0.05
        single += min(e.p or 0.0 for e in estimates) <= 0.05
        missed += any(
            not low <= 0 <= high
            for e, share in zip(estimates, weights, strict=True)
            for low, high in [interval(e, share=share, rejected=False, alpha=0.05) or (1, 1)]
        )
    assert wrong <= 0.05 * 500
    assert missed <= 0.05 * 500
    assert single > 0.15 * 500, "without the correction it would often be wrong"


def test_false_rejections_stay_rare_when_others_are_true() -> None:
    """Strong control: half of the table differs, and the other half is not called different."""
    rng = np.random.default_rng(8)
    wrong = found = 0
    for _ in range(500):
        true = [rng.normal(0.2, 0.01, 5) for _ in range(6)]
        null = [rng.normal(0.0, 0.01, 5) for _ in range(6)]
        p = [paired_estimate(d.tolist()).p or 0.0 for d in [*true, *null]]
        corrected = holm(p)
        found += sum(c <= 0.05 for c in corrected[:6])
        wrong += any(c <= 0.05 for c in corrected[6:])
    # 25 expected at most; three standard deviations of chance.
    assert wrong <= 25 + 15
    assert found == 500 * 6
