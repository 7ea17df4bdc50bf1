"""The packaged sprites: complete, small, licensed; geometry against a plain rotation."""

from __future__ import annotations

import colorsys
import unicodedata
from importlib.resources import files

import numpy as np
import pytest
from PIL import Image

from winnow.stages.sources._scenes.sprites import (
    CONCEPT,
    CONCEPTS,
    LANGUAGES,
    PAINTS,
    extent,
    name_in,
    painted,
    patch,
    sprite,
)

ASSETS = files("winnow.stages.sources._scenes") / "assets"
PAINTABLE = [name for name in CONCEPTS if CONCEPT[name].paint]


def test_assets_are_small_and_licensed() -> None:
    sizes = {item.name: len(item.read_bytes()) for item in ASSETS.iterdir() if item.is_file()}
    assert sum(sizes.values()) <= 3 << 20
    assert "SIL OPEN FONT LICENSE Version 1.1" in (ASSETS / "LICENSE-NOTO-EMOJI.txt").read_text()
    assert "UNICODE LICENSE V3" in (ASSETS / "LICENSE-CLDR.txt").read_text(encoding="utf-8")


def test_about_three_hundred_concepts_each_with_a_picture() -> None:
    assert len(CONCEPTS) == len(set(CONCEPTS)) >= 300
    assert len({CONCEPT[name].code for name in CONCEPTS}) == len(CONCEPTS)
    pictures = {sprite(name).tobytes() for name in CONCEPTS}
    assert len(pictures) == len(CONCEPTS)
    for name in CONCEPTS:
        image = sprite(name)
        assert image.mode == "RGBA"
        assert max(image.size) >= 96
        # Cropped: something visible touches every side.
        alpha = np.asarray(image.getchannel("A")) > 0
        assert alpha[0].any() and alpha[-1].any() and alpha[:, 0].any() and alpha[:, -1].any()


def test_names_in_at_least_twelve_languages_and_many_scripts() -> None:
    assert LANGUAGES[0] == "en"
    assert len(LANGUAGES) >= 13
    scripts = set()
    for language in LANGUAGES:
        names = [name_in(language, concept) for concept in CONCEPTS]
        assert all(name == name.strip() and name for name in names)
        letters = "".join(names).replace(" ", "")
        scripts |= {unicodedata.name(c).split()[0] for c in letters if c.isalpha()}
    assert {"LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "DEVANAGARI", "THAI"} <= scripts
    assert {"HIRAGANA", "KATAKANA", "HANGUL", "CJK"} <= scripts


def test_names_are_those_of_the_concept() -> None:
    assert name_in("en", "cat") == "cat"
    assert name_in("de", "cat") == "Katze"
    assert name_in("ja", "dog") == "\u30a4\u30cc"


@pytest.mark.parametrize("rotation", [-12, 0, 9])
@pytest.mark.parametrize("concept", ["cat", "guitar", "umbrella", "bus"])
def test_extent_is_what_a_plain_rotation_shows(concept: str, rotation: int) -> None:
    wide = Image.new("L", (400, 400))
    alpha = sprite(concept).getchannel("A")
    at = (400 - alpha.width) // 2, (400 - alpha.height) // 2
    wide.paste(alpha, at)
    center = at[0] + alpha.width / 2, at[1] + alpha.height / 2
    turned = wide.rotate(rotation, Image.Resampling.BICUBIC, center=center)
    box = turned.point([0] * 65 + [255] * 191).getbbox()
    assert box is not None
    seen = np.array(box) - np.array([*center, *center])
    assert np.abs(seen - np.array(extent(concept, rotation))).max() <= 1.5


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("rotation", [-12, 0, 6])
@pytest.mark.parametrize("side", [12, 40, 150])
def test_patch_fills_its_box(side: int, rotation: int, flip: bool) -> None:
    box = (10.0, 5.0, 10.0 + side, 5.0 + 0.7 * side)
    drawn = patch("violin", None, rotation, flip, side + 20, side + 20, box)
    seen = drawn.getchannel("A").point([0] * 97 + [255] * 159).getbbox()
    assert seen is not None
    assert np.abs(np.array(seen) - np.array(box)).max() <= max(2.0, side * 0.03)


def test_flip_mirrors_what_was_turned() -> None:
    plain = patch("guitar", None, 9, False, 80, 80, (5, 5, 75, 75))
    mirrored = patch("guitar", None, 9, True, 80, 80, (5, 5, 75, 75))
    back = mirrored.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    gap = np.abs(np.asarray(plain).astype(int) - np.asarray(back).astype(int))
    assert gap.mean() < 1.0


@pytest.mark.parametrize("color", ["red", "yellow", "green", "blue", "purple"])
def test_paint_gives_the_color_that_is_said(color: str) -> None:
    wanted = colorsys.rgb_to_hsv(*(v / 255 for v in PAINTS[color]))[0]
    for name in PAINTABLE:
        image = np.asarray(painted(sprite(name), PAINTS[color])).reshape(-1, 4)
        rgb = image[image[:, 3] > 200, :3].astype(float)
        colored = rgb[(rgb.max(1) - rgb.min(1)) > 0.3 * np.maximum(rgb.max(1), 1)]
        assert len(colored) > 0.15 * len(rgb), name
        hues = np.array([colorsys.rgb_to_hsv(*(pixel / 255))[0] for pixel in colored[::37]])
        distance = np.abs((hues - wanted + 0.5) % 1 - 0.5)
        assert np.median(distance) < 0.05, name


def test_plurals_are_words_of_their_own_or_known_not_to_be() -> None:
    same = {name for name in CONCEPTS if CONCEPT[name].plural == name}
    assert same == {"deer", "sheep", "fish", "blowfish", "shrimp", "squid"}
    assert CONCEPT["wolf"].plural == "wolves"
    assert CONCEPT["pair of jeans"].plural == "pairs of jeans"
