"""Studies: what is refused, with its place; how arms are written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from winnow.contracts.errors import RecipeError
from winnow.pipeline.study import Study, load_study

RECIPE: dict[str, Any] = {
    "name": "pool",
    "source": {"use": "scenes", "num_rows": 10},
    "stages": {"language": {}, "download": {}, "image_info": {}},
    "filters": {
        "language_is": {"languages": ["en"], "on_null": "drop"},
        "min_image_size": {"side": 64, "on_null": "drop"},
    },
    "export": {"train": {"use": "webdataset"}},
}
STUDY: dict[str, Any] = {
    "name": "study",
    "recipe": "pool.yaml",
    "evaluation": {"test": {"recipe": "pool.yaml", "set": ["source.seed=5"], "keep": []}},
    "trial": {"use": "contrastive", "model": "tiny", "batch_size": 8},
    "evaluate": {"retrieval": {}},
    "samples_seen": 64,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pool.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    return tmp_path


def _load(folder: Path, changes: dict[str, Any], overrides: tuple[str, ...] = ()) -> Study:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
    return load_study(path, overrides)


def test_the_smallest_study_has_one_arm_the_recipes_own_selection(folder: Path) -> None:
    study = _load(folder, {})
    assert [a.name for a in study.arms] == ["curated"]
    assert study.settings.seeds == [0]
    assert study.settings.budgets == [1]
    assert study.trainer.name == "contrastive"
    assert list(study.evaluations) == ["retrieval"]


def test_sweeps_and_leave_one_out_are_written_out(folder: Path) -> None:
    top = {"use": "clip_top_fraction", "fraction": 0.5, "on_null": "drop"}
    study = _load(
        folder,
        {
            "arms": {
                "raw": {"keep": [], "random": False},
                "curated": {},
                "clip": {"add": {"top": top}, "sweep": {"top.fraction": [0.1, 0.25, 1.0]}},
            },
            "leave_one_out": ["curated"],
        },
    )
    assert [(a.name, a.fraction) for a in study.arms] == [
        ("raw", None),
        ("curated", None),
        ("clip:0.1", 0.1),
        ("clip:0.25", 0.25),
        ("clip:1", 1.0),
        ("curated-without:language_is", None),
        ("curated-without:min_image_size", None),
    ]
    assert study.arms[3].rows.add["top"]["fraction"] == 0.25
    assert study.arms[5].rows.without == ["language_is"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nonsense": 1}, "nonsense is not known here"),
        ({"budgets": [0]}, r"budgets=\[0\]: give different whole numbers from 1 on"),
        ({"seeds": [1, 1]}, r"seeds=\[1, 1\]: give different whole numbers from 0 on"),
        ({"seeds": []}, r"seeds=\[\]"),
        ({"samples_seen": 0}, "samples_seen=0"),
        ({"trial": {"model": "tiny"}}, "trial needs `use: <name>`; known: .*contrastive"),
        ({"trial": {"use": "contrastiv"}}, "there is no trainer 'contrastiv'; did you mean contr"),
        ({"trial": {"use": "contrastive", "batch_sise": 8}}, "batch_sise is not known here"),
        ({"evaluate": {"retrieval": {"att": [1]}}}, "att is not known here; known: .*at"),
        ({"evaluate": {"retrival": {}}}, "there is no evaluation 'retrival'; did you mean retri"),
        ({"evaluate": {}}, "evaluate={}"),
        ({"evaluation": {"validation": {}}}, "evaluation.test is missing"),
        ({"arms": {"curated": {"keep": ["language"]}}}, "the recipe has no filter 'language'"),
        (
            {"arms": {"a": {"recipe": "pool.yaml"}}},
            "only an evaluation set, or what a model",
        ),
        ({"arms": {"a": {"set": ["seed=1"]}}}, "all arms share one pool"),
        ({"arms": {"a": {"sweep": {"top.fraction": [0.5]}}}}, "write filter.parameter"),
        ({"arms": {"a": {"scorer": "noisy"}}}, "there is no scorer 'noisy'"),
        ({"leave_one_out": ["other"]}, "there is no arm 'other' without a sweep"),
        ({"primary": {"arm": "other", "metrics": ["x"]}}, "there is no arm 'other'"),
        ({"primary": {"metrics": []}}, "primary.metrics="),
        (
            {"scorers": {"noisy": {"column": "noisy_score", "folds": 1}}},
            "folds=1 leaves no rows to train on",
        ),
        ({"recipe": "nowhere.yaml"}, "there is no recipe file here"),
    ],
)
def test_a_mistake_is_refused_with_its_place(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        _load(folder, changes)
    assert ".yaml" in str(caught.value)


def test_all_mistakes_are_told_at_once(folder: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        _load(folder, {"seeds": [1, 1], "budgets": [0], "leave_one_out": ["other"]})
    assert len(str(caught.value).splitlines()) == 3


def test_overrides_reach_the_study(folder: Path) -> None:
    assert _load(folder, {}, ("samples_seen=128", "trial.batch_size=16")).trainer.batch_size == 16  # type: ignore[attr-defined]


def test_a_recipe_is_no_study(folder: Path) -> None:
    with pytest.raises(RecipeError, match="this is a recipe"):
        load_study(folder / "pool.yaml")
