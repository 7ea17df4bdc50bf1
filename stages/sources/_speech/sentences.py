"""Sentences with known words: English ones from a large grammar, other languages from small ones.

Each sentence belongs to one part by a hash of its text, so no part ever says what another says.
"""

from __future__ import annotations

from winnow.contracts.identity import Identity, stable_hash64
from winnow.stages.sources._scenes.draw import Draw
from winnow.stages.sources._scenes.model import Part
from winnow.stages.sources._speech import english
from winnow.stages.sources._speech.foreign import FOREIGN, VOICES

LANGUAGES = ("en", *FOREIGN)
"""ISO 639-1 codes; "en" is first."""
_ATTEMPTS = 400


def voice_language(language: str) -> str:
    """Return espeak-ng's name of a language."""
    return "en-us" if language == "en" else VOICES[language]


def sentence_part(text: str) -> Part:
    """Return the part that a sentence belongs to: 80 % "train", 10 % each of the others."""
    place = stable_hash64("sentence", text) % 10
    return "validation" if place == 0 else "test" if place == 1 else "train"


def sentence(
    *fields: Identity, language: str = "en", part: Part = "all", short: bool = False
) -> str:
    """Return the sentence of these fields, in its part.

    Twelve words or more, 3 s at 190 words a minute (other languages: nine); short: four to seven
    words, English only.
    """
    for attempt in range(_ATTEMPTS):
        draw = Draw("sentence", *fields, attempt)
        if language != "en":
            text = _foreign(draw, language)
        else:
            text = _short(draw) if short else _long(draw)
        if part in ("all", sentence_part(text)):
            break
    return text


def _long(draw: Draw) -> str:
    who, deed, place = _who(draw), _deed(draw), draw.pick(english.PLACES)
    event = f"{draw.pick(english.SUBJECTS)} {draw.pick(english.HAPPENED)}"
    link = draw.pick(english.LINKS)
    time = draw.pick(english.TIMES)
    frame = draw.integer(0, 3)
    if frame == 0:
        return f"{time}, {who} {deed} {place} {link} {event}."
    if frame == 1:
        return _capital(f"{who} {deed} {place}, {link} {event}.")
    if frame == 2:
        return f"{time}, {event}, and {who} {deed} {place}."
    number, others = draw.pick(english.NUMBERS), draw.pick(english.PEOPLE)
    return _capital(f"{who} and {number} friends of the {others} {deed} {place}.")


def _short(draw: Draw) -> str:
    return _capital(f"the {draw.pick(english.PEOPLE)} {_deed(draw)}.")


def _who(draw: Draw) -> str:
    return f"the {draw.pick(english.ADJECTIVES)} {draw.pick(english.PEOPLE)}"


def _deed(draw: Draw) -> str:
    verbs, objects = draw.pick(
        (
            (english.MOVES, english.THINGS),
            (english.MOVES, english.THINGS),
            (english.READS, english.WRITINGS),
            (english.EATS, english.MEALS),
        )
    )
    return f"{draw.pick(verbs)} {draw.pick(objects)}"


def _foreign(draw: Draw, language: str) -> str:
    who, deed, place, clause = (draw.pick(column) for column in FOREIGN[language])
    comma = " " if language in ("es", "fr", "it", "pt") else ", "
    return f"{who} {deed} {place}{comma}{clause}."


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
