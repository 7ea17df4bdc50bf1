"""What a study's report is given: all that was planned, and what there is of it."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from winnow_shards import snapshot

from tests.pipeline.studies import STUDY, write_study
from winnow.contracts.trial import ITEMS, METRICS
from winnow.pipeline.ablation import Outcome, Prepared, TrialEntry
from winnow.pipeline.statistics import ArmResult
from winnow.pipeline.storage import Storage
from winnow.pipeline.study import Study, load_study
from winnow.pipeline.study_results import collect, design_of, study_lines
from winnow.pipeline.trial import TRAINED, Exported, TrialSpec, evaluation_folder

ARMS = {
    "raw": {"keep": [], "random": False},
    "curated": {},
    "wide": {"trial": {"batch_size": 8}},
    "words": {"trial": {"captions": "alt"}},
    "oracle": {"add": {"best": {"use": "where", "expression": "1 > 0", "on_null": "drop"}}},
}
SETS = tuple(
    Exported(name=name, folder=f"export/{name}", tars=(), digest=f"{name} digest", num_rows=16)
    for name in ("validation", "test")
)


def exported(name: str, num_rows: int) -> Exported:
    return Exported(name=name, folder=f"e/{name}", tars=(), digest=name, num_rows=num_rows)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    arms = {name: arm for name, arm in ARMS.items() if name != "words"}
    path = write_study(tmp_path_factory.mktemp("study"), arms=arms, budgets=[4, 1], note="a note")
    return load_study(path)


def outcome(**prepared: Any) -> Outcome:
    made = Prepared(sets=SETS, arms={}, randoms={}, pool_rows=48)
    return Outcome(prepared=replace(made, **prepared), trials=[])


def trial(study: Study, arm: str, seed: int, budget: int = 1, kind: str = "arm") -> TrialEntry:
    entry = next(a for a in study.arms if a.name == arm)
    spec = TrialSpec(
        trainer=study.changed_trainer(entry.rows),
        train=exported(f"{kind} {arm}", 32),
        num_samples=128 * budget,
        seed=seed,
    )
    return TrialEntry(arm=entry, kind=kind, budget=budget, spec=spec)


def measure(study: Study, storage: Storage, entry: TrialEntry, value: float) -> None:
    """Leave what a finished trial leaves."""
    spec = entry.spec
    said = {"samples_seen": spec.num_samples + 16}
    storage.put(f"{spec.checkpoint}/{TRAINED}", json.dumps(said).encode())
    metrics = [
        {"metric": "model.parameters", "slice": "", "value": 1234.0, "num_items": 1},
        {"metric": "retrieval.mean_recall@1", "slice": "", "value": value, "num_items": 2},
        {"metric": "retrieval.mean_recall@1", "slice": "a=b", "value": None, "num_items": 1},
        {"metric": "retrieval.mean_recall@5", "slice": "", "value": value, "num_items": 2},
    ]
    items = [{"metric": "retrieval.mean_recall@1", "item": k, "value": value} for k in "xy"]
    for data in SETS:
        folder = evaluation_folder(spec, study.evaluations, data)
        for name, rows, schema in (("metrics", metrics, METRICS), ("items", items, ITEMS)):
            buffer = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(rows, schema), buffer)
            storage.put(f"{folder}/{name}.parquet", buffer.getvalue())


def places(results: list[ArmResult]) -> Counter[tuple[Any, ...]]:
    return Counter((r.arm, r.kind, r.budget, r.seed, r.split) for r in results)


def planned(arms: dict[str, str]) -> Counter[tuple[Any, ...]]:
    grid = product(arms.items(), (1, 4), (0, 1), ("validation", "test"))
    return Counter((arm, kind, *rest) for (arm, kind), *rest in grid)


ALL = {
    "raw": "arm", "curated": "arm", "random:curated": "random", "wide": "arm",
    "random:wide": "random", "oracle": "oracle",
}  # fmt: skip


def test_what_was_not_run_is_there_as_missing(study: Study, tmp_path: Path) -> None:
    results = collect(study, outcome(), Storage(str(tmp_path)))
    assert places(results) == planned(ALL)
    for r in results:
        assert (r.status, r.metrics.num_rows, r.items.num_rows) == ("missing", 0, 0)
        assert (r.num_rows, r.samples_seen, r.repeats) == (0, 0, 0.0)
        assert r.control_of == ("" if r.kind != "random" else r.arm.removeprefix("random:"))


def test_an_arm_that_is_the_whole_pool_has_no_control(study: Study, tmp_path: Path) -> None:
    made = outcome(
        arms={"curated": exported("c", 32), "wide": exported("w", 48)},
        randoms={("curated", 0): exported("r", 32)},
    )
    without = {name: kind for name, kind in ALL.items() if name != "random:wide"}
    assert places(collect(study, made, Storage(str(tmp_path)))) == planned(without)


def test_done_failed_and_missing_trials_are_each_there_once(study: Study, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    done = [trial(study, "curated", 0), trial(study, "curated", 1, 4, "random")]
    broken = trial(study, "raw", 1)
    for entry, value in zip(done, (0.5, 0.25), strict=True):
        measure(study, storage, entry, value)
    ran = outcome()
    ran.trials, ran.failures = [*done, broken], {broken.spec.fingerprint(): "loss is nan"}
    results = collect(study, ran, storage)
    assert places(results) == planned(ALL)
    by_status = {s: [r for r in results if r.status == s] for s in ("done", "failed", "missing")}
    assert len(by_status["done"]) == 4 and len(by_status["failed"]) == 2
    for r in by_status["failed"]:
        assert (r.arm, r.seed, r.budget, r.error, r.num_rows) == ("raw", 1, 1, "loss is nan", 32)
        assert r.metrics.num_rows == r.items.num_rows == 0
    for r in by_status["done"]:
        value = {"curated": 0.5, "random:curated": 0.25}[r.arm]
        assert r.samples_seen == 128 * r.budget + 16
        assert (r.num_rows, r.repeats) == (32, r.samples_seen / 32)
        assert r.metrics.schema.equals(METRICS) and r.items.schema.equals(ITEMS)
        assert r.metrics["value"].to_pylist() == [1234.0, value, None, value]
        # Only the test set is compared item by item.
        assert r.items["value"].to_pylist() == ([value] * 2 if r.split == "test" else [])


def test_a_selection_is_named_apart_from_how_models_learn(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path, arms=ARMS))
    results = collect(study, outcome(), Storage(str(tmp_path)))
    said = {r.arm: (r.selection, r.trainer) for r in results}
    assert said["wide"][0] == said["curated"][0] and said["wide"][1] != said["curated"][1]
    assert said["words"][0] != said["curated"][0] and said["words"][1] == said["curated"][1]
    assert said["raw"][0] != said["curated"][0] and said["raw"][1] == said["curated"][1]
    for arm in ("curated", "wide", "words"):
        assert said[f"random:{arm}"] == ("", said[arm][1])


def test_a_sweep_is_one_curve_of_its_scorer(tmp_path: Path) -> None:
    top = {"use": "top_fraction", "column": "num_characters", "fraction": 0.5, "on_null": "drop"}
    arms = {
        "raw": {"keep": [], "random": False},
        "long": {
            "keep": [], "add": {"top": top}, "sweep": {"top.fraction": [0.25, 0.5]},
            "scorer": "length",
        },
    }  # fmt: skip
    scorers = {"length": {"column": "num_characters", "label": "long captions"}}
    path = write_study(tmp_path, arms=arms, scorers=scorers, primary=None)
    study = load_study(path)
    results = collect(study, outcome(), Storage(str(tmp_path)))
    points = {(r.arm, r.kind, r.fraction, r.curve, r.scorer) for r in results}
    assert points == {
        ("raw", "arm", None, "", ""),
        *((f"long:{f}", "arm", f, "long", "num_characters") for f in (0.25, 0.5)),
        *((f"random:long:{f}", "random", f, "", "") for f in (0.25, 0.5)),
    }
    assert design_of(study, outcome(), results).scorers == {"num_characters": "long captions"}


def test_a_design_is_what_the_study_says(study: Study) -> None:
    described = {"raw": {"score": 0.2, "none": None}, "curated": {"score": 0.3, "none": None}}
    made = outcome(described=described, arms={"curated": exported("c", 32)}, warnings=("look out",))
    design = design_of(study, made, [])
    assert (design.name, design.seeds, design.budgets) == ("squares-study", (0, 1), (1, 4))
    assert design.metrics == ("retrieval.mean_recall@1",)
    assert (design.primary_arm, design.primary_against) == ("curated", "")
    assert design.descriptions == {"score": {"raw": 0.2, "curated": 0.3}}
    assert design.fingerprints == {
        "validation set": "validation digest", "test set": "test digest", "arm curated": "c",
    }  # fmt: skip
    assert design.facts["Pool"] == "48 rows of pool.yaml"
    assert design.facts["Test set"] == "16 rows, the same for all arms"
    assert (design.facts["Note"], design.facts["Warning 1"]) == ("a note", "look out")


def test_without_a_primary_contrast_the_first_metrics_are_compared(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path, primary=None))
    assert design_of(study, outcome(), []).primary_arm == ""
    storage = Storage(str(tmp_path / "w"))
    ran = outcome()
    ran.trials = [trial(study, "raw", 0), trial(study, "curated", 0)]
    for entry in ran.trials:
        measure(study, storage, entry, 0.5)
    design = design_of(study, ran, collect(study, ran, storage))
    assert design.metrics == ("retrieval.mean_recall@1",)
    assert design.facts["Model of raw, curated"] == "1,234 parameters"
    assert design_of(study, ran, []).metrics == ()


@pytest.mark.parametrize(
    ("part", "trials", "samples"),
    [
        ({}, 6 * 2 * 2, 6 * 2 * 5 * 128),
        ({"seeds": [7]}, 6 * 2, 6 * 5 * 128),
        ({"budgets": [4]}, 6 * 2, 6 * 2 * 4 * 128),
        ({"controls": False}, 4 * 2 * 2, 4 * 2 * 5 * 128),
        ({"arms": ["curated"]}, 2 * 2 * 2, 2 * 2 * 5 * 128),
        ({"arms": ["raw", "oracle"], "seeds": [0], "budgets": [1]}, 2, 2 * 128),
    ],
)
def test_a_study_says_what_it_costs_and_does_nothing(
    study: Study, part: dict[str, Any], trials: int, samples: int
) -> None:
    before = snapshot(study.base)
    lines = list(study_lines(study, **part))
    (cost,) = [line for line in lines if line.startswith("at most")]
    assert cost.startswith(f"at most {trials} trials: ")
    assert cost.endswith(f"; {samples:,} samples in all")
    arms = [line.partition(":")[0] for line in lines if line.startswith("arm ")]
    assert arms == [
        f"arm {name}" for name in part.get("arms", ["raw", "curated", "wide", "oracle"])
    ]
    assert snapshot(study.base) == before


def test_the_models_of_a_study_are_said_and_paid_for(tmp_path: Path) -> None:
    stages = {"score": {"use": "clip_score", "model": "trained:scorer"}}
    stages["second"] = {
        "use": "cross_fit_clip_score", "models": ["trained:parts"], "column": "second",
    }  # fmt: skip
    split = {
        "use": "split",
        "parts": {"0": 0.5, "1": 0.5},
        "column": "fold",
        "near_duplicates": False,
    }
    models = {
        "scorer": {"samples_seen": 1_000, "keep": ["calm"]},
        "parts": {"samples_seen": 10_000, "folds": 2},
    }
    path = write_study(tmp_path, stages={"fold": split, **stages}, models=models)
    lines = list(study_lines(load_study(path)))
    assert [line for line in lines if line.startswith("model ")] == [
        "model scorer: trained here, on 1,000 samples",
        "model parts: trained here, 2 models of 10,000 samples, each without one part of the rows",
    ]
    (cost,) = [line for line in lines if line.startswith("at most")]
    assert cost.endswith(f"; {3 * 2 * 128 + 1_000 + 2 * 10_000:,} samples in all")


def test_an_unknown_arm_is_not_planned(study: Study) -> None:
    with pytest.raises(Exception, match="has no arm 'curatd'; it has raw, curated, wide, oracle"):
        list(study_lines(study, arms=["curatd"]))
    assert STUDY["arms"].keys() < ARMS.keys()
