"""Scenes for the patch tower: pictures, captions, what is in each patch, and what texts mean."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize

from winnow.stages.sources._scenes import (
    CONCEPTS,
    Scene,
    SceneOptions,
    caption,
    num_variants,
    render,
    scene,
)
from winnow.stages.sources._scenes.captions import Statement, article
from winnow.stages.sources._scenes.sprites import CONCEPT

SIZE, GRID = 112, 14
WORLDS = (
    SceneOptions(max_objects=4, aspects=(1.0, 1.0)),
    SceneOptions(min_objects=5, max_objects=10, aspects=(1.0, 1.0)),
    SceneOptions(max_objects=8),  # other aspects, squashed
)
GROUND, UNSURE = len(CONCEPTS), -100
TEXT_SEED = 30_002


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """A batch: uint8 (B, H, W, 3), captions, and per patch the thing's index, GROUND or UNSURE."""

    pixels: np.ndarray
    texts: list[str]
    labels: np.ndarray


def patch_labels(described: Scene) -> np.ndarray:
    """Return what is in each patch, in raster order: what covers at least half of it."""
    best = np.zeros((GRID, GRID))
    labels = np.full((GRID, GRID), GROUND)
    low = np.arange(GRID)
    for thing in described.objects:
        x0, y0, x1, y1 = (GRID * v for v in thing.box)
        across = np.clip(np.minimum(x1, low + 1) - np.maximum(x0, low), 0, 1)
        down = np.clip(np.minimum(y1, low + 1) - np.maximum(y0, low), 0, 1)
        cover = down[:, None] * across[None, :]
        cover[np.unravel_index(cover.argmax(), cover.shape)] = 1.0  # the least thing has a patch
        labels[cover > best] = CONCEPTS.index(thing.concept)
        best = np.maximum(best, cover)
    labels[(best > 0.1) & (best < 0.5)] = UNSURE
    labels[best <= 0.1] = GROUND
    return labels.reshape(-1)


def picture(described: Scene, rng: np.random.Generator) -> Image.Image:
    """Draw a scene as a square; one in five larger, through a JPEG and down again."""
    if rng.random() >= 0.2:
        return render(described, SIZE, SIZE)
    side = int(rng.integers(SIZE, 3 * SIZE))
    buffer = io.BytesIO()
    render(described, side, side).save(buffer, "JPEG", quality=int(rng.integers(50, 96)))
    return Image.open(buffer).resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def draw(seed: int, step: int, count: int, worlds: tuple[SceneOptions, ...] = WORLDS) -> Drawn:
    """Return batch number ``step``: always the same."""
    rng = np.random.default_rng([seed, step])
    pixels, texts, labels = [], [], []
    for index in range(step * count, (step + 1) * count):
        described = scene(seed, index, worlds[index % len(worlds)])
        pixels.append(np.asarray(picture(described, rng)))
        texts.append(caption(described, variant=int(rng.integers(num_variants()))))
        labels.append(patch_labels(described))
    light = rng.uniform(0.85, 1.15, (count, 1, 1, 1))
    lit = np.clip(np.stack(pixels) * light, 0, 255).astype(np.uint8)
    return Drawn(pixels=lit, texts=texts, labels=np.stack(labels))


def names(step: int) -> list[str]:
    """Return a text per thing, and one for the ground."""
    said = (
        lambda name: name,
        lambda name: f"{article(name)} {name}",
        lambda name: CONCEPT[name].plural,
    )[step % 3]
    return [*map(said, CONCEPTS), "a background"]


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
