"""The command: exit codes, messages, and nothing written where nothing could be done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import jsonschema
import pytest
from click.testing import CliRunner, Result
from winnow_shards import snapshot, write_jsonl

from winnow.contracts.identity import row_uid
from winnow.pipeline.cli import main

RECIPE = """
name: told
rows_per_shard: 2
source: {{use: url_table, path: '{path}'}}
stages:
  toy_length: {{factor: 1}}
  toy_raise: {{guilty: ['{guilty}']}}
filters:
  long: {{use: where, expression: "num_letters >= 3", on_null: drop}}
"""
MAIN = "import winnow_toy; from winnow.pipeline.cli import main; main()"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe and its data, and the command running in it."""
    monkeypatch.chdir(tmp_path)
    path = write_jsonl(tmp_path / "in.jsonl", ["a", "bb", "ccc", "dddd", None])
    (tmp_path / "r.yaml").write_text(RECIPE.format(path=path, guilty="nobody"))
    return tmp_path


def winnow(*arguments: str) -> Result:
    result = CliRunner().invoke(main, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def run(*arguments: str) -> Result:
    return winnow("run", "r.yaml", "--executor", "inprocess", "--no-report", *arguments)


def test_a_run_prints_the_funnel_and_the_second_does_nothing(home: Path) -> None:
    first = run()
    assert first.exit_code == 0, first.output
    assert "5 read = 2 kept + 3 dropped" in first.output
    assert "num_letters >= 3" in first.output
    before = {n: b for n, b in snapshot(home / "runs").items() if not n.endswith("_latest.json")}
    second = run()
    assert second.exit_code == 0
    after = {n: b for n, b in snapshot(home / "runs").items() if not n.endswith("_latest.json")}
    assert after == before
    assert (home / "runs" / "told" / "rows").is_dir()


def test_set_overrides_a_value(home: Path) -> None:
    result = run("--set", "stages.toy_length.factor=3", "-w", "ws")
    assert "5 read = 4 kept + 1 dropped" in result.output
    result = run("--set", "filters.long.expression=num_letters >= 4", "--set", "name=x", "-w", "ws")
    assert "5 read = 1 kept + 4 dropped" in result.output


def test_failed_shards_are_listed_and_the_exit_code_is_1(home: Path) -> None:
    (home / "r.yaml").write_text(RECIPE.format(path=home / "in.jsonl", guilty="dddd"))
    result = run("-w", "ws")
    assert result.exit_code == 1
    assert "1 unit of work failed:" in result.stderr
    assert "toy_raise on shard" in result.stderr
    assert "no way to annotate dddd" in result.stderr
    assert "the rest is committed; run the same command again to try these" in result.stderr
    assert len(list((home / "ws").glob("columns/toy_raise-*/*.parquet"))) == 2
    (home / "r.yaml").write_text(RECIPE.format(path=home / "in.jsonl", guilty="nobody"))
    assert run("-w", "ws").exit_code == 0


WRONG: dict[str, tuple[list[str], str]] = {
    "no recipe": (["plan", "none.yaml"], "none.yaml: there is no recipe file here; recipes beside"),
    "no recipe to run": (["run", "none.yaml"], "there is no recipe file here"),
    "an unknown parameter": (
        ["run", "r.yaml", "--set", "stages.toy_length.facter=3"],
        "did you mean factor?",
    ),
    "an unknown column": (
        ["run", "r.yaml", "--set", "filters.long.expression=letters > 3"],
        "there is no column 'letters'",
    ),
    "a missing source": (["run", "r.yaml", "--set", "source.path=none.jsonl"], "none.jsonl"),
    "a bad override": (["run", "r.yaml", "--set", "x"], "write it as section.name.parameter=value"),
    "a bad host": (["run", "r.yaml", "--resolve", "x"], "write it as HOST=ADDRESS:PORT"),
    "a cluster without a shared disk": (
        ["run", "r.yaml", "--address", "1.2.3.4:1"],
        "use an object store URL, or say --shared-filesystem",
    ),
    "a workspace that is a file": (["run", "r.yaml", "-w", "in.jsonl/ws"], "is not writable"),
    "a workspace of an unknown kind": (["run", "r.yaml", "-w", "nope://x"], "cannot be opened"),
    "no ledger": (["ledger", "none"], "none has no finished run; `winnow run RECIPE"),
    "no row": (["explain", "abcdef", "-w", "none"], "none has no finished run"),
    "nothing to clean": (["gc", "none"], "does not look like a workspace"),
    "an unknown option": (["run", "r.yaml", "--nothing"], "No such option"),
    "an unknown command": (["rum"], "No such command"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_exit_code_2_and_nothing_is_written(home: Path, name: str) -> None:
    arguments, message = WRONG[name]
    before = snapshot(home)
    result = winnow(*arguments)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert snapshot(home) == before
    assert sorted(p.name for p in home.iterdir()) == ["in.jsonl", "r.yaml"]


def test_an_unwritable_workspace_is_exit_code_2(home: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (home / "ro").mkdir(mode=0o500)
    result = winnow("run", "r.yaml", "-w", "ro/ws")
    assert result.exit_code == 2
    assert "is not writable" in result.stderr


def test_plan_writes_nothing(home: Path) -> None:
    before = snapshot(home)
    result = winnow("plan", "r.yaml")
    assert result.exit_code == 0
    assert result.output.startswith("recipe told (r.yaml)\n")
    assert "  toy_length: will run on all rows\n" in result.output
    assert snapshot(home) == before
    run()
    assert "  toy_length: cached [" in winnow("plan", "r.yaml").output


def test_the_ledger_is_for_people_and_programs(home: Path) -> None:
    run("-w", "ws")
    shown = winnow("ledger", "ws")
    assert shown.exit_code == 0
    assert "5 read = 2 kept + 3 dropped" in shown.output
    data = json.loads(winnow("ledger", "ws", "--json").output)
    assert (data["rows"], data["kept"], data["dropped"]) == (5, 2, 3)
    assert data["funnel"][0] | {"rule": ""} == {
        "filter": "long",
        "rule": "",
        "on_null": "drop",
        "dropped": 3,
        "null": 1,
        "only": 3,
        "kept": 2,
    }
    assert "shards" not in data
    again = winnow("ledger", "ws", "--json", "--selection", data["selection"][:6])
    assert json.loads(again.output) == data
    wrong = winnow("ledger", "ws", "--selection", "zzzz")
    assert wrong.exit_code == 2
    assert "there is no selection 'zzzz'; there are: " + data["selection"] in wrong.stderr


def test_explain_tells_a_row_by_the_start_of_its_uid(home: Path) -> None:
    run("-w", "ws")
    uid = row_uid("http://h/1-bb", "bb").hex()
    result = winnow("explain", uid[:8], "-w", "ws")
    assert result.exit_code == 0
    lines = [line.strip() for line in result.output.splitlines()]
    assert lines[0] == f"row {uid}"
    assert lines[1].startswith("read from in.jsonl, row 2; shard ")
    assert "text = 'bb'" in lines
    assert "num_letters = 2" in lines
    assert lines[-4:] == [
        "outcome: dropped",
        "filter: long",
        'value: {"num_letters": 2}',
        "threshold: num_letters >= 3",
    ]
    for wrong, message in (("00000000", "no row has the uid"), ("xyz", "is not a uid")):
        result = winnow("explain", wrong, "-w", "ws")
        assert result.exit_code == 2
        assert message in result.stderr


def test_explain_after_the_source_has_changed_says_so(home: Path) -> None:
    run("-w", "ws")
    write_jsonl(home / "in.jsonl", ["other", "rows"])
    result = winnow("explain", "00000000", "-w", "ws")
    assert result.exit_code == 2
    assert "the source has changed since the last run; run the recipe again" in result.stderr


def test_gc_says_what_goes_and_a_dry_run_removes_nothing(home: Path) -> None:
    run("-w", "ws")
    run("-w", "ws", "--set", "stages.toy_length.factor=2")
    storage = home / "ws" / "runs"
    (recipe,) = [p for p in storage.glob("*.yaml") if "factor: 2" in p.read_text()]
    assert winnow("gc", "ws").output == "freed 0.0 MB in 0 places\n"
    recipe.unlink()
    before = snapshot(home)
    dry = winnow("gc", "ws", "--dry-run")
    assert snapshot(home) == before
    lines = dry.output.splitlines()
    assert [line.split("/")[0] for line in lines[:-1]] == ["columns", "ledger", "runs"]
    assert lines[-1].startswith("would free ")
    assert lines[-1].endswith("in 3 places")
    wet = winnow("gc", "ws")
    assert wet.output.splitlines()[:-1] == lines[:-1]
    assert not any((home / "ws" / line).exists() for line in lines[:-1])


def test_schema_is_json_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(winnow("schema").output))


def test_help_names_every_command() -> None:
    result = winnow("--help")
    assert result.exit_code == 0
    for name in ("plan", "run", "ledger", "explain", "gc", "schema", "train", "report"):
        assert f"  {name} " in result.output
        assert winnow(name, "--help").exit_code == 0
    assert isinstance(main, click.Group)


def test_ctrl_c_is_exit_code_130_without_a_traceback_and_the_run_goes_on(home: Path) -> None:
    write_jsonl(home / "in.jsonl", [f"text {i}" for i in range(20)])
    command = [sys.executable, "-c", MAIN, "run", "r.yaml", "-w", "ws", "--no-report"]
    process = subprocess.Popen(
        [*command, "--executor", "inprocess"],
        env={**os.environ, "TOY_PAUSE_S": "0.5"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    deadline = time.monotonic() + 60
    while not list((home / "ws").glob("columns/toy_length-*/*.parquet")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, output.decode()
    assert b"run the same command again to go on" in output
    assert b"Traceback" not in output
    done = list((home / "ws").glob("columns/toy_length-*/*.parquet"))
    assert 0 < len(done) < 10
    assert list((home / "ws").rglob(".tmp-*")) == []
    assert "20 read = 20 kept + 0 dropped" in run("-w", "ws").output


def test_what_a_recipe_says_is_printed_as_it_is(home: Path) -> None:
    name, rule = "[red]x[/blue] :dog:", "text in ('[bold]', '[/a]', 'ccc')"
    recipe = (home / "r.yaml").read_text()
    recipe = recipe.replace("  long:", f'  "{name}":').replace("num_letters >= 3", rule)
    (home / "r.yaml").write_text(recipe)
    result = run("-w", "ws")
    assert result.exit_code == 0
    (line,) = (text for text in result.output.splitlines() if text.startswith(name))
    assert line.split() == [*name.split(), *rule.split(), "4", "4", "1", "1", "20.0%"]


def test_explain_without_the_recipe_says_so(home: Path) -> None:
    run("-w", "ws")
    (found,) = (home / "ws" / "runs").glob("*.yaml")
    found.unlink()
    result = winnow("explain", "00000000", "-w", "ws")
    assert result.exit_code == 2
    assert f"{found.name}, was removed; run it again first" in result.stderr
