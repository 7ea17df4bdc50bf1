"""Questions and answers about a picture from what is known of it: facts in, words out.

Every answer follows from the facts; which questions are asked, in which words and in which order,
a hash decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, TypeVar

from winnow.contracts.identity import stable_hash64
from winnow.models.conversation import CAPTION_PROMPT, PARAGRAPH_PROMPT, Turn
from winnow.stages._words import NUMBER_WORDS

Kind = Literal["conversation", "detail", "reasoning"]
T = TypeVar("T")

_NUMBERS = ("no", *NUMBER_WORDS[1:13])
_SAME = (
    "deer",
    "fish",
    "sheep",
    "shrimp",
    "squid",
    "scissors",
    "glasses",
    "jeans",
    "shorts",
    "trousers",
)
_IRREGULAR = {"mouse": "mice", "child": "children", "person": "people", "goose": "geese",
              "ox": "oxen", "foot": "feet", "tooth": "teeth", "cactus": "cacti", "man": "men",
              "woman": "women", "leaf": "leaves", "wolf": "wolves", "knife": "knives",
              "scarf": "scarves", "shelf": "shelves", "loaf": "loaves"}  # fmt: skip
_ES = ("s", "x", "z", "ch", "sh", "mango", "mato", "tato", "mosquito", "volcano")
_AN = ("a", "e", "i", "o", "u", "hour")
_NOT_AN = ("eu", "one", "uku", "uni", "use")
_INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_WHERE = {"left of": "to the left of", "right of": "to the right of", "on": "on top of"}
_PATTERNS = {"solid": "plain {}", "gradient": "a {} gradient", "noise": "grainy {}",
             "stripes": "striped in {}", "checker": "checkered in {}", "dots": "dotted in {}",
             "blobs": "blurry {}"}  # fmt: skip

DETAIL_PROMPTS = (
    PARAGRAPH_PROMPT,
    "What is in this picture? Describe everything.",
    "Give a full description of the picture.",
    "Write a paragraph about what the picture shows.",
)
CAPTION_PROMPTS = (
    CAPTION_PROMPT,
    "What does the picture show?",
    "Write a caption for this picture.",
    "What is this a picture of?",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """One or more objects of a name. count: None where it is not known; color likewise."""

    name: str
    count: int | None = None
    color: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What is known of a picture. things: None = not labelled; no name twice.

    relations: (subject, predicate, object), true of all objects of both names.
    """

    things: tuple[Thing, ...] | None = None
    relations: tuple[tuple[str, str, str], ...] = ()
    background: str | None = None
    caption: str | None = None


class Dice:
    """Draws that depend on a seed and names only."""

    def __init__(self, *names: str | int | bytes) -> None:
        self._names, self._count = names, 0

    def below(self, bound: int) -> int:
        """Return a number from 0 to bound - 1."""
        self._count += 1
        return stable_hash64(*self._names, self._count) % bound

    def pick(self, values: Sequence[T]) -> T:
        """Return one of the values."""
        return values[self.below(len(values))]

    def shuffled(self, values: Sequence[T]) -> list[T]:
        """Return all values in random order."""
        left = list(values)
        return [left.pop(self.below(len(left))) for _ in range(len(left))]


class Absent:
    """Names that may be asked for though they are not there, with how often they come."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        self._counts = {name: counts[name] for name in sorted(counts) if counts[name] > 0}

    def pick(self, present: Sequence[str], dice: Dice) -> str | None:
        """Return a name that is not present, by frequency; None where there is none."""
        here = {name.lower() for name in present}
        names = [name for name in self._counts if name.lower() not in here]
        if not names:
            return None
        sums = list(accumulate(self._counts[name] for name in names))
        place = dice.below(sums[-1])
        return next(name for name, total in zip(names, sums, strict=True) if place < total)


def plural(name: str) -> str:
    """Return the plural of a name's last word, of "slice" in "slice of pizza": a simple rule, and a
    list of exceptions."""
    head, of, rest = name.partition(" of ")
    first, space, last = head.rpartition(" ")
    if last in _IRREGULAR:
        made = _IRREGULAR[last]
    elif last.endswith(_SAME):
        made = last
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        made = f"{last[:-1]}ies"
    elif last.endswith("man") and last != "human":
        made = f"{last[:-2]}en"
    else:
        made = f"{last}es" if last.endswith(_ES) else f"{last}s"
    return f"{first}{space}{made}{of}{rest}"


def article(words: str) -> str:
    """Return "a cat", "an apple"."""
    low = words.lower()
    return f"{'an' if low.startswith(_AN) and not low.startswith(_NOT_AN) else 'a'} {words}"


def number(count: int) -> str:
    """Return a number in words, in digits above twelve."""
    return _NUMBERS[count] if count < len(_NUMBERS) else str(count)


def phrase(thing: Thing) -> str:
    """Return "a red car", "two dogs"; "a dog" where the count is not known."""
    color = f"{thing.color} " if thing.color else ""
    if thing.count is None or thing.count == 1:
        return article(f"{color}{thing.name}")
    return f"{number(thing.count)} {color}{plural(thing.name)}"


def listed(words: Sequence[str]) -> str:
    """Return "a", "a and b", "a, b and c"."""
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]


def background_words(background: str) -> str:
    """Return what a background is: "striped in blue" for "stripes:blue", else the text itself."""
    pattern, _, color = background.partition(":")
    if pattern in _PATTERNS and color:
        return _PATTERNS[pattern].format(color.replace(":", " and "))
    return background


def conversation(facts: Facts, dice: Dice, *, num_turns: int, absent: Absent | None) -> list[Turn]:
    """Return up to ``num_turns`` short questions with their answers; none without labels.

    Questions whether a thing is there come in pairs, one of a thing that is and one of a thing that
    is not, so that "yes" is no better guess than "no". Without ``absent`` none are asked.
    """
    if not facts.things:
        return []
    asked = [_is_there(facts, dice, absent), *_plain_questions(facts, dice)]
    turns: list[Turn] = []
    for group in dice.shuffled([group for group in asked if group]):
        if len(turns) + len(group) <= num_turns:
            turns += group
    return turns


def detail(facts: Facts, dice: Dice) -> list[Turn]:
    """Return a long answer from labels, or the caption where there are none."""
    if facts.things is None:
        if not facts.caption:
            return []
        return [Turn(dice.pick(CAPTION_PROMPTS), facts.caption.strip())]
    if not facts.things:
        return []
    things = dice.shuffled(facts.things)
    half = max(1, (len(things) + 1) // 2)
    sentences = [f"The picture shows {listed([phrase(t) for t in things[:half]])}."]
    if things[half:]:
        be = "are" if len(things[half:]) > 1 or (things[half].count or 1) > 1 else "is"
        sentences.append(f"There {be} also {listed([phrase(t) for t in things[half:]])}.")
    sentences += [_related(facts, relation) for relation in dice.shuffled(facts.relations)[:3]]
    if facts.background:
        sentences.append(f"The background is {background_words(facts.background)}.")
    return [Turn(dice.pick(DETAIL_PROMPTS), " ".join(sentences))]


def reasoning(facts: Facts, dice: Dice) -> list[Turn]:
    """Return one question whose answer takes a step, with that step; none without such facts."""
    makers = (_more_than, _in_all, _one_less, _turned_round, _by_two_steps)
    found = [turn for make in makers for turn in make(facts, dice)]
    return [dice.pick(found)] if found else []


def _plain_questions(facts: Facts, dice: Dice) -> Iterator[list[Turn]]:
    things = facts.things or ()
    names = listed([phrase(thing) for thing in things])
    what = dice.pick(("What can you see?", "What is in the picture?", "Which things are there?"))
    yield [
        Turn(what, f"I can see {names}." if "you" in what else f"There {_be(things[0])} {names}.")
    ]
    counted = [thing for thing in things if thing.count is not None]
    if counted:
        yield [_how_many(dice.pick(counted), dice)]
    painted = [thing for thing in things if thing.color]
    if painted:
        yield [_what_color(dice.pick(painted))]
    if facts.background:
        ask = dice.pick(("What does the background look like?", "Describe the background."))
        yield [Turn(ask, f"The background is {background_words(facts.background)}.")]
    if facts.relations:
        relation = dice.pick(facts.relations)
        yield [Turn(f"Where {_be_name(facts, relation[0])} the {_said(facts, relation[0])}?",
                    _related(facts, relation))]  # fmt: skip


def _is_there(facts: Facts, dice: Dice, absent: Absent | None) -> list[Turn]:
    things = facts.things or ()
    wrong = None if absent is None else absent.pick([thing.name for thing in things], dice)
    if wrong is None:
        return []
    right = dice.pick(things)
    ask = dice.pick(("Is there {} in the picture?", "Can you see {}?", "Does the picture show {}?"))
    yes = Turn(ask.format(article(right.name)), f"Yes, there {_be(right)} {phrase(right)}.")
    no = Turn(ask.format(article(wrong)), f"No, there is no {wrong}.")
    return dice.shuffled([yes, no])


def _how_many(thing: Thing, dice: Dice) -> Turn:
    ask = dice.pick(("How many {} are there?", "How many {} can you see?", "Count the {}."))
    count = thing.count or 0
    said = f"{number(count)} {thing.name if count == 1 else plural(thing.name)}"
    return Turn(ask.format(plural(thing.name)), f"There {_be(thing)} {said}.")


def _what_color(thing: Thing) -> Turn:
    said = thing.name if (thing.count or 1) == 1 else plural(thing.name)
    be = _be(thing)
    return Turn(f"What color {be} the {said}?", f"The {said} {be} {thing.color}.")


def _more_than(facts: Facts, dice: Dice) -> Iterator[Turn]:
    counted = [thing for thing in facts.things or () if thing.count is not None]
    if len(counted) > 1:
        one, two = dice.shuffled(counted)[:2]
        more = (one.count or 0) - (two.count or 0)
        answer = f"There {_be(one)} {phrase(one)} and {phrase(two)}, so "
        answer += f"yes: {more} more." if more > 0 else "no: as many." if not more else "no: fewer."
        yield Turn(f"Are there more {plural(one.name)} than {plural(two.name)}?", answer)


def _in_all(facts: Facts, dice: Dice) -> Iterator[Turn]:
    things = facts.things or ()
    counts = [thing.count for thing in things if thing.count is not None]
    if len(things) > 1 and len(counts) == len(things):
        total = " + ".join(str(count) for count in counts)
        said = listed([phrase(thing) for thing in things])
        ask = dice.pick(("How many things are there in all? Explain.", "Count all the things."))
        yield Turn(ask, f"There {_be(things[0])} {said}: {total} = {sum(counts)} things.")


def _one_less(facts: Facts, dice: Dice) -> Iterator[Turn]:
    several = [thing for thing in facts.things or () if (thing.count or 0) > 1]
    if several:
        thing = dice.pick(several)
        count = thing.count or 0
        left = Thing(name=thing.name, count=count - 1)
        yield Turn(
            f"If one {thing.name} went away, how many {plural(thing.name)} would be left?",
            f"There are {number(count)} {plural(thing.name)}. Without one of them, "
            f"{number(count - 1)} {_named(left)} would be left.",
        )


def _turned_round(facts: Facts, dice: Dice) -> Iterator[Turn]:
    """Ask for a relation the other way round: with the inverse word (yes), or the same one (no)."""
    turned = [relation for relation in facts.relations if relation[1] in _INVERSE]
    if turned:
        subject, predicate, thing = dice.pick(turned)
        asked, yes = dice.pick(((_INVERSE[predicate], "Yes"), (predicate, "No")))
        yield Turn(
            _asked(facts, thing, asked, subject) + "?",
            f"{yes}: {_inside(facts, (subject, predicate, thing))}.",
        )


def _by_two_steps(facts: Facts, dice: Dice) -> Iterator[Turn]:
    """A is left of B and B is left of C, so A is left of C, and C is not left of A."""
    known = set(facts.relations)
    chains = [
        (a, b)
        for a in facts.relations
        for b in facts.relations
        if a[1] == b[1] and a[1] in _INVERSE and a[2] == b[0] and (a[0], a[1], b[2]) in known
    ]
    if chains:
        one, two = dice.pick(chains)
        first, last, yes = dice.pick(((one[0], two[2], "Yes"), (two[2], one[0], "No")))
        yield Turn(
            _asked(facts, first, one[1], last) + "? Explain.",
            f"{yes}: {_inside(facts, one)}, and {_inside(facts, two)}.",
        )


def _asked(facts: Facts, subject: str, predicate: str, thing: str) -> str:
    be = _be_name(facts, subject).capitalize()
    return f"{be} the {_said(facts, subject)} {_where(predicate)} the {_said(facts, thing)}"


def _inside(facts: Facts, relation: tuple[str, str, str]) -> str:
    """The sentence of a relation, as a part of a longer one."""
    return "t" + _related(facts, relation)[1:-1]


def _related(facts: Facts, relation: tuple[str, str, str]) -> str:
    subject, predicate, thing = relation
    return (
        f"The {_said(facts, subject)} {_be_name(facts, subject)} {_where(predicate)} "
        f"the {_said(facts, thing)}."
    )


def _thing(facts: Facts, name: str) -> Thing:
    return next((t for t in facts.things or () if t.name == name), Thing(name=name))


def _said(facts: Facts, name: str) -> str:
    return _named(_thing(facts, name))


def _named(thing: Thing) -> str:
    return thing.name if (thing.count or 1) == 1 else plural(thing.name)


def _be(thing: Thing) -> str:
    return "is" if (thing.count or 1) == 1 else "are"


def _be_name(facts: Facts, name: str) -> str:
    return _be(_thing(facts, name))


def _where(predicate: str) -> str:
    return _WHERE.get(predicate, predicate)
