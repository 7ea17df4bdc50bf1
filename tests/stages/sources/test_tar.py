"""The header walk against tarfile: same names, offsets and sizes on tars of every writer."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from winnow.contracts.errors import ShardError
from winnow.stages.sources._tar import Member, TarWalk

LONG = "d" * 90 + "/" + "e" * 80 + "/" + "f" * 150 + ".jpg"
GNU_TAR = subprocess.run(["tar", "--version"], capture_output=True, check=False).stdout
needs_gnu_tar = pytest.mark.skipif(b"GNU tar" not in GNU_TAR, reason="needs GNU tar")


def walk(path: Path) -> list[tuple[Member, bytes]]:
    with path.open("rb") as stream:
        tar = TarWalk(stream, str(path), lambda: path.open("rb"))
        return [(m, b"".join(tar.content(m)) if m.plain else b"") for m in tar]


def assert_equals_tarfile(path: Path) -> list[Member]:
    found = walk(path)
    with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as archive:
        expected = archive.getmembers()
        assert [m.name for m, _ in found] == [
            t.name + ("/" if t.isdir() and m.name.endswith("/") else "")
            for t, (m, _) in zip(expected, found, strict=True)
        ]
        for info, (member, data) in zip(expected, found, strict=True):
            assert member.regular == info.isreg()
            assert member.folder == info.isdir()
            assert member.plain == (info.isreg() and not info.issparse())
            if member.plain:
                assert (member.offset, member.size) == (info.offset_data, info.size)
                stored = archive.extractfile(info)
                assert stored is not None
                assert data == stored.read()
    return [m for m, _ in found]


def add(archive: tarfile.TarFile, name: str, data: bytes = b"x", **fields: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_all_formats_of_tarfile(tmp_path: Path, form: int) -> None:
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w", format=form, encoding="utf-8") as archive:
        add(archive, "a.jpg", b"")
        add(archive, "b.jpg", os.urandom(511))
        add(archive, "c.jpg", os.urandom(512))
        add(archive, "d/" * 20 + "n" * 95 + ".jpg", os.urandom(513))
        add(archive, "größe 猫.jpg")
        add(archive, "folder", b"", type=tarfile.DIRTYPE)
        add(archive, "link.jpg", b"", type=tarfile.SYMTYPE, linkname="a.jpg")
        add(archive, "hard.jpg", b"", type=tarfile.LNKTYPE, linkname="a.jpg")
        add(archive, "pipe.jpg", b"", type=tarfile.FIFOTYPE)
        add(archive, "old/", b"", type=tarfile.AREGTYPE)
        add(archive, "old.jpg", b"old", type=tarfile.AREGTYPE)
        add(archive, "contiguous.jpg", b"cont", type=tarfile.CONTTYPE)
        if form != tarfile.USTAR_FORMAT:
            add(archive, LONG, b"long", mtime=1.5 if form == tarfile.PAX_FORMAT else 1)
            add(archive, LONG + "l", b"", type=tarfile.SYMTYPE, linkname=LONG)
            add(archive, "after.jpg", b"after", uname="ü" * 20)
    members = assert_equals_tarfile(path)
    assert len(members) == (12 if form == tarfile.USTAR_FORMAT else 15)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(
            st.text(
                st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1
            ).map(lambda name: name.strip("/") or "n"),
            st.binary(max_size=1500),
            st.floats(0, 1e9) | st.integers(0, 2**33),
        ),
        max_size=8,
    ),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_any_names_and_contents(
    tmp_path: Path, entries: list[tuple[str, bytes, float]], form: int
) -> None:
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w", format=form, encoding="utf-8") as archive:
        for name, data, mtime in entries:
            add(archive, name, data, mtime=mtime)
    if entries:
        assert_equals_tarfile(path)
    assert [data for _, data in walk(path)] == [data for _, data, _ in entries]


@needs_gnu_tar
@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_all_formats_of_gnu_tar(tmp_path: Path, form: str) -> None:
    root = tmp_path / "root"
    long_names = form in ("oldgnu", "gnu", "posix")
    (root / "sub.dir").mkdir(parents=True)
    (root / "a.jpg").write_bytes(os.urandom(3000))
    (root / "sub.dir/b.c.txt").write_bytes(b"text")
    (root / "link.jpg").symlink_to("a.jpg")
    (root / "hard.jpg").hardlink_to(root / "a.jpg")
    (root / os.fsdecode(b"latin\xe9.jpg")).write_bytes(b"name")
    if long_names:
        (root / ("x" * 150 + ".jpg")).write_bytes(b"long")
    path = tmp_path / "t.tar"
    subprocess.run(["tar", f"--format={form}", "-C", root, "-cf", path, "."], check=True)
    members = assert_equals_tarfile(path)
    assert len(members) == 7 + long_names


@needs_gnu_tar
@pytest.mark.parametrize(
    "form", ["gnu", "posix", "posix --sparse-version=0.0", "posix --sparse-version=0.1"]
)
def test_sparse_files_are_seen_and_the_rest_is_read(tmp_path: Path, form: str) -> None:
    with (tmp_path / "hole.jpg").open("wb") as out:
        for i in range(40):
            out.seek(i * 100_000)
            out.write(b"island")
        out.truncate(8_000_000)
    (tmp_path / "z.jpg").write_bytes(b"after")
    path = tmp_path / "t.tar"
    subprocess.run(
        [
            "tar",
            *f"--format={form}".split(),
            "-S",
            "-C",
            tmp_path,
            "-cf",
            path,
            "hole.jpg",
            "z.jpg",
        ],
        check=True,
    )
    members = assert_equals_tarfile(path)
    assert [(m.regular, m.plain) for m in members] == [(True, False), (True, True)]


def test_a_tar_of_webdataset(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for i in range(50):
            writer.write(
                {"__key__": f"{i:06d}", "jpg": os.urandom(100 + i), "txt": "x", "json": {}}
            )
    assert len(assert_equals_tarfile(path)) == 150


def test_a_global_header_that_only_comments_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    headers = {"comment": "made by git"}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers=headers) as archive:
        add(archive, "a.jpg")
        add(archive, LONG, b"y")
    assert len(assert_equals_tarfile(path)) == 2


def test_a_global_header_that_renames_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"path": "b"}) as archive:
        add(archive, "a.jpg")
    with pytest.raises(ShardError, match="the global header at byte 0 renames members"):
        walk(path)


def test_sizes_in_base_256_and_in_pax(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        add(archive, "a.jpg", b"12345", pax_headers={"size": "5"})
    data = bytearray(path.read_bytes())
    at = data.index(b"a.jpg\0")
    data[at + 124 : at + 136] = b"\x80" + (5).to_bytes(11, "big")
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    path.write_bytes(data)
    assert_equals_tarfile(path)


def simple(path: Path, *names: str) -> bytes:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name in names:
            add(archive, name, b"x" * 700)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "the file ends at byte 0 without the end-of-archive marker"),
        (lambda data: data[:200], "ends at byte 200 without"),
        (
            lambda data: data[:1000],
            "the file ends at byte 1000, 212 bytes before the end of a member",
        ),
        (lambda data: data[:1536], "ends at byte 1536 without the end-of-archive marker"),
        (lambda data: data[:1700], "ends at byte 1700 without"),
        (lambda data: data[:1536] + b"?" + data[1537:], "no tar header at byte 1536"),
        (lambda data: data + data, "data after the end-of-archive marker at byte 3072"),
        (lambda data: gzip.compress(data), "it is compressed"),
        (lambda data: b"\xff\xd8\xff" * 1000, "no tar header at byte 0"),
    ],
)
def test_damage_is_an_error_with_the_offset(
    tmp_path: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    path = tmp_path / "t.tar"
    path.write_bytes(damage(simple(path, "a.jpg", "b.jpg")))
    with pytest.raises(ShardError, match=f"broken tar: .*{message}") as caught:
        walk(path)
    assert not caught.value.retryable


def test_an_extended_header_with_no_member_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    data = simple(path, LONG)
    path.write_bytes(data[:1024] + bytes(1024))
    with pytest.raises(ShardError, match="the extended header at byte 0 has no member"):
        walk(path)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_hostile_bytes_are_an_error_with_an_offset_or_read_as_tarfile_reads_them(
    tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "t.tar"
    tar = bytearray(simple(path, "a.jpg", LONG, "b.jpg"))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(tar) - 1))
        tar[at] = data.draw(st.integers(0, 255))
    header = data.draw(st.sampled_from([0, 1536, 2048, 2560, 4096]))
    tar[header + 156] = data.draw(st.sampled_from(b"0LKxgSXDMV5\0"))
    for start in range(0, len(tar), 512):  # most damage would stop at the checksum
        block = tar[start : start + 512]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            tar[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    path.write_bytes(tar)
    try:
        found = [(m.name, m.offset, m.size) for m, _ in walk(path) if m.regular]
    except ShardError as error:
        assert "byte" in str(error)
        return
    expected = []
    try:  # tarfile refuses, or silently stops at, bad fields that are of no use here (mode, owner)
        with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as archive:
            for info in archive:
                expected += [(info.name, info.offset_data, info.size)] if info.isreg() else []
    except tarfile.TarError:
        pass
    assert found[: len(expected)] == expected


def pax(*records: tuple[bytes, bytes]) -> bytes:
    """A pax header, written by hand."""
    body = b""
    for key, value in records:
        length = len(key) + len(value) + 3
        while length != len(b"%d %s=%s\n" % (length, key, value)):
            length = len(b"%d %s=%s\n" % (length, key, value))
        body += b"%d %s=%s\n" % (length, key, value)
    return header("pax", b"x", body)


def header(name: str, kind: bytes, data: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data), kind
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)


@pytest.mark.parametrize(
    "headers",
    [
        pax((b"size", b"9" * 5000)),
        pax((b"path", b"b.jpg")) * 3000,
        header("long", b"L", b"b.jpg") * 3000,
    ],
    ids=["a size of 5000 digits", "3000 pax headers", "3000 long names"],
)
def test_headers_made_to_hurt_are_an_error_of_the_tar(tmp_path: Path, headers: bytes) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(headers + header("a.jpg", b"0", b"x") + bytes(1024))
    with pytest.raises(ShardError, match="a.tar: broken tar: .*byte"):
        walk(path)
