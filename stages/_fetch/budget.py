"""The total deadline of one row: what it has left is handed from request to request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from winnow.stages._fetch.outcome import FetchFailure


class Budget:
    """Seconds that one row may still spend on requests and pauses, all hops and retries together.

    Waiting for our own slots is free: else the last of many rows on one host would time out
    because of our own politeness.
    """

    __slots__ = ("remaining",)

    def __init__(self, seconds: float) -> None:
        self.remaining = seconds

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Spend time inside the block; raises FetchFailure(code="timeout") when nothing is left."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            async with asyncio.timeout(max(self.remaining, 0.0)) as scope:
                yield
        except TimeoutError:
            if not scope.expired():
                raise
            raise FetchFailure(code="timeout") from None
        finally:
            self.remaining -= loop.time() - start

    async def sleep(self, seconds: float) -> None:
        """Spend time waiting; the caller has checked that enough remains."""
        await asyncio.sleep(seconds)
        self.remaining -= seconds
