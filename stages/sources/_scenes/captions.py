"""Scene description -> captions: English from templates, other languages as lists of names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from winnow.stages._words import NUMBER_WORDS
from winnow.stages.sources._scenes.holdout import EVALUATION, may_say
from winnow.stages.sources._scenes.model import Background, Group, Part, Relation, Scene
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
TEMPLATES: Mapping[Part, tuple[str, ...]] = MappingProxyType(
    {
        "all": ENGLISH_TEMPLATES,
        "train": ENGLISH_TEMPLATES,
        "validation": (
            "a drawing with {objects}",
            "a scene of {relation}",
            "This illustration shows {objects}.",
            "This drawing shows {relation}.",
            "a picture with {relation}",
            "a scene against {background} with {objects}",
            "an illustration of {relation}, against {background}",
        ),
        "test": (
            "an image with {objects}",
            "a drawing of {relation}, against {background}",
            "This scene shows {objects}.",
            "This picture shows {relation}.",
            "an image of {relation}",
            "a picture of {objects} against {background}",
            "Here you can see a scene of {relation}.",
        ),
    }
)
"""Templates by part. Captions of validation and test state more facts, which can be swapped."""

_NUMBERS = ("no", "a", *NUMBER_WORDS[2:17])
MAX_COUNT = len(_NUMBERS) - 1
_AN = ("a", "e", "i", "o", "u", "hour")
_NOT_AN = ("uni", "uku")
PREDICATE_WORDS = {
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Statement:
    """What an English caption says: facts in a template. Other facts make another ``text``.

    sizes: whether size words are said. relation: the one that is said, None where none is.
    """

    template: str
    sizes: bool
    groups: tuple[Group, ...]
    relation: Relation | None
    background: Background

    @property
    def counts(self) -> bool:
        """Whether the text has counts, colors and sizes."""
        return "{names}" not in self.template

    @property
    def text(self) -> str:
        """The caption."""
        phrases = {g.concept: noun_phrase(g, with_size=self.sizes) for g in self.groups}
        return self.template.format(
            objects=_joined(list(phrases.values())),
            relation=_related(self.relation, phrases),
            names=", ".join(
                CONCEPT[g.concept].plural if g.count > 1 else g.concept for g in self.groups
            ),
            background=background_phrase(self.background),
        )


def num_variants(language: str = "en", part: Part = "all") -> int:
    """Return how many variants of a caption there are before they repeat."""
    return len(TEMPLATES[part]) if language == "en" else 2


def caption(scene: Scene, language: str = "en", variant: int = 0, part: Part = "all") -> str:
    """Return a caption that names every object of the scene, and nothing else.

    English: ``state``. Other languages: the names with their counts (variant 0), or the same in a
    sentence (variant 1).
    """
    if language != "en":
        return _listed(scene.groups, language, variant)
    return state(scene, variant, part).text


def state(scene: Scene, variant: int, part: Part = "all") -> Statement:
    """Return what an English caption of a part says.

    Size words only in odd variants; always in validation and test, whose captions also keep to
    templates without a relation where none can be said.
    """
    templates = TEMPLATES[part]
    relations = [r for r in scene.relations if may_say(part, r)]
    if part in EVALUATION and not relations:
        templates = tuple(t for t in templates if "{relation}" not in t)
    variant %= len(TEMPLATES[part])
    template = templates[variant % len(templates)]
    related = relations and "{relation}" in template
    return Statement(
        template=template,
        sizes=part in EVALUATION or variant % 2 == 1,
        groups=scene.groups,
        relation=relations[variant % len(relations)] if related else None,
        background=scene.background,
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


def _related(relation: Relation | None, phrases: Mapping[str, str]) -> str:
    if relation is None:
        return _joined(list(phrases.values()))
    subject, thing = phrases[relation.subject], phrases[relation.object]
    text = f"{subject} {PREDICATE_WORDS[relation.predicate]} {thing}"
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
