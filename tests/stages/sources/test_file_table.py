"""Tables that name media files: what is read, what an untrusted table cannot reach."""

from __future__ import annotations

import csv
import functools
import gzip
import http.server
import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from winnow.contracts.errors import RecipeError, SetupError, ShardError
from winnow.contracts.identity import content_digest, row_uid
from winnow.contracts.media import MEDIA_REF
from winnow.contracts.registry import SOURCES
from winnow.stages.sources.file_table import FileTable


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def rows_of(source: FileTable) -> list[dict[str, Any]]:
    tables = [pa.Table.from_batches(list(source.read(file))) for file in source.files()]
    return [row for table in tables for row in table.to_pylist()]


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Two images and two recordings in folders, and a secret beside them."""
    folder = tmp_path / "pool"
    for name in ("pictures/a.jpg", "pictures/b.jpg", "sounds/a.flac", "sounds/deep/b.flac"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() * 3)
    (tmp_path / "secret.txt").write_text("a password")
    return folder


def test_triplets_are_rows_with_image_and_audio(pool: Path) -> None:
    table = write(
        pool / "t.csv",
        [
            {"image": "pictures/a.jpg", "sound": "sounds/a.flac", "text": "one", "speaker": "7"},
            {"image": "", "sound": "./sounds//deep/b.flac", "text": "", "speaker": "8"},
            {"image": "pictures/b.jpg", "sound": "", "text": "three", "speaker": ""},
        ],
    )
    source = FileTable(
        path=table, image_column="image", audio_column="sound", types={"speaker": "int64"}
    )
    assert SOURCES["file_table"] is FileTable
    assert source.schema() == pa.schema(
        [
            ("text", pa.string()), ("image_path", pa.string()), ("audio_path", pa.string()),
            ("image_ref", MEDIA_REF), ("audio_ref", MEDIA_REF), ("speaker", pa.int64()),
            ("file_error", pa.string()),
        ]
    )  # fmt: skip
    first, second, third = rows_of(source)
    picture, sound = b"pictures/a.jpg" * 3, b"sounds/a.flac" * 3
    assert first == {
        "uid": row_uid(
            "one", "pictures/a.jpg", content_digest(picture), "sounds/a.flac", content_digest(sound)
        ),
        "text": "one",
        "image_path": "pictures/a.jpg",
        "audio_path": "sounds/a.flac",
        "image_ref": {
            "path": f"{pool}/pictures/a.jpg",
            "offset": 0,
            "length": len(picture),
            "digest": content_digest(picture),
        },
        "audio_ref": {
            "path": f"{pool}/sounds/a.flac",
            "offset": 0,
            "length": len(sound),
            "digest": content_digest(sound),
        },
        "speaker": 7,
        "file_error": None,
    }
    assert (second["image_ref"], second["text"], second["file_error"]) == (None, None, None)
    assert second["audio_ref"]["path"] == f"{pool}/sounds/deep/b.flac"
    assert (third["audio_ref"], third["speaker"]) == (None, None)


def test_the_uid_is_the_same_wherever_the_folder_is(pool: Path, tmp_path: Path) -> None:
    import shutil

    rows = [{"audio": "sounds/a.flac", "text": "x"}, {"audio": "./sounds/a.flac", "text": "x"}]
    here = rows_of(FileTable(path=write(pool / "t.csv", rows), audio_column="audio"))
    shutil.copytree(pool, tmp_path / "copy")
    there = rows_of(FileTable(path=str(tmp_path / "copy/t.csv"), audio_column="audio"))
    assert [r["uid"] for r in here] == [r["uid"] for r in there]
    assert here[0]["uid"] == here[1]["uid"]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("/etc/passwd", "outside"),
        ("../secret.txt", "outside"),
        ("pictures/../../secret.txt", "outside"),
        ("~/.ssh/id_rsa", "outside"),
        ("file:///etc/passwd", "outside"),
        ("pictures/http://127.0.0.1/x", "outside"),
        ("simplecache::file:///etc/passwd", "outside"),
        (".", "outside"),
        ("link_out", "outside"),
        ("folder_out/secret.txt", "outside"),
        ("link_loop", "unreadable"),
        ("pictures", "unreadable"),
        ("pipe", "unreadable"),
        ("x" * 5000, "unreadable"),
        ("nothing.jpg", "missing"),
        ("pictures/a.jpg/b.jpg", "missing"),
        ("dead_link", "missing"),
    ],
)
def test_nothing_outside_the_root_is_read(
    pool: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, problem: str
) -> None:
    (pool / "link_out").symlink_to(tmp_path / "secret.txt")
    (pool / "folder_out").symlink_to(tmp_path)
    (pool / "link_loop").symlink_to(pool / "link_loop")
    (pool / "dead_link").symlink_to(pool / "nowhere")
    os.mkfifo(pool / "pipe")
    table = write(pool / "t.csv", [{"image": name, "text": "x"}])
    with caplog.at_level(logging.WARNING):
        (row,) = rows_of(FileTable(path=table, image_column="image"))
    assert (row["image_ref"], row["file_error"]) == (None, f"image_{problem}")
    assert (row["image_path"], row["text"]) == (name, "x")
    assert "1 rows name a file that cannot be read" in caplog.text


def test_links_within_the_root_and_a_linked_root_are_followed(pool: Path, tmp_path: Path) -> None:
    (pool / "alias.jpg").symlink_to(pool / "pictures/a.jpg")
    (tmp_path / "other").symlink_to(pool)
    rows = [{"image": "alias.jpg", "text": "x"}]
    table = write(tmp_path / "t.csv", rows)
    for root in (pool, tmp_path / "other"):
        (row,) = rows_of(FileTable(path=table, image_column="image", root=str(root)))
        assert row["image_ref"]["digest"] == content_digest(b"pictures/a.jpg" * 3)
    # Without a root, paths are relative to the table's own folder.
    (row,) = rows_of(FileTable(path=table, image_column="image"))
    assert row["file_error"] == "image_missing"


@pytest.mark.parametrize("suffix", ["parquet", "tsv", "jsonl", "jsonl.gz"])
def test_every_format_gives_the_same_rows(pool: Path, suffix: str) -> None:
    rows = [{"audio": "sounds/a.flac", "text": "a b"}, {"audio": "nothing", "text": "\u00e4"}]
    csv_path = write(pool / "t.csv", rows)
    path = pool / f"u.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == "tsv":
        lines = ["audio\ttext", *("\t".join(r.values()) for r in rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    expected = rows_of(FileTable(path=csv_path, audio_column="audio"))
    assert rows_of(FileTable(path=str(path), audio_column="audio")) == expected
    assert [r["file_error"] for r in expected] == [None, "audio_missing"]


def test_parquet_columns_keep_their_types_and_are_renamed_out_of_the_way(pool: Path) -> None:
    table = pa.table({"file": ["pictures/a.jpg"], "text": ["x"], "image": [3], "box": [[1.5, 2.5]]})
    pq.write_table(table, pool / "t.parquet")
    source = FileTable(path=str(pool), image_column="file")
    with pytest.raises(RecipeError, match=r"'image' would be 'image', but Winnow's own .*rename"):
        source.schema()
    source = FileTable(path=str(pool), image_column="file", rename={"image": "page"})
    (row,) = rows_of(source)
    assert (row["page"], row["box"]) == (3, [1.5, 2.5])
    few = FileTable(path=str(pool), image_column="file", keep=("box",), text_column=None)
    assert few.schema().names == ["text", "image_path", "image_ref", "box", "file_error"]
    assert rows_of(few)[0]["text"] is None


def test_a_store_of_fsspec() -> None:
    store = fsspec.filesystem("memory")
    store.pipe("/pool/t.jsonl", b'{"audio":"a/1.wav","text":"x"}\n{"audio":"a/2.wav"}\n')
    store.pipe("/pool/a/1.wav", b"RIFF")
    first, second = rows_of(FileTable(path="memory://pool/t.jsonl", audio_column="audio"))
    assert first["audio_ref"]["path"] == "memory://pool/a/1.wav"
    assert first["audio_ref"]["digest"] == content_digest(b"RIFF")
    assert second["file_error"] == "audio_missing"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "no medium; set image_column"),
        ({"image_column": "a", "audio_column": "a"}, "'a' is named twice"),
        ({"image_column": "text"}, "'text' is named twice"),
        ({"image_column": "a", "format": "txt"}, "use parquet, csv, tsv or jsonl"),
        ({"image_column": "a", "delimiter": "::"}, "one character"),
        ({"image_column": "a", "types": {"x": "float"}}, "'float' is not one of"),
    ],
)
def test_what_cannot_be_meant_is_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        FileTable(path="t.csv", **parameters)


def test_what_does_not_fit_the_table_is_refused(pool: Path) -> None:
    table = write(pool / "t.csv", [{"img": "pictures/a.jpg", "caption": "x"}])
    with pytest.raises(RecipeError, match=r"no column 'image' in t.csv; it has img, caption"):
        FileTable(path=table, image_column="image", text_column="caption").schema()
    with pytest.raises(RecipeError, match=r"no column 'text'.*or null for no text"):
        FileTable(path=table, image_column="img").schema()
    with pytest.raises(RecipeError, match="'caption' is not one"):
        FileTable(
            path=table, image_column="img", text_column="caption", rename={"caption": "x"}
        ).schema()
    with pytest.raises(SetupError, match="there is no file"):
        FileTable(path=str(pool / "none.csv"), image_column="img").files()
    (pool / "t.csv").write_text("img,caption\na,b,c\n")
    with pytest.raises(ShardError, match=r"t.csv, line 2"):
        rows_of(FileTable(path=table, image_column="img", text_column="caption"))


def test_a_table_cannot_have_other_files_opened(tmp_path: Path) -> None:
    reference = {"path": "/etc/hostname", "offset": 0, "length": 1, "digest": bytes(16)}
    columns = {"text": ["a"], "picture": ["a.png"], "thumb_ref": pa.array([reference], MEDIA_REF)}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    source = FileTable(path=str(tmp_path / "a.parquet"), image_column="picture")
    with pytest.raises(RecipeError, match="'thumb_ref' holds references to media"):
        source.schema()


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


def test_nothing_above_the_root_of_a_web_server_is_read(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool/a.jpg").write_bytes(b"a")
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    escapes = ["%2e%2e/secret.jpg", ".%2E/secret.jpg", "x/%2e./..%2Fsecret.jpg", "..\\secret.jpg"]
    escapes += ["x%5C..%5C..%5Csecret.jpg", "../secret.jpg"]
    table = write(tmp_path / "t.csv", [{"image": n, "text": "x"} for n in ["a.jpg", *escapes]])
    handler = functools.partial(_Silent, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}/pool"
        found = rows_of(FileTable(path=table, root=root, image_column="image"))
        server.shutdown()
    assert found[0]["image_ref"]["digest"] == content_digest(b"a")
    assert [row["file_error"] for row in found] == [None] + ["image_outside"] * len(escapes)
    assert all(row["image_ref"] is None for row in found[1:])
