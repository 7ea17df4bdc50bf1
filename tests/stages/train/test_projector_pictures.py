"""The patches of pictures: the same values kept or computed again, in any batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from winnow.models.vision_tower import VisionTower
from winnow.stages.train._projector_pictures import Pictures, PictureWriter, features_bytes

from .projector_parts import tower


@pytest.fixture(scope="module")
def eye(tmp_path_factory: pytest.TempPathFactory) -> VisionTower:
    """A tower of 4 patches."""
    return VisionTower.load(tower(tmp_path_factory.mktemp("tower")), device="cpu")


def _written(eye: VisionTower, folder: Path, counts: list[int], keep: bool) -> Pictures:
    writer = PictureWriter(eye, folder, torch.device("cpu"), keep_features=keep)
    chance = np.random.default_rng(0)
    for count in counts:
        writer.add([chance.integers(0, 256, (count, 32, 32, 3), np.uint8)])
    assert len(writer) == len(counts)
    return writer.done()


def test_features_are_the_towers_whether_kept_or_not(eye: VisionTower, tmp_path: Path) -> None:
    counts = [1, 3, 2, 1, 1, 4] * 8
    kept, again = (_written(eye, tmp_path, counts, keep) for keep in (True, False))
    assert not list(tmp_path.iterdir())  # the scratch files have no names
    chance = np.random.default_rng(0)
    tiles = [chance.integers(0, 256, (count, 32, 32, 3), np.uint8) for count in counts]
    for rows in ([0], [5, 0, 1], [47, 2, 2], list(range(48))):
        features, mask = kept.features(rows)
        others = again.features(rows)
        assert torch.equal(features, others[0])
        assert torch.equal(mask, others[1])
        assert features.dtype == torch.float32
        assert features.shape == (len(rows), 4 * max(counts[r] for r in rows), 16)
        for place, row in enumerate(rows):
            alone = eye(torch.from_numpy(tiles[row])).flatten(0, 1)
            used = 4 * counts[row]
            assert torch.allclose(features[place, :used], alone, atol=2e-3)
            assert torch.equal(features[place, :used], features[place, :used].half().float())
            assert mask[place].tolist() == [True] * used + [False] * (mask.shape[1] - used)
            assert not features[place, used:].any()


def test_room_is_counted(eye: VisionTower) -> None:
    assert features_bytes(eye, 10, 0) == 10 * 4 * 16 * 2
    assert features_bytes(eye, 10, 4) == 10 * 5 * 4 * 16 * 2
