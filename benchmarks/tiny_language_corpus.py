"""Text about random scenes, to train the packaged tiny language model on; no picture is drawn.

Captions, paragraphs, and conversations in the form of models/conversation.py. A part of the
conversations gives no description before a question: its answer cannot be told, only guessed, so
that the model learns form and prior. The others describe the scene first, often twice in other
words: there the answer stands in the text, as for a captioner it stands in the prefix.
"""

from __future__ import annotations

from collections.abc import Sequence

from winnow.models.conversation import CAPTION_PROMPT, PARAGRAPH_PROMPT, Turn, pieces
from winnow.stages.sources._scenes import (
    CONCEPTS,
    Group,
    Scene,
    SceneOptions,
    caption,
    num_variants,
    scene,
)
from winnow.stages.sources._scenes.captions import article, background_phrase, noun_phrase
from winnow.stages.sources._scenes.draw import Draw
from winnow.stages.sources._scenes.model import Part
from winnow.stages.sources._scenes.sprites import CONCEPT, PAINTS

TRAIN_SEED, HELD_OUT_SEED = 30_001, 95_001
PARTS: tuple[Part, ...] = ("all", "all", "validation", "test")
FEW = SceneOptions()
SEVERAL = SceneOptions(min_objects=3, max_objects=8, weights="zipf")
MANY = SceneOptions(min_objects=6, max_objects=12, repeat_share=0.1)
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
LIKELY = ("yes", "no")


def paragraph(described: Scene, draw: Draw) -> str:
    """Return a few sentences that name every group once, in random order, and the ground."""
    groups = _shuffled(described.groups, draw)
    sentences, said = [], []
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
            where = "it" if last else _the(described, other)
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
    name = draw.pick(sorted(present)) if truth else draw.pick(CONCEPTS)
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
    return Turn(prompt.format(verb, _the(described, group.concept)), str(group.color))


def _whether_color(described: Scene, draw: Draw) -> Turn | None:
    painted = [group for group in described.groups if group.color]
    if not painted:
        return None
    group = draw.pick(painted)
    color = str(group.color) if draw.chance(0.5) else draw.pick(tuple(PAINTS))
    verb = "Is" if group.count == 1 else "Are"
    answer = LIKELY[color != group.color]
    return Turn(f"{verb} {_the(described, group.concept)} {color}?", answer)


def _relation(described: Scene, draw: Draw) -> Turn | None:
    if not described.relations:
        return None
    asked = draw.pick(described.relations)
    same = [r.subject for r in described.relations
            if r.object == asked.object and r.predicate == asked.predicate]  # fmt: skip
    answer = " and ".join(_phrase(described, name) for name in same)
    return Turn(f"What is {PLACES[asked.predicate]} {_the(described, asked.object)}?", answer)


def _where(described: Scene, draw: Draw) -> Turn | None:
    if not described.relations:
        return None
    asked = draw.pick(described.relations)
    verb = "is" if _count(described, asked.subject) == 1 else "are"
    answer = f"{PLACES[asked.predicate]} {_the(described, asked.object)}"
    return Turn(f"Where {verb} {_the(described, asked.subject)}?", answer)


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
    subject, thing = _the(described, asked.subject), _the(described, asked.object)
    return Turn(f"{verb} {subject} {PLACES[place]} {thing}?", "yes" if true else "no")


def _list(described: Scene, draw: Draw) -> Turn:
    names = [_phrase(described, group.concept) for group in _shuffled(described.groups, draw)]
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
    return Turn(f"{verb} {_the(described, group.concept)} small or large?", str(group.size))


def _shuffled(groups: Sequence[Group], draw: Draw) -> list[Group]:
    return [g for _, g in sorted(((draw.uniform(0, 1), g) for g in groups), key=lambda p: p[0])]


def _count(described: Scene, name: str) -> int:
    return next((g.count for g in described.groups if g.concept == name), 0)


def _the(described: Scene, name: str) -> str:
    return f"the {name if _count(described, name) == 1 else CONCEPT[name].plural}"


def _phrase(described: Scene, name: str) -> str:
    return noun_phrase(next(g for g in described.groups if g.concept == name), with_size=False)


def document(seed: int, index: int) -> list[str]:
    """Return one text: pieces, each but the prompts followed by the end-of-text token.

    Prompts are marked by what they end with ("ASSISTANT:").
    """
    draw = Draw("tiny-lm", seed, index)
    options = draw.pick((FEW, FEW, FEW, FEW, FEW, SEVERAL, SEVERAL, SEVERAL, MANY))
    described = scene(seed, index, options)
    kind = draw.uniform(0, 1)
    if kind < 0.1:
        return [describing(described, draw).answer]
    if kind < 0.2:
        return [paragraph(described, draw)]
    most, turns = 3, []
    if kind > 0.35:
        turns = [describing(described, draw)]
        most = 18 if kind > 0.97 else 6
    if kind > 0.75:  # the same things in other words: what there is to be found again
        whole = Turn(draw.pick(PARAGRAPH_PROMPTS), paragraph(described, draw))
        turns.insert(draw.pick((0, 1)), whole)
    asked = {turn.prompt for turn in turns}
    for _ in range(draw.integer(1, most)):
        turn = question_turn(described, draw)
        if turn.prompt not in asked:
            turns.append(turn)
        asked.add(turn.prompt)
    return [piece.text for piece in pieces(turns)]
