"""What is wrong with a recording or its text: kind, words, voice and URL, and what it copies.

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
from winnow.stages.sources._scenes import noise as scenes
from winnow.stages.sources._scenes.captions import article
from winnow.stages.sources._scenes.draw import Draw
from winnow.stages.sources._scenes.model import Part
from winnow.stages.sources._speech.damage import NoiseColor
from winnow.stages.sources._speech.sentences import sentence
from winnow.stages.sources._virtual import earlier_row, kind_at

CLEAN = "clean"
Content = Literal["sentences", "names"]
Format = Literal["wav", "flac", "mp3", "opus", "ogg", "m4a"]
FORMATS: tuple[Format, ...] = ("wav", "flac", "mp3", "opus", "ogg", "m4a")
SHARES: Mapping[str, float] = MappingProxyType(
    {
        "noisy": 0.07,
        "clipped": 0.04,
        "silent": 0.02,
        "mostly_silent": 0.03,
        "truncated": 0.03,
        "truncated_bytes": 0.02,
        "wrong_text": 0.07,
        "wrong_language": 0.04,
        "foreign_text": 0.03,
        "exact_duplicate": 0.04,
        "near_duplicate": 0.06,
        "repeated_row": 0.02,
        "upsampled": 0.03,
        "dc_offset": 0.02,
        "corrupt": 0.02,
        "dead_link": 0.03,
        "slow_link": 0.004,
        "html": 0.02,
    }
)
"""Default share of each kind; the rest is clean.

noisy            white or pink noise or the babble of other voices, SNR -5 to 8 dB
clipped          3 to 15 % of the samples at full scale
silent           no sound: zeros, or a noise floor of -80 dB
mostly_silent    70 to 90 % zeros around or inside a short sentence
truncated        the sound stops after 20 to 60 % of the text
truncated_bytes  the file stops after 20 to 60 % of its bytes
wrong_text       an English sentence that nobody says here
wrong_language   the voice speaks another language; the text is an English sentence
foreign_text     the voice speaks English; the text is a sentence in another language
exact_duplicate  the same bytes under another URL, with the same text
near_duplicate   an original re-encoded to mp3 or opus, or also made louder or softer, or trimmed
repeated_row     URL and text of an earlier row once more: the same uid
upsampled        a telephone recording (nothing above 4 kHz) in a file of 22 to 44 kHz
dc_offset        around 0.05 to 0.3 of full scale instead of 0; never opus, which takes that out
corrupt          random bytes, some behind the first bytes of a recording
dead_link        HTTP 404 or 410
slow_link        one byte a second
html             a web page with status 200 instead of the recording
"""
COPIES = scenes.COPIES
NO_RECORDING = frozenset({"corrupt", "dead_link", "html"})
CARRIERS = ("{name}", "{a} {name}", "this is {a} {name}", "here is {a} {name}")
"""What a voice says of a concept, with content "names"."""
_WEIGHTS = {"wav": 4, "flac": 4, "mp3": 4, "opus": 3, "ogg": 1, "m4a": 1}  # by encoding time
_RATES = (16_000,) * 2 + (22_050,) * 6 + (24_000, 44_100)
_UPSAMPLED_RATES = (22_050, 24_000, 44_100)
_COLORS: tuple[NoiseColor, ...] = ("white", "pink", "babble")


@dataclass(frozen=True, kw_only=True, slots=True)
class Voice:
    """One speaker. language: ISO 639-1 of what is spoken; the others as in ``voice.synthesise``."""

    language: str
    variant: str
    speed: int
    pitch: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of the noisy web.

    said: the words that the voice says; of a truncated row all that it would have said.
    number: names the recording and its random draws (that of the original, for copies).
    sample_rate: Hz, of the file (but an encoder may take another). snr_db: of the sound; of clean
        rows that of a faint room noise. color: of the noise.
    clipped_ratio, silence_ratio: shares of samples clipped, of silence added. kept_ratio: share of
        the sound (truncated) or of the file (truncated_bytes) that is left.
    changes: of a near-duplicate. original: index of the row that this one is a copy of.
    path: the URL without scheme and host. picture: row of the scenes, with content "names".
    """

    index: int
    kind: str
    path: str
    text: str
    said: str
    number: int
    voice: Voice
    sample_rate: int
    snr_db: float
    color: NoiseColor = "white"
    clipped_ratio: float = 0.0
    silence_ratio: float = 0.0
    kept_ratio: float = 1.0
    changes: tuple[str, ...] = ()
    original: int | None = None
    picture: scenes.Row | None = None

    @property
    def format(self) -> str:
        """The format of the file: its name's extension."""
        return self.path.partition("?")[0].rpartition(".")[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """The parameters that rows and their bytes depend on.

    shares: (kind, share), in the order of SHARES. languages: other than English. pictures: of the
    concepts that are named; None with content "sentences".
    """

    seed: int
    host: str
    part: Part
    shares: tuple[tuple[str, float], ...]
    voices: tuple[str, ...]
    languages: tuple[str, ...]
    formats: tuple[Format, ...]
    pictures: scenes.World | None = None

    def row(self, index: int) -> Row:
        """Return row ``index`` >= 0."""
        kind = self._kind(index)
        original = self._original(index) if kind in COPIES else None
        if original is None:
            return _fresh(self, index, CLEAN if kind in COPIES else kind)
        source = _fresh(self, original, CLEAN)
        if kind == "near_duplicate":
            return _near(self, index, source)
        path = source.path if kind == "repeated_row" else _path(self, index, source.format)
        return replace(source, index=index, kind=kind, path=path, original=original)

    def url(self, row: Row) -> str:
        """Return the row's URL; it names no port."""
        return f"http://{self.host}{row.path}"

    def uid(self, row: Row) -> bytes:
        """Return the row's uid: of its URL and text."""
        return row_uid(self.url(row), row.text)

    def _kind(self, index: int) -> str:
        place = Draw("speech kind", self.seed, index).uniform(0, 1)
        return kind_at(self.shares, place, CLEAN)

    def _original(self, index: int) -> int | None:
        """Return an earlier clean row; None where there is none (the row is then clean itself)."""
        return earlier_row(
            "speech original", self.seed, index, lambda row: self._kind(row) == CLEAN
        )


def checked_shares(noise: Mapping[str, float] | None) -> tuple[tuple[str, float], ...]:
    """Return the shares in order; None stands for SHARES. Raises RecipeError for bad ones."""
    given = SHARES if noise is None else noise
    return _virtual.checked_shares("speech", given, tuple(SHARES), COPIES)


@functools.lru_cache(maxsize=64)
def world_digest(world: World) -> str:
    """Return 8 hex digits that stand for everything but seed and host."""
    values = (world.part, world.shares, world.voices, world.languages, world.formats)
    pictures = world.pictures
    if pictures is None:
        return f"{stable_hash64('speech world', repr(values)) >> 32:08x}"
    of_pictures = (pictures.seed, pictures.host, scenes.world_digest(pictures))
    return f"{stable_hash64('speech world', repr((values, of_pictures))) >> 32:08x}"


def _path(world: World, index: int, extension: str) -> str:
    return f"/{world.seed}/{index}.{extension}?{world_digest(world)}"


def _fresh(world: World, index: int, kind: str) -> Row:
    draw = Draw("speech row", world.seed, index)
    formats = [f for f in world.formats if kind != "dc_offset" or f != "opus"] or ["wav"]
    extension = draw.pick([f for f in formats for _ in range(_WEIGHTS[f])])
    language = draw.pick(world.languages) if kind == "wrong_language" else "en"
    picture = None
    if world.pictures is not None:
        picture = world.pictures.row(index)
        text, said = _named(picture, draw)
    else:
        text, said = _words(world, index, kind, language)
    row = Row(
        index=index,
        kind=kind,
        path=_path(world, index, extension),
        text=text,
        said=said,
        number=index,
        voice=Voice(
            language=language,
            variant=draw.pick(world.voices),
            speed=draw.integer(145, 185),
            pitch=draw.integer(35, 65),
        ),
        sample_rate=draw.pick(_UPSAMPLED_RATES if kind == "upsampled" else _RATES),
        snr_db=round(draw.uniform(40, 55), 2),
        picture=picture,
    )
    return _damaged(row, draw)


def _damaged(row: Row, draw: Draw) -> Row:
    """Return the row with how much is wrong with it."""
    if row.kind == "noisy":
        return replace(row, snr_db=round(draw.uniform(-5, 8), 2), color=draw.pick(_COLORS))
    if row.kind == "clipped":
        return replace(row, clipped_ratio=round(draw.uniform(0.03, 0.15), 4))
    if row.kind == "silent":
        return replace(row, silence_ratio=1.0)
    if row.kind == "mostly_silent":
        return replace(row, silence_ratio=round(draw.uniform(0.7, 0.9), 4))
    if row.kind in ("truncated", "truncated_bytes"):
        return replace(row, kept_ratio=round(draw.uniform(0.2, 0.6), 4))
    return row


def _words(world: World, index: int, kind: str, language: str) -> tuple[str, str]:
    """Return the text and what is said, in ``language``."""
    seed, part = world.seed, world.part
    text = sentence(seed, index, part=part, short=kind == "mostly_silent")
    if kind == "wrong_text":
        return sentence(seed, index, "other", part=part), text
    if kind == "foreign_text":
        other = Draw("speech text", seed, index).pick(world.languages)
        return sentence(seed, index, language=other, part=part), text
    if kind == "wrong_language":
        return text, sentence(seed, index, language=language, part=part)
    return text, text


def _named(picture: scenes.Row, draw: Draw) -> tuple[str, str]:
    """Return a caption and what is said of the picture's only concept."""
    name = picture.said.groups[0].concept
    carrier = draw.pick(CARRIERS)
    text = f"{article(name)} {name}"
    return text, carrier.format(a=article(name), name=name)


def _near(world: World, index: int, source: Row) -> Row:
    """Return a copy in another encoding, and with one to two further changes for most."""
    draw = Draw("speech copy", world.seed, index)
    changes = draw.pick((("encode",), ("encode", "gain"), ("encode", "trim"),
                         ("encode", "gain", "trim")))  # fmt: skip
    extension = draw.pick(("mp3", "opus"))
    return replace(
        source,
        index=index,
        kind="near_duplicate",
        path=_path(world, index, extension),
        changes=(extension, *changes[1:]),
        original=source.index,
    )
