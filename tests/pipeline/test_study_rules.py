"""What a study may not compare, judge by or describe itself with, told before any row is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from winnow.contracts.errors import RecipeError
from winnow.pipeline.study import Study, load_study
from winnow.pipeline.study_plan import choose_arms, plan_study
from winnow.pipeline.study_results import study_lines

from .studies import write_study

METRICS = ["retrieval.mean_recall@1"]
WHOLE = {"keep": [], "random": False}


def loaded(folder: Path, **changes: Any) -> Study:
    return load_study(write_study(folder, **changes))


def planned(folder: Path, **changes: Any) -> tuple[str, ...]:
    study = loaded(folder, **changes)
    return plan_study(study, choose_arms(study, ())).warnings


def test_an_oracle_is_no_primary_arm(tmp_path: Path) -> None:
    arms = {"raw": WHOLE, "oracle": {"keep": []}}
    with pytest.raises(RecipeError, match="an oracle shows the ceiling"):
        loaded(tmp_path, arms=arms, primary={"arm": "oracle", "metrics": METRICS})


def test_a_primary_arm_has_something_to_be_compared_with(tmp_path: Path) -> None:
    arms = {"raw": WHOLE, "curated": {"random": False}}
    with pytest.raises(RecipeError, match="the arm curated has random: false"):
        loaded(tmp_path, arms=arms, primary={"arm": "curated", "metrics": METRICS})
    primary = {"arm": "curated", "against": "raw", "metrics": METRICS}
    assert loaded(tmp_path, arms=arms, primary=primary).primary is not None


CAPTIONS = {"use": "caption", "engine": "projector", "model": "trained:writer",
            "column": "captions"}  # fmt: skip
OTHER: dict[str, Any] = {"recipe": "validation.yaml", "keep": [], "samples_seen": 16}


def judging(stage: str, model: str) -> dict[str, Any]:
    match = {"use": stage, "model": f"trained:{model}", "column": "match"}
    if stage == "caption_scores":
        match["text_column"] = "captions"
    return {"captions": CAPTIONS, "match": match}


@pytest.mark.parametrize("stage", ["clip_score", "caption_scores"])
def test_a_captioner_does_not_judge(tmp_path: Path, stage: str) -> None:
    """Not itself, and not by a model that starts from it."""
    models = {
        "writer": OTHER,
        "judge": {**OTHER, "trial": {"init": "trained:writer"}},
    }
    for model in ("writer", "judge"):
        chosen = {name: models[name] for name in ("writer", model)}
        with pytest.raises(RecipeError, match="trained:writer writes the captions of the stage"):
            loaded(tmp_path, stages=judging(stage, model), models=chosen)
    apart = {"writer": OTHER, "judge": OTHER}
    assert loaded(tmp_path, stages=judging(stage, "judge"), models=apart).models == [
        "writer",
        "judge",
    ]


def test_a_model_of_the_pool_s_own_rows_is_warned_of(tmp_path: Path) -> None:
    stages: dict[str, Any] = {
        "score": {"use": "clip_score", "model": "trained:judge", "column": "score"}
    }
    own = planned(tmp_path, stages=stages, models={"judge": {"samples_seen": 16}})
    assert [w for w in own if "the stage score uses trained:judge on the rows that trained" in w]
    other = planned(tmp_path, stages=stages, models={"judge": OTHER})
    assert not [w for w in other if "trained:judge" in w]


@pytest.mark.parametrize(
    ("apart", "said"),
    [({"distence": 3}, "distence"), ({"distance": 99}, "distance=99"), ({"distance": "x"}, "dist")],
)
def test_apart_is_checked_when_the_study_is_read(
    tmp_path: Path, apart: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        loaded(tmp_path, apart=apart)
    assert "study.yaml" in str(caught.value)


def test_apart_needs_hashes_in_the_pool(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="apart reads phash, thumbnail, image_detail, which"):
        planned(tmp_path, apart={})
    planned(tmp_path, apart={}, stages={"perceptual_hash": None})
    study = loaded(tmp_path, apart={}, stages={"perceptual_hash": None})
    assert [line for line in study_lines(study) if line.startswith("apart: ")]


def test_what_describes_an_arm_did_not_select_it(tmp_path: Path) -> None:
    """Neither the column itself, nor another one of the same model."""
    best = {"use": "clip_top_fraction", "column": "score", "fraction": 0.5, "on_null": "drop"}
    arms = {"raw": WHOLE, "curated": {"keep": [], "add": {"best": best}}}
    stages: dict[str, Any] = {
        "score": {"use": "clip_score", "model": "tiny", "column": "score"},
        "again": {"use": "clip_score", "model": "tiny", "batch_size": 8, "column": "again"},
        "other": {"use": "clip_score", "model": "patches", "column": "other"},
    }
    for column, said in (("score", "was selected by score;"), ("again", "score of the same model")):
        with pytest.raises(RecipeError, match=said):
            planned(tmp_path, arms=arms, stages=stages, describe=[column])
    planned(tmp_path, arms=arms, stages=stages, describe=["other"])


def test_the_names_of_a_study_s_own_filters_are_taken(tmp_path: Path) -> None:
    """They may read labels, which no filter of a user's may."""
    rule = {"use": "where", "expression": "num_characters > 3", "on_null": "drop"}
    for name in ("usable_caption", "usable_payload"):
        with pytest.raises(RecipeError, match=f"a filter is named {name}"):
            planned(tmp_path, arms={"raw": WHOLE, "curated": {"keep": [], "add": {name: rule}}})
