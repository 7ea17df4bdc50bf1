"""Sidecars of incoming shards: the same bytes, verified; pickles never."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from winnow.contracts.errors import ShardError
from winnow.contracts.identity import content_digest
from winnow.contracts.media import MEDIA_REF
from winnow.stages.export._sidecars import MAX_OPEN_FILES, free_extension, is_pickle
from winnow.stages.export.webdataset import WebDataset
from winnow.stages.sources.webdataset import WebDataset as Source

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


def test_no_name_becomes_another_in_the_tar(rows: pa.RecordBatch, tmp_path: Path) -> None:
    contents = [("pickle\0x", pickle.dumps([1], protocol=0)), ("cls\0a", b"1"), ("cls\0b", b"2")]
    found, extra = write(rows, [store(tmp_path / "a.tar", contents)])
    key = rows["key"][0].as_py()
    assert found[f"{key}.pickle\\0x"] == contents[0][1]
    assert (found[f"{key}.cls\\0a"], found[f"{key}.cls\\0b"]) == (b"1", b"2")
    assert not any(is_pickle(name.partition(".")[2], b"") for name in found)


def test_names_that_readers_give_themselves(rows: pa.RecordBatch, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    names = ["__key__", "__url__", "__local_path__"]
    batch = rows.slice(0, 1).append_column(
        "members", pa.array([store(tmp_path / "a.tar", [(n, b"x") for n in names])], MEMBERS)
    )
    with (tmp_path / "out.tar").open("wb") as out:
        WebDataset().write_file(iter([batch]), out)
    (sample,) = webdataset.WebDataset(str(tmp_path / "out.tar"), shardshuffle=False)
    assert sample["__key__"] == rows["key"][0].as_py()
    assert [sample[f"source.{name}"] for name in names] == [b"x"] * 3


@pytest.mark.parametrize(
    ("kind", "sidecar", "written"),
    [("WEBP", "png", "source.png"), ("PNG", "JPEG", "source.JPEG"), ("GIF", "webp", "source.webp"),
     ("JPEG", "png", "png"), ("PNG", "webp", "webp"), ("WEBP", "seg.png", "seg.png")],
)  # fmt: skip
def test_the_payload_is_what_readers_take_for_the_image(
    tmp_path: Path, kind: str, sidecar: str, written: str
) -> None:
    mask, image = encoded(1, "PNG"), encoded(2, kind)
    key = "0" * 32
    batch = pa.RecordBatch.from_pydict(
        {
            "uid": pa.array([bytes(16)], pa.binary(16)),
            "key": [key],
            "image": pa.array([image], pa.large_binary()),
            "members": pa.array([store(tmp_path / "a.tar", [(sidecar, mask)])], MEMBERS),
        }
    )
    path = tmp_path / "out.tar"
    with path.open("wb") as out:
        WebDataset(text=None).write_file(iter([batch]), out)
    source = Source(path=str(path))
    (found,) = next(source.read(source.files()[0])).to_pylist()
    assert found["image_ref"]["digest"] == content_digest(image)
    assert [(m["extension"], m["digest"]) for m in found["members"]] == [
        (written, content_digest(mask))
    ]
    webdataset = pytest.importorskip("webdataset")
    samples = webdataset.WebDataset(str(path), shardshuffle=False)
    (sample,) = samples.rename(image="jpg;png;jpeg;webp;gif", keep=False)  # as open_clip
    assert sample["image"] == image


def encoded(shade: int, kind: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(out, kind)
    return out.getvalue()
