"""The llava exporter: what LLaVA's trainer expects, byte for byte again, and what it refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from winnow.contracts.errors import RecipeError, ShardError
from winnow.contracts.exporter import FileSummary
from winnow.contracts.identity import row_uid
from winnow.contracts.parameters import validate
from winnow.pipeline.recipe import parse_recipe
from winnow.pipeline.run import RunOptions, run_recipe
from winnow.stages.export.llava import Llava, problem_of

from .conftest import FolderSink, context_of, conversation_of, export, make_rows

ROUND = {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}


def check_llava(folder: Path) -> list[dict[str, Any]]:
    """What LLaVA's LazySupervisedDataset and its preprocess functions rely on."""
    samples: list[dict[str, Any]] = json.loads((folder / "llava.json").read_text(encoding="utf-8"))
    for sample in samples:
        assert set(sample) == {"id", "image", "conversations"}
        with Image.open(folder / sample["image"]) as image:
            image.convert("RGB")
        turns = sample["conversations"]
        assert len(turns) % 2 == 0
        assert [t["from"] for t in turns] == ["human", "gpt"] * (len(turns) // 2)
        assert turns[0]["value"].startswith("<image>\n")
        assert "".join(t["value"] for t in turns).count("<image>") == 1
    return samples


def test_samples_are_what_llava_expects(llavas: Path, mixed_rows: pa.RecordBatch) -> None:
    samples = check_llava(llavas)
    assert [s["id"] for s in samples] == mixed_rows["key"].to_pylist()
    assert [s["conversations"] for s in samples] == [conversation_of(i) for i in range(40)]
    images = mixed_rows["image"].to_pylist()
    assert [(llavas / s["image"]).read_bytes() for s in samples] == images
    suffixes = ["jpg", "png", "webp", "gif"] * 10
    assert [s["image"] for s in samples] == [
        f"images/{s['id'][:2]}/{s['id']}.{e}" for s, e in zip(samples, suffixes, strict=True)
    ]


def test_parts_are_llavas_json_too_and_make_the_whole(llavas: Path) -> None:
    names = sorted(p.name for p in llavas.glob("0*.json"))
    parts = [json.loads((llavas / name).read_text(encoding="utf-8")) for name in names]
    assert [len(part) for part in parts] == [20, 20]
    assert parts[0] + parts[1] == json.loads((llavas / "llava.json").read_text(encoding="utf-8"))
    lines = (llavas / "llava.json").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 42  # an entry per line


def test_the_same_rows_give_the_same_bytes(
    llavas: Path, mixed_rows: pa.RecordBatch, tmp_path: Path
) -> None:
    export(Llava(rows_per_file=20), mixed_rows, tmp_path)
    files = sorted(p.relative_to(llavas) for p in llavas.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert len(files) == 40 + 2 + 5
    assert all((llavas / f).read_bytes() == (tmp_path / f).read_bytes() for f in files)


def test_every_annotation_is_in_the_manifest(llavas: Path, mixed_rows: pa.RecordBatch) -> None:
    manifest = pq.read_table(llavas / "manifest.parquet")
    for name in ("conversations", "chosen_caption_all", "named_objects", "text"):
        assert manifest[name].to_pylist() == mixed_rows[name].to_pylist()


def test_the_card_says_how_to_load_it(llavas: Path) -> None:
    card = (llavas / "README.md").read_text()
    assert "10 jpg" in card
    assert ".tar" not in card
    assert "--data_path llava.json --image_folder ." in card
    snippet = re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)[1]
    command = [sys.executable, "-c", f"{snippet}\nprint(image.size, turns[1]['value'])"]
    out = subprocess.run(command, cwd=llavas, capture_output=True, text=True, check=True)
    assert out.stdout.startswith("(32, 24) The")


def test_croissant_is_valid(llavas: Path) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")
    document = json.loads((llavas / "croissant.json").read_text())
    assert mlcroissant.Dataset(jsonld=document).metadata.name == "pets"


def test_an_export_without_rows_is_an_empty_list(tmp_path: Path) -> None:
    sink = FolderSink(tmp_path)
    rows = make_rows(4)
    Llava().finish([FileSummary(name="x.json", num_rows=0, size_bytes=0, sha256="")][:0],
                   context_of(rows, rows_kept=0), sink)  # fmt: skip
    assert json.loads((tmp_path / "llava.json").read_text()) == []


@pytest.mark.parametrize(
    ("turns", "problem"),
    [
        (list(ROUND), None),
        (None, "no conversation"),
        ([], "no conversation"),
        ([ROUND[0]], "by turns"),
        ([ROUND[1], ROUND[0]], "by turns"),
        ([*ROUND, None, None], "by turns"),
        ([ROUND[0], {"from": "gpt", "value": " "}], "an empty turn"),
        ([ROUND[0], {"from": "gpt", "value": None}], "an empty turn"),
        ([{"from": "human", "value": "What?"}, ROUND[1]], "not exactly one <image>"),
        ([*ROUND, *ROUND], "not exactly one <image>"),
    ],
)
def test_what_the_trainer_could_not_use(turns: Any, problem: str | None) -> None:
    found = problem_of(turns)
    assert found is None if problem is None else problem in str(found)


def test_a_row_without_a_conversation_stops_the_export(tmp_path: Path) -> None:
    rows = make_rows(5)
    place = rows.schema.get_field_index("conversations")
    broken = pa.array([conversation_of(0)] * 4 + [None], rows.schema.field(place).type)
    rows = rows.set_column(place, rows.schema.field(place), broken)
    with pytest.raises(ShardError, match="has no conversation; add a filter") as caught:
        export(Llava(), rows, tmp_path)
    assert caught.value.uid == row_uid("row", 4).hex()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rows_per_file": 0}, "rows_per_file=0"),
        ({"extension": "J PG"}, "use auto, or letters"),
        ({"conversations": "turns"}, "add the stage `instructions`"),
        ({"conversations": "text"}, "is string, not list<struct<from"),
        ({"conversations": "box"}, "is struct<"),
        ({"payload": "video"}, "payload='video'"),
    ],
)
def test_bad_parameters(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Llava(**validate(Llava, values)).payloads(make_rows(1).schema)


RECIPE = """
name: talk
source: {{use: folder, path: "{path}"}}
stages:
  instructions: {{objects: null, caption: path, kinds: [detail]}}
export:
  talk: {{use: llava, rows_per_file: 2, shuffle: {shuffle}}}
"""


@pytest.mark.parametrize("shuffle", ["bucket", "global"])
def test_a_recipe_exports_it(shuffle: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(5):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "in" / f"{number}.png")
    recipe = parse_recipe(RECIPE.format(path=tmp_path / "in", shuffle=shuffle))
    report = run_recipe(recipe, RunOptions(workspace=str(tmp_path / "ws"), executor="inprocess"))
    assert report.exit_code == 0
    folder = tmp_path / "ws" / report.exports["talk"]
    samples = check_llava(folder)
    assert sorted(s["conversations"][1]["value"] for s in samples) == [f"{i}.png" for i in range(5)]
    assert len(list(folder.glob("0*.json"))) == 3
