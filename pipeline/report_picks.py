"""Bounded samples of a stream of rows: nearest to a threshold, at random, whole clusters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa

MAX_CLUSTERS = 2000
"""Clusters that are counted: a random sample of them where there are more."""
SHOWN_CLUSTERS = 12


class Place(NamedTuple):
    """Where a row is: number of its shard in the selection, position in the shard."""

    shard: int
    position: int


class Picks:
    """The ``size`` rows with the least distance; equal distances in order of the rows' hash.

    Rows with the same uid have the same hash and count once. Without distances: a random sample.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._best: list[tuple[float, int, Place]] = []

    @property
    def places(self) -> list[Place]:
        """The rows, nearest first."""
        return [place for _, _, place in self._best]

    def add(
        self,
        shard: int,
        positions: np.ndarray,
        hashes: np.ndarray,
        distances: np.ndarray | None = None,
    ) -> None:
        """Offer rows of one shard."""
        if distances is None:
            distances = np.zeros(len(positions))
        if len(self._best) == self._size:
            worst, key, _ = self._best[-1]
            near = (distances < worst) | ((distances == worst) & (hashes < np.uint64(key)))
            positions, hashes, distances = positions[near], hashes[near], distances[near]
        order = np.lexsort((positions, hashes, distances))
        same = (np.diff(hashes[order]) == 0) & (np.diff(distances[order]) == 0)
        order = order[np.concatenate([[True], ~same])[: len(order)]][: self._size]
        found = [
            (distance, key, Place(shard, position))
            for distance, key, position in zip(
                distances[order].tolist(),
                hashes[order].tolist(),
                positions[order].tolist(),
                strict=True,
            )
        ]
        merged = sorted([*self._best, *found])
        distinct = {entry[:2]: entry for entry in reversed(merged)}
        self._best = sorted(distinct.values())[: self._size]


@dataclass(slots=True)
class Cluster:
    """A kept row and the rows that were dropped for it; ``members``: the first few of them."""

    uid: bytes
    key: int
    size: int = 0
    members: list[Place] = field(default_factory=list)
    kept: Place | None = None


@dataclass(slots=True)
class ClusterSample:
    """Counts clusters of duplicates: all of them, or a random sample where there are many.

    A cluster is sampled by a hash of its kept row's uid, so all of its rows are in or out.
    """

    num_members: int
    num_rows: int = 0
    sampled: bool = False
    clusters: dict[bytes, Cluster] = field(default_factory=dict)
    shown: list[Cluster] = field(default_factory=list)
    _limit: int = 2**64 - 1

    def add(self, shard: int, duplicate_of: pa.Array) -> None:
        """Count the rows of one shard that were dropped for a kept row."""
        valid = np.flatnonzero(np.asarray(duplicate_of.is_valid()))
        self.num_rows += len(valid)
        keys = mix(uid_words(duplicate_of.take(pa.array(valid)))[:, 0], 0)
        inside = keys <= np.uint64(self._limit)
        valid, keys = valid[inside], keys[inside]
        uids = duplicate_of.take(pa.array(valid)).to_pylist()
        for uid, key, position in zip(uids, keys.tolist(), valid.tolist(), strict=True):
            cluster = self.clusters.setdefault(uid, Cluster(uid, key))
            cluster.size += 1
            if len(cluster.members) < self.num_members:
                cluster.members.append(Place(shard, position))
        if len(self.clusters) > MAX_CLUSTERS:
            self.sampled = True
            left = sorted(self.clusters.values(), key=lambda c: (c.key, c.uid))[:MAX_CLUSTERS]
            self.clusters = {c.uid: c for c in left}
            self._limit = left[-1].key

    def choose(self) -> None:
        """Choose what to show: the largest half, and others at random."""
        by_size = sorted(self.clusters.values(), key=lambda c: (-c.size, c.key))
        half = SHOWN_CLUSTERS // 2
        others = sorted(by_size[half:], key=lambda c: c.key)[: SHOWN_CLUSTERS - half]
        self.shown = [*by_size[:half], *others]

    def find_kept(self, shard: int, uids: pa.ChunkedArray, kept: np.ndarray) -> None:
        """Look for the kept rows of the clusters that are shown among the rows of one shard."""
        wanted = {c.uid: c for c in self.shown if c.kept is None}
        if not wanted:
            return
        low = np.frombuffer(b"".join(uid[:8] for uid in wanted), "<u8")
        for position in np.flatnonzero(np.isin(uid_words(uids)[:, 0], low) & kept).tolist():
            cluster = wanted.get(uids[position].as_py())
            if cluster is not None and cluster.kept is None:
                cluster.kept = Place(shard, position)


def uid_words(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Return a fixed_size_binary(16) column without nulls as (n, 2) uint64."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if len(array) == 0:
        return np.zeros((0, 2), np.uint64)
    words = np.frombuffer(array.buffers()[1], "<u8", 2 * len(array), 16 * array.offset)
    return words.reshape(-1, 2)


def mix(words: np.ndarray, seed: int) -> np.ndarray:
    """Return a seeded hash of 64-bit words (the finaliser of splitmix64; Steele et al., 2014)."""
    with np.errstate(over="ignore"):
        z = words ^ np.uint64(seed)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)), np.uint64)
