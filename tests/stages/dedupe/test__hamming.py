"""The multi-index search against comparing all pairs of Python integers."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.stages.dedupe import _hamming
from winnow.stages.dedupe._hamming import Chunk, Plan


def words(numbers: list[int], num_words: int) -> np.ndarray:
    raw = b"".join(n.to_bytes(8 * num_words, "little") for n in numbers)
    return np.frombuffer(raw, "<u8").astype(np.uint64).reshape(-1, num_words)


def naive(numbers: list[int], distance: int) -> list[tuple[int, int, int]]:
    found = []
    for (i, a), (j, b) in itertools.combinations(enumerate(numbers), 2):
        if (a ^ b).bit_count() <= distance:
            found.append((i, j, (a ^ b).bit_count()))
    return found


def clusters(seed: int, count: int, bits: int, distance: int) -> list[int]:
    """Distinct numbers, most of them up to distance + 2 bits from an earlier one."""
    chance = random.Random(seed)
    numbers = {chance.getrandbits(bits)}
    while len(numbers) < count:
        base = chance.choice(sorted(numbers)) if chance.random() < 0.8 else chance.getrandbits(bits)
        for bit in chance.sample(range(bits), chance.randint(0, min(distance + 2, bits))):
            base ^= 1 << bit
        numbers.add(base)
    return chance.sample(sorted(numbers), count)


def search(numbers: list[int], bits: int, distance: int, plan: Plan, **how: int) -> list[tuple]:
    pairs = _hamming.pairs_within(words(numbers, bits // 64), distance, plan, **how)
    return list(zip(*(column.tolist() for column in pairs), strict=True))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    bits=st.sampled_from([64, 256]),
    distance=st.integers(0, 12),
    data=st.data(),
)
def test_every_plan_finds_every_pair_once(
    seed: int, bits: int, distance: int, data: st.DataObject
) -> None:
    numbers = clusters(seed, data.draw(st.integers(1, 60)), bits, distance)
    # Wide chunks make tables of 2**width entries; keep the test small.
    fewest = -(-bits // 14)
    plan = Plan()
    if fewest <= distance + 1:
        plan = Plan(_hamming.cut(bits, distance, data.draw(st.integers(fewest, distance + 1))))
    threads = data.draw(st.integers(1, 3))
    assert search(numbers, bits, distance, plan, num_threads=threads) == naive(numbers, distance)


@pytest.mark.parametrize(("bits", "distance"), [(64, 8), (64, 12), (256, 31)])
def test_thousands_of_clustered_hashes(bits: int, distance: int) -> None:
    numbers = clusters(7, 3000, bits, distance)
    plan = Plan(_hamming.cut(bits, distance, 20 if bits == 256 else 4))
    assert search(numbers, bits, distance, plan) == naive(numbers, distance)


def test_the_comparisons_are_counted_exactly() -> None:
    numbers = clusters(3, 400, 64, 8)
    chunks = _hamming.cut(64, 8, 5)
    expected = 0
    for chunk in chunks:
        values = [n >> chunk.first & (2**chunk.width - 1) for n in numbers]
        expected += 2 * sum(
            (a ^ b).bit_count() <= chunk.radius for a, b in itertools.combinations(values, 2)
        )
        expected += len(set(values)) * chunk.num_masks()
    assert _hamming.count_comparisons(words(numbers, 1), Plan(chunks)) == expected // 2
    assert _hamming.count_comparisons(words(numbers, 1), Plan()) == 400 * 399 // 2


@pytest.mark.parametrize("bits", [64, 256])
@pytest.mark.parametrize("distance", [0, 1, 8, 12, 31])
def test_chunks_cover_all_bits_and_satisfy_the_pigeonhole(bits: int, distance: int) -> None:
    for count in range(1, distance + 2):
        if bits / _hamming.MAX_CHUNK_BITS > count:
            with pytest.raises(ValueError, match="cannot be cut"):
                _hamming.cut(bits, distance, count)
            continue
        chunks = _hamming.cut(bits, distance, count)
        covered = [b for c in chunks for b in range(c.first, c.first + c.width)]
        assert covered == list(range(bits))
        assert sum(c.radius + 1 for c in chunks) > distance


def test_the_plan_compares_all_pairs_of_few_hashes_and_cuts_many() -> None:
    assert _hamming.make_plan(2000, 64, 8) == Plan()
    assert len(_hamming.make_plan(1_000_000, 64, 8).chunks) == 3
    assert _hamming.make_plan(0, 64, 8) == Plan()


def test_a_chunk_may_cross_a_word() -> None:
    numbers = [(0b1011 << 62) | 1, 0]
    values = _hamming.chunk_values(words(numbers, 2), Chunk(first=61, width=6, radius=0))
    assert values.tolist() == [0b010110, 0]


def test_popcount_agrees_with_python_and_with_the_old_numpy_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbers = [0, 1, 2**64 - 1, 2**63, 0x0123456789ABCDEF]
    expected = [n.bit_count() for n in numbers]
    assert _hamming.popcount(words(numbers, 1)[:, 0]).tolist() == expected
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert _hamming.popcount(words(numbers, 1)[:, 0]).tolist() == expected


@pytest.mark.parametrize("plan", [Plan(), Plan(_hamming.cut(64, 8, 6))])
def test_too_many_pairs_are_refused(plan: Plan) -> None:
    numbers = list(range(64))
    assert len(search(numbers, 64, 8, plan, max_pairs=64 * 63 // 2)) == 64 * 63 // 2
    with pytest.raises(_hamming.TooManyPairsError):
        search(numbers, 64, 8, plan, max_pairs=64 * 63 // 2 - 1)


def test_no_hashes() -> None:
    assert search([], 64, 8, Plan()) == []
    assert search([], 64, 8, Plan(_hamming.cut(64, 8, 6))) == []
    assert search([5], 64, 8, Plan(_hamming.cut(64, 8, 6))) == []
