"""Units of work for tests of executors; importable in every worker process."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

from winnow.contracts.stage import Resources
from winnow.pipeline.units import Suspects, Unit, UnitResult, WorkerContext


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows(Unit):
    """``count`` rows; those in ``guilty`` kill the process, those in ``hungry`` eat its memory."""

    count: int
    guilty: tuple[int, ...] = ()
    signal_name: str = "SIGSEGV"
    hungry: tuple[int, ...] = ()
    memory_bytes: int = 0
    once: str = ""
    poisoned: tuple[int, ...] = ()
    only: tuple[int, int] | None = None
    pause_s: float = 0.0

    @property
    def label(self) -> str:
        return f"{self.count} rows"

    @property
    def resources(self) -> Resources:
        return Resources(memory_bytes=self.memory_bytes)

    def isolating(self, suspects: Suspects) -> Unit:
        return replace(self, only=(suspects.start, suspects.stop))

    def without(self, stage: str, guilty: tuple[int, ...]) -> Unit:
        assert stage == "rows"
        return replace(self, poisoned=tuple(sorted({*self.poisoned, *guilty})))

    def run(self, context: WorkerContext) -> UnitResult:
        assert 1 / self.count
        assert context.breadcrumb is not None
        low, high = self.only or (0, self.count)
        size = 1 if self.only else 4
        for start in range(low, high, size):
            context.breadcrumb.set("rows", start, min(start + size, high))
            for row in range(start, min(start + size, high)):
                self._row(row)
                context.progress(1)
        context.breadcrumb.clear()
        return UnitResult(rows=self.count, extra={"poisoned": list(self.poisoned)})

    def _row(self, row: int) -> None:
        time.sleep(self.pause_s)
        if row in self.poisoned:
            return
        if row in self.hungry:
            bytearray(8 << 30)
        if row in self.guilty and not (self.once and Path(self.once).exists()):
            if self.once:
                Path(self.once).touch()
            os.kill(os.getpid(), getattr(signal, self.signal_name))
            time.sleep(5)


@dataclass(frozen=True, kw_only=True, slots=True)
class Writing(Unit):
    """Holds ``path`` open for as long as it runs, a minute, and removes it on the way out."""

    path: str

    @property
    def label(self) -> str:
        return f"writing {self.path}"

    @property
    def resources(self) -> Resources:
        return Resources()

    def run(self, context: WorkerContext) -> UnitResult:
        path = Path(self.path)
        path.touch()
        try:
            time.sleep(60)
        finally:
            path.unlink()
        return UnitResult(rows=0)
