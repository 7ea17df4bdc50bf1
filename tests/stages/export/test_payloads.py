"""Exports of several payloads, and of none: what is in the files, and what their papers say."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from winnow.contracts.errors import RecipeError, ShardError
from winnow.contracts.media import MEDIA_REF
from winnow.contracts.parameters import result_parameters, validate
from winnow.stages.export.llava import Llava
from winnow.stages.export.parquet import Parquet
from winnow.stages.export.webdataset import WebDataset

TRIPLE = ("image", "audio", "crop")
TURNS = pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))


def tar_of(exporter: WebDataset, rows: pa.RecordBatch) -> tuple[dict[str, bytes], dict[str, Any]]:
    out = io.BytesIO()
    extra = exporter.write_file(iter([rows.slice(0, 5), rows.slice(5)]), out)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
        found = {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
    return found, dict(extra)


def parquet_of(exporter: Parquet, rows: pa.RecordBatch) -> tuple[pa.Table, dict[str, Any]]:
    out = io.BytesIO()
    extra = exporter.write_file(iter([rows.slice(0, 5), rows.slice(5)]), out)
    return pq.read_table(io.BytesIO(out.getvalue())), dict(extra)


def test_a_sample_has_each_of_its_media_and_no_other(triples: pa.RecordBatch) -> None:
    found, extra = tar_of(WebDataset(payload=TRIPLE), triples)
    expected: dict[str, bytes] = {}
    for row in triples.to_pylist():
        for column, suffix in (("image", "jpg"), ("audio", "wav"), ("crop", "crop.jpg")):
            if row[column] is not None:
                expected[f"{row['key']}.{suffix}"] = row[column]
        expected[f"{row['key']}.txt"] = row["text"].encode()
    media = {name: data for name, data in found.items() if not name.endswith(".json")}
    assert media == expected
    assert sum(name.endswith(".json") for name in found) == triples.num_rows
    assert extra["payloads"] == {"image": {"jpg": 8}, "audio": {"wav": 8}, "crop": {"crop.jpg": 6}}
    assert not {*TRIPLE} & set(extra["columns"])
    stems = [name.partition(".")[0] for name in found]
    assert list(dict.fromkeys(stems)) == triples["key"].to_pylist()
    assert stems == sorted(stems, key=triples["key"].to_pylist().index)


def test_a_parquet_row_has_each_of_its_media_or_null(triples: pa.RecordBatch) -> None:
    table, extra = parquet_of(Parquet(payload=TRIPLE), triples)
    assert table.column_names[:5] == ["uid", "key", "image", "audio", "crop"]
    for column, suffix in (("image", "jpg"), ("audio", "wav"), ("crop", "crop.jpg")):
        assert table[column].to_pylist() == [
            row[column] and {"bytes": row[column], "path": f"{row['key']}.{suffix}"}
            for row in triples.to_pylist()
        ]
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features == {
        "image": {"_type": "Image"}, "audio": {"_type": "Audio"}, "crop": {"_type": "Image"}
    }  # fmt: skip
    assert extra["payloads"] == {"image": {"jpg": 8}, "audio": {"wav": 8}, "crop": {"jpg": 6}}


@pytest.mark.parametrize("exporter", [WebDataset(payload=()), Parquet(payload=())])
def test_text_alone(exporter: WebDataset | Parquet, triples: pa.RecordBatch) -> None:
    assert exporter.payloads(triples.schema) == []
    bare = triples.drop_columns([*TRIPLE])
    if isinstance(exporter, WebDataset):
        found, extra = tar_of(exporter, bare)
        ends = sorted({name.partition(".")[2] for name in found})
        assert (ends, len(found)) == (["json", "txt"], 24)
    else:
        table, extra = parquet_of(exporter, bare)
        assert table["text"].to_pylist() == triples["text"].to_pylist()
        assert b"huggingface" not in (table.schema.metadata or {})
    assert (extra["payloads"], extra["extensions"]) == ({}, {})


def test_a_pool_without_media_or_urls_is_text_alone_without_being_asked() -> None:
    texts = pa.schema([pa.field("text", pa.string())])
    assert WebDataset().payloads(texts) == []
    assert Parquet().payloads(texts) == []


@pytest.mark.parametrize("make", [WebDataset, Parquet])
def test_rows_without_enough_media_fail_the_file(make: Any, triples: pa.RecordBatch) -> None:
    write = tar_of if make is WebDataset else parquet_of
    with pytest.raises(ShardError, match="has not all of image, audio") as caught:
        write(make(payload=("image", "audio"), require="all"), triples)
    assert caught.value.uid == triples["uid"][1].as_py().hex()
    index = triples.schema.get_field_index("image")
    nothing = triples.set_column(index, "image", pa.nulls(12, pa.large_binary()))
    with pytest.raises(ShardError, match="has not any of image, audio") as caught:
        write(make(payload=("image", "audio")), nothing)
    assert caught.value.uid == triples["uid"][1].as_py().hex()


def test_media_that_changed_after_the_selection_fail_the_file(triples: pa.RecordBatch) -> None:
    """A reference without bytes is not a row that never had them."""
    ref = {"path": "a.wav", "offset": 0, "length": 1, "digest": bytes(16)}
    refs = pa.array([ref if i != 1 else None for i in range(12)], MEDIA_REF)
    sounds = triples["audio"].to_pylist()
    whole = triples.append_column("audio_ref", refs).take(pa.array([0, 1, 3]))
    assert len(tar_of(WebDataset(payload=("image", "audio")), whole)[0]) == 3 * 4 - 1
    index = triples.schema.get_field_index("audio")
    sounds[3] = None
    gone = triples.set_column(index, "audio", pa.array(sounds, pa.large_binary()))
    gone = gone.append_column("audio_ref", refs).take(pa.array([0, 1, 3]))
    with pytest.raises(ShardError, match="another audio now, or none: its file changed") as caught:
        tar_of(WebDataset(payload=("image", "audio")), gone)
    assert caught.value.uid == triples["uid"][3].as_py().hex()


def test_media_with_one_extension_are_told_apart(triples: pa.RecordBatch) -> None:
    """What no signature names is "bin": the second takes its column's name."""
    odd = triples.take(pa.array([0]))
    for name in ("image", "audio"):
        index = odd.schema.get_field_index(name)
        odd = odd.set_column(index, name, pa.array([name.encode()], pa.large_binary()))
    found, _ = tar_of(WebDataset(payload=("image", "audio"), text=None), odd)
    key = odd["key"][0].as_py()
    assert found[f"{key}.bin"] == b"image"
    assert found[f"{key}.audio.bin"] == b"audio"


def test_what_cannot_be_meant_is_refused(triples: pa.RecordBatch) -> None:
    values = validate(WebDataset, {"payload": ["image", "audio"], "require": "all"})
    assert WebDataset(**values).payload == ("image", "audio")
    with pytest.raises(RecipeError, match="payload names 'image' twice"):
        WebDataset(payload=("image", "image")).payloads(triples.schema)
    with pytest.raises(RecipeError, match="payload='sound' is not a column with media"):
        Parquet(payload=("image", "sound")).payloads(triples.schema)
    for make in (WebDataset, Parquet):
        with pytest.raises(RecipeError, match="extension='jpg' would name 2 payloads alike"):
            make(payload=("image", "audio"), extension="jpg")
    with pytest.raises(RecipeError, match="two payloads would be the column 'image'"):
        Parquet(payload=("crop", "image")).payloads(triples.schema)
    with pytest.raises(RecipeError, match="no column holds media"):
        Llava().payloads(pa.schema([pa.field("conversations", TURNS)]))


def test_exports_of_one_payload_are_what_they_were() -> None:
    """Names and bytes of exports that users have; a new parameter must not change them."""
    assert result_parameters(WebDataset()) == {
        "payload": None, "text": "text", "columns": None, "extension": "auto",
        "rows_per_file": 10_000, "seed": 0, "shuffle": "bucket",
    }  # fmt: skip
    assert "require" not in result_parameters(Parquet(payload="audio"))
    rows = pa.RecordBatch.from_pydict(
        {
            "uid": pa.array([bytes([i]) * 16 for i in range(3)], pa.binary(16)),
            "key": pa.array([(bytes([i]) * 16).hex() for i in range(3)]),
            "image": pa.array([b"\xff\xd8\xff" + bytes([i]) for i in range(3)], pa.large_binary()),
            "text": pa.array(["a", None, "c"]),
            "width": pa.array([1, 2, None], pa.int32()),
        }
    )
    out = io.BytesIO()
    extra = WebDataset().write_file(iter([rows]), out)
    digest = hashlib.sha256(out.getvalue()).hexdigest()
    assert digest == "6754da09ca5551adb2a7625f57e1262c5cbb575d968832e8b2e7730b2035c4e8"
    assert set(extra) == {"columns", "extensions", "sidecars", "pickles_omitted"}


def papers(folder: Path) -> tuple[str, dict[str, Any], Any]:
    card = (folder / "README.md").read_text()
    matter = yaml.safe_load(card.split("---\n", 2)[1])
    return card, matter, json.loads((folder / "croissant.json").read_text())


def test_the_card_and_croissant_of_triples(triple_tars: Path, triple_parquets: Path) -> None:
    card, matter, croissant = papers(triple_tars)
    for line in ("`.jpg` (8): the column `image`", "`.wav` (8): the column `audio`",
                 "`.crop.jpg` (6): the column `crop`"):  # fmt: skip
        assert f"- {line}, named by its format" in card
    features = {f["name"]: f.get("dtype") for f in matter["dataset_info"]["features"]}
    assert features["jpg"] == features["crop.jpg"] == "image"
    assert features["wav"] == "audio"
    fields = [field for records in croissant["recordSet"] for field in records["field"]]
    kinds = {field["@id"]: field["dataType"] for field in fields}
    assert kinds["image_samples/image"] == kinds["crop_samples/crop"] == "sc:ImageObject"
    assert kinds["audio_samples/audio"] == "sc:AudioObject"
    card, _, croissant = papers(triple_parquets)
    assert "`image` and `audio` and `crop` hold bytes and a file name, or null" in card
    kinds = {field["@id"]: field["dataType"] for field in croissant["recordSet"][0]["field"]}
    assert kinds["samples/audio"] == "sc:AudioObject"
    listed = json.loads((triple_tars / "files.json").read_text())["files"]
    assert [(f["name"], f["rows"]) for f in listed] == [
        ("00000.tar", 6), ("00001.tar", 6), ("manifest.parquet", 12)
    ]  # fmt: skip


def test_the_card_of_texts_knows_of_no_media(text_tars: Path) -> None:
    card, matter, croissant = papers(text_tars)
    assert [f["name"] for f in matter["dataset_info"]["features"]] == [
        "txt", "json", "__key__", "__url__"
    ]  # fmt: skip
    sample = card.partition("## What a sample is")[2].partition("## ")[0]
    assert re.findall(r"^- `(\S+)`", sample, re.MULTILINE) == [".txt", ".json"]
    assert "open_clip_train" not in card
    assert [s["@id"] for s in croissant["recordSet"]] == ["manifest"]


def test_webdataset_reads_triples_as_the_card_says(
    triple_tars: Path, triples: pa.RecordBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("webdataset")
    card = (triple_tars / "README.md").read_text()
    (snippet,) = [
        block for block in re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
        if "webdataset" in block
    ]  # fmt: skip
    monkeypatch.chdir(triple_tars)
    scope: dict[str, Any] = {}
    exec(snippet, scope)
    first = triples.to_pylist()[0]
    assert scope["image"].size == (32, 24)
    assert scope["audio"] == first["audio"]
    assert scope["crop"] is None
    assert scope["text"] == first["text"]
    assert scope["annotations"]["width"] == 32
    samples = list(scope["dataset"])
    assert [s["__key__"] for s in samples] == triples["key"].to_pylist()
    assert [s.get("wav") for s in samples] == triples["audio"].to_pylist()


def test_webdataset_reads_texts_as_the_card_says(
    text_tars: Path, triples: pa.RecordBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("webdataset")
    card = (text_tars / "README.md").read_text()
    snippets = re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(text_tars)
    scope: dict[str, Any] = {}
    exec(snippets[1], scope)
    assert scope["text"] == triples["text"][0].as_py()
