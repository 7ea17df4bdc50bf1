"""Manners against a real server: slots per host, pauses, robots.txt, opt-outs."""

from __future__ import annotations

import asyncio
import time
from email.utils import formatdate

import pytest

from tests.servers import LoopbackServer, Request, answer
from winnow.stages._fetch.politeness import MAX_PAUSE_S, Host, Slots, retry_after_s


def slowly(body: bytes, pause: float = 0.05):
    async def handle(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(pause)
        writer.write(answer(body))
        await writer.drain()

    return handle


@pytest.mark.parametrize("per_host", [1, 3])
def test_requests_at_once_per_host(server, fetch, png, per_host):
    paths = [f"/{i}" for i in range(12)]
    server.routes.update(dict.fromkeys(paths, slowly(png)))
    assert all(g.body == png for g in fetch(*paths, per_host=per_host))
    assert server.most_at_once() == per_host


def test_requests_at_once_in_all(server, fetch, png):
    hosts = {f"h{i}.test": server.address for i in range(12)}
    server.routes["/a"] = slowly(png)
    got = fetch(*(f"http://{h}/a" for h in hosts), resolve=hosts, concurrency=4)
    assert all(g.body == png for g in got)
    assert server.most_at_once() == 4


def test_hosts_take_turns_so_that_connections_are_used_again(server, fetch, png):
    """Rows of a host are released together by its robots.txt; they must not connect together."""
    hosts = {f"h{i}.test": server.address for i in range(20)}
    server.routes["/robots.txt"] = answer(b"User-agent: *\nDisallow: /private")
    server.routes.update({f"/{i}": answer(png) for i in range(10)})
    urls = [f"http://{host}/{i}" for host in hosts for i in range(10)]
    got = fetch(*urls, resolve=hosts, concurrency=5, per_host=10, respect_robots=True)
    assert all(g.body == png for g in got)
    assert len(server.requests) == 20 * 11
    # One for each host, and those of the last few hosts, which have all the slots to themselves.
    assert 20 <= server.connections < 60


def test_slots_go_to_the_host_with_the_fewest_requests_under_way():
    async def play() -> list[str]:
        slots, order, gates = Slots(2), [], {}

        async def row(name: str, host: Host) -> None:
            async with slots.slot(host):
                order.append(name)
                gates[name] = asyncio.Event()
                await gates[name].wait()

        async def settle() -> None:
            for _ in range(5):
                await asyncio.sleep(0)

        a, b, c = (Host(9) for _ in range(3))
        rows = {}
        for name, host in (("a1", a), ("a2", a), ("a3", a), ("a4", a), ("b1", b), ("c1", c)):
            rows[name] = asyncio.create_task(row(name, host))
            await settle()
        assert order == ["a1", "a2"]
        rows["a3"].cancel()
        for name in ("a1", "a2", "b1", "c1"):
            gates[name].set()
            await settle()
        rows["a4"].cancel()
        await settle()
        assert (a.active, b.active, c.active) == (0, 0, 0)
        await asyncio.wait_for(asyncio.create_task(_two_at_once(slots, b)), 5)
        return order

    assert asyncio.run(play()) == ["a1", "a2", "b1", "c1", "a4"]


async def _two_at_once(slots: Slots, host: Host) -> None:
    """No slot was lost: both can be held together."""
    async with slots.slot(host), slots.slot(host):
        pass


def test_a_slow_host_keeps_nobody_else_waiting(server, fetch, png):
    """More rows of a hanging host than slots in all; the other host's rows go through."""
    quick = LoopbackServer()
    quick.routes.update({f"/{i}": answer(png) for i in range(20)})
    server.routes.update({f"/{i}": slowly(png, 60) for i in range(50)})
    urls = [f"http://slow.test/{i}" for i in range(50)]
    urls += [f"http://quick.test/{i}" for i in range(20)]
    hosts = {"slow.test": server.address, "quick.test": quick.address}
    settings = {"resolve": hosts, "concurrency": 4, "per_host": 2, "timeout_s": 0.1}
    got = fetch(*urls, **settings)
    assert [g.error for g in got] == ["timeout"] * 50 + [None] * 20
    finished = max(r.end for r in quick.requests)
    assert finished < server.requests[10].start  # long before the slow host's rows were through
    quick.close()


def limiting(body: bytes, status: int, times: int, retry_after: str | None):
    left = [times]

    async def handle(request: Request, writer: asyncio.StreamWriter) -> None:
        left[0] -= 1
        headers = [("Retry-After", retry_after)] if retry_after is not None else []
        writer.write(answer(body) if left[0] < 0 else answer(status=status, headers=headers))

    return handle


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_pauses_the_whole_host(server, fetch, png, status):
    server.routes["/first"] = limiting(png, status, 1, "1")
    server.routes.update({f"/{i}": answer(png) for i in range(4)})
    got = fetch("/first", *(f"/{i}" for i in range(4)), per_host=1, retries=1)
    assert [g.error for g in got] == [None] * 5
    first, *rest = server.requests
    assert all(r.start - first.end >= 0.95 for r in rest)


def test_a_pause_longer_than_the_deadline_is_not_waited_for(server, fetch, png):
    server.routes["/first"] = limiting(png, 429, 1, "30")
    server.routes["/second"] = answer(png)
    start = time.monotonic()
    got = fetch("/first", "/second", per_host=1, retries=3, timeout_s=2)
    assert [g.error for g in got] == ["rate_limited", "rate_limited"]
    assert server.paths() == ["/first"]
    assert time.monotonic() - start < 5


def test_another_host_is_not_paused(server, fetch, png):
    hosts = {"a.test": server.address, "b.test": server.address}
    server.routes["/limited"] = limiting(png, 429, 99, "30")
    server.routes["/a"] = answer(png)
    got = fetch("http://a.test/limited", "http://b.test/a", resolve=hosts)
    assert [g.error for g in got] == ["http_429", None]


def test_429_without_retry_after_backs_off(server, fetch, png):
    server.routes["/a"] = limiting(png, 429, 1, None)
    assert fetch("/a", retries=1)[0].body == png
    first, second = server.requests
    assert second.start - first.end >= 0.9


def test_refusals_that_come_together_count_once(server, fetch, png):
    async def refuse_first(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.1)
        again = server.paths().count(request.target) > 1
        writer.write(answer(png) if again else answer(status=429))

    paths = [f"/{i}" for i in range(8)]
    server.routes.update(dict.fromkeys(paths, refuse_first))
    got = fetch(*paths, per_host=8, retries=2, timeout_s=10.0)
    assert [g.error for g in got] == [None] * 8


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("0", 0.0),
        ("-5", 0.0),
        ("1e9", MAX_PAUSE_S),
        ("9" * 400, MAX_PAUSE_S),
        ("nan", None),
        ("soon", None),
        ("", None),
        ("\u0663", None),
        ("Wed, 99 Foo 2099 99:99:99 GMT", None),
        (formatdate(1_000_060, usegmt=True), 60.0),
        (formatdate(999_000, usegmt=True), 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_PAUSE_S),
    ],
)
def test_retry_after(value, seconds):
    assert retry_after_s(value, now=1_000_000.0) == seconds


def test_a_dead_host_is_not_knocked_at_for_ever(server, fetch):
    gone = LoopbackServer()
    gone.close()
    paths = [f"http://gone.test/{i}" for i in range(200)]
    start = time.monotonic()
    got = fetch(*paths, resolve={"gone.test": gone.address}, per_host=2, retries=2)
    assert {g.error for g in got} == {"connect_error"}
    assert time.monotonic() - start < 10  # 200 rows x 2 pauses would take a minute


# --- robots.txt --------------------------------------------------------------------------------

FORBID = answer(b"User-agent: *\nDisallow: /private/\nDisallow: /*?token\n")


def asked(server: LoopbackServer) -> list[str]:
    return [r.target for r in server.requests]


def test_robots_are_asked_once_and_obeyed(server, fetch, png):
    server.routes["/robots.txt"] = FORBID
    server.routes.update(dict.fromkeys(["/a", "/b", "/private/a"], answer(png)))
    got = fetch("/a", "/private/a", "/b", "/a?token=1", "/a?x", respect_robots=True)
    codes = [None, "robots_disallowed", None, "robots_disallowed", None]
    assert [g.error for g in got] == codes
    assert asked(server)[0] == "/robots.txt"
    assert sorted(asked(server)) == ["/a", "/a?x", "/b", "/robots.txt"]


def test_robots_are_not_asked_when_told_not_to(server, fetch, png):
    server.routes["/robots.txt"] = FORBID
    server.routes["/private/a"] = answer(png)
    assert fetch("/private/a", respect_robots=False)[0].body == png
    assert asked(server) == ["/private/a"]


def test_robots_for_our_name(server, fetch, png):
    text = b"User-agent: my-crawler\nDisallow: /\n\nUser-agent: *\nAllow: /\n"
    server.routes["/robots.txt"] = answer(text)
    server.routes["/a"] = answer(png)
    assert fetch("/a", respect_robots=True)[0].body == png
    named = {"user_agent": "My-Crawler/2.0 (+http://a.test)", "respect_robots": True}
    assert fetch("/a", **named)[0].error == "robots_disallowed"


@pytest.mark.parametrize(
    ("robots", "error"),
    [
        (answer(b"", status=404), None),
        (answer(b"", status=403), None),
        (answer(b"", status=401), None),
        (answer(b""), None),
        (answer(b"<html>we have no robots</html>"), None),
        (answer(b"", status=302, Location="/robots.txt"), None),
        (answer(b"", status=302, Location="/elsewhere"), "robots_disallowed"),
        (answer(b"", status=500), "robots_unreachable"),
        (answer(b"", status=503), "robots_unreachable"),
        (answer(b"", status=429, Retry_After="0"), "robots_unreachable"),
        (answer(b"", status=302, Location="http://10.0.0.1/robots.txt"), "robots_unreachable"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\nUser-agent", "robots_unreachable"),
        (answer(b"# " + b"x" * 600_000 + b"\nUser-agent: *\nDisallow: /"), None),
        (answer(b"User-agent: *\nDisallow: /\n# " + b"x" * 600_000), "robots_disallowed"),
    ],
)
def test_what_an_answer_for_robots_means(server, fetch, png, robots, error):
    server.routes["/robots.txt"] = robots
    server.routes["/elsewhere"] = answer(b"User-agent: *\nDisallow: /a")
    server.hang_up.add("/robots.txt")
    server.routes["/a"] = answer(png)
    (got,) = fetch("/a", respect_robots=True)
    assert got.error == error


def test_a_host_that_cannot_be_reached_keeps_its_code(server, fetch):
    gone = LoopbackServer()
    gone.close()
    pins = {"gone.test": gone.address}
    got = fetch("http://gone.test/a", "http://127.0.0.1/a", resolve=pins, respect_robots=True)
    assert [g.error for g in got] == ["connect_error", "private_address"]


def test_robots_are_asked_again_after_a_passing_failure(server, fetch, png):
    server.routes["/robots.txt"] = limiting(b"User-agent: *\nDisallow: /b", 500, 1, None)
    server.routes["/a"] = answer(png)
    got = fetch("/a", "/b", respect_robots=True, retries=1)
    assert [g.error for g in got] == [None, "robots_disallowed"]


def test_robots_of_a_redirects_target_are_obeyed(server, fetch, png):
    other = LoopbackServer()
    other.routes["/robots.txt"] = answer(b"User-agent: *\nDisallow: /")
    other.routes["/a"] = answer(png)
    server.routes["/start"] = answer(status=302, Location="http://other.test/a")
    pins = {"site.test": server.address, "other.test": other.address}
    (got,) = fetch("/start", resolve=pins, respect_robots=True)
    assert got.error == "robots_disallowed"
    assert asked(other) == ["/robots.txt"]
    other.close()


def test_a_dripping_robots_txt_costs_the_deadline_once(server, fetch, png):
    async def drip(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"#")
            await writer.drain()
            await asyncio.sleep(0.02)

    server.routes["/robots.txt"] = drip
    start = time.monotonic()
    got = fetch(*(f"/{i}" for i in range(30)), respect_robots=True, timeout_s=0.5)
    assert {g.error for g in got} == {"robots_unreachable"}
    assert asked(server) == ["/robots.txt"]
    assert time.monotonic() - start < 5


# --- opt-out -----------------------------------------------------------------------------------


@pytest.mark.parametrize("directive", ["noai", "noimageai", "noindex"])
def test_opt_outs_are_honoured(server, fetch, png, directive):
    server.routes["/a"] = answer(png, X_Robots_Tag=f"nofollow, {directive}")
    (got,) = fetch("/a")
    assert (got.error, got.status, got.body) == ("opted_out", 200, None)
    assert fetch("/a", opt_out=frozenset())[0].body == png


def test_several_headers_and_other_names(server, fetch, png):
    tags = [("X-Robots-Tag", "otherbot: noai"), ("X-Robots-Tag", "nofollow")]
    server.routes["/theirs"] = answer(png, headers=tags)
    server.routes["/ours"] = answer(png, headers=[*tags, ("x-robots-tag", "winnow-data: noai")])
    server.routes["/law"] = answer(png, headers=[("TDM-Reservation", "1")])
    got = fetch("/theirs", "/ours", "/law", opt_out=frozenset({"noai", "tdm-reservation"}))
    assert [g.error for g in got] == [None, "opted_out", "opted_out"]
