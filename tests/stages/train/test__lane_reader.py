"""A lane from any position: the samples that its order names, whatever its shards hold."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stages.train.test__shard_reader import tar_bytes
from winnow.contracts.errors import SetupError, ShardError
from winnow.stages.train._lane_reader import MISSING, LaneReader, Slot, ahead
from winnow.stages.train._lanes import Lane
from winnow.stages.train._shard_reader import KEY


def every(extension: str) -> bool:
    return True


def write(folder: Path, held: list[int]) -> list[str]:
    """Shards of samples "<shard>-<place>"."""
    paths = []
    for shard, count in enumerate(held):
        path = folder / f"{shard}.tar"
        path.write_bytes(tar_bytes([(f"{shard}-{n}.txt", b"") for n in range(count)]))
        paths.append(str(path))
    return paths


def named(slots: list[Slot]) -> list[list[str | None]]:
    return [[sample.get(KEY) for sample in slot] for slot in slots]


def expected(lane: Lane, held: list[int], count: int) -> list[list[str | None]]:
    """The lane's order as a loop over whole epochs, with all samples at hand."""
    found: list[list[str | None]] = []
    epoch = 0
    while len(found) < count:
        places = [(shard, n) for shard in lane.shards(epoch) for n in range(lane.sizes[shard])]
        keys = [f"{shard}-{n}" if n < held[shard] else None for shard, n in places]
        shuffle = lane.shuffle(epoch)
        while (number := shuffle.pop()) is not None:
            found.append([keys[number], *(keys[spare] for spare in shuffle.spares(number))])
        epoch += 1
    return found[:count]


@given(
    sizes=st.lists(st.integers(0, 7), min_size=2, max_size=5).filter(any),
    off=st.lists(st.integers(-3, 3), min_size=5, max_size=5),
    waiting=st.integers(1, 6),
    seed=st.integers(0, 99),
    position=st.integers(0, 40),
)
@settings(max_examples=30, deadline=None)
def test_slots_are_those_of_a_loop_from_any_position(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    off: list[int],
    waiting: int,
    seed: int,
    position: int,
) -> None:
    """A shard may hold fewer samples than the sizes say, or more."""
    held = [max(0, size + extra) for size, extra in zip(sizes, off, strict=False)]
    paths = write(tmp_path_factory.getbasetemp(), held)
    for number in range(2):
        lane = Lane(sizes=sizes, seed=seed, number=number, num_lanes=2, waiting=waiting)
        if not all(lane.length(epoch) for epoch in range(30)):
            continue
        slots = list(islice(LaneReader(paths, lane, every).slots(position), 12))
        assert named(slots) == expected(lane, held, position + 12)[position:]


def test_what_is_no_tar_gives_missing_samples_and_what_is_gone_an_error(tmp_path: Path) -> None:
    paths = write(tmp_path, [3, 3])
    Path(paths[1]).write_bytes(b"no tar at all" * 100)
    lane = Lane(sizes=[3, 3], seed=0, number=0, num_lanes=1, waiting=2)
    slots = list(islice(LaneReader(paths, lane, every).slots(0), 6))
    assert sorted(str(slot[0].get(KEY)) for slot in slots) == ["0-0", "0-1", "0-2", *["None"] * 3]
    assert sum(slot[0] is MISSING for slot in slots) == 3
    Path(paths[1]).unlink()
    with pytest.raises(SetupError, match=r"1\.tar cannot be read"):
        list(islice(LaneReader(paths, lane, every).slots(0), 6))


def test_reading_ahead_gives_every_part_then_the_error_or_the_end() -> None:
    def parts(count: int, error: Exception | None) -> Iterator[list[Slot]]:
        for number in range(count):
            yield [[{KEY: str(number)}]]
        if error is not None:
            raise error

    with ahead(parts(4, None)) as read:
        assert [part[0][0][KEY] for part in read] == ["0", "1", "2", "3"]
    with ahead(parts(2, ShardError("gone"))) as read:
        assert next(read)[0][0][KEY] == "0"
        assert next(read)[0][0][KEY] == "1"
        with pytest.raises(ShardError, match="gone"):
            next(read)
    with ahead(parts(10_000, None)) as read:
        assert next(read)[0][0][KEY] == "0"
