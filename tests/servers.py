"""A loopback HTTP server that does exactly what a test tells it, well-formed or not."""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field


@dataclass
class Request:
    """What arrived: the request line's target, headers (lower case), and when (monotonic)."""

    target: str
    headers: dict[str, str]
    connection: int
    start: float = field(default_factory=time.monotonic)
    end: float = 0.0

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


Handler = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


def answer(
    body: bytes = b"", *, status: int = 200, headers: Iterable[tuple[str, str]] = (), **named: str
) -> bytes:
    """Return the bytes of a well-formed answer; keyword names become headers."""
    pairs = [*headers, *((name.replace("_", "-"), value) for name, value in named.items())]
    if "content-length" not in {name.lower() for name, _ in pairs}:
        pairs.append(("Content-Length", str(len(body))))
    head = f"HTTP/1.1 {status} X\r\n" + "".join(f"{n}: {v}\r\n" for n, v in pairs)
    return head.encode("latin-1") + b"\r\n" + body


class LoopbackServer:
    """Serves on 127.0.0.1 from a thread; ``requests`` is everything that arrived, in order.

    A route is bytes that are sent as they are, or a coroutine function (request, writer). After
    bytes of a route in ``hang_up`` the connection is closed. Unknown paths get a 404.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.routes: dict[str, bytes | Handler] = {}
        self.hang_up: set[str] = set()
        self.requests: list[Request] = []
        self.connections = 0
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        self.port: int = self._server.sockets[0].getsockname()[1]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, path: str, host: str = "site.test") -> str:
        """Return a URL on a host that a test pins to this server."""
        return f"{'https' if self._tls else 'http'}://{host}{path}"

    def paths(self) -> list[str]:
        """Return the targets asked for, robots.txt left out."""
        return [r.target for r in self.requests if r.target != "/robots.txt"]

    def most_at_once(self) -> int:
        """Return the largest number of requests that overlapped in time."""
        done = [r for r in self.requests if r.end]
        edges = [(r.start, 1) for r in done] + [(r.end, -1) for r in done]
        level = highest = 0
        for _, step in sorted(edges):
            level += step
            highest = max(highest, level)
        return highest

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)

    async def _stop(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        number = self.connections
        try:
            while await self._serve_one(reader, writer, number):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _serve_one(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in head[1:] if line)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        request = Request(head[0].split(" ")[1], headers, number)
        self.requests.append(request)
        route = self.routes.get(request.target) or self.routes.get(request.path)
        if route is None:
            route = answer(b"not here", status=404)
        if isinstance(route, bytes):
            writer.write(route)
            await writer.drain()
        else:
            await route(request, writer)
        request.end = time.monotonic()
        return request.path not in self.hang_up and headers.get("connection") != "close"
