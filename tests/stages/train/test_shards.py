"""Samples of exported shards: keys, chosen columns, and the cache that trials share."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from winnow.contracts.errors import SetupError
from winnow.stages.train._sample_cache import SampleCache, cached_samples
from winnow.stages.train.shards import Pixels, Reading, Samples, load_samples


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, samples: dict[str, dict[str, bytes]]) -> str:
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return str(path)


def pair(seed: int, **annotations: Any) -> dict[str, bytes]:
    document = json.dumps(annotations).encode()
    return {"png": png(seed), "txt": f"picture {seed}".encode(), "json": document}


def half(image: Image.Image) -> Pixels:
    return np.asarray(image.resize((4, 4)))


class Counting:
    """A resize function that leaves one line per call in a file."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def __call__(self, image: Image.Image) -> Pixels:
        with open(self.log, "a") as file:
            file.write("x\n")
        return half(image)

    @property
    def calls(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


@pytest.fixture
def shard(tmp_path: Path) -> str:
    samples = {f"s{i}": pair(i, swap=f"swapped {i}", score=i / 4) for i in range(4)}
    samples["torn"] = {"png": png(4), "txt": b"torn", "json": b'{"swap": '}
    samples["list"] = {"png": png(5), "txt": b"list", "json": b"[1]"}
    samples["deep"] = {"png": png(6), "txt": b"deep", "json": b"[" * 200_000}
    samples["bare"] = {"png": png(7), "txt": b"bare"}
    samples["mute"] = {"png": png(8), "json": b"{}"}
    return write_tar(tmp_path / "a.tar", samples)


def test_keys_and_columns_follow_the_rows(shard: str, tmp_path: Path) -> None:
    samples = load_samples([shard], half, scratch=tmp_path, columns=("swap", "score", "none"))
    assert samples.keys == ["s0", "s1", "s2", "s3", "torn", "list", "deep", "bare"]
    assert samples.columns == {
        "swap": [*(f"swapped {i}" for i in range(4)), None, None, None, None],
        "score": [0.0, 0.25, 0.5, 0.75, None, None, None, None],
        "none": [None] * 8,
    }
    assert samples.skipped == {"no caption": 1}
    assert load_samples([shard], half, scratch=tmp_path).columns == {}


def test_the_digest_covers_the_columns(tmp_path: Path) -> None:
    one = write_tar(tmp_path / "one.tar", {"k": pair(0, swap="a", other=1)})
    two = write_tar(tmp_path / "two.tar", {"k": pair(0, swap="b", other=1)})

    def digest(path: str, *columns: str) -> str:
        return load_samples([path], half, scratch=tmp_path, columns=columns).digest

    assert digest(one) == digest(two)
    assert digest(one, "other") == digest(two, "other")
    assert digest(one, "swap") != digest(two, "swap")


def same(left: Samples, right: Samples) -> None:
    assert np.array_equal(left.pixels, right.pixels)
    for name in ("texts", "digest", "skipped", "keys", "columns"):
        assert getattr(left, name) == getattr(right, name), name


def test_an_entry_is_what_was_loaded_and_is_decoded_once(shard: str, tmp_path: Path) -> None:
    resize = Counting(tmp_path / "log")
    cache = SampleCache(folder=tmp_path / "cache", resized="4x4")
    reading = Reading(columns=("swap",))
    expected = load_samples([shard], half, scratch=tmp_path, columns=("swap",))
    same(cached_samples(cache, [shard], resize, reading), expected)
    assert resize.calls == 8
    moved = str(Path(shard).rename(tmp_path / "elsewhere.tar"))
    threads = Reading(columns=("swap",), num_threads=1)
    same(cached_samples(cache, [moved], resize, threads), expected)
    assert resize.calls == 8
    others = [
        (cache, Reading()),
        (SampleCache(folder=cache.folder, resized="5x5"), reading),
    ]
    for number, (other, what) in enumerate(others, 2):
        cached_samples(other, [moved], resize, what)
        assert resize.calls == 8 * number
    assert not [p for p in cache.folder.iterdir() if p.name.startswith(".part-")]


def test_another_content_is_another_entry(tmp_path: Path) -> None:
    cache = SampleCache(folder=tmp_path / "cache", resized="4x4")
    path = write_tar(tmp_path / "a.tar", {"k": pair(0)})
    first = cached_samples(cache, [path], half, Reading())
    before = Path(path).stat()
    write_tar(tmp_path / "a.tar", {"k": pair(1)})
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = cached_samples(cache, [path], half, Reading())
    assert first.texts == ["picture 0"]
    assert second.texts == ["picture 1"]
    assert second.digest != first.digest


def _load(folder: Path, shard: str, log: Path, answers: Any) -> None:
    cache = SampleCache(folder=folder, resized="4x4")
    samples = cached_samples(cache, [shard], Counting(log), Reading())
    answers.put((samples.digest, int(samples.pixels.sum())))


def _die(folder: Path, shard: str) -> None:
    def resize(image: Image.Image) -> Pixels:
        os._exit(9)

    cached_samples(SampleCache(folder=folder, resized="4x4"), [shard], resize, Reading())


def test_processes_share_one_decoding_also_after_a_death(shard: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    folder, log = tmp_path / "cache", tmp_path / "log"
    dying = context.Process(target=_die, args=(folder, shard))
    dying.start()
    dying.join()
    assert dying.exitcode == 9
    assert [p.name[:6] for p in folder.iterdir() if p.is_dir()] == [".part-"]
    answers: Any = context.Queue()
    together = [context.Process(target=_load, args=(folder, shard, log, answers)) for _ in range(4)]
    for process in together:
        process.start()
    found = {answers.get(timeout=60) for _ in together}
    for process in together:
        process.join()
    expected = load_samples([shard], half, scratch=tmp_path)
    assert found == {(expected.digest, int(expected.pixels.sum()))}
    assert Counting(log).calls == 8
    assert not [p for p in folder.iterdir() if p.name.startswith(".part-")]


def test_the_cache_keeps_what_was_used_last(tmp_path: Path) -> None:
    paths = [write_tar(tmp_path / f"{i}.tar", {"k": pair(i)}) for i in range(3)]
    folder = tmp_path / "cache"
    resize = Counting(tmp_path / "log")

    def load(number: int, max_bytes: int) -> Samples:
        cache = SampleCache(folder=folder, resized="4x4", max_bytes=max_bytes)
        return cached_samples(cache, [paths[number]], resize, Reading())

    def entries() -> dict[str, Path]:
        found = {}
        for path in folder.iterdir():
            if path.is_dir():
                found[json.loads((path / "samples.json").read_text())["texts"][0]] = path
        return found

    old = load(0, 1 << 20)
    load(1, 1 << 20)
    each = sum(file.stat().st_size for file in entries()["picture 0"].iterdir())
    for text, used in (("picture 0", 100), ("picture 1", 50)):
        os.utime(entries()[text], (used, used))
    load(2, 2 * each + 8)
    assert sorted(entries()) == ["picture 0", "picture 2"]
    load(1, 1)
    assert sorted(entries()) == ["picture 1"]
    assert np.array_equal(old.pixels[0], half(Image.open(io.BytesIO(png(0)))))  # still readable
    load(0, 1)
    assert resize.calls == 5


def test_what_cannot_be_read_leaves_nothing(shard: str, tmp_path: Path) -> None:
    cache = SampleCache(folder=tmp_path / "cache", resized="4x4")
    with pytest.raises(SetupError, match="gone.tar cannot be read"):
        cached_samples(cache, [str(tmp_path / "gone.tar")], half, Reading())
    empty = write_tar(tmp_path / "empty.tar", {})
    with pytest.raises(SetupError, match="no sample of 1 shards can be trained on"):
        cached_samples(cache, [empty], half, Reading())
    (tmp_path / "file").write_text("")
    blocked = SampleCache(folder=tmp_path / "file", resized="4x4")
    with pytest.raises(SetupError, match="file cannot be written"):
        cached_samples(blocked, [shard], half, Reading())
    assert not [p for p in cache.folder.iterdir() if p.is_dir()]
