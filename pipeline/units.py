"""Units of work: what an executor runs, retries and counts. A unit is data and can be pickled."""

from __future__ import annotations

import abc
import os
import struct
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from winnow.contracts.errors import RunError, ShardError
from winnow.contracts.stage import Resources, Stage, WorkerOptions

MAX_STATES = 8
"""Loaded stages that a worker keeps; the one loaded first goes first."""


def as_shard_error(error: Exception) -> ShardError:
    """Return what failed a unit as the error that every process can read.

    A RunError (a missing model, no GPU) is for a person, and trying again does not help; anything
    else that is not a ShardError is a bug or bad luck: it keeps its traceback and is tried again.
    An error raised while Ctrl-C was on its way out is no outcome of the unit: KeyboardInterrupt
    goes on in its place.
    """
    if hides_interrupt(error):
        raise KeyboardInterrupt from error
    if isinstance(error, ShardError):
        return error
    if isinstance(error, RunError):
        return ShardError(str(error), retryable=False)
    text = "".join(traceback.format_exception(error))
    return ShardError(f"{type(error).__name__}: {error}\n{text}")


def hides_interrupt(error: BaseException) -> bool:
    """Return whether an error was raised while Ctrl-C was on its way out, and so replaced it."""
    before: BaseException | None = error
    while before is not None and not isinstance(before, KeyboardInterrupt):
        before = before.__context__
    return before is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitResult:
    """What a finished unit says: counters only, never rows.

    committed: (stage key, file suffix) of what is now there, whoever wrote it.
    lost: another run committed one of the files first; what was derived from ours was thrown away.
    """

    rows: int = 0
    committed: tuple[tuple[str, str], ...] = ()
    lost: bool = False
    counters: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


class Suspects(NamedTuple):
    """Rows that a worker was on when it died: a stage and a range of positions in its rows."""

    stage: str
    start: int
    stop: int


BREADCRUMB = "breadcrumb"
"""Name of a supervised worker's breadcrumb in its scratch folder."""


class Breadcrumb:
    """A small file that says, at any moment, which rows a worker is on; it survives the worker."""

    _FORMAT = "<ii64s"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def set(self, stage: str, start: int, stop: int) -> None:
        """Say that ``stage`` now works on positions [start, stop)."""
        os.pwrite(self._file, struct.pack(self._FORMAT, start, stop, stage.encode()[:64]), 0)

    def clear(self) -> None:
        """Say that no row is being worked on."""
        os.pwrite(self._file, struct.pack(self._FORMAT, 0, 0, b""), 0)

    def close(self) -> None:
        """Close the file; it stays."""
        os.close(self._file)

    @classmethod
    def read(cls, path: Path) -> Suspects | None:
        """Return what was said last; None where no row was being worked on."""
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
        if len(raw) < struct.calcsize(cls._FORMAT):
            return None
        start, stop, stage = struct.unpack(cls._FORMAT, raw[: struct.calcsize(cls._FORMAT)])
        name = stage.rstrip(b"\0").decode()
        return Suspects(name, start, stop) if name and stop > start else None


class WorkerContext:
    """What a worker keeps between units: loaded states, a scratch folder, where progress goes."""

    def __init__(
        self,
        options: WorkerOptions,
        scratch: Path,
        breadcrumb: Breadcrumb | None = None,
        progress: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self.options, self.scratch = options, scratch
        self.breadcrumb, self.progress = breadcrumb, progress
        self._states: dict[str, Any] = {}

    def state(self, stage: Stage) -> Any:
        """Return the stage's state, set up once; a few are kept."""
        key = repr(stage)
        if key not in self._states:
            while len(self._states) >= MAX_STATES:
                _close(self._states.pop(next(iter(self._states))))
            self._states[key] = stage.setup(self.options)
        return self._states[key]

    def close(self) -> None:
        """Release all states."""
        for state in self._states.values():
            _close(state)
        self._states.clear()


def _close(state: Any) -> None:
    close = getattr(state, "close", None)
    if close is not None:
        close()


class Unit(abc.ABC):
    """One unit of work: idempotent, so that it can be run again at any time."""

    __slots__ = ()

    @property
    @abc.abstractmethod
    def label(self) -> str:
        """What a message calls it."""

    @property
    def resources(self) -> Resources:
        """What its worker needs."""
        return Resources()

    @abc.abstractmethod
    def run(self, context: WorkerContext) -> UnitResult:
        """Do the work. Raises ShardError, or anything, which fails the unit."""

    def isolating(self, suspects: Suspects) -> Unit | None:
        """Return the unit that runs the suspect rows one by one; None if it cannot be isolated."""
        return None

    def without(self, stage: str, guilty: tuple[int, ...]) -> Unit:
        """Return the unit with rows marked ``crashed_worker`` (positions in its rows)."""
        raise NotImplementedError
