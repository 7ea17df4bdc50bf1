"""Progress: counters by step, shown by whoever wants to show them."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType

log = logging.getLogger(__name__)

_RECENT = 12
"""Lines that a rate looks back over: what a step costs changes, and its first rows wait."""


class Progress:
    """Counts what steps do, rows unless they say otherwise; this base shows nothing."""

    def start(self, step: str, total: int, unit: str = "rows") -> None:
        """A step with ``total`` rows (or ``unit``) to do begins, or is known better now."""

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


@dataclass(slots=True)
class _Step:
    total: int
    unit: str
    began: float
    shown: float
    done: int = 0
    recent: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_RECENT))

    def rate(self, now: float) -> float:
        """Return how much is done a second, of late.

        At first it is since the first rows were done: those may be an earlier run's.
        """
        since, before = self.recent[0]
        if self.done == before:
            since, before = self.began, 0
        return (self.done - before) / max(now - since, 1e-9)


class LogProgress(Progress):
    """Writes lines, for files and pipes: every ``every_s`` seconds, or every tenth of the time that
    a step already takes if that is longer (a minute at most)."""

    def __init__(self, every_s: float = 10.0) -> None:
        self._every_s = every_s
        self._steps: dict[str, _Step] = {}

    def start(self, step: str, total: int, unit: str = "rows") -> None:
        now = time.monotonic()
        self._steps[step] = _Step(total, unit, began=now, shown=now)
        log.info("%s: %s %s", step, f"{total:,}" if total else "?", unit)

    def advance(self, step: str, rows: int) -> None:
        at = self._steps.get(step)
        if at is None:
            return
        at.done, now = at.done + rows, time.monotonic()
        if not at.recent:
            at.recent.append((now, at.done))
        if now - at.shown < max(self._every_s, min((now - at.began) / 10, 60.0)):
            return
        rate, left = at.rate(now), max(at.total - at.done, 0)
        at.shown = now
        at.recent.append((now, at.done))
        log.info(
            "%s: %s of %s %s, %s/s, %s left",
            step,
            f"{at.done:,}",
            f"{at.total:,}",
            at.unit,
            rate_words(rate),
            duration_words(left / rate) if rate else "unknown time",
        )

    def finish(self, step: str) -> None:
        at = self._steps.pop(step, None)
        if at is not None:
            seconds = time.monotonic() - at.began
            took = f"{seconds:.1f} s" if seconds < 60 else duration_words(seconds)
            log.info("%s: done, %s %s in %s", step, f"{at.done:,}", at.unit, took)


def rate_words(rate: float) -> str:
    """Return a rate with two digits or more: 0.25, 8.1, 1,234."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"


def duration_words(seconds: float) -> str:
    """Return a time to the minute, below two minutes to the second: 95 s, 12 min, 3 h 05 min."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60:02d} min"
