"""split against a breadth-first search in plain Python, and its promises as properties."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from winnow.contracts.errors import RecipeError
from winnow.contracts.identity import stable_hash64, stable_hashes64
from winnow.contracts.parameters import validate
from winnow.contracts.registry import GLOBAL_STAGES
from winnow.stages.dedupe._components import links, value_keys
from winnow.stages.dedupe.split import Split, parse_column, part_bounds

Row = dict[str, Any]
TYPES = {
    "uid": pa.binary(16),
    "artist": pa.string(),
    "year": pa.int32(),
    "digest": pa.binary(4),
    "tags": pa.list_(pa.string()),
    "near_duplicates": pa.list_(pa.binary(16)),
    "own": pa.string(),
}
SCHEMA = pa.schema(TYPES)
GROUP_BY = ("artist", "year int32", "digest binary(4)", "tags list<string>")
FOLDS = {str(k): 0.2 for k in range(5)}


def uid(number: int) -> bytes:
    return (number * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "big") + number.to_bytes(8, "big")


def row(number: int, **values: Any) -> Row:
    return {**dict.fromkeys(TYPES), "uid": uid(number), **values}


def tables(rows: Sequence[Row], cuts: Iterable[int] = ()) -> list[pa.Table]:
    bounds = [0, *sorted(min(c, len(rows)) for c in cuts), len(rows)]
    return [
        pa.Table.from_pylist(list(rows[a:b]), schema=SCHEMA)
        for a, b in zip(bounds, bounds[1:], strict=False)
    ]


def naive_components(rows: Sequence[Row], columns: Iterable[str]) -> list[set[int]]:
    """networkx's components of the graph of rows and values."""
    graph = networkx.Graph()
    for i, r in enumerate(rows):
        graph.add_edge(i, ("uid", r["uid"]))
        for name in columns:
            value = r[name]
            for item in value if isinstance(value, list) else [value]:
                if item is not None:
                    graph.add_edge(i, ("uid" if name == "near_duplicates" else name, item))
    found = networkx.connected_components(graph)
    return [{n for n in part if isinstance(n, int)} for part in found]


def naive_part(stage: Split, group: bytes) -> str:
    """Lay the shares on [0, 1) in order of name and look where the hash falls."""
    at = stable_hash64("split", stage.column, stage.seed, group) / 2**64
    assert stage.parts is not None
    for name in sorted(stage.parts):
        at -= stage.parts[name]
        if at < 0:
            return name
    return max(stage.parts)


def naive(stage: Split, rows: Sequence[Row], columns: Iterable[str]) -> list[tuple[Any, bytes]]:
    found: list[tuple[Any, bytes]] = [(None, b"")] * len(rows)
    for members in naive_components(rows, columns):
        group = min(rows[i]["uid"] for i in members)
        given_here = stage.given and any(rows[i][stage.given] is not None for i in members)
        for i in members:
            part = rows[i]["own"] if given_here else naive_part(stage, group)
            found[i] = (part, group)
    return found


def result(found: list[pa.Table], column: str = "split") -> list[tuple[Any, bytes]]:
    pairs: list[tuple[Any, bytes]] = []
    for table in found:
        groups = table[f"{column}_group"].to_pylist()
        pairs += list(zip(table[column].to_pylist(), groups, strict=True))
    return pairs


ROWS = st.lists(
    st.builds(
        row,
        st.integers(0, 40),
        artist=st.none() | st.sampled_from(["", "a", "b", "c", "d", "\u00e9", "e\u0301"]),
        year=st.none() | st.integers(-3, 30),
        digest=st.none() | st.integers(0, 30).map(lambda v: v.to_bytes(4, "big")),
        tags=st.none() | st.lists(st.none() | st.sampled_from("abcdefghijklmnop"), max_size=2),
        near_duplicates=st.none() | st.lists(st.integers(0, 60).map(uid), max_size=1),
        own=st.sampled_from([None, None, None, None, "test", "bench"]),
    ),
    max_size=24,
)


@given(
    ROWS,
    st.lists(st.integers(0, 24), max_size=3),
    st.sets(st.sampled_from(GROUP_BY)),
    st.booleans(),
    st.booleans(),
    st.integers(0, 3),
)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_it_is_the_plain_definition_however_rows_are_cut(
    run_global: Any,
    rows: list[Row],
    cuts: list[int],
    group_by: set[str],
    near: bool,
    own: bool,
    seed: int,
) -> None:
    stage = Split(
        parts={"train": 0.5, "test": 0.3, "z": 0.2},
        group_by=tuple(sorted(group_by)),
        near_duplicates=near,
        given="own" if own else None,
        seed=seed,
    )
    found, counters = run_global(stage, tables(rows, cuts))
    columns = [item.split()[0] for item in group_by] + ["near_duplicates"] * near
    expected = naive(stage, rows, columns)
    assert result(found) == expected
    sizes = Counter(group for _, group in expected)
    assert counters["components"] == len(sizes)
    assert counters["rows_in_largest_component"] == max(sizes.values(), default=0)
    parts = Counter(part for part, _ in expected)
    assert counters["rows_in_no_part"] == parts[None]
    for name in ("train", "test", "z"):
        assert counters[f"rows_in_{name}"] == parts[name]
    if own:
        given_parts = defaultdict(set)
        for r, (_, group) in zip(rows, expected, strict=True):
            given_parts[group].add(r["own"])
        two = sum(len(values - {None}) > 1 for values in given_parts.values())
        assert counters["components_with_two_given_parts"] == two


def pool(num_rows: int, seed: int = 0) -> list[Row]:
    draw = random.Random(seed)
    return [row(i, artist=f"artist {draw.randrange(num_rows // 3)}") for i in range(num_rows)]


def by_uid(rows: Sequence[Row], found: list[pa.Table]) -> dict[bytes, Any]:
    return {r["uid"]: pair for r, pair in zip(rows, result(found), strict=True)}


def test_order_and_shards_change_nothing(run_global: Any) -> None:
    stage = Split(group_by=("artist",), near_duplicates=False)
    rows = pool(500)
    expected = by_uid(rows, run_global(stage, tables(rows))[0])
    for seed in range(3):
        mixed = random.Random(seed).sample(rows, len(rows))
        found = run_global(stage, tables(mixed, [7, 8, 8, 300]))[0]
        assert by_uid(mixed, found) == expected


def test_a_component_does_not_depend_on_others(run_global: Any) -> None:
    stage = Split(parts=FOLDS, group_by=("artist",), near_duplicates=False)
    rows = pool(600)
    expected = by_uid(rows, run_global(stage, tables(rows))[0])
    some = [r for r in rows if int(r["artist"].split()[1]) % 2]
    assert 0 < len(some) < len(rows)
    for uid_, pair in by_uid(some, run_global(stage, tables(some))[0]).items():
        assert pair == expected[uid_]


def test_shares_are_right_and_seeds_and_columns_draw_anew(run_global: Any) -> None:
    rows = [row(i) for i in range(20_000)]
    shard = tables(rows)
    found, counters = run_global(Split(near_duplicates=False), shard)
    for name, share in {"train": 0.8, "validation": 0.1, "test": 0.1}.items():
        # Five standard deviations of a binomial.
        spread = 5 * (20_000 * share * (1 - share)) ** 0.5
        assert abs(counters[f"rows_in_{name}"] - 20_000 * share) < spread
    assert counters["components"] == 20_000
    assert "warning" not in counters
    split = [part for part, _ in result(found)]
    seeded = [p for p, _ in result(run_global(Split(near_duplicates=False, seed=1), shard)[0])]
    folds = Split(parts=FOLDS, near_duplicates=False, column="fold")
    fold = [p for p, _ in result(run_global(folds, shard)[0], "fold")]
    for other in (seeded, fold):
        # Independent draws: the test part is spread over the other draw as all rows are.
        table = Counter(o for s, o in zip(split, other, strict=True) if s == "test")
        whole = Counter(other)
        for name, count in whole.items():
            share = count / 20_000
            spread = 5 * (split.count("test") * share * (1 - share)) ** 0.5
            assert abs(table[name] - split.count("test") * share) < spread


def test_the_order_of_parts_does_not_count(run_global: Any) -> None:
    shard = tables(pool(300))
    one = Split(parts={"b": 0.3, "a": 0.7}, near_duplicates=False)
    two = Split(parts={"a": 0.7, "b": 0.3}, near_duplicates=False)
    assert result(run_global(one, shard)[0]) == result(run_global(two, shard)[0])


def test_given_rows_keep_their_part_and_their_company_has_none(run_global: Any) -> None:
    rows = [
        row(1, artist="a", own="bench"),
        row(2, artist="a"),
        row(3, artist="b"),
        row(4, artist="c", own="bench"),
        row(5, artist="c", own="train"),
    ]
    stage = Split(parts={"train": 1.0}, group_by=("artist",), near_duplicates=False, given="own")
    found, counters = run_global(stage, tables(rows, [2]))
    assert [part for part, _ in result(found)] == ["bench", None, "train", "bench", "train"]
    assert counters["components_with_two_given_parts"] == 1
    assert (counters["rows_in_bench"], counters["rows_in_train"]) == (2, 2)
    assert counters["rows_in_no_part"] == 1


def test_a_large_component_is_told(run_global: Any, caplog: pytest.LogCaptureFixture) -> None:
    rows = [row(i, artist="x" if i < 3 else f"{i}") for i in range(20)]
    stage = Split(group_by=("artist",), near_duplicates=False)
    _, counters = run_global(stage, tables(rows))
    assert counters["warning"].startswith("one component holds 15% of the rows")
    assert "artist joins too much" in caplog.text
    _, counters = run_global(stage, tables([row(1)]))
    assert "warning" not in counters


def test_links_of_equal_keys_are_a_forest() -> None:
    rng = np.random.default_rng(0)
    rows, keys = np.arange(1000), rng.integers(0, 50, (1000, 2)).astype(np.uint64)
    left, right = links(rows, keys)
    assert len(left) == 1000 - len({tuple(k) for k in keys.tolist()})
    assert (keys[left] == keys[right]).all()


def test_keys_of_extreme_integers_and_chunks() -> None:
    big = pa.chunked_array([pa.array([2**64 - 1, None, 0], pa.uint64()), pa.array([5], "uint64")])
    rows, keys = value_keys(big)
    assert rows.tolist() == [0, 2, 3]
    assert len({tuple(k) for k in keys.tolist()}) == 3
    rows, keys = value_keys(pa.chunked_array([pa.array([-1, -(2**63), -1])]))
    assert (keys[0] == keys[2]).all() and not (keys[0] == keys[1]).all()
    rows, keys = value_keys(pa.chunked_array([pa.array([["a"], None, ["b", None, "a"]])[1:]]))
    assert rows.tolist() == [1, 1]


@pytest.mark.parametrize("kind", ["string", "large_string", "binary", pa.binary(3)])
def test_keys_of_texts_and_bytes(kind: Any) -> None:
    column = pa.chunked_array([pa.array(["abc", None, "abd"], kind), pa.array(["abc"], kind)])
    rows, keys = value_keys(column)
    assert rows.tolist() == [0, 2, 3]
    assert (keys[0] == keys[2]).all()
    assert len({tuple(k) for k in keys.tolist()}) == 2
    rows, keys = value_keys(column.slice(1, 1))
    assert (len(rows), keys.shape) == (0, (0, 2))


def test_many_hashes_are_the_hashes_of_each() -> None:
    values = [uid(i) for i in range(50)] + [b"", b"x" * 300]
    expected = [stable_hash64("split", 3, None, value) for value in values]
    assert stable_hashes64(("split", 3, None), values).tolist() == expected
    assert stable_hashes64((), []).tolist() == []


@pytest.mark.parametrize(
    ("item", "name", "kind"),
    [
        ("artist", "artist", pa.string()),
        ("year int32", "year", pa.int32()),
        ("two words", "two words", pa.string()),
        ("two words string", "two words", pa.string()),
        ("d binary(16)", "d", pa.binary(16)),
        ("n uint64", "n", pa.uint64()),
        ("a large_string", "a", pa.large_string()),
        ("tags list<string>", "tags", pa.list_(pa.string())),
        ("near list<binary(16)>", "near", pa.list_(pa.binary(16))),
        ("string", "string", pa.string()),
    ],
)
def test_items_of_group_by(item: str, name: str, kind: pa.DataType) -> None:
    assert parse_column(item) == (name, kind)


def test_bounds() -> None:
    names, bounds = part_bounds({"b": 0.25, "a": 0.5, "c": 0.25})
    assert names == ("a", "b", "c")
    assert bounds.tolist() == [2**63, 2**63 + 2**62]
    assert part_bounds({"all": 1.0})[1].tolist() == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"parts": {"a": 0.5, "b": 0.4}}, r"shares that add up to 1 \(their sum is 0.9\)"),
        ({"parts": {}}, "shares that add up to 1"),
        ({"parts": {"a": 1.0, "b": 0.0}}, "a share above 0"),
        ({"parts": {"": 1.0}}, "a name and a share"),
        ({"group_by": ["a", "a int32"]}, "each once"),
        ({"group_by": ["uid"]}, "not uid"),
        ({"given": ""}, "leave it out"),
        ({"column": "artist", "group_by": ["artist"]}, "a new name, such as split"),
        ({"given": "x_group", "column": "x"}, "a new name"),
    ],
)
def test_bad_parameters(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Split(**validate(Split, values))


RECIPE = """
name: frozen
rows_per_shard: 3
source: {{use: url_table, path: {path}}}
stages:
  split: {{group_by: [artist], near_duplicates: false, parts: {{train: 0.6, test: 0.4}}}}
  fold: {{use: split, group_by: [artist], near_duplicates: false, column: fold,
         parts: {{"0": 0.5, "1": 0.5}}}}
filters:
  train: {{use: split_is, parts: [train], on_null: drop}}
"""


def test_a_recipe_splits_its_pool(run: Any, tmp_path: Path) -> None:
    rows = [{"url": f"http://a/{i}.jpg", "text": f"c {i}", "artist": f"{i % 7}"} for i in range(40)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    report = run(RECIPE.format(path=tmp_path / "in.parquet"))

    def column(folder: str, name: str) -> list[Any]:
        files = (tmp_path / "ws").glob(f"{folder}/*.parquet")
        tables = [pq.read_table(f, columns=["uid", name]).to_pylist() for f in files]
        return [r[name] for r in sorted(sum(tables, []), key=lambda r: r["uid"].bytes)]

    artist = column("rows", "artist")
    both = [
        column(folder.relative_to(tmp_path / "ws").as_posix(), name)
        for name in ("split", "fold")
        for folder in (tmp_path / "ws" / "columns").glob("split-*")
        if name in pq.read_schema(next(folder.glob("*.parquet"))).names
    ]
    split, fold = both
    outcome = column("ledger/*", "outcome")
    assert [o == "kept" for o in outcome] == [s == "train" for s in split]
    assert report.summary["kept"] == split.count("train") in range(1, 40)
    for parts in both:
        assert len(set(zip(artist, parts, strict=True))) == 7
    assert set(fold) == {"0", "1"}


def test_it_is_registered() -> None:
    assert GLOBAL_STAGES["split"] is Split
    assert Split().reads.names == ["near_duplicates"]
    assert Split(column="fold").writes.names == ["fold", "fold_group"]
