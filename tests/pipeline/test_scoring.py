"""The truth table of a run, against a join made by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from winnow.pipeline.cli_report import find_state
from winnow.pipeline.report import render_report
from winnow.pipeline.run import RunReport
from winnow.pipeline.scoring import score_rows, score_table, score_verdict
from winnow.pipeline.storage import Storage

Runner = Callable[..., RunReport]
RECIPE = """
name: scenes
rows_per_shard: 30
source: {use: scenes, num_rows: 200, rows_per_file: 100, seed: 3}
stages:
  repeated_rows: {}
  caption_stats: {}
filters:
  drop_repeated_rows: {on_null: drop}
  caption_shape_is: {shapes: ["text"], on_null: drop}
"""


def joined(workspace: Path) -> list[dict[str, Any]]:
    (ledger,) = (workspace / "ledger").iterdir()
    rows = []
    for file in ledger.glob("*.parquet"):
        truth = pq.read_table(workspace / "rows" / file.name).to_pylist()
        for left, right in zip(truth, pq.read_table(file).to_pylist(), strict=True):
            assert left["uid"] == right["uid"]
            rows.append(left | right)
    return rows


def test_precision_and_recall_are_those_of_a_join_by_hand(run: Runner, tmp_path: Path) -> None:
    result = run(RECIPE)
    storage = Storage(str(tmp_path / "ws"))
    state = find_state(storage, result.selection)
    entries = score_rows(storage, state.plan, state, result.summary)
    assert entries is not None
    by_name = {e["filter"]: e for e in entries}
    rows = joined(tmp_path / "ws")
    assert len(rows) == 200
    for name, kind in (
        ("drop_repeated_rows", "repeated_row"),
        ("caption_shape_is", "file_name_caption"),
    ):
        dropped = [r for r in rows if r["filter"] == name]
        right = sum(r["truth_kind"] == kind for r in dropped)
        earlier = name != "drop_repeated_rows"
        meant = [r for r in rows if r["truth_kind"] == kind]
        reached = [r for r in meant if not (earlier and r["filter"] == "drop_repeated_rows")]
        assert right > 0
        assert by_name[name]["precision"] == right / len(dropped)
        assert by_name[name]["recall"] == right / len(reached)
        assert by_name[name]["dropped"] == len(dropped)
    assert by_name["overall"]["kept"] == result.summary["kept"]
    assert by_name["overall"]["clean"] == sum(r["truth_kind"] == "clean" for r in rows)

    lines = list(score_table(entries))
    assert [line[0] for line in lines] == ["drop_repeated_rows", "caption_shape_is"]
    assert lines[1][1] == "file name caption"
    html = render_report(storage, state.plan, state, result.summary)
    assert "Precision and recall" in html
    assert score_verdict(entries) in html


def test_a_source_without_truth_has_no_table(run: Runner, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"url": "http://h/1", "text": "a"}\n')
    result = run(f"name: t\nsource: {{use: url_table, path: {data}}}\n")
    storage = Storage(str(tmp_path / "ws"))
    state = find_state(storage, result.selection)
    assert score_rows(storage, state.plan, state, result.summary) is None
    assert "Precision and recall" not in render_report(storage, state.plan, state, result.summary)


def test_ratios_without_a_denominator_are_dashes() -> None:
    entries = [
        {"filter": "f", "kinds": [], "dropped": 3, "right": 0, "precision": None, "recall": None},
        {"filter": "overall", "kept": 0, "clean": 0, "clean_share": None, "clean_kept": None},
    ]
    assert list(score_table(entries)) == [("f", "-", "3", "-", "-", "-", "-")]
    assert score_verdict(entries).startswith("- of the 0 kept rows")
    assert score_verdict([]) == ""
