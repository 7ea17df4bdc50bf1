"""Pixels: where the description says, and nowhere else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from winnow.stages.sources._scenes import SceneOptions, render, scene
from winnow.stages.sources._scenes.model import PATTERNS

OPTIONS = SceneOptions(max_objects=6)


@pytest.mark.parametrize("size", [(1, 1), (7, 64), (64, 64), (333, 200)])
def test_any_size(size: tuple[int, int]) -> None:
    for index in range(12):
        image = render(scene(1, index, OPTIONS), *size)
        assert (image.mode, image.size) == ("RGB", size)


def test_objects_are_drawn_in_their_boxes_only() -> None:
    for index in range(60):
        drawn = scene(2, index, OPTIONS)
        size = drawn.width, drawn.height
        empty = np.asarray(render(dataclasses.replace(drawn, objects=()), *size)).astype(int)
        full = np.asarray(render(drawn, *size)).astype(int)
        changed = np.abs(full - empty).max(axis=2) > 12
        outside = changed.copy()
        for thing in drawn.objects:
            x0, y0, x1, y1 = thing.box
            rows = slice(max(0, int(y0 * size[1]) - 3), int(y1 * size[1]) + 4)
            columns = slice(max(0, int(x0 * size[0]) - 3), int(x1 * size[0]) + 4)
            assert changed[rows, columns].mean() > 0.1, thing
            outside[rows, columns] = False
        assert not outside.any()


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if p != "noise"])
def test_another_size_is_like_a_resize(pattern: str) -> None:
    options = SceneOptions(backgrounds=(pattern,))  # type: ignore[arg-type]
    for index in range(8):
        drawn = scene(3, index, options)
        large = render(drawn, drawn.width, drawn.height).resize((64, 64))
        small = render(drawn, 64, 64)
        gap = np.abs(np.asarray(large).astype(int) - np.asarray(small).astype(int))
        assert gap.mean() < 6


def test_deterministic_and_varied() -> None:
    pictures = [render(scene(4, i, OPTIONS), 48, 48).tobytes() for i in range(100)]
    assert len(set(pictures)) == 100
    assert pictures == [render(scene(4, i, OPTIONS), 48, 48).tobytes() for i in range(100)]


def test_all_backgrounds_come() -> None:
    seen = {scene(5, i, OPTIONS).background.pattern for i in range(150)}
    assert seen == set(PATTERNS)
    assert len({scene(5, i, OPTIONS).background.id for i in range(150)}) > 60
