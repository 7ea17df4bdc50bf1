"""Untrusted text to a URL that may be asked for: http or https, a plain host, no credentials."""

from __future__ import annotations

import re
from urllib.parse import urljoin

from yarl import URL

from winnow.stages._fetch.addresses import parse_literal
from winnow.stages._fetch.outcome import FetchFailure

MAX_URL_CHARACTERS = 8192
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_WELL_FORMED = re.compile(r"(?:[!#$&'()*+,\-./0-9:;=?@A-Z\[\]_a-z~]|%[0-9A-Fa-f]{2})*")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_HOST = re.compile(r"[A-Za-z0-9._-]+")  # underscores are common and harmless
_NUMBER = re.compile(r"0[xX][0-9A-Fa-f]*|[0-9]+")


def parse_url(text: str | None) -> URL:
    """Return the URL that a row asks for.

    A well-formed URL is sent as it was written, byte for byte (a signed one breaks when its
    escapes are rewritten); any other is quoted as browsers do. Raises FetchFailure: missing_url
    (null or blank), scheme_not_allowed, bad_url.
    """
    text = (text or "").strip()
    if not text:
        raise FetchFailure(code="missing_url")
    if len(text) > MAX_URL_CHARACTERS or _CONTROL.search(text):
        raise FetchFailure(code="bad_url")
    scheme = _SCHEME.match(text)
    if scheme is None:
        raise FetchFailure(code="bad_url")
    if scheme[1].lower() not in ("http", "https"):
        raise FetchFailure(code="scheme_not_allowed")
    try:
        url = URL(text, encoded=_WELL_FORMED.fullmatch(text) is not None).with_fragment(None)
        good = _is_plain(url)
    except (ValueError, IndexError):  # a bad IDN; yarl on brackets before "@"
        good = False
    if not good:
        raise FetchFailure(code="bad_url")
    return url


def _is_plain(url: URL) -> bool:
    host = url.raw_host
    if not host or not url.port or "@" in url.raw_authority:
        return False
    if parse_literal(host) is not None:
        return "%" not in host  # a zone: link-local
    # 127.1, 0x7f000001 and 2130706433 mean 127.0.0.1 to some libraries and a name to others.
    last_label = host.rstrip(".").rpartition(".")[2]
    return _HOST.fullmatch(host) is not None and not _NUMBER.fullmatch(last_label)


def redirect_target(base: URL, location: str | None) -> URL:
    """Return where a redirect leads. Raises FetchFailure as ``parse_url``, and bad_redirect."""
    if not location:
        raise FetchFailure(code="bad_redirect")
    # aiohttp keeps bytes that are not UTF-8 as surrogates; servers that send them mean Latin-1.
    raw = location.encode("utf-8", "surrogateescape")
    try:
        location = raw.decode("utf-8")
    except UnicodeDecodeError:
        location = raw.decode("latin-1")
    try:
        return parse_url(urljoin(str(base), location.strip()))
    except (ValueError, IndexError):
        raise FetchFailure(code="bad_redirect") from None
