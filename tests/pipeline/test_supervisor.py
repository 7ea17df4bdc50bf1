"""Supervised workers: who is blamed for which death."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import winnow_units

from winnow.contracts.errors import ShardError
from winnow.contracts.stage import WorkerOptions
from winnow.pipeline.supervisor import Supervisor


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    made = Supervisor(WorkerOptions(scratch=scratch))
    yield made
    made.close()
    assert not list(scratch.iterdir())


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE"])
def test_a_crash_signal_marks_exactly_the_rows_that_die_alone(
    supervisor: Supervisor, name: str
) -> None:
    unit = winnow_units.Rows(count=20, guilty=(3, 11), signal_name=name)
    result = supervisor.run(unit)
    assert result.extra["poisoned"] == [3, 11]
    assert result.rows == 20


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_an_outside_kill_blames_nobody(supervisor: Supervisor, name: str) -> None:
    unit = winnow_units.Rows(count=20, guilty=(3,), signal_name=name)
    with pytest.raises(ShardError, match=name) as caught:
        supervisor.run(unit)
    assert caught.value.retryable
    assert supervisor.run(replace(unit, guilty=())).extra["poisoned"] == []


def test_a_crash_that_no_row_repeats_alone_blames_nobody(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    unit = winnow_units.Rows(count=8, guilty=(3,), signal_name="SIGSEGV", once=str(tmp_path / "o"))
    with pytest.raises(ShardError, match="SIGSEGV"):
        supervisor.run(unit)
    assert supervisor.run(unit).extra["poisoned"] == []


def test_a_memory_limit_marks_the_row_that_reaches_it(supervisor: Supervisor) -> None:
    unit = winnow_units.Rows(count=8, hungry=(5,), memory_bytes=2 << 30)
    assert supervisor.run(unit).extra["poisoned"] == [5]


def test_an_exception_is_an_error_with_its_text_and_the_child_lives_on(
    supervisor: Supervisor,
) -> None:
    assert supervisor.run(winnow_units.Rows(count=1)).rows == 1
    child = supervisor.pid
    with pytest.raises(ShardError, match="ZeroDivisionError"):
        supervisor.run(winnow_units.Rows(count=0))
    assert supervisor.run(winnow_units.Rows(count=2)).rows == 2
    assert supervisor.pid == child


@pytest.mark.parametrize("busy", [False, True])
def test_a_child_ends_with_its_supervisor_and_leaves_no_file(tmp_path: Path, busy: bool) -> None:
    pid_file, temporary, scratch = tmp_path / "pid", tmp_path / "temporary", tmp_path / "scratch"
    scratch.mkdir()
    parent = os.fork()
    if parent == 0:
        inner = Supervisor(WorkerOptions(scratch=scratch))
        inner.run(winnow_units.Rows(count=1))
        pid_file.write_text(str(inner.pid))
        if busy:
            inner.run(winnow_units.Writing(path=str(temporary)))
        time.sleep(60)
        os._exit(0)
    while not (pid_file.exists() and pid_file.read_text() and temporary.exists() == busy):
        time.sleep(0.05)
    child = int(pid_file.read_text())
    assert list(scratch.iterdir())
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    for _ in range(100):
        if not alive(child):
            break
        time.sleep(0.1)
    assert not alive(child)
    assert not temporary.exists()
    assert not list(scratch.iterdir())


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_progress_arrives_while_the_unit_runs(supervisor: Supervisor) -> None:
    seen: list[int] = []
    supervisor.run(winnow_units.Rows(count=5), seen.append)
    assert seen == [1] * 5
