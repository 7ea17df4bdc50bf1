"""near_duplicates at scale: seconds, memory, a check that nothing is missed, and its peers.

    python benchmarks/near_duplicates.py --rows 1000000 --peer-rows 100000

The pool is synthetic: random 64-bit hashes and thumbnails, of which 2 % are edits of an earlier row
(up to ``distance`` bits, thumbnail noise), 1 % one placeholder image, 1 % solid colours that share
one hash. Peers, each where it can be imported: imagededup (BK-tree; its compiled brute force) and
faiss's IndexBinaryMultiHash, which is exact with these settings. Both search hashes only, so the
ratio is to the hash search of this stage, in the same process on the same hashes.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from winnow.contracts.stage import GlobalInputs, GlobalOutputs, ShardRef
from winnow.stages.dedupe import _hamming
from winnow.stages.dedupe._columns import fixed_binary
from winnow.stages.dedupe._verify import thumbnail_difference
from winnow.stages.dedupe.near_duplicates import NearDuplicates

PLACEHOLDER_HASH, FLAT_HASH = 0x123456789ABCDEF0, 0x8000000000000000


class Pool(GlobalInputs):
    """Shards made on demand from their number, so that the pool itself takes no memory."""

    def __init__(self, rows: int, rows_per_shard: int, distance: int, scratch: Path) -> None:
        counts = [min(rows_per_shard, rows - i) for i in range(0, rows, rows_per_shard)]
        self.shards = tuple(ShardRef(id=str(i), num_rows=n) for i, n in enumerate(counts))
        self.scratch, self._distance = scratch, distance

    def table(self, shard: ShardRef) -> pa.Table:
        uids, hashes, thumbnails, detail = self.columns(shard)
        return pa.table(
            {
                "uid": fixed_binary(uids),
                "phash": pa.array(hashes),
                "thumbnail": fixed_binary(thumbnails),
                "image_detail": pa.array(detail),
            }
        )

    def columns(self, shard: ShardRef) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return uids, hashes, thumbnails, detail. Row i of the edits edits row i of the shard."""
        rng, n = np.random.default_rng(int(shard.id)), shard.num_rows
        uids = rng.integers(0, 256, (n, 16), np.uint8)
        hashes = rng.integers(0, 2**64, n, np.uint64)
        thumbnails = rng.integers(0, 256, (n, 192), np.uint8)
        detail = np.full(n, 50, np.float32)
        few = n // 100
        edits = slice(n - 4 * few, n - 2 * few)
        bits = rng.integers(0, 64, (2 * few, self._distance), np.uint64)
        hashes[edits] = hashes[: 2 * few]
        for column in range(self._distance):
            hashes[edits] ^= np.uint64(1) << bits[:, column]
        noise = rng.integers(-8, 9, (2 * few, 192))
        thumbnails[edits] = (thumbnails[: 2 * few] + noise).clip(0, 255)
        copies, flat = slice(n - 2 * few, n - few), slice(n - few, n)
        hashes[copies], thumbnails[copies] = PLACEHOLDER_HASH, 77
        hashes[flat], detail[flat] = FLAT_HASH, 0
        thumbnails[flat] = np.tile(rng.integers(0, 256, (few, 3), np.uint8), 64)
        return uids, hashes, thumbnails, detail


class Lists(GlobalOutputs):
    """Keeps the neighbours of the rows that are checked."""

    def __init__(self, watched: set[bytes]) -> None:
        self._watched = watched
        self.found: dict[bytes, set[bytes]] = {}
        self.entries = 0
        self.order: list[bytes] = []

    def attach(self, pool: Pool) -> None:
        self._pool = pool

    def write(self, shard: ShardRef, columns: pa.Table) -> None:
        uids = self._pool.columns(shard)[0]
        self.entries += sum(len(c.values) for c in columns["near_duplicates"].chunks)
        names = [u.tobytes() for u in uids]
        wanted = [i for i, name in enumerate(names) if name in self._watched]
        lists = columns["near_duplicates"].take(pa.array(wanted, pa.int64())).to_pylist()
        self.found |= {names[i]: set(found) for i, found in zip(wanted, lists, strict=True)}


def sample_and_truth(
    pool: Pool, stage: NearDuplicates, size: int
) -> tuple[dict[bytes, set[bytes]], int]:
    """Return the true neighbours of ``size`` edited rows by brute force, and the planted pairs."""
    uids, hashes, thumbnails, detail = (
        np.concatenate(column)
        for column in zip(*(pool.columns(s) for s in pool.shards), strict=True)
    )
    first = pool.columns(pool.shards[0])
    few = len(first[0]) // 100
    picked = np.arange(len(first[0]) - 4 * few, len(first[0]) - 2 * few)[:size]
    truth: dict[bytes, set[bytes]] = {}
    for i in picked:
        near = np.flatnonzero(_hamming.popcount(hashes ^ hashes[i]) <= stage.distance)
        low = (detail[near] < stage.min_detail) | (detail[i] < stage.min_detail)
        limit = np.where(low, stage.flat_thumbnail_distance, stage.thumbnail_distance) * 192
        gain = np.where(low, 1.0, stage.max_gain)
        repeated = np.repeat(thumbnails[i : i + 1], len(near), axis=0)
        close = near[thumbnail_difference(thumbnails[near], repeated, gain) <= limit]
        truth[uids[i].tobytes()] = {uids[j].tobytes() for j in close if j != i}
    return truth, sum(len(t) for t in truth.values())


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_stage(args: argparse.Namespace, scratch: Path) -> None:
    stage = NearDuplicates(distance=args.distance, num_threads=args.threads)
    pool = Pool(args.rows, 50_000, args.distance, scratch)
    first = pool.columns(pool.shards[0])[0]
    few = len(first) // 100
    watched = {u.tobytes() for u in first[len(first) - 4 * few : len(first) - 2 * few][:200]}
    outputs = Lists(watched)
    outputs.attach(pool)
    before, start = peak_mb(), time.perf_counter()
    counters = stage.compute(pool, outputs)
    seconds, after = time.perf_counter() - start, peak_mb()
    print(
        f"{args.rows:,} rows, distance {args.distance}: {seconds:.1f} s, the pool's making included"
    )
    print(f"peak memory {after:.0f} MB ({before:.0f} MB before)")
    print(", ".join(f"{k} {v:,}" for k, v in counters.items()) + f", entries {outputs.entries:,}")
    truth, num_pairs = sample_and_truth(pool, stage, 200)
    missed = sum(len(names - outputs.found[name]) for name, names in truth.items())
    extra = sum(len(outputs.found[name] - names) for name, names in truth.items())
    print(f"brute force over {len(truth)} rows: {num_pairs} pairs, {missed} missed, {extra} false")


def imagededup_peer(method: str) -> Callable[[np.ndarray, int], int]:
    def search(hashes: np.ndarray, distance: int) -> int:
        from imagededup.methods import PHash

        encodings = {f"{i:09d}.png": f"{h:016x}" for i, h in enumerate(hashes.tolist())}
        found: Mapping[str, list[Any]] = PHash(verbose=False).find_duplicates(
            encoding_map=encodings,
            max_distance_threshold=distance,
            search_method=method,
            num_dist_workers=2,
        )
        return sum(len(names) for names in found.values()) // 2

    return search


def faiss_peer(hashes: np.ndarray, distance: int) -> int:
    """4 tables of 16 bits, each probed within distance // 4 bits: exact by the pigeonhole."""
    import faiss

    octets = hashes.view(np.uint8).reshape(-1, 8)
    index = faiss.IndexBinaryMultiHash(64, 4, 16)
    index.nflip = distance // 4
    index.add(octets)
    bounds, _, labels = index.range_search(octets, distance + 1)
    own = np.repeat(np.arange(len(hashes)), np.diff(bounds.astype(np.int64)))
    return int((labels > own).sum())


def run_peers(args: argparse.Namespace, scratch: Path) -> None:
    pool = Pool(args.peer_rows, 50_000, args.distance, scratch)
    hashes = np.unique(np.concatenate([pool.columns(s)[1] for s in pool.shards]))
    few = hashes[: args.imagededup_rows]
    for method in ("bktree", "brute_force_cython"):
        compare(args, "imagededup", method, imagededup_peer(method), few)
    compare(args, "faiss", "IndexBinaryMultiHash", faiss_peer, hashes)


def compare(
    args: argparse.Namespace,
    module: str,
    method: str,
    search: Callable[[np.ndarray, int], int],
    hashes: np.ndarray,
) -> None:
    if importlib.util.find_spec(module) is None:
        print(f"{module} {method}: not installed")
        return
    start = time.perf_counter()
    plan = _hamming.make_plan(len(hashes), 64, args.distance)
    words = hashes.reshape(-1, 1)
    pairs = _hamming.pairs_within(words, args.distance, plan, num_threads=args.threads)
    own = time.perf_counter() - start
    start = time.perf_counter()
    found = search(hashes, args.distance)
    seconds = time.perf_counter() - start
    print(
        f"{len(hashes):,} hashes: {module} {method} {seconds:.2f} s, {found} pairs; "
        f"this stage's search {own:.3f} s, {len(pairs[0])} pairs: ratio {seconds / own:.1f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--peer-rows", type=int, default=100_000)
    parser.add_argument("--imagededup-rows", type=int, default=1_000)
    parser.add_argument("--distance", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.rows:
            run_stage(args, Path(folder))
        if args.peer_rows:
            run_peers(args, Path(folder))


if __name__ == "__main__":
    main()
