"""What an Open Clip Art SVG says about itself, read as the untrusted file that it is.

No entity is expanded, no other file is opened, sizes are capped; documents that end too early give
what was complete.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

MAX_SVG_BYTES = 64 << 20
MAX_FIELD_CHARACTERS = 4_000
_CHUNK = 1 << 16
_HASH_RESIDUE = re.compile(r"(?i)^(hash(\(0x[0-9a-f]+\))?|0x[0-9a-f]{6,})$")
"""What a script of 2005 left in the keywords where it printed a Perl hash."""
_NO_WORDS = frozenset({"unsorted", "signs and symbols"})
"""Folders of the archive that became keywords and say nothing about a drawing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What the RDF of one SVG says; empty strings where it says nothing.

    error: "" or why there is nothing: "malformed" (not XML), "entities" (declares entities, which
    are never expanded here), "too_large", "no_metadata".
    """

    title: str = ""
    keywords: tuple[str, ...] = ()
    description: str = ""
    artist: str = ""
    date: str = ""
    language: str = ""
    license: str = ""
    error: str = ""


class _RefusedError(Exception):
    """The document declares an entity."""


class _WorkParser:
    """Collects the first cc:Work that has a title, or else the first; nothing outside is kept."""

    def __init__(self) -> None:
        self.works: list[dict[str, list[str]]] = []
        self.expat = expat.ParserCreate()
        self.expat.StartElementHandler = self._start
        self.expat.EndElementHandler = self._end
        self.expat.CharacterDataHandler = self._text
        self.expat.EntityDeclHandler = self._refuse
        self._path: list[str] | None = None  # names below the open Work

    def _refuse(self, *declaration: object) -> None:
        raise _RefusedError

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        local = name.rpartition(":")[2]
        if self._path is None:
            if local == "Work":
                self._path = []
                self.works.append({})
            return
        self._path.append(local)
        field = self._path[0]
        if field == "license":
            links = [v for k, v in attributes.items() if k.rpartition(":")[2] == "resource"]
            self.works[-1].setdefault(field, []).extend(links)
        if field != "subject" or local == "li":
            self.works[-1].setdefault(field, []).append("")

    def _text(self, data: str) -> None:
        if self._path:
            values = self.works[-1].setdefault(self._path[0], [""])
            values[-1] = (values[-1] + data)[:MAX_FIELD_CHARACTERS]

    def _end(self, name: str) -> None:
        if self._path is not None:
            if self._path:
                self._path.pop()
            else:
                self._path = None


def read_work(svg: Path) -> Work:
    """Read the RDF metadata of an SVG as an untrusted file: no entities, no other files, capped."""
    if svg.stat().st_size > MAX_SVG_BYTES:
        return Work(error="too_large")
    parser = _WorkParser()
    try:
        with svg.open("rb") as file:
            while chunk := file.read(_CHUNK):
                parser.expat.Parse(chunk, False)
            parser.expat.Parse(b"", True)
    except _RefusedError:
        return Work(error="entities")
    except expat.ExpatError:
        if not parser.works:
            return Work(error="malformed")
    works = [_work(fields) for fields in parser.works]
    return next((w for w in works if w.title), works[0] if works else Work(error="no_metadata"))


def _work(fields: dict[str, list[str]]) -> Work:
    values = {name: [v for v in map(_clean, texts) if v] for name, texts in fields.items()}
    one = {name: " ".join(texts) for name, texts in values.items()}
    return Work(
        title=one.get("title", ""),
        keywords=tuple(values.get("subject", ())),
        description=one.get("description", ""),
        artist=one.get("creator", ""),
        date=one.get("date", ""),
        language=one.get("language", ""),
        license=next(iter(values.get("license", ())), ""),
    )


def _clean(text: str) -> str:
    """One line; no control or format characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def caption_of(work: Work) -> str:
    """Return the title and then the keywords that add something to it.

    Most titles are one or two words and often a name ("Nauru", "Velocette"), so the keywords are
    what says what is drawn ("oceania, flag, sign", "motorcycle"). Descriptions are left out: four
    of five are empty, and the rest are addresses, conversion notes and encyclopedia articles.
    """
    parts, known = [work.title] if work.title else [], work.title.casefold()
    for keyword in work.keywords:
        words = keyword.replace("_", " ").strip()
        said = words.casefold()
        if _HASH_RESIDUE.match(keyword) or said in _NO_WORDS or words.isdigit():
            continue
        if said == work.artist.casefold() or not any(map(str.isalnum, said)):
            continue
        if re.search(rf"(?<!\w){re.escape(said)}(?!\w)", known) is None:
            parts.append(words)
            known += f", {said}"
    return ", ".join(parts)
