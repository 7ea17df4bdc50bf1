"""Units in the driver's own process: no start-up cost, one at a time."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from winnow.contracts.errors import ShardError
from winnow.contracts.stage import Resources, WorkerOptions
from winnow.pipeline.executor import Executor, Outcome
from winnow.pipeline.supervisor import Supervisor
from winnow.pipeline.units import Breadcrumb, Unit, WorkerContext, as_shard_error


class InProcessExecutor(Executor):
    """Runs each unit when it is waited for.

    A row that crashes the process takes the driver with it; its breadcrumb stays in ``crumbs``, and
    the next run gives that unit to a supervised child, which finds the guilty row.
    """

    def __init__(self, options: WorkerOptions, crumbs: Path | None = None) -> None:
        self._options = options
        self._scratch = Path(tempfile.mkdtemp(prefix="winnow-driver-", dir=options.scratch))
        self._crumbs = crumbs or self._scratch
        self._context = WorkerContext(options, self._scratch)
        self._supervisor: Supervisor | None = None
        self._next: tuple[Unit, Callable[[int], None]] | None = None

    def room(self, resources: Resources) -> int:
        return 0 if self._next else 1

    def submit(self, unit: Unit, progress: Callable[[int], None]) -> None:
        self._next = (unit, progress)

    def wait(self, timeout_s: float) -> list[tuple[Unit, Outcome]]:
        if self._next is None:
            return []
        (unit, progress), self._next = self._next, None
        return [(unit, self._run(unit, progress))]

    def close(self) -> None:
        self._context.close()
        if self._supervisor is not None:
            self._supervisor.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _run(self, unit: Unit, progress: Callable[[int], None]) -> Outcome:
        self._crumbs.mkdir(parents=True, exist_ok=True)
        name = hashlib.blake2b(unit.label.encode(), digest_size=8).hexdigest()
        path = self._crumbs / name
        if path.exists():
            return self._supervised(unit, progress, path)
        breadcrumb = Breadcrumb(path)
        self._context.breadcrumb, self._context.progress = breadcrumb, progress
        try:
            outcome: Outcome = unit.run(self._context)
        except Exception as error:  # noqa: BLE001 - the boundary: whatever fails, the unit failed
            outcome = as_shard_error(error)
        finally:
            breadcrumb.close()
            path.unlink(missing_ok=True)
        return outcome

    def _supervised(self, unit: Unit, progress: Callable[[int], None], path: Path) -> Outcome:
        """A run before this one died on this unit: watch it."""
        if self._supervisor is None:
            self._supervisor = Supervisor(self._options)
        try:
            outcome: Outcome = self._supervisor.run(unit, progress)
        except ShardError as error:
            return error
        path.unlink(missing_ok=True)
        return outcome
