"""Reading an answer's body: caps on the wire and after decompression, signature checked early."""

from __future__ import annotations

import zlib
from typing import Protocol

import aiohttp

from winnow.stages._fetch.outcome import FetchFailure
from winnow.stages._fetch.sniff import SNIFF_BYTES, Modality, media_format

DRAIN_BYTES = 64 << 10
"""Bodies nobody wants are read up to here, which is cheaper than a new connection."""
_WINDOW_BYTES = 8 << 10
"""What follows a gzip member is copied for each member: a body of empty ones would cost seconds."""
_GZIP_WBITS, _ZLIB_WBITS, _RAW_WBITS = 31, 15, -15


class Decoder(Protocol):
    """Undoes a content coding, piece by piece, never giving more than ``limit`` bytes at once."""

    def feed(self, data: bytes, limit: int) -> bytes: ...
    def finish(self) -> None: ...


class Identity:
    """No coding."""

    def feed(self, data: bytes, limit: int) -> bytes:
        return data

    def finish(self) -> None:
        return


class Inflate:
    """gzip (any number of members) or deflate, with or without zlib's header.

    Output is bounded before it is made: a bomb costs the cap, not its size.
    """

    def __init__(self, coding: str) -> None:
        self._wbits = _GZIP_WBITS if coding == "gzip" else 0
        self._stream: zlib._Decompress | None = None
        self._ended = False

    def feed(self, data: bytes, limit: int) -> bytes:
        out = bytearray()
        for start in range(0, len(data), _WINDOW_BYTES):
            out += self._feed(data[start : start + _WINDOW_BYTES], limit - len(out))
        return bytes(out)

    def _feed(self, data: bytes, limit: int) -> bytes:
        out = bytearray()
        while data and len(out) < limit and not self._ended:
            if self._stream is None:
                self._stream = zlib.decompressobj(self._wbits or _deflate_wbits(data))
            elif self._stream.eof:
                if self._wbits != _GZIP_WBITS or data[:1] != b"\x1f":
                    self._ended = True  # padding after the end
                    break
                self._stream = zlib.decompressobj(self._wbits)
            try:
                out += self._stream.decompress(data, limit - len(out))
            except zlib.error:
                raise FetchFailure(code="bad_encoding") from None
            data = self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail
        return bytes(out)

    def finish(self) -> None:
        if self._stream is not None and not self._stream.eof:
            raise FetchFailure(code="incomplete")


def decoder_of(content_encoding: str | None) -> Decoder:
    """Return the decoder for a Content-Encoding. Raises FetchFailure(code="bad_encoding")."""
    coding = (content_encoding or "identity").strip().lower().removeprefix("x-")
    if coding in ("identity", "", "none"):
        return Identity()
    if coding in ("gzip", "deflate"):
        return Inflate(coding)
    raise FetchFailure(code="bad_encoding")


async def read_media(
    response: aiohttp.ClientResponse, *, max_bytes: int, media: Modality | None
) -> bytes:
    """Return the whole decoded body; with ``media``, it begins as such a file.

    Raises FetchFailure: too_large (on the wire or decoded), bad_encoding, incomplete, empty,
    not_media. The server's Content-Length is believed only where it is too large.
    """
    decoder = decoder_of(response.headers.get("Content-Encoding"))
    if (response.content_length or 0) > max_bytes:
        raise FetchFailure(code="too_large")
    pieces: list[bytes] = []
    received = decoded = 0
    sniffed = media is None
    async for chunk in response.content.iter_any():
        received += len(chunk)
        piece = decoder.feed(chunk, max_bytes - decoded + 1)
        decoded += len(piece)
        if received > max_bytes or decoded > max_bytes:
            raise FetchFailure(code="too_large")
        pieces.append(piece)
        if not sniffed and decoded >= SNIFF_BYTES:
            _require_media(b"".join(pieces), media)
            sniffed = True
    decoder.finish()
    body = b"".join(pieces)
    if not sniffed and body:
        _require_media(body, media)
    if not body and media is not None:
        raise FetchFailure(code="empty")
    return body


async def drain(response: aiohttp.ClientResponse) -> None:
    """Read away a short body of known length, so that its connection can be used again."""
    if 0 <= (response.content_length or 0) <= DRAIN_BYTES and not response.content.at_eof():
        if response.content_length is None:
            return
        async for _ in response.content.iter_any():
            pass


def _require_media(head: bytes, media: Modality | None) -> None:
    if media is not None and media_format(head[:SNIFF_BYTES], media) is None:
        raise FetchFailure(code="not_media")


def _deflate_wbits(data: bytes) -> int:
    """Servers say deflate for both zlib (RFC 1950) and raw (RFC 1951) streams."""
    is_zlib = data[0] & 15 == 8 and (len(data) < 2 or (data[0] << 8 | data[1]) % 31 == 0)
    return _ZLIB_WBITS if is_zlib else _RAW_WBITS
