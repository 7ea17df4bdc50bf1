"""What a fetch is asked to do and what it comes back with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from winnow.stages._fetch.sniff import Modality

TRANSIENT_CODES = frozenset(
    {
        "dns_not_found",
        "dns_error",
        "connect_error",
        "disconnected",
        "incomplete",
        "timeout",
        "rate_limited",
        "robots_unreachable",
        "http_408",
        "http_425",
        "http_429",
        "http_500",
        "http_502",
        "http_503",
        "http_504",
        "http_520",
        "http_521",
        "http_522",
        "http_523",
        "http_524",
    }
)
"""Codes of failures that may be gone another day. 520 to 524: a proxy found its origin dead.
dns_not_found: names come back, resolvers say so when they are overrun, and ``--resolve`` was
forgotten."""

RETRY_CODES = TRANSIENT_CODES - {"dns_not_found", "timeout", "rate_limited", "robots_unreachable"}
"""Codes that are tried again at once; the others are sure, have no time left, or must wait."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchPolicy:
    """Everything the fetcher obeys; the download stage's docstring defines each value."""

    media: Modality = "image"
    timeout_s: float = 20.0
    max_bytes: int = 32 << 20
    concurrency: int = 128
    per_host: int = 8
    retries: int = 2
    max_redirects: int = 5
    user_agent: str = "winnow-data/0.1"
    respect_robots: bool = True
    opt_out: frozenset[str] = frozenset({"noai", "noimageai", "noindex"})
    allow_private_networks: bool = False
    resolve: Mapping[str, str] = field(default_factory=dict)

    @property
    def product_token(self) -> str:
        """The name that robots.txt and X-Robots-Tag may address: RFC 9309's product token."""
        match = re.match(r"[A-Za-z_-]+", self.user_agent)
        return match.group().lower() if match else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    """One row's outcome: ``body`` or ``error``, never both.

    status and content_type are those of the last answer; None where nobody answered.
    """

    body: bytes | None = None
    status: int | None = None
    content_type: str | None = None
    error: str | None = None


class FetchFailure(Exception):  # noqa: N818 (an outcome, caught inside the fetcher)
    """A fetch that ended with a code. Never leaves the fetcher.

    ``hops``: redirects that were followed before it; 0 means that the asked host itself failed.
    """

    def __init__(
        self, code: str, *, status: int | None = None, content_type: str | None = None
    ) -> None:
        super().__init__(code)
        self.code, self.status, self.content_type = code, status, content_type
        self.hops = 0

    def outcome(self) -> Fetched:
        """Return it as the row's result."""
        return Fetched(status=self.status, content_type=self.content_type, error=self.code)
