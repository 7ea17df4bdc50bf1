"""What a study's YAML may say, and what its models and filters come to."""

from __future__ import annotations

import copy
from typing import Any

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pipeline.studies import STUDY
from winnow.contracts.registry import TRAINERS
from winnow.pipeline.study_settings import (
    Arm,
    Pool,
    Rows,
    Settings,
    kept,
    make_trainer,
    model_values,
)

NAMES = st.sampled_from("abcdefg")


@settings(deadline=None, max_examples=40)
@given(
    st.lists(NAMES, unique=True), st.just("all") | st.lists(NAMES), st.lists(NAMES), st.booleans()
)
def test_the_filters_that_stay_are_in_the_recipes_order(
    filters: list[str], keep: Any, without: list[str], bare: bool
) -> None:
    recipe: dict[str, Any] = {"filters": {name: None if bare else {} for name in filters}}
    stay = [n for n in filters if (keep == "all" or n in keep) and n not in without]
    assert kept(Rows(keep=keep, without=without), recipe) == stay
    assert kept(Rows(), recipe) == filters
    assert kept(Pool(), recipe) == []


@pytest.mark.parametrize("recipe", [{}, {"filters": {}}])
def test_a_recipe_without_filters_keeps_none(recipe: dict[str, Any]) -> None:
    assert kept(Rows(), recipe) == []
    assert kept(Rows(keep=["a"]), recipe) == []


def study(**changes: Any) -> Settings:
    return Settings.model_validate({**copy.deepcopy(STUDY), **changes})


def test_a_model_is_the_studys_trainer_with_changes_or_one_of_its_own() -> None:
    models = {
        "same": {"samples_seen": 8},
        "other": {"samples_seen": 8, "trial": {"batch_size": 4, "seed_text": 1}},
        "own": {"samples_seen": 8, "trial": {"use": "captioner", "batch_size": 2}},
    }
    found = study(models=models)
    before = found.model_copy(deep=True)
    assert model_values(found, "same") == STUDY["trial"]
    assert model_values(found, "other") == {**STUDY["trial"], "batch_size": 4, "seed_text": 1}
    assert model_values(found, "own") == {"use": "captioner", "batch_size": 2}
    assert found == before


def test_a_trainer_starts_from_the_folders_of_models_that_are_trained() -> None:
    models = {
        "first": {"samples_seen": 8},
        "second": {"samples_seen": 8, "trial": {"init": "trained:first", "batch_size": 4}},
    }
    found = study(models=models)
    first = make_trainer(found, "first", {})
    assert type(first) is TRAINERS.find("contrastive")
    assert (first.batch_size, first.learning_rate) == (16, 0.002)  # type: ignore[attr-defined]
    second = make_trainer(found, "second", {"first": "/models/first"})
    assert second.batch_size == 4  # type: ignore[attr-defined]
    assert second.init == "/models/first"  # type: ignore[attr-defined]
    assert model_values(found, "second")["init"] == "trained:first"


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"name": "a/b"}, ("name",)),
        ({"name": ""}, ("name",)),
        ({"name": "squares\n"}, ("name",)),
        ({"name": "x" * 42}, ("name",)),
        ({"seeds": ["1"]}, ("seeds", 0)),
        ({"seeds": [1.0]}, ("seeds", 0)),
        ({"budgets": [True]}, ("budgets", 0)),
        ({"samples_seen": 0}, ("samples_seen",)),
        ({"evaluate": {}}, ("evaluate",)),
        ({"evaluation": {"train": {}}}, ("evaluation", "train", "[key]")),
        ({"describe": "all"}, ("describe",)),
        ({"note": None}, ("note",)),
        ({"arms": {"a": {"random": "no"}}}, ("arms", "a", "random")),
        ({"arms": {"a": {"fraction": 0.1}}}, ("arms", "a", "fraction")),
        ({"pool": {"sweep": {}}}, ("pool", "sweep")),
        ({"scorers": {"s": {"column": "c", "folds": 21}}}, ("scorers", "s", "folds")),
        ({"scorers": {"s": {}}}, ("scorers", "s", "column")),
        ({"models": {"m": {}}}, ("models", "m", "samples_seen")),
        ({"primary": {"arm": "a", "metrics": []}}, ("primary", "metrics")),
        ({"published": [{"label": "x", "fraction": 1.0}]}, ("published", 0, "value")),
        ({"colour": "red"}, ("colour",)),
    ],
)  # fmt: skip
def test_a_mistake_has_its_place(change: dict[str, Any], place: tuple[str | int, ...]) -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        study(**change)
    assert [error["loc"] for error in caught.value.errors()] == [place]


def test_a_study_that_says_little_has_one_arm_seed_and_budget_of_its_own() -> None:
    little = Settings.model_validate(
        {k: STUDY[k] for k in ("name", "recipe", "evaluation", "trial", "evaluate", "samples_seen")}
    )
    assert (little.arms, little.seeds, little.budgets) == ({"curated": Arm()}, [0], [1])
    assert little.pool.keep == [] and little.arms["curated"].keep == "all"
    little.arms["curated"].without.append("x")
    little.seeds.append(7)
    little.pool.add["y"] = {}
    again = Settings.model_validate(
        {k: STUDY[k] for k in ("name", "recipe", "evaluation", "trial", "evaluate", "samples_seen")}
    )
    assert (again.arms["curated"].without, again.seeds, again.pool.add) == ([], [0], {})
