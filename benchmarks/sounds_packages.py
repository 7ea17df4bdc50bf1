"""What Debian's packages say of their recordings: letters, words, animals, instruments, samples."""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

PACKAGES = ("klettres-data", "ktuberling-data", "gcompris-qt-data", "sonic-pi-samples")

_SOUND = re.compile(r'<sound name="([^"]+)" file="([^"]+)"')
_SECTION = re.compile(r"<(alphabet|syllables)>(.*?)</\1>", re.S)
_COMMENT = re.compile(r"<!--.*?-->", re.S)
_ANIMALS = {"chickens": "chicken"}
_RCC_VERSIONS = {1: 14, 2: 22, 3: 22}
"""Version of a Qt resource file -> bytes of an entry of its tree."""
_COMPRESSED, _FOLDER = 1, 2

LANGUAGE_NAMES = {
    "ar": "Arabic", "ca": "Catalan", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek",
    "en": "English", "es": "Spanish", "fi": "Finnish", "fr": "French", "ga": "Irish",
    "gl": "Galician", "he": "Hebrew", "hu": "Hungarian", "id": "Indonesian", "it": "Italian",
    "lt": "Lithuanian", "ml": "Malayalam", "nb": "Norwegian", "nds": "Low German", "nl": "Dutch",
    "nn": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian",
    "sl": "Slovenian", "sr": "Serbian", "sv": "Swedish", "tn": "Tswana", "uk": "Ukrainian",
    "wa": "Walloon",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """One recording or picture of a package.

    audio, image: a file name to give it, and its bytes; None where there is none.
    text: what it is, in English.  language: ISO 639 code of what is spoken; None for sounds.
    said: what is spoken, in that language, where the package says.
    """

    origin: str
    text: str
    audio: tuple[str, bytes] | None = None
    image: tuple[str, bytes] | None = None
    language: str | None = None
    said: str | None = None


def letters(tree: Path) -> Iterator[Found]:
    """Yield klettres' letters and syllables: spoken by people, in about twenty languages."""
    root = tree / "usr/share/klettres"
    for listing in sorted(root.glob("*/sounds.xml")):
        folder = listing.parent.name
        language = folder.partition("_")[0]
        text = _COMMENT.sub("", listing.read_text(encoding="utf-8"))
        for section in _SECTION.finditer(text):
            what = "letter" if section[1] == "alphabet" else "syllable"
            for name, file in _SOUND.findall(section[2]):
                path = root / file
                if path.is_file():
                    yield Found(
                        origin="klettres",
                        text=f"the {LANGUAGE_NAMES[language]} {what} {name}",
                        audio=(f"klettres/{file}", path.read_bytes()),
                        language=language,
                        said=name.lower(),
                    )


def words(tree: Path) -> Iterator[Found]:
    """Yield ktuberling's words: an English name for what people say in their languages."""
    root = tree / "usr/share/ktuberling/sounds"
    for listing in sorted(root.glob("*.soundtheme")):
        language = re.split("[@_]", listing.stem)[0]
        for name, file in _SOUND.findall(_COMMENT.sub("", listing.read_text(encoding="utf-8"))):
            path = root / file
            if path.is_file():
                word = name.replace("_", " ").replace("-", " ")
                yield Found(
                    origin="ktuberling",
                    text=f"the {LANGUAGE_NAMES[language]} word for {word}",
                    audio=(f"ktuberling/{file}", path.read_bytes()),
                    language=language,
                    said=word if language == "en" else None,
                )


def samples(tree: Path) -> Iterator[Found]:
    """Yield sonic-pi's sounds: drums, basses, guitars, loops, named by their files."""
    kinds = {
        "ambi": "ambient", "bd": "bass drum", "elec": "electric", "misc": "", "perc": "percussion",
        "sn": "snare drum", "hat": "hi-hat", "ride": "ride cymbal", "tabla": "tabla drum",
        "mehackit": "", "guit": "guitar",
    }  # fmt: skip
    for path in sorted((tree / "usr/share/sonic-pi/samples").glob("*.flac")):
        kind, *rest = path.stem.split("_")
        name = " ".join([kinds.get(kind, kind), *rest]).strip()
        yield Found(
            origin="sonic-pi",
            text=f"the sound of {name}",
            audio=(f"sonic-pi/{path.name}", path.read_bytes()),
        )


def animals(tree: Path) -> Iterator[Found]:
    """Yield gcompris' farm animals: a voice and a photograph of each."""
    files = _gcompris(tree, "explore_farm_animals")
    for path, data in sorted(files.items()):
        stem = PurePosixPath(path).stem
        name = _ANIMALS.get(stem, stem)
        picture = next((p for p in files if p.endswith(f"/{name}.webp")), None)
        if path.endswith(".ogg") and picture is not None:
            yield Found(
                origin="gcompris-animals",
                text=f"the voice of a {name}",
                audio=(f"gcompris/animals/{stem}.ogg", data),
                image=(f"gcompris/animals/{name}.webp", files[picture]),
            )


def instruments(tree: Path) -> Iterator[Found]:
    """Yield gcompris' instruments, played for a few seconds."""
    for path, data in sorted(_gcompris(tree, "instruments").items()):
        if path.endswith(".ogg"):
            name = PurePosixPath(path).stem.replace("_", " ")
            yield Found(
                origin="gcompris-instruments",
                text=f"{article(name)} {name} being played",
                audio=(f"gcompris/instruments/{PurePosixPath(path).name}", data),
            )


def pictured_words(tree: Path) -> Iterator[tuple[str, Found]]:
    """Yield (language, word with a picture) for each language that gcompris names it in.

    The words are not recorded in this package; ``said`` is what a voice has to say.
    """
    files = _gcompris(tree, "lang")
    pictures = {
        PurePosixPath(p).stem: d for p, d in files.items() if "/words_sample/" in p and ".webp" in p
    }
    for path, data in sorted(files.items()):
        match = re.search(r"/content-([A-Za-z_@]+)\.json$", path)
        if match is None:
            continue
        names = json.loads(data)
        for word in sorted(pictures):
            said = names.get(f"{word}.ogg")
            if said:
                yield (
                    match[1],
                    Found(
                        origin="gcompris-words",
                        text=word.replace("_", " "),
                        image=(f"gcompris/words/{word}.webp", pictures[word]),
                        said=said,
                    ),
                )


def _gcompris(tree: Path, name: str) -> dict[str, bytes]:
    return dict(resources((tree / f"usr/share/gcompris-qt/rcc/{name}.rcc").read_bytes()))


def resources(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of each file in a Qt binary resource (``rcc --binary``).

    The header gives the offsets of three parts: a tree of fixed-size entries (children of a folder
    are consecutive), the contents (a length, then bytes, zlib's behind their plain length), and the
    names (a length in UTF-16 units, a hash, the name).
    """
    if data[:4] != b"qres":
        msg = "not a Qt resource file: it does not begin with qres"
        raise ValueError(msg)
    version, tree, contents, names = struct.unpack_from(">4I", data, 4)
    size = _RCC_VERSIONS[version]
    waiting = [(0, "")]
    while waiting:
        index, folder = waiting.pop()
        at = tree + index * size
        name, flags = struct.unpack_from(">IH", data, at)
        path = f"{folder}/{_name(data, names + name)}" if index else ""
        if flags & _FOLDER:
            count, first = struct.unpack_from(">II", data, at + 6)
            waiting += [(first + child, path) for child in range(count)]
            continue
        (offset,) = struct.unpack_from(">I", data, at + 10)
        (length,) = struct.unpack_from(">I", data, contents + offset)
        content = data[contents + offset + 4 : contents + offset + 4 + length]
        yield path, zlib.decompress(content[4:]) if flags & _COMPRESSED else content


def _name(data: bytes, at: int) -> str:
    (length,) = struct.unpack_from(">H", data, at)
    return data[at + 6 : at + 6 + 2 * length].decode("utf-16-be")


def article(name: str) -> str:
    """Return the indefinite article of a word."""
    return "an" if name[:1] in "aeiou" else "a"
