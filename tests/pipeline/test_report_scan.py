"""Counts of a category's values, against a loop over rows."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.pipeline import report_scan
from winnow.pipeline.report_scan import ValueCounts

VALUES = st.one_of(st.none(), st.sampled_from(["", "a", "b", "c", "d", "e", "f", "g"]))


@given(
    shards=st.lists(st.lists(st.tuples(VALUES, st.integers(0, 2)), max_size=12), max_size=5),
    limit=st.integers(2, 12),
)
@settings(max_examples=40, deadline=None)
def test_counts_are_those_of_a_loop_until_there_are_too_many_values(
    shards: list[list[tuple[str | None, int]]], limit: int
) -> None:
    """What is asked for, and null, is exact even then; nothing is ever counted too often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_scan, "MAX_VALUES", limit)
        counts = ValueCounts(asked=frozenset({"c"}))
        for rows in shards:
            column = pa.chunked_array([pa.array([v for v, _ in rows], pa.string())])
            counts.add(column, np.array([fate for _, fate in rows], np.int64))
    expected = Counter(row for rows in shards for row in rows)
    exact = {v: [expected[v, fate] for fate in range(3)] for v in {v for v, _ in expected}}
    if len(exact) <= limit:
        assert counts.counts == exact
        assert not counts.forgot
        return
    assert len(counts.counts) <= limit + 2
    assert counts.forgot
    for value, found in counts.counts.items():
        assert all(np.array(found) <= exact[value])
    for value in {"c", None} & set(exact):
        assert counts.counts[value] == exact[value]
