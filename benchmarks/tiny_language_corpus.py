"""Sentences about random scenes: paragraphs, and questions with their answers; nothing is drawn.

What tiny_language_documents.py puts together. Questions are those of the stage ``instructions``, or
have answers of a word or two.
"""

from __future__ import annotations

from collections.abc import Sequence

from tiny_language_facts import Facts, T, shuffled

from winnow.models.conversation import CAPTION_PROMPT, PARAGRAPH_PROMPT, Turn
from winnow.stages import _conversations as written
from winnow.stages.sources._scenes import (
    CONCEPTS,
    Scene,
    SceneOptions,
    caption,
    num_variants,
)
from winnow.stages.sources._scenes.captions import article, background_phrase, noun_phrase
from winnow.stages.sources._scenes.draw import Draw
from winnow.stages.sources._scenes.layout import partners
from winnow.stages.sources._scenes.model import Part, ranked_concepts
from winnow.stages.sources._scenes.sprites import CONCEPT, PAINTS

TRAIN_SEED, HELD_OUT_SEED = 30_001, 95_001
PARTS: tuple[Part, ...] = ("all", "all", "validation", "test")
FEW = SceneOptions()
SEVERAL = SceneOptions(min_objects=3, max_objects=8, weights="zipf")
MANY = SceneOptions(min_objects=6, max_objects=12, repeat_share=0.1)
CROWD = SceneOptions(
    min_objects=6, max_objects=10, weights="zipf", co_occurrence=0.5, num_concepts=80, crowd=True
)
NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
           "eleven", "twelve")  # fmt: skip
PLACES = {"left of": "to the left of", "right of": "to the right of", "above": "above",
          "below": "below", "on": "on top of"}  # fmt: skip
CAPTION_PROMPTS = (CAPTION_PROMPT, CAPTION_PROMPT, "What does the picture show?",
                   "Write a caption for this picture.")  # fmt: skip
PARAGRAPH_PROMPTS = (PARAGRAPH_PROMPT, PARAGRAPH_PROMPT, "Describe everything that you see.")
OPENINGS = ("The picture shows {}.", "This picture shows {}.", "There is {}.", "Here is {}.",
            "In the picture there is {}.", "You can see {}.")  # fmt: skip
FURTHER = ("There is also {}.", "The picture also shows {}.", "Then there is {}.", "I also see {}.",
           "Beside that there is {}.")  # fmt: skip


def paragraph(described: Scene, draw: Draw) -> str:
    """Return a few sentences that name every group once, in random order, and the ground."""
    groups = shuffled(described.groups, draw)
    sentences, said = list[str](), list[str]()
    for group in groups:
        phrase = noun_phrase(group, with_size=draw.chance(0.7))
        places = [
            (PLACES[r.predicate], r.object)
            for r in described.relations
            if r.subject == group.concept and r.object in said
        ]
        if places and draw.chance(0.6):
            place, other = draw.pick(places)
            last = other == said[-1] and _count(described, other) == 1 and draw.chance(0.6)
            where = "it" if last else the_one(described, other)
            verb = "is" if group.count == 1 else "are"
            sentences.append(f"{phrase[0].upper()}{phrase[1:]} {verb} {place} {where}.")
        else:
            text = draw.pick(FURTHER if said else OPENINGS).format(phrase)
            if group.count > 1:
                text = text.replace("ere is", "ere are")
            sentences.append(text)
        said.append(group.concept)
    if draw.chance(0.6):
        ground = background_phrase(described.background)
        sentences.insert(
            draw.pick((0, len(sentences))),
            draw.pick(("All this is on {}.", "The picture has {}.", "It is drawn on {}.")).format(
                ground
            ),
        )
    return " ".join(sentences)


def describing(described: Scene, draw: Draw) -> Turn:
    """Return a turn that asks for a description."""
    if draw.chance(0.6):
        part = draw.pick(PARTS)
        text = caption(described, variant=draw.integer(0, num_variants("en", part) - 1), part=part)
        return Turn(draw.pick(CAPTION_PROMPTS), text)
    return Turn(draw.pick(PARAGRAPH_PROMPTS), paragraph(described, draw))


def question_turn(described: Scene, draw: Draw) -> Turn:
    """Return a question about a scene with its true answer."""
    kind = draw.pick((presence, presence, presence, number, number, color, _relation, _where,
                      _whether_color, _whether_relation, _list, _ground, _size))  # fmt: skip
    return kind(described, draw) or presence(described, draw)


def presence(described: Scene, draw: Draw) -> Turn:
    """Ask whether a thing is there; as often it is not."""
    present = {group.concept for group in described.groups}
    truth = draw.chance(0.5)
    name = draw.pick(sorted(present)) if truth else draw.pick(absent(described, draw))
    a, many = f"{article(name)} {name}", CONCEPT[name].plural
    prompt = draw.pick(
        (
            f"Is there {a} in the picture?",
            f"Is there {a} in the picture?",
            f"Is there {a} in the image?",
            f"Are there any {many} in the picture?",
            f"Does the picture show {a}?",
            f"Do you see {a}?",
        )
    )
    return Turn(prompt, "yes" if name in present else "no")


def number(described: Scene, draw: Draw) -> Turn:
    """Ask how many of a thing there are; seldom none."""
    absent = draw.chance(0.1)
    name = draw.pick(CONCEPTS) if absent else draw.pick(described.groups).concept
    many = CONCEPT[name].plural
    prompt = draw.pick(
        (f"How many {many} are there?", f"How many {many} are in the picture?",
         f"How many {many} do you see?")
    )  # fmt: skip
    return Turn(prompt, NUMBERS[_count(described, name)])


def color(described: Scene, draw: Draw) -> Turn | None:
    """Ask for the color of a painted thing; None where there is none."""
    painted = [group for group in described.groups if group.color]
    if not painted:
        return None
    group = draw.pick(painted)
    verb = "is" if group.count == 1 else "are"
    prompt = draw.pick(("What color {} {}?", "Which color {} {}?"))
    return Turn(prompt.format(verb, the_one(described, group.concept)), str(group.color))


def _whether_color(described: Scene, draw: Draw) -> Turn | None:
    painted = [group for group in described.groups if group.color]
    if not painted:
        return None
    group = draw.pick(painted)
    color = str(group.color) if draw.chance(0.5) else draw.pick(tuple(PAINTS))
    verb = "Is" if group.count == 1 else "Are"
    answer = "yes" if color == group.color else "no"
    return Turn(f"{verb} {the_one(described, group.concept)} {color}?", answer)


def _relation(described: Scene, draw: Draw) -> Turn | None:
    if not described.relations:
        return None
    asked = draw.pick(described.relations)
    same = [r.subject for r in described.relations
            if r.object == asked.object and r.predicate == asked.predicate]  # fmt: skip
    answer = " and ".join(_phrase(described, name) for name in same)
    return Turn(f"What is {PLACES[asked.predicate]} {the_one(described, asked.object)}?", answer)


def _where(described: Scene, draw: Draw) -> Turn | None:
    if not described.relations:
        return None
    asked = draw.pick(described.relations)
    verb = "is" if _count(described, asked.subject) == 1 else "are"
    answer = f"{PLACES[asked.predicate]} {the_one(described, asked.object)}"
    return Turn(f"Where {verb} {the_one(described, asked.subject)}?", answer)


def _whether_relation(described: Scene, draw: Draw) -> Turn | None:
    if not described.relations:
        return None
    asked = draw.pick(described.relations)
    place = asked.predicate if draw.chance(0.5) else draw.pick(tuple(PLACES))
    true = any(
        r.predicate == place and (r.subject, r.object) == (asked.subject, asked.object)
        for r in described.relations
    )
    verb = "Is" if _count(described, asked.subject) == 1 else "Are"
    subject, thing = the_one(described, asked.subject), the_one(described, asked.object)
    return Turn(f"{verb} {subject} {PLACES[place]} {thing}?", "yes" if true else "no")


def _list(described: Scene, draw: Draw) -> Turn:
    names = [_phrase(described, group.concept) for group in shuffled(described.groups, draw)]
    text = ", ".join(names[:-1]) + " and " + names[-1] if names[1:] else names[0]
    prompts = ("What is in the picture?", "Which objects are in the picture?", "What do you see?")
    return Turn(draw.pick(prompts), text)


def _ground(described: Scene, draw: Draw) -> Turn:
    if draw.chance(0.5):
        return Turn("What color is the background?", described.background.color)
    return Turn("What is the background like?", background_phrase(described.background))


def _size(described: Scene, draw: Draw) -> Turn | None:
    sized = [group for group in described.groups if group.size]
    if not sized:
        return None
    group = draw.pick(sized)
    verb = "Is" if group.count == 1 else "Are"
    return Turn(f"{verb} {the_one(described, group.concept)} small or large?", str(group.size))


def _count(described: Scene, name: str) -> int:
    return next((g.count for g in described.groups if g.concept == name), 0)


def the_one(described: Scene, name: str) -> str:
    """Return "the cat", or "the cats" where there are more."""
    return f"the {name if _count(described, name) == 1 else CONCEPT[name].plural}"


def _phrase(described: Scene, name: str) -> str:
    return noun_phrase(next(g for g in described.groups if g.concept == name), with_size=False)


def absent(described: Scene, draw: Draw) -> list[str]:
    """Return names that are not there but might well be: as frequent as those that are, so that a
    name tells nothing by itself, and what goes with what is there."""
    present = [group.concept for group in described.groups]
    is_crowd = all(name in CROWD.pool for name in present)
    pool = CROWD.pool if is_crowd else ranked_concepts()
    found = [pool[int(len(pool) ** draw.uniform(0, 1)) - 1] for _ in range(5 if is_crowd else 1)]
    found += [draw.pick(pool) for _ in range(2 if is_crowd else 6)]
    found += partners(draw.pick(present), pool if is_crowd else CONCEPTS)
    return [name for name in found if name not in present] or [CONCEPTS[0]]


class InOrder(written.Dice):
    """Draws that leave the order of lists as it is."""

    def shuffled(self, values: Sequence[T]) -> list[T]:
        """Return all values in their order."""
        return list(values)


def dice_of(facts: Facts, draw: Draw) -> written.Dice:
    """Return draws for a turn. Behind slots most answers name things in the slots' order: what is
    next is then certain, and a model that lists things so says none of them twice."""
    kind = InOrder if facts.slots and draw.chance(0.7) else written.Dice
    return kind(facts.known.seed, facts.known.index, draw.integer(0, 1 << 30))


def known_of(facts: Facts) -> written.Facts:
    """Return the facts as the stage ``instructions`` has them."""
    shown, groups = facts.known, {group.concept: group for group in facts.known.groups}
    listed = [groups[name] for name in facts.order]
    return written.Facts(
        things=tuple(written.Thing(name=g.concept, count=g.count, color=g.color) for g in listed),
        relations=tuple((r.subject, r.predicate, r.object) for r in shown.relations),
        background=f"{shown.background.pattern}:{shown.background.color}"
        if facts.has_ground
        else None,
    )


def long_questions(facts: Facts, draw: Draw, count: int) -> list[Turn]:
    """Return the turns of the stage ``instructions``, most of them whether a thing is there."""
    scene_, known, turns = facts.known, known_of(facts), list[Turn]()
    asked = set[str]()
    while len(turns) < count:
        dice = written.Dice(scene_.seed, scene_.index, len(asked), draw.integer(0, 1 << 30))
        likely = written.Absent(dict.fromkeys(absent(scene_, draw), 1))
        kind = draw.uniform(0, 1)
        new = written.conversation(known, dice, num_turns=4, absent=likely)
        if kind < 0.2:
            new = written.detail(known, dice_of(facts, draw))
        elif kind < 0.26:
            new = written.reasoning(known, dice)
        elif kind < 0.66:
            new = [turn for turn in new if turn.answer.startswith(("Yes", "No"))]
        turns += [turn for turn in new if turn.prompt not in asked]
        asked |= {turn.prompt for turn in new} | {str(len(asked))}
    return turns


def whole_list(facts: Facts, draw: Draw) -> Turn:
    """Return a turn that names everything."""
    known = known_of(facts)
    dice = dice_of(facts, draw)
    if draw.chance(0.6):
        return written.detail(known, dice)[0]
    text = written.listed([written.phrase(thing) for thing in dice.shuffled(known.things or ())])
    return Turn("What can you see?", f"I can see {text}.")


def short_questions(facts: Facts | None, described: Scene, draw: Draw, count: int) -> list[Turn]:
    """Return questions with short answers; where there are facts, presence most often."""
    turns, asked = list[Turn](), set[str]()
    for _ in range(count):
        turn = question_turn(described, draw)
        if facts is not None and draw.chance(0.4):
            turn = presence(described, draw)
        if turn.prompt not in asked:
            turns.append(turn)
        asked.add(turn.prompt)
    return turns
