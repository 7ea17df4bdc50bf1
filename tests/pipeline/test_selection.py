"""Selection against a row-by-row evaluation in plain Python."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from winnow_shards import put_rows, rows_table, uids, write_jsonl

from winnow.contracts.errors import ShardError
from winnow.contracts.identity import stable_hash64
from winnow.contracts.stage import WorkerOptions
from winnow.filters._parse import parse_expression
from winnow.filters.rules import PriorityCover, RandomRows, TopFraction
from winnow.pipeline.arrow_files import from_file
from winnow.pipeline.columns import SOURCE, ColumnSet
from winnow.pipeline.plan import make_plan
from winnow.pipeline.recipe import FilterEntry, OnNull, parse_recipe
from winnow.pipeline.run import RunReport
from winnow.pipeline.selection import SelectUnit, _Selector, select_unit
from winnow.pipeline.shards import Shard
from winnow.pipeline.storage import Storage
from winnow.pipeline.units import WorkerContext
from winnow.pipeline.work import State

Row = dict[str, Any]
SCHEMA = {
    "score": pa.float32(),
    "count": pa.int32(),
    "word": pa.string(),
    "repeated_row": pa.bool_(),
    "near": pa.list_(pa.binary(16)),
}


def number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def both(left: bool | None, right: bool | None) -> bool | None:
    if left is False or right is False:
        return False
    return None if left is None or right is None else True


def above(row: Row) -> bool | None:
    score = number(row["score"])
    return None if score is None else score >= 0.5


def few(row: Row) -> bool | None:
    return None if row["count"] is None else row["count"] < 3


def is_a(row: Row) -> bool | None:
    return None if row["word"] is None else row["word"] == "a"


PREDICATES: dict[str, tuple[str, Callable[[Row], bool | None]]] = {
    "above": ("score >= 0.5", above),
    "few": ("count < 3", few),
    "is_a": ("word == 'a'", is_a),
    "both": ("score >= 0.5 and count < 3", lambda r: both(above(r), few(r))),
    "there": ("word is not None", lambda r: r["word"] is not None),
    "not": ("not (count < 3)", lambda r: None if few(r) is None else not few(r)),
}


@dataclass(frozen=True)
class Case:
    """A filter: a predicate by name, a rank, or a random subset."""

    name: str
    on_null: OnNull
    fraction: float = 0.0
    over: Any = "unrepeated"

    def entry(self, index: int) -> FilterEntry:
        key = f"{self.name}{index}"
        if self.name == "top":
            rule = TopFraction(column="score", fraction=self.fraction, over=self.over)
            return FilterEntry(key=key, rule=rule, on_null=self.on_null)
        if self.name == "random":
            return FilterEntry(key=key, rule=self.draw(), on_null=self.on_null)
        rule_ = parse_expression(PREDICATES[self.name][0])
        return FilterEntry(key=key, rule=rule_, on_null=self.on_null)

    def draw(self) -> RandomRows:
        """By count or fraction, by what ``over`` happens to be."""
        if self.over == "survivors":
            return RandomRows(count=1 + int(10 * self.fraction), fraction=None, seed=3)
        return RandomRows(count=None, fraction=self.fraction, seed=4)


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "score": st.sampled_from([None, math.nan, -math.inf, -1.0, 0.25, 0.5, 0.9, 1.0]),
            "count": st.none() | st.integers(0, 5),
            "word": st.sampled_from([None, "a", "b", ""]),
            "repeated_row": st.booleans(),
            "near": st.just([]),
        }
    ),
    max_size=14,
)
CASES = st.lists(
    st.builds(
        Case,
        name=st.sampled_from([*PREDICATES, "top", "top", "random", "random"]),
        on_null=st.sampled_from(["keep", "drop"]),
        fraction=st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0]),
        over=st.sampled_from(["unrepeated", "survivors"]),
    ),
    max_size=4,
)


def naive_threshold(case: Case, rows: list[Row], alive: list[bool]) -> float | None:
    """DataComp: sort descending, take the value at int(n * fraction)."""
    if case.over == "survivors":
        pool = [r for r, a in zip(rows, alive, strict=True) if a]
    else:
        pool = [r for r in rows if not r["repeated_row"]]
    scores = sorted((s for r in pool if (s := number(r["score"])) is not None), reverse=True)
    if not scores:
        return None
    return scores[min(int(len(scores) * case.fraction), len(scores) - 1)]


def naive_draw(case: Case, alive: list[bool]) -> list[bool]:
    """Sort the living rows by hash, cut; then every row is before the cut or not."""
    rule = case.draw()
    names = uids(*range(len(alive))).to_pylist()
    order = [(stable_hash64("random_rows", rule.seed, name), i) for i, name in enumerate(names)]
    living = sorted(key for key, lives in zip(order, alive, strict=True) if lives)
    size = rule.count if rule.count is not None else round(len(living) * case.fraction)
    if size >= len(living):
        return [True] * len(alive)
    return [size > 0 and key <= living[size - 1] for key in order]


def naive(rows: list[Row], cases: list[Case]) -> tuple[list[int | None], list[Row]]:
    """Return for every row the index of the filter that dropped it, and the funnel."""
    refused: list[list[bool]] = []
    funnel = []
    for case in cases:
        alive = [not any(r[i] for r in refused) for i in range(len(rows))]
        if case.name == "top":
            least = naive_threshold(case, rows, alive)
            values = [
                None if least is None or number(r["score"]) is None else r["score"] >= least
                for r in rows
            ]
        elif case.name == "random":
            values = naive_draw(case, alive)
        else:
            values = [PREDICATES[case.name][1](r) for r in rows]
        refused.append([(v is None and case.on_null == "drop") or v is False for v in values])
        funnel.append({"null": sum(v is None for v in values)})
    reasons = [next((k for k, r in enumerate(refused) if r[i]), None) for i in range(len(rows))]
    left = len(rows)
    for k, entry in enumerate(funnel):
        entry["dropped"] = reasons.count(k)
        left -= entry["dropped"]
        entry["kept"] = left
        entry["only"] = sum(
            refused[k][i] and sum(r[i] for r in refused) == 1 for i in range(len(rows))
        )
    return reasons, funnel


def select(
    folder: Path, rows: list[Row], filters: list[FilterEntry], cut: int
) -> tuple[dict[str, Any], list[Row], list[Shard]]:
    """Run the unit on rows cut into shards of ``cut``; return summary, ledger and shards."""
    storage = Storage(str(folder))
    shards = []
    for start in range(0, len(rows), cut):
        part = rows[start : start + cut]
        names = range(start, start + len(part))
        columns = {n: pa.array([r[n] for r in part], k) for n, k in SCHEMA.items()}
        shards.append(put_rows(storage, rows_table(uids(*names), columns), start))
    unit = SelectUnit(
        storage=storage,
        selection="s",
        filters=tuple(filters),
        sets=(ColumnSet(writer=SOURCE, folder="rows", schema=pa.schema(SCHEMA)),),
        shards=tuple(shards),
        patches={},
    )
    (folder / "scratch").mkdir(parents=True)
    unit.run(WorkerContext(WorkerOptions(), folder / "scratch"))
    ledger = [
        row
        for shard in shards
        for row in from_file(storage.parquet(f"ledger/s/{shard.id}.parquet").read()).to_pylist()
    ]
    return json.loads(storage.read("ledger/s/_ledger.json")), ledger, shards


@given(ROWS, CASES, st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_the_ledger_is_that_of_a_plain_evaluation_however_rows_are_cut(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], cases: list[Case], cut: int
) -> None:
    rows = [
        r | {"score": None if r["score"] is None else float(np.float32(r["score"]))} for r in rows
    ]
    filters = [case.entry(i) for i, case in enumerate(cases)]
    summary, ledger, shards = select(tmp_path_factory.mktemp("s"), rows, filters, cut)
    reasons, funnel = naive(rows, cases)
    names = [f.key for f in filters]
    assert [r["filter"] for r in ledger] == [None if k is None else names[k] for k in reasons]
    assert [r["outcome"] for r in ledger] == ["kept" if k is None else "dropped" for k in reasons]
    assert [r["uid"] for r in ledger] == uids(*range(len(rows))).to_pylist()
    found = [{k: f[k] for k in ("null", "dropped", "kept", "only")} for f in summary["funnel"]]
    assert found == funnel
    assert summary["rows"] == len(rows) == summary["kept"] + summary["dropped"]
    assert summary["kept"] == reasons.count(None) == sum(summary["kept_per_shard"])
    assert summary["shards"] == [s.id for s in shards]


def row(score: float | None = None, **more: Any) -> Row:
    return {"score": score, "count": 0, "word": "a", "repeated_row": False, "near": []} | more


def test_a_dropped_row_says_on_which_value_against_which_threshold(tmp_path: Path) -> None:
    rows = [row(0.25), row(1.0, count=7), row(None), row(0.75)]
    filters = [
        FilterEntry(key="f", rule=parse_expression("score > 0.1 and count < 3"), on_null="drop"),
        FilterEntry(key="top", rule=TopFraction(column="score", fraction=0.4), on_null="drop"),
    ]
    _, ledger, _ = select(tmp_path, rows, filters, 2)
    assert [r["filter"] for r in ledger] == ["top", "f", "f", None]
    assert [json.loads(r["value"]) if r["value"] else None for r in ledger] == [
        {"score": 0.25},
        {"count": 7, "score": 1.0},
        {"count": 0, "score": None},
        None,
    ]
    top = "score >= 0.75 (score in the top 0.4 of unrepeated rows)"
    assert ledger[0]["threshold"] == top
    assert ledger[1]["threshold"] == "score > 0.1 and count < 3"
    assert ledger[3]["threshold"] is None


def test_a_draw_is_told_with_its_cut(tmp_path: Path) -> None:
    rule = RandomRows(count=3, fraction=None, seed=1)
    entry = FilterEntry(key="arm", rule=rule, on_null="drop")
    summary, ledger, _ = select(tmp_path, [row(count=i) for i in range(9)], [entry], 2)
    draws = [stable_hash64("random_rows", 1, u) / 2**64 for u in uids(*range(9)).to_pylist()]
    cut = sorted(draws)[2]
    assert [r["outcome"] == "kept" for r in ledger] == [d <= cut for d in draws]
    dropped = [(json.loads(r["value"])["draw"], r["threshold"]) for r in ledger if r["filter"]]
    assert [d for d, _ in dropped] == pytest.approx([d for d in draws if d > cut], abs=1e-9)
    (text,) = {text for _, text in dropped}
    assert text == f"draw <= {round(cut, 9)} (3 remaining rows at random, seed 1)"
    assert summary["funnel"][0]["rule"] == text


def test_a_draw_after_a_cover_has_its_size(tmp_path: Path) -> None:
    """Twenty pairs of neighbours: the cover leaves twenty rows, the draw seven of these."""
    near = [uids(i ^ 1).to_pylist() for i in range(40)]
    rows = [row(float(i), near=near[i]) for i in range(40)]
    cover = PriorityCover(neighbors="near", prefer=(("score", "largest"),))
    draw = RandomRows(count=7, fraction=None, seed=0)
    filters = [
        FilterEntry(key="cover", rule=cover, on_null="keep"),
        FilterEntry(key="draw", rule=draw, on_null="drop"),
    ]
    summary, ledger, _ = select(tmp_path, rows, filters, 3)
    order = sorted((stable_hash64("random_rows", 0, r["uid"]), i) for i, r in enumerate(ledger))
    left = [i for _, i in order if i % 2]
    expected = ["cover" if i % 2 == 0 else None if i in left[:7] else "draw" for i in range(40)]
    assert [r["filter"] for r in ledger] == expected
    assert (summary["kept"], [f["dropped"] for f in summary["funnel"]]) == (7, [20, 13])


def test_infinite_values_are_valid_json(tmp_path: Path) -> None:
    filters = [FilterEntry(key="f", rule=parse_expression("score > 0"), on_null="drop")]
    _, ledger, _ = select(tmp_path, [row(-math.inf)], filters, 1)
    assert json.loads(ledger[0]["value"], parse_constant=lambda name: name + "!") == {
        "score": "-inf"
    }


def test_a_cover_names_the_row_that_stays(tmp_path: Path) -> None:
    near = [uids(i).to_pylist() for i in range(4)]
    rows = [
        row(0.1, near=near[1]),
        row(0.9, near=near[0] + near[2]),
        row(0.5, near=near[1]),
        row(0.2, near=None),
    ]
    rule = PriorityCover(neighbors="near", prefer=(("score", "largest"),))
    below = FilterEntry(key="above", rule=parse_expression("score < 0.8"), on_null="drop")
    cover = FilterEntry(key="cover", rule=rule, on_null="keep")
    summary, ledger, _ = select(tmp_path / "a", rows, [cover], 3)
    assert [r["duplicate_of"] for r in ledger] == [near[1][0], None, near[1][0], None]
    assert [r["filter"] for r in ledger] == ["cover", None, "cover", None]
    assert json.loads(ledger[0]["value"]) == {"score": 0.1}
    assert summary["funnel"][0]["dropped"] == 2
    _, ledger, _ = select(tmp_path / "b", rows, [below, cover], 3)
    assert [r["filter"] for r in ledger] == [None, "above", None, None]


def test_no_rows_and_no_filters(tmp_path: Path) -> None:
    summary, ledger, _ = select(tmp_path / "a", [], [Case("top", "drop", 0.5).entry(0)], 1)
    assert (summary["rows"], summary["kept"], summary["shards"], ledger) == (0, 0, [], [])
    summary, ledger, _ = select(tmp_path / "b", [row(), row()], [], 1)
    assert (summary["kept"], summary["funnel"]) == (2, [])
    assert [r["outcome"] for r in ledger] == ["kept", "kept"]


def test_a_ledger_that_does_not_balance_fails_the_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter that forgets a row it refused must not go unseen."""

    def miscounts(self: _Selector, *arguments: Any) -> Any:
        ledger, alive = ledger_of(self, *arguments)
        return ledger, np.zeros(len(alive), bool)

    ledger_of = _Selector._ledger
    monkeypatch.setattr(_Selector, "_ledger", miscounts)
    with pytest.raises(ShardError, match="does not balance: 2 read, 0 kept, 0 dropped") as caught:
        select(tmp_path, [row(), row()], [Case("there", "drop").entry(0)], 1)
    assert not caught.value.retryable
    assert not (tmp_path / "ledger" / "s" / "_ledger.json").exists()


RECIPE = """
name: s
rows_per_shard: 4
source: {{use: url_table, path: '{path}'}}
stages:
  toy_length: {{{length}}}
  toy_double: {{{double}}}
filters:
  {first}: {{use: where, expression: "num_letters >= {minimum}", on_null: {on_null}}}
  second: {{use: where, expression: "text != 'x'", on_null: drop}}
"""


def selection(tmp_path: Path, **parts: Any) -> str:
    path = tmp_path / "in.jsonl"
    if not path.exists():
        write_jsonl(path, ["a", "bb"])
    parts = {"path": path, "length": "", "double": "", "minimum": 5, "on_null": "drop"} | parts
    plan = make_plan(parse_recipe(RECIPE.format(**{"first": "long"} | parts)))
    storage = Storage(str(tmp_path / "ws"))
    shard = Shard(id="a", content_id="a", num_rows=2, file="f", first_row=0)
    state = State(plan=plan, storage=storage, shards=(shard,))
    for entry in plan.recipe.stages:
        state.enter(entry.key)
    if parts.get("patched"):
        state.present["toy_length"]["a"] |= {"", "r7"}
    return select_unit(state).selection


def test_a_selection_is_named_by_what_decides_it(tmp_path: Path) -> None:
    base = selection(tmp_path)
    changes: list[dict[str, Any]] = [
        {"minimum": 6},
        {"on_null": "keep"},
        {"first": "other"},
        {"length": "factor: 2"},
        {"length": "when: \"text != 'y'\""},
        {"patched": True},
    ]
    found = [selection(tmp_path, **c) for c in changes]
    assert len({base, *found}) == len(changes) + 1
    assert selection(tmp_path, length="log: somewhere") == base
    assert selection(tmp_path, double="log: x, when: 'num_letters > 3'") == base


def test_the_order_of_filters_is_the_order_of_reasons(
    run: Callable[..., RunReport], tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "in.jsonl", ["x", "yy", "yyyyyy", None])
    report = run(
        RECIPE.format(
            path=tmp_path / "in.jsonl", length="", double="", minimum=3, on_null="keep", first="l"
        )
    )
    funnel = [(f["filter"], f["dropped"], f["only"], f["null"]) for f in report.summary["funnel"]]
    assert funnel == [("l", 2, 1, 1), ("second", 1, 1, 1)]
    assert report.summary["kept"] == 1


@pytest.mark.parametrize("over", ["unrepeated", "survivors"])
@pytest.mark.parametrize(
    ("kind", "low"), [("int64", 2**60), ("int64", -(2**62)), ("uint64", 2**63)]
)
def test_large_integers_are_ranked_as_what_they_are(
    tmp_path: Path, kind: str, low: int, over: Any
) -> None:
    """One float stands for up to 2,048 of them."""
    values = [None if i % 5 == 4 else low + (7 * i) % 23 for i in range(23)]
    table = rows_table(uids(*range(23)), {"id": pa.array(values, kind)})
    storage = Storage(str(tmp_path / "ws"))
    entry = FilterEntry(
        key="top", rule=TopFraction(column="id", fraction=0.2, over=over), on_null="drop"
    )
    unit = SelectUnit(
        storage=storage,
        selection="s",
        filters=(entry,),
        sets=(ColumnSet(writer=SOURCE, folder="rows", schema=table.schema.remove(0)),),
        shards=(put_rows(storage, table.slice(0, 9)), put_rows(storage, table.slice(9))),
        patches={},
    )
    summary = unit.run(WorkerContext(WorkerOptions(), tmp_path)).extra
    known = sorted((v for v in values if v is not None), reverse=True)
    threshold = known[int(len(known) * 0.2)]
    assert summary["kept"] == sum(v >= threshold for v in known) == int(len(known) * 0.2) + 1
