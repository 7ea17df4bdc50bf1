"""Scene description -> captions: English from templates, other languages as lists of names."""

from __future__ import annotations

from collections.abc import Sequence

from winnow.stages.sources._scenes.model import Background, Group, Relation, Scene
from winnow.stages.sources._scenes.sprites import CONCEPT, name_in

ENGLISH_TEMPLATES = (
    "{objects}",
    "a picture of {objects}",
    "{relation}",
    "This image shows {objects}.",
    "{objects} against {background}",
    "an illustration with {objects}",
    "{relation}, against {background}",
    "a drawing of {objects}",
    "{names}",
    "Here you can see {objects}.",
    "a scene with {relation}",
    "{background} with {objects}",
)
"""{objects}: every group with count and color; {relation}: the same, two of them in a spatial
relation where there is one; {names}: nouns only; {background}: color and pattern."""

_NUMBERS = (
    ("no", "a", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")
    + ("twelve", "thirteen", "fourteen", "fifteen", "sixteen")
)  # fmt: skip
_AN = ("a", "e", "i", "o", "u", "hour")
_NOT_AN = ("uni", "uku")
_PREDICATES = {
    "left of": "to the left of",
    "right of": "to the right of",
    "above": "above",
    "below": "below",
    "on": "on top of",
}
_PATTERNS = {
    "solid": "{a} {color} background",
    "gradient": "a background that fades from {color} to {color2}",
    "noise": "a grainy {color} background",
    "stripes": "a striped {color} background",
    "checker": "a checkered {color} background",
    "dots": "a dotted {color} background",
    "blobs": "a blurry {color} and {color2} background",
}
_FRAMES: dict[str, tuple[str, str, str]] = {
    # separator, last separator, sentence
    "de": (", ", " und ", "Auf diesem Bild: {}"),
    "fr": (", ", " et ", "Sur cette image : {}"),
    "es": (", ", " y ", "En esta imagen se ve: {}"),
    "it": (", ", " e ", "In questa immagine: {}"),
    "pt": (", ", " e ", "Nesta imagem h\u00e1: {}"),
    "nl": (", ", " en ", "Op deze afbeelding: {}"),
    "pl": (", ", " i ", "Na tym obrazku: {}"),
    "sv": (", ", " och ", "P\u00e5 den h\u00e4r bilden: {}"),
    "tr": (", ", " ve ", "Bu resimde: {}"),
    "fi": (", ", " ja ", "T\u00e4ss\u00e4 kuvassa: {}"),
    "cs": (", ", " a ", "Na tomto obr\u00e1zku: {}"),
    "hu": (", ", " \u00e9s ", "Ezen a k\u00e9pen: {}"),
    "id": (", ", " dan ", "Dalam gambar ini ada {}"),
    "vi": (", ", " v\u00e0 ", "Trong h\u00ecnh n\u00e0y c\u00f3 {}"),
    "ru": (", ", " \u0438 ", "\u041d\u0430 \u044d\u0442\u043e\u0439 \u043a\u0430\u0440\u0442"
           "\u0438\u043d\u043a\u0435: {}"),
    "uk": (", ", " \u0456 ", "\u041d\u0430 \u0446\u044c\u043e\u043c\u0443 \u0437\u043e\u0431"
           "\u0440\u0430\u0436\u0435\u043d\u043d\u0456: {}"),
    "el": (", ", " \u03ba\u03b1\u03b9 ", "\u03a3\u03b5 \u03b1\u03c5\u03c4\u03ae \u03c4\u03b7\u03bd"
           " \u03b5\u03b9\u03ba\u03cc\u03bd\u03b1: {}"),
    "ar": ("\u060c ", " \u0648", "\u0641\u064a \u0647\u0630\u0647 \u0627\u0644\u0635\u0648\u0631"
           "\u0629: {}"),
    "he": (", ", " \u05d5", "\u05d1\u05ea\u05de\u05d5\u05e0\u05d4 \u05d4\u05d6\u05d0\u05ea: {}"),
    "hi": (", ", " \u0914\u0930 ", "\u0907\u0938 \u091a\u093f\u0924\u094d\u0930 \u092e\u0947\u0902"
           ": {}"),
    "th": (", ", " \u0e41\u0e25\u0e30 ", "\u0e43\u0e19\u0e20\u0e32\u0e1e\u0e19\u0e35\u0e49\u0e21"
           "\u0e35 {}"),
    "ja": ("\u3001", "\u3068", "\u3053\u306e\u753b\u50cf\u306b\u3042\u308b\u3082\u306e\uff1a{}"),
    "ko": (", ", ", ", "\uc774 \uadf8\ub9bc\uc5d0\ub294: {}"),
    "zh": ("\u3001", "\u548c", "\u8fd9\u5f20\u56fe\u7247\u91cc\u6709{}"),
}  # fmt: skip


def num_variants(language: str = "en") -> int:
    """Return how many variants of a caption there are before they repeat."""
    return len(ENGLISH_TEMPLATES) if language == "en" else 2


def caption(scene: Scene, language: str = "en", variant: int = 0) -> str:
    """Return a caption that names every object of the scene, and nothing else.

    English: one of ENGLISH_TEMPLATES; size words only in odd variants. Other languages: the names
    with their counts (variant 0), or the same in a sentence (variant 1).
    """
    if language != "en":
        return _listed(scene.groups, language, variant)
    variant %= len(ENGLISH_TEMPLATES)
    groups = scene.groups
    phrases = {g.concept: noun_phrase(g, with_size=variant % 2 == 1) for g in groups}
    return ENGLISH_TEMPLATES[variant].format(
        objects=_joined(list(phrases.values())),
        relation=_related(scene.relations, phrases, variant),
        names=", ".join(CONCEPT[g.concept].plural if g.count > 1 else g.concept for g in groups),
        background=background_phrase(scene.background),
    )


def noun_phrase(group: Group, *, with_size: bool = True) -> str:
    """Return "a cat", "two small red cars"; the size only where asked for and known."""
    concept = CONCEPT[group.concept]
    noun = concept.name if group.count == 1 else concept.plural
    words = [group.size if with_size else None, group.color, noun]
    text = " ".join(word for word in words if word)
    return f"{article(text) if group.count == 1 else _NUMBERS[group.count]} {text}"


def article(text: str) -> str:
    """Return "an" before a vowel sound, else "a"."""
    low = text.lower()
    return "an" if low.startswith(_AN) and not low.startswith(_NOT_AN) else "a"


def background_phrase(background: Background) -> str:
    """Return "a striped blue background" and the like."""
    return _PATTERNS[background.pattern].format(
        a=article(background.color), color=background.color, color2=background.color2
    )


def _related(relations: Sequence[Relation], phrases: dict[str, str], variant: int) -> str:
    if not relations:
        return _joined(list(phrases.values()))
    relation = relations[variant % len(relations)]
    subject, thing = phrases[relation.subject], phrases[relation.object]
    text = f"{subject} {_PREDICATES[relation.predicate]} {thing}"
    rest = [p for name, p in phrases.items() if name not in (relation.subject, relation.object)]
    return f"{text}, with {_joined(rest)}" if rest else text


def _joined(parts: Sequence[str]) -> str:
    if len(parts) <= 2:
        return " and ".join(parts)
    return ", ".join(parts[:-1]) + " and " + parts[-1]


def _listed(groups: Sequence[Group], language: str, variant: int) -> str:
    names = [
        name_in(language, g.concept) + (f" ({g.count})" if g.count > 1 else "") for g in groups
    ]
    comma, last, sentence = _FRAMES[language]
    text = last.join(([comma.join(names[:-1])] if names[1:] else []) + names[-1:])
    return sentence.format(text) if variant % 2 else text
