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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import IO, Any, ClassVar

from aiohttp import web

from winnow.contracts.errors import SetupError
from winnow.contracts.source import Source
from winnow.stages.sources._scenes.noise import World
from winnow.stages.sources._scenes.payload import Answer, answer

Find = Callable[[str], Answer]
"""Request target -> answer."""
DRIP_S = 1.0
"""Seconds between the bytes of a slow link."""
ROBOTS = Answer(status=200, content_type="text/plain", body=b"User-agent: *\nAllow: /\n")
_FIND: web.AppKey[Find] = web.AppKey("find")
_POOL = web.AppKey("pool", ThreadPoolExecutor)


class SceneServer:
    """Serves a SceneSource's pictures: ``with SceneServer(source) as server: server.address``.

    ``module`` is what the process runs; that of another kind of source calls ``run``.
    """

    module: ClassVar[str] = "winnow.stages.sources._scenes.serve"

    def __init__(self, source: Source, host: str = "127.0.0.1", port: int = 0) -> None:
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
                for field in dataclasses.fields(self._source)  # type: ignore[arg-type]
            },
            "host": self._host,
            "port": self._port,
            "parent": os.getpid(),
        }
        # -P: a folder of the caller cannot shadow a module. Own session: Ctrl-C is the caller's.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", self.module],
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
            name, why = self._source.name, line.strip() or "it ended"
            msg = f"the {name} server does not start on {where}: {why}"
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


def row_number(target: str) -> int | None:
    """Return the row's number in a request target, None where there is none."""
    number = target.rpartition("/")[2].partition(".")[0]
    return int(number) if number.isascii() and number.isdigit() and len(number) <= 15 else None


def find(world: World, target: str) -> Answer:
    """Return the answer for a request target; 404 for whatever is no row's URL."""
    return find_row(world, target, answer, what="picture")


def find_row(
    world: Any, target: str, answered: Callable[[Any, Any], Answer], *, what: str
) -> Answer:
    """Return the answer for a request target of any web whose rows have paths.

    world: has ``row(number)``, with its ``path``.  answered: (world, row) -> its answer.
    """
    if target == "/robots.txt":
        return ROBOTS
    number = row_number(target)
    if number is not None:
        row = world.row(number)
        if row.path == target:
            return answered(world, row)
    return Answer(status=404, content_type="text/plain", body=f"no such {what}\n".encode())


async def _handle(request: web.Request) -> web.StreamResponse:
    answers, pool = request.app[_FIND], request.app[_POOL]
    loop = asyncio.get_running_loop()
    found: Answer = await loop.run_in_executor(pool, answers, request.raw_path)
    headers = {"Content-Type": found.content_type}
    if not found.drip:
        return web.Response(status=found.status, body=found.body, headers=headers)
    response = web.StreamResponse(status=found.status, headers=headers)
    response.content_length = len(found.body)
    try:
        await response.prepare(request)
        for i in range(len(found.body)):
            await response.write(found.body[i : i + 1])
            await asyncio.sleep(DRIP_S)
    except ConnectionResetError:
        pass  # the client gave up, as it should
    return response


async def _serve(config: dict[str, Any], answers: Find) -> None:
    app = web.Application()
    app[_FIND] = answers
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


def run(finder: Callable[[dict[str, Any]], Find]) -> None:
    """Read the configuration from standard input and serve until it is closed.

    finder: the source's parameters -> what its URLs answer with.
    """
    config = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        asyncio.run(_serve(config, finder(config["source"])))
    except OSError as error:
        sys.stdout.write(f"{error}\n")
        sys.stdout.flush()
    os._exit(0)


def _finder(parameters: dict[str, Any]) -> Find:
    from winnow.contracts.parameters import validate
    from winnow.stages.sources.scenes import SceneSource

    return partial(find, SceneSource(**validate(SceneSource, parameters)).world())


if __name__ == "__main__":
    run(_finder)
