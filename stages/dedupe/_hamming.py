"""Exact all-pairs Hamming search over distinct binary hashes: no pair within it is missed.

Multi-index search after Norouzi, Punjani and Fleet, "Fast Exact Search in Hamming Space with
Multi-Index Hashing" (2012): the bits are cut into chunks i with radii r_i, sum(r_i + 1) = d + 1.
Two hashes within d then lie within r_i of each other in some chunk i, or the differences would add
up to at least sum(r_i + 1) > d. Per chunk, rows are bucketed by the chunk's value in a table that
is addressed directly, and all pairs of buckets that differ by at most r_i bits are compared.

The number of comparisons is counted exactly before any is made: ``count_comparisons``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
"""(N, W): N hashes of W words; bit b of a hash is bit b % 64 of word b // 64."""
Indices = npt.NDArray[np.int64]
Pairs = tuple[Indices, Indices, npt.NDArray[np.uint8]]
"""left < right as row numbers, and their Hamming distance."""

MAX_CHUNK_BITS = 24
_BLOCK = 1 << 19
# Nanoseconds on one core, measured; they only steer the choice of a plan.
_NS_LOOKUP, _NS_CANDIDATE, _NS_TABLE, _NS_BRUTE, _NS_MASK = 4.0, 25.0, 1.5, 1.5, 1e5


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Bits ``first`` to ``first + width`` of every hash, searched within ``radius`` bits."""

    first: int
    width: int
    radius: int

    def num_masks(self) -> int:
        """Number of differences of at most ``radius`` bits, zero included."""
        return sum(math.comb(self.width, r) for r in range(self.radius + 1))


@dataclass(frozen=True, slots=True)
class Plan:
    """Chunks to search; none means comparing all pairs, which is faster for few hashes."""

    chunks: tuple[Chunk, ...] = ()


class TooManyPairsError(Exception):
    """More pairs lie within the distance than the caller allows."""


def make_plan(num_hashes: int, num_bits: int, distance: int) -> Plan:
    """Return the plan with the least expected cost for evenly spread hashes."""
    best = Plan()
    best_ns = num_hashes**2 / 2 * _NS_BRUTE * num_bits / 64
    for num_chunks in range(-(-num_bits // MAX_CHUNK_BITS), distance + 2):
        chunks = cut(num_bits, distance, num_chunks)
        ns = sum(_expected_ns(chunk, num_hashes) for chunk in chunks)
        if ns < best_ns:
            best, best_ns = Plan(chunks), ns
    return best


def cut(num_bits: int, distance: int, num_chunks: int) -> tuple[Chunk, ...]:
    """Return ``num_chunks`` near-equal chunks whose radii satisfy the pigeonhole bound tightly."""
    if not num_bits / MAX_CHUNK_BITS <= num_chunks <= min(distance + 1, num_bits):
        msg = f"{num_bits} bits within {distance} cannot be cut into {num_chunks} chunks"
        raise ValueError(msg)
    width, wider = divmod(num_bits, num_chunks)
    radius, larger = divmod(distance + 1 - num_chunks, num_chunks)
    widths = [width + (i < wider) for i in range(num_chunks)]
    firsts = itertools.accumulate(widths, initial=0)
    return tuple(
        Chunk(first=first, width=w, radius=min(radius + (i < larger), w))
        for i, (first, w) in enumerate(zip(firsts, widths, strict=False))
    )


def _expected_ns(chunk: Chunk, num_hashes: int) -> float:
    masks, size = chunk.num_masks(), 2**chunk.width
    filled = size * -math.expm1(-num_hashes / size)
    lookups, candidates = filled * masks / 2, num_hashes**2 * masks / 2 / size
    tables = size * chunk.width * (chunk.radius + 1)
    return lookups * _NS_LOOKUP + candidates * _NS_CANDIDATE + tables * _NS_TABLE + masks * _NS_MASK


def count_comparisons(hashes_NW: Words, plan: Plan) -> int:
    """Return exactly how many table lookups and hash comparisons ``pairs_within`` will make."""
    if not plan.chunks:
        return len(hashes_NW) * (len(hashes_NW) - 1) // 2
    total = 0
    for chunk in plan.chunks:
        counts = np.bincount(chunk_values(hashes_NW, chunk), minlength=2**chunk.width)
        total += int(counts @ _ball_counts(counts, chunk)) - len(hashes_NW)
        total += int(np.count_nonzero(counts)) * chunk.num_masks()
    return total // 2


def _ball_counts(counts: Indices, chunk: Chunk) -> Indices:
    """Return for every chunk value the number of hashes within the chunk's radius of it.

    within[r] after bit b = hashes that differ in at most r of the bits up to b, and in no other.
    """
    within = [counts.copy() for _ in range(chunk.radius + 1)]
    for bit in range(chunk.width):
        for radius in range(chunk.radius, 0, -1):
            closer = within[radius - 1].reshape(-1, 2, 2**bit)
            within[radius].reshape(-1, 2, 2**bit)[:] += closer[:, ::-1]
    return within[-1]


def chunk_values(hashes_NW: Words, chunk: Chunk) -> Indices:
    """Return the bits of a chunk as one integer per hash."""
    word, shift = divmod(chunk.first, 64)
    values = hashes_NW[:, word] >> np.uint64(shift)
    if shift + chunk.width > 64:
        values |= hashes_NW[:, word + 1] << np.uint64(64 - shift)
    return (values & np.uint64(2**chunk.width - 1)).astype(np.int64)


def popcount(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """Return the number of set bits of every word."""
    if hasattr(np, "bitwise_count"):
        return np.bitwise_count(words)
    octets = np.ascontiguousarray(words).view(np.uint8).reshape(*words.shape, 8)
    return _OCTET_BITS[octets].sum(axis=-1, dtype=np.uint8)  # numpy 1.x: six times slower


_OCTET_BITS = np.array([bin(i).count("1") for i in range(256)], dtype=np.uint8)


def hamming(left_NW: Words, right_NW: Words) -> npt.NDArray[np.uint8]:
    """Return the distances of rows, or of all rows that broadcast; at most 255 of 256 bits."""
    distance = popcount(left_NW[..., 0] ^ right_NW[..., 0]).astype(np.uint16)
    for word in range(1, left_NW.shape[-1]):
        distance += popcount(left_NW[..., word] ^ right_NW[..., word])
    return np.minimum(distance, 255).astype(np.uint8)


def pairs_within(
    hashes_NW: Words,
    distance: int,
    plan: Plan,
    *,
    max_pairs: int = 2**62,
    num_threads: int = 1,
) -> Pairs:
    """Return every pair of rows within ``distance``, once, sorted by (left, right).

    Raises TooManyPairsError as soon as there are more than ``max_pairs``.
    """
    found: list[Pairs] = []
    total = 0
    for block in _all_blocks(np.ascontiguousarray(hashes_NW), distance, plan, num_threads):
        found.append(block)
        total += len(block[0])
        if total > max_pairs:
            raise TooManyPairsError
    if not found:
        return _no_pairs()
    left, right, distances = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((right, left))
    return left[order], right[order], distances[order]


def _no_pairs() -> Pairs:
    return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8)


def _all_blocks(hashes_NW: Words, distance: int, plan: Plan, num_threads: int) -> Iterator[Pairs]:
    if not plan.chunks:
        yield from _brute_force(hashes_NW, distance)
    with ThreadPoolExecutor(num_threads) as pool:
        for number in range(len(plan.chunks)):
            index = _ChunkIndex(hashes_NW, distance, plan.chunks[: number + 1])
            for blocks in pool.map(index.search, *zip(*index.tasks(), strict=True)):
                yield from blocks


def _brute_force(hashes_NW: Words, distance: int) -> Iterator[Pairs]:
    rows, columns = 256, 1024
    for i in range(0, len(hashes_NW), rows):
        for j in range(i, len(hashes_NW), columns):
            distances = hamming(hashes_NW[i : i + rows, None], hashes_NW[None, j : j + columns])
            left, right = np.nonzero(distances <= distance)
            later = left + i < right + j
            left, right = left[later], right[later]
            yield left + i, right + j, distances[left, right]


class _ChunkIndex:
    """The last chunk of ``chunks`` as a table of buckets; the earlier ones have been searched."""

    def __init__(self, hashes_NW: Words, distance: int, chunks: Sequence[Chunk]) -> None:
        self.distance, self.earlier, self.chunk = distance, chunks[:-1], chunks[-1]
        values = chunk_values(hashes_NW, self.chunk)
        self.order = np.argsort(values, kind="stable")
        self.hashes_NW = hashes_NW[self.order]
        counts = np.bincount(values, minlength=2**self.chunk.width)
        self.starts = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=self.starts[1:])
        self.filled = counts > 0
        self.buckets = np.flatnonzero(self.filled)

    def tasks(self) -> Iterator[tuple[Indices, list[int]]]:
        """Yield (buckets, masks): each mask maps each bucket to one that comes later, or itself."""
        yield self.buckets, [0]
        for top in range(self.chunk.width):
            below = self.buckets[(self.buckets >> top) & 1 == 0]
            masks = [
                sum(1 << bit for bit in bits) | (1 << top)
                for more in range(self.chunk.radius)
                for bits in itertools.combinations(range(top), more)
            ]
            for i in range(0, len(masks), 16):
                yield below, masks[i : i + 16]

    def search(self, buckets: Indices, masks: Sequence[int]) -> list[Pairs]:
        """Return the pairs between the buckets and the buckets that differ by one of the masks."""
        found: list[Pairs] = []
        for mask in masks:
            partners = buckets ^ mask
            here = np.flatnonzero(self.filled[partners])
            rows, lows, highs = self._ranges(buckets[here], partners[here], mask == 0)
            found += [b for b in self._compare(rows, lows, highs) if len(b[0])]
        return found

    def _ranges(
        self, left: Indices, right: Indices, same: bool
    ) -> tuple[Indices, Indices, Indices]:
        """Return every row of the left buckets with the range of rows to compare it with."""
        num_rows = self.starts[left + 1] - self.starts[left]
        rows = expand(self.starts[left], num_rows)
        highs = np.repeat(self.starts[right + 1], num_rows)
        lows = rows + 1 if same else np.repeat(self.starts[right], num_rows)
        return rows, lows, highs

    def _compare(self, rows: Indices, lows: Indices, highs: Indices) -> Iterator[Pairs]:
        for part in split_ranges(highs - lows, _BLOCK):
            counts = highs[part] - lows[part]
            right = expand(lows[part], counts)
            left_NW = np.repeat(self.hashes_NW[rows[part]], counts, axis=0)
            distances = hamming(left_NW, self.hashes_NW[right])
            hits = np.flatnonzero(distances <= self.distance)
            left = rows[part][np.searchsorted(np.cumsum(counts), hits, side="right")]
            yield self._new(left, right[hits], distances[hits])

    def _new(self, left: Indices, right: Indices, distances: npt.NDArray[np.uint8]) -> Pairs:
        """Return the pairs that no earlier chunk has found, as ordered row numbers."""
        difference_NW = self.hashes_NW[left] ^ self.hashes_NW[right]
        new = np.ones(len(left), bool)
        for chunk in self.earlier:
            bits = chunk_values(difference_NW, chunk).astype(np.uint64)
            new &= popcount(bits) > chunk.radius
        a, b = self.order[left[new]], self.order[right[new]]
        return np.minimum(a, b), np.maximum(a, b), distances[new]


def expand(starts: Indices, counts: Indices) -> Indices:
    """Return the ranges [start, start + count) one after the other."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - ends + counts, counts) + np.arange(total)


def split_ranges(counts: Indices, limit: int) -> Iterator[slice]:
    """Cut items into slices whose counts add up to at most ``limit`` (or hold one item)."""
    ends = np.cumsum(counts)
    first = 0
    while first < len(counts):
        before = int(ends[first - 1]) if first else 0
        last = int(np.searchsorted(ends, before + limit, side="right"))
        last = max(last, first + 1)
        yield slice(first, last)
        first = last
