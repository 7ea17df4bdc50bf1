"""Croissant metadata: valid for mlcroissant, which then reads the samples through it."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from winnow.contracts.identity import content_digest
from winnow.contracts.media import MEDIA_REF
from winnow.stages.export._croissant import data_type
from winnow.stages.export.webdataset import WebDataset

from .conftest import export

pytest.importorskip("mlcroissant")

READ = """
import json, sys, logging
logging.disable(logging.WARNING)
import mlcroissant
dataset = mlcroissant.Dataset(jsonld="croissant.json")
print(json.dumps(sorted(dataset.metadata.ctx.issues.errors)))
out = {}
for records in dataset.metadata.record_sets:
    out[records.id] = [
        {k.partition("/")[2]: v.decode(errors="replace") if isinstance(v, bytes) else v.size
         if hasattr(v, "size") and hasattr(v, "convert") else str(v) for k, v in record.items()
         if "pdq" not in k and "near" not in k}
        for record in dataset.records(records.id)
    ]
print(json.dumps(out))
"""


def read(folder: Path, cache: Path) -> dict[str, list[dict[str, Any]]]:
    """Read every record set in a process of its own: the cache is chosen at import."""
    environment = {**os.environ, "CROISSANT_CACHE": str(cache)}
    result = subprocess.run(
        [sys.executable, "-c", READ], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
    errors, records = result.stdout.strip().splitlines()
    assert json.loads(errors) == []
    found: dict[str, list[dict[str, Any]]] = json.loads(records)
    return found


@pytest.mark.parametrize("kind", ["tars", "mixed_tars", "parquets"])
def test_mlcroissant_reads_every_sample(
    kind: str, request: pytest.FixtureRequest, rows: pa.RecordBatch, tmp_path: Path
) -> None:
    records = read(request.getfixturevalue(kind), tmp_path)
    expected = {row["key"]: row for row in rows.to_pylist()}
    for record_set in ("samples", "manifest"):
        assert {r["key"] for r in records[record_set]} == set(expected)
        assert len(records[record_set]) == len(expected)
        for record in records[record_set]:
            row = expected[record["key"]]
            assert record["text"] == row["text"]
            assert record["url"] == row["url"]
            assert int(record["width"]) == 32
            assert int(record["phash"]) == row["phash"]
    assert [r["image"] for r in records["samples"]] == [[32, 24]] * len(expected)


def test_mlcroissant_reads_each_medium_of_triples(
    triple_tars: Path, triples: pa.RecordBatch, tmp_path: Path
) -> None:
    records = read(triple_tars, tmp_path)
    for column in ("image", "audio", "crop"):
        has = [key for key, value in zip(triples["key"].to_pylist(), triples[column], strict=True)
               if value.is_valid]  # fmt: skip
        assert sorted(r["key"] for r in records[f"{column}_samples"]) == sorted(has)
    assert {str(r["image"]) for r in records["image_samples"]} == {"[32, 24]"}
    assert len(records["manifest"]) == triples.num_rows


def test_without_a_manifest_the_samples_are_key_and_image(
    tars_alone: Path, rows: pa.RecordBatch, tmp_path: Path
) -> None:
    (records,) = read(tars_alone, tmp_path).values()
    assert sorted(r["key"] for r in records) == sorted(rows["key"].to_pylist())
    assert [r["image"] for r in records] == [[32, 24]] * rows.num_rows


def test_every_file_is_there_with_its_digest(tars: Path) -> None:
    document = json.loads((tars / "croissant.json").read_text())
    stated = {d["@id"]: d for d in document["distribution"] if d["@type"] == "cr:FileObject"}
    assert set(stated) == {"00000.tar", "00001.tar", "manifest.parquet"}
    for name, entry in stated.items():
        data = (tars / name).read_bytes()
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
        assert entry["contentSize"] == f"{len(data)} B"


def test_the_funnel_is_the_preprocessing_protocol(tars: Path) -> None:
    document = json.loads((tars / "croissant.json").read_text())
    steps = document["rai:dataPreprocessingProtocol"]
    assert steps == ["min_clip_score: clip_score >= 0.2 | a `bar`"]
    assert document["version"] == "1.0.0+0123abcd"
    assert document["license"] == "CC-BY-4.0"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (pa.uint64(), "sc:Integer"),
        (pa.float16(), "sc:Float"),
        (pa.bool_(), "sc:Boolean"),
        (pa.dictionary(pa.int8(), pa.string()), "sc:Text"),
        (pa.date32(), "sc:Date"),
        (pa.timestamp("us"), "sc:DateTime"),
        (pa.binary(16), "sc:Text"),
        (pa.struct([("a", pa.int8())]), None),
        (pa.list_(pa.int8()), None),
    ],
)
def test_data_types(kind: pa.DataType, expected: str | None) -> None:
    assert data_type(kind) == expected


def test_sidecars_are_no_samples(rows: pa.RecordBatch, tmp_path: Path) -> None:
    data = rows["image"][1].as_py()
    (tmp_path / "masks").write_bytes(data)
    member = {
        "extension": "seg.jpg",
        "path": str(tmp_path / "masks"),
        "offset": 0,
        "length": len(data),
        "digest": content_digest(data),
    }
    kind = pa.list_(pa.struct([pa.field("extension", pa.string()), *MEDIA_REF]))
    members = pa.array([[member], None, [member]], kind)
    folder = tmp_path / "tars"
    exporter = WebDataset(columns=("width",))
    export(exporter, rows.slice(0, 3).append_column("members", members), folder)
    document = json.loads((folder / "croissant.json").read_text())
    (images,) = [d for d in document["distribution"] if d["@type"] == "cr:FileSet"]
    with tarfile.open(folder / "00000.tar") as tar:
        names = tar.getnames()
    assert sum(name.endswith(".seg.jpg") for name in names) == 2
    found = [n for n in names for pattern in images["includes"] if fnmatch.fnmatch(n, pattern)]
    assert found == [f"{key}.jpg" for key in rows["key"].to_pylist()[:3]]
