"""Models of a study: trained in the order of their use, on what came before, apart from tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from winnow.contracts.errors import RecipeError, SetupError
from winnow.pipeline.ablation import Outcome, run_study
from winnow.pipeline.ablation_contrasts import analyse
from winnow.pipeline.ablation_results import Results
from winnow.pipeline.run import RunOptions
from winnow.pipeline.storage import Storage
from winnow.pipeline.study import load_study
from winnow.pipeline.study_models import named_models, ready_stages, training_order, with_models
from winnow.pipeline.study_results import collect, design_of

from .studies import write_study

STAGES: dict[str, Any] = {
    "a": {"use": "image_info"},
    "b": {"use": "clip_score", "model": "trained:one"},
    "c": None,
    "d": {"use": "x", "models": ["trained:two", "trained:one"]},
}


def test_names_are_found_wherever_they_stand() -> None:
    assert list(named_models(STAGES)) == ["one", "two", "one"]
    assert list(named_models({"model": "pretrained:one", "n": 3, "t": None})) == []


def test_a_folder_takes_the_place_of_a_name() -> None:
    values = {"models": ["trained:two", "trained:one", "tiny"], "batch": 4}
    assert with_models(values, {"one": "/w/1"}) == {
        "models": ["trained:two", "/w/1", "tiny"],
        "batch": 4,
    }
    assert values["models"] == ["trained:two", "trained:one", "tiny"]
    folds = {"two": ["/w/2/0", "/w/2/1"]}
    assert with_models(values, folds)["models"] == ["/w/2/0", "/w/2/1", "trained:one", "tiny"]
    assert with_models({"model": "trained:two"}, folds) == {"model": ["/w/2/0", "/w/2/1"]}


def test_stages_end_before_the_first_model_that_is_not_there() -> None:
    assert list(ready_stages(STAGES, {})) == ["a"]
    ready = ready_stages(STAGES, {"one": "/w/1"})
    assert list(ready) == ["a", "b", "c"]
    assert ready["b"]["model"] == "/w/1"
    assert list(ready_stages(STAGES, {"one": "/w/1", "two": "/w/2"})) == list(STAGES)


def test_a_model_comes_after_what_it_starts_from() -> None:
    stages = {"x": {"model": "trained:second"}}
    models: dict[str, Any] = {"first": {}, "second": {"init": "trained:first"}, "idle": {}}
    assert training_order(stages, models) == ["first", "second"]


def _study(folder: Path, **changes: Any) -> Path:
    """A scorer trained on calm captions judges the pool, and a second one starts from it."""
    top = {"use": "clip_top_fraction", "column": "agree", "fraction": 0.5, "on_null": "drop"}
    stages = {
        "agree": {"use": "clip_score", "model": "trained:scorer", "column": "agree"},
        "again": {"use": "clip_score", "model": "trained:second", "column": "agree_again"},
    }
    models = {
        "scorer": {"samples_seen": 64},
        "second": {
            "samples_seen": 32,
            "keep": [],
            "add": {"top": top},
            "trial": {"init": "trained:scorer"},
        },
    }
    arms = {
        "raw": {"keep": [], "random": False},
        "curated": {},
        "scored": {"keep": [], "add": {"top": top}},
    }
    settings = {"stages": stages, "models": models, "arms": arms, **changes}
    return write_study(folder, **settings)


def _run(path: Path, workspace: Path, **part: Any) -> Outcome:
    options = RunOptions(workspace=str(workspace), executor="inprocess")
    return run_study(load_study(path), options, **part)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Outcome]:
    folder = tmp_path_factory.mktemp("models")
    path = _study(
        folder,
        primary={
            "arm": "scored",
            "against": "curated",
            "metrics": ["retrieval.mean_recall@1"],
        },
    )
    return path, folder / "work", _run(path, folder / "work")


def test_models_are_trained_on_what_came_before_them(done: tuple[Path, Path, Outcome]) -> None:
    _, workspace, outcome = done
    assert outcome.failures == {}
    named = {}
    for file in sorted((workspace / "runs").glob("*.yaml")):
        recipe = yaml.safe_load(file.read_text())
        if recipe["name"].startswith("squares-study-model-"):
            named[recipe["name"].removeprefix("squares-study-model-")] = recipe
    assert set(named) == {"scorer", "second"}
    assert "agree" not in named["scorer"]["stages"]
    assert "agree" in named["second"]["stages"]
    assert "again" not in named["second"]["stages"]
    folder = Path(named["second"]["stages"]["agree"]["model"])
    assert (folder / "training.json").exists()
    assert workspace in folder.parents


def test_arms_select_by_what_the_models_say(done: tuple[Path, Path, Outcome]) -> None:
    _, workspace, outcome = done
    manifest = workspace / outcome.prepared.arms["scored"].folder / "manifest.parquet"
    rows = pq.read_table(manifest)
    assert rows.num_rows == 25, "DataComp keeps the row at the threshold: place 24, counted from 0"
    assert {"agree", "agree_again"} <= set(rows.column_names)
    assert rows["agree_again"].null_count == 0


def test_the_same_study_again_trains_nothing(
    done: tuple[Path, Path, Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, workspace, outcome = done

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError

    monkeypatch.setattr("winnow.pipeline.trial_unit.TrialUnit.run", refuse)
    again = _run(path, workspace)
    assert [t.spec for t in again.trials] == [t.spec for t in outcome.trials]


def test_the_primary_contrast_is_with_the_arm_that_was_named(
    done: tuple[Path, Path, Outcome],
) -> None:
    path, workspace, outcome = done
    study = load_study(path)
    design = design_of(study, outcome, [])
    analysis = analyse(design, Results(collect(study, outcome, Storage(str(workspace)))))
    pairs = {(c.pair.arm, c.pair.role): c.pair.other for c in analysis.contrasts}
    assert pairs["scored", "primary"] == "curated"
    assert pairs["scored", "control"].startswith("random")
    assert pairs["curated", "control"].startswith("random")
    shown = analysis.find("retrieval.mean_recall@1", 1, "scored", "control")
    assert shown is not None
    assert shown.pair.other.startswith("random"), "the table's column is against random rows"


def test_a_model_must_not_learn_from_an_evaluation_set(tmp_path: Path) -> None:
    path = _study(tmp_path)
    study = yaml.safe_load(path.read_text())
    study["models"]["scorer"]["recipe"] = "test.yaml"
    study["models"]["scorer"]["keep"] = ["decodable"]
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    with pytest.raises(SetupError, match="are in the test set too"):
        _run(path, tmp_path / "w")


def test_a_report_alone_does_not_train_a_model(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="the model scorer: not trained yet"):
        _run(_study(tmp_path), tmp_path / "w", train=False)


def test_a_model_with_folds_is_one_for_each_part_that_it_never_saw(tmp_path: Path) -> None:
    halves = {"use": "split", "parts": {"0": 0.5, "1": 0.5}, "column": "fold", "seed": 3}
    halves |= {"near_duplicates": False, "group_by": ["path"]}
    scores = {"use": "cross_fit_clip_score", "models": ["trained:scorer"], "column": "agree"}
    path = write_study(
        tmp_path,
        stages={"fold": halves, "agree": scores},
        models={"scorer": {"samples_seen": 32, "folds": 2, "trial": {"batch_size": 8}}},
    )
    outcome = _run(path, tmp_path / "w", arms=["curated"], seeds=[0], controls=False)
    assert outcome.failures == {}
    rows = pq.read_table(
        tmp_path / "w" / outcome.prepared.arms["curated"].folder / "manifest.parquet"
    ).to_pylist()
    assert {row["fold"] for row in rows} == {"0", "1"}
    for file in sorted((tmp_path / "w" / "runs").glob("*.yaml")):
        recipe = yaml.safe_load(file.read_text())
        if "scorer-fold-1" in recipe["name"]:
            assert recipe["filters"]["not_fold_1"]["expression"] == 'fold != "1"'
            break
    else:
        pytest.fail("the second fold has no recipe")
    models = {
        model
        for file in (tmp_path / "w" / "runs").glob("*.yaml")
        for model in yaml.safe_load(file.read_text())["stages"].get("agree", {}).get("models", [])
    }
    assert len(models) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": {"scorer": {"samples_seen": 8, "folds": 1}}}, "folds=1 leaves no rows"),
        ({"stages": {}}, "no stage names trained:scorer"),
        ({"models": {}}, "there is no model 'scorer' to be trained"),
        ({"models": {"scorer": {"samples_seen": 0}}}, "samples_seen=0"),
        (
            {"models": {"scorer": {"samples_seen": 8, "trial": {"use": "nothing"}}}},
            "there is no trainer 'nothing'",
        ),
        (
            {"primary": {"arm": "curated", "against": "other", "metrics": ["x"]}},
            "there is no arm 'other'",
        ),
        (
            {
                "models": {
                    "scorer": {"samples_seen": 8, "trial": {"init": "trained:second"}},
                    "second": {"samples_seen": 8, "trial": {"init": "trained:scorer"}},
                }
            },
            "it starts from",
        ),
    ],
)
def test_mistakes_are_found_in_the_study(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        load_study(_study(tmp_path, **changes))


def test_a_model_must_not_learn_by_the_truth(tmp_path: Path) -> None:
    path = _study(tmp_path)
    study = yaml.safe_load(path.read_text())
    rule = {"use": "where", "expression": "truth_kind is not None", "on_null": "drop"}
    study["models"]["scorer"]["add"] = {"clean": rule}
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    with pytest.raises(RecipeError, match="truth_kind"):
        _run(path, tmp_path / "w")
