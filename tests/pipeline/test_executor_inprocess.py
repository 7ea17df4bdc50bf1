"""Units in the driver's own process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from winnow_units import Rows

from winnow.contracts.errors import SetupError, ShardError
from winnow.contracts.stage import Resources, WorkerOptions
from winnow.pipeline.executor import Drive
from winnow.pipeline.executor_inprocess import InProcessExecutor
from winnow.pipeline.units import Unit, UnitResult, WorkerContext


@dataclass(frozen=True, kw_only=True, slots=True)
class Raises(Unit):
    """A unit that raises; each attempt leaves a letter in ``log``."""

    log: Path
    error: type[Exception] = ValueError

    @property
    def label(self) -> str:
        return "raises"

    def run(self, context: WorkerContext) -> UnitResult:
        with open(self.log, "a") as file:
            file.write("x")
        raise self.error("something about row 7")


@pytest.fixture
def executor(tmp_path: Path) -> InProcessExecutor:
    return InProcessExecutor(WorkerOptions(scratch=tmp_path), tmp_path / "crumbs")


def test_one_unit_at_a_time_with_its_rows_counted(
    executor: InProcessExecutor, tmp_path: Path
) -> None:
    rows: list[int] = []
    assert executor.wait(0.1) == []
    assert executor.room(Resources()) == 1
    unit = Rows(count=9)
    executor.submit(unit, rows.append)
    assert executor.room(Resources()) == 0
    ((ended, outcome),) = executor.wait(0.1)
    assert ended is unit
    assert isinstance(outcome, UnitResult)
    assert (outcome.rows, sum(rows)) == (9, 9)
    assert list((tmp_path / "crumbs").iterdir()) == []
    executor.close()
    assert [p.name for p in tmp_path.iterdir()] == ["crumbs"]


@pytest.mark.parametrize(
    ("error", "attempts", "text"),
    [
        (ValueError, 3, "ValueError: something about row 7"),
        (MemoryError, 3, "MemoryError: something about row 7"),
        (ShardError, 3, "something about row 7"),
        (SetupError, 1, "something about row 7"),
    ],
)
def test_whatever_fails_the_unit_failed_and_says_what(
    executor: InProcessExecutor, tmp_path: Path, error: type[Exception], attempts: int, text: str
) -> None:
    failures = Drive(executor=executor).run([Raises(log=tmp_path / "log", error=error)])
    assert (tmp_path / "log").read_text() == "x" * attempts
    assert str(failures[0]).startswith(f"raises: {text}")
    assert str(failures[0]).endswith(f"(after {attempts} attempts)")
    assert list((tmp_path / "crumbs").iterdir()) == []


def test_ctrl_c_ends_the_drive_and_leaves_no_breadcrumb(
    executor: InProcessExecutor, tmp_path: Path
) -> None:
    stop = Raises(log=tmp_path / "log", error=KeyboardInterrupt)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        Drive(executor=executor).run([stop])
    assert list((tmp_path / "crumbs").iterdir()) == []


def test_a_unit_on_which_the_driver_died_runs_under_supervision(tmp_path: Path) -> None:
    """What a run killed by a row leaves: a breadcrumb. The next one costs only that row."""
    crumbs = tmp_path / "crumbs"
    unit = Rows(count=6, guilty=(4,))
    first = InProcessExecutor(WorkerOptions(scratch=tmp_path), crumbs)
    healthy = Rows(count=6)
    first.submit(healthy, lambda rows: None)
    first.wait(0.1)
    first.close()
    import hashlib

    crumbs.mkdir(exist_ok=True)
    (crumbs / hashlib.blake2b(unit.label.encode(), digest_size=8).hexdigest()).touch()
    second = InProcessExecutor(WorkerOptions(scratch=tmp_path), crumbs)
    second.submit(unit, lambda rows: None)
    ((_, outcome),) = second.wait(0.1)
    second.close()
    assert isinstance(outcome, UnitResult)
    assert outcome.extra["poisoned"] == [4]
    assert list(crumbs.iterdir()) == []
