"""The crowds recipes, from the export to the statistics of objects."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from tests.recipes.test_scenes import RECIPES, run, samples
from winnow.pipeline.cli import main
from winnow.stages._object_statistics import count_objects, read_statistics


def test_training_and_evaluation_are_one_world_and_other_pictures() -> None:
    recipes = [
        yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
        for name in ("scenes-crowds", "scenes-crowds-evaluation")
    ]
    sources = [recipe["source"] for recipe in recipes]
    assert len({source.pop("seed") for source in sources}) == 2
    assert [source.pop("num_rows") for source in sources] == [3000, 400]
    assert sources[0] == sources[1]
    assert "instructions" in recipes[1]["stages"]
    del recipes[1]["stages"]["instructions"]
    assert recipes[0]["stages"] == recipes[1]["stages"]
    assert sources[0]["objects"] == [6, 10]


def test_the_evaluation_set_has_what_evaluations_read(tmp_path: Path) -> None:
    report = run("scenes-crowds-evaluation", tmp_path, "source.num_rows=8")
    folder = tmp_path / report.exports["evaluation"]
    found = samples(folder)
    assert len(found) == 8
    for sample in found:
        assert sample["image"].size == (112, 112)
        assert 6 <= len(sample["truth_objects"]) <= 10
        assert sample["txt"] == sample["truth_caption"]
        assert len(sample["conversations"]) >= 8
        assert all(g["count"] >= 1 for g in sample["truth_groups"])
        assert all(r["predicate"] != "below" for r in sample["truth_relations"])
    output = tmp_path / "statistics.json"
    arguments = ["objects", str(folder), "--column", "truth_objects", "--output", str(output)]
    outcome = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert outcome.exit_code == 0
    assert "in 8 annotated rows" in outcome.output
    expected = count_objects(sample["truth_objects"] for sample in found)
    assert read_statistics("test", str(output)) == expected
    assert json.loads(output.read_text())["num_rows"] == 8


@pytest.mark.parametrize("name", ["scenes-crowds", "scenes-crowds-evaluation"])
def test_the_recipe_says_what_it_is(name: str) -> None:
    assert yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))["name"] == name
