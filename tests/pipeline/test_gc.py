"""gc removes what no recorded recipe uses, and nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from winnow_shards import snapshot, write_jsonl

from winnow.contracts.errors import SetupError
from winnow.pipeline.gc import collect, find_garbage
from winnow.pipeline.run import RunReport
from winnow.pipeline.storage import Storage

Runner = Callable[..., RunReport]


def recipe(path: Path, name: str, *, factor: int = 1, least: int = 2, extra: str = "") -> str:
    return f"""
name: {name}
rows_per_shard: 4
source: {{use: url_table, path: '{path}'}}
stages:
  toy_length: {{factor: {factor}}}
  toy_rank: {{}}
{extra}filters:
  f: {{use: where, expression: "num_letters >= {least}", on_null: drop}}
export:
  train: {{rows_per_file: 5}}
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    table(folder / "a.parquet", 10)
    return folder


def table(path: Path, rows: int, start: int = 0) -> None:
    texts = ["x" * (i % 5 + 1) + str(i) for i in range(start, start + rows)]
    image = pa.array([b"\xff\xd8\xff" + t.encode() for t in texts], pa.large_binary())
    pq.write_table(pa.table({"url": texts, "text": texts, "image": image}), path)


def forget(workspace: Path, name: str) -> None:
    """Delete a recipe's file in runs/."""
    (found,) = [
        p for p in (workspace / "runs").glob("*.yaml") if f"name: {name}\n" in p.read_text()
    ]
    found.unlink()


def test_what_a_forgotten_recipe_used_goes_and_the_rest_stays(
    run: Runner, tmp_path: Path, data: Path
) -> None:
    workspace = tmp_path / "ws"
    kept = recipe(data, "kept")
    run(kept)
    before = snapshot(workspace)
    run(recipe(data, "gone", factor=3, least=5, extra="  toy_double: {}\n"))
    run(recipe(data, "gone_too", least=3))
    assert find_garbage(Storage(str(workspace))).names == tuple(
        f"exporting/{p.name}" for p in sorted((workspace / "exporting").iterdir())
    )
    forget(workspace, "gone")
    forget(workspace, "gone_too")
    everything = snapshot(workspace)
    storage = Storage(str(workspace))
    garbage = find_garbage(storage)
    assert snapshot(workspace) == everything
    collect(storage, garbage)
    after = snapshot(workspace)
    removed = {n: b for n, b in everything.items() if n not in after}
    assert garbage.size_bytes == sum(map(len, removed.values()))
    unneeded = ("exporting/", "runs/_latest")
    expected = {n: b for n, b in before.items() if not n.startswith(unneeded)}
    assert {n: b for n, b in after.items() if not n.startswith(unneeded)} == expected
    assert {n.split("/")[0] for n in removed} == {
        "columns",
        "ledger",
        "export",
        "exporting",
        "runs",
    }
    report = run(kept)
    assert (report.computed_rows, report.exit_code) == (0, 0)
    assert find_garbage(storage).names == ()


def test_shared_columns_stay_while_one_recipe_uses_them(
    run: Runner, tmp_path: Path, data: Path
) -> None:
    workspace = tmp_path / "ws"
    run(recipe(data, "one"))
    run(recipe(data, "two", least=4))
    forget(workspace, "one")
    names = find_garbage(Storage(str(workspace))).names
    kinds = sorted(n.split("/")[0] for n in names)
    assert kinds == ["export", "exporting", "exporting", "ledger", "runs"]


FETCH = """
name: {name}
rows_per_shard: 4
source: {{use: url_table, path: '{data}'}}
stages:
  toy_fetch: {{folder: '{folder}'}}
  toy_fetched_length: {{}}
  toy_length: {{}}
  toy_rank: {{}}
  split: {{use: toy_double, when: "fetched_length > 0"}}
filters:
  f: {{use: where, expression: "fetched_length >= {least} or rank >= 0", on_null: drop}}
export:
  train: {{rows_per_file: 5}}
"""


def test_another_recipes_patches_leave_what_a_recipe_made(
    run: Runner, tmp_path: Path, data: Path
) -> None:
    """A retry under recipe B gives A's selection another name; A's export is still A's."""
    workspace, folder = tmp_path / "ws", tmp_path / "served"
    folder.mkdir()
    storage = Storage(str(workspace))
    one = FETCH.format(name="one", data=data, folder=folder, least=1)
    two = FETCH.format(name="two", data=data, folder=folder, least=2)
    made = run(one)
    (folder / "x0").write_text("now it is here")
    other = run(two, retry_failed=True)
    assert other.computed_rows > 0
    names = find_garbage(storage).names
    assert {n.split("/")[0] for n in names} == {"exporting"}
    collect(storage, find_garbage(storage))
    assert (workspace / made.exports["train"] / "manifest.parquet").exists()
    again = run(one)
    assert again.selection != made.selection
    garbage = find_garbage(storage).names
    assert made.exports["train"] in garbage
    assert f"ledger/{made.selection}" in garbage
    assert again.exports["train"] not in garbage
    assert other.exports["train"] not in garbage


def test_a_file_that_was_not_read_yet_makes_nothing_garbage(
    run: Runner, tmp_path: Path, data: Path
) -> None:
    """Else adding a file and tidying up would throw away every annotation."""
    text = recipe(data, "one")
    run(text)
    table(data / "b.parquet", 4, start=50)
    everything = snapshot(tmp_path / "ws")
    with pytest.raises(SetupError, match=r"has source files that were not read yet, so nothing"):
        find_garbage(Storage(str(tmp_path / "ws")))
    assert snapshot(tmp_path / "ws") == everything
    assert run(text).computed_rows == 4 + 14


def test_a_file_that_changed_leaves_its_old_rows_as_garbage(
    run: Runner, tmp_path: Path, data: Path
) -> None:
    text = recipe(data, "one")
    run(text)
    time.sleep(0.01)
    table(data / "a.parquet", 6, start=4)
    run(text)
    names = find_garbage(Storage(str(tmp_path / "ws"))).names
    kinds = [n.split("/")[0] if not n.startswith("rows/_") else "index" for n in names]
    assert {k: kinds.count(k) for k in kinds} == {
        "columns": 2,  # toy_rank over the old pool, toy_length of the shard that changed
        "export": 1,
        "exporting": 2,
        "index": 1,
        "ledger": 1,
        "rows": 1,
    }
    storage = Storage(str(tmp_path / "ws"))
    collect(storage, find_garbage(storage))
    assert find_garbage(storage).names == ()
    assert run(text).computed_rows == 0


def test_what_a_killed_run_left_goes_after_an_hour(run: Runner, tmp_path: Path, data: Path) -> None:
    workspace = tmp_path / "ws"
    run(recipe(data, "one"))
    (folder,) = workspace.glob("columns/toy_length-*")
    for name, age in ((f"1-{'0' * 12}", 7200), (f"2-{'0' * 12}", 0)):
        path = folder / f".tmp-{name}"
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age, time.time() - age))
    names = find_garbage(Storage(str(workspace))).names
    assert [n for n in names if ".tmp-" in n] == [f"columns/{folder.name}/.tmp-1-{'0' * 12}"]


@pytest.mark.parametrize("how", ["source", "recipe"])
def test_a_recipe_that_cannot_be_followed_stops_it(
    run: Runner, tmp_path: Path, data: Path, how: str
) -> None:
    run(recipe(data, "one"))
    if how == "source":
        (data / "a.parquet").unlink()
    else:
        (tmp_path / "ws" / "runs" / "x.yaml").write_text("name: x\nsource: {use: nothing}\n")
    with pytest.raises(
        SetupError, match=r"runs/\w+.yaml cannot be followed, so nothing is removed"
    ):
        find_garbage(Storage(str(tmp_path / "ws")))


def test_a_folder_that_is_no_workspace_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "mine" / "columns" / "f", ["x"])
    with pytest.raises(SetupError, match="does not look like a workspace"):
        find_garbage(Storage(str(tmp_path / "mine")))


def test_what_winnow_did_not_make_stays(run: Runner, tmp_path: Path, data: Path) -> None:
    workspace = tmp_path / "ws"
    run(recipe(data, "one"))
    run(recipe(data, "gone", factor=2))
    forget(workspace, "gone")
    (rank, *_) = (p.name for p in workspace.glob("columns/toy_rank-*"))
    mine = [
        "export/mine/photo.jpg",
        "export/photos-202401011200/1.jpg",
        "export/notes.txt",
        "columns/notes.md",
        "columns/mine/x.parquet",
        f"columns/{rank}/notes.parquet",
        f"columns/{rank}/README.rst",
        "ledger/2024.txt",
        "ledger/accounts/x",
        "rows/table.parquet",
        "rows/_files/list.json",
        "exporting/mine/x",
        "runs/notes.txt",
        ".tmp-mine/thesis.txt",
        "docs/.tmp-draft",
        "docs/.tmp-1-00000000000g",
    ]
    for name in mine:
        path = workspace / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        for old in (path, path.parent):
            os.utime(old, (1, 1))
    storage = Storage(str(workspace))
    garbage = find_garbage(storage)
    collect(storage, garbage)
    assert {n.split("/")[0] for n in garbage.names} >= {"columns", "ledger", "export", "exporting"}
    assert [n for n in mine if not (workspace / n).exists()] == []
    assert find_garbage(storage).names == ()


class Late(Storage):
    """A run makes ``made`` while the recipes are followed."""

    made: str

    def read(self, name: str) -> bytes:
        if name.endswith(".yaml"):
            self.put(self.made, b"")
        return super().read(name)


@pytest.mark.parametrize(
    "made",
    [f"columns/toy-{'a' * 32}/_stage.json", f"ledger/{'a' * 32}/x", f"rows/{'a' * 32}.parquet"],
)
def test_what_is_made_meanwhile_is_no_garbage(
    run: Runner, tmp_path: Path, data: Path, made: str
) -> None:
    run(recipe(data, "one"))
    storage = Late(str(tmp_path / "ws"))
    storage.made = made
    assert not [n for n in find_garbage(storage).names if made.startswith(n)]
    assert [n for n in find_garbage(storage).names if made.startswith(n)] != []


class Stuck(Storage):
    """Removes nothing, as where there is no permission."""

    def remove(self, name: str) -> None:
        pass


def test_what_could_not_be_removed_is_named(run: Runner, tmp_path: Path, data: Path) -> None:
    run(recipe(data, "one"))
    storage = Stuck(str(tmp_path / "ws"))
    garbage = find_garbage(storage)
    with pytest.raises(SetupError, match=r"exporting/train-\w+ could not be removed"):
        collect(storage, garbage)


def test_a_damaged_record_removes_nothing(run: Runner, tmp_path: Path, data: Path) -> None:
    run(recipe(data, "one"))
    (record,) = (p for p in (tmp_path / "ws" / "runs").glob("*.json") if p.name[0] != "_")
    record.write_text("")
    with pytest.raises(SetupError, match=rf"{record.name} is damaged, so nothing is removed"):
        find_garbage(Storage(str(tmp_path / "ws")))
