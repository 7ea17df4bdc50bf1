"""Samples per second out of WebDataset shards: Winnow's source beside tarfile and webdataset.

All three read every byte. Winnow also digests every member (BLAKE2b-128) and makes Arrow rows;
tarfile only lists and reads members; webdataset groups samples, undecoded.
"""

from __future__ import annotations

import argparse
import os
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import webdataset
from webdataset.tariterators import group_by_keys, tar_file_expander, url_opener

from winnow.stages.sources._tar import TarWalk
from winnow.stages.sources.webdataset import WebDataset


def write_shard(path: Path, samples: int, image_bytes: int) -> None:
    with webdataset.TarWriter(str(path)) as writer:
        for i in range(samples):
            writer.write(
                {
                    "__key__": f"{i:09d}",
                    "jpg": os.urandom(image_bytes),
                    "txt": "a caption of a picture",
                    "json": {"url": f"http://example.com/{i}.jpg"},
                }
            )


def headers(path: Path) -> int:
    with path.open("rb", buffering=1 << 20) as stream:
        walk = TarWalk(stream, str(path), lambda: path.open("rb"))
        return sum(1 for _ in walk) // 3


def source(path: Path) -> int:
    shards = WebDataset(path=str(path))
    return sum(batch.num_rows for file in shards.files() for batch in shards.read(file))


def tarfile_members(path: Path) -> int:
    with tarfile.open(path, "r|") as archive:
        return sum(1 for info in archive if archive.extractfile(info).read()) // 3


def webdataset_samples(path: Path) -> int:
    return sum(1 for _ in group_by_keys(tar_file_expander(url_opener([{"url": str(path)}]))))


def rate(run: Callable[[Path], int], path: Path, samples: int, repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        assert run(path) == samples
        best = min(best, time.perf_counter() - start)
    return samples / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--image-bytes", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.tar"
        write_shard(path, arguments.samples, arguments.image_bytes)
        runs = {
            "header walk (reads all, no digest)": headers,
            "winnow source (digests, rows)": source,
            "tarfile (reads members)": tarfile_members,
            "webdataset (groups samples)": webdataset_samples,
        }
        rates = {
            name: rate(run, path, arguments.samples, arguments.repeats)
            for name, run in runs.items()
        }
    base = rates["webdataset (groups samples)"]
    for name, value in rates.items():
        print(f"{name:36} {value:10,.0f} samples/s   {value / base:5.2f} x webdataset")


if __name__ == "__main__":
    main()
