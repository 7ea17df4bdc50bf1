"""A worker process under supervision: who died, of what, and which row was to blame.

The worker is a child of the supervisor, so the signal that ended it is exact. A child that died of
SEGV, ABRT, BUS, ILL, FPE or its memory limit leaves a breadcrumb; the rows it names run again, one
by one, in fresh children, and only a row that kills its child a second time, alone, is marked
``crashed_worker``. Any other death (an outside kill, a lost node) blames nobody.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from winnow.contracts.errors import ShardError
from winnow.contracts.stage import WorkerOptions
from winnow.pipeline.units import BREADCRUMB, Breadcrumb, Suspects, Unit, UnitResult

CRASH_SIGNALS = frozenset(
    {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}
)
OUT_OF_MEMORY = "out_of_memory"
LEAVE = signal.SIGUSR1
"""What makes a child leave its unit as Ctrl-C would: temporary files are removed on the way."""
GRACE_S = 5.0
"""How long that may take."""


@dataclass(frozen=True, slots=True)
class _Died:
    """How a child ended without an answer."""

    reason: str
    crashed: bool
    suspects: Suspects | None


class Supervisor:
    """Runs units in a child process, which it starts again when it dies."""

    def __init__(self, options: WorkerOptions) -> None:
        self._options = options
        self._scratch: Path | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._link: Connection | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the child, while there is one."""
        return self._child.pid if self._child is not None else None

    def run(self, unit: Unit, progress: Callable[[int], None] = lambda rows: None) -> UnitResult:
        """Run a unit; rows that kill the worker are marked, everything else is kept.

        Raises ShardError: retryable where the child was killed from outside.
        """
        guilty: list[Suspects] = []
        while True:
            outcome = self._attempt(unit, progress)
            if isinstance(outcome, UnitResult):
                return outcome
            found = self._guilty(unit, outcome)
            if not found:
                msg = f"the worker died: {outcome.reason}"
                raise ShardError(msg)
            for row in found:
                unit = unit.without(row.stage, (row.start,))
            guilty += found

    def close(self) -> None:
        """End the child and remove its scratch folder; the next ``run`` starts another."""
        if self._link is not None:
            self._link.close()
        self.leave()
        self._child, self._link, self._scratch = None, None, None

    def leave(self) -> None:
        """End the child, if there is one, also in the middle of a unit, and remove its scratch
        folder. From any thread: a ``run`` in another one ends with a ShardError."""
        child, scratch = self._child, self._scratch
        if child is None or scratch is None:
            return
        for number, patience in ((0, 0.2), (LEAVE, GRACE_S), (signal.SIGKILL, None)):
            child.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                child.wait(timeout=patience)
                break
        shutil.rmtree(scratch, ignore_errors=True)

    def _guilty(self, unit: Unit, died: _Died) -> list[Suspects]:
        """Run the suspects alone; return those that died again."""
        if not died.crashed or died.suspects is None or unit.isolating(died.suspects) is None:
            return []
        found: list[Suspects] = []
        suspects = died.suspects
        while suspects.start < suspects.stop:
            alone = unit.isolating(suspects)
            assert alone is not None
            outcome = self._attempt(alone, lambda rows: None)
            if isinstance(outcome, UnitResult):
                break
            if not outcome.crashed or outcome.suspects is None:
                msg = f"the worker died while suspect rows ran: {outcome.reason}"
                raise ShardError(msg)
            found.append(outcome.suspects)
            unit = unit.without(outcome.suspects.stage, (outcome.suspects.start,))
            suspects = suspects._replace(start=outcome.suspects.start + 1)
        return found

    def _attempt(self, unit: Unit, progress: Callable[[int], None]) -> UnitResult | _Died:
        link = self._ensure_child(unit)
        try:
            link.send_bytes(pickle.dumps(unit))
            while True:
                kind, value = pickle.loads(link.recv_bytes())  # noqa: S301 - our own child
                if kind == "progress":
                    progress(value)
                elif kind == "result":
                    assert isinstance(value, UnitResult)
                    return value
                else:
                    break
        except (EOFError, OSError):
            return self._obituary()
        if kind == OUT_OF_MEMORY:
            suspects = self._suspects()
            self.close()
            return _Died("out of memory", True, suspects)
        assert isinstance(value, ShardError)
        raise value

    def _ensure_child(self, unit: Unit) -> Connection:
        if self._child is not None and self._child.poll() is not None:
            self.close()
        if self._link is None:
            ours, theirs = socket.socketpair()
            self._scratch = Path(
                tempfile.mkdtemp(prefix="winnow-worker-", dir=self._options.scratch)
            )
            arguments = [str(theirs.fileno()), str(self._scratch), str(os.getpid())]
            limit = str(unit.resources.memory_bytes)
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "winnow.pipeline.child", *arguments, limit],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={"OPENBLAS_NUM_THREADS": "1", **os.environ},
            )
            theirs.close()
            self._link = Connection(ours.detach())
            self._link.send_bytes(pickle.dumps(self._options))
        return self._link

    def _obituary(self) -> _Died:
        assert self._child is not None
        code = self._child.wait()
        suspects = self._suspects()
        self.close()
        if code < 0:
            name = signal.Signals(-code).name
            return _Died(name, -code in CRASH_SIGNALS, suspects)
        return _Died(f"exit status {code}", False, suspects)

    def _suspects(self) -> Suspects | None:
        assert self._scratch is not None
        return Breadcrumb.read(self._scratch / BREADCRUMB)
