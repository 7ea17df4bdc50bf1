"""Paired comparisons of trials: t over seeds with the items' variance added, Holm over a table.

Sources. The variance of a mean over crossed seeds and items: Cornfield and Tukey 1956 (Average
values of mean squares in factorials). Holm 1979 (A simple sequentially rejective multiple test
procedure), in its weighted form. Bonferroni's simultaneous intervals: Dunn 1961; an end that Holm's
steps exclude stops at zero: Guilbaud 2008, Strassburger and Bretz 2008.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import special

Floats = npt.NDArray[np.float64]
Kind = Literal["arm", "random", "oracle"]
Verdict = Literal[
    "better", "worse", "higher", "lower", "no difference shown", "not measured", "described"
]

EARLY = "named before the run"
WITHOUT = "-without:"
"""Stands between an arm's name and the filter that its leave-one-out arm is without."""
HEADLINE_SEEDS = 5
"""Fewer seeds are called exploratory."""
_FLAT = 1e-9
"""A standard error below this share of the difference is rounding, not a spread."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmResult:
    """What one trial gave on one split.

    kind: "random" is a random subset of the size of the arm ``control_of``; "oracle" selected by
    the truth. scorer: the column that the arm ranks by, or "". fraction: share of the pool, for a
    point of the fraction curve that ``curve`` names. budget: multiple of the base samples.
    repeats: samples_seen per row. status: "missing" was planned and not trained yet. metrics and
    items: contracts.trial METRICS and ITEMS; empty where there is no result. selection, trainer:
    what names the rows and the model's parameters; arms of other models are compared on the same
    rows only.
    """

    arm: str
    kind: Kind
    control_of: str = ""
    scorer: str = ""
    fraction: float | None = None
    budget: int
    seed: int
    num_rows: int
    samples_seen: int
    repeats: float
    status: Literal["done", "failed", "missing"]
    error: str = ""
    split: Literal["validation", "test"]
    metrics: pa.Table
    items: pa.Table
    curve: str = ""
    selection: str = ""
    trainer: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """A number of a paper, to compare shapes with. fraction: share of the pool, or None."""

    label: str
    fraction: float | None
    value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """What an ablation compares: fixed before the first trial runs.

    metrics: the primary metrics; only they are contrasted. primary_arm: "" where none was named:
    then every contrast is secondary, and there is no headline. primary_against: the arm that the
    primary arm is to beat, "" for random rows, equally many. scorers: scorer column -> its label,
    in the order in which they are shown. descriptions: label -> arm -> number that describes the
    selection and measures no model (a reference CLIPScore). facts: label -> text that is printed as
    it is (pool, splits, trainer). fingerprints: name -> digest. alpha: chance of any false
    "better" or "worse" in the whole table. headline_weight: the primary arm's part of alpha. named,
    record: when the primary contrasts were named, and a sentence about it.
    """

    name: str
    description: str = ""
    metrics: tuple[str, ...]
    primary_arm: str = "curated"
    primary_against: str = ""
    raw_arm: str = "raw"
    seeds: tuple[int, ...]
    budgets: tuple[int, ...] = (1,)
    scorers: Mapping[str, str] = field(default_factory=dict)
    published: tuple[Published, ...] = ()
    descriptions: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    alpha: float = 0.05
    headline_weight: float = 0.5
    named: str = EARLY
    record: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean paired difference. num_items 0: the spread is over seeds alone. p: two-sided, before
    correction; None where it cannot be computed, and ``note`` says why."""

    difference: float
    standard_error: float
    num_seeds: int
    num_items: int
    p: float | None
    note: str = ""


def paired_estimate(differences: Sequence[float], items: Floats | None = None) -> Estimate:
    """Estimate a difference from one number per seed and the items' seed-mean differences.

    Var = s2_seeds / n + s2_items / m, t with n - 1 degrees of freedom. The interaction of seeds and
    items is in both terms: slightly too wide rather than too narrow. With all differences zero
    p is 1; with all differences equal and not zero there is no spread to judge by, and no p.
    """
    values = np.asarray(differences, np.float64)
    n = values.size
    difference = float(values.mean()) if n else float("nan")
    m = 0 if items is None or items.size < 2 else int(items.size)
    if n < 2:
        note = "one seed" if n else "no seed of both arms"
        return Estimate(
            difference=difference,
            standard_error=float("nan"),
            num_seeds=n,
            num_items=m,
            p=None,
            note=note,
        )
    variance = float(values.var(ddof=1)) / n
    if m:
        assert items is not None
        variance += float(items.var(ddof=1)) / m
    error = float(np.sqrt(variance))
    if error <= _FLAT * abs(difference):
        flat = difference == 0
        note = "" if flat else "every seed gave the same difference: there is no spread to judge by"
        p: float | None = 1.0 if flat else None
        error = 0.0
    else:
        note = "" if m else "seeds alone: no paired items"
        p = float(2 * special.stdtr(n - 1, -abs(difference) / error))
    return Estimate(
        difference=difference, standard_error=error, num_seeds=n, num_items=m, p=p, note=note
    )


def t_reach(alpha: float, freedom: int) -> float:
    """Return how many standard errors a two-sided t interval of level 1 - alpha reaches."""
    return float(-special.stdtrit(freedom, alpha / 2))


def mean_interval(values: Sequence[float], alpha: float = 0.05) -> tuple[float, float]:
    """Return the mean and half the width of its t interval over seeds; NaN for fewer than two."""
    found = np.asarray(values, np.float64)
    if found.size < 2:
        return (float(found.mean()) if found.size else float("nan")), float("nan")
    error = float(found.std(ddof=1)) / np.sqrt(found.size)
    return float(found.mean()), t_reach(alpha, found.size - 1) * error


@dataclass(frozen=True, kw_only=True, slots=True)
class Items:
    """Values per item of one trial: keys unique and sorted."""

    keys: npt.NDArray[np.str_]
    values: Floats


def make_items(keys: Sequence[str], values: Floats) -> Items:
    """Return items by key; a key that comes twice counts with its mean."""
    unique, place = np.unique(np.asarray(keys, np.str_), return_inverse=True)
    total = np.bincount(place, weights=values, minlength=unique.size)
    return Items(keys=unique, values=total / np.bincount(place, minlength=unique.size))


def paired_items(left: Sequence[Items], right: Sequence[Items]) -> Floats | None:
    """Return per item the mean over seeds of left - right, for the items that all have.

    left, right: one entry per seed, in the same order of seeds. None where nothing is common.
    """
    everything = [*left, *right]
    if not everything:
        return None
    keys = everything[0].keys
    for items in everything[1:]:
        if not np.array_equal(keys, items.keys):
            keys = np.intersect1d(keys, items.keys, assume_unique=True)
    if not keys.size:
        return None
    rows = [items.values[np.searchsorted(items.keys, keys)] for items in everything]
    differences = np.array(rows[: len(left)]) - np.array(rows[len(left) :])
    return np.asarray(differences.mean(axis=0), np.float64)


def holm(p_values: Sequence[float], weights: Sequence[float] | None = None) -> list[float]:
    """Return Holm's corrected p-values, in the order given; equal weights by default.

    The chance of any false rejection at ``corrected <= alpha`` is at most alpha, whatever depends
    on whatever. Weights must be fixed before the data: a contrast of twice the weight gets twice
    the part of alpha.
    """
    p = np.asarray(p_values, np.float64)
    w = np.ones_like(p) if weights is None else np.asarray(weights, np.float64)
    corrected = np.ones_like(p)
    order = np.argsort(p / w, kind="stable")
    left = np.cumsum(w[order][::-1])[::-1]
    steps = np.minimum(1.0, p[order] * left / w[order])
    corrected[order] = np.maximum.accumulate(steps)
    return [float(value) for value in corrected]


def interval(
    estimate: Estimate, *, share: float, rejected: bool, alpha: float
) -> tuple[float, float] | None:
    """Return the corrected interval of one contrast of a table; None where it was not measured.

    share: the contrast's part of alpha (the parts of a table sum to 1). Every interval has its
    Bonferroni level, 1 - alpha * share: all of a table cover together with 1 - alpha or more. Where
    Holm rejects and this interval still reaches across zero, its end there is zero (open): so the
    interval excludes zero exactly where Holm rejects. Trimmed intervals cover together with
    1 - 2 alpha or more at worst (Bonferroni's misses and Holm's false rejections added).
    """
    if estimate.p is None:
        return None
    reach = 0.0
    if estimate.standard_error:
        reach = t_reach(alpha * share, estimate.num_seeds - 1)
    half = reach * estimate.standard_error
    low, high = estimate.difference - half, estimate.difference + half
    if rejected and estimate.difference > 0:
        low = max(low, 0.0)
    elif rejected:
        high = min(high, 0.0)
    return low, high


def verdict(
    estimate: Estimate, *, corrected: float, alpha: float, higher_is_better: bool | None
) -> Verdict:
    """Say what a contrast shows; a metric that only describes is "higher" or "lower"."""
    if estimate.p is None:
        return "not measured"
    if corrected > alpha:
        return "no difference shown"
    up = estimate.difference > 0
    if higher_is_better is None:
        return "higher" if up else "lower"
    return "better" if up == higher_is_better else "worse"
