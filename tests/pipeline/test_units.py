"""Breadcrumbs that survive their writer; states that a worker keeps."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from winnow_units import Rows

from winnow.contracts.parameters import effort
from winnow.contracts.stage import Stage, WorkerOptions
from winnow.pipeline.units import (
    MAX_STATES,
    Breadcrumb,
    Suspects,
    Unit,
    WorkerContext,
    as_shard_error,
)


def test_the_last_breadcrumb_counts(tmp_path: Path) -> None:
    crumb = Breadcrumb(tmp_path / "crumb")
    assert Breadcrumb.read(tmp_path / "crumb") is None
    crumb.set("clip_score", 128, 256)
    crumb.set("near", 3, 4)
    assert Breadcrumb.read(tmp_path / "crumb") == Suspects("near", 3, 4)
    crumb.clear()
    assert Breadcrumb.read(tmp_path / "crumb") is None
    crumb.close()
    assert (tmp_path / "crumb").exists()


def test_a_long_name_is_cut_and_no_file_is_no_suspect(tmp_path: Path) -> None:
    assert Breadcrumb.read(tmp_path / "none") is None
    crumb = Breadcrumb(tmp_path / "crumb")
    crumb.set("x" * 100, 0, 1)
    assert Breadcrumb.read(tmp_path / "crumb") == Suspects("x" * 64, 0, 1)


def test_a_breadcrumb_survives_kill_9(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib; from winnow.pipeline.units import Breadcrumb;"
        "Breadcrumb(pathlib.Path(sys.argv[1])).set('s', 5, 9); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "crumb")], check=False)
    assert done.returncode == -9
    assert Breadcrumb.read(tmp_path / "crumb") == Suspects("s", 5, 9)


def test_an_error_of_a_cleanup_does_not_hide_ctrl_c() -> None:
    def failing(first: type[BaseException]) -> Exception:
        try:
            try:
                raise first
            finally:
                raise AttributeError("no writer")
        except AttributeError as error:
            return error

    assert "no writer" in str(as_shard_error(failing(OSError)))
    with pytest.raises(KeyboardInterrupt):
        as_shard_error(failing(KeyboardInterrupt))


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded(Stage):
    """A stage whose state can be closed."""

    number: int = effort(0)
    reads = pa.schema({})
    writes = pa.schema({"loaded_error": pa.string()})

    def setup(self, options: WorkerOptions) -> Any:
        return _State(self.number)

    def annotate(self, batch: Any, state: Any, media: Any) -> Any:
        raise NotImplementedError


class _State:
    opened: list[int] = []
    closed: list[int] = []

    def __init__(self, number: int) -> None:
        self.number = number
        self.opened.append(number)

    def close(self) -> None:
        self.closed.append(self.number)


def test_a_state_is_set_up_once_and_a_few_are_kept(tmp_path: Path) -> None:
    _State.opened.clear()
    _State.closed.clear()
    context = WorkerContext(WorkerOptions(), tmp_path)
    for number in [*range(MAX_STATES), 0]:
        assert context.state(Loaded(number=number)).number == number
    assert _State.opened == [*range(MAX_STATES)]
    context.state(Loaded(number=99))
    assert _State.closed == [0]
    context.close()
    assert sorted(_State.closed) == [*range(MAX_STATES), 99]


def test_a_unit_can_be_pickled_and_by_default_cannot_be_isolated() -> None:
    unit = Rows(count=3)
    assert pickle.loads(pickle.dumps(unit)) == unit
    assert Unit.isolating(unit, Suspects("s", 0, 1)) is None
    with pytest.raises(NotImplementedError):
        Unit.without(unit, "s", (1,))
