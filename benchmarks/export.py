"""Samples per second of the WebDataset exporter against webdataset.TarWriter, same content.

Both get the same rows (payload, caption, a dozen annotations) in memory and write to a sink that
discards; TarWriter gets finished dictionaries, so its time leaves out what turns Arrow columns into
JSON-able values, which the exporter's time includes. CPU time of one thread, best of the repeats.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import webdataset

from winnow.contracts.identity import row_uid
from winnow.stages.export.webdataset import WebDataset, json_documents


class Discard:
    """Counts bytes."""

    def __init__(self) -> None:
        self.size = 0

    def write(self, data: bytes) -> int:
        self.size += len(data)
        return len(data)

    def close(self) -> None:
        """Nothing to do."""


def make_rows(num_rows: int, payload_bytes: int) -> pa.RecordBatch:
    """Rows like those of a curated URL table."""
    random = np.random.default_rng(0)
    payloads = [
        b"\xff\xd8\xff" + random.bytes(payload_bytes - 3) for _ in range(min(num_rows, 256))
    ]
    uids = [row_uid(i) for i in range(num_rows)]
    scores = random.random(num_rows)
    return pa.RecordBatch.from_pydict(
        {
            "uid": pa.array(uids, pa.binary(16)),
            "key": [u.hex() for u in uids],
            "image": pa.array([payloads[i % 256] for i in range(num_rows)], pa.large_binary()),
            "url": [f"http://scenes.test/pictures/{i}.jpg" for i in range(num_rows)],
            "text": [f"a caption of usual length, number {i}" for i in range(num_rows)],
            "width": pa.array([640] * num_rows, pa.int32()),
            "height": pa.array([480] * num_rows, pa.int32()),
            "clip_score": pa.array(scores, pa.float32()),
            "language": ["en"] * num_rows,
            "language_confidence": pa.array(scores, pa.float32()),
            "phash": pa.array(random.integers(0, 2**63, num_rows), pa.uint64()),
            "num_words": pa.array([8] * num_rows, pa.int32()),
            "download_status": pa.array([200] * num_rows, pa.int16()),
            "download_error": pa.nulls(num_rows, pa.string()),
        }
    )


def best(function: Callable[[], None], repeats: int) -> float:
    """Return the least CPU time in seconds."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def by_winnow(rows: pa.RecordBatch, batch_rows: int) -> None:
    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, rows.num_rows, batch_rows):
            yield rows.slice(start, batch_rows)

    WebDataset().write_file(batches(), Discard())  # type: ignore[arg-type]


def by_tar_writer(samples: list[dict[str, Any]]) -> None:
    with webdataset.TarWriter(Discard(), mtime=0) as writer:
        for sample in samples:
            writer.write(sample)


def samples_of(rows: pa.RecordBatch) -> list[dict[str, Any]]:
    """The same members, finished."""
    documents = json_documents(rows, [n for n in rows.schema.names if n != "image"])
    columns = (rows["key"], rows["image"], rows["text"])
    return [
        {"__key__": key, "jpg": image, "json": document, "txt": text}
        for (key, image, text), document in zip(
            zip(*(c.to_pylist() for c in columns), strict=True), documents, strict=True
        )
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--payload-bytes", type=int, default=2000)
    parser.add_argument("--batch-rows", type=int, default=64, help="as the pipeline's")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    rows = make_rows(options.rows, options.payload_bytes)
    samples = samples_of(rows)
    ours = best(lambda: by_winnow(rows, options.batch_rows), options.repeats)
    theirs = best(lambda: by_tar_writer(samples), options.repeats)
    print(f"exporter              {options.rows / ours:10,.0f} samples/s")
    print(f"webdataset.TarWriter  {options.rows / theirs:10,.0f} samples/s (JSON made beforehand)")
    print(f"ratio                 {theirs / ours:10.1f}")


if __name__ == "__main__":
    main()
