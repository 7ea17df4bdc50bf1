"""A second `winnow run` with only a threshold changed, and the driver's memory by rows.

    python benchmarks/rerun.py --rows 100000 1000000

Makes a URL table per size, runs caption_stats and a filter over it, then runs the same recipe with
another threshold in a new process. Target: 2 s plus 1 s per million rows for the second run (wall
time of the whole process, imports included; user + system time beside it, because machines are
shared); the driver's peak memory must not grow with the rows.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

RECIPE = """
name: rerun
source: {{use: url_table, path: {table}}}
stages:
  caption_stats: {{}}
filters:
  long: {{use: where, expression: "num_characters >= 20", on_null: drop}}
  words: {{use: caption_length, min_words: 2, on_null: drop}}
"""
WORDS = np.array(["red", "blue", "small", "large", "dog", "cat", "house", "tree", "on", "under"])


def write_table(path: Path, rows: int) -> None:
    """Write rows of made-up captions, a million at a time."""
    random = np.random.default_rng(0)
    schema = pa.schema({"url": pa.string(), "text": pa.string()})
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, 100_000):
            count = min(100_000, rows - start)
            texts = [" ".join(WORDS[random.integers(0, len(WORDS), 6)]) for _ in range(count)]
            urls = [f"http://example.test/{start + i}.jpg" for i in range(count)]
            writer.write_table(pa.table({"url": urls, "text": texts}, schema))


def run(recipe: Path, workspace: Path, *options: str) -> tuple[float, float, float]:
    """Return wall seconds, CPU seconds and peak MB of one `winnow run`."""
    command = [sys.executable, "-m", "winnow.pipeline.cli", "run", str(recipe)]
    command += ["-w", str(workspace), "--executor", "inprocess", "--no-report", *options]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    if status:
        sys.exit(f"winnow run failed: {' '.join(command)}")
    scale = 1024 if sys.platform != "darwin" else 1024 * 1024
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / scale


def main() -> None:
    """Print a line per size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    arguments = parser.parse_args()
    print(f"{'rows':>10} {'run':>22} {'wall s':>8} {'CPU s':>8} {'peak MB':>8} {'target s':>9}")
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            base = Path(folder)
            write_table(base / "table.parquet", rows)
            (base / "r.yaml").write_text(RECIPE.format(table=base / "table.parquet"))
            first = run(base / "r.yaml", base / "ws")
            threshold = 'filters.long.expression="num_characters >= 24"'
            second = run(base / "r.yaml", base / "ws", "--set", threshold)
        for name, (wall, cpu, peak), target in (
            ("first", first, ""),
            ("threshold changed", second, f"{2 + rows / 1e6:.1f}"),
        ):
            print(f"{rows:>10,} {name:>22} {wall:8.1f} {cpu:8.1f} {peak:8.0f} {target:>9}")


if __name__ == "__main__":
    main()
