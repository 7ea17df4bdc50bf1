"""An event loop on a thread of its own, so that stages, which are plain functions, can use it."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Generic, Protocol, TypeVar

_CLOSE_S = 5.0


class _Client(Protocol):
    async def close(self) -> None: ...


C = TypeVar("C", bound=_Client)
T = TypeVar("T")


class LoopThread(Generic[C]):
    """One event loop and one client, made, used and closed on it, for a worker's life.

    Closed by ``close``, when it is garbage, or at exit, whichever comes first.
    """

    def __init__(self, name: str, make: Callable[[], C]) -> None:
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        thread.start()
        try:
            self.client = asyncio.run_coroutine_threadsafe(_made(make), self._loop).result()
        except BaseException:
            _stop(self._loop, thread, None)
            raise
        self._finalizer = weakref.finalize(self, _stop, self._loop, thread, self.client)

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine on the loop, from any thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """Close the client and end the thread; safe to call twice."""
        self._finalizer()


async def _made(make: Callable[[], C]) -> C:
    return make()


def _stop(
    loop: asyncio.AbstractEventLoop, thread: threading.Thread, client: _Client | None
) -> None:
    if client is not None:
        try:
            asyncio.run_coroutine_threadsafe(client.close(), loop).result(_CLOSE_S)
        except TimeoutError:
            pass  # the process is ending; a connection that does not close is left to it
    loop.call_soon_threadsafe(loop.stop)
    thread.join(_CLOSE_S)
    if not thread.is_alive():
        loop.close()
