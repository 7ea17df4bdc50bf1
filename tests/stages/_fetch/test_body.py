"""Reading bodies: content codings, caps after decompression, truncated streams."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.servers import Request, answer
from winnow.stages._fetch.body import Inflate
from winnow.stages._fetch.outcome import FetchFailure


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    return stream.compress(data) + stream.flush()


CODINGS = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZIP": gzip.compress,
    "deflate": zlib.compress,
    "Deflate": raw_deflate,
    "identity": bytes,
}


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("chunked", [False, True])
def test_codings_are_undone(server, fetch, png, coding, chunked):
    body = CODINGS[coding](png)
    raw = answer(body, Content_Encoding=coding)
    if chunked:
        pieces = [body[i : i + 100] for i in range(0, len(body), 100)]
        framed = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"
        head = (
            f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Encoding: {coding}\r\n\r\n"
        )
        raw = head.encode() + framed
    server.routes["/a"] = raw
    (got,) = fetch("/a")
    assert got.body == png, got.error


def test_gzip_members_follow_each_other(server, fetch, png):
    body = gzip.compress(png[:100]) + gzip.compress(png[100:]) + b"\0" * 50
    server.routes["/a"] = answer(body, Content_Encoding="gzip")
    assert fetch("/a")[0].body == png


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_bomb_costs_the_cap_not_its_size(server, fetch, png, coding):
    stream = zlib.compressobj(9, zlib.DEFLATED, 31 if coding == "gzip" else 15)
    bomb = stream.compress(png) + b"".join(stream.compress(bytes(1 << 20)) for _ in range(192))
    bomb += stream.flush()  # 192 MiB in 190 KB
    server.routes["/bomb"] = answer(bomb, Content_Encoding=coding)
    tracemalloc.start()
    (got,) = fetch("/bomb", max_bytes=4 << 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert got.error == "too_large"
    assert peak < 24 << 20


@given(data=st.binary(max_size=3000), cut=st.integers(1, 500), limit=st.integers(1, 4000))
def test_inflate_piece_by_piece_never_exceeds_its_limit(data, cut, limit):
    packed = gzip.compress(data)
    inflate, out = Inflate("gzip"), b""
    for i in range(0, len(packed), cut):
        piece = inflate.feed(packed[i : i + cut], limit - len(out) + 1)
        out += piece
        assert len(out) <= limit + 1
        if len(out) > limit:
            return
    inflate.finish()
    assert out == data


@settings(max_examples=200)
@given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate"]))
def test_inflate_any_bytes(data, coding):
    try:
        Inflate(coding).feed(data, 1000)
    except FetchFailure as failure:
        assert failure.code == "bad_encoding"


def test_a_page_is_left_early(server, fetch):
    """A body that is not media is not read to its end."""
    sent = []

    async def endless(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n<!doctype html><html>")
        while True:
            writer.write(b" " * 65536)
            await writer.drain()
            sent.append(1)

    server.routes["/page"] = endless
    (got,) = fetch("/page", max_bytes=1 << 30)
    assert (got.error, got.content_type) == ("not_media", "image/png")
    assert len(sent) < 1000


def test_empty_members_and_padding_are_nothing():
    packed = gzip.compress(b"a" * 5000, mtime=0) + gzip.compress(b"", mtime=0) * 2000
    packed += gzip.compress(b"b" * 5000, mtime=0)
    # What looks like a member within the padding is none, wherever the pieces are cut.
    padded = packed + bytes(20_000) + b"\x1f\x8b no member"
    for cut in (7, 8191, 8192, len(padded)):
        inflate = Inflate("gzip")
        pieces = [inflate.feed(padded[i : i + cut], 1 << 20) for i in range(0, len(padded), cut)]
        inflate.finish()
        assert b"".join(pieces) == b"a" * 5000 + b"b" * 5000
