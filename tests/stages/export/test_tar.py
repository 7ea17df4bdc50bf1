"""Our headers against tarfile's and GNU tar's reading of them."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from winnow.stages.export._tar import FLUSH_BYTES, MAX_SIZE_BYTES, TarWriter, tar_header


def written(members: list[tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    writer = TarWriter(out)
    for name, data in members:
        writer.add(name, data)
    writer.close()
    return out.getvalue()


def by_tarfile(members: list[tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


NAMES = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\0/"), min_size=1, max_size=150
)


@given(st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=8))
def test_bytes_are_those_of_tarfile(members: list[tuple[str, bytes]]) -> None:
    # A name that ends in "/" would be a folder; tarfile strips it, so there is none here.
    assert written(members) == by_tarfile(members)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, MAX_SIZE_BYTES, MAX_SIZE_BYTES + 1, 10**12])
def test_header_of_any_size_is_that_of_tarfile(size: int) -> None:
    info = tarfile.TarInfo("a.jpg")
    info.size = size
    assert tar_header("a.jpg", size) == info.tobuf(tarfile.PAX_FORMAT)


def test_a_large_archive_comes_out_whole_though_it_is_written_in_pieces() -> None:
    members = [
        (f"{i:06d}.bin", bytes([i % 256]) * 30_000) for i in range(3 * FLUSH_BYTES // 30_000)
    ]
    assert written(members) == by_tarfile(members)


def test_headers_name_no_time_no_owner_and_no_host() -> None:
    with tarfile.open(fileobj=io.BytesIO(written([("a.txt", b"x")]))) as tar:
        (info,) = tar.getmembers()
    said = (info.mode, info.uid, info.gid, info.uname, info.gname, info.mtime, info.pax_headers)
    assert said == (0o644, 0, 0, "", "", 0, {})


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar command")
def test_gnu_tar_lists_and_extracts(tmp_path: Path) -> None:
    long, foreign = "k" * 130 + ".sidecar.json", "\u732b.txt"
    members = [("a.jpg", b"\xff\xd8" * 700), (long, b"{}"), (foreign, b"meow"), ("empty.txt", b"")]
    archive = tmp_path / "a.tar"
    archive.write_bytes(written(members))
    command = ["tar", "--list", "--quoting-style=literal", "--file", str(archive)]
    listed = subprocess.run(command, check=True, capture_output=True, env={"LC_ALL": "C.UTF-8"})
    assert listed.stdout.decode().splitlines() == [name for name, _ in members]
    assert listed.stderr == b""
    subprocess.run(["tar", "-xf", str(archive), "-C", str(tmp_path)], check=True)
    assert [(tmp_path / name).read_bytes() for name, _ in members] == [d for _, d in members]
