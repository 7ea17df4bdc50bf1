"""The caption stage's endpoint engine against servers that take requests and do not answer them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest
from aiohttp import web

from tests.captioners import batch
from tests.stages.test_caption_endpoint import (
    IMAGES,
    Server,
    always,
    annotate,
    described,
    errors,
    fast,
    stage_on,
)
from winnow.stages._caption_endpoint import EndpointClient, EndpointOptions
from winnow.stages._fetch import FetchFailure
from winnow.stages.caption import Caption


class Silent(Server):
    """Takes requests and says nothing until it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.closing = asyncio.Event()
        self.plans["*"] = self.never

    async def never(self, attempt: int) -> web.StreamResponse | None:
        await self.closing.wait()
        return None

    def close(self) -> None:
        async def end() -> None:
            self.closing.set()
            while self.at_once:
                await asyncio.sleep(0.01)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        super().close()


@pytest.fixture
def silent() -> Iterator[Silent]:
    server = Silent()
    yield server
    server.close()


def rows(count: int) -> list[bytes | None]:
    return [IMAGES[i % 8] for i in range(count)]


def test_a_server_that_never_answers_is_soon_left_alone(silent: Silent) -> None:
    """Its rows must not each wait for their deadline; those that did say so."""
    found = errors(annotate(stage_on(silent, timeout_s=0.3), batch(rows(60))))
    assert set(found) == {"timeout", "unreachable"}
    assert found.count("timeout") == len(silent.requests)
    assert 20 <= len(silent.requests) < 20 + 4  # the others of the last wave
    assert found.index("unreachable") >= 20, "the first rows were asked"


def test_a_host_that_drops_what_is_sent_is_soon_left_alone() -> None:
    """Its queue of connections is full: the kernel drops what comes, as a firewall does."""
    with socket.socket() as listening, socket.socket() as first, socket.socket() as second:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for taking in (first, second):
            taking.setblocking(False)
            taking.connect_ex(listening.getsockname())
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        stage = Caption(
            engine="endpoint", model="eyes", url=url, timeout_s=0.3, concurrency=4, retries=2
        )
        found = errors(annotate(stage, batch(rows(60))))
    assert set(found) == {"timeout", "unreachable"}
    assert 20 <= found.count("timeout") < 20 + 4


@pytest.mark.parametrize("status", [200, 500])
def test_a_server_that_answers_some_is_asked_by_all(
    silent: Silent, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """More time out together than a dead server is allowed to; between them it did speak."""
    fast(monkeypatch)

    async def some(attempt: int) -> web.StreamResponse | None:
        if len(silent.requests) % 8 != 1:
            return await silent.never(attempt)
        await asyncio.sleep(0.5)  # so that no answer comes among those that time out
        return None if status == 200 else web.Response(status=status)

    silent.plans["*"] = some
    stage = stage_on(silent, timeout_s=1.0, concurrency=28, retries=0)
    found = errors(annotate(stage, batch(rows(64))))
    assert len(silent.requests) == 64
    assert found.count("timeout") == 56
    assert found.count(None if status == 200 else f"http_{status}") == 8


def test_an_answer_that_has_begun_is_an_answer(silent: Silent) -> None:
    """A server that writes too slowly for every deadline is not silent."""

    class Slow(web.StreamResponse):
        async def prepare(self, request: web.BaseRequest) -> None:  # type: ignore[override]
            await super().prepare(request)
            await self.write(b'{"choices": ')
            silent.at_once += 1
            await silent.closing.wait()
            silent.at_once -= 1

    silent.plans["*"] = always(Slow)
    found = errors(annotate(stage_on(silent, timeout_s=0.4, concurrency=10), batch(rows(40))))
    assert found == ["timeout"] * 40
    assert len(silent.requests) == 40


def test_the_time_that_a_server_asked_to_wait_is_no_silence(silent: Silent) -> None:
    """Rows that had to wait have less time left; that it runs out says little of the server."""

    async def ask() -> list[str]:
        client = EndpointClient(
            EndpointOptions(
                url=silent.url, model="eyes", prompt="", request={"n": 1}, api_key=None,
                timeout_s=1.5, concurrency=64, retries=0,
            )
        )  # fmt: skip

        async def code() -> str:
            try:
                return (await client.caption(IMAGES[0], "png", 0))[0].text
            except FetchFailure as failure:
                return failure.code

        silent.plans["*"] = always(lambda: web.Response(status=429, headers={"Retry-After": "1"}))
        codes = [await code()]
        silent.plans["*"] = silent.never
        await asyncio.sleep(0.5)
        codes += await asyncio.gather(*(code() for _ in range(30)))
        silent.plans.clear()
        codes.append(await code())
        await client.close()
        return codes

    expected = ["http_429", *["timeout"] * 30, described(IMAGES[0])]
    assert asyncio.run(ask()) == expected
