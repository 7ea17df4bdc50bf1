"""Sidecars of incoming shards: the same bytes, verified; pickles never."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from winnow.contracts.errors import ShardError
from winnow.contracts.identity import content_digest
from winnow.contracts.media import MEDIA_REF
from winnow.stages.export._sidecars import MAX_OPEN_FILES, free_extension, is_pickle
from winnow.stages.export.webdataset import WebDataset

MEMBERS = pa.list_(pa.struct([pa.field("extension", pa.string()), *MEDIA_REF]))


def store(path: Path, contents: list[tuple[str, bytes]]) -> list[dict[str, Any]]:
    """Write contents one after the other; return references to them."""
    references = []
    with open(path, "wb") as file:
        for extension, data in contents:
            file.write(b"head")
            references.append(
                {
                    "extension": extension,
                    "path": str(path),
                    "offset": file.tell(),
                    "length": len(data),
                    "digest": content_digest(data),
                }
            )
            file.write(data)
    return references


def write(rows: pa.RecordBatch, members: list[Any]) -> tuple[dict[str, bytes], dict[str, Any]]:
    batch = rows.slice(0, len(members)).append_column("members", pa.array(members, MEMBERS))
    out = io.BytesIO()
    extra = WebDataset(columns=("width",)).write_file(iter([batch]), out)
    found = {}
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
        for info in tar:
            found[info.name] = tar.extractfile(info).read()  # type: ignore[union-attr]
    return found, dict(extra)


def test_sidecars_follow_their_sample_unchanged(rows: pa.RecordBatch, tmp_path: Path) -> None:
    first = store(tmp_path / "a.tar", [("seg.png", b"mask"), ("cls", b"7")])
    second = store(tmp_path / "b.tar", [("flac", b"fLaC" + bytes(2000))])
    found, extra = write(rows, [first, None, second])
    keys = rows["key"].to_pylist()[:3]
    assert found[f"{keys[0]}.seg.png"] == b"mask"
    assert found[f"{keys[0]}.cls"] == b"7"
    assert found[f"{keys[2]}.flac"] == b"fLaC" + bytes(2000)
    assert extra["sidecars"] == {"cls": 1, "flac": 1, "seg.png": 1}
    stems = [name.partition(".")[0] for name in found]
    assert stems == [keys[0]] * 5 + [keys[1]] * 3 + [keys[2]] * 4


def test_what_winnow_writes_itself_keeps_its_name(rows: pa.RecordBatch, tmp_path: Path) -> None:
    contents = [("json", b"[1]"), ("JPG", b"other"), ("txt", b"old"), ("txt", b"older")]
    found, _ = write(rows, [store(tmp_path / "a.tar", contents)])
    key = rows["key"][0].as_py()
    assert found[f"{key}.jpg"] == rows["image"][0].as_py()
    assert found[f"{key}.txt"] == rows["text"][0].as_py().encode()
    assert found[f"{key}.source.json"] == b"[1]"
    assert found[f"{key}.source.JPG"] == b"other"
    assert found[f"{key}.source.txt"] == b"old"
    assert found[f"{key}.source.source.txt"] == b"older"


def test_pickles_are_left_out_and_counted(rows: pa.RecordBatch, tmp_path: Path) -> None:
    harmless = {"a": [1, 2]}
    contents = [
        ("pyd", b"x"),
        ("meta.pkl.gz", b"x"),
        ("PTH", b"x"),
        ("jpgs", b"x"),
        *((f"p{n}", pickle.dumps(harmless, protocol=n)) for n in (2, 3, 4, 5)),
        ("npy", b"\x93NUMPY\x01\x00"),
    ]
    found, extra = write(rows, [store(tmp_path / "a.tar", contents)])
    assert {n.partition(".")[2] for n in found} == {"jpg", "txt", "json", "npy"}
    assert extra["pickles_omitted"] == 8


@pytest.mark.parametrize("damage", ["changed", "shortened", "gone"])
def test_a_source_that_changed_fails_the_file(
    rows: pa.RecordBatch, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "a.tar"
    references = store(path, [("seg.png", b"mask")])
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"headMASK" if damage == "changed" else b"headma")
    with pytest.raises(ShardError, match="a.tar.*run again") as raised:
        write(rows, [references])
    assert not raised.value.retryable
    assert raised.value.uid == rows["uid"][0].as_py().hex()


def test_more_files_than_may_be_open(rows: pa.RecordBatch, tmp_path: Path) -> None:
    count = MAX_OPEN_FILES + 5
    members = [store(tmp_path / f"{i}.tar", [("cls", b"%d" % i)]) for i in range(count)]
    # Twice over, so that closed files are opened again.
    found, _ = write(rows, (members + members)[: rows.num_rows])
    written = [found[f"{key}.cls"] for key in rows["key"].to_pylist()]
    assert written == [b"%d" % (i % count) for i in range(rows.num_rows)]


@pytest.mark.parametrize(
    ("extension", "head", "expected"),
    [
        ("png", b"\x89PNG", False),
        ("a.pickle", b"", True),
        ("PKL", b"", True),
        ("pickles", b"", False),
        ("dat", b"\x80\x04", True),
        ("dat", b"\x80\x06", False),
        ("dat", b"\x80", False),
    ],
)
def test_is_pickle(extension: str, head: bytes, expected: bool) -> None:
    assert is_pickle(extension, head) is expected


def test_free_extension_ignores_case() -> None:
    assert free_extension("Json", {"JSON"}) == "source.Json"
    assert free_extension("seg.json", {"json"}) == "seg.json"
