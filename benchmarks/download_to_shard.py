"""From a URL table to WebDataset tars, whole programs: `winnow run` against `img2dataset`.

    python benchmarks/download_to_shard.py --images 5000

A loopback server in a process of its own serves JPEGs over HTTP (one host). Both programs read one
Parquet table of URL and caption and write tars with the original bytes, with the same number of
connections; each is measured as a process with all its children: wall seconds, and user + system
CPU-ms per image, imports and start included. Winnow also digests every image, accounts for every
row and writes a manifest; img2dataset does not. Needs the extra winnow-data[img2dataset].
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from download import make_certificate, serve

RECIPE = """
name: bench
source: {{use: url_table, path: {table}}}
rows_per_shard: {rows}
stages:
  download: {{concurrency: {connections}, per_host: {connections}, timeout_s: 60.0}}
export:
  train: {{use: webdataset, rows_per_file: {rows}}}
"""


def run(command: list[str]) -> tuple[float, float]:
    """Return wall and CPU seconds of a program and its children."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command[0]} failed:\n{output.decode()[-2000:]}")
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime


def count(folder: Path) -> int:
    """Return the images in all tars below a folder."""
    found = 0
    for path in folder.rglob("*.tar"):
        with tarfile.open(path) as tar:
            found += sum(name.endswith(".jpg") for name in tar.getnames())
    return found


def winnow(base: Path, port: int, options: argparse.Namespace) -> list[str]:
    """Return the command of Winnow."""
    urls = [f"http://bench.test/{i}.jpg" for i in range(options.images)]
    table = base / "winnow.parquet"
    pq.write_table(pa.table({"url": urls, "text": [f"caption {u}" for u in urls]}), table)
    rows, connections = options.rows_per_shard, options.connections
    text = RECIPE.format(table=table, rows=rows, connections=connections)
    (base / "r.yaml").write_text(text)
    command = [sys.executable, "-m", "winnow.pipeline.cli", "run", str(base / "r.yaml")]
    command += ["-w", str(base / "out"), "--executor", options.executor, "--no-report"]
    return [*command, "--resolve", f"bench.test=127.0.0.1:{port}"]


def img2dataset(base: Path, port: int, options: argparse.Namespace) -> list[str]:
    """Return the command of img2dataset."""
    urls = [f"http://127.0.0.1:{port}/{i}.jpg" for i in range(options.images)]
    table = base / "img2dataset.parquet"
    pq.write_table(pa.table({"url": urls, "text": [f"caption {u}" for u in urls]}), table)
    values = {
        "url_list": table,
        "input_format": "parquet",
        "url_col": "url",
        "caption_col": "text",
        "output_format": "webdataset",
        "output_folder": base / "out",
        "processes_count": options.processes,
        "thread_count": options.connections,
        "resize_mode": "no",
        "disable_all_reencoding": True,
        "number_sample_per_shard": options.rows_per_shard,
        "enable_wandb": False,
    }
    program = str(Path(sys.executable).parent / "img2dataset")
    return [program, *(f"--{name}={value}" for name, value in values.items())]


def main() -> None:
    """Print a line per program and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--kilobytes", type=int, default=30)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--processes", type=int, default=2, help="of img2dataset")
    parser.add_argument("--executor", default="auto")
    parser.add_argument("--rows-per-shard", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.kilobytes * 1000, *options.serve))
        return
    with tempfile.TemporaryDirectory() as folder:
        _, certificate, key = make_certificate(Path(folder))
        command = [sys.executable, __file__, "--kilobytes", str(options.kilobytes)]
        command += ["--serve", str(certificate), str(key)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **pipes) as server:
            port = int(server.stdout.readline().split()[0])
            compare(Path(folder), port, options)
            server.stdin.close()


def compare(folder: Path, port: int, options: argparse.Namespace) -> None:
    """Run both in turn and print medians."""
    found: dict[str, list[tuple[float, float]]] = {"winnow": [], "img2dataset": []}
    for repeat in range(options.repeats):
        for name, make in (("winnow", winnow), ("img2dataset", img2dataset)):
            base = folder / f"{name}-{repeat}"
            base.mkdir()
            found[name].append(run(make(base, port, options)))
            images = count(base / "out")
            if images != options.images:
                sys.exit(f"{name} wrote {images} of {options.images} images")
    medians = {n: [statistics.median(v) for v in zip(*r, strict=True)] for n, r in found.items()}
    for name, (wall, cpu) in medians.items():
        per_image = 1000 * cpu / options.images
        print(f"{name:12} {options.images / wall:8.0f} images/s {per_image:8.2f} CPU-ms/image")
    (wall, cpu), (their_wall, their_cpu) = medians["winnow"], medians["img2dataset"]
    print(f"ratio        {their_wall / wall:8.2f} x speed  {cpu / their_cpu:8.2f} x CPU")


if __name__ == "__main__":
    main()
