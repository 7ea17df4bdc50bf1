"""Random and balanced draws against a sort in plain Python: sizes, repeats, shards, seeds."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.contracts.errors import ShardError
from winnow.contracts.identity import stable_hash64
from winnow.filters.balanced_rows import balanced_rows
from winnow.filters.rules import BalancedRows, RandomRows
from winnow.pipeline import draw as draw_module
from winnow.pipeline.draw import BalancedDraw, RandomDraw, groups_of

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


Groups = list[list[tuple[bytes, str | None, bool]]]
PRESENT = {"image": "size is not None", "odd": "size in (1, 3)"}


def naive_sizes(parameters: dict[str, Any], counts: Counter[str]) -> dict[str, int]:
    """How many rows of each group there should be, word by word as the filter says it."""
    cap, weights, total = (parameters.get(name) for name in ("cap", "weights", "total"))
    if isinstance(cap, int):
        return {g: min(cap, n) for g, n in counts.items()}
    if cap is not None:
        return {g: min(cap.get(g, cap.get("*", n)), n) for g, n in counts.items()}
    assert weights is not None
    weight = {g: Fraction(weights.get(g, weights.get("*", 0))) for g in counts}
    if total is None:
        # The largest number of units such that no group has to give more rows than it has.
        units = [Fraction(n) / weight[g] for g, n in counts.items() if weight[g]]
        return {g: int(weight[g] * min(units)) if weight[g] else 0 for g in counts}
    whole = sum(weight.values())
    if not whole:
        return dict.fromkeys(counts, 0)
    parts = {g: total * w / whole for g, w in weight.items()}
    sizes = {g: int(part) for g, part in parts.items()}
    for _ in range(total - sum(sizes.values())):
        most = min(parts, key=lambda g: (sizes[g] - parts[g], g))
        sizes[most] += 1
        parts[most] = Fraction(sizes[most])
    return {g: min(size, counts[g]) for g, size in sizes.items()}


def balanced(
    rule: BalancedRows, shards: Groups, scratch: Path
) -> tuple[list[list[bool]], BalancedDraw]:
    tables = [
        pa.table(
            {
                "uid": pa.array([u for u, _, _ in shard], pa.binary(16)),
                "word": pa.array([w for _, w, _ in shard], pa.string()),
                "size": pa.array([len(w) if w else None for _, w, _ in shard], pa.int32()),
            }
        )
        for shard in shards
    ]
    made = BalancedDraw(rule, scratch)
    for number, (table, shard) in reversed([*enumerate(zip(tables, shards, strict=True))]):
        made.accumulate(number, table, np.array([alive for _, _, alive in shard], bool))
    made.finish()
    return [made.kept(number, table).tolist() for number, table in enumerate(tables)], made


WORDS = st.sampled_from([None, "a", "bb", "a/b"])
GROUPS = st.lists(
    st.lists(st.tuples(st.integers(0, 12).map(uid), WORDS, st.booleans())), max_size=4
)
PARAMETERS: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.fixed_dictionaries({"cap": st.integers(1, 6)}),
    st.fixed_dictionaries(
        {"cap": st.dictionaries(st.sampled_from(["a", "null", "*"]), st.integers(0, 4), min_size=1)}
    ),
    st.fixed_dictionaries(
        {
            "weights": st.dictionaries(
                st.sampled_from(["a", "bb", "a/b", "*"]),
                st.sampled_from([0.1, 0.5, 1, 3.25]),
                min_size=1,
            ),
            "total": st.none() | st.integers(1, 20),
        }
    ),
)


@given(GROUPS, PARAMETERS, st.integers(0, 1))
@settings(max_examples=40, deadline=None)
def test_a_balance_is_that_of_a_plain_loop_however_rows_are_cut(
    tmp_path_factory: pytest.TempPathFactory, shards: Groups, parameters: dict[str, Any], seed: int
) -> None:
    rule = balanced_rows(by=("word",), seed=seed, **parameters)
    kept, _ = balanced(rule, shards, tmp_path_factory.mktemp("b"))
    living: dict[str, list[tuple[int, int, int]]] = {}
    for number, shard in enumerate(shards):
        for row, (u, word, alive) in enumerate(shard):
            if alive:
                place = (stable_hash64("balanced_rows", seed, u), number, row)
                living.setdefault(word or "null", []).append(place)
    sizes = naive_sizes(parameters, Counter({g: len(rows) for g, rows in living.items()}))
    expected = {place[1:] for g, rows in living.items() for place in sorted(rows)[: sizes[g]]}
    assert {
        (number, row)
        for number, shard in enumerate(shards)
        for row, (_, _, alive) in enumerate(shard)
        if alive and kept[number][row]
    } == expected


def test_groups_are_columns_and_which_conditions_are_true() -> None:
    table = pa.table(
        {
            "language": pa.array(["en", None, "a/b", "en"]).dictionary_encode(),
            "size": pa.array([1, None, 2, 3], pa.int32()),
        }
    )
    both = balanced_rows(by=("language",), present=PRESENT, cap=1)
    assert groups_of(both, table).to_pylist() == [
        "en/image+odd", "null/none", "a\\/b/image", "en/image+odd"
    ]  # fmt: skip
    alone = balanced_rows(present=PRESENT, cap=1)
    assert groups_of(alone, table).to_pylist() == ["image+odd", "none", "image", "image+odd"]
    assert groups_of(both, table.slice(0, 0)).to_pylist() == []
    assert both.columns() == {"language", "size"}


def test_the_ledger_is_told_group_and_size(tmp_path: Path) -> None:
    shards: Groups = [[(uid(i), "en" if i % 4 else "de", True) for i in range(100)]]
    rule = balanced_rows(by=("word",), weights={"en": 2, "de": 1})
    kept, made = balanced(rule, shards, tmp_path)
    assert sum(kept[0]) == 75
    assert made.threshold() == (
        "en 50 of 75, de 25 of 25 (rows of each word by weight (de 1, en 2), "
        "as the scarcest allows, seed 0)"
    )
    dropped = next(row for row, is_kept in enumerate(kept[0]) if not is_kept)
    table = pa.table({"uid": pa.array([uid(dropped)], pa.binary(16)), "word": ["en"]})
    (reason,) = made.reasons(table)
    share = json.loads(reason).pop("draw")
    assert json.loads(reason) == {"group": "en", "kept": 50, "of": 75, "draw": share}
    assert share == round(stable_hash64("balanced_rows", 0, uid(dropped)) / 2**64, 9)


def test_groups_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_module, "MAX_GROUPS", 2)
    shards: Groups = [[(uid(i), "x" * i, True) for i in range(1, 4)]]
    with pytest.raises(ShardError, match="more than 2 groups") as caught:
        balanced(balanced_rows(by=("word",), cap=1), shards, tmp_path)
    assert not caught.value.retryable
