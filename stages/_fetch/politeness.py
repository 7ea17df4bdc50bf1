"""Manners: few requests per host at once, pauses that hosts ask for, robots.txt asked once."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime

from yarl import URL

from winnow.stages._fetch.budget import Budget
from winnow.stages._fetch.outcome import FetchFailure
from winnow.stages._fetch.robots import RobotsRules, parse_robots

MAX_PAUSE_S = 3600.0
"""No host can stop a worker's rows for longer, whatever its Retry-After says."""
FIRST_PAUSE_S = 1.0
"""Pause after a 429 without Retry-After; doubles with each one in a row."""
DEAD_AFTER = 3
"""Connections refused in a row after which a host counts as dead ..."""
DEAD_FOR_S = 60.0
"""... for so long: its rows get the last code at once, and are transient like it."""
ROBOTS_TTL_S = 24 * 3600.0
UNREACHABLE_TTL_S = 60.0
MAX_HOSTS = 20_000
_HOST_CODES = frozenset(
    {"private_address", "dns_not_found", "dns_error", "connect_error", "tls_error"}
)


def retry_after_s(value: str | None, now: float) -> float | None:
    """Return the seconds that a Retry-After header asks for (a number or an HTTP date), or None.

    ``now``: seconds since the epoch. At most MAX_PAUSE_S; a date in the past is 0.
    """
    if value is None:
        return None
    try:
        seconds = float(value) if value.strip().isascii() else math.nan
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now
        except (ValueError, TypeError, OverflowError, IndexError):
            return None
    return None if math.isnan(seconds) else min(max(seconds, 0.0), MAX_PAUSE_S)


class Host:
    """What is known of one host; times are the event loop's."""

    __slots__ = (
        *("active", "dead_code", "dead_until", "failures", "pause", "paused_until", "slots"),
        *("users", "waiting"),
    )

    def __init__(self, per_host: int) -> None:
        self.slots = asyncio.Semaphore(per_host)
        self.active = 0
        self.waiting: deque[asyncio.Future[None]] = deque()
        self.users = 0
        self.paused_until = 0.0
        self.pause = FIRST_PAUSE_S
        self.failures = 0
        self.dead_until = 0.0
        self.dead_code = ""


class Slots:
    """The worker's requests at once, given to the host that has the fewest under way.

    So a host is asked for one thing after the other while there are enough other hosts: that is
    politer, and a kept-alive connection serves them all. First come, first served among equals.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._numbers = itertools.count()
        # (requests under way, number, host) of hosts with rows that wait; old entries are skipped.
        self._order: list[tuple[int, int, Host]] = []

    @asynccontextmanager
    async def slot(self, host: Host) -> AsyncIterator[None]:
        """Hold one slot."""
        turn = asyncio.get_running_loop().create_future()
        host.waiting.append(turn)
        self._push(host)
        self._grant()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release(host)
            raise
        try:
            yield
        finally:
            self._release(host)

    def _release(self, host: Host) -> None:
        host.active -= 1
        self._free += 1
        self._push(host)
        self._grant()

    def _push(self, host: Host) -> None:
        if host.waiting:
            heapq.heappush(self._order, (host.active, next(self._numbers), host))

    def _grant(self) -> None:
        while self._free and self._order:
            active, _, host = heapq.heappop(self._order)
            while host.waiting and host.waiting[0].done():
                host.waiting.popleft()  # cancelled while it waited
            if not host.waiting:
                continue
            if active == host.active:
                host.waiting.popleft().set_result(None)
                host.active += 1
                self._free -= 1
            if active <= host.active:
                self._push(host)


class Politeness:
    """Decides when a request may go out. One per worker: N workers may hold N x per_host."""

    def __init__(self, *, concurrency: int, per_host: int) -> None:
        self._all = Slots(concurrency)
        self._per_host = per_host
        self._hosts: OrderedDict[str, Host] = OrderedDict()

    @asynccontextmanager
    async def turn(self, name: str, budget: Budget) -> AsyncIterator[Host]:
        """Hold one of the host's slots and one of the worker's.

        The host's comes first, so rows that queue for a slow host keep nobody else waiting.
        Raises FetchFailure: rate_limited (the host's pause is longer than the row's budget), or
        the code with which a dead host was last seen.
        """
        host = self._host(name)
        host.users += 1
        try:
            async with host.slots:
                await self._wait(host, budget)
                async with self._all.slot(host):
                    yield host
        finally:
            host.users -= 1

    def asked_to_wait(self, host: Host, seconds: float | None) -> None:
        """Pause a host after a 429 (``seconds`` None) or for as long as its Retry-After says."""
        if seconds is None:
            if host.paused_until > _now():
                return  # one of several requests that were under way together: one refusal
            seconds, host.pause = host.pause, min(2 * host.pause, MAX_PAUSE_S)
        host.paused_until = max(host.paused_until, _now() + seconds)

    def unreachable(self, host: Host, code: str) -> None:
        """Count a failure to get a connection."""
        host.failures += 1
        if host.failures >= DEAD_AFTER:
            host.dead_until, host.dead_code = _now() + DEAD_FOR_S, code

    def reached(self, host: Host, *, limited: bool) -> None:
        """Forget failures: the host has answered."""
        host.failures = 0
        if not limited:
            host.pause = FIRST_PAUSE_S

    async def _wait(self, host: Host, budget: Budget) -> None:
        while (pause := host.paused_until - _now()) > 0:
            if pause > budget.remaining:
                raise FetchFailure(code="rate_limited")
            await budget.sleep(pause)
        if host.dead_until > _now():
            raise FetchFailure(host.dead_code)

    def _host(self, name: str) -> Host:
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = Host(self._per_host)
            self._forget_old()
        self._hosts.move_to_end(name)
        return host

    def _forget_old(self) -> None:
        # Hosts in use are skipped, so a scan can find nothing; it costs at most their number.
        if len(self._hosts) > MAX_HOSTS:
            for name, host in list(self._hosts.items())[: MAX_HOSTS // 10]:
                if not host.users:
                    del self._hosts[name]


_Loading = asyncio.Task[RobotsRules | str]


class RobotsCache:
    """One robots.txt per origin, asked once however many rows wait for it.

    ``load`` fetches a robots.txt: its body, None for "there is none" (any 4xx but 429), or
    FetchFailure.
    """

    def __init__(self, load: Callable[[URL], Awaitable[bytes | None]], token: str) -> None:
        self._load, self._token = load, token
        self._origins: OrderedDict[URL, tuple[float, asyncio.Task[RobotsRules | str]]] = (
            OrderedDict()
        )

    async def check(self, url: URL) -> None:
        """Raise FetchFailure where the origin's robots.txt does not let us fetch this URL.

        robots_disallowed: a rule forbids it. robots_unreachable: the file could not be had, which
        RFC 9309 2.3.1.4 reads as "not now". A host that cannot be reached at all keeps its code.
        """
        origin = url.origin()
        expires, task = self._origins.get(origin, (0.0, None))
        if task is None or expires < _now():
            task = asyncio.create_task(self._fetch(origin))
            self._origins[origin] = (math.inf, task)
            if len(self._origins) > MAX_HOSTS:
                self._origins.popitem(last=False)
        # Shielded: many rows wait for this task, and one that is cancelled must not end it.
        rules = await asyncio.shield(task)
        if isinstance(rules, str):
            raise FetchFailure(code=rules)
        if not rules.allows(url.raw_path_qs):
            raise FetchFailure(code="robots_disallowed")

    async def close(self) -> None:
        """Cancel what is still under way."""
        tasks = [task for _, task in self._origins.values() if not task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _fetch(self, origin: URL) -> RobotsRules | str:
        """Return the rules, or the code with which all rows of the origin fail for a while."""
        ttl = UNREACHABLE_TTL_S
        try:
            body = await self._load(origin.with_path("/robots.txt"))
            ttl = ROBOTS_TTL_S
        except FetchFailure as failure:
            own = failure.hops == 0 and failure.code in _HOST_CODES
            return failure.code if own else "robots_unreachable"
        finally:
            entry = self._origins.get(origin)
            if entry is not None and entry[1] is asyncio.current_task():
                self._origins[origin] = (_now() + ttl, entry[1])
        return parse_robots(body or b"", self._token)


def wall_clock() -> float:
    """Seconds since the epoch, for Retry-After dates only."""
    return time.time()


def _now() -> float:
    return asyncio.get_running_loop().time()
