"""The engine ``img2dataset`` of the download stage: that package's Downloader, rows kept apart."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq

from winnow.contracts.errors import SetupError
from winnow.stages._fetch import Fetched, FetchFailure, FetchPolicy, media_format, parse_url
from winnow.stages._fetch.addresses import parse_pins
from winnow.stages._fetch.sniff import SNIFF_BYTES

_BYTES = "jpg"
"""What its writer calls the column of bytes, whatever their format."""
_ROW = "winnow_row"
_OPT_OUT_MESSAGE = "disallowed by X-Robots-Tag"

_MESSAGES: tuple[tuple[str, str], ...] = (
    (_OPT_OUT_MESSAGE, "opted_out"),
    (r"name or service not known|no address associated|nodename nor servname", "dns_not_found"),
    (r"temporary failure in name resolution|name resolution", "dns_error"),
    (r"timed out", "timeout"),
    (r"IncompleteRead", "incomplete"),
    (r"CERTIFICATE_VERIFY_FAILED|\[SSL|\bSSL\b|_ssl\.c", "tls_error"),
    (r"connection refused|unreachable|no route to host", "connect_error"),
    (r"connection reset|remote end closed|broken pipe", "disconnected"),
    (r"redirect error that would lead to an infinite loop", "too_many_redirects"),
    (r"redirection to url .* is not allowed|unknown url type", "scheme_not_allowed"),
    (r"nonnumeric port|control characters|no host given|invalid url|label", "bad_url"),
    (r"BadStatusLine|LineTooLong|got more than \d+ (headers|bytes)", "bad_response"),
)
"""The first pattern found in urllib's error text gives the code."""


def code_of_message(message: str) -> tuple[str, int | None]:
    """Return our code and the HTTP status that an error_message of img2dataset stands for."""
    # A refused redirect and a loop are HTTPErrors too: their texts come before the status.
    for pattern, code in _MESSAGES:
        if re.search(pattern, message, re.IGNORECASE):
            return code, None
    status = re.match(r"HTTP Error (\d{3}):", message)
    if status:
        return f"http_{status[1]}", int(status[1])
    return "download_failed", None


class Img2datasetWorker:
    """Downloads batches with img2dataset, resize_mode="no" and re-encoding off: original bytes."""

    def __init__(self, policy: FetchPolicy, *, scratch: Path | None) -> None:
        # Its image library asks the network for updates when it is imported.
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        try:
            from img2dataset.downloader import Downloader
            from img2dataset.resizer import Resizer
            from img2dataset.writer import ParquetSampleWriter
        except ImportError as error:
            msg = f"download: img2dataset does not load ({error}); try winnow-data[img2dataset]"
            raise SetupError(msg) from error
        self._downloader, self._writer = Downloader, ParquetSampleWriter
        self._resizer = Resizer(256, "no", False, disable_all_reencoding=True)
        self._policy, self._pins = policy, parse_pins(policy.resolve)
        self._scratch = scratch

    def fetch_all(self, urls: Sequence[str | None]) -> list[Fetched]:
        """Return one outcome per URL, in order."""
        results: list[Fetched] = [Fetched(error="download_failed")] * len(urls)
        asked: dict[int, str] = {}
        for row, text in enumerate(urls):
            try:
                asked[row] = self._pinned(text)
            except FetchFailure as failure:
                results[row] = failure.outcome()
        if asked:
            for answer in self._download(asked):
                results[answer[_ROW]] = self._outcome(answer)
        return results

    def close(self) -> None:
        """Nothing outlives a batch."""

    def _pinned(self, text: str | None) -> str:
        """Return a URL that urllib connects where the run's ``resolve`` says."""
        url = parse_url(text)
        pin = self._pins.get((url.raw_host or "").lower())
        return str(url.with_host(str(pin[0])).with_port(pin[1]) if pin else url)

    def _download(self, asked: dict[int, str]) -> list[dict[str, Any]]:
        policy = self._policy
        with tempfile.TemporaryDirectory(dir=self._scratch, prefix="img2dataset-") as folder:
            # The row number travels with the URL through its shard: answers come back in order of
            # completion, and neither its keys nor the URLs tell two equal rows apart.
            table = pa.table({_ROW: list(asked), "url": list(asked.values())})
            shard = Path(folder) / "shard.feather"
            pyarrow.feather.write_feather(table, str(shard), compression="uncompressed")
            self._downloader(
                sample_writer_class=self._writer,
                resizer=self._resizer,
                thread_count=policy.concurrency,
                save_caption=False,
                extract_exif=False,
                output_folder=folder,
                column_list=table.column_names,
                timeout=policy.timeout_s,
                number_sample_per_shard=max(len(asked), 2),
                oom_shard_count=5,
                compute_hash=None,
                verify_hash_type=None,
                encode_format=_BYTES,
                retries=policy.retries,
                user_agent_token=policy.product_token,
                disallowed_header_directives=sorted(policy.opt_out) or None,
            )((0, str(shard)))
            columns = [_ROW, "status", "error_message", _BYTES]
            answers = pq.read_table(Path(folder) / "00000.parquet", columns=columns)
        rows: list[dict[str, Any]] = answers.to_pylist()
        return rows

    def _outcome(self, answer: dict[str, Any]) -> Fetched:
        body = answer[_BYTES]
        if body is None:
            code, status = code_of_message(answer["error_message"] or "")
            return Fetched(error=code, status=status)
        if not body:
            return Fetched(error="empty")
        if len(body) > self._policy.max_bytes:
            return Fetched(error="too_large")
        if media_format(body[:SNIFF_BYTES], self._policy.media) is None:
            return Fetched(error="not_media")
        return Fetched(body=body)
