"""Trials that several processes train together: one trial at a time, started by ray.train."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from winnow.contracts.stage import Resources, WorkerOptions
from winnow.pipeline.executor import Executor, Outcome
from winnow.pipeline.trial_unit import TrialUnit
from winnow.pipeline.units import Unit, UnitResult, WorkerContext, as_shard_error

NOTES = "attempts/ray-train"


class GroupExecutor(Executor):
    """Runs each trial when it is waited for, in ``unit.group_size`` workers of its resources.

    address: of a Ray cluster, whose nodes all have to reach the workspace; None: Ray is started on
    this machine for each trial, unless this process is connected already.
    """

    def __init__(self, address: str | None = None) -> None:
        self._address = address
        self._next: tuple[TrialUnit, Callable[[int], None]] | None = None

    def room(self, resources: Resources) -> int:
        return 0 if self._next else 1

    def submit(self, unit: Unit, progress: Callable[[int], None]) -> None:
        assert isinstance(unit, TrialUnit)
        self._next = (unit, progress)

    def wait(self, timeout_s: float) -> list[tuple[Unit, Outcome]]:
        if self._next is None:
            return []
        (unit, progress), self._next = self._next, None
        return [(unit, self._run(unit, progress))]

    def close(self) -> None:
        """Nothing is left: the workers end with their trial."""

    def _run(self, unit: TrialUnit, progress: Callable[[int], None]) -> Outcome:
        notes = f"{NOTES}/{unit.spec.fingerprint()}" if self._address else ""
        try:
            from winnow.pipeline.ray_training import train_on_ray

            result: UnitResult = train_on_ray(
                _Member(unit=unit, directory=str(Path.cwd())),
                unit.group_size,
                unit.resources,
                address=self._address,
                progress=progress,
                storage=unit.storage.url(notes) if notes else None,
            )
        except Exception as error:  # noqa: BLE001 - the boundary: whatever fails, the trial failed
            return as_shard_error(error)
        finally:
            if notes:
                unit.storage.remove(notes)
        return result


@dataclass(frozen=True, kw_only=True, slots=True)
class _Member:
    """What each worker runs. directory: what relative paths of the trial mean."""

    unit: TrialUnit
    directory: str

    def __call__(self, progress: Callable[[int], None]) -> UnitResult:
        with contextlib.ExitStack() as stack:
            name = stack.enter_context(tempfile.TemporaryDirectory(prefix="winnow-group-"))
            if os.path.isdir(self.directory):  # noqa: PTH112
                stack.enter_context(contextlib.chdir(self.directory))
            context = WorkerContext(WorkerOptions(), Path(name), progress=progress)
            return self.unit.run(context)
