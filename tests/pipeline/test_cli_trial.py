"""``winnow trial`` and ``winnow ablate`` as a user types them."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from winnow.pipeline.cli import main

from .studies import write_study


def _winnow(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


@pytest.mark.ray
def test_ablate_side_by_side_on_ray_then_again_for_free(tmp_path: Path, ray_cluster: None) -> None:
    study, workspace = str(write_study(tmp_path)), str(tmp_path / "w")
    first = _winnow("ablate", study, "-w", workspace, "--executor", "ray")
    assert first.exit_code == 0, first.output
    folder = tmp_path / "w" / "ablations" / "squares-study"
    metrics = pq.read_table(folder / "metrics.parquet")
    done = {(r["arm"], r["kind"], r["seed"]) for r in metrics.to_pylist()}
    assert len(done) == 6
    assert {"verdict.png", "verdict.svg", "index.html"} <= {p.name for p in folder.iterdir()}
    assert "curated" in first.output
    assert "not measured" not in first.output.splitlines()[0]
    again = _winnow("ablate", study, "-w", workspace, "--executor", "inprocess")
    assert again.exit_code == 0
    assert "trials: done" not in again.output
    assert pq.read_table(folder / "metrics.parquet").equals(metrics)


@pytest.mark.ray
def test_scorers_and_trials_take_turns_on_a_small_cluster(
    tmp_path: Path, ray_cluster: None
) -> None:
    """The scorers' workers must not hold the machine when the trials begin."""
    top = {"use": "clip_top_fraction", "fraction": 0.5, "column": "noisy", "on_null": "drop"}
    split = {"use": "split", "parts": {"0": 0.5, "1": 0.5}, "column": "fold",
             "near_duplicates": False}  # fmt: skip
    scorer = {"column": "noisy", "folds": 2, "samples_seen": 16, "trial": {"batch_size": 8}}
    study = write_study(
        tmp_path, stages={"fold": split}, scorers={"noisy": scorer},
        arms={"curated": {"add": {"top": top}, "scorer": "noisy"}},
    )  # fmt: skip
    done = _winnow("ablate", str(study), "-w", str(tmp_path / "w"), "--executor", "ray")
    assert done.exit_code == 0, done.output


def test_plan_tells_everything_and_does_nothing(tmp_path: Path) -> None:
    study = str(write_study(tmp_path))
    outcome = _winnow("ablate", study, "-w", str(tmp_path / "w"), "--plan")
    assert outcome.exit_code == 0
    assert not (tmp_path / "w").exists()
    lines = outcome.output.splitlines()
    assert "arm raw: usable_caption, decodable" in lines
    assert "arm curated: usable_caption, decodable, calm; and as many random rows" in lines
    assert "at most 6 trials: seeds 0, 1; 128 samples each; 768 samples in all" in lines
    assert any(
        line == "primary contrast: curated against as many random rows, by retrieval.mean_recall@1"
        for line in lines
    )


def test_a_mistake_is_exit_code_2_and_nothing_is_written(tmp_path: Path) -> None:
    study = str(write_study(tmp_path, seeds=[]))
    outcome = _winnow("ablate", study, "-w", str(tmp_path / "w"))
    assert outcome.exit_code == 2
    assert "seeds=[]" in outcome.output
    assert not (tmp_path / "w").exists()


def test_trial_prints_the_test_set_and_the_model(tmp_path: Path) -> None:
    study = str(write_study(tmp_path))
    arguments = ["trial", study, "-w", str(tmp_path / "w"), "--executor", "inprocess"]
    outcome = _winnow(*arguments, "--arm", "raw", "--seed", "7")
    assert outcome.exit_code == 0, outcome.output
    assert "raw, budget 1, seed 7: 48 rows, 128 samples seen (2.7 times each)" in outcome.output
    assert "retrieval.mean_recall@1" in outcome.output
    model = outcome.output.strip().splitlines()[-1].removeprefix("model: ")
    assert (Path(model) / "model.safetensors").exists()
