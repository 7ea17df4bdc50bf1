"""Dynamic tiling: the best grid by a naive search, and no pixel of a picture is lost."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from winnow.models.tiling import Grid, choose_grid, cut, fitted, overview

SIZES = st.tuples(st.integers(1, 5000), st.integers(1, 5000))


def naive_grid(size: tuple[int, int], tile: tuple[int, int], max_tiles: int) -> Grid:
    """LLaVA-NeXT's select_best_resolution, from its description, in exact fractions."""
    found = []
    for rows in range(1, max_tiles + 1):
        for columns in range(1, max_tiles + 1):
            if rows * columns > max_tiles:
                continue
            width, height = columns * tile[0], rows * tile[1]
            scale = min(Fraction(width, size[0]), Fraction(height, size[1]))
            down = max(1, int(size[0] * scale)), max(1, int(size[1] * scale))
            effective = min(down[0] * down[1], size[0] * size[1])
            found.append((-effective, width * height - effective, rows, columns))
    return Grid(*min(found)[2:])


@settings(max_examples=150, deadline=None)
@given(size=SIZES, tile=st.tuples(st.integers(1, 400), st.integers(1, 400)), n=st.integers(1, 12))
def test_the_grid_is_that_of_a_naive_search(
    size: tuple[int, int], tile: tuple[int, int], n: int
) -> None:
    assert choose_grid(size, tile, n) == naive_grid(size, tile, n)


@pytest.mark.parametrize(
    ("size", "max_tiles", "grid"),
    [
        ((672, 672), 4, Grid(2, 2)),  # the grids of LLaVA-NeXT's own examples
        ((336, 1344), 4, Grid(4, 1)),
        ((1344, 336), 4, Grid(1, 4)),
        ((672, 336), 4, Grid(1, 2)),
        ((336, 336), 9, Grid(1, 1)),  # nothing to gain: nothing wasted
        ((100, 100), 9, Grid(1, 1)),
        ((4000, 4000), 1, Grid(1, 1)),
        ((4000, 10), 6, Grid(1, 6)),
    ],
)
def test_known_grids(size: tuple[int, int], max_tiles: int, grid: Grid) -> None:
    assert choose_grid(size, (336, 336), max_tiles) == grid


@settings(max_examples=60, deadline=None)
@given(size=SIZES, n=st.integers(1, 12))
def test_a_turned_picture_has_at_least_as_good_a_turned_grid(size: tuple[int, int], n: int) -> None:
    grid, turned = (choose_grid(s, (64, 64), n) for s in (size, size[::-1]))
    assert grid.num_tiles <= n
    if grid.rows != grid.columns and size[0] > 2 * size[1]:
        assert grid.columns > grid.rows
        assert turned.rows > turned.columns
    assert grid.num_tiles == turned.num_tiles


@settings(max_examples=60, deadline=None)
@given(size=SIZES, canvas=st.tuples(st.integers(1, 900), st.integers(1, 900)))
def test_a_fitted_picture_touches_the_canvas_and_keeps_its_aspect(
    size: tuple[int, int], canvas: tuple[int, int]
) -> None:
    width, height = fitted(size, canvas)
    assert 1 <= width <= canvas[0]
    assert 1 <= height <= canvas[1]
    assert width == canvas[0] or height == canvas[1]
    exact = min(Fraction(canvas[0], size[0]), Fraction(canvas[1], size[1]))
    assert abs(width - exact * size[0]) <= 1
    assert abs(height - exact * size[1]) <= 1


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    tile=st.tuples(st.integers(4, 24), st.integers(4, 24)),
    size=st.tuples(st.integers(1, 80), st.integers(1, 80)),
)
def test_every_pixel_of_the_picture_is_in_some_tile(
    rows: int, columns: int, tile: tuple[int, int], size: tuple[int, int]
) -> None:
    """Put together again, the tiles are the fitted picture in the middle of black."""
    rng = np.random.default_rng([*size, rows])
    image = Image.fromarray(rng.integers(1, 256, (size[1], size[0], 3), np.uint8))
    tiles = cut(image, Grid(rows, columns), tile)
    assert [t.size for t in tiles] == [tile] * (rows * columns)
    lines = [np.concatenate(tiles[r * columns : (r + 1) * columns], axis=1) for r in range(rows)]
    whole = np.concatenate(lines, axis=0)
    width, height = fitted(image.size, (columns * tile[0], rows * tile[1]))
    left, top = (whole.shape[1] - width) // 2, (whole.shape[0] - height) // 2
    inner = whole[top : top + height, left : left + width].copy()
    whole[top : top + height, left : left + width] = 0
    assert not whole.any()
    assert np.array_equal(inner, image.resize((width, height), Image.Resampling.BICUBIC))


def test_the_overview_is_the_whole_picture() -> None:
    image = Image.new("RGB", (300, 100), "red")
    image.paste((0, 0, 255), (0, 0, 30, 100))
    small = np.asarray(overview(image, (30, 30)))
    assert small.shape == (30, 30, 3)
    assert small[15, 1, 2] == 255  # the blue strip at the edge, which a crop would have lost
    assert small[15, 28, 0] == 255
