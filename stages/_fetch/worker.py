"""The fetcher on a thread of its own, so that stages, which are plain functions, can use it."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Sequence

from winnow.stages._fetch.client import Fetcher
from winnow.stages._fetch.outcome import Fetched, FetchPolicy

_CLOSE_S = 5.0


class FetchWorker:
    """One event loop, one TLS context and one pool of kept-alive connections for a worker's life.

    Closed by ``close``, when it is garbage, or at exit, whichever comes first.
    """

    def __init__(self, policy: FetchPolicy) -> None:
        _raise_open_files()
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="winnow-fetch", daemon=True)
        thread.start()
        try:
            self._fetcher = asyncio.run_coroutine_threadsafe(_make(policy), self._loop).result()
        except BaseException:
            _stop(self._loop, thread, None)
            raise
        self._finalizer = weakref.finalize(self, _stop, self._loop, thread, self._fetcher)

    def fetch_all(self, urls: Sequence[str | None]) -> list[Fetched]:
        """Return one outcome per URL, in order. Blocks; may be called from one thread at a time."""
        future = asyncio.run_coroutine_threadsafe(self._fetcher.fetch_all(urls), self._loop)
        try:
            return future.result()
        finally:
            future.cancel()  # Ctrl-C in this thread must end the batch in the other

    def close(self) -> None:
        """Close connections and end the thread; safe to call twice."""
        self._finalizer()


async def _make(policy: FetchPolicy) -> Fetcher:
    return Fetcher(policy)


def _stop(
    loop: asyncio.AbstractEventLoop, thread: threading.Thread, fetcher: Fetcher | None
) -> None:
    if fetcher is not None:
        try:
            asyncio.run_coroutine_threadsafe(fetcher.close(), loop).result(_CLOSE_S)
        except TimeoutError:
            pass  # the process is ending; a connection that does not close is left to it
    loop.call_soon_threadsafe(loop.stop)
    thread.join(_CLOSE_S)
    if not thread.is_alive():
        loop.close()


def _raise_open_files() -> None:
    """Lift the soft limit on open files: kept-alive connections outnumber its usual 1,024."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
