"""The priority cover against its definition, on random graphs, preferences, groups and shards."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.filters.rules import PriorityCover
from winnow.pipeline.cover import PriorityCoverState

UIDS = pa.list_(pa.binary(16))


@dataclass
class Row:
    uid: bytes
    neighbors: list[bytes] | None
    prefer: tuple[Any, ...] = ()
    alive: bool = True
    group: bytes | None = None


def uid(number: int) -> bytes:
    return number.to_bytes(16, "big")


def rule(*ways: str, groups: bool = False) -> PriorityCover:
    prefer: Any = tuple((f"c{i}", way) for i, way in enumerate(ways))
    column = "near_duplicate_group" if groups else None
    return PriorityCover(neighbors="near_duplicates", prefer=prefer, groups=column)


def table_of(rows: list[Row], num_columns: int, *, groups: bool) -> pa.Table:
    columns = {
        "uid": pa.array([r.uid for r in rows], pa.binary(16)),
        "near_duplicates": pa.array([r.neighbors for r in rows], UIDS),
    }
    if groups:
        columns["near_duplicate_group"] = pa.array([r.group for r in rows], pa.binary(16))
    for i in range(num_columns):
        columns[f"c{i}"] = pa.array([r.prefer[i] for r in rows], pa.float32())
    return pa.table(columns)


def run(
    shards: list[list[Row]], *ways: str, scratch: Path, order: list[int] | None = None
) -> dict[int, bytes]:
    """Return {row in source order: duplicate_of} of the code under test."""
    groups = any(r.group for s in shards for r in s)
    state = PriorityCoverState(rule(*ways, groups=groups), scratch)
    for number in order or range(len(shards)):
        rows = shards[number]
        alive = np.array([r.alive for r in rows], bool)
        state.accumulate(number, table_of(rows, len(ways), groups=groups), alive)
    firsts = list(itertools.accumulate((len(s) for s in shards), initial=0))
    return {
        firsts[number] + row: original
        for number in range(len(shards))
        for row, original in zip(*map(list, state.result(number)), strict=True)
    }


def key(row: Row, ways: tuple[str, ...]) -> tuple[Any, ...]:
    """Order of preference: nulls and NaN last, then the uid."""
    parts: list[Any] = []
    for value, way in zip(row.prefer, ways, strict=True):
        missing = value is None or math.isnan(value)
        parts += [missing, 0 if missing else -value if way == "largest" else value]
    return (*parts, row.uid)


def naive(rows: list[Row], *ways: str) -> dict[int, bytes]:
    """The definition, row against row."""
    first: dict[bytes, int] = {}
    for number, row in enumerate(rows):
        if row.alive:
            first.setdefault(row.uid, number)

    def names(a: Row, b: Row) -> bool:
        return b.uid in (a.neighbors or []) or (b.group or b.uid) in (a.neighbors or [])

    def near(a: Row, b: Row) -> bool:
        return names(a, b) or names(b, a) or (a.group is not None and a.group == b.group)

    kept: list[Row] = []
    dropped: dict[int, bytes] = {}
    for number in sorted(first.values(), key=lambda n: key(rows[n], ways)):
        original = next((k for k in kept if near(k, rows[number])), None)
        if original is None:
            kept.append(rows[number])
        else:
            dropped[number] = original.uid
    for number, row in enumerate(rows):
        if row.alive and number != first[row.uid]:
            dropped[number] = dropped.get(first[row.uid], row.uid)
    return dropped


VALUES = st.sampled_from([None, float("nan"), 0.0, 1.0, 2.0, 3.0])


@st.composite
def pools(draw: st.DrawFn, *, grouped: bool) -> tuple[list[Row], tuple[str, ...]]:
    """Rows over few uids: random lists, or lists between groups as near_duplicates writes them."""
    num = draw(st.integers(1, 12))
    ways = tuple(draw(st.lists(st.sampled_from(["largest", "smallest"]), max_size=2)))
    group_of = [draw(st.integers(0, i)) if grouped else i for i in range(num)]
    least = [group_of.index(g) for g in group_of]
    pairs = draw(st.sets(st.tuples(st.integers(0, num - 1), st.integers(0, num - 1)), max_size=20))
    near = {(least[a], least[b]) for a, b in pairs if least[a] != least[b]}
    if grouped:
        near |= {(b, a) for a, b in near}
    by_uid = []
    for i in range(num):
        names = {b for a, b in near if a == least[i]}
        alone = least.count(least[i]) == 1
        names |= {least[i]} if least[i] != i else {j for j in range(num) if least[j] == i} - {i}
        lists = None if not names and draw(st.booleans()) else [uid(n) for n in sorted(names)]
        by_uid.append((lists, None if alone else uid(least[i])))
    numbers = [*range(num), *draw(st.lists(st.integers(0, num - 1), max_size=3))]
    rows = []
    for n in draw(st.permutations(numbers)):
        prefer = tuple(draw(VALUES) for _ in ways)
        lists, group = by_uid[n]
        rows.append(Row(uid(n), lists, prefer, draw(st.integers(0, 3)) > 0, group))
    return rows, ways


def cut(rows: list[Row], seed: int) -> tuple[list[list[Row]], list[int]]:
    """Cut rows into shards (empty ones too) and choose an order to add them in."""
    chance = random.Random(seed)
    bounds = sorted(chance.choices(range(len(rows) + 1), k=chance.randint(0, 3)))
    shards = [rows[a:b] for a, b in itertools.pairwise([0, *bounds, len(rows)])]
    return shards, chance.sample(range(len(shards)), len(shards))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cover")


@pytest.mark.parametrize("grouped", [False, True])
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_equals_the_definition_for_any_sharding(
    data: st.DataObject, grouped: bool, scratch: Path
) -> None:
    rows, ways = data.draw(pools(grouped=grouped))
    expected = naive(rows, *ways)
    shards, order = cut(rows, data.draw(st.integers(0, 1000)))
    assert run(shards, *ways, scratch=scratch, order=order) == expected


def test_no_chains(tmp_path: Path) -> None:
    """a - b - c: the best row drops b, and b, being dropped, does not drop c."""
    rows = [
        Row(uid(1), [uid(2)], (3.0,)),
        Row(uid(2), [uid(1), uid(3)], (2.0,)),
        Row(uid(3), [uid(2)], (1.0,)),
    ]
    assert run([rows], "largest", scratch=tmp_path) == {1: uid(1)}
    assert run([rows], "smallest", scratch=tmp_path) == {1: uid(3)}


def test_a_group_holds_together_when_its_least_row_does_not_survive(tmp_path: Path) -> None:
    rows = [
        Row(uid(1), [uid(2), uid(3)], (9.0,), alive=False, group=uid(1)),
        Row(uid(2), [uid(1)], (1.0,), group=uid(1)),
        Row(uid(3), [uid(1)], (2.0,), group=uid(1)),
    ]
    assert run([rows], "largest", scratch=tmp_path) == {1: uid(3)}


def test_nothing_to_drop(tmp_path: Path) -> None:
    assert run([], scratch=tmp_path) == {}
    assert run([[]], "largest", scratch=tmp_path) == {}
    assert run([[Row(uid(1), None), Row(uid(2), [])]], scratch=tmp_path) == {}
    state = PriorityCoverState(rule(), tmp_path)
    rows, originals = state.result(0)
    assert rows.tolist() == []
    assert originals == []


def test_a_long_chain_and_a_large_group(tmp_path: Path) -> None:
    """A path whose preferences run along it keeps every second row; a group keeps one."""
    num = 20_000
    path = [
        Row(uid(i), [uid(j) for j in (i - 1, i + 1) if 0 <= j < num], (float(i),))
        for i in range(num)
    ]
    group = [Row(uid(num + i), [uid(num)], (0.0,), group=uid(num)) for i in range(num)]
    found = run([path, group], "smallest", scratch=tmp_path)
    assert found == {
        **{i: uid(i - 1) for i in range(1, num, 2)},
        **{num + i: uid(num) for i in range(1, num)},
    }
