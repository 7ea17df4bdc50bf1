"""A trial of two workers on Ray: the files and the metrics of one worker, and its failures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from winnow.contracts.stage import WorkerOptions
from winnow.pipeline.ablation import Outcome, run_study
from winnow.pipeline.executor import Drive
from winnow.pipeline.executor_inprocess import InProcessExecutor
from winnow.pipeline.run import RunOptions
from winnow.pipeline.storage import Storage
from winnow.pipeline.study import load_study
from winnow.pipeline.trial_unit import TrialUnit

from .studies import STUDY, write_study

pytestmark = pytest.mark.ray


def _run(folder: Path, workspace: Path, **trial: Any) -> Outcome:
    study = write_study(folder, trial={**STUDY["trial"], **trial})
    options = RunOptions(workspace=str(workspace), executor="inprocess")
    return run_study(load_study(study), options, arms=["curated"], seeds=[0], controls=False)


def _files(workspace: Path) -> list[str]:
    (folder,) = (workspace / "trials").iterdir()
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def _metrics(workspace: Path) -> dict[tuple[str, str, str], float]:
    found = {}
    for path in sorted(workspace.glob("trials/*/*/metrics.parquet")):
        for row in pq.read_table(path).to_pylist():
            found[path.parent.name.split("-")[0], row["metric"], row["slice"]] = row["value"]
    return found


def test_two_workers_make_the_trial_of_one(ray_cluster: None, tmp_path: Path) -> None:
    one = _run(tmp_path, tmp_path / "one")
    two = _run(tmp_path, tmp_path / "two", num_workers=2)
    assert one.failures == two.failures == {}
    assert _files(tmp_path / "one") == _files(tmp_path / "two")
    assert one.trials[0].spec.fingerprint() != two.trials[0].spec.fingerprint()
    first, second = (_metrics(tmp_path / n) for n in ("one", "two"))
    assert first.keys() == second.keys()
    assert first["test", "retrieval.mean_recall@1", ""] > 0
    # Sums differ in their last bits; of 16 pictures one may change its rank.
    for key, value in first.items():
        assert second[key] == pytest.approx(value, abs=1 / 16), key
    # What is trained already is measured without a group.
    (measured,) = (tmp_path / "two").glob("trials/*/test-*")
    before = {p.name: p.read_bytes() for p in measured.iterdir()}
    for path in measured.iterdir():
        path.unlink()
    assert _run(tmp_path, tmp_path / "two", num_workers=2).failures == {}
    assert {p.name: p.read_bytes() for p in measured.iterdir()} == before


def test_a_failing_worker_fails_its_trial(ray_cluster: None, tmp_path: Path) -> None:
    outcome = _run(tmp_path, tmp_path / "w", num_workers=2, num_cpus=2.0)
    (message,) = outcome.failures.values()
    assert "2 workers need 4 CPU; the cluster has 2" in message


def test_one_process_does_not_pass_for_two(tmp_path: Path) -> None:
    """Whoever runs such a unit without a group is told so."""
    done = _run(tmp_path, tmp_path / "one")
    study = load_study(write_study(tmp_path, trial={**STUDY["trial"], "num_workers": 2}))
    spec = dataclasses.replace(done.trials[0].spec, trainer=study.trainer)
    unit = TrialUnit(storage=Storage(str(tmp_path / "one")), spec=spec)
    assert unit.group_size == 2
    (failure,) = Drive(executor=InProcessExecutor(WorkerOptions())).run([unit])
    assert "num_workers=2, but 1 were started" in str(failure)
