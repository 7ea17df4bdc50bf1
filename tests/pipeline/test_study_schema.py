"""The JSON Schema of studies accepts what the parser accepts, and is what ships."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from winnow.contracts.errors import RecipeError
from winnow.pipeline.study import load_study
from winnow.pipeline.study_results import study_lines
from winnow.pipeline.study_schema import study_schema

from .studies import STUDY, write_study

RECIPES = Path(__file__).parents[2] / "recipes"
STUDIES = [p for p in sorted(RECIPES.glob("**/*.yaml")) if "\nevaluate:" in p.read_text()]


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = study_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.name)
def test_every_study_that_ships_is_valid(
    validator: jsonschema.Draft202012Validator, path: Path
) -> None:
    validator.validate(yaml.safe_load(path.read_text()))


def test_the_schema_that_ships_is_the_parsers() -> None:
    """`make schema` writes it. What tests register is not in it."""
    shipped = json.loads((RECIPES / "study.schema.json").read_text())
    current = json.loads(json.dumps(study_schema()))
    for name, definition in shipped["$defs"].items():
        # Rows, Arm and others list all filters, so also those of tests.
        assert "." not in name or current["$defs"][name] == definition
    more = set(current["$defs"]) - set(shipped["$defs"])
    assert all(".toy_" in name or name == "trainer.breaks_on_odd_seeds" for name in more)


@pytest.mark.parametrize(
    "change",
    [
        {"nonsense": 1},
        {"seeds": ["0"]},
        {"samples_seen": 0},
        {"trial": {"use": "contrastive", "batch_sise": 8}},
        {"trial": {"use": "contrastiv"}},
        {"evaluate": {"retrieval": {"att": [1]}}},
        {"arms": {"a": {"keap": []}}},
        {"arms": {"a": {"add": {"language_is": {"languages": ["en"]}}}}},
        {"primary": {"metrics": []}},
    ],
    ids=str,
)
def test_an_editor_marks_what_the_parser_refuses(
    validator: jsonschema.Draft202012Validator, tmp_path: Path, change: dict[str, Any]
) -> None:
    data = {**copy.deepcopy(STUDY), **change}
    assert not validator.is_valid(data)
    assert validator.is_valid(STUDY)
    with pytest.raises(RecipeError):
        list(study_lines(load_study(write_study(tmp_path, **change))))


def test_datacomp_small_plans_on_a_table_like_datacomps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that was tried of it: columns as in DataComp's metadata, no pixel, no GPU."""
    table = pa.table(
        {
            "uid": pa.array([], pa.string()), "url": pa.array([], pa.string()),
            "text": pa.array([], pa.string()), "original_width": pa.array([], pa.int64()),
            "original_height": pa.array([], pa.int64()),
            "clip_b32_similarity_score": pa.array([], pa.float32()),
            "clip_l14_similarity_score": pa.array([], pa.float32()),
            "face_bboxes": pa.array([], pa.list_(pa.list_(pa.float64()))),
            "sha256": pa.array([], pa.string()),
        }
    )  # fmt: skip
    (tmp_path / "data/datacomp-small/metadata").mkdir(parents=True)
    pq.write_table(table, tmp_path / "data/datacomp-small/metadata/0.parquet")
    _empty_tar(tmp_path / "data/imagenet-validation/0.tar")
    monkeypatch.chdir(tmp_path)
    study = load_study(RECIPES / "datacomp-small.yaml")
    lines = list(study_lines(study))
    assert (
        "arm l14:0.3: usable_caption, usable_payload, decodable, top; and as many random rows"
    ) in lines
    assert study.settings.samples_seen == 12_800_000
    trainer: Any = study.trainer
    assert (trainer.model, trainer.batch_size, trainer.learning_rate) == ("ViT-B-32", 4096, 5e-4)
    assert any(line.startswith("note: Only parsed and planned") for line in lines)


def _empty_tar(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\0" * 10240)
