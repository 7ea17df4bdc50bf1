"""The worker process: receives units, runs them, answers; ends when its supervisor is gone.

A supervisor that was killed tidies nothing. A worker that is left alone therefore leaves its unit
as Ctrl-C would (temporary files are removed on the way), and takes its scratch folder along.
"""

from __future__ import annotations

import os
import pickle
import resource
import shutil
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType

from winnow.pipeline.supervisor import GRACE_S, LEAVE, OUT_OF_MEMORY
from winnow.pipeline.units import BREADCRUMB, Breadcrumb, Unit, WorkerContext, as_shard_error


def main(arguments: list[str]) -> None:
    """Serve units on the socket until it closes."""
    descriptor, folder, parent, memory = arguments
    scratch = Path(folder)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(LEAVE, _leave)
    threading.Thread(target=_watch, args=(int(parent), scratch), daemon=True).start()
    if int(memory):
        resource.setrlimit(resource.RLIMIT_DATA, (int(memory), int(memory)))
    link = Connection(int(descriptor))
    options = pickle.loads(link.recv_bytes())  # noqa: S301 - our own parent

    def progress(rows: int) -> None:
        link.send_bytes(pickle.dumps(("progress", rows)))

    breadcrumb = Breadcrumb(scratch / BREADCRUMB)
    context = WorkerContext(options, scratch, breadcrumb, progress)
    try:
        _serve(link, context)
    finally:
        context.close()
        shutil.rmtree(scratch, ignore_errors=True)


def _serve(link: Connection, context: WorkerContext) -> None:
    while True:
        try:
            unit = pickle.loads(link.recv_bytes())  # noqa: S301 - our own parent
        except (EOFError, OSError):
            return
        assert context.breadcrumb is not None
        context.breadcrumb.clear()
        link.send_bytes(pickle.dumps(_run(unit, context)))


def _run(unit: Unit, context: WorkerContext) -> tuple[str, object]:
    try:
        return ("result", unit.run(context))
    except MemoryError:
        return (OUT_OF_MEMORY, None)
    except Exception as error:  # noqa: BLE001 - the boundary: whatever fails, the unit failed
        return ("error", as_shard_error(error))


def _watch(parent: int, scratch: Path) -> None:
    """A worker whose supervisor is gone must not go on."""
    while os.getppid() == parent:
        time.sleep(0.5)
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    signal.pthread_kill(main_thread, LEAVE)  # wakes it, whatever it waits for
    time.sleep(GRACE_S)
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(1)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
