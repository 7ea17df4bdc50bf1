"""The stream of shards: its order, its memory, its workers, and going on from any step."""

from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from winnow.contracts.errors import RecipeError, SetupError, ShardError
from winnow.stages.train._lanes import Lane, Shuffle
from winnow.stages.train._shard_reader import shard_sizes
from winnow.stages.train.shards import Pixels, shard_paths
from winnow.stages.train.streaming import ShardStream, StreamBatch, StreamConfig


def picture(number: int) -> bytes:
    """A flat picture whose colour is its number."""
    buffer = io.BytesIO()
    Image.new("RGB", (6, 6), (number % 256, number // 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def tiny(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB").resize((2, 2)))


def sample(number: int) -> dict[str, bytes]:
    document = json.dumps({"number": number}).encode()
    return {"png": picture(number), "txt": f"n{number}".encode(), "json": document}


def tar_bytes(samples: dict[str, dict[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for key, members in samples.items():
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def make_shards(folder: Path, sizes: Sequence[int]) -> dict[str, int]:
    """Shards of numbered samples, in order."""
    start, shards = 0, {}
    for index, size in enumerate(sizes):
        path = folder / f"{index:05d}.tar"
        path.write_bytes(tar_bytes({f"k{n}": sample(n) for n in range(start, start + size)}))
        shards[str(path)] = size
        start += size
    return shards


@pytest.fixture(scope="module")
def equal(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Eight shards of 12."""
    return make_shards(tmp_path_factory.mktemp("equal"), [12] * 8)


@pytest.fixture(scope="module")
def unequal(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Six shards of 0 to 31."""
    return make_shards(tmp_path_factory.mktemp("unequal"), [5, 31, 0, 14, 9, 22])


def config(**values: Any) -> StreamConfig:
    return StreamConfig(**{"batch_size": 8, "buffer_samples": 10, "seed": 3, **values})


def take(shards: dict[str, int], count: int, step: int = 0, **values: Any) -> list[StreamBatch]:
    rank, world_size = values.pop("rank", 0), values.pop("world_size", 1)
    stream = ShardStream(shards, tiny, config(**values), rank=rank, world_size=world_size)
    return list(islice(stream.batches(step), count))


def numbers(batches: Sequence[StreamBatch]) -> list[int]:
    """The samples in order, as captions and as pixels say."""
    found = [int(text[1:]) for batch in batches for text in batch.texts]
    pixels = np.concatenate([batch.pixels for batch in batches]).astype(int)
    assert found == (pixels[:, 0, 0, 0] + 256 * pixels[:, 0, 0, 1]).tolist()
    return found


@pytest.mark.parametrize("lanes", [1, 2, 8])
def test_every_sample_is_shown_once_per_epoch(equal: dict[str, int], lanes: int) -> None:
    seen = numbers(take(equal, 36, num_lanes=lanes))
    epochs = [seen[96 * i : 96 * (i + 1)] for i in range(3)]
    assert all(sorted(epoch) == list(range(96)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert seen != numbers(take(equal, 36, num_lanes=lanes, seed=4))


@pytest.mark.parametrize("lanes", [1, 2])
def test_unequal_lanes_show_every_sample_once_per_epoch_too(
    unequal: dict[str, int], lanes: int
) -> None:
    rows = 8 // lanes
    by_lane: list[list[int]] = [[] for _ in range(lanes)]
    for batch in take(unequal, 60, num_lanes=lanes):
        for lane in range(lanes):
            by_lane[lane] += numbers([batch])[lane * rows : (lane + 1) * rows]
    sizes = list(unequal.values())
    for epoch in range(2):
        shown = []
        for number, seen in enumerate(by_lane):
            lane = Lane(sizes=sizes, seed=3, number=number, num_lanes=lanes, waiting=5)
            length = sum(sizes[shard] for shard in lane.shards(epoch))
            shown += seen[:length]
            del seen[:length]
        assert sorted(shown) == list(range(81))


def test_a_stream_goes_on_from_any_step(unequal: dict[str, int]) -> None:
    for lanes in (1, 4):
        whole = take(unequal, 40, num_lanes=lanes)
        for step in (1, 9, 10, 11, 25, 37):
            again = take(unequal, 3, step, num_lanes=lanes)
            assert numbers(again) == numbers(whole[step : step + 3])


def test_threads_and_processes_do_not_change_the_order(equal: dict[str, int]) -> None:
    expected = take(equal, 14, 2, num_lanes=4, columns=("number",))
    for effort in ({"num_threads": 1}, {"num_threads": 5}, {"num_processes": 2}):
        found = take(equal, 14, 2, num_lanes=4, columns=("number",), **effort)
        assert numbers(found) == numbers(expected)
        assert [b.columns for b in found] == [b.columns for b in expected]
    assert expected[0].columns["number"] == numbers(expected[:1])


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_share_the_batches_of_one(unequal: dict[str, int], workers: int) -> None:
    one = take(unequal, 20, num_lanes=4)
    parts = [take(unequal, 20, num_lanes=4, rank=r, world_size=workers) for r in range(workers)]
    for step, batch in enumerate(one):
        texts = [text for part in parts for text in part[step].texts]
        assert texts == batch.texts
        assert all(len(part[step].texts) == 8 // workers for part in parts)


def test_the_buffer_mixes_shards_and_keeps_its_size() -> None:
    for length, capacity in ((100, 10), (7, 10), (100, 1), (0, 4)):
        shuffle = Shuffle(length, capacity, [1])
        order = []
        while True:
            assert len(shuffle.waiting) <= capacity
            spares = set(shuffle.spares(5)) if shuffle.waiting else set()
            assert spares <= set(shuffle.waiting)
            number = shuffle.pop()
            if number is None:
                break
            assert number < len(order) + capacity
            order.append(number)
        assert sorted(order) == list(range(length))
        assert (order == list(range(length))) == (capacity == 1 or length == 0)
    # With a buffer as large as the epoch every order is as likely as any other.
    firsts = Counter()
    for seed in range(1200):
        shuffle = Shuffle(3, 3, [seed])
        firsts[shuffle.pop(), shuffle.pop(), shuffle.pop()] += 1
    assert len(firsts) == 6
    assert all(140 < count < 260 for count in firsts.values())  # 200, sd 13


def test_samples_of_several_shards_meet_in_a_batch(equal: dict[str, int]) -> None:
    batches = take(equal, 12, num_lanes=4)
    shards = [len({n // 12 for n in numbers([batch])}) for batch in batches]
    assert min(shards) >= 4


def test_what_cannot_be_used_is_replaced_and_counted(tmp_path: Path) -> None:
    samples = {f"k{n}": sample(n) for n in range(40)}
    samples["k3"]["png"] = b"no picture"
    samples["k7"].pop("png")
    samples["k11"]["txt"] = b"  "
    samples["k20"].pop("txt")
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes(samples))
    stream = ShardStream({str(path): 40}, tiny, config(seed=1))
    seen = Counter(numbers(list(islice(stream.batches(0), 5))))
    usable = set(range(40)) - {3, 7, 11, 20}
    assert set(seen) == usable
    assert sum(seen.values()) == 40
    assert max(seen.values()) <= 2
    # Batches are decoded ahead, but counted when they are given out.
    assert stream.skipped == {"undecodable": 1, "no image": 1, "no caption": 2}
    list(islice(stream.batches(5), 10))  # their next turns are not counted again
    assert stream.skipped == {"undecodable": 1, "no image": 1, "no caption": 2}


def test_a_cut_shard_costs_its_own_samples(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, [20, 20])
    first = Path(next(iter(shards)))
    data = first.read_bytes()
    with tarfile.open(first) as tar:
        end = tar.getmember("k13.json").offset
    first.write_bytes(data[:end])
    stream = ShardStream(shards, tiny, config())
    seen = Counter(numbers(list(islice(stream.batches(0), 5))))
    assert set(seen) == {*range(14), *range(20, 40)} or set(seen) == {*range(13), *range(20, 40)}
    assert stream.skipped["cut off"] in (6, 7)
    assert sum(seen.values()) == 40


def test_what_was_shown_is_not_read_again(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, [16, 16, 16])
    lane = Lane(sizes=[16] * 3, seed=3, number=0, num_lanes=1, waiting=2)
    expected = take(shards, 6, buffer_samples=2)
    Path(list(shards)[lane.shards(0)[0]]).unlink()
    again = take(shards, 1, 4, buffer_samples=2)
    assert numbers(again) == numbers(expected[4:5])
    with pytest.raises(SetupError, match="tar cannot be read"):
        take(shards, 6, buffer_samples=2)


def test_nothing_usable_is_an_error_and_not_a_loop(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes({f"k{n}": {"png": b"x", "txt": b"y"} for n in range(16)}))
    with pytest.raises(ShardError, match="none of 8 samples in a row can be used") as caught:
        take({str(path): 16}, 1)
    assert not caught.value.retryable


@pytest.mark.parametrize(
    ("values", "workers", "message"),
    [
        ({"batch_size": 0}, 1, "batch_size=0: use at least 1"),
        ({"num_lanes": 3}, 1, "num_lanes=3: use a divisor of batch_size=8"),
        ({"num_processes": -1}, 1, "num_processes=-1: use 0 or more"),
        ({"num_lanes": 2}, 4, "num_lanes=2: use a multiple of workers x processes, 4 x 1"),
        ({"num_lanes": 4, "num_processes": 3}, 1, "use a multiple of workers x processes, 1 x 3"),
    ],
)
def test_numbers_that_do_not_fit(
    equal: dict[str, int], values: dict[str, int], workers: int, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        take(equal, 1, world_size=workers, **values)


def test_too_few_shards_or_samples(equal: dict[str, int]) -> None:
    one = dict(islice(equal.items(), 1))
    with pytest.raises(SetupError, match="1 shards with 12 samples cannot be dealt to num_lanes=2"):
        take(one, 1, num_lanes=2)
    with pytest.raises(SetupError, match="1 shards with 0 samples"):
        take(dict.fromkeys(one, 0), 1)


def test_urls_give_what_local_shards_give(tmp_path: Path) -> None:
    local = make_shards(tmp_path, [9, 9, 9])
    store = fsspec.filesystem("memory")
    names = [Path(path).name for path in local]
    for path in local:
        store.pipe(f"/stream/{Path(path).name}", Path(path).read_bytes())
    urls = [f"memory://stream/{name}" for name in names]
    assert shard_paths(["memory://stream/{00000..00002}.tar"]) == urls
    assert shard_paths(["memory://stream"]) == shard_paths(["memory://stream/*.tar"]) == urls
    sizes = shard_sizes(urls)
    assert sizes == dict.fromkeys(urls, 9)
    assert numbers(take(sizes, 9)) == numbers(take(local, 9))
    store.pipe("/stream/sizes.json", json.dumps({names[2]: 9, names[0]: 4}).encode())
    assert shard_paths(["memory://stream"]) == [urls[0], urls[2]]
    assert shard_sizes(urls) == dict(zip(urls, (4, 9, 9), strict=True))
    store.rm("/stream", recursive=True)
    with pytest.raises(SetupError, match="there is no shard at memory://stream"):
        shard_paths(["memory://stream"])
    with pytest.raises(SetupError, match="nosuch"):
        shard_paths(["nosuch://bucket/a.tar"])


def test_sizes_come_from_the_export_or_from_a_count(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, [3, 5])
    assert shard_sizes(list(shards)) == shards
    listed = tmp_path / "sizes.json"
    listed.write_text(json.dumps({"00000.tar": 100}))
    assert list(shard_sizes(list(shards)).values()) == [100, 5]
    listed.write_text("[]")
    with pytest.raises(SetupError, match="should map the names of tars to their sizes"):
        shard_sizes(list(shards))


def test_memory_stays_that_of_the_buffer(tmp_path: Path) -> None:
    """32 MB of shards through a buffer of 16 samples, 100 kB each."""
    junk = bytes(100_000)
    shards = {}
    for index in range(4):
        path = tmp_path / f"{index}.tar"
        names = range(80 * index, 80 * (index + 1))
        members = {f"k{n}": sample(n) | {"png": picture(n) + junk} for n in names}
        path.write_bytes(tar_bytes(members))
        shards[str(path)] = 80
        del members
    stream = ShardStream(shards, tiny, config(buffer_samples=16, num_threads=1))
    tracemalloc.start()
    try:
        seen = numbers(list(islice(stream.batches(0), 40)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sorted(seen) == list(range(320))
    # The buffer, spares, and five batches of 8 encoded: 60 samples; the tars' read buffers: 2 MB.
    assert peak < 12_000_000


def test_the_loop_gets_tokens_and_hard_negatives(equal: dict[str, int], tmp_path: Path) -> None:
    from open_clip.tokenizer import SimpleTokenizer

    from winnow.models.tokenizer import Tokenizer
    from winnow.stages.train._stream_source import StreamSource

    tokenizer = Tokenizer(SimpleTokenizer(context_length=8), 8)
    for processes in (0, 2):
        settings = config(num_lanes=2, num_processes=processes)
        source = StreamSource(equal, tiny, tokenizer, settings)
        expected = take(equal, 3, 1, num_lanes=2)
        found = islice(source.batches(1), 3)
        for (pixels, tokens, extras), batch in zip(found, expected, strict=True):
            assert extras.negatives is None
            assert np.array_equal(pixels, batch.pixels)
            assert tokens.tolist() == tokenizer(batch.texts).tolist()
    other = StreamSource(equal, tiny, tokenizer, config(num_lanes=4))
    digests = {other.digest(), source.digest(), source.digest("content")}
    assert len(digests) == 3

    wrong = [None, "a text", ["first", "second"], [], " "]
    samples = {
        f"k{n}": sample(n) | {"json": json.dumps({"no": wrong[n]}).encode()} for n in range(5)
    }
    (tmp_path / "a.tar").write_bytes(tar_bytes(samples))
    settings = config(batch_size=5, columns=("no",))
    one = StreamSource({str(tmp_path / "a.tar"): 5}, tiny, tokenizer, settings)
    pixels, _, extras = next(one.batches(0))
    texts = ["", "a text", "first", "", ""]
    shown = [texts[number] for number in pixels[:, 0, 0, 0]]
    assert extras.negatives.tolist() == tokenizer(shown).tolist()
    assert extras.has_negative.tolist() == [bool(text) for text in shown]
