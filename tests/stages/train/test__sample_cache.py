"""The shared cache of pictures: damaged entries, foreign files, shards that change meanwhile.

What it keeps and shares is tested in ``test_shards.py``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.stages.train.test_shards import half, pair, same, write_tar
from winnow.contracts.errors import SetupError
from winnow.stages.train._sample_cache import SampleCache, cached_samples
from winnow.stages.train.shards import Pixels, Reading, load_samples

READING = Reading(columns=("swap",), num_threads=1)


def entries(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.is_dir() and (p / "samples.json").exists()]


@pytest.mark.parametrize(
    ("name", "size"),
    [("samples.json", 0), ("samples.json", 40), ("pixels", 0), ("pixels", 47), ("pixels", None)],
)
def test_a_damaged_entry_is_made_again(tmp_path: Path, name: str, size: int | None) -> None:
    """As a machine leaves it that lost its power; ``size``: None removes the file."""
    shard = write_tar(
        tmp_path / "a \u00fc.tar", {f"k{i}": pair(i, swap="\ud83d") for i in range(2)}
    )
    cache = SampleCache(folder=tmp_path / "my cache", resized="4x4")
    expected = load_samples([shard], half, scratch=tmp_path, columns=("swap",))
    same(cached_samples(cache, [shard], half, READING), expected)
    (entry,) = entries(cache.folder)
    torn = entry / name
    if size is None:
        torn.unlink()
    else:
        torn.write_bytes(torn.read_bytes()[:size])
    same(cached_samples(cache, [shard], half, READING), expected)
    same(cached_samples(cache, [shard], half, READING), expected)


def test_making_room_removes_entries_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    mine = {
        folder / "notes.txt": b"mine",
        folder / "holiday" / "picture.jpg": bytes(9000),
        folder / ".part-time" / "contract.pdf": bytes(9000),
    }
    for path, data in mine.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for number in range(3):
        shard = write_tar(tmp_path / f"{number}.tar", {"k": pair(number)})
        cache = SampleCache(folder=folder, resized="4x4", max_bytes=10)
        cached_samples(cache, [shard], half, READING)
        assert len(entries(folder)) == 1
    assert {path: path.read_bytes() for path in mine} == mine


def test_shards_that_change_between_two_reads_make_no_entry(tmp_path: Path) -> None:
    """Else the pictures of the new content would be found under the digest of the old one."""
    first = write_tar(tmp_path / "0.tar", {"k": pair(0)})
    second = write_tar(tmp_path / "1.tar", {"k": pair(1)})
    before = Path(second).read_bytes()
    cache = SampleCache(folder=tmp_path / "cache", resized="4x4")

    def resize(image: Image.Image) -> Pixels:
        write_tar(Path(second), {"k": pair(2)})
        return half(image)

    with pytest.raises(SetupError, match="changed while they were read"):
        cached_samples(cache, [first, second], resize, READING)
    assert not entries(cache.folder)
    Path(second).write_bytes(before)
    found = cached_samples(cache, [first, second], half, READING)
    expected = load_samples([first, second], half, scratch=tmp_path)
    assert np.array_equal(found.pixels, expected.pixels)
