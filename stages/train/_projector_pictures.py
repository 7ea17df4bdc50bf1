"""The patches of many pictures, as a frozen tower sees them: computed once, or whenever needed.

N pictures, T tiles, P patches, V width of the tower, B pictures of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from winnow.stages.train._fixed_batches import fixed_batches
from winnow.stages.train._members import Pixels
from winnow.stages.train._scratch import check_room, mapped, scratch_file

if TYPE_CHECKING:
    import torch

_TOGETHER = 16  # tiles


class Tower(Protocol):
    """What is needed of ``winnow.models.vision_tower.VisionTower``."""

    width: int
    patches_per_tile: int

    def pixels(self, image: Any) -> Pixels:
        """Return the tiles of a picture, uint8 (K, H, W, 3)."""
        ...

    def forward(self, pixels_NHWC: torch.Tensor) -> torch.Tensor:
        """Return the patches of N tiles, (N, P, V)."""
        ...


class Pictures:
    """N pictures; what is in the scratch file of ``PictureWriter``.

    firsts: where the tiles of each picture start, N + 1 numbers.
    """

    def __init__(
        self, tower: Tower, tiles: npt.NDArray[Any], firsts: npt.NDArray[np.int64], device: Any
    ) -> None:
        self._tower, self._tiles, self._firsts, self._device = tower, tiles, firsts, device

    def __len__(self) -> int:
        return len(self._firsts) - 1

    def features(self, pictures: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return float32 (B, P, V) and which patches there are, bool (B, P).

        ``pictures``: -1 stands for none, but not for all. The values are those of float16, whether
        they were kept or are computed here.
        """
        import torch

        starts, ends = self._firsts[list(pictures)], self._firsts[[p + 1 for p in pictures]]
        ends = np.where(np.array(pictures) < 0, starts, ends)
        counts = ends - starts
        rows = np.concatenate([np.arange(s, e) for s, e in zip(starts, ends, strict=True)])
        found = self._tiles[rows]
        kept = found.dtype == np.float16
        patches_TPV = torch.from_numpy(found if kept else seen(self._tower, found, self._device))
        _, num_patches, width = patches_TPV.shape
        shape = (len(pictures), int(counts.max()), num_patches, width)
        features = torch.zeros(shape, dtype=torch.float32)
        mask = torch.zeros(shape[:3], dtype=torch.bool)
        for row, part in enumerate(patches_TPV.split(counts.tolist())):
            features[row, : len(part)] = part.float()
            mask[row, : len(part)] = True
        features_BPV = features.flatten(1, 2).to(self._device)
        return features_BPV, mask.flatten(1, 2).to(self._device)


class PictureWriter:
    """Collects pictures in a nameless scratch file of ``folder``: their features where
    ``keep_features``, else their pixels."""

    def __init__(self, tower: Tower, folder: Path, device: Any, *, keep_features: bool) -> None:
        self._tower, self._folder, self._device = tower, folder, device
        self._keep_features = keep_features
        self._counts: list[int] = []
        self._shape: tuple[int, ...] = ()
        self._waiting: list[Pixels] = []
        self._file = scratch_file(folder)

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, tiles: Sequence[Pixels]) -> None:
        """Append pictures, each uint8 (K, H, W, 3)."""
        check_room(self._folder)
        self._counts += [len(picture) for picture in tiles]
        self._waiting += tiles
        self._write(sum(map(len, self._waiting)) // _TOGETHER * _TOGETHER)

    def done(self) -> Pictures:
        """Return what was added."""
        self._write(sum(map(len, self._waiting)))
        firsts = np.cumsum([0, *self._counts], dtype=np.int64)
        kind = np.float16 if self._keep_features else np.uint8
        tiles = mapped(self._file, kind, (int(firsts[-1]), *self._shape))
        return Pictures(self._tower, tiles, firsts, self._device)

    def _write(self, num_tiles: int) -> None:
        if not num_tiles:
            return
        joined = np.concatenate(self._waiting)
        now, self._waiting = joined[:num_tiles], [joined[num_tiles:]]
        content = seen(self._tower, now, self._device) if self._keep_features else now
        self._shape = content.shape[1:]
        self._file.write(content.tobytes())


def seen(tower: Tower, pixels_THWC: Pixels, device: Any) -> npt.NDArray[np.float16]:
    """Return what the tower sees, float16 (T, P, V)."""
    import torch

    def patches(tiles: list[Pixels]) -> torch.Tensor:
        return tower.forward(torch.from_numpy(np.stack(tiles)).to(device)).half()

    nothing = np.zeros(pixels_THWC.shape[1:], np.uint8)
    with torch.no_grad():
        found = fixed_batches(patches, pixels_THWC, nothing=nothing, size=_TOGETHER)
    return found.numpy()


def features_bytes(tower: Tower, num_pictures: int, max_tiles: int) -> int:
    """Return how much the features of so many pictures can take."""
    tiles = max_tiles + 1 if max_tiles else 1
    return num_pictures * tiles * tower.patches_per_tile * tower.width * 2
