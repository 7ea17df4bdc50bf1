"""The worker's thread: interruption, closing, leaving without closing."""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.servers import Request, answer
from winnow.contracts.errors import SetupError
from winnow.stages._fetch import FetchPolicy, FetchWorker


def policy(server, **changes) -> FetchPolicy:
    pins = {"site.test": server.address}
    return FetchPolicy(resolve=pins, respect_robots=False, retries=0, **changes)


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "winnow-fetch"]


def test_batches_share_connections(server, png):
    server.routes["/a"] = answer(png)
    worker = FetchWorker(policy(server))
    for _ in range(5):
        assert worker.fetch_all([server.url("/a")])[0].body == png
    worker.close()
    assert server.connections == 1


def test_an_empty_batch(server):
    worker = FetchWorker(policy(server))
    assert worker.fetch_all([]) == []
    worker.close()


def test_close_ends_the_thread_and_may_be_repeated(server):
    worker = FetchWorker(policy(server))
    assert threads()
    worker.close()
    worker.close()
    assert not threads()


def test_garbage_is_closed(server):
    worker = FetchWorker(policy(server))
    assert threads()
    del worker
    gc.collect()
    assert not threads()


def test_a_bad_pin_leaves_no_thread_behind():
    with pytest.raises(SetupError, match="resolve"):
        FetchWorker(FetchPolicy(resolve={"a.test": "nowhere"}))
    assert not threads()


def test_an_interrupt_ends_the_batch(server):
    async def hang(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    server.routes["/hang"] = hang
    worker = FetchWorker(policy(server, timeout_s=60.0))
    main = threading.main_thread().ident
    timer = threading.Timer(0.5, signal.pthread_kill, [main, signal.SIGINT])
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        worker.fetch_all([server.url("/hang")] * 3)
    assert time.monotonic() - start < 10
    server.routes["/hang"] = answer(b"\x89PNG\r\n\x1a\n")
    assert worker.fetch_all([server.url("/hang")])[0].error is None  # still usable
    worker.close()


def test_leaving_without_closing_is_quiet(server, png):
    server.routes["/a"] = answer(png)
    code = f"""
from winnow.stages._fetch import FetchPolicy, FetchWorker
worker = FetchWorker(FetchPolicy(resolve={{"site.test": "{server.address}"}}))
print(len(worker.fetch_all(["http://site.test/a"])[0].body))
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, f"{len(png)}\n")
    assert "Unclosed" not in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_the_limit_on_open_files_is_raised_to_what_is_allowed(server):
    worker = FetchWorker(policy(server))
    worker.close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft >= (65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536))
