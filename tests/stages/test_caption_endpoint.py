"""The caption stage's endpoint engine against a real server on loopback, well-behaved or not."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.captioners import batch
from tests.scored import picture, png
from winnow.contracts.errors import SetupError
from winnow.contracts.identity import stable_hash64
from winnow.contracts.media import MediaCaps
from winnow.contracts.parameters import result_parameters
from winnow.contracts.stage import WorkerOptions
from winnow.stages._caption_endpoint import encoded_image, parse_answer
from winnow.stages._fetch import FetchFailure
from winnow.stages._media import BatchMedia, MediaCache
from winnow.stages.caption import Caption

TEXT = "synthetic_captions"
IMAGES = [png(picture(seed)) for seed in range(8)]
Plan = Callable[[int], Awaitable[web.StreamResponse | None]]


def described(data: bytes) -> str:
    """What the server says about a picture: a function of its pixels."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    red, green, blue = (int(v) for v in np.asarray(image).mean((0, 1)))
    return f"{image.width} by {image.height} {red} {green} {blue}"


def completion(*texts: str, reason: str = "stop", logs: float | None = -0.5) -> dict[str, Any]:
    """A chat completion as OpenAI documents it; the choices come in the wrong order."""
    choices = []
    for index, text in enumerate(texts):
        tokens = [{"token": w, "logprob": logs} for w in text.split()]
        choices.append(
            {
                "index": index,
                "finish_reason": reason,
                "message": {"role": "assistant", "content": text},
                "logprobs": None if logs is None else {"content": tokens},
            }
        )
    return {"object": "chat.completion", "choices": choices[::-1]}


class Server:
    """Answers on 127.0.0.1 from a thread. ``plans``: caption -> (attempt) -> answer, or None."""

    def __init__(self) -> None:
        self.plans: dict[str, Plan] = {}
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.attempts: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self.models_status = 200
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> int:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_get("/v1/models", self._models)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return int(self._runner.addresses[0][1])

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": []}, status=self.models_status)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            asked = await request.json()
            self.requests.append(asked)
            self.headers.append(dict(request.headers))
            content = asked["messages"][0]["content"]
            data = content[0]["image_url"]["url"].partition("base64,")[2]
            caption = described(base64.b64decode(data))
            self.attempts[caption] += 1
            plan = self.plans.get(caption) or self.plans.get("*")
            planned = await plan(self.attempts[caption]) if plan else None
            return planned or web.json_response(completion(caption))
        finally:
            self.at_once -= 1


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def stage_on(server: Server, **parameters: Any) -> Caption:
    defaults = {"image_format": "png", "timeout_s": 20.0, "retries": 2, "concurrency": 4}
    return Caption(engine="endpoint", model="eyes", url=server.url, **(defaults | parameters))


def annotate(stage: Caption, rows: pa.RecordBatch) -> pa.RecordBatch:
    worker = stage.setup(WorkerOptions())
    try:
        with MediaCache(1 << 24, 2) as cache:
            media = BatchMedia(rows, caps=MediaCaps(), cache=cache, first_row=0)
            out = stage.annotate(rows, worker, media)
    finally:
        worker.close()
    assert out.schema == stage.writes
    out.validate(full=True)
    return out


def texts(out: pa.RecordBatch) -> list[Any]:
    return out.column(TEXT).to_pylist()


def errors(out: pa.RecordBatch) -> list[str | None]:
    return out.column(f"{TEXT}_error").to_pylist()


def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses between attempts."""
    monkeypatch.setattr("winnow.stages._caption_endpoint._FIRST_RETRY_S", 0.01)


async def _odd_one_out(attempt: int) -> web.StreamResponse | None:
    return web.Response(status=500) if attempt == 1 else None


def test_each_answer_goes_to_the_row_that_asked(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Late, early, failing and retried answers; broken rows; every order."""
    fast(monkeypatch)
    delays = iter(np.random.default_rng(0).uniform(0, 0.03, 1000).tolist())

    async def late(attempt: int) -> web.StreamResponse | None:
        await asyncio.sleep(next(delays))
        return await _odd_one_out(attempt) if attempt % 2 else None

    server.plans["*"] = late
    stage = stage_on(server)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(8).tolist()
        images: list[bytes | None] = [IMAGES[i] for i in order]
        images[seed], images[seed + 2] = None, IMAGES[0][:30]
        out = annotate(stage, batch(images))
        expected = [[described(IMAGES[i])] for i in order]
        expected[seed] = expected[seed + 2] = None  # type: ignore[call-overload]
        assert texts(out) == expected
        assert (errors(out)[seed], errors(out)[seed + 2]) == ("missing", "undecodable")
    assert 1 < server.most_at_once <= 4


def test_what_is_asked_and_what_is_written(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EYES_KEY", "s3cret")

    async def three(attempt: int) -> web.StreamResponse:
        answer = completion("a cat", "a dog on a log", "a cat")
        answer["choices"][1]["logprobs"]["content"] = [{"logprob": -0.1}] * 5  # the dog's
        return web.json_response(answer)

    server.plans["*"] = three
    stage = stage_on(
        server, num_candidates=3, sampling="nucleus", top_p=0.8, temperature=0.7, seed=9,
        max_tokens=30, prompt="What is it?", api_key_env="EYES_KEY",
    )  # fmt: skip
    out = annotate(stage, batch(IMAGES[:1]))
    row = out.to_pylist()[0]
    assert row[TEXT] == ["a dog on a log", "a cat"]
    assert row[f"{TEXT}_log_likelihood"] == [pytest.approx(-0.5), pytest.approx(-1.0)]
    assert row[f"{TEXT}_model"] == f"127.0.0.1:{server.port} eyes"
    assert row[f"{TEXT}_prompt"] == "What is it?"
    asked = server.requests[0]
    assert asked["messages"][0]["content"][1] == {"type": "text", "text": "What is it?"}
    expected = {"model": "eyes", "n": 3, "top_p": 0.8, "temperature": 0.7, "max_tokens": 30}
    assert expected.items() <= asked.items()
    assert asked["seed"] == stable_hash64(9, bytes(16)) & 0x7FFF_FFFF
    assert server.headers[0]["Authorization"] == "Bearer s3cret"
    assert "s3cret" not in repr(stage)
    assert not {"api_key_env", "url", "timeout_s"} & set(result_parameters(stage))
    assert "eyes" in stage.model_digest()
    assert not stage.deterministic

    monkeypatch.delenv("EYES_KEY")
    with pytest.raises(SetupError, match="EYES_KEY .*not set"):
        stage.setup(WorkerOptions())


def test_greedy_asks_for_the_likeliest_and_a_null_stands_for_no_likelihood(server: Server) -> None:
    async def bare(attempt: int) -> web.StreamResponse:
        return web.json_response(completion("a cat", logs=None))

    server.plans["*"] = bare
    out = annotate(stage_on(server, logprobs=False), batch(IMAGES[:1]))
    assert out.column(f"{TEXT}_log_likelihood").to_pylist() == [[None]]
    assert server.requests[0]["temperature"] == 0.0
    assert not {"logprobs", "top_p"} & set(server.requests[0])
    assert server.requests[0]["messages"][0]["content"][1]["text"] == "Describe the picture."


def always(answer: Callable[[], web.StreamResponse]) -> Plan:
    async def plan(attempt: int) -> web.StreamResponse:
        return answer()

    return plan


def body(value: Any) -> Callable[[], web.StreamResponse]:
    return lambda: web.json_response(value)


BAD: list[tuple[str, Callable[[], web.StreamResponse], int]] = [
    ("http_400", lambda: web.Response(status=400), 1),
    ("http_401", lambda: web.Response(status=401), 1),
    ("http_302", lambda: web.Response(status=302, headers={"Location": "http://10.0.0.1/"}), 1),
    ("http_500", lambda: web.Response(status=500), 3),
    ("http_429", lambda: web.Response(status=429), 3),
    ("http_503", lambda: web.Response(status=503, headers={"Retry-After": "3000"}), 1),
    ("garbage", lambda: web.Response(text="<html>hello</html>"), 3),
    ("garbage", body([1, 2]), 3),
    ("garbage", body({"choices": []}), 3),
    ("garbage", body({"choices": [{"index": 0, "message": {"content": 7}}]}), 3),
    ("garbage", lambda: web.Response(text="[" * 200_000), 3),
    ("garbage", lambda: web.Response(text='{"choices": "' + "x" * 3_000_000), 3),
    ("refused", body(completion("", reason="content_filter")), 1),
    ("refused", body({"choices": [{"index": 0, "message": {"content": "", "refusal": "no"}}]}), 1),
    ("too_long", body(completion("a cat and", reason="length")), 1),
    ("empty_caption", body(completion(" \n")), 1),
    ("not_finite", body(completion("a cat", logs=float("nan"))), 1),
]


@pytest.mark.parametrize(("code", "answer", "attempts"), BAD)
def test_a_bad_answer_costs_its_row_after_bounded_attempts(
    server: Server, monkeypatch: pytest.MonkeyPatch, code: str, answer: Any, attempts: int
) -> None:
    fast(monkeypatch)
    bad = described(IMAGES[1])
    server.plans[bad] = always(answer)
    stage = stage_on(server, timeout_s=10.0, concurrency=1)
    rows = [IMAGES[1], IMAGES[0]] if code != "http_503" else [IMAGES[1]]
    out = annotate(stage, batch(rows))
    assert errors(out) == [code, None][: len(rows)]
    assert texts(out) == [None, [described(IMAGES[0])]][: len(rows)]
    assert server.attempts[bad] == attempts
    assert (attempts == 1 and code != "http_503") == (code not in stage.transient_codes)


def test_what_an_answer_holds_beyond_utf8_is_replaced(server: Server) -> None:
    server.plans["*"] = always(body(completion("a \ud800 cat")))
    assert texts(annotate(stage_on(server), batch(IMAGES[:1]))) == [["a ? cat"]]


def test_a_server_that_asks_to_wait_is_asked_again_after_that(server: Server) -> None:
    times: list[float] = []

    async def busy(attempt: int) -> web.StreamResponse | None:
        times.append(asyncio.get_running_loop().time())
        if attempt == 1:
            return web.Response(status=429, headers={"Retry-After": "1"})
        return None

    server.plans["*"] = busy
    assert errors(annotate(stage_on(server), batch(IMAGES[:1]))) == [None]
    assert times[1] - times[0] >= 1.0


def test_a_slow_answer_is_given_up_at_the_deadline(server: Server) -> None:
    async def slow(attempt: int) -> web.StreamResponse | None:
        await asyncio.sleep(30)
        return None

    server.plans[described(IMAGES[0])] = slow
    out = annotate(stage_on(server, timeout_s=0.5), batch(IMAGES[:2]))
    assert errors(out) == ["timeout", None]
    assert server.attempts[described(IMAGES[0])] == 1


def test_a_server_that_is_down_or_hangs_up(monkeypatch: pytest.MonkeyPatch) -> None:
    fast(monkeypatch)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        stage = Caption(engine="endpoint", model="eyes", url=url, retries=1)
        out = annotate(stage, batch([IMAGES[i % 8] for i in range(60)]))
        assert errors(out) == ["unreachable"] * 60
        with pytest.raises(SetupError, match="cannot be reached, so nothing was captioned"):
            stage.preflight(batch(IMAGES[:1]), WorkerOptions())
    assert "unreachable" in stage.transient_codes


def test_a_dead_server_is_soon_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million rows must not each try a server that refuses connections."""
    fast(monkeypatch)
    tries = 0

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tries
        tries += 1
        writer.close()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    listening = asyncio.run_coroutine_threadsafe(
        asyncio.start_server(hang_up, "127.0.0.1", 0), loop
    ).result()
    url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
    stage = Caption(engine="endpoint", model="eyes", url=url, retries=2, concurrency=2)
    out = annotate(stage, batch([IMAGES[i % 8] for i in range(200)]))
    assert errors(out) == ["unreachable"] * 200
    assert 20 <= tries <= 20 + 2 * 2 * 2  # aiohttp asks once more on a kept connection at most
    loop.call_soon_threadsafe(listening.close)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_preflight_asks_the_server(server: Server) -> None:
    sample = batch(IMAGES[:1])
    stage_on(server).preflight(sample, WorkerOptions())
    server.models_status = 404  # no list of models, but it is there
    stage_on(server).preflight(sample, WorkerOptions())
    server.models_status = 401
    with pytest.raises(SetupError, match="answers 401; name the variable of a valid key"):
        stage_on(server).preflight(sample, WorkerOptions())
    assert server.requests == []


def test_what_is_sent_is_bounded(server: Server) -> None:
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 400, 3), np.uint8))
    out = annotate(stage_on(server, image_side=100), batch([png(wide), IMAGES[0]]))
    assert texts(out)[0][0].startswith("100 by 12 ")
    assert texts(out)[1] == [described(IMAGES[0])]  # smaller ones go as they are
    jpeg = encoded_image(wide, 64, "jpeg")
    assert Image.open(io.BytesIO(jpeg)).format == "JPEG"
    assert Image.open(io.BytesIO(jpeg)).size == (64, 8)
    assert Image.open(io.BytesIO(encoded_image(wide.resize((400, 1)), 64, "png"))).size == (64, 1)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "index", "message", "content", "logprobs", "logprob", "finish_reason"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(JSON)
def test_no_json_breaks_the_reader(value: Any) -> None:
    for answer in (
        value,
        {"choices": value},
        {"choices": [value]},
        {"choices": [{"message": value}]},
    ):
        try:
            found = parse_answer(json.dumps(answer).encode(), most=3)
        except FetchFailure as failure:
            assert failure.code in ("garbage", "refused")
        else:
            assert all(isinstance(one.text, str) for one in found)


def test_retry_failed_asks_for_the_failed_rows_only(
    run: Any, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast(monkeypatch)
    (tmp_path / "in").mkdir()
    for row, image in enumerate(IMAGES):
        (tmp_path / "in" / f"{row}.png").write_bytes(image)
    for row in (2, 5):
        server.plans[described(IMAGES[row])] = always(lambda: web.Response(status=500))
    recipe = f"""
name: captions
source: {{use: folder, path: "{tmp_path / "in"}"}}
stages:
  caption: {{engine: endpoint, model: eyes, url: "{server.url}", retries: 1, image_format: png}}
export:
  all: {{use: parquet}}
"""

    def captions(**options: Any) -> dict[str, Any]:
        report = run(recipe, **options)
        folder = tmp_path / "ws" / report.exports["all"]
        files = [f for f in folder.glob("*.parquet") if f.name != "manifest.parquet"]
        rows = [row for file in files for row in pq.read_table(file).to_pylist()]
        return {row["path"]: (row[TEXT], row[f"{TEXT}_error"]) for row in rows}

    expected = {f"{row}.png": ([described(IMAGES[row])], None) for row in range(8)}
    failed = {f"{row}.png": (None, "http_500") for row in (2, 5)}
    assert captions() == expected | failed
    server.plans.clear()
    server.attempts.clear()
    assert captions() == expected | failed  # nothing is asked twice without being told
    assert captions(retry_failed=True) == expected
    assert set(server.attempts) == {described(IMAGES[2]), described(IMAGES[5])}
