"""Fetch the media that rows point to."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import sys
from dataclasses import dataclass
from typing import ClassVar, Literal

import pyarrow as pa

from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.media import Media
from winnow.contracts.parameters import effort, later, result
from winnow.contracts.registry import register_stage
from winnow.contracts.stage import Stage, WorkerOptions
from winnow.stages._fetch import (
    TRANSIENT_CODES,
    Fetched,
    FetchFailure,
    FetchPolicy,
    FetchWorker,
    Modality,
    parse_literal,
    parse_url,
    unknown_names,
)
from winnow.stages._img2dataset import Img2datasetWorker

OPT_OUTS = ("noai", "noimageai", "noindex", "noimageindex", "noarchive", "tdm-reservation")
"""Directives of X-Robots-Tag that can be honoured; tdm-reservation is a header of its own."""

PREFLIGHT_S = 20.0
"""How long looking up a sample's names may take before the run begins all the same."""

Downloader = FetchWorker | Img2datasetWorker


@register_stage("download", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class Download(Stage):
    """Fetch each row's URL as an untrusted one: public addresses only, capped, polite.

    Reads:   <url_column>: string, an http or https URL; null or blank = missing_url.
    Writes:  image (media="image") or audio (media="audio"): large_binary, the bytes as served,
                 content coding undone; null exactly when download_error is set.
             download_status: int16, HTTP status of the last answer; null where nobody answered.
             download_content_type: string, the Content-Type that the server claimed, not checked;
                 null where there was none.
             download_error: string; null, or one of the codes below.
             With media="audio": download_audio_status, download_audio_content_type,
                 download_audio_error, so that one recipe can fetch both.
    Cost:    network; 1 to 4 CPU-ms per image. A row occupies the worker for at most timeout_s of
             requests and pauses, its retries and redirects included, plus its turn in the queue of
             its host. Memory: concurrency x max_bytes at worst, beside the batch itself.
    Fails:   a bad row never raises. Codes (* = transient: ``--retry-failed`` asks again):
        missing_url          no URL in the row
        bad_url              not an absolute URL, or with credentials, control characters, a port
                             that cannot be, an address in octal or hexadecimal disguise
        scheme_not_allowed   neither http nor https, here or after a redirect
        private_address      leads to an address that is not public, here or after a redirect
        dns_not_found      * the name does not exist
        dns_error          * the name could not be looked up
        connect_error      * no connection
        tls_error            no trusted TLS connection
        disconnected       * the connection ended before an answer
        timeout            * timeout_s is over, whatever had come by then
        bad_response         not HTTP
        http_<status>        any status but 200 and 203; * 408, 425, 429, 500, 502-504, 520-524
        bad_redirect         a redirect without a usable target
        too_many_redirects   more than max_redirects
        rate_limited       * the host asks for a longer pause than the row has time left
        robots_disallowed    robots.txt forbids it (RFC 9309, for the first word of user_agent)
        robots_unreachable * robots.txt could not be had, which means no
        opted_out            the answer carries a directive of opt_out
        too_large            more than max_bytes, as sent or decompressed
        bad_encoding         a content coding that was not asked for, or broken
        incomplete         * the body ended early
        empty                no body
        not_media            the body does not begin as a file of this modality (an HTML page)
        too_long             media="audio" only: its header says more than max_duration_s
        download_failed      engine img2dataset only: an error text that fits none of these

    engine="img2dataset" downloads with that package's own code (extra ``img2dataset``), which
    keeps few of these rules (docs/guide.md, Fetching) and so needs unsafe_fetch=true. It honours
    X-Robots-Tag but no robots.txt, reads whole bodies before max_bytes is looked at, follows
    redirects anywhere, and counts timeout_s anew for each read.

    media: modality. url_column: where the URL is.
    timeout_s: deadline in seconds for all of a row's requests together.
    max_bytes: cap on a body. max_duration_s: cap on a recording, in seconds as its header says;
    null = none. A header that says nothing passes: what is decoded has the recipe's own cap.
    max_redirects: hops followed.
    concurrency, per_host: requests at once, in all and to one host, of each worker. Workers do not
    know of each other: with N of them a host may see N x per_host. `winnow run --workers N` caps
    them; a crawl that must be gentler sets per_host to its limit divided by N.
    retries: further attempts within the deadline after a transient failure.
    user_agent: sent with each request; its first word is the name that robots.txt may address.
    respect_robots: ask for robots.txt and obey. opt_out: directives that are obeyed.
    allow_private_networks: fetch from any address. For one host, rather use the run's ``resolve``.
    """

    deterministic: ClassVar[bool] = False
    transient_codes: ClassVar[frozenset[str]] = TRANSIENT_CODES

    media: Modality = result("image")
    url_column: str = result("url")
    engine: Literal["native", "img2dataset"] = result("native")
    max_bytes: int = result(32 << 20)
    max_redirects: int = result(5)
    user_agent: str = result("winnow-data/0.1")
    respect_robots: bool = result(True)
    opt_out: tuple[str, ...] = result(
        ("noai", "noimageai", "noindex", "noimageindex", "tdm-reservation")
    )
    allow_private_networks: bool = result(False)
    unsafe_fetch: bool = effort(False)
    timeout_s: float = effort(20.0)
    concurrency: int = effort(128)
    per_host: int = effort(8)
    retries: int = effort(2)
    max_duration_s: float | None = later(None)

    def __post_init__(self) -> None:
        _require(0 < self.timeout_s <= 3600, "timeout_s", self.timeout_s, "above 0, at most 3600")
        _require(0 < self.max_bytes <= 1 << 31, "max_bytes", self.max_bytes, "in 1..2147483648")
        _require(0 <= self.max_redirects <= 20, "max_redirects", self.max_redirects, "in 0..20")
        _require(0 < self.concurrency <= 4096, "concurrency", self.concurrency, "in 1..4096")
        _require(0 < self.per_host <= 256, "per_host", self.per_host, "in 1..256")
        _require(0 <= self.retries <= 10, "retries", self.retries, "in 0..10")
        _require(bool(self.url_column), "url_column", self.url_column, "the name of a column")
        _require(
            re.fullmatch(r"[A-Za-z_-]+[\x20-\x7e]*", self.user_agent) is not None,
            "user_agent",
            self.user_agent,
            'printable ASCII that begins with a name, for example "winnow-data/0.1 (+your page)"',
        )
        if self.max_duration_s is not None:
            _require(self.max_duration_s > 0, "max_duration_s", self.max_duration_s, "above 0")
            _require(self.media == "audio", "media", self.media, "'audio' with max_duration_s")
        for directive in self.opt_out:
            _require(directive in OPT_OUTS, "opt_out", directive, "among " + ", ".join(OPT_OUTS))
        if self.engine == "img2dataset":
            self._check_img2dataset()

    def _check_img2dataset(self) -> None:
        if not self.unsafe_fetch:
            msg = (
                "download: engine='img2dataset' fetches from private addresses, without deadline "
                "or size cap; set unsafe_fetch: true to accept that, or use engine: native"
            )
            raise RecipeError(msg)
        _require(self.media == "image", "media", self.media, "'image' with engine='img2dataset'")
        if sys.version_info >= (3, 13) or importlib.util.find_spec("img2dataset") is None:
            msg = (
                "download: engine='img2dataset' needs the package img2dataset on Python 3.12 or "
                "older; install winnow-data[img2dataset], or use engine: native"
            )
            raise RecipeError(msg)

    @property
    def reads(self) -> pa.Schema:
        return pa.schema({self.url_column: pa.string()})

    @property
    def writes(self) -> pa.Schema:
        # A name and no parameter: a new parameter would make every fingerprint a new one.
        prefix = "download" if self.media == "image" else f"download_{self.media}"
        return pa.schema(
            {
                self.media: pa.large_binary(),
                f"{prefix}_status": pa.int16(),
                f"{prefix}_content_type": pa.string(),
                f"{prefix}_error": pa.string(),
            }
        )

    @property
    def notes(self) -> tuple[str, ...]:
        return (
            f"asks one host for up to {self.per_host} URLs at once in each worker: with N workers "
            f"N x {self.per_host} (--workers N caps them)",
        )

    def policy(self, options: WorkerOptions) -> FetchPolicy:
        """Return what the fetcher obeys, the run's ``resolve`` included."""
        return FetchPolicy(
            media=self.media,
            timeout_s=self.timeout_s,
            max_bytes=self.max_bytes,
            concurrency=self.concurrency,
            per_host=self.per_host,
            retries=self.retries,
            max_redirects=self.max_redirects,
            user_agent=self.user_agent,
            respect_robots=self.respect_robots,
            opt_out=frozenset(self.opt_out),
            allow_private_networks=self.allow_private_networks,
            resolve=options.resolve,
        )

    def preflight(self, sample: pa.RecordBatch, options: WorkerOptions) -> None:
        """Raise SetupError where not one of the sample's host names can be looked up: without
        this, a run without a network or its ``--resolve`` would end with every row failed."""
        pins = {name.lower() for name in options.resolve}
        hosts: dict[str, None] = {}
        for text in _texts(sample.column(self.url_column)):
            try:
                host = parse_url(text).raw_host or ""
            except FetchFailure:
                continue
            if host.lower() in pins or parse_literal(host) is not None:
                return
            hosts[host] = None
        unknown = unknown_names(list(hosts), PREFLIGHT_S)
        if unknown:
            msg = (
                f"download: not one of {len(unknown)} host names in a sample of the rows can be "
                f"looked up ({', '.join(unknown[:3])}{' ...' if len(unknown) > 3 else ''}), so "
                "nothing was fetched. Is this machine online? For a server of your own say "
                f"--resolve {unknown[0]}=ADDRESS:PORT"
            )
            raise SetupError(msg)

    def setup(self, options: WorkerOptions) -> Downloader:
        """Start the worker's fetcher; its ``close`` ends it. Raises SetupError (bad ``resolve``,
        img2dataset installed but broken)."""
        policy = self.policy(options)
        if self.engine == "img2dataset":
            return Img2datasetWorker(policy, scratch=options.scratch)
        return FetchWorker(policy)

    def annotate(self, batch: pa.RecordBatch, state: Downloader, media: Media) -> pa.RecordBatch:
        rows = state.fetch_all(_texts(batch.column(self.url_column)))
        if self.max_duration_s is not None:
            rows = [_within(row, self.max_duration_s) for row in rows]
        columns = [
            pa.array([row.body for row in rows], pa.large_binary()),
            pa.array([row.status for row in rows], pa.int16()),
            pa.array([row.content_type for row in rows], pa.string()),
            pa.array([row.error for row in rows], pa.string()),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.writes)


def _within(row: Fetched, max_duration_s: float) -> Fetched:
    """Return the row, without its body where the header says that it is too long."""
    from winnow.stages._audio import header_duration_s

    if row.body is None or (header_duration_s(row.body) or 0.0) <= max_duration_s:
        return row
    return dataclasses.replace(row, body=None, error="too_long")


def _texts(column: pa.Array) -> list[str | None]:
    """Return the URLs as text; bytes that are not UTF-8 become U+FFFD, which no server knows."""
    raw = column.cast(pa.binary()).to_pylist()
    return [None if value is None else value.decode("utf-8", "replace") for value in raw]


def _require(good: bool, name: str, value: object, allowed: str) -> None:
    if not good:
        msg = f"download: {name}={value!r} is not allowed; it must be {allowed}"
        raise RecipeError(msg)
