"""One trial: committed whole, resumed after a kill, the same bytes either way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from winnow.contracts.stage import WorkerOptions
from winnow.contracts.trial import ITEMS, METRICS
from winnow.pipeline.ablation import run_study
from winnow.pipeline.run import RunOptions
from winnow.pipeline.storage import Storage
from winnow.pipeline.study import load_study
from winnow.pipeline.trial import TRAINED, TrialSpec, exported, load_measured
from winnow.pipeline.trial_unit import TrialUnit
from winnow.pipeline.units import WorkerContext

from .studies import STUDY, write_study

SAMPLES = "samples_seen=1536"


def _command(study: Path, workspace: Path) -> list[str]:
    return [
        sys.executable, "-m", "winnow.pipeline.cli", "trial", str(study), "-w", str(workspace),
        "--set", SAMPLES, "--executor", "inprocess",
    ]  # fmt: skip


def _files(workspace: Path) -> dict[str, bytes]:
    (folder,) = (workspace / "trials").iterdir()
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    del found["trial.json"]  # names the export's folder
    return found


@pytest.mark.kill
def test_a_killed_trial_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    subprocess.run(_command(study, tmp_path / "whole"), check=True, capture_output=True)
    killed = tmp_path / "killed"
    for _ in range(2):
        process = subprocess.Popen(
            _command(study, killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        before = _state(killed)
        deadline = time.monotonic() + 120
        while _state(killed) == before and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert process.poll() is None, "it ended before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        (folder,) = (killed / "trials").iterdir()
        assert not (folder / "checkpoint" / TRAINED).exists()
        assert _state(killed) is not None
    done = subprocess.run(
        _command(study, killed), check=True, capture_output=True, text=True, env=os.environ
    )
    assert "curated, budget 1, seed 0: 32 rows, 1,536 samples seen (48.0 times each)" in done.stdout
    assert _files(killed) == _files(tmp_path / "whole")
    assert any("state/" in name for name in _files(killed)) is False


def _state(workspace: Path) -> int | None:
    """When the resumable state was written last."""
    found = sorted(workspace.glob("trials/*/state/training_state.pt"))
    return found[0].stat().st_mtime_ns if found else None


def test_results_are_readable_and_committed_last(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path))
    storage = Storage(str(tmp_path / "w"))
    outcome = run_study(
        study, RunOptions(workspace=storage.root, executor="inprocess"),
        arms=["curated"], seeds=[0], controls=False,
    )  # fmt: skip
    (trial,) = outcome.trials
    test = outcome.prepared.sets[1]
    metrics, items = load_measured(storage, trial.spec, study.evaluations, test)
    assert metrics.schema.equals(METRICS)
    assert items.schema.equals(ITEMS)
    unit = TrialUnit(storage=storage, spec=trial.spec, evaluations=study.evaluations, sets=(test,))
    assert unit.is_done()
    # A run that died between the two: only what is missing is done again, and is the same.
    (folder,) = (tmp_path / "w" / "trials").iterdir()
    (measured,) = folder.glob("test-*")
    before = {p.name: p.read_bytes() for p in measured.iterdir()}
    for path in measured.iterdir():
        path.unlink()
    assert not unit.is_done()
    trained = (folder / "checkpoint" / "model.safetensors").stat().st_mtime_ns
    context = WorkerContext(WorkerOptions(), tmp_path)
    unit.run(context)
    assert {p.name: p.read_bytes() for p in measured.iterdir()} == before
    assert (folder / "checkpoint" / "model.safetensors").stat().st_mtime_ns == trained


def test_equal_rows_are_one_trial_whatever_selected_them(tmp_path: Path) -> None:
    same = {"use": "where", "expression": "num_characters < 31", "on_null": "drop"}
    arms = {"curated": {"random": False}, "other": {"keep": [], "add": {"same": same},
                                                    "random": False}}  # fmt: skip
    study = load_study(write_study(tmp_path, arms=arms, primary=None))
    options = RunOptions(workspace=str(tmp_path / "w"), executor="inprocess")
    outcome = run_study(study, options, seeds=[0])
    assert len(outcome.trials) == 2
    assert len({t.spec.train.folder for t in outcome.trials}) == 2
    assert len({t.spec.fingerprint() for t in outcome.trials}) == 1
    assert len(list((tmp_path / "w" / "trials").iterdir())) == 1


def test_an_exports_digest_is_that_of_its_tars(tmp_path: Path) -> None:
    import hashlib
    import json

    study = load_study(write_study(tmp_path))
    options = RunOptions(workspace=str(tmp_path / "w"), executor="inprocess")
    outcome = run_study(study, options, arms=["raw"], seeds=[0])
    data = outcome.prepared.arms["raw"]
    folder = tmp_path / "w" / data.folder
    sums = [[t, hashlib.sha256((folder / t).read_bytes()).hexdigest()] for t in data.tars]
    text = json.dumps(sums, separators=(",", ":")).encode()
    assert data.digest == hashlib.blake2b(text, digest_size=16).hexdigest()
    assert data == exported(Storage(str(tmp_path / "w")), data.folder, "raw")


def _unit(folder: Path, **changes: object) -> tuple[TrialUnit, Path]:
    study = load_study(write_study(folder, **changes))
    options = RunOptions(workspace=str(folder / "w"), executor="inprocess")
    outcome = run_study(study, options, arms=["raw"], seeds=[0], train=False)
    assert outcome.trials == []
    prepared = outcome.prepared
    spec = TrialSpec(trainer=study.trainer, train=prepared.arms["raw"], num_samples=128, seed=0)
    storage = Storage(str(folder / "w"))
    unit = TrialUnit(storage=storage, spec=spec, evaluations=study.evaluations, sets=prepared.sets)
    return unit, folder / "w" / spec.folder


def test_a_state_that_cannot_be_used_costs_the_time_and_not_the_trial(tmp_path: Path) -> None:
    unit, folder = _unit(tmp_path)
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "training_state.pt").write_bytes(b"PK torn")
    unit.run(WorkerContext(WorkerOptions(), tmp_path))
    assert unit.is_done()
    assert not (folder / "state").exists()


def test_what_is_measured_is_the_checkpoint_that_is_there(tmp_path: Path) -> None:
    """An attempt that died between two files leaves some of its own: first writer wins."""
    unit, folder = _unit(tmp_path)
    other, _ = _unit(tmp_path, trial={**STUDY["trial"], "learning_rate": 0.0001})
    other.run(WorkerContext(WorkerOptions(), tmp_path))
    foreign = (tmp_path / "w" / other.spec.checkpoint / "model.safetensors").read_bytes()
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "checkpoint" / "model.safetensors").write_bytes(foreign)
    unit.run(WorkerContext(WorkerOptions(), tmp_path))
    assert (folder / "checkpoint" / "model.safetensors").read_bytes() == foreign
    test = unit.sets[1]
    found = load_measured(unit.storage, unit.spec, unit.evaluations, test)
    expected = load_measured(other.storage, other.spec, other.evaluations, test)
    assert found[0].equals(expected[0])


def test_a_state_left_behind_goes_when_the_trial_is_looked_at(tmp_path: Path) -> None:
    unit, folder = _unit(tmp_path)
    unit.run(WorkerContext(WorkerOptions(), tmp_path))
    (folder / "state").mkdir()
    (folder / "state" / "training_state.pt").write_bytes(b"x")
    unit.run(WorkerContext(WorkerOptions(), tmp_path))
    assert not (folder / "state").exists()
