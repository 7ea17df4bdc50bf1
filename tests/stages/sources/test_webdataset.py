"""webdataset shards against the webdataset library and against img2dataset's own output."""

from __future__ import annotations

import functools
import gzip
import http.server
import importlib.util
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import threading
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_expander, url_opener

from winnow.contracts.errors import RecipeError, SetupError, ShardError
from winnow.contracts.identity import content_digest, row_uid
from winnow.contracts.parameters import result_parameters, validate
from winnow.contracts.registry import SOURCES
from winnow.stages.sources._files import open_file
from winnow.stages.sources.webdataset import WebDataset, split_name

Entries = list[tuple[str, bytes]]


def write(path: Path, entries: Entries, **fields: object) -> str:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, encoding="utf-8") as archive:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(path)


def rows(source: WebDataset) -> list[dict[str, object]]:
    schema = pa.schema([("uid", pa.binary(16)), *source.schema()])
    batches = [batch for file in source.files() for batch in source.read(file)]
    table = pa.Table.from_batches(batches, schema)
    table.validate(full=True)
    return table.to_pylist()


def bytes_of(ref: Mapping[str, object]) -> bytes:
    """Read what a reference names, as the pipeline does."""
    with open_file(str(ref["path"])) as stream:
        stream.seek(int(str(ref["offset"])))
        data = stream.read(int(str(ref["length"])))
    assert content_digest(data) == ref["digest"]
    return data


def contents(row: Mapping[str, object]) -> list[bytes]:
    """Return the bytes of every member that a row carries, sorted."""
    found = [str(row[c]).encode() for c in ("text", "metadata") if row[c] is not None]
    refs = ([row["image_ref"]] if row["image_ref"] else []) + list(row["members"])
    return sorted(found + [bytes_of(ref) for ref in refs])


def library_samples(path: str) -> Iterator[dict[str, bytes | str]]:
    """Group with webdataset's own functions; no decoding, so no unpickling."""
    return group_by_keys(tar_file_expander(url_opener([{"url": path}])))


def assert_same_samples(path: str) -> list[dict[str, object]]:
    found = rows(WebDataset(path=path))
    expected = list(library_samples(path))
    assert [row["source_key"] for row in found] == [sample["__key__"] for sample in expected]
    for row, sample in zip(found, expected, strict=True):
        values = sorted(v for k, v in sample.items() if not k.startswith("__"))
        assert contents(row) == values
    return found


SAMPLES: Entries = [
    ("a.jpg", b"image a"),
    ("a.txt", "cat größe\n".encode()),
    ("a.json", b'{"n": 1.50, "x": [1]}'),
    ("a.cls", b"7"),
    ("a.seg.png", b"mask"),
    ("dir.v1/b.JPG", b"image b"),
    ("dir.v1/b.txt", b""),
    ("c.txt", b"no image"),
    ("d.png", b"png"),
    ("d.jpeg", b"jpeg"),
    ("e.jpg", b""),
]


def test_columns_keys_and_bytes(tmp_path: Path) -> None:
    a, b, c, d, e = assert_same_samples(write(tmp_path / "t.tar", SAMPLES))
    assert (a["text"], a["metadata"]) == ("cat größe\n", '{"n": 1.50, "x": [1]}')
    assert bytes_of(a["image_ref"]) == b"image a"
    assert [(m["extension"], bytes_of(m)) for m in a["members"]] == [
        ("cls", b"7"),
        ("seg.png", b"mask"),
    ]
    assert a["uid"] == row_uid("a", content_digest(b"image a"))
    assert (b["source_key"], bytes_of(b["image_ref"]), b["text"]) == ("dir.v1/b", b"image b", "")
    assert (c["image_ref"], c["text"], c["uid"]) == (None, "no image", row_uid("c", None))
    assert bytes_of(d["image_ref"]) == b"jpeg"
    assert [(m["extension"], bytes_of(m)) for m in d["members"]] == [("png", b"png")]
    assert (e["image_ref"]["length"], e["uid"]) == (0, row_uid("e", content_digest(b"")))


@settings(max_examples=400)
@given(st.text(st.sampled_from("ab./_\n"), max_size=12).filter(lambda n: not n.startswith("__")))
def test_names_split_as_webdataset_splits_them(name: str) -> None:
    assert (split_name(name) or (None, None)) == base_plus_ext(name)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "x/a", "x.y/a", "./c", "__meta__/k", "__d__", ".h", "x/.h"]),
            st.sampled_from(["jpg", "JPG", "png", "txt", "json", "seg.png", "x", "", None]),
            st.binary(max_size=20).map(lambda b: b.decode("latin-1").encode()),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_any_order_groups_as_webdataset_groups_it(
    tmp_path: Path, drawn: list[tuple[str, str | None, bytes]]
) -> None:
    path = write(
        tmp_path / "t.tar", [(k if e is None else f"{k}.{e}", data) for k, e, data in drawn]
    )
    try:
        list(library_samples(path))
    except ValueError:  # an extension twice in a sample, which webdataset does not read
        assert len(rows(WebDataset(path=path))) >= 1
    else:
        assert_same_samples(path)


def test_one_extension_twice_in_a_sample_loses_nothing(tmp_path: Path) -> None:
    entries = [("a.jpg", b"1"), ("a.JPG", b"2"), ("a.txt", b"3"), ("a.txt", b"4"), ("a.x", b"5")]
    [row] = rows(WebDataset(path=write(tmp_path / "t.tar", entries)))
    assert (bytes_of(row["image_ref"]), row["text"]) == (b"1", "3")
    assert [(m["extension"], bytes_of(m)) for m in row["members"]] == [
        ("JPG", b"2"),
        ("txt", b"4"),
        ("x", b"5"),
    ]


def test_pickles_links_and_nameless_members_are_omitted_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as archive:

        def add(name: str, data: bytes = b"", **fields: object) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in fields.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))

        add("README", b"no extension")
        add("folder", type=tarfile.DIRTYPE)
        add("a.jpg", b"image")
        for protocol in range(2, 6):
            add(f"a.hidden{protocol}", pickle.dumps([1, "x"], protocol))
        for extension in ("pkl", "PICKLE", "pyd", "pth", "pt", "meta.pkl.gz"):
            add(f"a.{extension}", b"anything")
        add("b.jpg", type=tarfile.SYMTYPE, linkname="a.jpg")
        add("b.png", type=tarfile.LNKTYPE, linkname="a.jpg")
        add("a.txt", b"still a: links do not end a sample")
        add("c.pyd", b"only a pickle")
        add("d.npy", b"\x93NUMPY")
    a, c, d = rows(WebDataset(path=str(path)))
    assert (a["source_key"], a["num_omitted_members"], a["members"]) == ("a", 1 + 4 + 6 + 2, [])
    assert str(a["text"]).startswith("still a")
    assert (c["source_key"], c["num_omitted_members"], c["image_ref"]) == ("c", 1, None)
    assert (d["num_omitted_members"], [m["extension"] for m in d["members"]]) == (0, ["npy"])


def test_text_that_is_not_utf8_stays_as_a_member(tmp_path: Path) -> None:
    entries = [("a.jpg", b"i"), ("a.txt", b"caf\xe9"), ("a.json", b"\xff{}")]
    [row] = rows(WebDataset(path=write(tmp_path / "t.tar", entries)))
    assert (row["text"], row["metadata"]) == (None, None)
    assert [(m["extension"], bytes_of(m)) for m in row["members"]] == [
        ("txt", b"caf\xe9"),
        ("json", b"\xff{}"),
    ]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    with tarfile.open(tmp_path / "t.tar", "w", format=tarfile.GNU_FORMAT, encoding="utf-8") as tar:
        info = tarfile.TarInfo(name)
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    [row] = rows(WebDataset(path=str(tmp_path / "t.tar")))
    assert row["source_key"] == r"caf\xe9"
    assert row["uid"] == row_uid("caf\udce9", content_digest(b"x"))
    assert bytes_of(row["image_ref"]) == b"x"


def test_parameters(tmp_path: Path) -> None:
    path = write(tmp_path / "t.tar", [("a.flac", b"f"), ("a.wav", b"w"), ("a.cap", b"c"),
                                      ("a.meta", b"m"), ("a.txt", b"t")])  # fmt: skip
    source = WebDataset(
        path=path, media="audio", text_extensions=("cap",), metadata_extension="meta"
    )
    [row] = rows(source)
    assert (row["text"], row["metadata"], bytes_of(row["audio_ref"])) == ("c", "m", b"w")
    [row] = rows(WebDataset(path=path, media="audio", media_extensions=("flac",)))
    assert bytes_of(row["audio_ref"]) == b"f"
    for wrong, message in (
        ({"media": "video"}, "media='video' is not one of image, audio"),
        ({"media_extensions": (".JPG",)}, "'.JPG' is not an extension; write 'jpg'"),
        ({"media_extensions": ()}, "media_extensions is empty"),
        ({"text_extensions": ("a/b",)}, "'a/b' is not an extension"),
    ):
        with pytest.raises(RecipeError, match=message):
            WebDataset(path=path, **wrong)
    factory = SOURCES["webdataset"]
    assert factory(**validate(factory, {"path": path})) == WebDataset(path=path)


def test_shards_by_folder_glob_braces_and_store(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"{i:03d}.tar", [(f"k{i}.jpg", b"x")])
    (tmp_path / "000.parquet").write_bytes(b"img2dataset writes these beside the tars")
    fsspec.filesystem("memory").pipe(
        {f"/wds/{p.name}": p.read_bytes() for p in tmp_path.glob("*.tar")}
    )
    root = tmp_path.as_posix()
    for path in (root, f"{root}/*.tar", f"{root}/{{000..002}}.tar", f"file://{root}/*.tar",
                 "memory://wds", "memory://wds/{000..002}.tar", "memory://wds/*.tar"):  # fmt: skip
        source = WebDataset(path=path)
        assert [f.name for f in source.files()] == ["000.tar", "001.tar", "002.tar"]
        found = rows(source)
        assert [row["source_key"] for row in found] == ["k0", "k1", "k2"]
        assert [bytes_of(row["image_ref"]) for row in found] == [b"x"] * 3
    with pytest.raises(SetupError, match=r"no file or folder '.*003\.tar'.*holds: .*did you mean"):
        WebDataset(path=f"{root}/{{000..003}}.tar").files()


def test_compressed_tars_are_refused(tmp_path: Path) -> None:
    data = Path(write(tmp_path / "t.tar", SAMPLES)).read_bytes()
    (tmp_path / "u.tar.gz").write_bytes(gzip.compress(data))
    with pytest.raises(SetupError, match=r"u\.tar\.gz is compressed; unpack it"):
        WebDataset(path=str(tmp_path)).files()
    (tmp_path / "t.tar").write_bytes(gzip.compress(data))
    with pytest.raises(ShardError, match="it is compressed"):
        rows(WebDataset(path=str(tmp_path / "t.tar")))


def test_a_truncated_tar_gives_its_whole_rows_then_the_error(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    write(path, [(f"{i:05d}.jpg", b"x" * 100) for i in range(1500)])
    path.write_bytes(path.read_bytes()[: 1024 * 1200 + 600])
    source = WebDataset(path=str(path))
    stream = source.read(source.files()[0])
    assert next(stream).num_rows == 1024
    with pytest.raises(ShardError, match="t.tar: broken tar: the file ends at byte 1229400"):
        next(stream)


def test_memory_does_not_grow_with_the_tar(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        path = tmp_path / f"{count}.tar"
        with webdataset.TarWriter(str(path)) as writer:
            for i in range(count):
                writer.write({"__key__": f"{i:08d}", "jpg": bytes(9000), "txt": "x" * 50})
        source = WebDataset(path=str(path))
        [file] = source.files()
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        most = seen = 0
        for batch in source.read(file):
            seen += batch.num_rows
            most = max(most, pa.total_allocated_bytes() - before)
        assert seen == count
        python = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most + python

    small, large = peak(1100), peak(3300)
    assert large < small * 1.2


def test_a_member_larger_than_any_buffer_is_streamed(tmp_path: Path) -> None:
    path = write(tmp_path / "t.tar", [("a.jpg", bytes(40_000_000)), ("a.txt", b"x")])
    source = WebDataset(path=path)
    [file] = source.files()
    tracemalloc.start()
    [batch] = list(source.read(file))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert batch.to_pylist()[0]["image_ref"]["length"] == 40_000_000
    assert peak < 8_000_000


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "www").mkdir()
    handler = functools.partial(_Silent, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_shards_over_http(tmp_path: Path, server: str) -> None:
    write(tmp_path / "www/t.tar", SAMPLES)
    local = rows(WebDataset(path=str(tmp_path / "www/t.tar")))
    remote = rows(WebDataset(path=f"{server}/t.tar"))
    assert [r["uid"] for r in remote] == [r["uid"] for r in local]
    assert remote[0]["image_ref"]["path"] == f"{server}/t.tar"
    assert {**remote[0]["image_ref"], "path": ""} == {**local[0]["image_ref"], "path": ""}
    with pytest.raises(SetupError, match="no file or folder"):
        WebDataset(path=f"{server}/u.tar").files()


IMG2DATASET = """
import sys
if __name__ == "__main__":
    import img2dataset.main
    # Its own reader, downloader and writer, without a pool of processes that import it all again.
    img2dataset.main.multiprocessing_distributor = (
        lambda processes, downloader, reader, subjob, retries: list(map(downloader, reader))
    )
    img2dataset.download(url_list=sys.argv[1], output_folder=sys.argv[2], input_format="parquet",
        url_col="url", caption_col="text", output_format="webdataset", processes_count=1,
        thread_count=4, number_sample_per_shard=4, image_size=32, save_additional_columns=["n"],
        enable_wandb=False, disallowed_header_directives=[])
"""


@pytest.mark.skipif(importlib.util.find_spec("img2dataset") is None, reason="needs img2dataset")
def test_what_img2dataset_writes(tmp_path: Path, server: str) -> None:
    for i in range(6):
        Image.new("RGB", (40, 30), (40 * i, 9, 9)).save(tmp_path / f"www/{i}.png")
    urls = [f"{server}/{i}.png" for i in range(7)]  # the last is a dead link
    table = pa.table({"url": urls, "text": [f"caption {i}" for i in range(7)], "n": range(7)})
    pq.write_table(table, tmp_path / "urls.parquet")
    (tmp_path / "make.py").write_text(IMG2DATASET)
    subprocess.run(
        [sys.executable, "make.py", "urls.parquet", "out"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=240,
        env={**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"},
    )
    source = WebDataset(path=str(tmp_path / "out"))
    assert [f.name for f in source.files()] == ["00000.tar", "00001.tar"]
    found = rows(source)
    reported = pa.concat_tables(
        pq.read_table(tmp_path / f"out/0000{i}.parquet") for i in range(2)
    ).to_pylist()
    kept = {r["key"]: r for r in reported if r["status"] == "success"}
    assert len(kept) == 6
    assert {row["source_key"] for row in found} == set(kept)
    for row in found:
        report = kept[row["source_key"]]
        assert row["text"] == report["caption"]
        assert json.loads(row["metadata"])["url"] == report["url"]
        assert json.loads(row["metadata"])["n"] == report["n"]
        image = Image.open(io.BytesIO(bytes_of(row["image_ref"])))
        assert image.size == (report["width"], report["height"])
        assert (row["members"], row["num_omitted_members"]) == ([], 0)
    for file in source.files():
        assert_same_samples(file.path)


TRIPLES: Entries = [
    ("a.jpg", b"picture a"),
    ("a.flac", b"sound a"),
    ("a.txt", b"both"),
    ("b.opus", b"sound b, opus"),
    ("b.wav", b"sound b"),
    ("b.second.wav", b"another"),
    ("c.png", b"picture c"),
]


def test_a_sample_with_image_and_audio_has_both_references(tmp_path: Path) -> None:
    path = write(tmp_path / "t.tar", TRIPLES)
    source = WebDataset(path=path, also="audio")
    a, b, c = rows(source)
    assert (bytes_of(a["image_ref"]), bytes_of(a["audio_ref"])) == (b"picture a", b"sound a")
    assert (a["text"], a["members"]) == ("both", [])
    assert (b["image_ref"], bytes_of(b["audio_ref"])) == (None, b"sound b")
    # Nothing is lost: what is not preferred is a member still.
    members = [(m["extension"], bytes_of(m)) for m in b["members"]]
    assert members == [("opus", b"sound b, opus"), ("second.wav", b"another")]
    assert (bytes_of(c["image_ref"]), c["audio_ref"]) == (b"picture c", None)
    digests = [content_digest(b"picture a"), content_digest(b"sound a")]
    assert a["uid"] == row_uid("a", *digests)
    sounds = rows(WebDataset(path=path, media="audio", also="image"))
    assert [row["audio_ref"] for row in sounds] == [row["audio_ref"] for row in (a, b, c)]


def test_without_also_all_is_as_it_was(tmp_path: Path) -> None:
    path = write(tmp_path / "t.tar", TRIPLES)
    plain = WebDataset(path=path)
    assert "also" not in result_parameters(plain)
    a = rows(plain)[0]
    assert a["uid"] == row_uid("a", content_digest(b"picture a"))
    assert [m["extension"] for m in a["members"]] == ["flac"]
    assert_same_samples(path)


def test_a_pickle_whose_name_goes_on_behind_a_nul_is_omitted(tmp_path: Path) -> None:
    # Protocol 0: nothing in its bytes says what it is.
    entries = [("a.jpg", b"x"), ("a.pickle\0\u00e9", pickle.dumps([1], protocol=0))]
    (row,) = rows(WebDataset(path=write(tmp_path / "a.tar", entries)))
    assert (row["members"], row["num_omitted_members"]) == ([], 1)
