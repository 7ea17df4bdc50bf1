"""Scenes for the patch tower: pictures, captions, what is in each patch, and what texts mean."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize

from winnow.stages.sources._scenes import (
    Scene,
    SceneOptions,
    caption,
    num_variants,
    render,
    scene,
)
from winnow.stages.sources._scenes.captions import Statement, article
from winnow.stages.sources._scenes.model import ranked_concepts
from winnow.stages.sources._scenes.sprites import CONCEPT, PAINTS
from winnow.stages.sources.scenes import SceneSource

SIZE, GRID = 112, 14
KNOWN = ranked_concepts()[:96]
COLORS = ("its own", *PAINTS)
CROWDS = (
    SceneSource(
        objects=(6, 10),
        weights="zipf",
        co_occurrence=0.5,
        captions="paragraph",
        num_concepts=80,
        sizes=(128, 128),
        aspects=(1.0, 1.0),
    )
    .world()
    .options
)
"""The world of recipes/scenes-crowds.yaml."""
EQUALS = replace(
    CROWDS,
    min_objects=5,
    max_objects=12,
    weights="uniform",
    co_occurrence=0.0,
    color_share=0.6,
    num_concepts=len(KNOWN),
)
FEW = replace(EQUALS, min_objects=1, max_objects=4, crowd=False)
WORLDS = (CROWDS, EQUALS, EQUALS, FEW, CROWDS, EQUALS, EQUALS, EQUALS)
"""What is trained on, in turn: of the recipe's crowds the last of 80 names is 0.25 % of things."""
GROUND, UNSURE = len(KNOWN), -100
TEXT_SEED = 30_002
_INDEX = {name: index for index, name in enumerate(KNOWN)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """A batch of scenes: uint8 (B, H, W, 3), and what each of their patches shows, int64 (B, P).

    things: index of a name, GROUND or UNSURE.  colors: index in COLORS of the thing's paint, UNSURE
    where ``things`` is no name.
    """

    scenes: list[Scene]
    pixels: torch.Tensor
    things: torch.Tensor
    colors: torch.Tensor

    @property
    def there(self) -> torch.Tensor:
        """Which things are in the pictures, bool (B, names)."""
        found = torch.zeros(len(self.scenes), len(KNOWN), dtype=torch.bool)
        for row, described in enumerate(self.scenes):
            found[row, [_INDEX[thing.concept] for thing in described.objects]] = True
        return found

    def texts(self, seed: int) -> list[str]:
        """Return a caption per scene."""
        rng = np.random.default_rng([seed, self.scenes[0].index])
        return [caption(s, variant=int(rng.integers(num_variants()))) for s in self.scenes]


def patch_labels(described: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Return what is in each patch, in raster order: what covers at least half of it; its color."""
    best = np.zeros((GRID, GRID))
    things, colors = np.full((GRID, GRID), GROUND), np.full((GRID, GRID), UNSURE)
    low = np.arange(GRID)
    for thing in described.objects:
        x0, y0, x1, y1 = (GRID * v for v in thing.box)
        across = np.clip(np.minimum(x1, low + 1) - np.maximum(x0, low), 0, 1)
        down = np.clip(np.minimum(y1, low + 1) - np.maximum(y0, low), 0, 1)
        cover = down[:, None] * across[None, :]
        cover[np.unravel_index(cover.argmax(), cover.shape)] = 1.0  # the least thing has a patch
        things[cover > best] = _INDEX[thing.concept]
        colors[cover > best] = COLORS.index(thing.color or "its own")
        best = np.maximum(best, cover)
    things[best < 0.5] = colors[best < 0.5] = UNSURE
    things[best <= 0.1] = GROUND
    return things.reshape(-1), colors.reshape(-1)


def picture(described: Scene, rng: np.random.Generator) -> Image.Image:
    """Draw a scene as a square: half of them larger, mostly as recipes do, and through a JPEG."""
    if rng.random() < 0.5:
        return render(described, SIZE, SIZE)
    side = described.width if rng.random() < 0.7 else int(rng.integers(SIZE, 3 * SIZE))
    buffer = io.BytesIO()
    render(described, side, side).save(buffer, "JPEG", quality=int(rng.integers(60, 96)))
    return Image.open(buffer).resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def draw(seed: int, step: int, count: int, worlds: tuple[SceneOptions, ...] = WORLDS) -> Drawn:
    """Return batch number ``step``: always the same."""
    rng = np.random.default_rng([seed, step])
    numbers = range(step * count, (step + 1) * count)
    scenes = [scene(seed, index, worlds[index % len(worlds)]) for index in numbers]
    pixels = np.stack([np.asarray(picture(described, rng)) for described in scenes])
    light = rng.uniform(0.85, 1.15, (count, 1, 1, 1))
    things, colors = (np.stack(v) for v in zip(*map(patch_labels, scenes), strict=True))
    return Drawn(
        scenes=scenes,
        pixels=torch.from_numpy(np.clip(pixels * light, 0, 255).astype(np.uint8)),
        things=torch.from_numpy(things),
        colors=torch.from_numpy(colors),
    )


def names(form: int) -> list[str]:
    """Return a text per thing, and one for the ground."""
    said = (
        lambda name: name,
        lambda name: f"{article(name)} {name}",
        lambda name: CONCEPT[name].plural,
    )[form]
    return [*map(said, KNOWN), "a background"]


class Codes:
    """A random unit vector for every thing, color, number and ground: what a text is to mean.

    A text's vector is the direction of the sum of what it says, things twice as heavy, so that the
    mean of a picture's patches, each near its thing's name, is near the picture's caption. Tiny's
    own embeddings are no such target: nine tenths of what tells its names apart lies in eight
    directions.
    """

    def __init__(self, width: int) -> None:
        self._draw = torch.Generator().manual_seed(TEXT_SEED)
        self._codes: dict[str, torch.Tensor] = {}
        self._width = width

    def __call__(self, *said: tuple[str, float]) -> torch.Tensor:
        """Return the unit vector of words with their weights."""
        for word, _ in said:
            if word not in self._codes:
                code = torch.randn(self._width, generator=self._draw)
                self._codes[word] = normalize(code, dim=0)
        return normalize(torch.stack([w * self._codes[word] for word, w in said]).sum(0), dim=0)

    def of(self, statement: Statement) -> torch.Tensor:
        """Return what a caption means; its relation is left out."""
        said = [(f"thing {group.concept}", 1.0) for group in statement.groups]
        if statement.counts:
            said += [(f"color {g.color}", 0.5) for g in statement.groups if g.color]
            said += [(f"count {g.count}", 0.5) for g in statement.groups if g.count > 1]
        if "{background}" in statement.template:
            ground = statement.background
            said += [(f"ground {ground.pattern}", 0.5), (f"ground {ground.color}", 0.5)]
        return self(*said)
