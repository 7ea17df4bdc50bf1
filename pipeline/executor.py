"""Running units: retries, order and progress. Where they run is an Executor's business."""

from __future__ import annotations

import abc
import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from winnow.contracts.errors import ShardError
from winnow.contracts.stage import Resources
from winnow.pipeline.units import Unit, UnitResult

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3

Outcome = UnitResult | ShardError


class Executor(abc.ABC):
    """A place where units run, at most ``room`` of them at a time."""

    @abc.abstractmethod
    def room(self, resources: Resources) -> int:
        """Return how many more units of this shape can start now; 0 while workers start."""

    @abc.abstractmethod
    def submit(self, unit: Unit, progress: Callable[[int], None]) -> None:
        """Start a unit. Called only where ``room`` is positive."""

    @abc.abstractmethod
    def wait(self, timeout_s: float) -> list[tuple[Unit, Outcome]]:
        """Return the units that ended; waits at most ``timeout_s`` for the first."""

    @abc.abstractmethod
    def close(self) -> None:
        """End all workers, at once."""


@dataclass(kw_only=True, slots=True)
class Failure:
    """A unit that failed for good."""

    unit: Unit
    error: ShardError
    attempts: int

    def __str__(self) -> str:
        return f"{self.unit.label}: {self.error} (after {self.attempts} attempts)"


@dataclass(kw_only=True, slots=True)
class Drive:
    """Runs units, and the units that follow from their results, until none is left."""

    executor: Executor
    follow: Callable[[Unit, UnitResult], Iterable[Unit]] = lambda unit, result: ()
    progress: Callable[[Unit, int], None] = lambda unit, rows: None
    failures: list[Failure] = field(default_factory=list)
    _ready: dict[Resources, deque[tuple[Unit, int]]] = field(default_factory=dict)
    _running: dict[int, int] = field(default_factory=dict)

    def run(self, units: Iterable[Unit]) -> list[Failure]:
        """Run all units; a unit that follows another goes first, so that shards finish early."""
        for unit in units:
            self._queue(unit).append((unit, 0))
        while self._running or any(self._ready.values()):
            self._start()
            for unit, outcome in self.executor.wait(0.2):
                self._ended(unit, outcome)
        return self.failures

    def _queue(self, unit: Unit) -> deque[tuple[Unit, int]]:
        return self._ready.setdefault(unit.resources, deque())

    def _start(self) -> None:
        for resources, queue in self._ready.items():
            while queue and self.executor.room(resources) > 0:
                unit, attempts = queue.popleft()
                self._running[id(unit)] = attempts + 1
                self.executor.submit(unit, _Progress(self.progress, unit))

    def _ended(self, unit: Unit, outcome: Outcome) -> None:
        attempts = self._running.pop(id(unit))
        if isinstance(outcome, UnitResult):
            for following in self.follow(unit, outcome):
                self._queue(following).appendleft((following, 0))
        elif outcome.retryable and attempts < MAX_ATTEMPTS:
            log.warning("%s: %s; trying again", unit.label, outcome)
            self._queue(unit).append((unit, attempts))
        else:
            self.failures.append(Failure(unit=unit, error=outcome, attempts=attempts))


class _Progress:
    def __init__(self, report: Callable[[Unit, int], None], unit: Unit) -> None:
        self._report, self._unit = report, unit

    def __call__(self, rows: int) -> None:
        self._report(self._unit, rows)
