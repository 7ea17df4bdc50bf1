"""The fetcher on a thread of its own, so that stages, which are plain functions, can use it."""

from __future__ import annotations

from collections.abc import Sequence

from winnow.stages._fetch.client import Fetcher
from winnow.stages._fetch.outcome import Fetched, FetchPolicy
from winnow.stages._loop_thread import LoopThread


class FetchWorker:
    """One event loop, one TLS context and one pool of kept-alive connections for a worker's life.

    Closed by ``close``, when it is garbage, or at exit, whichever comes first.
    """

    def __init__(self, policy: FetchPolicy) -> None:
        _raise_open_files()
        self._thread = LoopThread("winnow-fetch", lambda: Fetcher(policy))

    def fetch_all(self, urls: Sequence[str | None]) -> list[Fetched]:
        """Return one outcome per URL, in order. Blocks; may be called from one thread at a time."""
        future = self._thread.submit(self._thread.client.fetch_all(urls))
        try:
            return future.result()
        finally:
            future.cancel()  # Ctrl-C in this thread must end the batch in the other

    def close(self) -> None:
        """Close connections and end the thread; safe to call twice."""
        self._thread.close()


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
