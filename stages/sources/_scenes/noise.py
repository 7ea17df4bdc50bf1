"""What is wrong with a row: its kind, caption and URL, and what it is a copy of.

A row is a pure function of the world's parameters and its index; nothing is stored.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from winnow.contracts.identity import row_uid, stable_hash64
from winnow.stages.sources import _virtual
from winnow.stages.sources._scenes.captions import (
    Statement,
    caption,
    num_variants,
    state,
)
from winnow.stages.sources._scenes.draw import Draw
from winnow.stages.sources._scenes.layout import scene
from winnow.stages.sources._scenes.model import Scene, SceneOptions, options_digest
from winnow.stages.sources._scenes.paragraphs import Paragraph, paragraph
from winnow.stages.sources._scenes.sprites import LANGUAGES, name_in
from winnow.stages.sources._virtual import earlier_row, kind_at

CLEAN = "clean"
Captions = Literal["short", "paragraph"]
SHARES: Mapping[str, float] = MappingProxyType(
    {
        "swapped_caption": 0.10,
        "foreign_caption": 0.08,
        "boilerplate_caption": 0.05,
        "file_name_caption": 0.04,
        "exact_duplicate": 0.04,
        "near_duplicate": 0.06,
        "repeated_row": 0.02,
        "tiny": 0.03,
        "extreme_aspect": 0.02,
        "corrupt": 0.02,
        "dead_link": 0.03,
        "slow_link": 0.004,
        "html": 0.02,
    }
)
"""Default share of each kind; the rest is clean.

swapped_caption      the English caption of another scene, without a common object
foreign_caption      a true caption in another language
boilerplate_caption  text that many pages share and that says nothing of the picture
file_name_caption    a file name
exact_duplicate      the same bytes under another URL; the caption is the same or re-worded
near_duplicate       an original re-encoded, resized, cropped (<= 5 %), brightened or watermarked
repeated_row         URL and caption of an earlier row once more: the same uid
tiny                 at most 60 pixels a side
extreme_aspect       one side at least 3.5 times the other
corrupt              truncated or random bytes, served as an image
dead_link            HTTP 404 or 410
slow_link            one byte a second
html                 a web page with status 200 instead of the image
"""
COPIES = frozenset({"exact_duplicate", "near_duplicate", "repeated_row"})
BOILERPLATE = (
    "image",
    "Click to enlarge",
    "photo",
    "Part of the Flat Icon Collection",
    "Buy now - free shipping",
    "stock illustration, royalty free",
    "thumbnail",
    "All rights reserved",
    "Loading...",
    "View full size",
    "Share on social media",
    "Advertisement",
    "Picture of the day",
    "product image 1",
    "Default placeholder image for this listing",
    "Read more about this item in our online shop",
    "Subscribe to our newsletter for weekly updates",
    "Image may be subject to copyright",
)
_EXTENSIONS = ("jpg",) * 14 + ("png",) * 3 + ("webp",) * 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of the noisy web.

    original: index of the row that this one is a copy of; None where it is no copy.
    scene_index: number of the scene in the picture; said: its English caption, as facts.
    path: the URL without scheme and host.
    """

    index: int
    kind: str
    path: str
    text: str
    scene_index: int
    said: Statement | Paragraph
    language: str
    original: int | None = None

    @property
    def truth(self) -> str:
        """An English caption of the picture."""
        return self.said.text


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """The parameters that rows and their bytes depend on.

    shares: (kind, share), in the order of SHARES. languages: of the foreign captions. captions:
    what English ones are.
    """

    seed: int
    host: str
    options: SceneOptions
    shares: tuple[tuple[str, float], ...]
    languages: tuple[str, ...]
    captions: Captions = "short"

    def row(self, index: int) -> Row:
        """Return row ``index`` >= 0."""
        kind = _kind(self, index)
        original = _original(self, index) if kind in COPIES else None
        if original is None:
            return _fresh(self, index, CLEAN if kind in COPIES else kind)
        source = _fresh(self, original, CLEAN)
        draw = Draw("copy", self.seed, index)
        repeat = kind == "repeated_row"
        text = source.text
        if not repeat and draw.chance(0.5):
            text = _english(self, self.scene(source), draw).text
        return Row(
            index=index,
            kind=kind,
            path=source.path if repeat else _path(self, index, draw),
            text=text,
            scene_index=source.scene_index,
            said=source.said,
            language="en",
            original=original,
        )

    def scene(self, row: Row) -> Scene:
        """Return the scene in the row's picture."""
        return _drawn(self, row.scene_index, row.kind)

    def url(self, row: Row) -> str:
        """Return the row's URL; it names no port."""
        return f"http://{self.host}{row.path}"

    def uid(self, row: Row) -> bytes:
        """Return the row's uid: of its URL and text."""
        return row_uid(self.url(row), row.text)


def checked_shares(noise: Mapping[str, float] | None) -> tuple[tuple[str, float], ...]:
    """Return the shares in order; None stands for SHARES. Raises RecipeError for bad ones."""
    given = SHARES if noise is None else noise
    return _virtual.checked_shares("scenes", given, tuple(SHARES), COPIES)


@functools.lru_cache(maxsize=64)
def world_digest(world: World) -> str:
    """Return 8 hex digits that stand for everything but the seed."""
    values = [world.shares, world.languages, options_digest(world.options)]
    if world.captions != "short":  # webs keep the URLs that they had before there was a choice
        values.append(world.captions)
    flat = repr(tuple(values))
    return f"{stable_hash64('world', flat) >> 32:08x}"


def _kind(world: World, index: int) -> str:
    place = Draw("kind", world.seed, index).uniform(0, 1)
    return kind_at(world.shares, place, CLEAN)


def _original(world: World, index: int) -> int | None:
    """Return an earlier clean row; None where there is none (the row is then clean itself)."""
    return earlier_row("original", world.seed, index, lambda row: _kind(world, row) == CLEAN)


def _drawn(world: World, index: int, kind: str) -> Scene:
    options = world.options
    if kind == "extreme_aspect":
        ratio = round(Draw("aspect", world.seed, index).uniform(3.6, 5.5), 3)
        if stable_hash64("upright", world.seed, index) % 3 == 0:
            ratio = 1 / ratio
        side = options.sizes[0]
        options = replace(options, aspects=(ratio, ratio), sizes=(side, side))
    return scene(world.seed, index, options)


def _fresh(world: World, index: int, kind: str) -> Row:
    draw = Draw("row", world.seed, index)
    path = _path(world, index, draw)
    drawn = _drawn(world, index, kind)
    said = _english(world, drawn, draw)
    text, language = said.text, "en"
    if kind == "swapped_caption":
        text = _english(world, _other_scene(world, index, drawn), draw).text
    elif kind == "foreign_caption":
        text, language = _foreign(drawn, draw, world.languages)
    elif kind == "boilerplate_caption":
        text = BOILERPLATE[int(len(BOILERPLATE) * draw.uniform(0, 1) ** 2)]
    elif kind == "file_name_caption":
        text = _file_name(draw, drawn)
    return Row(
        index=index,
        kind=kind,
        path=path,
        text=text,
        scene_index=index,
        said=said,
        language=language,
    )


def _path(world: World, index: int, draw: Draw) -> str:
    return f"/{world.seed}/{index}.{draw.pick(_EXTENSIONS)}?{world_digest(world)}"


def _english(world: World, drawn: Scene, draw: Draw) -> Statement | Paragraph:
    """Return an English caption of at least three words, so that a clean row is clean to all."""
    part = world.options.part
    if world.captions == "paragraph":
        return paragraph(drawn, draw, part)
    said = state(drawn, draw.integer(0, num_variants("en", part) - 1), part)
    return said if len(said.text.split()) >= 3 else state(drawn, 1, part)


def _other_scene(world: World, index: int, drawn: Scene) -> Scene:
    """Return a scene of no row, without an object of this one."""
    here = {thing.concept for thing in drawn.objects}
    other = drawn
    for attempt in range(64):
        number = 2**32 + stable_hash64("swap", world.seed, index, attempt) % 2**31
        other = scene(world.seed, number, world.options)
        if here.isdisjoint(thing.concept for thing in other.objects):
            break
    return other


def _foreign(drawn: Scene, draw: Draw, languages: tuple[str, ...]) -> tuple[str, str]:
    language = draw.pick(languages)
    # "gorilla" alone is as English as it is Dutch: such a list goes into a sentence.
    told_apart = any(name_in(language, g.concept) != g.concept for g in drawn.groups)
    variant = draw.integer(0, 1) if told_apart else 1
    return caption(drawn, language, variant), language


def _file_name(draw: Draw, drawn: Scene) -> str:
    number = draw.integer(1, 9999)
    name = drawn.objects[0].concept.lower().replace(" ", "-")
    return draw.pick(
        (
            f"IMG_{number:04d}.JPG",
            f"DSC{number:05d}.jpg",
            f"{name}-{number}x{number % 7 + 3}00.png",
            f"{name}_final_v{number % 9 + 1}.png",
            f"screenshot-2019-0{number % 9 + 1}-{number % 28 + 1:02d}.png",
            f"{stable_hash64('name', number):016x}.jpeg",
        )
    )


def default_languages() -> tuple[str, ...]:
    """Return the languages of foreign captions where none are asked for: all but English."""
    return tuple(language for language in LANGUAGES if language != "en")
