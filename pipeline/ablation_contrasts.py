"""What an ablation shows: every contrast that its design names, corrected as one table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from winnow.contracts.errors import SetupError
from winnow.pipeline.ablation_results import Arm, Results
from winnow.pipeline.statistics import (
    HEADLINE_SEEDS,
    WITHOUT,
    Design,
    Estimate,
    Verdict,
    holm,
    interval,
    paired_estimate,
    paired_items,
    verdict,
)

Role = Literal["primary", "control", "raw", "model", "without", "peak", "slice"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A contrast before it is measured: ``arm`` minus ``other`` on the test split.

    role: "primary" is the primary arm against random of its size, or against the arm that the study
    names; "control" an arm against random of its size, where that is not primary; "raw" an arm
    against the raw pool; "model" another trainer on the same rows; "without" an arm
    that leaves one filter out against the arm that has it; "peak" a fraction against an end
    of its curve; "slice" the primary arm against random on one
    slice. other "": nothing to compare with.
    """

    metric: str
    slice: str = ""
    budget: int
    role: Role
    arm: str
    other: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Contrast:
    """A measured contrast. low, high: the corrected interval, None where it was not measured.

    share: its part of alpha. p_corrected: Holm over the table; 1 where it was not measured.
    """

    pair: Pair
    estimate: Estimate
    share: float
    p_corrected: float
    low: float | None
    high: float | None
    verdict: Verdict

    @property
    def exploratory(self) -> bool:
        """Whether fewer seeds stand behind it than a headline needs."""
        return self.estimate.num_seeds < HEADLINE_SEEDS


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """The fractions of one sweep at one budget, rising; the whole pool is last where it ran."""

    name: str
    scorer: str
    budget: int
    arms: tuple[Arm, ...]
    fractions: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak:
    """Whether a curve has an inverted U in a metric.

    chosen: the interior fraction that is best on validation, None where that cannot be said.
    low, high: its contrasts with the smallest fraction and with the whole pool, on test.
    """

    metric: str
    curve: Curve
    chosen: float | None
    low: Contrast | None
    high: Contrast | None
    found: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Analysis:
    """Everything that is said about an ablation. slices are differences without a verdict."""

    design: Design
    results: Results
    contrasts: tuple[Contrast, ...]
    slices: tuple[Contrast, ...]
    curves: tuple[Curve, ...]
    peaks: tuple[Peak, ...]

    def find(self, metric: str, budget: int, arm: str, role: Role) -> Contrast | None:
        """Return an arm's contrast of a role.

        "control" finds the primary arm's, too, where that is against random; "raw" whatever
        contrast with the raw arm there is.
        """
        for found in self.contrasts:
            pair = found.pair
            if (pair.metric, pair.budget, pair.arm) != (metric, budget, arm):
                continue
            raw = role == "raw" and pair.other == self.design.raw_arm
            primary = pair.role == "primary" and not self.design.primary_against
            if raw or pair.role == role or (role == "control" and primary):
                return found
        return None

    @property
    def models(self) -> list[Contrast]:
        """The contrasts of trainers on the same rows."""
        return [c for c in self.contrasts if c.pair.role == "model"]

    @property
    def left_out(self) -> list[Contrast]:
        """The contrasts of arms that leave one filter out, as far as such arms were run."""
        return [c for c in self.contrasts if c.pair.role == "without" and c.estimate.num_seeds]

    @property
    def headlines(self) -> list[Contrast]:
        """The contrasts that were named as primary before the run."""
        return [c for c in self.contrasts if c.pair.role == "primary"]


def analyse(design: Design, results: Results) -> Analysis:
    """Measure every contrast that the design names.

    Which contrasts there are depends on the design and on which arms were planned, never on the
    values: one that could not be measured counts in the correction with p = 1.
    Fails: SetupError where trials gave metrics, and none gave one that the design names.
    """
    _check_metrics(design, results)
    curves = tuple(_curves(design, results))
    named: dict[tuple[str, int, str, str], Pair] = {}
    for pair in _pairs(design, results, curves):
        named.setdefault((pair.metric, pair.budget, pair.arm, pair.other), pair)
    pairs = list(named.values())
    contrasts = _measure(design, results, pairs, _shares(design, pairs))
    slices = list(_slice_pairs(design, results))
    return Analysis(
        design=design,
        results=results,
        contrasts=tuple(contrasts),
        slices=tuple(_described(results, pair) for pair in slices),
        curves=curves,
        peaks=tuple(
            find_peak(results, metric, curve, contrasts)
            for metric in design.metrics
            for curve in curves
        ),
    )


def _check_metrics(design: Design, results: Results) -> None:
    known = results.directions
    for metric in design.metrics:
        if known and metric not in known:
            msg = (
                f"the ablation names the metric {metric!r}, and no trial measured it; "
                f"measured were {', '.join(known)}"
            )
            raise SetupError(msg)


def find_peak(results: Results, metric: str, curve: Curve, contrasts: Sequence[Contrast]) -> Peak:
    """Look for an inverted U: an interior fraction, chosen on validation, that beats both ends.

    Chosen by the mean over the seeds that all measured interior fractions have on validation.
    "Beats" is the corrected verdict on test. The correction counts all interior fractions, so the
    choice among them costs nothing more.
    """
    interior = curve.arms[1:-1]
    chosen = _best_on_validation(results, metric, interior)
    if chosen is None or curve.fractions[-1] < 1:
        return Peak(metric=metric, curve=curve, chosen=None, low=None, high=None, found=False)
    sides = []
    for end in (curve.arms[0], curve.arms[-1]):
        sides += [
            c
            for c in contrasts
            if (c.pair.metric, c.pair.budget) == (metric, curve.budget)
            and (c.pair.arm, c.pair.other) == (interior[chosen].name, end.name)
        ][:1]
    assert len(sides) == 2
    return Peak(
        metric=metric,
        curve=curve,
        chosen=curve.fractions[1 + chosen],
        low=sides[0],
        high=sides[1],
        found=all(side.verdict == "better" for side in sides),
    )


def _best_on_validation(results: Results, metric: str, arms: Sequence[Arm]) -> int | None:
    direction = results.direction(metric)
    if direction is None or not arms:
        return None
    values = [results.values(arm, metric, split="validation") for arm in arms]
    seeds = set.intersection(*(set(v) for v in values if v)) if any(values) else set()
    if not seeds:
        return None
    means = {i: float(np.mean([v[s] for s in sorted(seeds)])) for i, v in enumerate(values) if v}
    return (max if direction else min)(means, key=means.__getitem__)


def _curves(design: Design, results: Results) -> Iterator[Curve]:
    """Yield the curves; the raw arm is the whole pool where a curve has no such point."""
    points = [a for a in results.arms if a.kind == "arm" and a.fraction is not None]
    places = {scorer: place for place, scorer in enumerate(design.scorers)}
    keys = dict.fromkeys((places.get(a.scorer, 99), a.scorer, a.curve) for a in points)
    for _, scorer, name in sorted(keys):
        for budget in design.budgets:
            mine = [a for a in points if (a.scorer, a.curve, a.budget) == (scorer, name, budget)]
            found = {a.fraction: a for a in mine if a.fraction is not None}
            raw = results.arm(design.raw_arm, budget)
            if found and raw is not None and max(found) < 1:
                found[1.0] = raw
            if len(found) > 1:
                order = sorted(found)
                arms = tuple(found[fraction] for fraction in order)
                yield Curve(
                    name=name, scorer=scorer, budget=budget, arms=arms, fractions=tuple(order)
                )


def _pairs(design: Design, results: Results, curves: Sequence[Curve]) -> Iterator[Pair]:
    """Yield what is contrasted. A point of a curve meets the curve's ends rather than raw."""
    points = {(arm.name, arm.budget) for curve in curves for arm in curve.arms}
    for metric in design.metrics:
        for budget in design.budgets:
            for arm in results.arms_of(budget):
                yield from _arm_pairs(design, results, metric, arm, (arm.name, budget) in points)
        for curve in curves:
            for arm in curve.arms[1:-1]:
                for end in (curve.arms[0], curve.arms[-1]):
                    yield Pair(
                        metric=metric,
                        budget=curve.budget,
                        role="peak",
                        arm=arm.name,
                        other=end.name,
                    )


def _arm_pairs(
    design: Design, results: Results, metric: str, arm: Arm, is_point: bool
) -> Iterator[Pair]:
    if arm.kind != "arm" or arm.name == design.raw_arm:
        return
    control = results.control(arm)
    rival = design.primary_against
    role: Role = "primary" if arm.name == design.primary_arm and not rival else "control"
    if arm.name == design.primary_arm and rival:
        other = rival if results.arm(rival, arm.budget) is not None else ""
        yield Pair(metric=metric, budget=arm.budget, role="primary", arm=arm.name, other=other)
    if control is not None or role == "primary":
        other = "" if control is None else control.name
        yield Pair(metric=metric, budget=arm.budget, role=role, arm=arm.name, other=other)
    is_point = is_point and role != "primary"
    raw = results.arm(design.raw_arm, arm.budget)
    if not is_point and raw is not None and raw.trainer == arm.trainer:
        yield Pair(metric=metric, budget=arm.budget, role="raw", arm=arm.name, other=design.raw_arm)
    whole = _whole_arm(results, arm)
    if whole is not None:
        yield Pair(metric=metric, budget=arm.budget, role="without", arm=arm.name, other=whole.name)
    first = results.arm(design.primary_arm, arm.budget)
    base = None if first is None else results.same_rows(arm, first.trainer)
    if base is not None:
        yield Pair(metric=metric, budget=arm.budget, role="model", arm=arm.name, other=base.name)


def _whole_arm(results: Results, arm: Arm) -> Arm | None:
    """Return the arm that a leave-one-out arm leaves something out of."""
    name, mark, _ = arm.name.partition(WITHOUT)
    return results.arm(name, arm.budget) if mark else None


def _slice_pairs(design: Design, results: Results) -> Iterator[Pair]:
    for budget in design.budgets:
        arm = results.arm(design.primary_arm, budget)
        control = None if arm is None else results.control(arm)
        if arm is None or control is None:
            continue
        for metric in design.metrics:
            for name in results.slices(metric):
                yield Pair(
                    metric=metric,
                    slice=name,
                    budget=budget,
                    role="slice",
                    arm=arm.name,
                    other=control.name,
                )


def _shares(design: Design, pairs: Sequence[Pair]) -> list[float]:
    """Divide alpha: the headline contrasts share ``headline_weight``, all others the rest."""
    heads = sum(pair.role == "primary" for pair in pairs)
    others = len(pairs) - heads
    weight = design.headline_weight if heads and others else float(heads > 0)
    return [weight / heads if pair.role == "primary" else (1 - weight) / others for pair in pairs]


def _measure(
    design: Design, results: Results, pairs: Sequence[Pair], shares: Sequence[float]
) -> list[Contrast]:
    estimates = [_estimate(results, pair) for pair in pairs]
    p_values = [1.0 if e.p is None else e.p for e in estimates]
    found = []
    for pair, estimate, share, corrected in zip(
        pairs, estimates, shares, holm(p_values, shares), strict=True
    ):
        said = verdict(
            estimate,
            corrected=corrected,
            alpha=design.alpha,
            higher_is_better=results.direction(pair.metric),
        )
        ends = interval(
            estimate, share=share, rejected=corrected <= design.alpha, alpha=design.alpha
        )
        low, high = (None, None) if ends is None else ends
        found.append(
            Contrast(
                pair=pair,
                estimate=estimate,
                share=share,
                p_corrected=corrected,
                low=low,
                high=high,
                verdict=said,
            )
        )
    return found


def _described(results: Results, pair: Pair) -> Contrast:
    """Return a difference without a verdict: which items a slice holds is not stored."""
    estimate = _estimate(results, pair)
    return Contrast(
        pair=pair,
        estimate=estimate,
        share=0.0,
        p_corrected=1.0,
        low=None,
        high=None,
        verdict="not measured" if estimate.num_seeds == 0 else "described",
    )


def _estimate(results: Results, pair: Pair) -> Estimate:
    arm = results.arm(pair.arm, pair.budget)
    other = results.arm(pair.other, pair.budget) if pair.other else None
    if arm is None or other is None:
        return Estimate(
            difference=float("nan"),
            standard_error=float("nan"),
            num_seeds=0,
            num_items=0,
            p=None,
            note="no random control of its size was planned",
        )
    left = results.values(arm, pair.metric, slice_=pair.slice)
    right = results.values(other, pair.metric, slice_=pair.slice)
    seeds = sorted(left.keys() & right.keys())
    items = None if pair.slice else _items(results, arm, other, pair.metric, seeds)
    return paired_estimate([left[s] - right[s] for s in seeds], items)


def _items(
    results: Results, arm: Arm, other: Arm, metric: str, seeds: Sequence[int]
) -> np.ndarray | None:
    """Return the paired items where every seed of both arms has them."""
    left, right = results.items(arm, metric), results.items(other, metric)
    if not seeds or any(s not in left or s not in right for s in seeds):
        return None
    return paired_items([left[s] for s in seeds], [right[s] for s in seeds])
