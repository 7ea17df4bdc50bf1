"""The packaged sprites: pictures, names in many languages, colors and extents under rotation."""

from __future__ import annotations

import functools
import io
import json
import math
import threading
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType
from typing import cast

import numpy as np
import numpy.typing as npt
from PIL import Image

_ASSETS = files("winnow.stages.sources._scenes") / "assets"
_PAD = 2  # transparent pixels around a sprite, so that interpolation fades its edge
_LEVELS = 4

PAINTS: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "red": (226, 44, 40),
        "orange": (249, 134, 22),
        "yellow": (250, 213, 36),
        "green": (56, 164, 60),
        "blue": (42, 104, 224),
        "purple": (138, 64, 196),
        "pink": (246, 118, 178),
        "black": (46, 46, 52),
        "white": (246, 246, 246),
    }
)
"""Colors that an object can be painted in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Concept:
    """A kind of object: its English singular is the key; ``code`` is the emoji's code point."""

    name: str
    plural: str
    code: str
    paint: bool
    support: bool


def _read_concepts() -> dict[str, Concept]:
    concepts = {}
    for line in (_ASSETS / "concepts.txt").read_text(encoding="ascii").splitlines():
        if not line.startswith("#"):
            code, name, plural, tags = (line.split("\t") + [""])[:4]
            concepts[name] = Concept(
                name=name,
                plural=plural,
                code=code,
                paint="paint" in tags,
                support="support" in tags,
            )
    return concepts


CONCEPT: Mapping[str, Concept] = MappingProxyType(_read_concepts())
"""Concept by English name."""
CONCEPTS: tuple[str, ...] = tuple(CONCEPT)
"""All English names, in a fixed order."""


@functools.cache
def _names() -> dict[str, dict[str, str]]:
    by_language = json.loads((_ASSETS / "names.json").read_text(encoding="utf-8"))
    return {
        language: dict(zip(CONCEPTS, names, strict=True)) for language, names in by_language.items()
    }


LANGUAGES: tuple[str, ...] = tuple(_names())
"""ISO 639-1 codes with names for every concept; English first."""


def name_in(language: str, concept: str) -> str:
    """Return the concept's name in a language (CLDR's short name; no article, singular)."""
    return _names()[language][concept]


@functools.cache
def _archive() -> tuple[zipfile.ZipFile, threading.Lock]:
    return zipfile.ZipFile(io.BytesIO((_ASSETS / "sprites.zip").read_bytes())), threading.Lock()


@functools.cache
def sprite(concept: str) -> Image.Image:
    """Return the RGBA picture of a concept, cropped to what is visible."""
    archive, lock = _archive()
    with lock:
        data = archive.read(f"{CONCEPT[concept].code}.png")
    return Image.open(io.BytesIO(data)).convert("RGBA")


@functools.cache
def levels(concept: str, color: str | None) -> tuple[Image.Image, ...]:
    """Return the padded, premultiplied (RGBa) sprite at 1, 1/2, 1/4 and 1/8 of its size."""
    image = sprite(concept)
    if color is not None:
        image = painted(image, PAINTS[color])
    # A multiple of 8 in each direction keeps every level's scale an exact power of two.
    size = tuple(-(-(side + 2 * _PAD) // 8) * 8 for side in image.size)
    padded = Image.new("RGBA", cast(tuple[int, int], size))
    padded.paste(image, (_PAD, _PAD))
    full = padded.convert("RGBa")
    return (full, *(full.reduce(2**level) for level in range(1, _LEVELS)))


def painted(image: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    """Return ``image`` with its colored parts in another color; grays stay, light and shade stay.

    A picture that is mostly gray is painted all over.
    """
    rgba = np.asarray(image).astype(np.float32)
    rgb, alpha = rgba[..., :3], rgba[..., 3:]
    high = rgb.max(axis=2)
    saturation = (high - rgb.min(axis=2)) / np.maximum(high, 1)
    visible = alpha[..., 0] > 128
    weight = np.clip((saturation - 0.08) / 0.1, 0, 1)
    light = rgb @ np.array([0.299, 0.587, 0.114], np.float32)
    if weight[visible].mean() < 0.25:
        weight = np.ones_like(weight)
    body = visible & (weight > 0.5)
    shade = light / max(float(np.median(light[body])), 60.0)
    target = np.array(color, np.float32)
    dark = target * np.clip(shade, 0.25, 1)[..., None]
    gleam = np.clip((shade - 1) * 0.5, 0, 0.7)[..., None]
    new = dark + (255 - dark) * gleam
    mixed = rgb + (new - rgb) * weight[..., None]
    return Image.fromarray(np.concatenate([mixed, alpha], axis=2).round().astype(np.uint8), "RGBA")


@functools.cache
def _outline(concept: str) -> npt.NDArray[np.float64]:
    """Corner points of the leftmost and rightmost visible pixel of every row, (n, 2)."""
    alpha = np.asarray(sprite(concept).getchannel("A")) > 64
    points = []
    for y in np.flatnonzero(alpha.any(axis=1)):
        xs = np.flatnonzero(alpha[y])
        points += [(x, y + dy) for x in (xs[0], xs[-1] + 1) for dy in (0, 1)]
    return np.array(points, np.float64)


@functools.cache
def extent(concept: str, rotation: int) -> tuple[float, float, float, float]:
    """Return the visible box of a sprite turned by ``rotation`` degrees counter-clockwise.

    (left, top, right, bottom) in sprite pixels, about the sprite's centre as origin.
    """
    centred = _outline(concept) - np.array(sprite(concept).size) / 2
    turn = math.radians(rotation)
    x = centred[:, 0] * math.cos(turn) + centred[:, 1] * math.sin(turn)
    y = centred[:, 1] * math.cos(turn) - centred[:, 0] * math.sin(turn)
    # Rounded, so that no library's last bit can change a scene.
    return tuple(round(float(v), 3) for v in (x.min(), y.min(), x.max(), y.max()))  # type: ignore[return-value]


def patch(
    concept: str,
    color: str | None,
    rotation: int,
    flip: bool,
    width: int,
    height: int,
    box: tuple[float, float, float, float],
) -> Image.Image:
    """Return a (width, height) RGBA picture with the turned sprite's visible box at ``box``.

    ``flip`` mirrors the sprite left to right after turning. ``box`` is in pixels of the result.
    """
    left, top, right, bottom = extent(concept, rotation)
    kx, ky = (right - left) / (box[2] - box[0]), (bottom - top) / (box[3] - box[1])
    level = min(_LEVELS - 1, max(0, int(math.log2(max(kx, ky, 1)) + 0.35)))
    source = levels(concept, color)[level]
    size = sprite(concept).size
    cos, sin, shrink = math.cos(math.radians(rotation)), math.sin(math.radians(rotation)), 2**level
    # result pixel (u, v) -> turned sprite (x, y) about its centre -> sprite pixel at this level
    ax, bx = (-kx, right + kx * box[0]) if flip else (kx, left - kx * box[0])
    ay, by = ky, top - ky * box[1]
    origin_x, origin_y = size[0] / 2 + _PAD, size[1] / 2 + _PAD
    data = (
        cos * ax / shrink, -sin * ay / shrink, (cos * bx - sin * by + origin_x) / shrink,
        sin * ax / shrink, cos * ay / shrink, (sin * bx + cos * by + origin_y) / shrink,
    )  # fmt: skip
    turned = source.transform(
        (width, height), Image.Transform.AFFINE, data, resample=Image.Resampling.BILINEAR
    )
    return turned.convert("RGBA")
