"""Captions from an OpenAI-compatible server: one row is one request, with retries and a deadline.

The server is the user's own choice, so any address is allowed, loopback too; nothing that it
answers is trusted. Requests: POST <url>/chat/completions with the picture as a data URL.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import urlsplit

import aiohttp
from PIL import Image

from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.identity import stable_hash64
from winnow.stages._caption_rows import Candidate
from winnow.stages._fetch.budget import Budget
from winnow.stages._fetch.outcome import TRANSIENT_CODES as FETCH_CODES
from winnow.stages._fetch.outcome import FetchFailure
from winnow.stages._fetch.politeness import retry_after_s
from winnow.stages._loop_thread import LoopThread

ImageFormat = Literal["jpeg", "png"]
TRANSIENT_CODES = frozenset(
    {"timeout", "unreachable", "garbage", *(c for c in FETCH_CODES if c.startswith("http_"))}
)
"""Failures that may be gone another day."""

MAX_ANSWER_BYTES = 1 << 20
PREFLIGHT_S = 20.0
_FIRST_RETRY_S = 0.5
_DEAD_AFTER = 20
_DEAD_FOR_S = 30.0
_JPEG_QUALITY = 92


@dataclass(frozen=True, kw_only=True, slots=True)
class EndpointOptions:
    """What a client obeys; the caption stage's docstring defines each value.

    request: what every request's JSON holds beside its message and seed.
    """

    url: str
    model: str
    prompt: str
    request: Mapping[str, Any]
    api_key: str | None
    timeout_s: float
    concurrency: int
    retries: int


def parse_endpoint(url: str | None) -> str:
    """Return the URL without a slash at its end; RecipeError where it cannot be a server's."""
    try:
        parts = urlsplit(url or "")
        good = bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if good and parts.scheme in ("http", "https") and not (parts.query or parts.fragment):
        if parts.username is None and parts.password is None:
            return (url or "").rstrip("/")
        msg = "caption: url holds a user name or key; name the key's variable in api_key_env"
        raise RecipeError(msg)
    msg = (
        f"caption: url={url!r} is no server's; engine=endpoint wants one such as "
        "http://127.0.0.1:8000/v1, to which /chat/completions is added"
    )
    raise RecipeError(msg)


def server_name(url: str) -> str:
    """Return host and, where it is written, port: what a row says of its server."""
    return urlsplit(url).netloc.lower()


def encoded_image(image: Image.Image, side: int, kind: ImageFormat) -> bytes:
    """Return an RGB image as a file; its longer side at most ``side`` pixels (Lanczos)."""
    if max(image.size) > side:
        scale = side / max(image.size)
        width, height = (max(1, round(v * scale)) for v in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    buffer = io.BytesIO()
    if kind == "png":
        image.save(buffer, "PNG", compress_level=3)
    else:
        image.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


class EndpointWorker:
    """One event loop and one pool of kept-alive connections for a worker's life.

    Closed by ``close``, when it is garbage, or at exit, whichever comes first.
    """

    def __init__(self, options: EndpointOptions) -> None:
        self.options = options
        self._thread = LoopThread("winnow-caption", lambda: EndpointClient(options))

    def submit(
        self, image: bytes, kind: ImageFormat, seed: int, prompt: str | None = None
    ) -> Future[list[Candidate]]:
        """Start one row, asked prompt, or the options'; its result raises FetchFailure."""
        return self._thread.submit(self._thread.client.caption(image, kind, seed, prompt))

    def check(self) -> None:
        """Raise SetupError where the server cannot be reached or refuses the key."""
        self._thread.submit(self._thread.client.check()).result()

    def close(self) -> None:
        """Close connections and end the thread; safe to call twice."""
        self._thread.close()


class EndpointClient:
    """Asks the server. Made, used and closed on one event loop.

    A server that loses ``_DEAD_AFTER`` requests in a row is left alone for a while: rows that come
    then are "unreachable". Lost is a request whose connection breaks, and one whose time is over
    where the server has begun no answer, to it or to another, for ``timeout_s``.
    """

    def __init__(self, options: EndpointOptions) -> None:
        self._options = options
        self._slots = asyncio.Semaphore(options.concurrency)
        self._paused_until = 0.0
        self._lost = 0
        self._heard = -math.inf
        self._dead_until = 0.0
        key = options.api_key
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            trust_env=False,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def check(self) -> None:
        """Ask for the list of models: any answer is good but one that refuses the key."""
        url = f"{self._options.url}/models"
        try:
            async with asyncio.timeout(PREFLIGHT_S):
                async with self._session.get(url, allow_redirects=False) as answer:
                    status = answer.status
        except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
            said = str(error) or f"no answer in {PREFLIGHT_S:g} s"
            msg = f"caption: {url} cannot be reached, so nothing was captioned: {said}"
            raise SetupError(msg) from error
        if status in (401, 403):
            msg = f"caption: {url} answers {status}; name the variable of a valid key: api_key_env"
            raise SetupError(msg)

    async def caption(
        self, image: bytes, kind: ImageFormat, seed: int, prompt: str | None = None
    ) -> list[Candidate]:
        """Return the candidates for one image; raises FetchFailure."""
        options = self._options if prompt is None else replace(self._options, prompt=prompt)
        body = _request(options, image, kind, seed)
        budget = Budget(self._options.timeout_s)
        for attempt in range(self._options.retries + 1):
            try:
                async with self._slots:
                    return await self._ask(body, budget)
            except FetchFailure as failure:
                # Jitter from the seed: rows that met the same failure must not return as one.
                jitter = 0.5 + stable_hash64(seed, attempt) / 2**64
                pause = max(_FIRST_RETRY_S * 2**attempt * jitter, self._paused_until - _now())
                last = attempt == self._options.retries or pause >= budget.remaining
                if last or failure.code not in TRANSIENT_CODES - {"timeout"} or self._is_dead():
                    raise
                await budget.sleep(pause)
        raise AssertionError

    async def _ask(self, body: bytes, budget: Budget) -> list[Candidate]:
        """Make one request and read its answer."""
        if self._is_dead():
            raise FetchFailure(code="unreachable")
        if (pause := self._paused_until - _now()) > 0:
            if pause > budget.remaining:
                raise FetchFailure(code="http_429")
            await budget.sleep(pause)
        try:
            async with budget.running():
                status, answer = await self._post(body)
        except FetchFailure as failure:
            if failure.code == "timeout" and self._is_silent():
                self._note_lost()
            raise
        except (aiohttp.ClientResponseError, ValueError) as error:  # an answer that is not HTTP
            self._heard = _now()
            raise FetchFailure(code="garbage") from error
        except (aiohttp.ClientError, OSError) as error:
            self._note_lost()
            raise FetchFailure(code="unreachable") from error
        self._lost = 0
        if status != 200:
            raise FetchFailure(code=f"http_{status}")
        return parse_answer(answer, most=int(self._options.request["n"]))

    async def _post(self, body: bytes) -> tuple[int, bytes]:
        url = f"{self._options.url}/chat/completions"
        headers = {"Content-Type": "application/json"}
        async with self._session.post(
            url, data=body, headers=headers, allow_redirects=False
        ) as answer:
            self._heard = _now()
            seconds = retry_after_s(answer.headers.get("Retry-After"), time.time())
            if answer.status in (429, 503) and seconds is not None:
                self._paused_until = max(self._paused_until, _now() + seconds)
            read = bytearray()
            async for part in answer.content.iter_chunked(1 << 16):
                read += part
                if len(read) > MAX_ANSWER_BYTES:
                    answer.close()
                    raise FetchFailure(code="garbage")
            return answer.status, bytes(read)

    def _note_lost(self) -> None:
        self._lost += 1
        if self._lost >= _DEAD_AFTER:
            self._dead_until = _now() + _DEAD_FOR_S

    def _is_silent(self) -> bool:
        since = max(self._heard, self._paused_until)  # it was not asked during a pause
        return _now() - since >= self._options.timeout_s

    def _is_dead(self) -> bool:
        return self._dead_until > _now()


def parse_answer(answer: bytes, *, most: int) -> list[Candidate]:
    """Return the candidates of a chat completion, in the order of their indices.

    Raises FetchFailure: "garbage" for anything but the documented JSON, "refused" where the server
    says so of all of them.
    """
    try:
        choices = json.loads(answer)["choices"]
        places = [int(choice.get("index", place)) for place, choice in enumerate(choices)]
        found = sorted(zip(places, map(_candidate, choices), strict=True), key=lambda pair: pair[0])
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise FetchFailure(code="garbage") from error
    except RecursionError as error:
        raise FetchFailure(code="garbage") from error
    if not found:
        raise FetchFailure(code="garbage")
    kept = [candidate for _, candidate in found if candidate is not None]
    if not kept:
        raise FetchFailure(code="refused")
    return kept[:most]


def _candidate(choice: Mapping[str, Any]) -> Candidate | None:
    """One choice; None where the server refused it."""
    message, reason = choice["message"], choice.get("finish_reason")
    if reason == "content_filter" or message.get("refusal"):
        return None
    text = message["content"]
    if not isinstance(text, str):
        msg = f"content is a {type(text).__name__}"
        raise TypeError(msg)
    tokens = (choice.get("logprobs") or {}).get("content")
    logs = [float(token["logprob"]) for token in tokens] if tokens else []
    return Candidate(
        text=text,
        log_likelihood=sum(logs) if logs else None,
        num_tokens=len(logs),
        finished=reason != "length",
    )


def _request(options: EndpointOptions, image: bytes, kind: ImageFormat, seed: int) -> bytes:
    data = f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": data}}]
    if options.prompt:
        content.append({"type": "text", "text": options.prompt})
    message = {"role": "user", "content": content}
    body = {"model": options.model, "messages": [message], "seed": seed, **options.request}
    return json.dumps(body).encode()


def _now() -> float:
    return asyncio.get_running_loop().time()
