"""Results per slice: the same items, averaged over the samples that share a value of a column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from winnow.contracts.trial import Score
from winnow.stages.evaluate._rows import column_values, shown

MIN_WORST_ITEMS = 20
"""A slice of fewer items is not a candidate for the worst one: it would win by chance."""


def slice_keys(
    who: str, table: pa.Table, columns: Sequence[str], max_slices: int
) -> dict[str, frozenset[str]]:
    """Return "column=value" -> keys of its samples, for the ``max_slices`` largest of each column.

    Null is in no slice; a sample whose value is a list is in the slice of each of its values.
    """
    keys = table["key"].to_pylist()
    found: dict[str, frozenset[str]] = {}
    for column in columns:
        members: dict[str, list[str]] = {}
        for key, value in zip(keys, column_values(who, table, column), strict=True):
            parts = value if isinstance(value, list) else [value]
            for part in {shown(p) for p in parts if p is not None}:
                members.setdefault(part, []).append(key)
        largest = sorted(members, key=lambda v: (-len(members[v]), v))[:max_slices]
        found |= {f"{column}={value}": frozenset(members[value]) for value in largest}
    return found


def slice_scores(scores: Sequence[Score], slices: Mapping[str, frozenset[str]]) -> list[Score]:
    """Return each score of items again per slice; slices without an item are left out."""
    found = []
    for score in scores:
        if score.items is None:
            continue
        for name, members in slices.items():
            inside = np.fromiter((key in members for key in score.keys), bool, len(score.keys))
            if inside.any():
                found.append(
                    Score(
                        metric=score.metric,
                        value=float(score.items[inside].mean()),
                        num_items=int(inside.sum()),
                        higher_is_better=score.higher_is_better,
                        slice=name,
                    )
                )
    return found


def worst_slice(who: str, headline: str, scores: Sequence[Score]) -> list[Score]:
    """Return the headline's least value over its slices (worst-group accuracy, Sagawa et al. 2020).

    One score, ``<who>.worst_slice``; none where no slice has ``MIN_WORST_ITEMS`` items.
    """
    candidates = [
        (s.value, s.num_items)
        for s in scores
        if s.metric == headline and s.slice and s.value is not None
    ]
    large = [c for c in candidates if c[1] >= MIN_WORST_ITEMS]
    if not large:
        return []
    value, num_items = min(large)
    return [Score(metric=f"{who}.worst_slice", value=value, num_items=num_items)]
