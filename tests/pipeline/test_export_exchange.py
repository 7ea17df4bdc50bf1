"""The global shuffle: one order over all files, in two passes of which no unit holds all keys."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from winnow_exports import Backwards, exported, pictures, recipe, samples
from winnow_shards import Killed, kill_at, snapshot

from winnow.contracts.identity import row_uid, stable_hash64
from winnow.pipeline import export_exchange, placement
from winnow.pipeline.describe import plan_lines
from winnow.pipeline.export_plan import plan_export
from winnow.pipeline.plan import make_plan
from winnow.pipeline.recipe import parse_recipe
from winnow.pipeline.run import RunReport
from winnow.pipeline.storage import Storage
from winnow.pipeline.work import current_state

Runner = Callable[..., RunReport]
GLOBAL = "rows_per_file: 10, shuffle: global"
REPEATS = {11: 8, 12: 8, 30: 8, 31: 9, 33: 9, 35: 9, 38: 9}


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_exchange, "GROUP_ROWS", 6)


@pytest.mark.usefixtures("small_groups")
def test_order_keys_and_bytes_are_those_of_a_plain_sort(run: Runner, tmp_path: Path) -> None:
    """The naive way: all kept rows in source order, sorted by hash; repeats numbered as read."""
    rows = pictures(tmp_path / "t.parquet", repeat=REPEATS)
    found = samples(exported(run(recipe(tmp_path / "t.parquet", GLOBAL)), tmp_path))
    seen: Counter[str] = Counter()
    expected = []
    for row in (r for r in rows if r["n"] >= 5):
        uid = row_uid(row["url"], row["text"])
        suffix = f"-{seen[uid.hex()]}" if seen[uid.hex()] else ""
        seen[uid.hex()] += 1
        expected.append((stable_hash64(0, uid), len(expected), uid.hex() + suffix, row["image"]))
    assert max(seen.values()) == 5
    expected.sort()
    assert [(k, p["png"]) for _, k, p in found] == [(k, image) for _, _, k, image in expected]
    assert list(Counter(f for f, _, _ in found).values()) == [8, 9, 9, 9]


@pytest.mark.parametrize("kind", ["table", "folder"])
def test_neither_groups_nor_workers_change_a_byte(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "table":
        pictures(tmp_path / "t.parquet", repeat=REPEATS)
        text = recipe(tmp_path / "t.parquet", GLOBAL)
    else:
        (tmp_path / "media").mkdir()
        for i in range(40):
            image = b"\x89PNG\r\n\x1a\n" + random.Random(i).randbytes(50 + i)
            (tmp_path / "media" / f"{i:02}.png").write_bytes(image)
            (tmp_path / "media" / f"{i:02}.txt").write_text(f"caption {i}")
        text = recipe(tmp_path / "t.parquet", GLOBAL)
        table = f"use: url_table, path: '{tmp_path / 't.parquet'}'"
        text = text.replace(table, f"use: folder, path: '{tmp_path / 'media'}'")
        text = text.replace("n >= 5", "num_letters > 9")
    one = snapshot(exported(run(text), tmp_path))
    assert sum(n.endswith(".tar") for n in one) > 2
    monkeypatch.setattr(export_exchange, "GROUP_ROWS", 5)
    assert snapshot(exported(run(text, workspace=str(tmp_path / "b")), tmp_path, "b")) == one
    monkeypatch.setattr(placement, "InProcessExecutor", Backwards)
    assert snapshot(exported(run(text, workspace=str(tmp_path / "c")), tmp_path, "c")) == one


@pytest.mark.usefixtures("small_groups")
def test_killed_at_any_commit_it_ends_with_the_same_bytes(run: Runner, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pictures(path, rows=16, repeat={11: 8})
    text = recipe(path, "rows_per_file: 6, shuffle: global", least=3, shard=4)
    expected = snapshot(exported(run(text), tmp_path))
    killed = spooled = 0
    while True:
        workspace = tmp_path / f"k{killed}"
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, killed)
            try:
                run(text, workspace=str(workspace))
                break
            except Killed:
                pass
        spooled += bool(list(workspace.glob("exporting/*/*.arrow")))
        report = run(text, workspace=str(workspace))
        assert snapshot(exported(report, tmp_path, workspace.name)) == expected, killed
        assert not list(workspace.glob("exporting/*/*.arrow"))
        killed += 1
    assert spooled >= 3


def test_a_unit_reads_its_own_part_only(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a data file reads: its rows and at most two ends of a quarter, plus chance."""
    monkeypatch.setattr(export_exchange, "GROUP_ROWS", 100)
    path = tmp_path / "t.parquet"
    pictures(path, rows=1000)
    text = recipe(path, "rows_per_file: 50, shuffle: global", least=0, shard=50)
    read: Counter[str] = Counter()
    reading = export_exchange.MergeUnit._read

    def counted(self: export_exchange.MergeUnit, spool: object) -> object:
        for table in reading(self, spool):  # type: ignore[arg-type]
            read[self.name] += table.num_rows
            yield table

    monkeypatch.setattr(export_exchange.MergeUnit, "_read", counted)
    report = run(text)
    assert report.exit_code == 0
    assert len(read) == 20
    assert max(read.values()) < 120
    assert sum(read.values()) < 1500
    assert report.state is not None
    (entry,) = report.state.plan.recipe.exports
    exchange = plan_export(report.state, entry, report.summary).exchange
    assert exchange is not None
    assert max(sum(s.num_rows for s in g.shards) for g in exchange.groups) == 100


def lines(workspace: Path, text: str) -> list[str]:
    plan = make_plan(parse_recipe(text))
    found = list(plan_lines(plan, current_state(plan, Storage(str(workspace)))))
    at = next(i for i, line in enumerate(found) if line.startswith("export "))
    return found[at + 1 :]


def test_the_plan_says_what_it_costs(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_exchange, "GROUP_ROWS", 20)
    path = tmp_path / "t.parquet"
    pictures(path)
    text = recipe(path, GLOBAL)
    said = lines(tmp_path / "ws", text)
    assert said == [
        "  shuffle: global, a two-pass exchange: kept rows are read twice and written twice"
    ]
    run(text)
    other = lines(tmp_path / "ws", text.replace("n >= 5", "n >= 6"))
    assert other[0] == "  shuffle: global, a two-pass exchange of at most 40 rows"
    known = lines(tmp_path / "ws", text)
    assert known[0] == "  shuffle: global, a two-pass exchange of 35 rows"
    assert known[1:] == [
        "    pass 1 reads 10 shards and writes 2 files (media: about 0.0 MB) to exporting/",
        "    pass 2 writes 4 files; each opens all 2 of pass 1 and reads 1.25 times its own rows",
    ]
    assert lines(tmp_path / "ws", recipe(path)) == []
