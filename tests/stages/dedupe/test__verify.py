"""Thumbnail verification against a loop over all pairs, and the bounds that let it skip pairs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.stages.dedupe._verify import (
    Closeness,
    Items,
    ThumbnailJoin,
    least_with_same_signature,
    thumbnail_difference,
)

CLOSENESS = Closeness(detailed=12.0, flat=2.0, max_gain=1.35)


def close(a: list[int], b: list[int], low: bool) -> bool:
    """The definition, in Python floats."""
    dark, bright = sorted((a, b), key=sum)
    gain = 1.0 if low else min(sum(bright) / max(sum(dark), 1), CLOSENESS.max_gain)
    difference = sum(abs(min(round(x * gain), 255) - y) for x, y in zip(dark, bright, strict=True))
    return difference / 192 <= (CLOSENESS.flat if low else CLOSENESS.detailed)


def thumbnails(seed: int, count: int) -> np.ndarray:
    """Few scenes, each at several brightnesses and noise levels; some exact copies."""
    rng = np.random.default_rng(seed)
    scenes = rng.integers(0, 256, (4, 192)) * rng.choice([0.1, 1.0], (4, 1))
    flat = rng.integers(0, 256, (2, 3))
    scenes = np.concatenate((scenes, np.tile(flat, 64)))
    gain = rng.choice([1.0, 1.0, 1.2, 1.34, 1.36, 1.6], (count, 1))
    noise = rng.normal(0, 1, (count, 192)) * rng.choice([0, 0, 1, 3, 14, 16], (count, 1))
    values = scenes[rng.integers(0, len(scenes), count)] * gain + noise
    return values.clip(0, 255).astype(np.uint8)


def items_of(pixels: np.ndarray, seed: int, num_hashes: int) -> Items:
    rng = np.random.default_rng(seed)
    count = len(pixels)
    _, hash_ids = np.unique(rng.integers(0, num_hashes, count), return_inverse=True)
    rows = rng.permutation(count)
    stored = np.empty_like(pixels)
    stored[rows] = pixels
    return Items(
        hash_ids=hash_ids.astype(np.int64),
        low=rng.random(count) < 0.4,
        sums=pixels.reshape(count, 64, 3).sum(axis=1, dtype=np.uint16),
        thumbnail_rows=rows,
        thumbnails=stored,
    )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 50), num_hashes=st.integers(1, 6))
def test_the_join_finds_exactly_the_close_pairs(seed: int, count: int, num_hashes: int) -> None:
    pixels = thumbnails(seed, count)
    items = items_of(pixels, seed, num_hashes)
    groups = least_with_same_signature(items)
    hashes, low, lists = items.hash_ids.tolist(), items.low.tolist(), pixels.tolist()
    signature = [(h, f, tuple(t)) for h, f, t in zip(hashes, low, lists, strict=True)]
    assert groups.tolist() == [signature.index(s) for s in signature]

    num_hashes = max(hashes) + 1
    all_pairs = list(itertools.combinations(range(num_hashes), 2))
    paired = all_pairs[seed % 2 :: 2]
    left, right = (np.array([p[i] for p in paired], np.int64) for i in (0, 1))
    distances = np.array([(a + b) % 7 + 1 for a, b in paired], np.uint8)
    join = ThumbnailJoin(items, np.unique(groups), CLOSENESS)
    found = set()
    for block in join.pairs((left, right, distances)):
        for a, b, distance in zip(*(c.tolist() for c in block), strict=True):
            assert (min(a, b), max(a, b)) not in {pair[:2] for pair in found}
            found.add((min(a, b), max(a, b), distance))

    expected = set()
    for a, b in itertools.combinations(sorted(set(groups.tolist())), 2):
        pair = (min(hashes[a], hashes[b]), max(hashes[a], hashes[b]))
        if pair[0] != pair[1] and pair not in paired:
            continue
        if close(lists[a], lists[b], low[a] or low[b]):
            expected.add((a, b, 0 if pair[0] == pair[1] else sum(pair) % 7 + 1))
    assert found == expected


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), low=st.booleans())
def test_the_bounds_never_refuse_a_close_pair(seed: int, low: bool) -> None:
    pixels = thumbnails(seed, 24)
    a, b = (np.array(side) for side in zip(*itertools.product(range(24), repeat=2), strict=True))
    flags = np.full(len(a), low)
    yes = CLOSENESS.close(pixels[a], pixels[b], flags)
    sums = pixels.reshape(24, 64, 3).sum(axis=1, dtype=np.int64)
    totals = sums.sum(axis=1)
    least, largest = CLOSENESS.window(totals[a], flags)
    assert yes.any()
    assert CLOSENESS.possible(sums[a], sums[b], flags)[yes].all()
    assert ((least <= totals[b]) & (totals[b] <= largest))[yes].all()


def test_brightness_is_compensated_up_to_the_largest_gain() -> None:
    rng = np.random.default_rng(0)
    dark = rng.integers(20, 120, (1, 192)).astype(np.uint8)
    bright = np.rint(dark * 1.3).astype(np.uint8)
    gain = np.array([1.35])
    assert thumbnail_difference(dark, bright, gain)[0] <= 96
    assert (
        thumbnail_difference(bright, dark, gain)[0] == thumbnail_difference(dark, bright, gain)[0]
    )
    assert thumbnail_difference(dark, bright, np.array([1.0]))[0] == int(
        np.abs(dark.astype(int) - bright).sum()
    )


@pytest.mark.parametrize("num_items", [0, 1])
def test_no_or_one_item(num_items: int) -> None:
    items = items_of(thumbnails(0, num_items), 0, 1)
    groups = least_with_same_signature(items)
    assert groups.tolist() == list(range(num_items))
    empty = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8))
    join = ThumbnailJoin(items, groups, CLOSENESS)
    assert sum(len(block[0]) for block in join.pairs(empty)) == 0
    assert join.count_comparisons(empty) == 0
