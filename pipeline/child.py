"""The worker process: receives units, runs them, answers; ends when its supervisor is gone."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

from winnow.pipeline.supervisor import OUT_OF_MEMORY
from winnow.pipeline.units import Breadcrumb, Unit, WorkerContext, as_shard_error


def main(arguments: list[str]) -> None:
    """Serve units on the socket until it closes."""
    descriptor, scratch, parent, memory = arguments
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()
    if int(memory):
        resource.setrlimit(resource.RLIMIT_DATA, (int(memory), int(memory)))
    link = Connection(int(descriptor))
    options = pickle.loads(link.recv_bytes())  # noqa: S301 - our own parent

    def progress(rows: int) -> None:
        link.send_bytes(pickle.dumps(("progress", rows)))

    breadcrumb = Breadcrumb(Path(scratch) / "breadcrumb")
    context = WorkerContext(options, Path(scratch), breadcrumb, progress)
    while True:
        try:
            unit = pickle.loads(link.recv_bytes())  # noqa: S301 - our own parent
        except (EOFError, OSError):
            break
        breadcrumb.clear()
        link.send_bytes(pickle.dumps(_run(unit, context)))
    context.close()


def _run(unit: Unit, context: WorkerContext) -> tuple[str, object]:
    try:
        return ("result", unit.run(context))
    except MemoryError:
        return (OUT_OF_MEMORY, None)
    except Exception as error:  # noqa: BLE001 - the boundary: whatever fails, the unit failed
        return ("error", as_shard_error(error))


def _watch(parent: int) -> None:
    """A worker whose supervisor is gone must not go on."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
