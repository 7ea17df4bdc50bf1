"""The random draw against a sort in plain Python: exact sizes, repeats, shards, seeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.contracts.identity import stable_hash64
from winnow.filters.rules import RandomRows
from winnow.pipeline.draw import RandomDraw

Shards = list[list[tuple[bytes, bool]]]


def uid(number: int) -> bytes:
    return number.to_bytes(16, "big")


def drawn(rule: RandomRows, shards: Shards, scratch: Path) -> list[list[bool]]:
    """What is kept of every shard, survivors or not."""
    draw = RandomDraw(rule, scratch)
    tables = [pa.table({"uid": pa.array([u for u, _ in s], pa.binary(16))}) for s in shards]
    for number, (table, shard) in reversed([*enumerate(zip(tables, shards, strict=True))]):
        draw.accumulate(number, table, np.array([alive for _, alive in shard], bool))
    draw.finish()
    return [draw.kept(number, table).tolist() for number, table in enumerate(tables)]


SHARDS = st.lists(st.lists(st.tuples(st.integers(0, 12).map(uid), st.booleans())), max_size=5)


@given(SHARDS, st.integers(1, 12), st.integers(0, 2))
@settings(max_examples=80, deadline=None)
def test_exactly_as_many_as_were_asked_for_repeats_included(
    tmp_path_factory: pytest.TempPathFactory, shards: Shards, count: int, seed: int
) -> None:
    rule = RandomRows(count=count, fraction=None, seed=seed)
    kept = drawn(rule, shards, tmp_path_factory.mktemp("d"))
    living = sorted(
        (stable_hash64("random_rows", seed, u), number, row)
        for number, shard in enumerate(shards)
        for row, (u, alive) in enumerate(shard)
        if alive
    )
    found = {
        (number, row)
        for number, shard in enumerate(shards)
        for row, (_, alive) in enumerate(shard)
        if alive and kept[number][row]
    }
    assert found == {(number, row) for _, number, row in living[:count]}
    assert len(found) == min(count, len(living))


def pool(num_rows: int) -> Shards:
    return [[(uid(i), True) for i in range(a, a + 100)] for a in range(0, num_rows, 100)]


def members(rule: RandomRows, scratch: Path, num_rows: int = 2000) -> set[int]:
    kept = drawn(rule, pool(num_rows), scratch)
    return {i for i, k in enumerate(sum(kept, [])) if k}


def test_seeds_are_fresh_and_larger_counts_are_supersets(tmp_path: Path) -> None:
    hundred = members(RandomRows(count=100, fraction=None, seed=0), tmp_path)
    assert len(hundred) == 100
    assert hundred < members(RandomRows(count=500, fraction=None, seed=0), tmp_path)
    assert hundred == members(RandomRows(count=None, fraction=0.05, seed=0), tmp_path)
    other = members(RandomRows(count=100, fraction=None, seed=1), tmp_path)
    # Two independent draws of 100 of 2,000 share 5 rows on average (standard deviation 2.1).
    assert len(hundred & other) <= 15
    counts = np.zeros(20)
    for seed in range(40):
        chosen = members(RandomRows(count=100, fraction=None, seed=seed), tmp_path, 200)
        counts += np.bincount([i // 10 for i in chosen], minlength=20)
    # Every tenth of the source gets its share: 200 on average, standard deviation 10.
    assert counts.sum() == 4000
    assert np.abs(counts - 200).max() < 50


def test_nothing_and_everything(tmp_path: Path) -> None:
    assert members(RandomRows(count=None, fraction=0.0, seed=0), tmp_path) == set()
    assert len(members(RandomRows(count=None, fraction=1.0, seed=0), tmp_path)) == 2000
    assert len(members(RandomRows(count=9999, fraction=None, seed=0), tmp_path)) == 2000
    assert drawn(RandomRows(count=3, fraction=None, seed=0), [], tmp_path) == []
