"""Bytes: the ground truth is true of them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from winnow.stages.sources._scenes.noise import Row
from winnow.stages.sources._scenes.payload import answer
from winnow.stages.sources.scenes import SceneSource

WORLD = SceneSource().world()
ROWS = [WORLD.row(i) for i in range(900)]
FORMATS = {"image/jpeg": "JPEG", "image/png": "PNG", "image/webp": "WEBP"}


def rows_of(kind: str, most: int = 25) -> list[Row]:
    found = [row for row in ROWS if row.kind == kind][:most]
    assert found, kind
    return found


def picture(row: Row) -> Image.Image:
    return Image.open(io.BytesIO(answer(WORLD, row).body)).convert("RGB")


def thumbnail(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((12, 12), Image.Resampling.BOX)).astype(float)


@pytest.mark.parametrize(
    "kind", ["clean", "swapped_caption", "foreign_caption", "boilerplate_caption", "slow_link"]
)
def test_ordinary_pictures_decode_at_the_scenes_size(kind: str) -> None:
    for row in rows_of(kind, 15):
        found = answer(WORLD, row)
        assert found.status == 200
        assert found.drip == (kind == "slow_link")
        image = Image.open(io.BytesIO(found.body))
        image.load()
        assert image.format == FORMATS[found.content_type]
        drawn = WORLD.scene(row)
        assert image.size == (drawn.width, drawn.height)


def test_corrupt_bytes_do_not_decode() -> None:
    heads = set()
    rows = [row for row in map(WORLD.row, range(4000)) if row.kind == "corrupt"]
    for row in rows:
        found = answer(WORLD, row)
        assert found.status == 200
        assert found.content_type in FORMATS
        with pytest.raises((UnidentifiedImageError, OSError, SyntaxError)):
            Image.open(io.BytesIO(found.body)).load()
        heads.add(found.body[:2])
    assert b"\xff\xd8" in heads
    assert len(heads) > 5


def test_exact_duplicates_are_the_same_bytes_elsewhere() -> None:
    for row in rows_of("exact_duplicate"):
        assert row.original is not None
        original = WORLD.row(row.original)
        assert row.path != original.path
        assert answer(WORLD, row) == answer(WORLD, original)


def test_near_duplicates_resemble_their_original_and_nothing_else() -> None:
    rows = rows_of("near_duplicate", 40)
    originals = [thumbnail(picture(WORLD.row(row.original or 0))) for row in rows]
    for i, row in enumerate(rows):
        assert row.original is not None
        found = answer(WORLD, row)
        assert found.body != answer(WORLD, WORLD.row(row.original)).body
        copy = picture(row)
        before = WORLD.scene(WORLD.row(row.original))
        assert 0.75 <= copy.width / before.width <= 1.21
        assert min(copy.size) >= 200
        distances = [np.abs(thumbnail(copy) - other).mean() for other in originals]
        same = [r.original == row.original for r in rows]
        assert distances[i] < 20
        others = [d for d, equal in zip(distances, same, strict=True) if not equal]
        assert distances[i] < min(others)


def test_tiny_and_extreme() -> None:
    for row in rows_of("tiny"):
        assert max(picture(row).size) <= 60
    for row in rows_of("extreme_aspect", 10):
        size = picture(row).size
        assert max(size) / min(size) >= 3.5
        assert min(size) >= 200


def test_links_that_bring_no_picture() -> None:
    assert {answer(WORLD, row).status for row in rows_of("dead_link")} == {404, 410}
    for row in rows_of("html"):
        found = answer(WORLD, row)
        assert found.status == 200
        assert found.content_type.startswith("text/html")
        assert found.body.startswith(b"<!DOCTYPE html>")


def test_the_same_bytes_every_time() -> None:
    again = SceneSource().world()
    for index in range(60):
        assert answer(again, again.row(index)) == answer(WORLD, ROWS[index])
