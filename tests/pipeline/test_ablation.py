"""Studies end to end, with the real trainer: cached, compared fairly, honest about failures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from winnow.contracts.errors import RecipeError, RunError, SetupError, ShardError
from winnow.contracts.registry import TRAINERS, register_trainer
from winnow.contracts.trial import Dataset, Embeddings, Trainer
from winnow.pipeline.ablation import Outcome, run_study
from winnow.pipeline.run import RunOptions
from winnow.pipeline.storage import Storage
from winnow.pipeline.study import load_study
from winnow.pipeline.study_results import collect, design_of

from .studies import write_study


def _run(study: Path, workspace: Path, **part: Any) -> Outcome:
    options = RunOptions(workspace=str(workspace), executor="inprocess")
    return run_study(load_study(study), options, **part)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Outcome]:
    folder = tmp_path_factory.mktemp("study")
    study = write_study(folder)
    return study, folder / "work", _run(study, folder / "work")


def test_every_arm_has_its_control_of_the_same_size(done: tuple[Path, Path, Outcome]) -> None:
    _, _, outcome = done
    assert outcome.failures == {}
    kinds = [(t.arm.name, t.kind, t.spec.seed, t.spec.train.num_rows) for t in outcome.trials]
    assert kinds == [
        ("raw", "arm", 0, 48), ("curated", "arm", 0, 32), ("curated", "random", 0, 32),
        ("raw", "arm", 1, 48), ("curated", "arm", 1, 32), ("curated", "random", 1, 32),
    ]  # fmt: skip
    controls = {t.spec.train.digest for t in outcome.trials if t.kind == "random"}
    assert len(controls) == 2, "a fresh subset per seed"


def test_a_control_is_drawn_from_the_whole_pool(done: tuple[Path, Path, Outcome]) -> None:
    _, workspace, outcome = done
    pool, curated, control = (
        set(_keys(workspace, outcome, arm, kind))
        for arm, kind in (("raw", "arm"), ("curated", "arm"), ("curated", "random"))
    )
    assert control < pool
    assert control - curated, "it holds noise too"


def _keys(workspace: Path, outcome: Outcome, arm: str, kind: str) -> list[str]:
    trial = next(t for t in outcome.trials if t.arm.name == arm and t.kind == kind)
    return pq.read_table(workspace / trial.spec.train.folder / "manifest.parquet")[
        "key"
    ].to_pylist()


def test_the_workspace_shows_the_arm_that_the_study_is_about(
    done: tuple[Path, Path, Outcome],
) -> None:
    _, workspace, outcome = done
    latest = json.loads((workspace / "runs" / "_latest.json").read_text())
    assert latest["exports"]["train"] == outcome.prepared.arms["curated"].folder


def test_results_are_complete_and_measured_on_frozen_sets(
    done: tuple[Path, Path, Outcome],
) -> None:
    study, workspace, outcome = done
    parsed = load_study(study)
    results = collect(parsed, outcome, Storage(str(workspace)))
    assert len(results) == 6 * 2
    assert {r.status for r in results} == {"done"}
    assert {(r.num_rows, r.repeats) for r in results} == {(48, 128 / 48), (32, 4.0)}
    for result in results:
        metrics = {r["metric"]: r for r in result.metrics.to_pylist() if not r["slice"]}
        assert metrics["retrieval.mean_recall@1"]["num_items"] == 16
        if result.split == "validation":
            assert result.items.num_rows == 0, "only the test set is compared item by item"
            continue
        items = result.items.filter(
            pa.compute.equal(result.items["metric"], "retrieval.mean_recall@1")
        )
        mean = pa.compute.mean(items["value"]).as_py()
        assert mean == pytest.approx(metrics["retrieval.mean_recall@1"]["value"])
    design = design_of(parsed, outcome, [])
    assert design.metrics == ("retrieval.mean_recall@1",)
    assert design.facts["Pool"].startswith("48 rows")


def test_the_same_study_again_trains_nothing(
    done: tuple[Path, Path, Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, workspace, outcome = done

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError

    monkeypatch.setattr("winnow.pipeline.trial_unit.TrialUnit.run", refuse)
    again = _run(study, workspace)
    assert [t.spec.fingerprint() for t in again.trials] == [
        t.spec.fingerprint() for t in outcome.trials
    ]


def test_another_evaluation_trains_nothing_again(
    done: tuple[Path, Path, Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, workspace, outcome = done
    more = write_study(study.parent, evaluate={"retrieval": {"at": [1, 5]}, "modality_gap": {}})
    trainer = TRAINERS["contrastive"]

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError

    monkeypatch.setattr(trainer, "train", refuse)
    again = _run(more, workspace, arms=["raw"], seeds=[0])
    write_study(study.parent)
    (trial,) = again.trials
    assert trial.spec.fingerprint() in {t.spec.fingerprint() for t in outcome.trials}
    results = collect(load_study(more), again, Storage(str(workspace)))
    assert "retrieval" in results[0].metrics["metric"][0].as_py()


def test_a_stage_that_adds_a_column_trains_nothing_again(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    first = _run(study, tmp_path / "w", arms=["curated"], seeds=[0], controls=False)
    more = write_study(tmp_path, stages={"perceptual_hash": {}})
    second = _run(more, tmp_path / "w", arms=["curated"], seeds=[0], controls=False)
    assert first.trials[0].spec.train.folder != second.trials[0].spec.train.folder
    assert first.trials[0].spec.fingerprint() == second.trials[0].spec.fingerprint()


def test_what_cannot_be_trained_on_is_refused_before_anything_trains(tmp_path: Path) -> None:
    nothing = {"use": "where", "expression": "num_words > 99", "on_null": "drop"}
    few = {"use": "where", "expression": "num_words > 4", "on_null": "drop"}
    for rule, message in ((nothing, "the selection is empty"), (few, "raw.*fewer than a batch")):
        arms = {"raw": {"keep": [], "add": {"rule": rule}, "random": False}}
        study = write_study(
            tmp_path, arms={**arms, "curated": {}}, trial={"use": "contrastive", "batch_size": 32}
        )
        with pytest.raises(SetupError, match=message):
            _run(study, tmp_path / "w")
    assert not (tmp_path / "w" / "trials").exists()


def test_an_unknown_column_is_refused_before_any_row_is_read(tmp_path: Path) -> None:
    rule = {"use": "where", "expression": "nowhere > 4", "on_null": "drop"}
    study = write_study(tmp_path, arms={"curated": {"add": {"rule": rule}}})
    with pytest.raises(RecipeError, match="nowhere"):
        _run(study, tmp_path / "w")
    assert not (tmp_path / "w").exists()
    with pytest.raises(SetupError, match="has no arm 'other'; it has curated"):
        _run(write_study(tmp_path, arms={"curated": {}}), tmp_path / "w", arms=["other"])


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("truth_class", "'truth_class' is not an annotation"),
        ("caption_stats_error", "'caption_stats_error' of the validation set is null in every row"),
    ],
)
def test_an_evaluation_set_without_its_column_is_refused_before_training(
    tmp_path: Path, label: str, message: str
) -> None:
    study = write_study(tmp_path, evaluate={"zero_shot": {"label": label}})
    with pytest.raises(RunError, match=message):
        _run(study, tmp_path / "w")
    assert not (tmp_path / "w" / "trials").exists()


@register_trainer("breaks_on_odd_seeds", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class _Breaks(Trainer):
    subject = "embeddings"

    def check(self, data: Dataset, num_samples: int) -> None:
        pass

    def train(
        self, data: Dataset, folder: Path, *, num_samples: int, seed: int, **hooks: Any
    ) -> Any:
        if seed % 2:
            msg = "the loss is nan at step 3"
            raise ShardError(msg, retryable=False)
        (folder / "model").write_text("m")
        return {"samples_seen": num_samples}

    def load(self, folder: Path, data: Dataset, columns: Sequence[str]) -> Embeddings:
        import numpy as np

        keys = [str(i) for i in range(8)]
        vectors = np.eye(8, dtype=np.float32)
        rows = pa.table({"key": keys, "caption": keys})
        return Embeddings(
            vectors={"image": vectors, "text": vectors}, rows=rows, logit_scale=1.0,
            logit_bias=None, embed_texts=lambda texts: np.zeros((len(texts), 8), np.float32),
        )  # fmt: skip


def test_a_failed_trial_is_reported_and_costs_no_other(tmp_path: Path) -> None:
    study = write_study(tmp_path, trial={"use": "breaks_on_odd_seeds"})
    outcome = _run(study, tmp_path / "w")
    assert set(outcome.failures.values()) == {"the loss is nan at step 3"}
    parsed = load_study(study)
    results = collect(parsed, outcome, Storage(str(tmp_path / "w")))
    assert {(r.seed, r.status, r.metrics.num_rows > 0) for r in results} == {
        (0, "done", True),
        (1, "failed", False),
    }
    assert json.loads(next((tmp_path / "w" / "trials").glob("*/trial.json")).read_text())


def test_scorers_see_no_row_that_they_judge(tmp_path: Path) -> None:
    parts = {"0": 0.5, "1": 0.5}
    study = write_study(
        tmp_path,
        stages={"fold": {"use": "split", "parts": parts, "column": "fold",
                         "near_duplicates": False}},
        scorers={
            "noisy": {"column": "noisy_score", "folds": 2, "keep": ["calm"], "samples_seen": 32,
                      "trial": {"batch_size": 8}}
        },
        arms={
            "curated": {"add": {"top": {"use": "clip_top_fraction", "fraction": 0.5, "column":
                        "noisy_score", "on_null": "drop"}}, "scorer": "noisy"}
        },
    )  # fmt: skip
    outcome = _run(study, tmp_path / "w", seeds=[0])
    assert outcome.failures == {}
    folder = tmp_path / "w" / outcome.prepared.arms["curated"].folder
    rows = pq.read_table(folder / "manifest.parquet", columns=["uid", "fold", "noisy_score"])
    assert rows["noisy_score"].null_count == 0
    uids = {fold: {r["uid"] for r in rows.to_pylist() if r["fold"] == fold} for fold in ("0", "1")}
    trained = {}
    for fold in ("0", "1"):
        for path in (tmp_path / "w" / "export").glob("train-*/README.md"):
            if f"squares-study-noisy-fold-{fold}" in path.read_text():
                table = pq.read_table(path.parent / "manifest.parquet", columns=["uid", "fold"])
                trained[fold] = {r["uid"] for r in table.to_pylist()}
                assert fold not in set(table["fold"].to_pylist())
    assert all(trained[fold].isdisjoint(uids[fold]) and trained[fold] for fold in ("0", "1"))
