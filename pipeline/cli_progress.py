"""Progress on a terminal: bars with rate and time left; log lines where there is no terminal."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from winnow.pipeline.progress import LogProgress, Progress, rate_words


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{rate_words(speed)} {task.fields['unit']}/s" if speed else "")


class BarProgress(Progress):
    """One bar per step."""

    def __init__(self) -> None:
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True, markup=False, emoji=False),
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def start(self, step: str, total: int, unit: str = "rows") -> None:
        self._tasks[step] = self._bars.add_task(_short(step), total=total or None, unit=unit)

    def advance(self, step: str, rows: int) -> None:
        self._bars.advance(self._tasks[step], rows)

    def finish(self, step: str) -> None:
        task = self._tasks[step]
        done = self._bars.tasks[task].completed
        self._bars.update(task, total=done or 1, completed=done or 1)


def make_progress() -> Progress:
    """Return bars on a terminal, log lines elsewhere."""
    return BarProgress() if sys.stderr.isatty() else LogProgress()


def _short(step: str) -> str:
    return step if len(step) <= 40 else f"{step[:37]}..."
