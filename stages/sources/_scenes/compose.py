"""Scene description -> pixels."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from winnow.stages.sources._scenes.model import Background, Scene
from winnow.stages.sources._scenes.sprites import patch

_COLORS = {
    "red": (214, 92, 86),
    "orange": (238, 164, 92),
    "yellow": (244, 222, 122),
    "green": (128, 190, 122),
    "blue": (116, 168, 226),
    "purple": (166, 130, 206),
    "pink": (244, 176, 204),
    "brown": (160, 122, 92),
    "gray": (164, 168, 174),
    "white": (246, 246, 242),
}
Pixels = npt.NDArray[np.floating[Any]]
Jitter = npt.NDArray[np.float64]


def render(scene: Scene, width: int, height: int) -> Image.Image:
    """Return the scene as an RGB image of exactly this size.

    The canvas is mapped onto ``width`` x ``height`` as a resize would (another aspect squashes
    it); only the grain of a "noise" background is drawn at the result's own scale.
    """
    canvas = _background(scene.background, width, height, scene.width / scene.height)
    for thing in scene.objects:
        x0, y0, x1, y1 = thing.box
        left, top, right, bottom = x0 * width, y0 * height, x1 * width, y1 * height
        at = max(0, int(left) - 1), max(0, int(top) - 1)
        end = min(width, math.ceil(right) + 1), min(height, math.ceil(bottom) + 1)
        inner = (left - at[0], top - at[1], right - at[0], bottom - at[1])
        drawn = patch(
            thing.concept, thing.color, thing.rotation, thing.flip,
            end[0] - at[0], end[1] - at[1], inner,
        )  # fmt: skip
        canvas.paste(drawn, at, drawn)
    return canvas


def _background(background: Background, width: int, height: int, aspect: float) -> Image.Image:
    bits = np.random.PCG64(background.texture)  # bit generators keep their streams (NEP 19)
    jitter = (bits.random_raw(8) >> np.uint64(40)).astype(np.float64) / 2**24
    first = np.array(_COLORS[background.color]) + 24 * (jitter[0] - 0.5)
    second = np.array(_COLORS[background.color2]) + 24 * (jitter[1] - 0.5)
    if background.pattern == "solid":
        return Image.new("RGB", (width, height), _rgb(first))
    if background.pattern == "noise":
        return _noise(bits, first, 10 + 26 * float(jitter[2]), width, height)
    if background.pattern == "blobs":
        return _blobs(bits, first, second, width, height)
    mix = _MIX[background.pattern](width, height, aspect, jitter)
    if background.pattern != "gradient":
        second = first + (second - first) * (0.35 + 0.4 * jitter[6])  # patterns stay quiet
    low, high = np.minimum(first, 255), np.clip(second, 0, 255)
    ramp = np.arange(256)[:, None] / 255 * (high - low) + low
    indexed = Image.fromarray((mix * 255).astype(np.uint8), "P")
    indexed.putpalette(np.clip(ramp, 0, 255).astype(np.uint8).tobytes())
    return indexed.convert("RGB")


def _rgb(color: npt.NDArray[np.float64]) -> tuple[int, int, int]:
    r, g, b = (int(v) for v in np.clip(color, 0, 255))
    return r, g, b


def _noise(
    bits: np.random.PCG64, color: npt.NDArray[np.float64], strength: float, width: int, height: int
) -> Image.Image:
    raw = bits.random_raw(-(-width * height // 4)).view(np.uint16)[: width * height]
    grain = (raw.astype(np.float32) / 65535 - 0.5) * (2 * strength)
    shades = grain.reshape(height, width, 1) + color.astype(np.float32)
    return Image.fromarray(np.clip(shades, 0, 255).astype(np.uint8), "RGB")


def _blobs(
    bits: np.random.PCG64,
    first: npt.NDArray[np.float64],
    second: npt.NDArray[np.float64],
    width: int,
    height: int,
) -> Image.Image:
    raw = (bits.random_raw(36) >> np.uint64(40)).astype(np.float64).reshape(6, 6, 1) / 2**24
    coarse = first + (second - first) * raw**1.5
    small = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8), "RGB")
    return small.resize((width, height), Image.Resampling.BICUBIC)


@functools.lru_cache(maxsize=64)
def _axes(width: int, height: int, aspect: float) -> tuple[Pixels, Pixels]:
    """Pixel centres in units of the scene's shorter side: a row and a column."""
    across, down = max(1.0, aspect), max(1.0, 1 / aspect)
    x = (np.arange(width, dtype=np.float32) + 0.5) * (across / width)
    y = (np.arange(height, dtype=np.float32) + 0.5) * (down / height)
    return x[None, :], y[:, None]


def _gradient(width: int, height: int, aspect: float, jitter: Jitter) -> Pixels:
    x, y = _axes(width, height, aspect)
    turn = 2 * math.pi * float(jitter[2])
    ramp = x * np.float32(math.cos(turn)) + y * np.float32(math.sin(turn))
    low, high = float(ramp.min()), float(ramp.max())
    return (ramp - low) / max(high - low, 1e-6)


def _stripes(width: int, height: int, aspect: float, jitter: Jitter) -> Pixels:
    x, y = _axes(width, height, aspect)
    turn = math.pi * float(jitter[2])
    period = 0.08 + 0.2 * float(jitter[3])
    along = x * np.float32(math.cos(turn)) + y * np.float32(math.sin(turn))
    edge = 0.5 * period * min(width, height)  # pixels from edge to edge; edges are soft
    wave = np.abs((along / period + float(jitter[4])) % 1.0 - 0.5) * 4 - 1
    return np.clip(wave * edge / 2 + 0.5, 0, 1)


def _checker(width: int, height: int, aspect: float, jitter: Jitter) -> Pixels:
    x, y = _axes(width, height, aspect)
    cell = 0.08 + 0.17 * float(jitter[3])
    column = np.floor(x / np.float32(cell) + np.float32(jitter[4]))
    row = np.floor(y / cell + float(jitter[5]))
    return ((column + row) % 2).astype(np.float32)


def _dots(width: int, height: int, aspect: float, jitter: Jitter) -> Pixels:
    x, y = _axes(width, height, aspect)
    cell = 0.1 + 0.15 * float(jitter[3])
    dx = (x / cell + float(jitter[4])) % 1.0 - 0.5
    dy = (y / cell + float(jitter[5])) % 1.0 - 0.5
    radius = 0.2 + 0.15 * float(jitter[2])
    edge = cell * min(width, height)
    return np.clip((radius - np.sqrt(dx * dx + dy * dy)) * edge + 0.5, 0, 1)


_MIX = {"gradient": _gradient, "stripes": _stripes, "checker": _checker, "dots": _dots}
