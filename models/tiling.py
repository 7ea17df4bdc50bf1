"""Dynamic tiling: a large picture as a grid of model-sized tiles, so that small things are seen.

LLaVA-NeXT's "anyres" (Liu et al. 2024, "LLaVA-NeXT: Improved reasoning, OCR, and world knowledge"):
of the possible grids, the one that keeps the most of the picture's resolution, and among those the
one that wastes the least of its own. What differs: any grid of at most ``max_tiles`` tiles is
possible, and sizes are whole-number arithmetic, the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

_PADDING = (0, 0, 0)  # as LLaVA-NeXT pads


@dataclass(frozen=True, slots=True)
class Grid:
    """Rows and columns of tiles."""

    rows: int
    columns: int

    @property
    def num_tiles(self) -> int:
        """How many tiles it has."""
        return self.rows * self.columns


def fitted(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """Return the greatest (width, height) of a picture's aspect inside a canvas; 1 at least."""
    width, height = size
    across, down = canvas
    if across * height <= down * width:
        return across, max(1, height * across // width)
    return max(1, width * down // height), down


def choose_grid(size: tuple[int, int], tile: tuple[int, int], max_tiles: int) -> Grid:
    """Return the best grid for a picture of ``size`` (width, height) and tiles of that size.

    Effective resolution: the pixels of the picture fitted into the grid, but never more than it
    has. Waste: the grid's pixels less those. Greatest effective resolution first, then the least
    waste, then the fewest rows.
    """
    best, found = (-1, 0), Grid(1, 1)
    for rows in range(1, max_tiles + 1):
        for columns in range(1, max_tiles // rows + 1):
            canvas = columns * tile[0], rows * tile[1]
            width, height = fitted(size, canvas)
            effective = min(width * height, size[0] * size[1])
            rank = (effective, effective - canvas[0] * canvas[1])
            if rank > best:
                best, found = rank, Grid(rows, columns)
    return found


def cut(image: Image.Image, grid: Grid, tile: tuple[int, int]) -> list[Image.Image]:
    """Return the tiles in raster order: the whole picture, fitted into the grid, centred on black.

    ``image``: mode RGB.
    """
    across, down = tile
    canvas = Image.new("RGB", (grid.columns * across, grid.rows * down), _PADDING)
    size = fitted(image.size, canvas.size)
    left, top = (canvas.width - size[0]) // 2, (canvas.height - size[1]) // 2
    canvas.paste(image.resize(size, Image.Resampling.BICUBIC), (left, top))
    return [
        canvas.crop((x, y, x + across, y + down))
        for y in range(0, canvas.height, down)
        for x in range(0, canvas.width, across)
    ]


def overview(image: Image.Image, tile: tuple[int, int]) -> Image.Image:
    """Return the whole picture as one tile, squashed, as LLaVA-NeXT's first tile is."""
    return image.resize(tile, Image.Resampling.BICUBIC)
