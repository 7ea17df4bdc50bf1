"""folder on real trees: every file is a row, whatever it is called and whatever it holds."""

from __future__ import annotations

import hashlib
import json
import os
import tracemalloc
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from winnow.contracts.errors import RecipeError, SetupError, ShardError
from winnow.contracts.identity import content_digest, row_uid
from winnow.contracts.parameters import result_parameters, validate
from winnow.contracts.registry import SOURCES
from winnow.stages.sources.folder import MediaFolder


def rows(source: MediaFolder) -> list[dict[str, object]]:
    schema = pa.schema([("uid", pa.binary(16)), *source.schema()])
    batches = [batch for file in source.files() for batch in source.read(file)]
    table = pa.Table.from_batches(batches, schema)
    table.validate(full=True)
    return table.to_pylist()


def make(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"bytes of {name}".encode())


def test_every_media_file_is_a_row_with_its_bytes(tmp_path: Path) -> None:
    names = ["z.jpg", "a.PNG", "b/c.webp", "b/d e/ü.gif", "b.d/x.y.jpeg"]
    make(tmp_path, *names, "notes.md", "b/data.csv", ".hidden/x.jpg", "b/._c.webp")
    found = rows(MediaFolder(path=str(tmp_path)))
    assert [row["path"] for row in found] == ["a.PNG", "z.jpg", "b/c.webp", "b.d/x.y.jpeg",
                                              "b/d e/ü.gif"]  # fmt: skip
    for row in found:
        data = (tmp_path / str(row["path"])).read_bytes()
        digest = hashlib.blake2b(data, digest_size=16).digest()
        assert row["image_ref"] == {
            "path": str(tmp_path / str(row["path"])),
            "offset": 0,
            "length": len(data),
            "digest": digest,
        }
        assert row["uid"] == row_uid(row["path"], digest)
        assert row["text"] is None


def test_the_uid_does_not_depend_on_where_the_folder_is(tmp_path: Path) -> None:
    make(tmp_path / "one", "a/b.jpg")
    make(tmp_path / "two/three", "a/b.jpg")
    first = rows(MediaFolder(path=str(tmp_path / "one")))
    second = rows(MediaFolder(path=str(tmp_path / "two/three")))
    assert [r["uid"] for r in first] == [r["uid"] for r in second]


def test_sidecar_captions(tmp_path: Path) -> None:
    make(tmp_path, *(f"{name}.jpg" for name in "abcdefghi"), "x.y.jpg")
    sidecars = {
        "a.txt": "a cat\n",
        "a.json": '{"caption": "not this"}',
        "b.json": '{"caption": "a dog", "text": "no"}',
        "c.json": '{"caption": null, "text": "a fox"}',
        "d.json": '["no object"]',
        "e.json": '{"caption": ',
        "g.json": r'{"text": "cut \ud83d"}',
        "h.txt": "",
        "x.y.txt": "\ufeffdots",
        "x.txt": "of another stem",
    }
    for name, text in sidecars.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "f.txt").write_bytes(b"caf\xe9")
    texts = {row["path"]: row["text"] for row in rows(MediaFolder(path=str(tmp_path)))}
    assert texts == {
        "a.jpg": "a cat",
        "b.jpg": "a dog",
        "c.jpg": "a fox",
        "d.jpg": None,
        "e.jpg": None,
        "f.jpg": None,
        "g.jpg": "cut \ufffd",
        "h.jpg": "",
        "i.jpg": None,
        "x.y.jpg": "dots",
    }


def test_a_captions_table(tmp_path: Path) -> None:
    make(tmp_path, "media/a.jpg", "media/b/c.jpg", "media/d.jpg")
    (tmp_path / "media/d.txt").write_text("sidecars are not read then")
    root = str(tmp_path / "media")
    (tmp_path / "t.csv").write_text('file,text\n./a.jpg,"one\ntwo"\nb/c.jpg,\nmissing.jpg,x\n')
    texts = [r["text"] for r in rows(MediaFolder(path=root, captions=str(tmp_path / "t.csv")))]
    assert texts == ["one\ntwo", None, None]
    pq.write_table(pa.table({"file_name": ["b/c.jpg"], "text": ["c"]}), tmp_path / "t.parquet")
    texts = [r["text"] for r in rows(MediaFolder(path=root, captions=str(tmp_path / "t.parquet")))]
    assert texts == [None, None, "c"]
    (tmp_path / "t.jsonl").write_text(json.dumps({"file": "a.jpg", "text": "j"}))
    texts = [r["text"] for r in rows(MediaFolder(path=root, captions=str(tmp_path / "t.jsonl")))]
    assert texts == ["j", None, None]


def test_a_captions_table_that_cannot_be_right(tmp_path: Path) -> None:
    make(tmp_path, "media/a.jpg")

    def read(text: str) -> None:
        (tmp_path / "t.csv").write_text(text)
        rows(MediaFolder(path=str(tmp_path / "media"), captions=str(tmp_path / "t.csv")))

    with pytest.raises(SetupError, match="needs the columns file .* it has image, text"):
        read("image,text\na.jpg,x\n")
    with pytest.raises(SetupError, match="none of its first files is below .*media/a.jpg; write"):
        read("file,text\nmedia/a.jpg,x\n")
    with pytest.raises(ShardError, match="two texts for 'a.jpg'"):
        read("file,text\na.jpg,x\na.jpg,y\n")
    with pytest.raises(SetupError, match="line 3: 3 fields, the header has 2"):
        read("file,text\na.jpg,x\nb.jpg,y,z\n")
    with pytest.raises(SetupError, match=r"no file or folder .*nope\.csv"):
        MediaFolder(path=str(tmp_path / "media"), captions=str(tmp_path / "nope.csv")).files()


def test_links_loops_pipes_and_empty_files_are_rows(tmp_path: Path) -> None:
    make(tmp_path, "real/a.jpg")
    (tmp_path / "real/loop").symlink_to(tmp_path)
    (tmp_path / "real/self.jpg").symlink_to("self.jpg")
    (tmp_path / "dead.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "good.jpg").symlink_to("real/a.jpg")
    (tmp_path / "linked").symlink_to("real")
    (tmp_path / "empty.jpg").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    found = {row["path"]: row["image_ref"] for row in rows(MediaFolder(path=str(tmp_path)))}
    digest = hashlib.blake2b((tmp_path / "real/a.jpg").read_bytes(), digest_size=16).digest()
    assert {path: ref and ref["digest"] for path, ref in found.items()} == {
        "dead.jpg": None,
        "empty.jpg": hashlib.blake2b(b"", digest_size=16).digest(),
        "good.jpg": digest,
        "pipe.jpg": None,
        "real/a.jpg": digest,
        "real/self.jpg": None,
        "linked/a.jpg": digest,
        "linked/self.jpg": None,
    }
    assert found["empty.jpg"]["length"] == 0


def test_strange_names(tmp_path: Path) -> None:
    (tmp_path / "new\nline.jpg").write_bytes(b"1")
    (tmp_path / 'quo"te\t{1..2}*[x].jpg').write_bytes(b"2")
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"3")
    (tmp_path / os.fsdecode(b"dir\xe9")).mkdir()
    (tmp_path / os.fsdecode(b"dir\xe9") / "x.jpg").write_bytes(b"4")
    found = {row["path"]: row for row in rows(MediaFolder(path=str(tmp_path)))}
    assert set(found) == {
        "new\nline.jpg", 'quo"te\t{1..2}*[x].jpg', r"caf\xe9.jpg", r"dir\xe9/x.jpg"
    }  # fmt: skip
    assert found["new\nline.jpg"]["image_ref"]["length"] == 1
    assert found['quo"te\t{1..2}*[x].jpg']["image_ref"]["length"] == 1
    assert found[r"caf\xe9.jpg"]["image_ref"] is None
    assert found[r"caf\xe9.jpg"]["uid"] == row_uid("caf\udce9.jpg", None)
    assert found[r"dir\xe9/x.jpg"]["image_ref"] is None


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that gives EIO")
def test_a_file_that_cannot_be_read_is_a_row_without_reference(tmp_path: Path) -> None:
    make(tmp_path, "b.jpg")
    (tmp_path / "a.jpg").symlink_to("/proc/self/mem")
    with pytest.raises(OSError):
        (tmp_path / "a.jpg").read_bytes()
    bad, good = rows(MediaFolder(path=str(tmp_path)))
    assert (bad["path"], bad["image_ref"], bad["uid"]) == ("a.jpg", None, row_uid("a.jpg", None))
    assert good["image_ref"]["length"] == len(b"bytes of b.jpg")


def test_one_unit_per_folder_so_that_a_new_folder_leaves_the_others(tmp_path: Path) -> None:
    make(tmp_path, "b/1.jpg", "b/2.jpg", "c/d/3.jpg", "0.jpg", "empty/notes.md")
    before = MediaFolder(path=str(tmp_path)).files()
    assert [file.name for file in before] == [".", "b", "c/d"]
    make(tmp_path, "a/4.jpg")
    after = MediaFolder(path=str(tmp_path)).files()
    assert [file for file in after if file.name != "a"] == before
    assert len(after) == 4


@pytest.mark.parametrize("change", ["touch", "grow", "add", "remove", "caption"])
def test_the_token_changes_with_what_the_rows_depend_on(tmp_path: Path, change: str) -> None:
    make(tmp_path, "a.jpg", "b.jpg")
    source = MediaFolder(path=str(tmp_path))
    [before] = source.files()
    assert source.files() == [before]
    make(tmp_path, "notes.md")
    assert source.files() == [before]
    match change:
        case "touch":
            os.utime(tmp_path / "a.jpg", ns=(1, 1))
        case "grow":
            (tmp_path / "a.jpg").write_bytes(bytes(100))
        case "add":
            make(tmp_path, "c.jpg")
        case "remove":
            (tmp_path / "b.jpg").unlink()
        case "caption":
            (tmp_path / "a.txt").write_text("new")
    [after] = source.files()
    assert after.token != before.token
    assert after.name == before.name


def test_the_token_changes_with_the_captions_table(tmp_path: Path) -> None:
    make(tmp_path, "media/a.jpg")
    (tmp_path / "t.csv").write_text("file,text\na.jpg,x\n")
    source = MediaFolder(path=str(tmp_path / "media"), captions=str(tmp_path / "t.csv"))
    [before] = source.files()
    assert [row["text"] for row in rows(source)] == ["x"]
    (tmp_path / "t.csv").write_text("file,text\na.jpg,longer\n")
    [after] = source.files()
    assert before.token != after.token
    assert [row["text"] for row in rows(source)] == ["longer"]


def test_audio_and_own_extensions(tmp_path: Path) -> None:
    make(tmp_path, "a.wav", "b.FLAC", "c.jpg", "d.raw")
    assert [r["path"] for r in rows(MediaFolder(path=str(tmp_path), media="audio"))] == [
        "a.wav",
        "b.FLAC",
    ]
    source = MediaFolder(path=str(tmp_path), media_extensions=("raw",))
    assert [r["path"] for r in rows(source)] == ["d.raw"]
    with pytest.raises(RecipeError, match="media='video' is not one of image, audio"):
        MediaFolder(path="x", media="video")  # type: ignore[arg-type]
    factory = SOURCES["folder"]
    assert factory(**validate(factory, {"path": "x"})) == MediaFolder(path="x")


def test_nothing_there(tmp_path: Path) -> None:
    make(tmp_path, "pictures/a.png", "pictures/b.png")
    with pytest.raises(SetupError, match=r"no folder '.*pitcures'; '.*' holds: pictures; did you"):
        MediaFolder(path=str(tmp_path / "pitcures")).files()
    with pytest.raises(
        SetupError, match=r"no audio file below '.*pictures'; .*holds: a.png, b.png"
    ):
        MediaFolder(path=str(tmp_path / "pictures"), media="audio").files()
    with pytest.raises(SetupError, match="there is no folder"):
        MediaFolder(path=str(tmp_path / "pictures/a.png")).files()


def test_a_folder_that_went_away_is_a_shard_error(tmp_path: Path) -> None:
    make(tmp_path, "a/b.jpg")
    source = MediaFolder(path=str(tmp_path))
    [file] = source.files()
    (tmp_path / "a/b.jpg").unlink()
    (tmp_path / "a").rmdir()
    with pytest.raises(ShardError, match="cannot be listed") as caught:
        list(source.read(file))
    assert not caught.value.retryable


def test_a_store_of_fsspec(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b/c.png", "b/d.png")
    (tmp_path / "b/c.txt").write_text("caption")
    store = fsspec.filesystem("memory")
    for path in tmp_path.rglob("*.*"):
        store.pipe(f"/photos/{path.relative_to(tmp_path).as_posix()}", path.read_bytes())
    local = rows(MediaFolder(path=str(tmp_path)))
    remote = rows(MediaFolder(path="memory://photos"))
    assert [(r["uid"], r["path"], r["text"]) for r in remote] == [
        (r["uid"], r["path"], r["text"]) for r in local
    ]
    assert [r["image_ref"]["path"] for r in remote] == [
        "memory://photos/a.jpg",
        "memory://photos/b/c.png",
        "memory://photos/b/d.png",
    ]
    with fsspec.open(remote[1]["image_ref"]["path"], "rb") as stream:
        assert stream.read() == b"bytes of b/c.png"
    with pytest.raises(SetupError, match="there is no folder"):
        MediaFolder(path="memory://photo").files()


def test_large_files_are_digested_in_pieces(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(bytes(50_000_000))
    source = MediaFolder(path=str(tmp_path), media="audio")
    [file] = source.files()
    tracemalloc.start()
    [batch] = source.read(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert batch.column("audio_ref")[0].as_py()["length"] == 50_000_000
    assert peak < 6_000_000


def test_many_files_come_in_batches(tmp_path: Path) -> None:
    make(tmp_path, *(f"{i:05d}.jpg" for i in range(1100)))
    source = MediaFolder(path=str(tmp_path))
    [file] = source.files()
    sizes = [batch.num_rows for batch in source.read(file)]
    assert sizes == [1024, 76]


def test_files_of_one_stem_are_one_row_with_both_media(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "a.flac", "a.mp3", "b.jpg")
    make(tmp_path, "d/a.JPG", "d/a.x.wav", "d/c.wav", "d/a.WAV")
    (tmp_path / "a.txt").write_text("both")
    (tmp_path / "d/c.txt").write_text("sound alone")
    source = MediaFolder(path=str(tmp_path), also="audio")
    assert source.schema().names == ["path", "text", "image_ref", "audio_ref"]
    found = {
        str(r["path"]): (r["text"], *(ref and Path(ref["path"]).name  # type: ignore[index]
                                      for ref in (r["image_ref"], r["audio_ref"])))
        for r in rows(source)
    }  # fmt: skip
    assert found == {
        "a.jpg": ("both", "a.jpg", "a.flac"),
        "b.jpg": (None, "b.jpg", None),
        "d/a.JPG": (None, "a.JPG", "a.WAV"),
        "d/a.x.wav": (None, None, "a.x.wav"),
        "d/c.wav": ("sound alone", None, "c.wav"),
    }
    digests = [content_digest((tmp_path / name).read_bytes()) for name in ("a.jpg", "a.flac")]
    assert {r["path"]: r["uid"] for r in rows(source)}["a.jpg"] == row_uid("a.jpg", *digests)
    sounds = MediaFolder(path=str(tmp_path), media="audio", also="image")
    assert sum(r["audio_ref"] is not None for r in rows(sounds)) == 5
    token = {f.name: f.token for f in source.files()}
    (tmp_path / "d/a.WAV").write_bytes(b"another sound")
    changed = {f.name: f.token for f in source.files()}
    assert (changed["."], changed["d"] == token["d"]) == (token["."], False)


def test_a_second_medium_leaves_fingerprints_as_they_are(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg")
    plain = MediaFolder(path=str(tmp_path))
    assert "also" not in result_parameters(plain)
    assert result_parameters(MediaFolder(path=str(tmp_path), also="audio"))["also"] == "audio"
    with pytest.raises(RecipeError, match="also='image' with media='image'; write also: audio"):
        MediaFolder(path=str(tmp_path), also="image")
    with pytest.raises(RecipeError, match="media_extensions has 'wav', which is audio"):
        MediaFolder(path=str(tmp_path), media_extensions=("jpg", "wav"), also="audio")


def test_a_name_with_colons_is_not_another_file(tmp_path: Path) -> None:
    make(tmp_path, "m/std.jpg", "m/std.jpg::vector.jpg")
    first, second = rows(MediaFolder(path=str(tmp_path / "m")))
    assert second["path"] == "std.jpg::vector.jpg"
    assert second["image_ref"]["digest"] == content_digest(b"bytes of m/std.jpg::vector.jpg")
    assert first["image_ref"]["digest"] == content_digest(b"bytes of m/std.jpg")


def test_captions_without_a_file_and_of_other_stores(tmp_path: Path) -> None:
    make(tmp_path, "m/a.jpg")
    os.mkfifo(tmp_path / "m/pipe")
    table = tmp_path / "t.csv"
    captions = MediaFolder(path=str(tmp_path / "m"), captions=str(table))
    table.write_text("file,text\n,lost\n,lost too\npipe,x\na.jpg,one\n")
    assert [row["text"] for row in rows(captions)] == ["one"]
    store = fsspec.filesystem("memory")
    store.pipe("/there.jpg", b"x")
    table.write_text("file,text\nx::memory://there.jpg,a\n")
    with pytest.raises(SetupError, match="none of its first files is below"):
        captions.files()
