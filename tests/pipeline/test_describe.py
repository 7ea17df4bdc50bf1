"""What a person is told."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from winnow_shards import write_jsonl

from winnow.contracts.errors import SetupError
from winnow.contracts.identity import row_uid
from winnow.pipeline.describe import (
    explain,
    funnel_rows,
    latest_selection,
    load_summary,
    mixture_warnings,
    plan_lines,
    readable,
)
from winnow.pipeline.plan import make_plan
from winnow.pipeline.recipe import parse_recipe
from winnow.pipeline.run import RunReport
from winnow.pipeline.storage import Storage
from winnow.pipeline.work import State, current_shards

Runner = Callable[..., RunReport]
RECIPE = """
name: snap
rows_per_shard: 10
source: {{use: url_table, path: {path}}}
stages:
  repeated_rows: {{}}
  toy_length: {{factor: {factor}}}
  double: {{use: toy_double, when: "num_letters > 3"}}
  toy_gpu: {{}}
filters:
  drop_repeated_rows: {{on_null: drop}}
  long: {{use: where, expression: "num_letters >= 5 and doubled < 100", on_null: keep}}
  top: {{use: toy_top, column: num_letters, fraction: 0.5, over: survivors, on_null: drop}}
"""
PLAN = """\
recipe snap (r.yaml)
source url_table: path='FOLDER/in.jsonl', format=None, url_column='url', text_column='text', \
keep='all', rename=None, types=None, bad_rows='error', column_names=None, delimiter=None, \
quoted=None, encoding='utf-8'; {source}
  columns url: string, text: string
all rows at once:
  repeated_rows: {0}
    writes repeated_row, num_occurrences
pass 1: 1 CPU, 128 rows a chunk
  toy_length: {1}
    writes num_letters, toy_length_error
pass 2: 1 CPU, 128 rows a chunk
  double (toy_double) when num_letters > 3: {2}
    writes doubled, toy_double_error
pass 3: 1 CPU, 1 GPU, 128 rows a chunk
  toy_gpu: {3}
    writes device, toy_gpu_error
filters, in this order:
  1. drop_repeated_rows: not (repeated_row); null: drop
  2. long: num_letters >= 5 and doubled < 100; null: keep
  3. top: num_letters in the top 0.5 of survivors rows; null: drop [over all rows]
"""


def state(workspace: Path, text: str) -> State | None:
    plan, storage = make_plan(parse_recipe(text, "r.yaml")), Storage(str(workspace))
    shards = current_shards(plan, storage)
    if shards is None:
        return None
    found = State(plan=plan, storage=storage, shards=shards)
    for entry in plan.recipe.stages:
        found.enter(entry.key)
    return found


def plan_text(tmp_path: Path, text: str) -> str:
    lines = plan_lines(make_plan(parse_recipe(text, "r.yaml")), state(tmp_path / "ws", text))
    shown = "\n".join(lines).replace(str(tmp_path), "FOLDER") + "\n"
    return re.sub(r"\[[0-9a-f]{12}\]", "[ID]", shown)


def test_the_plan_says_what_is_there_and_what_will_run(run: Runner, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "in.jsonl", ["x" * (i % 9) for i in range(25)])
    text = RECIPE.format(path=path, factor=1)
    todo = "will run on all rows"
    assert plan_text(tmp_path, text) == PLAN.format(*[todo] * 4, source="not read yet")
    run(text)
    rows = "25 rows in 3 shards"
    assert plan_text(tmp_path, text) == PLAN.format(*["cached [ID]"] * 4, source=rows)
    other = RECIPE.format(path=path, factor=2)
    some = "will run on 25 of 25 rows [ID]"
    expected = PLAN.format("cached [ID]", some, some, "cached [ID]", source=rows)
    assert plan_text(tmp_path, other) == expected
    wider = text.replace("num_letters > 3", "num_letters > 1")
    assert (
        "  double (toy_double) when num_letters > 1: cached under another gate: will run on what "
        "this one adds in 25 rows [ID]\n"
    ) in plan_text(tmp_path, wider)
    (folder,) = (tmp_path / "ws" / "columns").glob("toy_gpu-*")
    sizes = {
        s.content_id: s.num_rows
        for s in current_shards(make_plan(parse_recipe(text)), Storage(str(tmp_path / "ws"))) or ()
    }
    victim = next(p for p in folder.glob("*.parquet") if sizes[p.stem] == 5)
    victim.unlink()
    expected = PLAN.format(*["cached [ID]"] * 3, "will run on 5 of 25 rows [ID]", source=rows)
    assert plan_text(tmp_path, text) == expected


def test_files_of_other_library_versions_are_told(run: Runner, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "in.jsonl", ["a"])
    text = RECIPE.format(path=path, factor=1)
    run(text)
    found = state(tmp_path / "ws", text)
    assert found is not None
    assert list(mixture_warnings(found.plan, found)) == []
    (file,) = (tmp_path / "ws" / "columns").glob("toy_length-*/_stage.json")
    record = json.loads(file.read_text())
    here = record["libraries"]["numpy"]
    record["libraries"]["numpy"] = "0.1"
    file.write_text(json.dumps(record))
    told = [f"toy_length was computed with numpy 0.1 (here {here})"]
    assert list(mixture_warnings(found.plan, found)) == told


def test_the_funnel_has_a_row_per_filter(run: Runner, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "in.jsonl", ["xx", "xxxxx", "xxxxxx", "xxxxxxx", None])
    report = run(RECIPE.format(path=path, factor=1))
    assert list(funnel_rows(report.summary)) == [
        ("drop_repeated_rows", "not (repeated_row)", "0", "0", "0", "5", "100.0%"),
        ("long", "num_letters >= 5 and doubled < 100", "1", "0", "1", "4", "80.0%"),
        (
            "top",
            "num_letters >= 6.0 (num_letters in the top 0.5 of survivors rows)",
            *("2", "2", "1", "2", "40.0%"),
        ),
    ]
    assert list(funnel_rows({"rows": 0, "funnel": []})) == []


def test_a_selection_is_found_by_the_start_of_its_name(run: Runner, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "ws"))
    with pytest.raises(SetupError, match="has no finished run"):
        latest_selection(storage)
    with pytest.raises(SetupError, match="there is no selection 'ab'; there are: none"):
        load_summary(storage, "ab")
    path = write_jsonl(tmp_path / "in.jsonl", ["x", "xxxxxx"])
    one = run(RECIPE.format(path=path, factor=1)).selection
    two = run(RECIPE.format(path=path, factor=2)).selection
    assert load_summary(storage, None)["selection"] == latest_selection(storage) == two
    assert load_summary(storage, one[:8])["selection"] == one
    for wrong in ("", "zzz", one + "0"):
        with pytest.raises(SetupError, match=f"there is no selection '{wrong}'; there are: "):
            load_summary(storage, wrong)


def stories(tmp_path: Path, text: str, uid: str, selection: str | None = None) -> list[Any]:
    found, storage = state(tmp_path / "ws", text), Storage(str(tmp_path / "ws"))
    assert found is not None
    return explain(found.plan, found, storage, uid, load_summary(storage, selection))


def test_the_story_of_a_row(run: Runner, tmp_path: Path) -> None:
    texts = ["xx", "xxxxx", "xxxxxx", None]
    path = write_jsonl(tmp_path / "in.jsonl", texts)
    text = RECIPE.format(path=path, factor=1).replace("rows_per_shard: 10", "rows_per_shard: 3")
    run(text)
    uid = row_uid("http://h/0-xx", "xx").hex()
    for name in (uid, uid[:6], uid[:7], uid.upper(), f"{uid[:8]}-{uid[8:]}"):
        (story,) = stories(tmp_path, text, name)
        assert (story.uid, story.shard.first_row, story.position) == (uid, 0, 0)
    assert story.columns["num_letters"] == 2
    assert story.columns["toy_double_error"] == "not_selected"
    assert story.outcome == {
        "outcome": "dropped",
        "filter": "long",
        "value": '{"doubled": null, "num_letters": 2}',
        "threshold": "num_letters >= 5 and doubled < 100",
    }
    last = row_uid("http://h/3-None", None).hex()
    (story,) = stories(tmp_path, text, last)
    assert (story.shard.first_row, story.position) == (3, 0)
    assert story.outcome["filter"] == "top"


@pytest.mark.parametrize(
    ("uid", "message"),
    [
        ("abc", "'abc' is not a uid: 6 to 32 hexadecimal digits"),
        ("ghijkl", "is not a uid"),
        ("0" * 32, f"no row has the uid {'0' * 32}"),
        ("0" * 5000, "is not a uid: 6 to 32 hexadecimal digits"),
    ],
)
def test_an_unknown_uid_is_refused(run: Runner, tmp_path: Path, uid: str, message: str) -> None:
    text = RECIPE.format(path=write_jsonl(tmp_path / "in.jsonl", ["x"]), factor=1)
    run(text)
    with pytest.raises(SetupError, match=message):
        stories(tmp_path, text, uid)


def test_a_row_has_a_story_after_a_run_that_failed_half_way(run: Runner, tmp_path: Path) -> None:
    text = RECIPE.format(path=write_jsonl(tmp_path / "in.jsonl", ["abcdef"]), factor=1)
    good = run(text).selection
    broken = text.replace("  toy_gpu: {}", "  toy_raise: {guilty: [abcdef]}\n  toy_rank: {}")
    assert run(broken).exit_code == 1
    with pytest.raises(SetupError, match="the last run in .* failed before it selected anything"):
        latest_selection(Storage(str(tmp_path / "ws")))
    uid = row_uid("http://h/0-abcdef", "abcdef").hex()
    (story,) = stories(tmp_path, broken, uid, good)
    assert story.columns["num_letters"] == 6
    assert "fine" not in story.columns
    assert story.outcome == {"outcome": "kept"}


def test_values_are_readable() -> None:
    reference = {"path": "a.wav", "offset": 0, "digest": bytes([1, 2])}
    assert readable(reference) == "{path: 'a.wav', offset: 0, digest: 0102}"
    assert readable([0.10000000149011612, float("nan"), None]) == "[0.1, nan, None]"
    assert readable(list(range(25))).endswith("18, 19, ... (25 in all)]")
    assert readable(bytes(576)) == "0" * 32 + "... (576 bytes)"
    assert readable(True) == "True"
