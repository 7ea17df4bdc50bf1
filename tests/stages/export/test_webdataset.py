"""What is in the tars, and that it depends on the rows alone."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.contracts.errors import RecipeError, ShardError
from winnow.contracts.media import MEDIA_REF
from winnow.contracts.parameters import result_parameters, validate
from winnow.contracts.registry import EXPORTERS
from winnow.stages.export.webdataset import WebDataset


def write(exporter: WebDataset, batches: Iterable[pa.RecordBatch]) -> tuple[bytes, dict[str, Any]]:
    out = io.BytesIO()
    extra = exporter.write_file(iter(batches), out)
    return out.getvalue(), dict(extra)


def members(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = {}
        for info in tar:
            file = tar.extractfile(info)
            assert file is not None
            assert info.name not in found
            found[info.name] = file.read()
        return found


def test_it_is_registered() -> None:
    assert EXPORTERS["webdataset"] is WebDataset
    assert WebDataset.name == "webdataset"


def test_every_sample_has_the_bytes_the_caption_and_the_annotations(rows: pa.RecordBatch) -> None:
    data, extra = write(WebDataset(), [rows])
    found = members(data)
    assert len(found) == 3 * rows.num_rows
    for row in rows.to_pylist():
        assert found[f"{row['key']}.jpg"] == row["image"]
        assert found[f"{row['key']}.txt"].decode() == row["text"]
        document = json.loads(found[f"{row['key']}.json"])
        assert document["uid"] == row["uid"].hex()
        assert document["width"] == 32
        assert document["url"] == row["url"]
        assert document["near_duplicates"] == (
            None if row["near_duplicates"] is None else [u.hex() for u in row["near_duplicates"]]
        )
        for name in ("conversations", "chosen_caption_all", "named_objects"):
            assert document[name] == row[name]
        score = row["clip_score"]
        if score is None or np.isnan(score):
            assert document["clip_score"] is None
        else:
            assert np.float32(document["clip_score"]) == np.float32(score)
    assert extra["extensions"] == {"jpg": rows.num_rows}
    assert extra["columns"] == sorted(set(rows.schema.names) - {"image"})


def test_samples_are_consecutive_and_in_the_order_of_the_rows(rows: pa.RecordBatch) -> None:
    names = list(members(write(WebDataset(), [rows])[0]))
    stems = [name.partition(".")[0] for name in names]
    assert stems == [key for key in rows["key"].to_pylist() for _ in range(3)]


def test_json_is_compact_sorted_utf8(rows: pa.RecordBatch) -> None:
    found = members(write(WebDataset(columns=("width", "text")), [rows.slice(0, 1)])[0])
    key = rows["key"][0].as_py()
    text = 'a caption, \\"quoted\\" \u00e4\u6f22\U0001f431 number 0'
    expected = f'{{"key":"{key}","text":"{text}","uid":"{key}","width":32}}'
    assert found[f"{key}.json"].decode() == expected


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 40), max_size=6))
def test_bytes_do_not_depend_on_the_batches(rows: pa.RecordBatch, cuts: list[int]) -> None:
    bounds = [0, *sorted(cuts), rows.num_rows]
    pieces = [rows.slice(a, b - a) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    copied = [pa.RecordBatch.from_pylist(p.to_pylist(), p.schema) for p in pieces]
    assert write(WebDataset(), pieces) == write(WebDataset(), [rows])
    assert write(WebDataset(), copied) == write(WebDataset(), [rows])


def test_no_rows_make_an_empty_archive() -> None:
    assert members(write(WebDataset(), [])[0]) == {}


def test_a_null_caption_is_an_empty_file_and_null_in_the_json(rows: pa.RecordBatch) -> None:
    index = rows.schema.get_field_index("text")
    silent = rows.slice(0, 2).set_column(index, "text", pa.array([None, "x"], pa.string()))
    found = members(write(WebDataset(), [silent])[0])
    key = rows["key"][0].as_py()
    assert found[f"{key}.txt"] == b""
    assert json.loads(found[f"{key}.json"])["text"] is None


def test_text_null_writes_no_captions(rows: pa.RecordBatch) -> None:
    found = members(write(WebDataset(text=None), [rows])[0])
    assert {name.partition(".")[2] for name in found} == {"jpg", "json"}


def test_extension_follows_the_bytes_or_is_forced(mixed_rows: pa.RecordBatch) -> None:
    _, extra = write(WebDataset(), [mixed_rows])
    assert extra["extensions"] == {"gif": 10, "jpg": 10, "png": 10, "webp": 10}
    data, extra = write(WebDataset(extension="jpg"), [mixed_rows])
    assert extra["extensions"] == {"jpg": 40}
    keys = mixed_rows["key"].to_pylist()
    assert [members(data)[f"{k}.jpg"] for k in keys] == mixed_rows["image"].to_pylist()


def test_payload_is_image_then_audio_then_the_first() -> None:
    def schema(*names: str) -> pa.Schema:
        fields = [pa.field(n, pa.large_binary()) for n in names]
        return pa.schema([pa.field("text", pa.string()), *fields])

    assert WebDataset().payloads(schema("resized_image", "audio", "image")) == ["image"]
    assert WebDataset().payloads(schema("resized_image", "audio")) == ["audio"]
    assert WebDataset().payloads(schema("resized_image", "other")) == ["resized_image"]
    wanted = WebDataset(payload="resized_image")
    assert wanted.payloads(schema("image", "resized_image")) == ["resized_image"]


def test_another_payload_is_written_and_neither_is_in_the_json(rows: pa.RecordBatch) -> None:
    small = pa.array([b"\x89PNG\r\n\x1a\n" + bytes([i]) for i in range(40)], pa.large_binary())
    both = rows.append_column("resized_image", small)
    data, extra = write(WebDataset(payload="resized_image"), [both])
    assert extra["extensions"] == {"png": 40}
    assert not {"image", "resized_image"} & set(extra["columns"])
    assert members(data)[f"{rows['key'][7].as_py()}.png"] == small[7].as_py()


def test_references_into_local_files_are_not_exported(rows: pa.RecordBatch) -> None:
    secret = {"path": "/home/somebody/a.tar", "offset": 0, "length": 1, "digest": bytes(16)}
    referring = rows.append_column("image_ref", pa.array([secret] * rows.num_rows, MEDIA_REF))
    assert write(WebDataset(), [referring]) == write(WebDataset(), [rows])


def test_a_row_without_payload_fails_the_file_and_names_it(rows: pa.RecordBatch) -> None:
    images = rows["image"].to_pylist()
    images[5] = None
    index = rows.schema.get_field_index("image")
    broken = rows.set_column(index, "image", pa.array(images, pa.large_binary()))
    with pytest.raises(ShardError, match="no image.*add a filter") as raised:
        write(WebDataset(), [broken])
    assert raised.value.uid == rows["uid"][5].as_py().hex()
    assert not raised.value.retryable


def test_an_empty_payload_is_written_as_it_is(rows: pa.RecordBatch) -> None:
    index = rows.schema.get_field_index("image")
    empty = rows.set_column(index, "image", pa.array([b""] * 40, pa.large_binary()))
    assert members(write(WebDataset(), [empty])[0])[f"{rows['key'][0].as_py()}.bin"] == b""


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rows_per_file": 0}, "rows_per_file=0; use 1 or more"),
        ({"extension": "txt"}, "extension='txt' cannot name a payload"),
        ({"extension": "pkl"}, "extension='pkl' cannot name a payload"),
        ({"extension": "../x"}, "cannot name a payload"),
        ({"extension": "JPG"}, "lower-case letters"),
    ],
)
def test_wrong_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        WebDataset(**parameters)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"payload": "picture"}, "payload='picture' is not a column with media.*there is image"),
        ({"payload": "text"}, "payload='text' is not a column with media"),
        ({"text": "caption"}, "text='caption' is not a column.*text: null"),
        ({"text": "width"}, "text='width' is int32, not a string column"),
        ({"columns": ("widht",)}, "'widht' is not an annotation; did you mean width"),
        ({"columns": ("image",)}, "'image' is not an annotation"),
    ],
)
def test_wrong_columns_fail_in_the_plan(
    rows: pa.RecordBatch, parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        WebDataset(**parameters).payloads(rows.schema)


def test_a_table_of_urls_of_which_nothing_was_fetched_fails_in_the_plan() -> None:
    urls = pa.schema([pa.field("text", pa.string()), pa.field("url", pa.string())])
    with pytest.raises(RecipeError, match=r"no column holds media bytes.*or set payload: \[\]"):
        WebDataset().payloads(urls)
    assert WebDataset(payload=()).payloads(urls) == []


def test_parameters_from_yaml() -> None:
    values = validate(WebDataset, {"columns": ["width"], "rows_per_file": 5})
    assert result_parameters(WebDataset(**values))["columns"] == ("width",)


def test_file_names_sort_in_order() -> None:
    names = [WebDataset().file_name(i) for i in (0, 9, 10, 99_999)]
    assert names == ["00000.tar", "00009.tar", "00010.tar", "99999.tar"]


def test_sizes_json_counts_the_samples_of_each_tar(tars: Path) -> None:
    sizes = json.loads((tars / "sizes.json").read_text())
    counted = {}
    for path in sorted(tars.glob("*.tar")):
        names = members(path.read_bytes())
        counted[path.name] = sum(name.endswith(".json") for name in names)
    assert sizes == counted == {"00000.tar": 20, "00001.tar": 20}
