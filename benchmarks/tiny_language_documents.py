"""Rows of text to train the packaged tiny language model on; no picture is drawn.

Captions, paragraphs, and conversations in the form of models/conversation.py. Most conversations
have the facts before the first prompt (tiny_language_facts.py), so that every answer can be read
there. Others have none: the answers can only be guessed, so that the model learns form and prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tiny_language_corpus import (
    CROWD,
    FEW,
    MANY,
    PARTS,
    SEVERAL,
    absent,
    describing,
    long_questions,
    paragraph,
    presence,
    short_questions,
    the_one,
    whole_list,
)
from tiny_language_facts import (
    Facts,
    bare_slots,
    object_slots,
    prose_facts,
    shuffled,
    soft_facts,
    text_facts,
)

from winnow.models.conversation import Turn, pieces
from winnow.stages.sources._scenes import Scene, SceneOptions, caption, num_variants, scene
from winnow.stages.sources._scenes.draw import Draw
from winnow.stages.sources._scenes.sprites import PAINTS

SMALL = SceneOptions(max_objects=3)
WIDE_CROWD = SceneOptions(min_objects=4, max_objects=10, co_occurrence=0.5, crowd=True)
PAIRS = SceneOptions(min_objects=2, max_objects=6, weights="zipf", crowd=True, repeat_share=0.0)
EVEN_PAIRS = replace(PAIRS, weights="uniform")
READ = (SMALL, FEW, SEVERAL, CROWD, CROWD, WIDE_CROWD, WIDE_CROWD)
LEADING, ALWAYS_LEADING = 4, 0.35
"""How many times ``first`` texts it takes from leading texts alone to others, and the share of
leading texts that stays."""
JOINTS = ("", "", ":", "?", "? ASSISTANT:", " in the picture? ASSISTANT:")


@dataclass(frozen=True, slots=True)
class Document:
    """One row of training. pieces: those of a conversation, or one text. checks:
    instead of pieces, names each followed by ``joint`` and a word about it."""

    pieces: tuple[str, ...] = ()
    facts: Facts | None = None
    checks: tuple[tuple[str, str], ...] = ()
    joint: str = ""


def document(seed: int, index: int, *, first: int = 0) -> Document:
    """Return one text; pieces that end with "ASSISTANT:" are prompts, others end with a token.

    first: with an index below it texts are only checks of object slots, and as many further
    ones lead from these to questions. A model that learns this first finds things by name, which it
    hardly learns from questions alone.
    """
    draw = Draw("tiny-lm", seed, index)
    if index < first:
        described = repainted(scene(seed, index, draw.pick((PAIRS, EVEN_PAIRS))), draw)
        checks = _checks(described, draw, repeat=True)
        return Document(facts=bare_slots(described, draw), checks=checks)
    kind = draw.uniform(0, 1)
    if kind < 0.15:
        return Document(_plain(seed, index, draw))
    if draw.chance(_bridging(index, first)):
        return _bridge(seed, index, draw)
    if kind < 0.45:
        return _listing(seed, index, draw)
    described = scene(seed, index, draw.pick(READ))
    if draw.chance(0.3):
        described = repainted(described, draw)
    facts = soft_facts(described, draw) if draw.chance(0.6) else text_facts(described, draw)
    if kind < 0.48:
        return _ordered(described, draw)
    if kind < 0.53:
        checks, joint = _checks(described, draw), draw.pick(JOINTS)
        return Document(facts=facts, checks=checks, joint=joint)
    if kind < 0.65:
        return Document(_texts(_drill(described, draw, draw.integer(8, 16))), facts)
    if kind < 0.68:
        return Document(_texts([_repeating(facts)]), facts)
    count = draw.integer(6, 12)
    if draw.chance(0.65):
        return Document(_texts(long_questions(facts, draw, count)), facts)
    turns = short_questions(facts, facts.known, draw, count)
    if draw.chance(0.4):
        turns.insert(draw.integer(0, len(turns)), describing(facts.known, draw))
    return Document(_texts(turns), facts)


def _bridging(index: int, first: int) -> float:
    """Return the share of texts that lead from checks to questions: all, then ever fewer. A model
    that goes from them to other texts at once forgets to read."""
    share = 1 - (index - 2 * first) / max(1, LEADING * first)
    return min(1.0, max(ALWAYS_LEADING, share))


def _bridge(seed: int, index: int, draw: Draw) -> Document:
    """Checks with more and more words between the name and what is said of it."""
    described = repainted(scene(seed, index, draw.pick((PAIRS, EVEN_PAIRS, WIDE_CROWD))), draw)
    facts = (bare_slots, bare_slots, object_slots, text_facts)[draw.integer(0, 3)](described, draw)
    if draw.chance(0.5):
        checks = _checks(described, draw)
        return Document(facts=facts, checks=checks, joint=draw.pick(JOINTS))
    return Document(_texts(_drill(described, draw, 10)), facts)


def _ordered(described: Scene, draw: Draw) -> Document:
    """Names with their colors, in the order of the slots: what is next is certain, nothing comes
    twice, and there is an end."""
    facts = (bare_slots if draw.chance(0.5) else object_slots)(described, draw)
    groups = {group.concept: group for group in described.groups}
    names = [" ".join(filter(None, (groups[name].color, name))) for name in facts.order]
    return Document((draw.pick((" {}.", " I can see {}.")).format(", ".join(names)),), facts)


def _listing(seed: int, index: int, draw: Draw) -> Document:
    """Everything that is there, in any order; for some a second time, in other words."""
    described = scene(seed, index, draw.pick((SMALL, PAIRS, EVEN_PAIRS, CROWD, WIDE_CROWD)))
    facts = soft_facts(described, draw) if draw.chance(0.8) else text_facts(described, draw)
    shown = replace(facts, known=replace(facts.known, relations=()))
    turns = [whole_list(shown, draw)]
    if draw.chance(0.3):
        turns.append(describing(shown.known, draw))
    return Document(_texts(turns), facts)


def repainted(described: Scene, draw: Draw) -> Scene:
    """Return the scene with a color on everything: what cannot be guessed from a name."""
    colors = {group.concept: draw.pick(tuple(PAINTS)) for group in described.groups}
    things = tuple(replace(thing, color=colors[thing.concept]) for thing in described.objects)
    return replace(described, objects=things)


def _checks(described: Scene, draw: Draw, *, repeat: bool = False) -> tuple[tuple[str, str], ...]:
    """Names, each with its color, "yes" where it has none, "no" where it is not there.

    repeat: 14 of them, some more than once; else every thing once, and about as many absent ones.
    """
    found = {group.concept: group.color or "yes" for group in described.groups}
    if repeat:
        names = [
            draw.pick(tuple(found)) if draw.chance(0.7) else draw.pick(absent(described, draw))
            for _ in range(14)
        ]
    else:
        others = [draw.pick(absent(described, draw)) for _ in found]
        names = shuffled(list(dict.fromkeys([*found, *others])), draw)
    return tuple((name, found.get(name, "no")) for name in names)


def _drill(described: Scene, draw: Draw, count: int) -> list[Turn]:
    """Many short questions: what has to be read, in few words."""
    painted = [group for group in described.groups if group.color]
    turns = [Turn(f"{name}?", word) for name, word in _checks(described, draw)[: count // 2]]
    for _ in range(count - count // 2):
        turn = presence(described, draw)
        if painted and draw.chance(0.4):
            group = draw.pick(painted)
            turn = Turn(f"color of {the_one(described, group.concept)}?", str(group.color))
        turns.append(turn)
    return shuffled(turns, draw)


def _texts(turns: Sequence[Turn]) -> tuple[str, ...]:
    return tuple(piece.text for piece in pieces(turns))


def _plain(seed: int, index: int, draw: Draw) -> tuple[str, ...]:
    """A caption, a paragraph, or questions without the facts."""
    described = scene(seed, index, draw.pick((FEW, FEW, FEW, SEVERAL, MANY, CROWD)))
    kind = draw.uniform(0, 1)
    if kind < 0.3:
        part = draw.pick(PARTS)
        variant = draw.integer(0, num_variants("en", part) - 1)
        return (caption(described, variant=variant, part=part),)
    if kind < 0.5:
        return (paragraph(described, draw),)
    if kind < 0.6:
        return (prose_facts(described, draw).text,)
    if kind < 0.75:
        return _texts(long_questions(Facts(described, has_ground=True), draw, 3))
    return _texts(short_questions(None, described, draw, draw.integer(1, 4)))


def _repeating(facts: Facts) -> Turn:
    """Copying, which teaches to look back early."""
    names = list(dict.fromkeys(w for slot in facts.slots for w, _ in slot.words))
    return Turn("Repeat this.", facts.text or ", ".join(names))
