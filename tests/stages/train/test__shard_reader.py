"""Samples of one tar: grouped as webdataset groups them, torn anywhere, from any path."""

from __future__ import annotations

import http.server
import io
import json
import re
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.contracts.errors import SetupError, ShardError
from winnow.stages.train import _shard_reader
from winnow.stages.train._shard_reader import (
    KEY,
    Sample,
    count_samples,
    read_shard,
    remote_shards,
    shard_sizes,
)

Members = Sequence[tuple[str, bytes]]


def tar_bytes(members: Members) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def every(extension: str) -> bool:
    return True


def grouped(members: Members, wanted: Callable[[str], bool]) -> list[Sample]:
    """The contract as a loop: webdataset's split of a name, runs of one key, the first counts."""
    samples: list[Sample] = []
    for name, data in members:
        match = re.fullmatch(r"((?:.*/)?[^.]+)[.]([^/]*)", name)
        if match is None or name.startswith("__"):
            continue
        key, extension = match[1], match[2].lower()
        if not samples or samples[-1][KEY] != key:
            samples.append({KEY: key})
        if wanted(extension):
            samples[-1].setdefault(extension, data)
    return samples


NAMES = st.builds(
    "{}{}.{}".format,
    st.sampled_from(["", "a/", "a.b/", "\u00e4 \u4e2d/"]),
    st.sampled_from(["k", "k1", "K", "k 2", "\u00fc"]),
    st.sampled_from(["txt", "TXT", "json", "seg.png", "Png", ""]),
)


@given(
    members=st.lists(st.tuples(NAMES, st.binary(max_size=600)), max_size=12), cut=st.floats(0, 1)
)
@settings(max_examples=40, deadline=None)
def test_samples_are_those_of_a_loop_over_members(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, bytes]], cut: float
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.tar"
    data = tar_bytes(members)
    path.write_bytes(data)
    assert list(read_shard(str(path), every)) == grouped(members, every)
    few = {"txt", "png"}.__contains__
    assert list(read_shard(str(path), few)) == grouped(members, few)
    assert count_samples(str(path)) == len(grouped(members, every))
    path.write_bytes(data[: int(cut * len(data))])
    found, error = until_error(read_shard(str(path), every))
    whole = grouped(members, every)
    if error is None:
        assert found == whole[: len(found)]
    else:
        assert not error.retryable
        assert found == whole[: len(found)] and len(found) < max(1, len(whole))


def until_error(samples: Iterator[Sample]) -> tuple[list[Sample], ShardError | None]:
    found: list[Sample] = []
    try:
        for sample in samples:
            found.append(sample)
    except ShardError as error:
        return found, error
    return found, None


def test_a_cut_at_any_block_gives_no_sample_that_is_not_whole(tmp_path: Path) -> None:
    members = [(f"k{n}.{kind}", bytes([n]) * 700) for n in range(3) for kind in ("png", "txt")]
    data, path = tar_bytes(members), tmp_path / "a.tar"
    whole = grouped(members, every)
    for size in range(0, len(data), 512):
        path.write_bytes(data[:size])
        found, error = until_error(read_shard(str(path), every))
        assert found == whole[: len(found)], size
        assert error is not None or found == whole, size


def test_members_of_one_key_apart_and_twice() -> None:
    """The contract in one example, so that the loop above is not trusted alone."""
    members = [
        ("a.txt", b"1"), ("a.TXT", b"2"), ("b.txt", b"3"), ("a.txt", b"4"), ("noext", b"5"),
        ("a.seg.png", b"6"), ("__meta__", b"7"), ("d.d/a.txt", b"8"),
    ]  # fmt: skip
    assert grouped(members, every) == [
        {KEY: "a", "txt": b"1"},
        {KEY: "b", "txt": b"3"},
        {KEY: "a", "txt": b"4", "seg.png": b"6"},
        {KEY: "d.d/a", "txt": b"8"},
    ]


def test_a_member_over_the_limit_is_as_if_it_were_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_shard_reader, "MAX_MEMBER_BYTES", 600)
    path = tmp_path / "a b.tar"
    path.write_bytes(tar_bytes([("k.png", bytes(601)), ("k.txt", bytes(600)), ("l.png", b"1")]))
    expected = [{KEY: "k", "txt": bytes(600)}, {KEY: "l", "png": b"1"}]
    assert list(read_shard(str(path), every)) == expected
    assert count_samples(str(path)) == 2


@pytest.mark.parametrize(
    "text",
    ['{"a.tar": Infinity}', '{"a.tar": 1e999}', '{"a.tar": -3}', '{"a.tar": null}', '["a.tar"]',
     "[" * 100_000, "", "\x00", '{"a.tar": NaN}'],
)  # fmt: skip
def test_sizes_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "sizes.json").write_text(text)
    with pytest.raises(SetupError, match="should map the names of tars to their sizes"):
        shard_sizes([str(tmp_path / "a.tar")])


@pytest.fixture
def dying_server() -> Iterator[str]:
    """A store over HTTP that breaks every connection in the middle of the first file."""
    body = tar_bytes([(f"k{n}.png", bytes(30_000)) for n in range(20)])

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(body[: len(body) // 2])

        def log_message(self, *arguments: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_connection_that_breaks_can_be_tried_again(dying_server: str) -> None:
    with pytest.raises(ShardError, match=r"a\.tar cannot be read to its end") as caught:
        list(read_shard(f"{dying_server}/a.tar", every))
    assert caught.value.retryable
    with pytest.raises(SetupError, match="cannot be listed"):
        remote_shards(dying_server)


def test_a_list_of_a_store_names_its_shards() -> None:
    store = fsspec.filesystem("memory")
    for name in ("b c.tar", "a.tar", "notes.txt"):
        store.pipe(f"/lists \u00fc/{name}", tar_bytes([("k.txt", b"1")]))
    folder = "memory://lists \u00fc"
    assert remote_shards(folder) == [f"{folder}/a.tar", f"{folder}/b c.tar"]
    assert remote_shards(f"{folder}/b c.tar") == [f"{folder}/b c.tar"]
    assert shard_sizes(remote_shards(f"{folder}/")) == {
        f"{folder}/a.tar": 1, f"{folder}/b c.tar": 1
    }  # fmt: skip
    store.pipe("/lists \u00fc/sizes.json", json.dumps({"b c.tar": 7}).encode())
    assert shard_sizes(remote_shards(folder)) == {f"{folder}/b c.tar": 7}
    store.rm("/lists \u00fc", recursive=True)
