"""The server, asked over real sockets."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from winnow.contracts.errors import SetupError
from winnow.stages.sources._scenes.payload import answer
from winnow.stages.sources._scenes.serve import SceneServer, find
from winnow.stages.sources.scenes import SceneSource

SOURCE = SceneSource(noise={"slow_link": 0.1, "dead_link": 0.1, "html": 0.1, "corrupt": 0.1})
WORLD = SOURCE.world()
ROWS = [WORLD.row(i) for i in range(120)]


@pytest.fixture(scope="module")
def server() -> Iterator[SceneServer]:
    with SceneServer(SOURCE) as running:
        yield running


def get(connection: http.client.HTTPConnection, target: str) -> tuple[int, str, bytes]:
    connection.request("GET", target, headers={"Host": "scenes.test"})
    response = connection.getresponse()
    return response.status, response.headers["Content-Type"], response.read()


def test_every_row_answers_as_the_world_says_on_one_connection(server: SceneServer) -> None:
    connection = http.client.HTTPConnection(server.address, timeout=30)
    connection.connect()
    first = connection.sock
    for row in ROWS[:60]:
        wanted = answer(WORLD, row)
        if not wanted.drip:
            status, content_type, body = get(connection, row.path)
            assert (status, content_type, body) == (
                wanted.status,
                wanted.content_type,
                wanted.body,
            )
    assert connection.sock is first  # kept alive throughout
    connection.close()


def test_many_connections_at_once(server: SceneServer) -> None:
    rows = [row for row in ROWS if row.kind != "slow_link"][:40]

    def fetch(index: int) -> tuple[int, str, bytes]:
        connection = http.client.HTTPConnection(server.address, timeout=60)
        try:
            return get(connection, rows[index].path)
        finally:
            connection.close()

    with ThreadPoolExecutor(40) as pool:
        found = list(pool.map(fetch, range(len(rows))))
    assert [body for _, _, body in found] == [answer(WORLD, row).body for row in rows]


def test_a_slow_link_drips_while_others_are_served(server: SceneServer) -> None:
    row = next(row for row in ROWS if row.kind == "slow_link")
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as slow:
        slow.sendall(f"GET {row.path} HTTP/1.1\r\nHost: scenes.test\r\n\r\n".encode())
        start, data = time.monotonic(), b""
        while time.monotonic() - start < 2.5:
            slow.settimeout(3)
            data += slow.recv(65536)
        head, _, body = data.partition(b"\r\n\r\n")
        assert b"200 OK" in head
        wanted = answer(WORLD, row).body
        assert f"Content-Length: {len(wanted)}".encode() in head
        assert 1 <= len(body) <= 5
        assert wanted.startswith(body)
        other = http.client.HTTPConnection(server.address, timeout=10)
        assert get(other, "/robots.txt")[0] == 200
        other.close()


def test_unknown_targets_are_not_found(server: SceneServer) -> None:
    connection = http.client.HTTPConnection(server.address, timeout=10)
    path = ROWS[0].path
    wrong = [
        "/",
        "/0/0",
        "/0/99999999999999999999.jpg",
        "/0/-1.jpg",
        path.replace("/0/", "/1/", 1),
        path.partition("?")[0],
        path + "0",
        "/../etc/passwd",
        "/0/%30.jpg",
    ]
    for target in wrong:
        assert get(connection, target)[0] == 404, target
    status, content_type, body = get(connection, "/robots.txt")
    assert (status, content_type, body) == (200, "text/plain", b"User-agent: *\nAllow: /\n")
    connection.close()


def test_a_repeated_row_is_found_at_its_originals_url() -> None:
    world = SceneSource(noise={"repeated_row": 0.5}).world()
    row = next(row for row in map(world.row, range(50)) if row.kind == "repeated_row")
    assert row.original is not None
    assert find(world, row.path) == answer(world, world.row(row.original))


def test_a_port_that_is_taken_is_a_setup_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SetupError, match="scenes server does not start on 127.0.0.1"):
            SceneServer(SOURCE, port=taken.getsockname()[1]).start()


def test_stop_ends_it_and_may_be_called_twice() -> None:
    running = SceneServer(SOURCE)
    running.start()
    address = running.address
    running.stop()
    running.stop()
    with pytest.raises(OSError):
        http.client.HTTPConnection(address, timeout=5).connect()


@pytest.mark.kill
def test_it_dies_with_its_parent() -> None:
    program = (
        "import time\n"
        "from winnow.stages.sources.scenes import SceneSource\n"
        "with SceneSource().serve() as hosts:\n"
        "    print(hosts['scenes.test'], flush=True)\n"
        "    time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    address = parent.stdout.readline().strip()
    connection = http.client.HTTPConnection(address, timeout=10)
    assert get(connection, "/robots.txt")[0] == 200
    connection.close()
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            http.client.HTTPConnection(address, timeout=5).connect()
        except OSError:
            return
        time.sleep(0.1)
    pytest.fail("the server outlived its parent")
