"""Samples of a stream: the same as if all rows had been held in memory."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from winnow.contracts.identity import row_uid
from winnow.pipeline import report_picks
from winnow.pipeline.report_picks import ClusterSample, Picks, Place, mix, uid_words

UID = pa.binary(16)


@pytest.mark.parametrize("shards", [1, 4, 13])
def test_picks_are_the_nearest_rows_whatever_the_shards(shards: int) -> None:
    rng = np.random.default_rng(5)
    distances = rng.integers(0, 40, 1000).astype(float)
    hashes = rng.integers(0, 2**64, 1000, np.uint64)
    picks = Picks(12)
    start = 0
    for number, part in enumerate(np.array_split(np.arange(1000), shards)):
        picks.add(number, np.arange(len(part)), hashes[part], distances[part])
        start += len(part)
    lengths = [len(p) for p in np.array_split(np.arange(1000), shards)]
    offsets = np.cumsum([0, *lengths])
    found = [int(offsets[p.shard]) + p.position for p in picks.places]
    expected = sorted(range(1000), key=lambda i: (distances[i], int(hashes[i])))[:12]
    assert found == expected


def test_rows_with_one_uid_are_picked_once() -> None:
    picks = Picks(3)
    picks.add(0, np.arange(50), np.full(50, 7, np.uint64))
    picks.add(1, np.arange(4), np.array([7, 8, 9, 10], np.uint64))
    assert picks.places == [Place(0, 0), Place(1, 1), Place(1, 2)]


def test_many_equal_uids_do_not_hide_the_others() -> None:
    picks = Picks(2)
    hashes = np.concatenate([np.full(1000, 1, np.uint64), [np.uint64(2)]])
    picks.add(0, np.arange(1001), hashes)
    assert picks.places == [Place(0, 0), Place(0, 1000)]


def clusters(sizes: dict[int, int]) -> list[bytes | None]:
    rows: list[bytes | None] = [None] * 50
    for name, size in sizes.items():
        rows += [row_uid(name)] * size
    order = np.random.default_rng(2).permutation(len(rows))
    return [rows[i] for i in order]


def fill(sample: ClusterSample, rows: list[bytes | None], shard_rows: int = 37) -> None:
    for number, start in enumerate(range(0, len(rows), shard_rows)):
        sample.add(number, pa.array(rows[start : start + shard_rows], UID))


def test_all_clusters_are_counted_and_the_largest_shown() -> None:
    sizes = {name: 1 + name % 7 for name in range(60)}
    rows = clusters(sizes)
    sample = ClusterSample(4)
    fill(sample, rows)
    sample.choose()
    counted = Counter(uid for uid in rows if uid)
    assert {uid: c.size for uid, c in sample.clusters.items()} == dict(counted)
    assert sample.num_rows == sum(sizes.values())
    assert not sample.sampled
    assert [c.size for c in sample.shown[:6]] == sorted(counted.values(), reverse=True)[:6]
    for cluster in sample.shown:
        assert len(cluster.members) == min(4, cluster.size)
        for place in cluster.members:
            assert rows[place.shard * 37 + place.position] == cluster.uid


def test_a_sample_holds_whole_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_picks, "MAX_CLUSTERS", 25)
    sizes = {name: 1 + name % 5 for name in range(300)}
    rows = clusters(sizes)
    sample = ClusterSample(2)
    fill(sample, rows)
    counted = Counter(uid for uid in rows if uid)
    assert sample.sampled
    assert len(sample.clusters) == 25
    assert all(c.size == counted[uid] for uid, c in sample.clusters.items())
    keys = {u: int(mix(uid_words(pa.array([u], UID))[:, 0], 0)[0]) for u in counted}
    assert set(sample.clusters) == set(sorted(counted, key=lambda u: keys[u])[:25])


def test_the_kept_row_is_found_by_uid() -> None:
    sample = ClusterSample(2)
    sample.add(0, pa.array([row_uid("a"), None, row_uid("b")], UID))
    sample.choose()
    uids = pa.chunked_array([pa.array([row_uid("x"), row_uid("b"), row_uid("a")], UID)])
    sample.find_kept(3, uids, np.array([True, True, False]))
    sample.find_kept(4, uids, np.array([True, True, True]))
    assert {c.uid: c.kept for c in sample.shown} == {
        row_uid("a"): Place(4, 2),
        row_uid("b"): Place(3, 1),
    }


def test_words_of_sliced_and_empty_columns() -> None:
    uids = [row_uid(i) for i in range(10)]
    sliced = pa.array(uids, UID).slice(4, 3)
    expected = [int.from_bytes(u[:8], "little") for u in uids[4:7]]
    assert uid_words(sliced)[:, 0].tolist() == expected
    chunked = pa.chunked_array([pa.array(uids[:2], UID), pa.array(uids[2:], UID)])
    assert uid_words(chunked)[:, 1].tolist() == [int.from_bytes(u[8:], "little") for u in uids]
    assert uid_words(pa.chunked_array([], UID)).shape == (0, 2)


def test_mix_is_the_finaliser_of_splitmix64() -> None:
    # splitmix64 with state 1234567 gives 6457827717110365317 first (Vigna's reference program);
    # the finaliser is applied to state + the golden gamma.
    state = (1234567 + 0x9E3779B97F4A7C15) % 2**64
    assert int(mix(np.array([state], np.uint64), 0)[0]) == 6457827717110365317
