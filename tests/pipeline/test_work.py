"""What is left to do: by file names, across recipes that share a workspace."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from winnow_shards import write_jsonl

from winnow.pipeline.pass_unit import PassUnit
from winnow.pipeline.plan import make_plan
from winnow.pipeline.recipe import parse_recipe
from winnow.pipeline.run import RunReport
from winnow.pipeline.storage import Storage
from winnow.pipeline.work import State, current_shards, library_versions, parse_column_file

Runner = Callable[..., RunReport]


def work(log: Path) -> Counter[str]:
    """Rows per stage that were annotated since the last look."""
    counts: Counter[str] = Counter()
    for line in log.read_text().splitlines() if log.exists() else []:
        stage, rows = line.split()
        counts[stage] += int(rows)
    log.unlink(missing_ok=True)
    return counts


def recipe(
    path: Path,
    log: Path,
    *,
    length: str = "",
    double: str = "",
    expression: str = "doubled >= 0",
    shard: int = 10,
) -> str:
    def gate(when: str) -> str:
        return f', when: "{when}"' if when else ""

    return f"""
name: t
rows_per_shard: {shard}
source: {{use: url_table, path: '{path}'}}
stages:
  toy_length: {{log: '{log}'{gate(length)}}}
  toy_double: {{log: '{log}'{gate(double)}}}
filters:
  f: {{use: where, expression: "{expression}", on_null: drop}}
"""


def texts(count: int) -> list[str]:
    """Texts of 1, 2, 3 ... letters."""
    return ["x" * n for n in range(1, count + 1)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "in.jsonl", texts(40))


def state(workspace: Path, text: str) -> State:
    plan, storage = make_plan(parse_recipe(text)), Storage(str(workspace))
    found = State(plan=plan, storage=storage, shards=current_shards(plan, storage) or ())
    for entry in plan.recipe.stages:
        found.enter(entry.key)
    return found


NARROW, WIDE = "text > 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'", "text > 'xxxxxxxxxx'"


@pytest.mark.parametrize(
    ("history", "kept"),
    [([NARROW], 10), ([WIDE], 30), ([""], 40)]
    + [([WIDE, NARROW], 10), ([NARROW, WIDE], 30), (["", NARROW], 10), ([NARROW, ""], 40)]
    + [([WIDE, NARROW, WIDE], 30), ([NARROW, "", NARROW], 10)],
)
def test_what_ran_before_under_another_gate_changes_nothing_downstream(
    run: Runner, tmp_path: Path, data: Path, history: list[str], kept: int
) -> None:
    """toy_double reads what the gate of toy_length lets through."""
    for gate in history:
        report = run(recipe(data, tmp_path / "log", length=gate))
    assert report.summary["kept"] == kept


def test_a_gate_on_a_gated_column_follows_that_gate(
    run: Runner, tmp_path: Path, data: Path
) -> None:
    def text(gate: str) -> str:
        made = recipe(data, tmp_path / "log", length=gate, expression="survived == true")
        return made.replace(
            "  toy_double:", '  toy_crash: {when: "num_letters > 0"}\n  toy_double:'
        )

    run(recipe(data, tmp_path / "log", length=WIDE))
    assert run(text(NARROW)).summary["kept"] == 10
    assert run(text(WIDE)).summary["kept"] == 30
    assert run(text(NARROW)).summary["kept"] == 10


def test_recipes_that_share_a_stage_share_its_work(run: Runner, tmp_path: Path, data: Path) -> None:
    log = tmp_path / "log"
    run(recipe(data, log))
    assert work(log) == {"toy_length": 40, "toy_double": 40}
    other = (
        recipe(data, log)
        .replace("name: t", "name: other")
        .replace(f"  toy_double: {{log: '{log}'}}\n", f"  toy_rank: {{log: '{log}'}}\n")
    )
    run(other.replace("doubled", "rank"))
    assert work(log) == {"toy_rank": 4}
    renamed = recipe(data, log).replace("toy_length:", "letters: {use: toy_length}\n  #")
    assert run(renamed).summary["kept"] == 40
    assert work(log) == {}


FETCH = """
name: {name}
rows_per_shard: 10
source: {{use: url_table, path: '{path}'}}
stages:
  toy_fetch: {{folder: '{web}', log: '{log}'}}
  toy_fetched_length: {{log: '{log}'{gate}}}
  late: {{use: toy_raise, guilty: [], log: '{log}', when: "fetched_length > 3"}}
filters:
  f: {{use: where, expression: "fetched_length > 0", on_null: drop}}
  g: {{use: where, expression: "fine == true", on_null: {null}}}
"""


def fetching(folder: Path, data: Path) -> tuple[Path, str]:
    """The log and the recipe of a run that finds nothing on its web."""
    log, web = folder / "log", folder / "web"
    web.mkdir()
    return log, FETCH.format(name="x", path=data, web=web, log=log, gate="", null="keep")


def test_retried_rows_go_through_gated_stages_of_every_recipe(
    run: Runner, tmp_path: Path, data: Path
) -> None:
    """One recipe with a narrow gate retries; the one with the wide gate must see those rows."""
    log, web = tmp_path / "log", tmp_path / "web"
    web.mkdir()
    for text in texts(40)[:15]:
        (web / text).write_text(text)

    def text(gate: str, name: str) -> str:
        when = f', when: "{gate}"' if gate else ""
        return FETCH.format(name=name, path=data, web=web, log=log, gate=when, null="keep")

    narrow, wide, plain = text(NARROW, "n"), text(WIDE, "w"), text("", "p")
    assert run(wide).summary["kept"] == 5
    assert run(plain).summary["kept"] == 15
    assert run(narrow).summary["kept"] == 0
    for name in texts(40)[15:35]:
        (web / name).write_text(name)
    work(log)
    report = run(narrow, retry_failed=True)
    assert report.summary["kept"] == 5
    assert work(log)["toy_fetch"] == 25
    assert run(wide).summary["kept"] == 25
    assert run(plain).summary["kept"] == 35
    assert work(log)["toy_fetch"] == 0
    assert run(narrow).summary["kept"] == 5
    assert run(wide).summary["kept"] == 25
    assert work(log) == {}


def test_what_fails_again_stays_failed_and_is_tried_once_a_run(
    run: Runner, tmp_path: Path, data: Path
) -> None:
    log, text = fetching(tmp_path, data)
    run(text)
    assert work(log)["toy_fetch"] == 40
    for _ in range(2):
        assert run(text, retry_failed=True).summary["kept"] == 0
        assert work(log)["toy_fetch"] == 40


def test_a_stage_added_after_a_retry_takes_the_patches_in(
    run: Runner, tmp_path: Path, data: Path
) -> None:
    log, web = tmp_path / "log", tmp_path / "web"
    web.mkdir()
    full = FETCH.format(name="x", path=data, web=web, log=log, gate="", null="keep")
    short = full[: full.index("  toy_fetched_length")] + (
        'filters:\n  f: {use: where, expression: "fetched is not None", on_null: drop}\n'
    )
    run(short)
    for text in texts(40)[:8]:
        (web / text).write_text(text)
    assert run(short, retry_failed=True).summary["kept"] == 8
    work(log)
    assert run(full).summary["kept"] == 8
    assert work(log) == {"toy_fetched_length": 40, "toy_raise": 5}
    assert run(full).summary["kept"] == 8
    assert work(log) == {}


def test_a_stage_that_raises_fails_its_shard_and_nothing_else(
    run: Runner, tmp_path: Path, data: Path
) -> None:
    log, broken = tmp_path / "log", tmp_path / "broken"
    broken.touch()
    text = f"""
name: r
rows_per_shard: 10
source: {{use: url_table, path: '{data}'}}
stages:
  toy_raise: {{guilty: ['{"x" * 14}'], file: '{broken}', log: '{log}'}}
filters:
  f: {{use: where, expression: "fine == true", on_null: drop}}
"""
    report = run(text)
    assert report.exit_code == 1
    (failure,) = report.failures
    assert "toy_raise on shard" in str(failure)
    assert "ValueError: no way to annotate " + "x" * 14 in str(failure)
    assert str(failure).endswith("(after 3 attempts)")
    assert (report.selection, report.summary) == ("", {})
    assert work(log) == {"toy_raise": 60}
    latest = json.loads((tmp_path / "ws" / "runs" / "_latest.json").read_text())
    assert latest["failures"] == [str(failure)]
    broken.unlink()
    healed = run(text)
    assert (healed.exit_code, healed.summary["kept"]) == (0, 40)
    assert work(log) == {"toy_raise": 10}


def test_a_damaged_column_file_is_named(run: Runner, tmp_path: Path, data: Path) -> None:
    log = tmp_path / "log"
    run(recipe(data, log))
    (folder,) = (tmp_path / "ws" / "columns").glob("toy_length-*")
    victim = sorted(folder.glob("*.parquet"))[0]
    victim.write_bytes(b"not parquet")
    report = run(recipe(data, log, expression="num_letters > 3"))
    assert report.exit_code == 1
    assert f"{victim} is damaged" in str(report.failures[0])
    victim.unlink()
    healed = run(recipe(data, log, expression="num_letters > 3"))
    assert (healed.exit_code, healed.summary["kept"]) == (0, 37)


@pytest.mark.parametrize("shard", [1, 3, 40, 1000])
def test_the_size_of_shards_changes_no_outcome(
    run: Runner, tmp_path: Path, data: Path, shard: int
) -> None:
    report = run(recipe(data, tmp_path / "log", shard=shard, expression="doubled > 31"))
    assert (report.summary["rows"], report.summary["kept"]) == (40, 25)
    assert len(report.summary["shards"]) == -(-40 // shard)


def test_files_without_rows(run: Runner, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_jsonl(folder / "a.jsonl", [])
    log = tmp_path / "log"
    text = recipe(folder, log) + "export:\n"
    (folder / "b.csv").write_text("url,text\n")
    csv = run(recipe(folder / "b.csv", log).replace("  toy_double", "  toy_rank: {}\n  toy_double"))
    assert (csv.exit_code, csv.summary["rows"], csv.summary["kept"]) == (0, 0, 0)
    (folder / "b.csv").unlink()
    write_jsonl(folder / "c.jsonl", ["x"])
    mixed = run(text.replace("export:\n", ""))
    assert (mixed.exit_code, mixed.summary["rows"]) == (0, 1)


def test_the_first_unit_of_a_fresh_shard_is_its_base(tmp_path: Path, data: Path) -> None:
    text = recipe(data, tmp_path / "log")
    assert state(tmp_path / "ws", text).shards == ()


def test_what_is_missing_is_counted_by_rows(run: Runner, tmp_path: Path, data: Path) -> None:
    text = recipe(data, tmp_path / "log")
    run(text)
    found = state(tmp_path / "ws", text)
    assert [found.missing(k) for k in ("toy_length", "toy_double")] == [0, 0]
    (folder,) = (tmp_path / "ws" / "columns").glob("toy_double-*")
    victim = min(folder.glob("*.parquet"))
    victim.unlink()
    found = state(tmp_path / "ws", text)
    assert found.missing("toy_double") == 10
    passes = list(found.plan.steps)
    units = [u for s in found.contents if (u := found.next_unit(s, passes))]  # type: ignore[arg-type]
    (unit,) = units
    assert isinstance(unit, PassUnit)
    assert ([t.key for t in unit.tasks], unit.mode) == (["toy_double"], "base")
    assert unit.shard.content_id == victim.stem


def test_the_record_of_a_stage_says_how_it_was_made(
    run: Runner, tmp_path: Path, data: Path
) -> None:
    run(recipe(data, tmp_path / "log"))
    (path,) = (tmp_path / "ws" / "columns").glob("toy_length-*/_stage.json")
    record = json.loads(path.read_text())
    assert path.parent.name == f"toy_length-{record['fingerprint']}"
    assert record["parameters"] == {"factor": 1}
    assert record["columns"] == {"num_letters": "int32", "toy_length_error": "string"}
    assert record["libraries"] == library_versions()
    assert record["inputs"] == {"source": "source"}


def test_files_of_others_among_columns_change_nothing(
    run: Runner, tmp_path: Path, data: Path
) -> None:
    log, text = fetching(tmp_path, data)
    run(text)
    for folder in (tmp_path / "ws" / "columns").iterdir():
        (shard, *_) = (p.name.partition(".")[0] for p in folder.glob("*.parquet"))
        for name in ("README.rst", "notes.parquet", f"{shard}.readme.parquet", f"{shard}.rtf"):
            (folder / name).write_text("mine")
    assert run(text, retry_failed=True).exit_code == 0
    work(log)
    assert run(text).exit_code == 0
    assert work(log) == {}


@pytest.mark.parametrize(
    ("suffix", "parts"),
    [("", ""), (".r65793", "r65793"), (".g0123456789ab", "g0123456789ab"), (".gated", "gated")]
    + [(".readme", None), (".r", None), (".g0", None), (".r1.r2", None), (".tmp", None)],
)
def test_column_files_are_known_by_their_names(suffix: str, parts: str | None) -> None:
    for shard in ("0f" * 16, f"{'0f' * 16}~2"):
        expected = None if parts is None else (shard, parts)
        assert parse_column_file(f"{shard}{suffix}.parquet") == expected
        assert parse_column_file(f"{shard}{suffix}.json") is None
