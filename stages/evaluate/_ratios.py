"""Ratios of sums over pictures, with items whose spread is that of the ratio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from winnow.contracts.trial import Score

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """sum(parts) / sum(wholes) over N pictures: a rate whose pictures weigh by what they hold.

    A picture's item is r + N (part - r whole) / sum(wholes). The items' mean is the ratio r, and
    the variance of their mean is that of a ratio estimator (Cochran 1977, Sampling Techniques,
    chapter 6), so that questions or mentions of one picture are not taken for independent ones.
    An item may lie outside of [0, 1]. Where every picture has the same whole it is part / whole.
    """

    metric: str
    parts: Floats
    wholes: Floats
    keys: Sequence[str]
    higher_is_better: bool | None = True

    def score(self) -> Score:
        """Return the ratio over all pictures; null where there is nothing to divide by."""
        total = float(self.wholes.sum())
        if total == 0:
            return Score(
                metric=self.metric,
                value=None,
                num_items=len(self.keys),
                higher_is_better=self.higher_is_better,
            )
        ratio = float(self.parts.sum()) / total
        return Score(
            metric=self.metric,
            value=ratio,
            num_items=len(self.keys),
            higher_is_better=self.higher_is_better,
            items=ratio + (self.parts - ratio * self.wholes) * (len(self.keys) / total),
            keys=self.keys,
        )


def ratio(
    metric: str,
    parts: Sequence[float] | Floats,
    wholes: Sequence[float] | Floats,
    keys: Sequence[str],
    higher_is_better: bool | None = True,
) -> Ratio:
    """Return a Ratio of numbers per picture."""
    return Ratio(
        metric=metric,
        parts=np.asarray(parts, np.float64),
        wholes=np.asarray(wholes, np.float64),
        keys=keys,
        higher_is_better=higher_is_better,
    )


def mean(
    metric: str,
    values: Sequence[float] | Floats,
    keys: Sequence[str],
    higher_is_better: bool | None = True,
) -> Ratio:
    """Return a mean over pictures as a Ratio."""
    return ratio(metric, values, np.ones(len(keys)), keys, higher_is_better)


def all_scores(ratios: Sequence[Ratio], slices: Mapping[str, frozenset[str]]) -> list[Score]:
    """Return each ratio over all pictures, then each again per slice (over its pictures alone)."""
    found = [one.score() for one in ratios]
    for one in ratios:
        for name, members in slices.items():
            inside = np.array([key in members for key in one.keys], bool)
            total = float(one.wholes[inside].sum())
            if total:
                found.append(
                    Score(
                        metric=one.metric,
                        value=float(one.parts[inside].sum()) / total,
                        num_items=int(inside.sum()),
                        higher_is_better=one.higher_is_better,
                        slice=name,
                    )
                )
    return found
