"""The fetcher: one row's request with its redirects and retries, always ending in an outcome."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from yarl import URL

from winnow.contracts.identity import stable_hash64
from winnow.stages._fetch.addresses import (
    AddressGuard,
    NoSuchNameError,
    PrivateAddressError,
    parse_literal,
    parse_pins,
)
from winnow.stages._fetch.body import drain, read_media
from winnow.stages._fetch.budget import Budget
from winnow.stages._fetch.outcome import RETRY_CODES, Fetched, FetchFailure, FetchPolicy
from winnow.stages._fetch.politeness import (
    Host,
    Politeness,
    RobotsCache,
    retry_after_s,
    wall_clock,
)
from winnow.stages._fetch.robots import MAX_ROBOTS_BYTES, opts_out
from winnow.stages._fetch.urls import parse_url, redirect_target

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_COMPLETE = frozenset({200, 203})
_KEEPALIVE_S = 5.0
_FIRST_RETRY_S = 0.25
_HEADER_BYTES = 32 << 10
_CONTENT_TYPE_CHARACTERS = 255


def failure_of(error: BaseException) -> FetchFailure:
    """Return the failure that an exception of aiohttp, ssl or the socket layer stands for."""
    cause = getattr(error, "os_error", None) or error.__cause__
    for kind, code in (
        (PrivateAddressError, "private_address"),
        (NoSuchNameError, "dns_not_found"),
    ):
        if isinstance(error, kind) or isinstance(cause, kind):
            return FetchFailure(code)
    match error:
        case aiohttp.ClientSSLError() | ssl.SSLError():
            return FetchFailure(code="tls_error")
        case aiohttp.ClientConnectorDNSError():
            return FetchFailure(code="dns_error")
        case aiohttp.ClientConnectorError():
            return FetchFailure(code="connect_error")
        case aiohttp.ClientPayloadError():
            return FetchFailure(code="incomplete")
        case aiohttp.ClientResponseError() | aiohttp.http.HttpProcessingError():
            return FetchFailure(code="bad_response")
        case aiohttp.InvalidURL():
            return FetchFailure(code="bad_url")
        case aiohttp.ClientConnectionError() | OSError():
            return FetchFailure(code="disconnected")
        case _:  # a ValueError out of header parsing
            return FetchFailure(code="bad_response")


class Fetcher:
    """Fetches untrusted URLs. Made, used and closed on one event loop."""

    def __init__(self, policy: FetchPolicy) -> None:
        self._policy = policy
        self._guard = AddressGuard(
            allow_private=policy.allow_private_networks, pins=parse_pins(policy.resolve)
        )
        self._politeness = Politeness(concurrency=policy.concurrency, per_host=policy.per_host)
        self._robots = RobotsCache(self._load_robots, policy.product_token)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=_tls_context(),
                resolver=self._guard,
                socket_factory=self._guard.open_socket,
                ttl_dns_cache=300,
                dns_cache_max_size=20_000,
                limit=0,  # our own slots limit it
                keepalive_timeout=_KEEPALIVE_S,
            ),
            headers={"User-Agent": policy.user_agent, "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            auto_decompress=False,
            trust_env=False,
            read_bufsize=256 << 10,
            max_line_size=_HEADER_BYTES,
            max_field_size=_HEADER_BYTES,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._robots.close()
        await self._session.close()
        await self._guard.close()

    async def fetch_all(self, urls: Sequence[str | None]) -> list[Fetched]:
        """Return one outcome per URL, in order; a URL that stands there twice is asked once."""
        tasks = {url: asyncio.ensure_future(self.fetch(url)) for url in dict.fromkeys(urls)}
        try:
            await asyncio.gather(*tasks.values())
        finally:
            for task in tasks.values():
                task.cancel()
        return [tasks[url].result() for url in urls]

    async def fetch(self, text: str | None) -> Fetched:
        """Return what a URL gives: media of the policy's modality, or a code."""
        budget = Budget(self._policy.timeout_s)
        try:
            return await self._retry(parse_url(text), budget)
        except FetchFailure as failure:
            return failure.outcome()

    async def _retry(self, url: URL, budget: Budget, *, robots: bool = False) -> Fetched:
        for attempt in range(self._policy.retries + 1):
            try:
                return await self._follow(url, budget, robots=robots)
            except FetchFailure as failure:
                # Jitter from the URL: workers that met the same failure must not return as one.
                jitter = stable_hash64(str(url), attempt) / 2**64
                pause = _FIRST_RETRY_S * 2**attempt * (0.5 + jitter)
                last = attempt == self._policy.retries or pause >= budget.remaining
                if last or failure.code not in RETRY_CODES:
                    raise
                await budget.sleep(pause)
        raise AssertionError

    async def _follow(self, url: URL, budget: Budget, *, robots: bool) -> Fetched:
        """Fetch with redirects; every hop passes the same checks as the first URL."""
        for hop in range(self._policy.max_redirects + 1):
            try:
                if self._policy.respect_robots and not robots:
                    await self._robots.check(url)
                answer = await self._exchange(url, budget, robots=robots)
                if isinstance(answer, Fetched):
                    return answer
                url = answer
            except FetchFailure as failure:
                failure.hops = hop
                raise
        raise FetchFailure(code="too_many_redirects")

    async def _exchange(self, url: URL, budget: Budget, *, robots: bool) -> Fetched | URL:
        """Make one request; return its outcome, or the URL that it redirects to."""
        literal = parse_literal(url.raw_host or "")
        if literal is not None and not self._guard.allows(literal):
            raise FetchFailure(code="private_address")
        async with self._politeness.turn(url.raw_host or "", budget) as host:
            try:
                async with self._answer(url, budget) as response:
                    return await self._receive(response, host, robots=robots)
            except FetchFailure as failure:
                if failure.code in ("connect_error", "dns_error", "dns_not_found"):
                    self._politeness.unreachable(host, failure.code)
                raise

    @asynccontextmanager
    async def _answer(self, url: URL, budget: Budget) -> AsyncIterator[aiohttp.ClientResponse]:
        """Hold an answer while the budget runs; every failure leaves as FetchFailure."""
        status, content_type = None, None
        try:
            async with budget.running(), self._session.get(url, allow_redirects=False) as response:
                status, content_type = response.status, _content_type(response)
                yield response
        except FetchFailure as failure:
            failure.status, failure.content_type = status, content_type
            raise
        except (aiohttp.ClientError, OSError, ValueError) as error:
            found = failure_of(error)
            found.status, found.content_type = status, content_type
            raise found from error

    async def _receive(
        self, response: aiohttp.ClientResponse, host: Host, *, robots: bool
    ) -> Fetched | URL:
        status, headers = response.status, response.headers
        limited = status in (429, 503)
        self._politeness.reached(host, limited=limited)
        if status in _REDIRECTS:
            await drain(response)
            return redirect_target(response.url, headers.get("Location"))
        if status not in _COMPLETE:
            if limited:
                self._note_limit(host, status, headers.get("Retry-After"))
            await drain(response)
            raise FetchFailure(code=f"http_{status}")
        if not robots and self._policy.opt_out and self._opted_out(response):
            raise FetchFailure(code="opted_out")
        body = await read_media(
            response,
            max_bytes=8 * MAX_ROBOTS_BYTES if robots else self._policy.max_bytes,
            media=None if robots else self._policy.media,
        )
        return Fetched(body=body, status=status, content_type=_content_type(response))

    def _note_limit(self, host: Host, status: int, retry_after: str | None) -> None:
        seconds = retry_after_s(retry_after, wall_clock())
        if status == 429 or seconds is not None:  # a bare 503 may be one URL's trouble
            self._politeness.asked_to_wait(host, seconds)

    def _opted_out(self, response: aiohttp.ClientResponse) -> bool:
        return opts_out(
            response.headers.getall("X-Robots-Tag", []),
            response.headers.get("tdm-reservation"),
            self._policy.product_token,
            self._policy.opt_out,
        )

    async def _load_robots(self, url: URL) -> bytes | None:
        """RFC 9309 2.3.1: 2xx is read, redirects are followed, 4xx is consent, 5xx is not."""
        try:
            answer = await self._retry(url, Budget(self._policy.timeout_s), robots=True)
        except FetchFailure as failure:
            code = failure.code
            consent = code.startswith("http_4") and code not in ("http_429", "http_408")
            if consent or code in ("too_many_redirects", "http_204"):
                return None
            raise
        return answer.body


def _content_type(response: aiohttp.ClientResponse) -> str | None:
    value = response.headers.get("Content-Type")
    if value is None:
        return None
    # Headers are bytes; aiohttp keeps what is not UTF-8 as surrogates, which Arrow refuses.
    return value.encode("utf-8", "replace").decode("utf-8")[:_CONTENT_TYPE_CHARACTERS]


def _tls_context() -> ssl.SSLContext:
    """One context for all connections of a worker: making one takes longer than a handshake."""
    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    if not paths.cafile and not (paths.capath and any(Path(paths.capath).iterdir())):
        # A slim container has no certificates of its own.
        import certifi

        context.load_verify_locations(certifi.where())
    context.set_alpn_protocols(["http/1.1"])
    return context
