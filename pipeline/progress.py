"""Progress: counters of rows by step, shown by whoever wants to show them."""

from __future__ import annotations

import logging
import time
from types import TracebackType

log = logging.getLogger(__name__)


class Progress:
    """Counts rows by step; this base shows nothing."""

    def start(self, step: str, total: int) -> None:
        """A step with ``total`` rows to do begins (or is known better now)."""

    def advance(self, step: str, rows: int) -> None:
        """Rows of a step are done."""

    def finish(self, step: str) -> None:
        """A step is done."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop showing."""


class LogProgress(Progress):
    """Writes a line per step and every ``every_s`` seconds: for files and pipes."""

    def __init__(self, every_s: float = 10.0) -> None:
        self._every_s = every_s
        self._steps: dict[str, tuple[int, int, float, float]] = {}

    def start(self, step: str, total: int) -> None:
        now = time.monotonic()
        self._steps[step] = (0, total, now, now)
        log.info("%s: %s rows", step, f"{total:,}" if total else "?")

    def advance(self, step: str, rows: int) -> None:
        if step not in self._steps:
            return
        done, total, began, shown = self._steps[step]
        done, now = done + rows, time.monotonic()
        if now - shown >= self._every_s:
            shown = now
            rate = done / max(now - began, 1e-9)
            left = max(total - done, 0) / rate if rate else 0.0
            log.info(
                "%s: %s of %s rows, %.0f rows/s, %.0f s left",
                step,
                f"{done:,}",
                f"{total:,}",
                rate,
                left,
            )
        self._steps[step] = (done, total, began, shown)

    def finish(self, step: str) -> None:
        if step in self._steps:
            done, _, began, _ = self._steps.pop(step)
            seconds = time.monotonic() - began
            log.info("%s: done, %s rows in %.1f s", step, f"{done:,}", seconds)
