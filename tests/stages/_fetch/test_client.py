"""One row's request against a real server: checks, deadline, redirects, retries, bad HTTP."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certificates import self_signed
from tests.servers import LoopbackServer, Request, answer
from winnow.stages._fetch import FetchPolicy, FetchWorker


def redirect(location: str, status: int = 302) -> bytes:
    return answer(b"gone", status=status, Location=location)


def test_bytes_status_and_content_type_come_back(server, fetch, png):
    server.routes["/a.png"] = answer(png, Content_Type="image/x-claimed")
    (got,) = fetch("/a.png")
    assert (got.body, got.status, got.content_type, got.error) == (
        png,
        200,
        "image/x-claimed",
        None,
    )
    headers = server.requests[0].headers
    assert headers["host"] == "site.test"
    assert headers["user-agent"] == "winnow-data/0.1"
    assert headers["accept-encoding"] == "identity"
    assert "cookie" not in headers and "authorization" not in headers


def test_outcomes_are_in_order_and_a_repeated_url_is_asked_once(server, fetch, png):
    bodies = {f"/{i}": png + bytes([i]) for i in range(50)}

    def slow(body: bytes, pause: float):
        async def handle(request: Request, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(pause)
            writer.write(answer(body))

        return handle

    for i, (path, body) in enumerate(bodies.items()):
        server.routes[path] = slow(body, (50 - i) / 500)
    paths = [*bodies, "/3", "/3", "/missing"]
    got = fetch(*paths, per_host=32)
    assert [g.body for g in got] == [bodies.get(p) for p in paths]
    assert got[-1].error == "http_404"
    assert sorted(server.paths()) == sorted([*bodies, "/missing"])


def test_connections_are_kept_alive(server, fetch, png):
    for i in range(20):
        server.routes[f"/{i}"] = answer(png)
    server.routes["/404"] = answer(b"no" * 100, status=404)
    fetch(*(f"/{i}" for i in range(10)), "/404", *(f"/{i}" for i in range(10, 20)), per_host=2)
    assert server.connections <= 2


@pytest.mark.parametrize("status", [201, 204, 206, 300, 304, 400, 401, 403, 404, 410, 451, 500])
def test_a_status_is_its_code(server, fetch, status):
    server.routes["/x"] = answer(b"" if status in (204, 304) else b"text", status=status)
    (got,) = fetch("/x")
    assert (got.error, got.status, got.body) == (f"http_{status}", status, None)


def test_the_environment_has_no_say(server, fetch, png, monkeypatch):
    trap = LoopbackServer()
    monkeypatch.setenv("http_proxy", f"http://{trap.address}")
    monkeypatch.setenv("HTTP_PROXY", f"http://{trap.address}")
    monkeypatch.setenv("ALL_PROXY", f"http://{trap.address}")
    server.routes["/a"] = answer(png)
    (got,) = fetch("/a")
    assert got.body == png
    assert trap.requests == []
    trap.close()


def test_cookies_do_not_come_back(server, fetch, png):
    server.routes["/a"] = answer(png, Set_Cookie="id=1; Path=/")
    server.routes["/b"] = answer(png)
    fetch("/a", "/b", per_host=1)
    assert [r.headers.get("cookie") for r in server.requests] == [None, None]


# --- addresses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "0.0.0.0"],
)
def test_a_literal_private_address_is_never_connected(server, fetch, png, host):
    server.routes["/a"] = answer(png)
    (got,) = fetch(f"http://{host}:{server.port}/a")
    assert got.error == "private_address"
    assert server.connections == 0


def test_a_name_that_leads_to_loopback_is_refused(server, fetch, png):
    server.routes["/a"] = answer(png)
    (got,) = fetch(f"http://localhost:{server.port}/a")
    assert got.error == "private_address"
    assert server.connections == 0


def test_allow_private_networks(server, fetch, png):
    server.routes["/a"] = answer(png)
    got = fetch(
        f"http://127.0.0.1:{server.port}/a",
        f"http://localhost:{server.port}/a",
        allow_private_networks=True,
    )
    assert [g.body for g in got] == [png, png]


def test_resolve_exempts_one_host_not_its_address(server, fetch, png):
    server.routes["/a"] = answer(png)
    got = fetch("/a", f"http://127.0.0.1:{server.port}/a", f"http://localhost:{server.port}/a")
    assert [g.error for g in got] == [None, "private_address", "private_address"]


def test_resolve_pins_the_port_too(server, fetch, png):
    other = LoopbackServer()
    other.routes["/a"] = answer(png)
    (got,) = fetch(f"http://site.test:{other.port}/a")
    assert got.error == "http_404" and other.connections == 0
    other.close()


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("http://169.254.169.254/latest/meta-data/", "private_address"),
        ("http://127.0.0.1:{port}/ok", "private_address"),
        ("//localhost:{port}/ok", "private_address"),
        ("http://[::ffff:10.0.0.1]/", "private_address"),
        ("http://2130706433/", "bad_url"),
        ("http://0x7f.1/", "bad_url"),
        ("http://017700000001/", "bad_url"),
        ("file:///etc/passwd", "scheme_not_allowed"),
        ("ftp://site.test/ok", "scheme_not_allowed"),
        ("gopher://site.test/ok", "scheme_not_allowed"),
        ("data:image/png;base64,AAAA", "scheme_not_allowed"),
        ("javascript:alert(1)", "scheme_not_allowed"),
        ("http://user:secret@site.test/ok", "bad_url"),
        ("http://site.test:99999/ok", "bad_url"),
        ("http://[::1", "bad_redirect"),
        ("", "bad_redirect"),
    ],
)
def test_a_redirect_passes_the_same_checks(server, fetch, png, target, code):
    server.routes["/ok"] = answer(png)
    server.routes["/start"] = redirect(target.format(port=server.port))
    (got,) = fetch("/start")
    assert got.error == code
    assert server.paths() == ["/start"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", ["/ok", "http://site.test/ok", "ok#part", "//site.test/ok"])
def test_redirects_are_followed(server, fetch, png, status, location):
    server.routes["/ok"] = answer(png)
    server.routes["/start"] = redirect(location, status)
    (got,) = fetch("/start")
    assert (got.body, got.status) == (png, 200)


def test_redirects_are_capped(server, fetch, png):
    server.routes["/loop"] = redirect("/loop")
    for i in range(6):
        server.routes[f"/{i}"] = redirect(f"/{i + 1}")
    server.routes["/6"] = answer(png)
    got = fetch("/loop", "/0", "/1", max_redirects=5, per_host=1)
    assert [g.error for g in got] == ["too_many_redirects", "too_many_redirects", None]
    assert server.paths().count("/loop") == 6


def test_a_redirect_to_text_that_is_not_utf8(server, fetch, png):
    server.routes["/caf%C3%A9"] = answer(png)
    server.routes["/start"] = redirect("/caf\xe9")
    (got,) = fetch("/start")
    assert got.body == png


# --- deadline and caps -------------------------------------------------------------------------


def drip(head: bytes, each: bytes = b"x", pause: float = 0.05):
    async def handle(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(each)
            await writer.drain()
            await asyncio.sleep(pause)

    return handle


async def silence(request: Request, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n\x89PNG\r\n\x1a\n",
        b"HTTP/1.1 200 OK\r\nX-Slow: ",
        b"HT",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 9999\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nContent-Length: 999\r\nLocation: /a\r\n\r\n",
    ],
)
def test_a_server_that_drips_costs_the_deadline(server, fetch, head):
    each = b"HTTP/1.1 100 Continue\r\n\r\n" if b" 100 " in head else b"x"
    server.routes["/slow"] = drip(head, each)
    start = time.monotonic()
    (got,) = fetch("/slow", timeout_s=0.6, retries=3)
    assert got.error in ("timeout", "bad_response" if head == b"HT" else "timeout")
    assert time.monotonic() - start < 5


def test_a_silent_server_costs_the_deadline_and_keeps_the_status(server, fetch, png):
    server.routes["/silent"] = silence
    server.routes["/half"] = drip(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n" + png[:40])
    start = time.monotonic()
    got = fetch("/silent", "/half", timeout_s=0.5, retries=5)
    assert [(g.error, g.status) for g in got] == [("timeout", None), ("timeout", 200)]
    assert 0.4 < time.monotonic() - start < 5


def test_the_deadline_is_shared_by_redirects_and_retries(server, fetch):
    async def slow_hop(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.3)
        writer.write(redirect("/hop"))

    async def slow_error(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.3)
        writer.write(answer(b"", status=500))

    server.routes["/hop"], server.routes["/error"] = slow_hop, slow_error
    start = time.monotonic()
    got = fetch("/hop", "/error", timeout_s=1.0, max_redirects=20, retries=10)
    assert got[0].error == "timeout"
    assert got[1].error in ("timeout", "http_500")
    assert time.monotonic() - start < 5
    assert len(server.requests) <= 8


def test_waiting_for_our_own_slots_is_free(server, fetch, png):
    async def handle(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.15)
        writer.write(answer(png))

    paths = [f"/{i}" for i in range(12)]
    server.routes.update(dict.fromkeys(paths, handle))
    got = fetch(*paths, per_host=1, timeout_s=1.0)  # 1.8 s in all
    assert [g.error for g in got] == [None] * 12


def test_a_body_that_says_it_is_too_large_is_not_read(server, fetch, png):
    server.routes["/big"] = answer(png, Content_Length=str(10**12))
    (got,) = fetch("/big", max_bytes=1000)
    assert (got.error, got.status, got.body) == ("too_large", 200, None)


def test_a_body_that_never_ends_is_cut_at_the_cap(server, fetch, png):
    server.routes["/flood"] = drip(b"HTTP/1.1 200 OK\r\n\r\n" + png, b"x" * 65536, 0.0)
    (got,) = fetch("/flood", max_bytes=1 << 20)
    assert got.error == "too_large"


def test_the_cap_is_exact(server, fetch, png):
    server.routes["/a"] = answer(png)
    assert fetch("/a", max_bytes=len(png))[0].body == png
    assert fetch("/a", max_bytes=len(png) - 1)[0].error == "too_large"


# --- retries -----------------------------------------------------------------------------------


def failing(times: int, failure: bytes, then: bytes):
    left = [times]

    async def handle(request: Request, writer: asyncio.StreamWriter) -> None:
        left[0] -= 1
        writer.write(failure if left[0] >= 0 else then)
        if left[0] >= 0 and not failure.startswith(b"HTTP/1.1 5"):
            writer.close()

    return handle


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (answer(b"", status=503), "http_503"),
        (answer(b"", status=500), "http_500"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n\x89PNG\r\n\x1a\n", "incomplete"),
        (b"", "disconnected"),
    ],
)
def test_transient_failures_are_tried_again(server, fetch, png, failure, code):
    server.routes["/twice"] = failing(2, failure, answer(png))
    assert fetch("/twice", retries=2)[0].body == png
    server.routes["/always"] = failing(99, failure, answer(png))
    server.requests.clear()
    assert fetch("/always", retries=2)[0].error == code
    # aiohttp itself asks once more where a kept-alive connection turns out dead
    assert 3 <= len(server.requests) <= 6


def test_permanent_failures_are_not(server, fetch, png):
    server.routes["/html"] = answer(b"<!doctype html><title>A page, not an image</title>")
    got = fetch("/missing", "/html", retries=5)
    assert [g.error for g in got] == ["http_404", "not_media"]
    assert len(server.requests) == 2


# --- bad HTTP ----------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("raw", "codes"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", {"bad_response"}),
        (b"HTTP/1.1 9999999 No\r\n\r\n", {"bad_response"}),
        (b"HTTP/1.1 abc No\r\n\r\n", {"bad_response"}),
        (b"\x16\x03\x01\x02\x00\x01", {"bad_response", "disconnected"}),
        (HEAD + b"No-Colon\r\n\r\n", {"bad_response"}),
        (HEAD + b"X: a\0b\r\nContent-Length: 0\r\n\r\n", {"bad_response"}),
        (HEAD + b"X: " + b"a" * 10**6 + b"\r\n\r\n", {"bad_response"}),
        (HEAD + b"X: y\r\n" * 10**5 + b"\r\n", {"bad_response", "empty", "not_media", "timeout"}),
        (HEAD + b"Content-Length: -5\r\n\r\nPNG", {"bad_response"}),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 9\r\n\r\nPNGPNGPNG", {"bad_response"}),
        (HEAD + b"Content-Length: five\r\n\r\nPNG", {"bad_response"}),
        (HEAD + b"Content-Length: " + b"9" * 400 + b"\r\n\r\nP", {"bad_response", "too_large"}),
        (HEAD + b"Content-Length: 50000\r\n\r\nBODY", {"incomplete"}),
        (HEAD + b"Content-Length: 0\r\n\r\n", {"empty"}),
        (HEAD + b"\r\n", {"empty"}),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzzz\r\nBODY", {"incomplete", "bad_response"}),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nB", {"incomplete"}),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n8000\r\nBODY", {"incomplete"}),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nBODY", {"incomplete", "bad_response"}),
        (HEAD + b"Content-Encoding: br\r\n\r\nBODY", {"bad_encoding"}),
        (HEAD + b"Content-Encoding: gzip\r\n\r\nBODY", {"bad_encoding"}),
        (HEAD + b"Content-Encoding: gzip, gzip\r\n\r\nBODY", {"bad_encoding"}),
        (b"HTTP/1.1 302 Found\r\n\r\n", {"bad_redirect"}),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", {"http_101"}),
    ],
)
def test_bad_http_is_a_code(server, fetch, png, raw, codes):
    server.routes["/x"] = raw.replace(b"BODY", png)
    server.hang_up.add("/x")
    (got,) = fetch("/x", timeout_s=5)
    assert got.error in codes
    assert got.body is None


def test_a_body_longer_than_its_length_is_cut_and_harms_no_other(server, fetch, png):
    other = answer(b"GIF89a" + b"\0" * 40)
    server.routes["/long"] = answer(png, Content_Length=str(len(png))) + other
    server.routes["/next"] = answer(png + b"next")
    got = fetch("/long", "/next", per_host=1)
    assert got[1].body == png + b"next"
    assert got[0].body == png or got[0].error in ("incomplete", "bad_response")


def test_hostile_headers_reach_arrow_as_valid_text(server, fetch, png):
    raw = HEAD + b"Content-Type: im\xffage/\xe9\xed\xa0\x80" + b"y" * 5000 + b"\r\n"
    server.routes["/x"] = raw + b"Content-Length: %d\r\n\r\n" % len(png) + png
    (got,) = fetch("/x")
    assert got.body == png
    assert got.content_type is not None and len(got.content_type) <= 255
    got.content_type.encode("utf-8")


def test_random_answers_are_codes(server, fetch, png):
    """Good answers with bytes flipped, cut and repeated: an outcome each, never an exception."""
    import random

    rng = random.Random(7)
    good = answer(png, Content_Type="image/png", X_Robots_Tag="all", Retry_After="1")
    for i in range(300):
        raw = bytearray(good)
        for _ in range(rng.randint(1, 6)):
            place = rng.randrange(min(len(raw), 120))
            kind = rng.randrange(3)
            if kind == 0:
                raw[place] = rng.randrange(256)
            elif kind == 1:
                del raw[place : place + rng.randint(1, 20)]
            else:
                raw[place:place] = raw[place : place + rng.randint(1, 20)]
        server.routes[f"/{i}"] = bytes(raw)
        server.hang_up.add(f"/{i}")
    got = fetch(*(f"/{i}" for i in range(300)), timeout_s=3, per_host=64)
    assert all((g.body is None) != (g.error is None) for g in got)
    assert sum(g.body is not None for g in got) > 5


# --- connections -------------------------------------------------------------------------------


def test_nobody_listens(server, fetch):
    gone = LoopbackServer()
    gone.close()
    (got,) = fetch("http://gone.test/a", resolve={"gone.test": gone.address})
    assert (got.error, got.status) == ("connect_error", None)


def test_names_that_cannot_be(fetch):
    label = "a" * 64
    got = fetch(f"http://{label}.test/", "http://no-such-host.invalid/", timeout_s=8)
    assert got[0].error == "dns_not_found"
    assert got[1].error in ("dns_not_found", "dns_error")  # dns_error: no DNS here at all


@pytest.fixture
def tls_server(tmp_path: Path, monkeypatch) -> Iterator[LoopbackServer]:
    certificate, key = self_signed(tmp_path, "site.test")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    running = LoopbackServer(context)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    yield running
    running.close()


def tls_policy(server: LoopbackServer) -> FetchPolicy:
    hosts = ("site.test", "other.test")
    return FetchPolicy(
        resolve=dict.fromkeys(hosts, server.address), respect_robots=False, retries=0
    )


def test_https_with_a_trusted_certificate(tls_server, png):
    tls_server.routes["/a"] = answer(png)
    worker = FetchWorker(tls_policy(tls_server))
    got = worker.fetch_all(["https://site.test/a", "https://other.test/a", "https://site.test/b"])
    worker.close()
    assert [g.error for g in got] == [None, "tls_error", "http_404"]
    assert got[0].body == png


def test_https_with_an_untrusted_certificate(tls_server, png, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    tls_server.routes["/a"] = answer(png)
    worker = FetchWorker(tls_policy(tls_server))
    (got,) = worker.fetch_all(["https://site.test/a"])
    worker.close()
    assert got.error == "tls_error"


def test_https_to_a_plain_server(fetch):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=refuse, daemon=True).start()
        plain = {"site.test": f"127.0.0.1:{listener.getsockname()[1]}"}
        (got,) = fetch("https://site.test/a", resolve=plain)
    assert got.error == "tls_error"


def test_one_tls_context_per_worker(tls_server, png, monkeypatch):
    made: list[int] = []
    real = ssl.create_default_context

    def counting(*args, **kwargs):
        made.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(ssl, "create_default_context", counting)
    for i in range(20):
        tls_server.routes[f"/{i}"] = answer(png)
    worker = FetchWorker(tls_policy(tls_server))
    got = worker.fetch_all([f"https://site.test/{i}" for i in range(20)])
    worker.close()
    assert [g.error for g in got] == [None] * 20
    assert len(made) == 1
    assert tls_server.connections <= 8
