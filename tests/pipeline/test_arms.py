"""The recipes of a study: which filters, in which order; what the truth may do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from winnow.contracts.errors import RecipeError
from winnow.pipeline.arms import Recipes, shared_columns
from winnow.pipeline.plan import make_plan
from winnow.pipeline.study import Study, load_study

RECIPE: dict[str, Any] = {
    "name": "pool",
    "source": {"use": "scenes", "num_rows": 10},
    "stages": {
        "language": {}, "download": {}, "image_info": {}, "perceptual_hash": {},
        "near_duplicates": {}, "clip_score": {"model": "tiny"},
    },
    "filters": {
        "decodable": {"use": "has_media", "error_column": "image_info_error", "on_null": "drop"},
        "language_is": {"languages": ["en"], "on_null": "drop"},
        "drop_near_duplicates": {"on_null": "keep"},
    },
    "export": {"train": {"use": "webdataset", "rows_per_file": 7}},
}  # fmt: skip
TOP = {"use": "clip_top_fraction", "fraction": 0.5, "on_null": "drop"}
CLEAN = {"use": "where", "expression": 'truth_kind == "clean"', "on_null": "drop"}
STUDY: dict[str, Any] = {
    "name": "study",
    "recipe": "pool.yaml",
    "pool": {"keep": ["decodable"]},
    "evaluation": {
        "test": {"recipe": "pool.yaml", "set": ["source.seed=5"], "keep": []},
        "validation": {"keep": ["decodable"], "add": {"small": {
            "use": "where", "expression": "image_size_bytes < 90000", "on_null": "drop"}}},
    },
    "trial": {"use": "contrastive", "model": "tiny", "batch_size": 8},
    "evaluate": {"retrieval": {}},
    "samples_seen": 64,
    "arms": {
        "raw": {"keep": []},
        "curated": {"add": {"top": TOP}},
        "oracle": {"keep": [], "add": {"clean": CLEAN}},
    },
}  # fmt: skip


def _study(folder: Path, **changes: Any) -> Study:
    (folder / "pool.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    (folder / "study.yaml").write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
    return load_study(folder / "study.yaml")


def _names(recipe: Any) -> list[str]:
    return [f.key for f in recipe.filters]


def test_filters_of_arms(tmp_path: Path) -> None:
    study = _study(tmp_path)
    recipes = Recipes(study)
    raw, curated, oracle = (recipes.arm(a) for a in study.arms)
    assert _names(raw) == ["usable_caption", "decodable"]
    # Near-duplicates are covered last, whatever the study added.
    assert _names(curated) == [
        "usable_caption", "decodable", "language_is", "top", "drop_near_duplicates",
    ]  # fmt: skip
    assert _names(oracle) == ["usable_caption", "decodable", "clean"]
    control = recipes.random(study.arms[1], 12, 3)
    assert _names(control) == ["usable_caption", "decodable", "random_rows"]
    for recipe in (raw, curated, oracle, control):
        make_plan(recipe)


def test_all_arms_annotate_alike_and_export_only_what_a_trial_reads(tmp_path: Path) -> None:
    study = _study(tmp_path)
    recipes = Recipes(study)
    stages = {str([s.stage for s in recipes.arm(a).stages]) for a in study.arms}
    assert len(stages) == 1
    for arm in study.arms:
        (export,) = recipes.arm(arm).exports
        assert export.exporter.columns == ()  # type: ignore[attr-defined]
        assert export.exporter.rows_per_file == 7


def test_evaluation_sets_do_not_inherit_the_pools_rules(tmp_path: Path) -> None:
    recipes = Recipes(_study(tmp_path))
    assert _names(recipes.evaluation("test")) == []
    assert recipes.evaluation("test").source.seed == 5  # type: ignore[attr-defined]
    assert _names(recipes.evaluation("validation")) == ["decodable", "small"]


def test_only_the_oracle_may_read_the_truth(tmp_path: Path) -> None:
    study = _study(tmp_path, arms={"curated": {"add": {"clean": CLEAN}}})
    with pytest.raises(RecipeError, match="curated: the filter clean reads truth_kind"):
        Recipes(study).arm(study.arms[0])
    scorers = {"noisy": {"column": "noisy_score", "folds": 2, "add": {"clean": CLEAN}}}
    study = _study(tmp_path, scorers=scorers)
    with pytest.raises(RecipeError, match="the scorer noisy: the filter clean reads truth_kind"):
        Recipes(study).fold("noisy", study.settings.scorers["noisy"], 0)


def test_an_arm_may_change_the_model_and_its_columns_but_not_learn_the_truth(
    tmp_path: Path,
) -> None:
    arms: dict[str, Any] = {
        "plain": {"keep": []},
        "negatives": {"keep": [], "trial": {"hard_negatives": "text", "learning_rate": 0.01}},
        "cheat": {"keep": [], "trial": {"hard_negatives": "truth_hard_negative"}},
    }
    study = _study(tmp_path, arms=arms)
    recipes = Recipes(study)
    plain, negatives, cheat = study.arms
    assert recipes.arm(plain).exports[0].exporter.columns == ()  # type: ignore[attr-defined]
    for recipe in (recipes.arm(negatives), recipes.random(negatives, 3, 0)):
        assert recipe.exports[0].exporter.columns == ("text",)  # type: ignore[attr-defined]
    trainer: Any = study.changed_trainer(negatives.rows)
    assert (trainer.learning_rate, trainer.batch_size) == (0.01, 8)
    with pytest.raises(RecipeError, match="cheat: training reads truth_hard_negative"):
        recipes.arm(cheat)
    arms["plain"]["trial"] = {"batch_sise": 3}
    with pytest.raises(RecipeError, match="batch_sise is not known here; known: model"):
        _study(tmp_path, arms=arms)


def test_labels_may_be_learned_from_and_not_selected_by(tmp_path: Path) -> None:
    arms: dict[str, Any] = {
        "labelled": {"keep": [], "trial": {"hard_negatives": "truth_hard_negative"}},
        "chosen": {
            "keep": [],
            "add": {
                "known": {
                    "use": "where",
                    "expression": "truth_hard_negative is not None",
                    "on_null": "drop",
                }
            },
        },
        "other": {"keep": [], "trial": {"hard_negatives": "truth_swap_count"}},
    }
    study = _study(tmp_path, arms=arms, labels=["truth_hard_negative"])
    recipes = Recipes(study)
    recipe = recipes.arm(study.arms[0])
    assert recipe.exports[0].exporter.columns == ("truth_hard_negative",)  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match="chosen: the filter known reads truth_hard_negative"):
        recipes.arm(study.arms[1])
    with pytest.raises(RecipeError, match="other: training reads truth_swap_count"):
        recipes.arm(study.arms[2])


def test_an_arm_may_have_other_captions_and_its_random_rows_keep_the_pools(tmp_path: Path) -> None:
    stages = {"choice": {"use": "caption_choice", "policy": "raw", "raw_score": None}}
    arms: dict[str, Any] = {
        "plain": {"keep": []},
        "chosen": {
            "keep": [],
            "export": {"text": "chosen_caption"},
            "trial": {"caption_choices": "chosen_caption_all"},
        },
    }
    study = _study(tmp_path, arms=arms, stages=stages)
    recipes = Recipes(study)
    own, control = recipes.arm(study.arms[1]), recipes.random(study.arms[1], 3, 0)
    exports: list[Any] = [recipe.exports[0].exporter for recipe in (own, control)]
    assert [e.text for e in exports] == ["chosen_caption", "text"]
    assert [e.columns for e in exports] == [("chosen_caption_all",), ()]
    assert "length(strip(chosen_caption)) > 0" in str(own.resolved["filters"])
    trainer: Any = study.control_trainer(study.arms[1].rows)
    assert trainer == study.trainer


def test_a_set_that_an_arm_favours_is_found(tmp_path: Path) -> None:
    study = _study(tmp_path)
    recipes = Recipes(study)
    arms = [recipes.arm(a) for a in study.arms[:2]]
    assert shared_columns(recipes.evaluation("validation"), arms) == []
    narrow = {"use": "max_aspect_ratio", "ratio": 2.0, "on_null": "drop"}
    wide = {"use": "where", "expression": "aspect_ratio < 3", "on_null": "drop"}
    study = _study(
        tmp_path,
        arms={"curated": {"add": {"narrow": narrow}}},
        evaluation={"test": {"keep": [], "add": {"wide": wide}}},
    )
    recipes = Recipes(study)
    found = shared_columns(recipes.evaluation("test"), [recipes.arm(study.arms[0])])
    assert found == ["aspect_ratio"]


def test_a_fold_trains_on_all_other_folds(tmp_path: Path) -> None:
    parts = {"0": 0.5, "1": 0.5}
    study = _study(
        tmp_path,
        stages={"fold": {"use": "split", "parts": parts, "column": "fold"}},
        scorers={"noisy": {"column": "noisy_score", "folds": 2, "keep": ["language_is"]}},
    )
    recipe = Recipes(study).fold("noisy", study.settings.scorers["noisy"], 1)
    assert _names(recipe) == ["usable_caption", "decodable", "language_is", "not_fold_1"]
    assert recipe.filters[-1].on_null == "drop"
    assert str(recipe.filters[-1].rule) == "fold != '1'"
    make_plan(recipe)


def test_scores_of_trained_models_are_a_stage(tmp_path: Path) -> None:
    parts = {"0": 0.5, "1": 0.5}
    study = _study(
        tmp_path,
        stages={"fold": {"use": "split", "parts": parts, "column": "fold"}},
        scorers={"noisy": {"column": "noisy_score", "folds": 2}},
        arms={"curated": {"add": {"top": {**TOP, "column": "noisy_score"}}}},
    )
    recipe = Recipes(study, {"noisy": ["tiny", "tiny"]}).arm(study.arms[0])
    assert "noisy_score" in make_plan(recipe).schema.names
