"""Whole runs on toy stages: accounting, caching, patches, gates, repeats."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from winnow.pipeline.arrow_files import from_file
from winnow.pipeline.columns import ShardReader
from winnow.pipeline.run import RunReport, quiet_interrupt

Runner = Callable[..., RunReport]


def words(count: int, start: int = 0) -> list[str]:
    """Texts of lengths 1, 2, 3 ... that differ."""
    return [f"{'x' * (i % 17)}{i}" for i in range(start, start + count)]


def write_jsonl(path: Path, texts: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"url": f"http://h/{i}-{t}", "text": t}) for i, t in enumerate(texts)]
    path.write_text("\n".join(lines) + "\n")


def work(log: Path) -> Counter[str]:
    """Rows per stage that were really annotated."""
    counts: Counter[str] = Counter()
    for line in log.read_text().splitlines() if log.exists() else []:
        stage, rows = line.split()
        counts[stage] += int(rows)
    return counts


def annotations(workspace: Path, stage: str) -> dict[bytes, dict[str, Any]]:
    """uid -> columns of a stage's base files, patches over them, in order."""
    rows: dict[bytes, dict[str, Any]] = {}
    (folder,) = (workspace / "columns").glob(f"{stage}-*")
    files = sorted(folder.glob("*.parquet"), key=lambda p: (len(p.name), p.name))
    for file in files:
        if ".g" in file.name:
            continue
        for row in from_file(pa.table(pq.read_table(file))).to_pylist():
            rows[row.pop("uid")] = row
    return rows


def recipe(data: Path, log: Path, *, when: str = "", minimum: int = 5, shard: int = 10) -> str:
    gate = f'\n    when: "{when}"' if when else ""
    return f"""
name: toy
rows_per_shard: {shard}
source: {{use: url_table, path: {data}}}
stages:
  toy_length: {{log: {log}}}
  toy_double:
    log: {log}{gate}
  toy_rank: {{log: {log}}}
filters:
  long: {{use: where, expression: "num_letters >= {minimum}", on_null: drop}}
  not_first: {{use: where, expression: "rank > 3", on_null: drop}}
"""


def test_every_row_is_accounted_for_with_its_reason(run: Runner, tmp_path: Path) -> None:
    texts = [*words(25), None]
    write_jsonl(tmp_path / "in.jsonl", texts)
    report = run(recipe(tmp_path / "in.jsonl", tmp_path / "log"))
    lengths = [len(t) if t else 0 for t in texts]
    long = [n for n in lengths if n >= 5]
    assert report.exit_code == 0
    assert report.summary["rows"] == 26
    assert report.summary["kept"] == len([n for n in long if sum(m < n for m in lengths if m) > 3])
    assert report.summary["kept"] + report.summary["dropped"] == 26
    first = report.summary["funnel"][0]
    assert (first["filter"], first["dropped"], first["null"]) == ("long", 26 - len(long), 1)


def test_a_second_run_computes_nothing(run: Runner, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", words(25))
    text = recipe(tmp_path / "in.jsonl", tmp_path / "log")
    first = run(text)
    before = work(tmp_path / "log")
    assert before == {"toy_length": 25, "toy_double": 25, "toy_rank": 3}
    second = run(text)
    assert work(tmp_path / "log") == before
    assert second.selection == first.selection


def test_a_threshold_reruns_no_stage(run: Runner, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", words(25))
    first = run(recipe(tmp_path / "in.jsonl", tmp_path / "log"))
    before = work(tmp_path / "log")
    second = run(recipe(tmp_path / "in.jsonl", tmp_path / "log", minimum=8))
    assert work(tmp_path / "log") == before
    assert second.selection != first.selection
    assert second.summary["kept"] < first.summary["kept"]


def test_a_file_added_later_runs_its_own_shards_and_the_global_stages(
    run: Runner, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "in" / "a.jsonl", words(20))
    text = recipe(tmp_path / "in", tmp_path / "log")
    run(text)
    write_jsonl(tmp_path / "in" / "b.jsonl", words(5, start=100))
    (tmp_path / "log").unlink()
    report = run(text)
    assert work(tmp_path / "log") == {"toy_length": 5, "toy_double": 5, "toy_rank": 3}
    assert report.summary["rows"] == 25


def test_equal_files_are_annotated_once_and_counted_twice(run: Runner, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in" / "a.jsonl", words(10))
    write_jsonl(tmp_path / "in" / "b.jsonl", words(10))
    report = run(recipe(tmp_path / "in", tmp_path / "log"))
    assert report.summary["rows"] == 20
    assert work(tmp_path / "log")["toy_length"] == 10


def test_a_gate_annotates_only_its_rows_and_widening_it_only_the_rest(
    run: Runner, tmp_path: Path
) -> None:
    data, log = tmp_path / "in.jsonl", tmp_path / "log"
    write_jsonl(data, words(40))
    lengths = [len(t) for t in words(40)]
    run(recipe(data, log, when="num_letters > 10"))
    over_10 = sum(n > 10 for n in lengths)
    assert work(log)["toy_double"] == over_10
    codes = Counter(
        r["toy_double_error"] for r in annotations(tmp_path / "ws", "toy_double").values()
    )
    assert codes == {None: over_10, "not_selected": 40 - over_10}
    run(recipe(data, log, when="num_letters > 5"))
    assert work(log)["toy_double"] == sum(n > 5 for n in lengths)
    run(recipe(data, log))
    assert work(log)["toy_double"] == 40
    assert all(
        row["doubled"] is not None for row in annotations(tmp_path / "ws", "toy_double").values()
    )
    run(recipe(data, log, when="num_letters > 8"))
    assert work(log)["toy_double"] == 40


def test_a_narrower_gate_hides_what_a_wider_one_computed(run: Runner, tmp_path: Path) -> None:
    data, log = tmp_path / "in.jsonl", tmp_path / "log"
    write_jsonl(data, words(40))
    run(recipe(data, log))
    narrow = recipe(data, log, when="num_letters > 10") + (
        '  has_double: {use: where, expression: "doubled is not None", on_null: drop}\n'
    )
    report = run(
        narrow.replace(
            "  not_first:",
            "  x: {use: where, expression: 'rank >= 0', on_null: drop}\n  not_first:",
        )
    )
    funnel = {f["filter"]: f for f in report.summary["funnel"]}
    over_10 = sum(len(t) > 10 for t in words(40))
    assert report.summary["kept"] <= over_10
    assert funnel["has_double"]["kept"] == report.summary["kept"]
    assert work(log)["toy_double"] == 40


def fetch_recipe(data: Path, folder: Path, log: Path) -> str:
    return f"""
name: fetching
rows_per_shard: 10
source: {{use: url_table, path: {data}}}
stages:
  toy_fetch: {{folder: {folder}, log: {log}}}
  toy_fetched_length: {{log: {log}}}
filters:
  fetched: {{use: where, expression: "fetched_length >= 1", on_null: drop}}
"""


def test_retry_failed_refetches_only_transient_failures(run: Runner, tmp_path: Path) -> None:
    texts = words(30)
    write_jsonl(tmp_path / "in.jsonl", texts)
    folder, log = tmp_path / "web", tmp_path / "log"
    folder.mkdir()
    for text in texts[:20]:
        (folder / text).write_text("content of " + text)
    one = run(fetch_recipe(tmp_path / "in.jsonl", folder, log))
    assert one.summary["kept"] == 20
    for text in texts[20:24]:
        (folder / text).write_text("late " + text)
    log.unlink()
    same = run(fetch_recipe(tmp_path / "in.jsonl", folder, log))
    assert same.summary["kept"] == 20
    assert not log.exists()
    again = run(fetch_recipe(tmp_path / "in.jsonl", folder, log), retry_failed=True)
    assert again.summary["kept"] == 24
    assert work(log) == {"toy_fetch": 10, "toy_fetched_length": 10}
    lengths = annotations(tmp_path / "ws", "toy_fetched_length")
    assert sum(r["fetched_length"] is not None for r in lengths.values()) == 24
    log.unlink()
    third = run(fetch_recipe(tmp_path / "in.jsonl", folder, log))
    assert third.summary["kept"] == 24
    assert not log.exists()


def test_a_crash_signal_costs_exactly_the_guilty_row(run: Runner, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    texts = words(30)
    write_jsonl(tmp_path / "in.jsonl", texts)
    text = f"""
name: crash
rows_per_shard: 30
source: {{use: url_table, path: {tmp_path / "in.jsonl"}}}
stages:
  toy_crash: {{guilty: ["{texts[7]}", "{texts[21]}"]}}
filters:
  survived: {{use: where, expression: "survived == true", on_null: drop}}
"""

    report = run(text, executor="ray")
    assert report.exit_code == 0, [str(f) for f in report.failures]
    assert report.summary["kept"] == 28
    rows = annotations(tmp_path / "ws", "toy_crash")
    assert Counter(r["toy_crash_error"] for r in rows.values()) == {None: 28, "crashed_worker": 2}


COPIES = """
name: copies
rows_per_shard: 4
source: {{use: url_table, path: {data}}}
stages:
  repeated_rows: {{}}
  toy_first: {{log: {log}}}
  toy_length: {{log: {log}, when: "{when}"}}
  toy_double: {{log: {log}}}
filters:
  all: {{use: where, expression: "first or not first", on_null: drop}}
"""


@pytest.mark.parametrize("when", ["repeated_row", "first", "not first"])
def test_a_copy_of_a_shard_has_its_own_view_of_columns_over_all_rows(
    run: Runner, tmp_path: Path, when: str
) -> None:
    """Three files, two of them equal: the rows of the second are repeated, those of the first not,
    and stages and gates that read this must not share what they made of it."""
    folder, log = tmp_path / "in", tmp_path / "log"
    for name, texts in (("a", words(6)), ("b", words(6)), ("c", words(3, start=6))):
        write_jsonl(folder / f"{name}.jsonl", texts)
    text = COPIES.format(data=folder, log=log, when=when)
    report = run(text)
    assert report.exit_code == 0
    assert report.summary["kept"] == 15
    assert report.state is not None
    state, found = report.state, []
    assert [s.id.partition("~")[2] for s in state.shards] == ["", "", "1", "1", ""]
    for shard in state.shards:
        sets = tuple(state.sets.values())
        reader = ShardReader(state.storage, sets, shard, state.all_patches(shard.id))
        found += reader.read(["repeated_row", "first", "num_letters", "doubled"]).to_pylist()
    texts = [*words(6), *words(6), *words(3, start=6)]
    for number, (row, said) in enumerate(zip(found, texts, strict=True)):
        repeated = 6 <= number < 12
        selected = repeated if when != "first" else not repeated
        assert (row["repeated_row"], row["first"]) == (repeated, not repeated)
        assert row["num_letters"] == (len(said) if selected else None)
        assert row["doubled"] == (2 * len(said) if selected else None)
    before = work(log)
    assert before["toy_first"] == 15
    assert run(text).computed_rows == 0
    assert work(log) == before


@pytest.mark.parametrize(
    ("first", "ends_as"), [(KeyboardInterrupt, SystemExit), (OSError, KeyError)]
)
def test_ctrl_c_ends_quietly_even_where_a_cleanup_fails_on_its_way(
    first: type[BaseException], ends_as: type[BaseException]
) -> None:
    with pytest.raises(ends_as) as caught, quiet_interrupt():
        try:
            raise first
        finally:
            raise KeyError("of a cleanup")
    assert getattr(caught.value, "code", 130) == 130
