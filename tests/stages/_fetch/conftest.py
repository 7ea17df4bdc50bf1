"""A loopback server and fetchers pinned to it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image

from tests.servers import LoopbackServer
from winnow.stages._fetch import Fetched, FetchPolicy, FetchWorker


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    running = LoopbackServer()
    yield running
    running.close()


@pytest.fixture(scope="session")
def png() -> bytes:
    out = io.BytesIO()
    Image.effect_noise((40, 30), 64).save(out, "PNG")
    return out.getvalue()


Fetch = Callable[..., list[Fetched]]


@pytest.fixture
def fetch(server: LoopbackServer) -> Iterator[Fetch]:
    """Fetch URLs with a policy; site.test is the server. Paths stand for URLs on site.test."""
    workers: list[FetchWorker] = []

    def run(*urls: str | None, **changes: Any) -> list[Fetched]:
        settings: dict[str, Any] = {
            "resolve": {"site.test": server.address},
            "respect_robots": False,
            "timeout_s": 10.0,
            "retries": 0,
        }
        worker = FetchWorker(FetchPolicy(**(settings | changes)))
        workers.append(worker)
        return worker.fetch_all([server.url(u) if u and u[0] == "/" else u for u in urls])

    yield run
    for worker in workers:
        worker.close()
