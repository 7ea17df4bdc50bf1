"""Exports: keys, order, bytes, and nothing that depends on how the work was done."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from winnow_exports import Backwards, exported, pictures, recipe, samples
from winnow_shards import Killed, kill_at, snapshot

from winnow.contracts.identity import row_uid, stable_hash64
from winnow.pipeline import placement
from winnow.pipeline.export_plan import _cuts, _groups
from winnow.pipeline.run import RunReport
from winnow.pipeline.shards import Shard
from winnow.pipeline.storage import Storage

Runner = Callable[..., RunReport]


def test_exported_bytes_are_the_originals_and_the_manifest_is_what_was_exported(
    run: Runner, tmp_path: Path
) -> None:
    rows = pictures(tmp_path / "t.parquet")
    folder = exported(run(recipe(tmp_path / "t.parquet")), tmp_path)
    found = samples(folder)
    kept = {row_uid(r["url"], r["text"]).hex(): r for r in rows if r["n"] >= 5}
    assert sorted(k for _, k, _ in found) == sorted(kept)
    for _, key, parts in found:
        assert parts["png"] == kept[key]["image"]
        assert parts["txt"].decode() == (kept[key]["text"] or "")
        assert json.loads(parts["json"])["n"] == kept[key]["n"]
    manifest = pq.read_table(folder / "manifest.parquet").to_pylist()
    assert [(m["file"], m["key"]) for m in manifest] == [(f, k) for f, k, _ in found]
    assert [m["uid"].hex for m in manifest] == [k for _, k, _ in found]
    assert [m["num_letters"] for m in manifest] == [
        None if kept[k]["text"] is None else len(kept[k]["text"]) for _, k, _ in found
    ]
    sizes = json.loads((folder / "sizes.json").read_text())
    assert sizes == Counter(f for f, _, _ in found)
    assert max(sizes.values()) <= 12
    inventory = json.loads((folder / "files.json").read_text())["files"]
    import hashlib

    for file in inventory:
        data = (folder / file["name"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_rows_are_in_order_of_hash_within_a_bucket_and_in_one_file_each(
    run: Runner, tmp_path: Path
) -> None:
    pictures(tmp_path / "t.parquet")
    report = run(recipe(tmp_path / "t.parquet", "rows_per_file: 100, seed: 9"))
    found = samples(exported(report, tmp_path))
    hashes = [stable_hash64(9, bytes.fromhex(key)) for _, key, _ in found]
    assert {f for f, _, _ in found} == {"00000.tar"}
    assert hashes == sorted(hashes)


def test_a_global_shuffle_is_one_order_over_all_files(run: Runner, tmp_path: Path) -> None:
    pictures(tmp_path / "t.parquet")
    path = tmp_path / "t.parquet"
    found = samples(exported(run(recipe(path, "rows_per_file: 10, shuffle: global")), tmp_path))
    hashes = [stable_hash64(0, bytes.fromhex(key)) for _, key, _ in found]
    assert hashes == sorted(hashes)
    assert list(Counter(f for f, _, _ in found).values()) == [8, 9, 9, 9]
    bucket = samples(exported(run(recipe(path, "rows_per_file: 10")), tmp_path))
    assert sorted(k for _, k, _ in bucket) == sorted(k for _, k, _ in found)
    assert [k for _, k, _ in bucket] != [k for _, k, _ in found]


def test_a_seed_changes_the_order_and_nothing_else(run: Runner, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pictures(path)
    one = samples(exported(run(recipe(path)), tmp_path))
    other = samples(exported(run(recipe(path, "rows_per_file: 12, seed: 1")), tmp_path))
    assert [k for _, k, _ in one] != [k for _, k, _ in other]
    assert {k: p for _, k, p in one} == {k: p for _, k, p in other}


def test_repeats_get_keys_of_their_own_in_source_order(run: Runner, tmp_path: Path) -> None:
    rows = pictures(tmp_path / "t.parquet", repeat={11: 8, 12: 8, 30: 8, 31: 9})
    folder = exported(run(recipe(tmp_path / "t.parquet")), tmp_path)
    by_key = {key: parts["png"] for _, key, parts in samples(folder)}
    assert len(by_key) == 35
    eight = row_uid("http://h/8", "caption 8").hex()
    images = [by_key[eight + suffix] for suffix in ("", "-1", "-2", "-3")]
    assert images == [rows[i]["image"] for i in (8, 11, 12, 30)]
    nine = row_uid("http://h/9", "caption 9").hex()
    assert by_key[f"{nine}-1"] == rows[31]["image"]
    keys = pq.read_table(folder / "manifest.parquet").column("key").to_pylist()
    assert len(set(keys)) == 35


def test_who_does_the_work_and_when_changes_no_byte(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.parquet"
    pictures(path, repeat={11: 8, 20: 9})
    one = snapshot(exported(run(recipe(path)), tmp_path))
    monkeypatch.setattr(placement, "InProcessExecutor", Backwards)
    report = run(recipe(path), workspace=str(tmp_path / "other"))
    other = snapshot(exported(report, tmp_path, "other"))
    assert len(one) >= 7
    assert one == other


@pytest.mark.parametrize(
    "export",
    [
        "rows_per_file: 5",
        "rows_per_file: 5, shuffle: global",
        "use: parquet",
    ],
)
def test_no_row_is_kept(run: Runner, tmp_path: Path, export: str) -> None:
    pictures(tmp_path / "t.parquet")
    report = run(recipe(tmp_path / "t.parquet", export, least=1000))
    folder = exported(report, tmp_path)
    assert report.summary["kept"] == 0
    manifest = pq.read_table(folder / "manifest.parquet")
    assert manifest.num_rows == 0
    assert {"uid", "key", "file", "n", "num_letters"} <= set(manifest.column_names)
    assert json.loads((folder / "files.json").read_text())["files"][0]["rows"] == 0
    assert (folder / "README.md").read_text()


def test_an_export_changes_with_what_is_in_it(run: Runner, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pictures(path)
    text = recipe(path)
    base = run(text).exports["train"]
    assert run(text.replace("name: pictures", "name: other")).exports["train"] == base
    licensed = text.replace("name: pictures", "name: pictures\nlicense: CC0-1.0")
    assert run(licensed).exports["train"] != base
    changed = [
        text.replace("n >= 5", "n >= 6"),
        text.replace("rows_per_file: 12", "rows_per_file: 13"),
        text.replace("toy_length: }", "toy_length: {factor: 3}}"),
        text.replace("toy_length: }", "toy_length: {when: 'n > 8'}}"),
    ]
    folders = [run(t).exports["train"] for t in changed]
    assert len({base, *folders}) == 5
    narrow = pq.read_table(tmp_path / "ws" / folders[3] / "manifest.parquet").to_pylist()
    assert {m["n"] for m in narrow if m["num_letters"] is not None} <= set(range(9, 40))


def test_a_run_killed_at_any_commit_ends_with_the_same_bytes(run: Runner, tmp_path: Path) -> None:
    """Every commit of a run with a source, a stage, a selection and an export, one by one."""
    path = tmp_path / "t.parquet"
    pictures(path, rows=12, repeat={11: 8})
    text = recipe(path, "rows_per_file: 20", least=3, shard=6)
    whole = exported(run(text), tmp_path).parents[1]
    expected = {k: v for k, v in snapshot(whole).items() if k.startswith(("ledger", "export/"))}
    killed = 0
    while True:
        workspace = tmp_path / f"k{killed}"
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, killed)
            try:
                run(text, workspace=str(workspace))
                break
            except Killed:
                pass
        assert run(text, workspace=str(workspace)).exit_code == 0
        found = {
            k: v for k, v in snapshot(workspace).items() if k.startswith(("ledger", "export/"))
        }
        assert found == expected, f"killed at commit {killed}"
        killed += 1
    assert killed > 12


@pytest.mark.parametrize(
    ("rows", "limit"), [(1, 1), (10, 10), (11, 10), (29, 10), (7, 3), (100, 7)]
)
def test_a_bucket_is_cut_into_nearly_equal_files(rows: int, limit: int) -> None:
    cuts = _cuts(rows, limit)
    assert sum(cuts) == rows
    assert 0 < min(cuts) <= max(cuts) <= limit
    assert max(cuts) - min(cuts) <= 1
    assert len(cuts) == -(-rows // limit)


def test_buckets_take_whole_shards_and_skip_those_without_kept_rows() -> None:
    counts = [3, 0, 4, 5, 0, 0, 9, 1, 0]
    shards = [
        Shard(id=str(i), content_id=str(i), num_rows=9, file="f", first_row=0)
        for i in range(len(counts))
    ]
    kept = {str(i): n for i, n in enumerate(counts)}
    groups = [[s.id for s in g] for g in _groups(shards, kept, 6)]
    assert groups == [["0", "2"], ["3", "6"], ["7"]]
    assert list(_groups(shards[:1], {"0": 0}, 6)) == []


@pytest.mark.parametrize("more", ["rows_per_file: 20", "rows_per_file: 20, shuffle: global"])
def test_a_file_of_a_killed_run_with_other_bytes_is_not_called_ours(
    run: Runner, tmp_path: Path, more: str
) -> None:
    """Media, or a library, changed between the kill and the next run: the sums would be wrong."""
    path = tmp_path / "t.parquet"
    pictures(path, rows=12)
    text = recipe(path, more, least=3, shard=6)
    whole = snapshot(exported(run(text), tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        put = Storage.put

        def killed(self: Storage, name: str, data: bytes) -> bool:
            if name.endswith("00000.tar.json"):
                raise Killed
            return put(self, name, data)

        patch.setattr(Storage, "put", killed)
        with pytest.raises(Killed):
            run(text, workspace=str(tmp_path / "again"))
    (tar,) = (tmp_path / "again").glob("export/*/00000.tar")
    tar.write_bytes(tar.read_bytes() + b"other")
    report = run(text, workspace=str(tmp_path / "again"))
    (failure,) = report.failures
    assert "00000.tar was written before, with other bytes" in str(failure)
    assert failure.attempts == 1
    for folder in ("export", "exporting"):
        shutil.rmtree(tmp_path / "again" / folder)
    report = run(text, workspace=str(tmp_path / "again"))
    assert snapshot(tmp_path / "again" / report.exports["train"]) == whole
