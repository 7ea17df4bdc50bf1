"""Storage: a file is there when it is whole, and the first writer wins; locally and on S3."""

from __future__ import annotations

import errno
import os
import resource
import threading
from pathlib import Path

import pytest

from winnow.contracts.errors import SetupError
from winnow.pipeline.storage import Storage


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return Storage(str(tmp_path / "ws"))
    bucket = request.getfixturevalue("s3_bucket")
    return Storage(f"{bucket}/{tmp_path.name}")


def test_the_first_writer_wins(storage: Storage) -> None:
    assert storage.put("a/b.json", b"one")
    assert not storage.put("a/b.json", b"two")
    assert storage.read("a/b.json") == b"one"
    assert storage.exists("a/b.json")
    assert storage.names("a") == ["b.json"]
    assert storage.names("nothing") == []


def test_a_block_that_fails_leaves_nothing(storage: Storage) -> None:
    with pytest.raises(RuntimeError), storage.create("a/b.json") as commit:
        commit.file.write(b"half")
        raise RuntimeError
    assert not storage.exists("a/b.json")
    assert storage.names("a") == []
    assert storage.temporaries() == []


def test_many_writers_leave_one_whole_file(storage: Storage) -> None:
    won = []

    def write(number: int) -> None:
        other = Storage(storage.root)
        won.append(other.put("contested", bytes([number]) * 100_000))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    data = storage.read("contested")
    assert len(data) == 100_000
    assert len(set(data)) == 1
    assert sum(won) == 1


def test_remove_and_replace(storage: Storage) -> None:
    storage.put("x/y/z", b"1")
    storage.replace("x/latest", b"1")
    storage.replace("x/latest", b"2")
    assert storage.read("x/latest") == b"2"
    storage.remove("x/y")
    assert storage.names("x") == ["latest"]


def test_an_unwritable_workspace_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SetupError, match="not writable"):
            Storage(str(root)).check_writable()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_without_hard_links_the_first_writer_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems have none (exFAT, mounts of other machines)."""

    def refuse(source: object, target: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    storage = Storage(str(tmp_path))
    assert storage.put("a/b", b"one")
    assert not storage.put("a/b", b"two")
    assert storage.read("a/b") == b"one"
    assert storage.temporaries() == []


def test_a_full_disk_leaves_what_was_there_and_no_half_file(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.replace("latest", b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        for write in (storage.replace, storage.put):
            with pytest.raises(OSError, match="File too large"):
                write("latest", b"x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"latest": b"old"}


def test_of_a_link_the_link_is_removed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("x")
    storage = Storage(str(tmp_path / "ws"))
    storage.put("export/other", b"")
    (tmp_path / "ws" / "export" / "link").symlink_to(tmp_path / "elsewhere")
    storage.remove("export/link")
    assert storage.names("export") == ["other"]
    assert (tmp_path / "elsewhere" / "file").read_text() == "x"


def test_a_link_to_nowhere_is_no_workspace(tmp_path: Path) -> None:
    (tmp_path / "ws").symlink_to(tmp_path / "gone")
    with pytest.raises(SetupError, match="ws is not a folder"):
        Storage(str(tmp_path / "ws")).check_writable()
