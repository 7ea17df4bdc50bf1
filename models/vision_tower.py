"""Vision towers: the patch tokens of a frozen open_clip model, for connectors to read.

LLaVA takes the patches of the layer before last, without the class token (Liu et al. 2023, section
4.1): the last layer's patches feed only the pooling, and say less about where things are.

Tensor suffixes: N tiles, K tiles of one picture, P patches, V vision width, H height, W width,
C channels.
"""

from __future__ import annotations

import hashlib
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from PIL import Image
from torch import nn

from winnow.contracts.errors import RecipeError, SetupError
from winnow.models.checkpoint import find_tower
from winnow.models.contrastive import Preprocess, bounded_aspect, load_model, to_rgb
from winnow.models.devices import Precision
from winnow.models.flops import count_flops
from winnow.models.tiling import choose_grid, cut, overview

MAX_TILES = 64
_LAYER = "penultimate"


class VisionTower(nn.Module):
    """A frozen image tower that returns patch tokens; always in eval mode, never any gradient.

    width: V.  patches_per_tile: P.  grid: its rows and columns; patches are in raster order.
    max_tiles: 0 = a picture is one tile, made by the model's own preprocessing; n = a picture is an
    overview of all of it and, if its best grid is not 1 x 1, up to n tiles (``models/tiling.py``);
    of a strip longer than 16 : 1 the middle is taken, as the preprocessing does.

    What "penultimate" means: for a transformer (open_clip's or timm's) the output of the block
    before last; for a convolutional tower (ResNet, timm) the last map, which the pooling reads.
    """

    def __init__(
        self, name: str, visual: nn.Module, preprocess: Preprocess, *, content: str, max_tiles: int
    ) -> None:
        super().__init__()
        if not 0 <= max_tiles <= MAX_TILES:
            msg = f"max_tiles={max_tiles}: use 0 (no tiling) to {MAX_TILES}"
            raise RecipeError(msg)
        self.name, self.preprocess, self.max_tiles = name, preprocess, max_tiles
        self._content = content
        self.visual = visual.requires_grad_(False)
        self.eval()
        self._depth = _num_blocks(name, visual)
        try:
            _, self.width, *grid = self._map(self._blank()).shape
        except (AttributeError, RuntimeError, ValueError, AssertionError) as error:
            raise _no_patches(name, visual) from error
        if len(grid) != 2:
            raise _no_patches(name, visual)
        self.grid = int(grid[0]), int(grid[1])
        self.patches_per_tile = self.grid[0] * self.grid[1]

    @classmethod
    def load(
        cls, name: str, *, device: str = "auto", precision: Precision = "fp32", max_tiles: int = 0
    ) -> VisionTower:
        """Load a tower, named as for ``find_tower`` ("patches", a folder, "ViT-L-14 openai").

        Fails: RecipeError for a name that means nothing; SetupError where the files are missing or
        damaged, or the tower has no patches.
        """
        files = find_tower(name)
        loaded = load_model(files, device=device, precision=precision)
        visual = cast(nn.Module, loaded.network.visual)
        return cls(name, visual, loaded.preprocess, content=files.digest(), max_tiles=max_tiles)

    def pixels(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """Return the tiles of a picture of any mode, uint8 (K, H, W, 3); the overview first."""
        if not self.max_tiles:
            return self.preprocess.pixels(image)[None]
        tile = self.preprocess.width, self.preprocess.height
        image = bounded_aspect(to_rgb(image))
        grid = choose_grid(image.size, tile, self.max_tiles)
        parts = cut(image, grid, tile) if grid.num_tiles > 1 else []
        return np.stack([np.asarray(part) for part in [overview(image, tile), *parts]])

    @torch.no_grad()
    def forward(self, pixels_NHWC: torch.Tensor) -> torch.Tensor:
        """Return the patches of tiles (uint8), float32 (N, P, V) on the tower's device."""
        if not len(pixels_NHWC):
            return torch.zeros(0, self.patches_per_tile, self.width, device=self._weight.device)
        return self._map(pixels_NHWC).flatten(2).transpose(1, 2).float()

    def train(self, mode: bool = True) -> VisionTower:
        """Stay in eval mode: dropout or batch statistics would change the tokens."""
        return super().train(False)

    def digest(self) -> str:
        """Return 32 hex digits over the model's content, the layer and the tiling."""
        text = f"{self._content}\0{_LAYER}\0{self.max_tiles}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def flops(self, num_tiles: int = 1) -> int:
        """Return the operations for a picture of so many tiles; a multiply-add counts two."""
        return num_tiles * count_flops(lambda: self(self._blank()))

    def _blank(self) -> torch.Tensor:
        return torch.zeros(1, self.preprocess.height, self.preprocess.width, 3, dtype=torch.uint8)

    @property
    def _weight(self) -> torch.Tensor:
        # The patches' own: open_clip keeps others, such as the class token, in float32.
        first = next(self.visual.parameters())
        return next((p for p in self.visual.parameters() if p.ndim == 4), first)

    @torch.no_grad()
    def _map(self, pixels_NHWC: torch.Tensor) -> torch.Tensor:
        """Return the layer's output as a map (N, V, rows, columns)."""
        weight = self._weight
        images_NCHW = self.preprocess.normalize(pixels_NHWC.to(weight.device)).to(weight.dtype)
        found = cast(Any, self.visual).forward_intermediates(
            images_NCHW,
            indices=1 if self._depth is None else [self._depth - 2],
            stop_early=True,
            intermediates_only=True,
            output_fmt="NCHW",
        )
        map_NVHW: torch.Tensor = found["image_intermediates"][-1]
        return map_NVHW


def _num_blocks(name: str, visual: nn.Module) -> int | None:
    """Return the blocks of a transformer, all of one width; None for a pyramid of maps."""
    if isinstance(visual, VisionTransformer):
        depth = len(visual.transformer.resblocks)
    elif isinstance(visual, TimmModel):
        blocks = getattr(visual.trunk, "blocks", None)
        if blocks is None or not hasattr(visual.trunk, "patch_embed"):
            return None
        depth = len(blocks)
    elif isinstance(visual, ModifiedResNet):
        return None
    else:
        raise _no_patches(name, visual)
    if depth < 2:
        msg = f"the image tower of {name} has one layer: there is none before the last one"
        raise SetupError(msg)
    return depth


def _no_patches(name: str, visual: nn.Module) -> SetupError:
    kind = type(getattr(visual, "trunk", visual)).__name__
    return SetupError(
        f"the image tower of {name} ({kind}) gives no grid of patches; use a ViT, a ResNet, or a "
        "timm tower with forward_intermediates"
    )
