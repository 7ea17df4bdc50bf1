"""Repeated rows against a dictionary, whatever the sharding."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.stages.dedupe._columns import octets, valid_rows
from winnow.stages.dedupe._occurrences import Occurrences
from winnow.stages.dedupe.repeated_rows import RepeatedRows


def uids(numbers: list[int]) -> pa.Table:
    # The same first and last bytes: all 16 must count.
    values = [b"a" * 7 + n.to_bytes(2, "big") + b"z" * 7 for n in numbers]
    return pa.table({"uid": pa.array(values, pa.binary(16))})


@settings(max_examples=40, deadline=None)
@given(shards=st.lists(st.lists(st.integers(0, 12), max_size=12), max_size=5))
def test_equals_a_dictionary(run_global: Any, shards: list[list[int]]) -> None:
    found, counters = run_global(RepeatedRows(), [uids(s) for s in shards])
    everything = [n for s in shards for n in s]
    count = Counter(everything)
    rows = [line for t in found for line in t.to_pylist()]
    assert [r["num_occurrences"] for r in rows] == [count[n] for n in everything]
    assert [r["repeated_row"] for r in rows] == [
        n in everything[:i] for i, n in enumerate(everything)
    ]
    assert counters["repeated_rows"] == len(everything) - len(count)
    assert counters["uids_that_repeat"] == sum(c > 1 for c in count.values())


@pytest.mark.parametrize("limit", ["40MB", "1GB"])
def test_the_count_spills_instead_of_failing(tmp_path: Any, limit: str) -> None:
    """400,000 keys take 10 MB raw and several times that in the aggregation."""
    occurrences = Occurrences(tmp_path, memory_limit=limit)
    for shard in range(4):
        column = uids([(shard * 7919 + i * 31) % 60_000 for i in range(100_000)])["uid"]
        occurrences.add(octets(column, 16), valid_rows(column))
    expected = Counter(
        (shard * 7919 + i * 31) % 60_000 for shard in range(4) for i in range(100_000)
    )
    assert occurrences.num_repeated() == sum(c > 1 for c in expected.values())
    firsts = 0
    for shard, (num, later) in enumerate(occurrences.results()):
        numbers = [(shard * 7919 + i * 31) % 60_000 for i in range(100_000)]
        assert num.tolist() == [expected[n] for n in numbers]
        firsts += int((~later).sum())
    assert firsts == len(expected)
