"""The loopback server of the labelled scenes: it draws every picture when it is asked for.

It runs in a process of its own (``python -m``, neither forked nor re-importing the caller's main
module), is stateless apart from its configuration, and ends with the process that started it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from aiohttp import web

from winnow.contracts.errors import SetupError
from winnow.stages.sources._scenes.noise import World
from winnow.stages.sources._scenes.payload import Answer, answer

if TYPE_CHECKING:
    from winnow.stages.sources.scenes import SceneSource

DRIP_S = 1.0
"""Seconds between the bytes of a slow link."""
_WORLD = web.AppKey("world", World)
_POOL = web.AppKey("pool", ThreadPoolExecutor)


class SceneServer:
    """Serves a SceneSource's pictures: ``with SceneServer(source) as server: server.address``."""

    def __init__(self, source: SceneSource, host: str = "127.0.0.1", port: int = 0) -> None:
        self._source, self._host, self._port = source, host, port
        self._process: subprocess.Popen[str] | None = None
        self._address = ""

    @property
    def address(self) -> str:
        """ "ADDRESS:PORT" once started."""
        return self._address

    def start(self) -> None:
        """Start the process and wait until it listens. Raises SetupError where it cannot."""
        config = {
            "source": {
                field.name: getattr(self._source, field.name)
                for field in dataclasses.fields(self._source)
            },
            "host": self._host,
            "port": self._port,
            "parent": os.getpid(),
        }
        # -P: a folder of the caller cannot shadow a module. Own session: Ctrl-C is the caller's.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "winnow.stages.sources._scenes.serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            _pipe(self._process.stdin).write(json.dumps(config) + "\n")
            _pipe(self._process.stdin).flush()
            line = _pipe(self._process.stdout).readline()
        except BrokenPipeError:
            line = ""
        if not line.startswith("listening "):
            self.stop()
            where = f"{self._host}:{self._port}"
            msg = f"the scenes server does not start on {where}: {line.strip() or 'it ended'}"
            raise SetupError(msg)
        self._address = line.split()[1]

    def stop(self) -> None:
        """End the process; does nothing where it has ended."""
        process, self._process = self._process, None
        if process is None:
            return
        _pipe(process.stdin).close()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _pipe(process.stdout).close()

    def __enter__(self) -> SceneServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    if pipe is None:
        msg = "the scenes server has no pipe"
        raise SetupError(msg)
    return pipe


def find(world: World, target: str) -> Answer:
    """Return the answer for a request target; 404 for whatever is no row's URL."""
    if target == "/robots.txt":
        return Answer(status=200, content_type="text/plain", body=b"User-agent: *\nAllow: /\n")
    number = target.rpartition("/")[2].partition(".")[0]
    if number.isascii() and number.isdigit() and len(number) <= 15:
        row = world.row(int(number))
        if row.path == target:
            return answer(world, row)
    return Answer(status=404, content_type="text/plain", body=b"no such picture\n")


async def _handle(request: web.Request) -> web.StreamResponse:
    world, pool = request.app[_WORLD], request.app[_POOL]
    loop = asyncio.get_running_loop()
    found = await loop.run_in_executor(pool, find, world, request.raw_path)
    headers = {"Content-Type": found.content_type}
    if not found.drip:
        return web.Response(status=found.status, body=found.body, headers=headers)
    response = web.StreamResponse(status=found.status, headers=headers)
    response.content_length = len(found.body)
    await response.prepare(request)
    try:
        for i in range(len(found.body)):
            await response.write(found.body[i : i + 1])
            await asyncio.sleep(DRIP_S)
    except ConnectionResetError:
        pass  # the client gave up, as it should
    return response


async def _serve(config: dict[str, Any]) -> None:
    from winnow.contracts.parameters import validate
    from winnow.stages.sources.scenes import SceneSource

    source = SceneSource(**validate(SceneSource, config["source"]))
    app = web.Application()
    app[_WORLD] = source.world()
    app[_POOL] = ThreadPoolExecutor(max(2, os.cpu_count() or 1))
    app.router.add_get("/{path:.*}", _handle)
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=75)
    await runner.setup()
    site = web.TCPSite(runner, config["host"], config["port"], backlog=1024)
    await site.start()
    host, port = runner.addresses[0][:2]
    sys.stdout.write(f"listening {host}:{port}\n")
    sys.stdout.flush()
    while os.getppid() == config["parent"]:  # a forked sibling can keep stdin open
        await asyncio.sleep(1)


def _end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(0)


def main() -> None:
    """Read the configuration from standard input and serve until it is closed."""
    config = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        asyncio.run(_serve(config))
    except OSError as error:
        sys.stdout.write(f"{error}\n")
        sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
