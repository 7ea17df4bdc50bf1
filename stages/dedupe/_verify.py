"""The second signal: of images whose hashes are close, those whose thumbnails are close too.

A *signature* is what the comparison sees of an image: its hash, whether it has low information, and
its 8x8 RGB thumbnail. Images of one signature are neighbours of each other and of the same others,
so each signature is compared once, however many images have it. Recordings go through the same
join with another comparison (``_verify_audio.py``).

Thousands of flat images may share a hash. Their pairs are not enumerated: two thumbnails can only
be close if their sums are (``Closeness.window``), so a window in the order of sums holds every
partner, and the sums per channel refuse most of what is in the window. Nothing is missed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from winnow.stages.dedupe._hamming import Indices, Pairs, expand, split_ranges

THUMBNAIL_BYTES = 192
_CHANNEL_BYTES = THUMBNAIL_BYTES // 3
_SUM_BITS = 16
_BLOCK = 1 << 16
Octets = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]


class Comparison(Protocol):
    """When two thumbnails are close; ``sums`` are what is known of a thumbnail without reading it.

    Their total over a row has 16 bits; what is close to it lies in a window of totals.
    """

    @property
    def first_sum_slack(self) -> int:
        """How far the first sums of two close thumbnails of low information can be apart."""
        ...

    @property
    def weight(self) -> int:
        """Comparisons that one pair counts for."""
        ...

    def bad_parameters(self, min_detail: float) -> Iterator[tuple[str, str]]:
        """Yield stages' parameters that cannot be meant, and what is allowed."""
        ...

    def window(self, sums: Indices, low: Flags) -> tuple[Indices, Indices]:
        """Return the least and the largest total that the sums of a partner can have."""
        ...

    def possible(self, a_NS: Indices, b_NS: Indices, low: Flags) -> Flags:  # noqa: N803
        """Return which pairs can be close, from their sums; never a false no."""
        ...

    def close(self, a_NT: Octets, b_NT: Octets, low: Flags) -> Flags:  # noqa: N803
        """Return which pairs are close."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Closeness:
    """When two 8x8 RGB thumbnails are close.

    The darker one is first brightened to the mean of the other, by at most ``max_gain``; then their
    mean absolute difference is at most ``detailed`` levels of 0 to 255. Where either image has low
    information nothing is brightened, and the difference is at most ``flat``.
    """

    detailed: float
    flat: float
    max_gain: float

    def bad_parameters(self, min_detail: float) -> Iterator[tuple[str, str]]:
        """Yield stages' parameters that cannot be meant, and what is allowed."""
        if not 0 <= self.detailed <= 255:
            yield "thumbnail_distance", "0 to 255 levels"
        if not 0 <= self.flat <= self.detailed:
            yield "flat_thumbnail_distance", "0 to thumbnail_distance levels"
        if not 1 <= self.max_gain <= 4:
            yield "max_gain", "1 (brightness counts) to 4"
        if not 0 <= min_detail < float("inf"):
            yield "min_detail", "at least 0 grey levels"

    @property
    def first_sum_slack(self) -> int:
        """How far the red sums of two close thumbnails of low information can be apart."""
        return int(self.flat * THUMBNAIL_BYTES)

    @property
    def weight(self) -> int:
        """Comparisons that one pair counts for."""
        return 1

    def allowed(self, low: Flags) -> Indices:
        """Return the largest sum of absolute differences."""
        return np.where(low, int(self.flat * THUMBNAIL_BYTES), int(self.detailed * THUMBNAIL_BYTES))

    def gain(self, low: Flags) -> npt.NDArray[np.float64]:
        """Return the largest gain."""
        return np.where(low, 1.0, self.max_gain)

    def window(self, sums: Indices, low: Flags) -> tuple[Indices, Indices]:
        """Return the least and the largest sum that the thumbnail of a partner can have.

        A brightened thumbnail sums to at most gain * sum + 1/2 per value, and the difference of two
        sums is at most the sum of the differences.
        """
        slack = self.allowed(low) + np.where(low, 0, THUMBNAIL_BYTES // 2)
        gain = self.gain(low)
        least = np.floor((sums - slack) / gain).astype(np.int64) - 1
        largest = np.ceil(sums * gain).astype(np.int64) + slack + 1
        return np.clip(least, 0, None), np.clip(largest, 0, 2**_SUM_BITS - 1)

    def possible(self, a_N3: Indices, b_N3: Indices, low: Flags) -> Flags:
        """Return which pairs can be close, from the sums per channel; never a false no."""
        darker, brighter = _by_brightness(a_N3, b_N3)
        gain = _gain(darker, brighter, self.gain(low))
        excess = brighter - darker * gain[:, None]
        rounding = _CHANNEL_BYTES / 2 * (gain > 1)
        # Brightening can clip at 255, so channels that end up too bright say nothing there.
        under = np.maximum(excess - rounding[:, None], 0).sum(axis=1)
        over = np.where(gain == 1, np.maximum(-excess, 0).sum(axis=1), 0)
        return under + over <= self.allowed(low) + 1e-6

    def close(self, a_NT: Octets, b_NT: Octets, low: Flags) -> Flags:
        """Return which pairs are close."""
        return thumbnail_difference(a_NT, b_NT, self.gain(low)) <= self.allowed(low)


def thumbnail_difference(a_NT: Octets, b_NT: Octets, max_gain: npt.NDArray[np.float64]) -> Indices:
    """Return the sums of absolute differences after brightening the darker thumbnail."""
    darker, brighter = _by_brightness(a_NT.astype(np.int64), b_NT.astype(np.int64))
    gain = _gain(darker, brighter, max_gain)
    brightened = np.minimum(np.rint(darker * gain[:, None]), 255).astype(np.int64)
    return np.abs(brightened - brighter).sum(axis=1)


def _by_brightness(a: Indices, b: Indices) -> tuple[Indices, Indices]:
    swap = (a.sum(axis=1) > b.sum(axis=1))[:, None]
    return np.where(swap, b, a), np.where(swap, a, b)


def _gain(
    darker: Indices, brighter: Indices, largest: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    return np.minimum(brighter.sum(axis=1) / np.maximum(darker.sum(axis=1), 1), largest)


@dataclass(frozen=True, kw_only=True, slots=True)
class Items:
    """What is known of every image that takes part; a row is an item.

    hash_ids: number of the distinct hash, from 0 without gaps.  low: low information.
    sums: (N, 3), of the thumbnail's three channels; of a recording (N, 1), see ``_verify_audio``.
    thumbnail_rows: where in ``thumbnails`` it is, which is a file mapped into memory, (rows, 192)
    bytes, (rows, 572) of recordings.
    """

    hash_ids: Indices
    low: Flags
    sums: npt.NDArray[np.uint16]
    thumbnail_rows: Indices
    thumbnails: Octets

    def thumbnails_of(self, items: Indices) -> Octets:
        """Return the thumbnails of some items."""
        return self.thumbnails[self.thumbnail_rows[items]]


def map_thumbnails(file: Path, num_rows: int, num_bytes: int = THUMBNAIL_BYTES) -> Octets:
    """Return a file of thumbnails of ``num_bytes`` each, mapped into memory."""
    if not num_rows:
        return np.empty((0, num_bytes), np.uint8)
    return np.memmap(file, np.uint8, mode="r", shape=(num_rows, num_bytes))


def least_with_same_signature(items: Items) -> Indices:
    """Return for every item the least item with the same hash, information flag and thumbnail."""
    columns = (items.hash_ids, items.low, *items.sums.T)
    order = np.lexsort(columns[::-1])
    least = np.arange(len(order))
    new = np.zeros(len(order), bool)
    new[:1] = True
    for column in columns:
        new[1:] |= column[order[1:]] != column[order[:-1]]
    starts = np.flatnonzero(new)
    sizes = np.diff(starts, append=len(order))
    # Most items differ in these columns already; only the others need their thumbnails compared.
    starts, sizes = starts[sizes > 1], sizes[sizes > 1]
    for part in split_ranges(sizes, _BLOCK):
        members = order[expand(starts[part], sizes[part])]
        runs = np.repeat(np.arange(len(sizes[part])), sizes[part])
        least[members] = _least_equal(members, runs, items.thumbnails_of(members))
    return least


def _least_equal(members: Indices, runs: Indices, thumbnails: Octets) -> Indices:
    """Return for every member the least member of its run with the same thumbnail."""
    strings = np.ascontiguousarray(thumbnails).view(f"S{thumbnails.shape[1]}")[:, 0]
    order = np.lexsort((members, strings, runs))
    new = np.ones(len(order), bool)
    same_run = runs[order[1:]] == runs[order[:-1]]
    new[1:] = ~same_run | (thumbnails[order[1:]] != thumbnails[order[:-1]]).any(axis=1)
    least = np.empty_like(members)
    least[order] = members[order[new]][np.cumsum(new) - 1]
    return least


class ThumbnailJoin:
    """Finds all pairs of signatures whose hashes are paired and whose thumbnails are close."""

    def __init__(self, items: Items, signatures: Indices, closeness: Comparison) -> None:
        """``signatures``: one item per signature, ascending."""
        self._all, self._closeness = items, closeness
        sums = items.sums[signatures].sum(axis=1, dtype=np.int64)
        group = items.hash_ids[signatures] * 2 + items.low[signatures]
        key = (group << _SUM_BITS) + sums
        order = np.argsort(key, kind="stable")
        self._items, self._key = signatures[order], key[order]
        self._low = (self._key >> _SUM_BITS & 1).astype(bool)
        self._sums_NS = items.sums[self._items].astype(np.int64)
        self._first = self._sums_NS[:, 0].astype(np.int32)
        num_hashes = int(items.hash_ids.max()) + 1 if len(signatures) else 0
        bounds = np.arange(num_hashes + 1, dtype=np.int64) << (_SUM_BITS + 1)
        self._starts = np.searchsorted(self._key, bounds)

    def ranges(self, hash_pairs: Pairs) -> Iterator[tuple[Indices, Indices, Indices, Octets]]:
        """Yield (position, low, high, distance): what to compare a signature with, in blocks.

        Positions are in the order of the join. All signatures of the left hash are compared with
        those of the right hash, and those of one hash with each other.
        """
        yield from self._ranges_within()
        left, right, distances = hash_pairs
        sizes = np.diff(self._starts)[left]
        for part in split_ranges(sizes, _BLOCK):
            here = expand(self._starts[left[part]], sizes[part])
            there = np.repeat(right[part], sizes[part])
            distance = np.repeat(distances[part], sizes[part])
            for target_low in (False, True):
                lows, highs = self._windows(here, there, target_low)
                yield here, lows, highs, distance

    def _ranges_within(self) -> Iterator[tuple[Indices, Indices, Indices, Octets]]:
        sizes = np.diff(self._starts)
        shared = np.flatnonzero(sizes > 1)
        for part in split_ranges(sizes[shared], _BLOCK):
            hashes = shared[part]
            here = expand(self._starts[hashes], sizes[hashes])
            own = np.repeat(hashes, sizes[hashes])
            for target_low in (False, True):
                lows, highs = self._windows(here, own, target_low)
                # Only forward: every pair once. A group of low information follows the other one.
                lows = np.maximum(lows, here + 1)
                yield here, lows, np.maximum(lows, highs), np.zeros(len(here), np.uint8)

    def _windows(self, here: Indices, hashes: Indices, target_low: bool) -> tuple[Indices, Indices]:
        low = self._low[here] | target_low
        least, largest = self._closeness.window(self._key[here] & (2**_SUM_BITS - 1), low)
        group = (hashes * 2 + target_low) << _SUM_BITS
        return (
            np.searchsorted(self._key, group + least, side="left"),
            np.searchsorted(self._key, group + largest, side="right"),
        )

    def count_comparisons(self, hash_pairs: Pairs) -> int:
        """Return exactly how many pairs of sums ``pairs`` will compare, times their weight."""
        compared = sum(int((highs - lows).sum()) for _, lows, highs, _ in self.ranges(hash_pairs))
        return compared * self._closeness.weight

    def pairs(self, hash_pairs: Pairs) -> Iterator[Pairs]:
        """Yield the verified pairs as items, with the distance of their hashes, in blocks."""
        for here, lows, highs, distances in self.ranges(hash_pairs):
            for part in split_ranges(highs - lows, _BLOCK):
                counts = highs[part] - lows[part]
                left = np.repeat(here[part], counts)
                right = expand(lows[part], counts)
                near = self._verify(left, right)
                yield (
                    self._items[left[near]],
                    self._items[right[near]],
                    np.repeat(distances[part], counts)[near],
                )

    def _verify(self, left: Indices, right: Indices) -> Indices:
        """Return which pairs are close; the cheapest test comes first, for there are many."""
        low = self._low[left] | self._low[right]
        apart = np.abs(self._first[left] - self._first[right])
        maybe = np.flatnonzero(~low | (apart <= self._closeness.first_sum_slack))
        left, right, low = left[maybe], right[maybe], low[maybe]
        possible = np.flatnonzero(
            self._closeness.possible(self._sums_NS[left], self._sums_NS[right], low)
        )
        a_NT = self._all.thumbnails_of(self._items[left[possible]])
        b_NT = self._all.thumbnails_of(self._items[right[possible]])
        return maybe[possible[self._closeness.close(a_NT, b_NT, low[possible])]]
