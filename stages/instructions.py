"""Instruction data: conversations about pictures, in LLaVA's form, from labels and captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from winnow.contracts.errors import RecipeError
from winnow.contracts.media import Media
from winnow.contracts.parameters import effort, result
from winnow.contracts.registry import register_stage
from winnow.contracts.stage import Stage, WorkerOptions
from winnow.models.conversation import IMAGE_TOKEN, Turn
from winnow.stages import _conversations
from winnow.stages._conversations import Absent, Dice, Facts, Kind, Thing
from winnow.stages._written_turns import first_turns

NAME = "instructions"
SCENES = "scenes"
WRITTEN = "written"
CONVERSATIONS = pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))
GROUPS = pa.list_(pa.struct([("name", pa.string()), ("count", pa.int32()), ("color", pa.string())]))
RELATIONS = pa.list_(
    pa.struct([(name, pa.string()) for name in ("subject", "predicate", "object")])
)


def llava_turns(turns: Sequence[Turn]) -> list[dict[str, str]]:
    """Return LLaVA's form: human and gpt by turns; the first value starts with "<image>".

    It stands for the picture, so texts that have it lose it.
    """
    found = []
    for place, turn in enumerate(turns):
        picture = "" if place else f"{IMAGE_TOKEN}\n"
        prompt, answer = (t.replace(IMAGE_TOKEN, "").strip() for t in (turn.prompt, turn.answer))
        found.append({"from": "human", "value": f"{picture}{prompt}"})
        found.append({"from": "gpt", "value": answer})
    return found


@register_stage(NAME, version=2)
@dataclass(frozen=True, kw_only=True, slots=True)
class Instructions(Stage):
    """Make a conversation about each picture from what is known of it.

    =============  ================================================================================
    kind           what it holds (the kinds are those of Liu et al. 2023)
    =============  ================================================================================
    conversation   up to ``num_turns`` short questions: what, how many, which color, where, and is
                   there a thing; the last come in pairs of a thing that is there and one that is
                   not, drawn by its frequency, so that "yes" is right half of the time
    detail         one long answer from the labels; the caption for a row without labels
    reasoning      one question whose answer takes a step (counts added or compared, relations
                   turned round or joined), with that step in the answer
    =============  ================================================================================

    All of these are made from templates of this stage; every answer follows from the row's labels,
    and is as right as they are. Or a model writes them, from the picture and what is known of it:

        details: {use: caption, engine: endpoint, url: ..., model: ..., instruction: detail,
                  prompt: "Objects: {truth_objects:list}", max_tokens: 512, column: told}
        instructions: {written: {detail: told}}

    A kind that a model wrote for the row comes before those that templates make, and in place of
    the template's. With ``written: told``, a column for all kinds, a row whose text holds a
    conversation has that one alone. ``winnow.stages._written_turns`` has the packaged prompts, and
    says how an answer is read.

    Reads:   <objects> (truth_objects): list<string>, a name per object: its count is how often it
             comes.  <groups>: list<struct<name: string, count: int32, color: string>>, in place of
             ``objects``; a null is not known, a count of 0 is not there.  <relations>:
             list<struct<subject, predicate, object: string>>; predicates "left of", "right of",
             "above", "below" and "on" are understood, others are used as they are.  <background>:
             string, words, or "pattern:color" as scenes have it.  <caption> (text): string.
             <written>, each column of it: list<string>, what a model was asked for; the first
             that holds a conversation counts. Only those that are named.
    Writes:  <column> (conversations): list<struct<from: string, value: string>>, "human" and "gpt"
             by turns, LLaVA's form: the first value starts with "<image>" and a new line.
             <column>_kinds (conversations_kinds): list<string>, the kinds in it, in order;
             "written" for one that a model wrote, "written_detail" and so on where ``written``
             says what it was asked for.
             <column>_error: string (conversations_error); null, or "no_facts": neither labels nor a
             caption, or nothing that one of the row's kinds could be made of. The others are null
             exactly then.
    Cost:    CPU only; about a tenth of a millisecond a row.
    Fails:   a bad row never raises. RecipeError for parameters that cannot be meant; SetupError for
             a vocabulary that cannot be read.

    kinds: to draw from; a kind that a row has no facts for is not drawn for it.
    kinds_per_row: how many of them, their turns after each other in one conversation, as LLaVA-1.5
    merges what it asks about one picture.
    vocabulary: names to ask for that are not there: what ``winnow objects`` wrote, with their
    frequencies; or "scenes", all names of packaged scenes, equally often; null: no such questions,
    neither with yes nor with no. Its content enters the fingerprint.
    written: a column, or one for each kind that a model was asked for.
    seed: of all draws, with the row's uid.
    """

    kinds: tuple[Kind, ...] = result(("conversation", "detail", "reasoning"))
    kinds_per_row: int = result(1)
    num_turns: int = result(4)
    objects: str | None = result("truth_objects")
    groups: str | None = result(None)
    relations: str | None = result(None)
    background: str | None = result(None)
    caption: str | None = result("text")
    written: str | Mapping[Kind, str] | None = result(None)
    vocabulary: str | None = effort(None)
    seed: int = result(0)
    column: str = result("conversations")

    def __post_init__(self) -> None:
        """Refuse what can make nothing."""
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            msg = f"{NAME}: kinds={list(self.kinds)}; name some, each once, such as [detail]"
            raise RecipeError(msg)
        if not 1 <= self.kinds_per_row <= len(self.kinds):
            msg = f"{NAME}: kinds_per_row={self.kinds_per_row}; use 1 to {len(self.kinds)} (kinds)"
            raise RecipeError(msg)
        if not 1 <= self.num_turns <= 20:
            msg = f"{NAME}: num_turns={self.num_turns}; use 1 to 20"
            raise RecipeError(msg)
        if self.objects is not None and self.groups is not None:
            msg = f"{NAME}: objects={self.objects!r} and groups={self.groups!r}: set one to null"
            raise RecipeError(msg)
        asked = [] if self.written is None or isinstance(self.written, str) else [*self.written]
        if self.written == {} or not set(asked) <= set(self.kinds):
            msg = (
                f"{NAME}: written has {asked}; give a column, or one for each of some kinds, and "
                f"only for those of kinds={list(self.kinds)}"
            )
            raise RecipeError(msg)
        can_caption = self.caption is not None and "detail" in self.kinds
        if not (self.objects or self.groups or self.written or can_caption):
            msg = (
                f"{NAME}: without objects and groups only kinds: [detail] can be made, of captions"
            )
            raise RecipeError(msg)
        names = [name for name, _ in self._columns()]
        clash = {"uid", *names} & set(self.writes.names)
        if not self.column or clash or len(set(names)) < len(names):
            msg = (
                f"{NAME}: column={self.column!r} and the columns it reads, {', '.join(names)}, "
                "have to be different names"
            )
            raise RecipeError(msg)

    def _columns(self) -> list[tuple[str, pa.DataType]]:
        wanted = (
            (self.objects, pa.list_(pa.string())),
            (self.groups, GROUPS),
            (self.relations, RELATIONS),
            (self.background, pa.string()),
            (self.caption, pa.string()),
            *((name, pa.list_(pa.string())) for name in self._written.values()),
        )
        return [(name, kind) for name, kind in wanted if name is not None]

    @property
    def _written(self) -> Mapping[Kind | None, str]:
        """The columns that a model wrote, by what it was asked for; None: by one prompt for all."""
        if self.written is None:
            return {}
        if isinstance(self.written, str):
            return {None: self.written}
        return {kind: self.written[kind] for kind in self.kinds if kind in self.written}

    @property
    def reads(self) -> pa.Schema:
        """The labels and the caption that are named."""
        return pa.schema(dict(self._columns()))

    @property
    def writes(self) -> pa.Schema:
        """The conversation, its kinds, the error."""
        return pa.schema(
            {
                self.column: CONVERSATIONS,
                f"{self.column}_kinds": pa.list_(pa.string()),
                f"{self.column}_error": pa.string(),
            }
        )

    def model_digest(self) -> str:
        """Digest of the vocabulary's content."""
        from winnow.stages._object_statistics import files_digest

        if self.vocabulary == SCENES:
            return SCENES
        return files_digest(self.vocabulary)

    def setup(self, options: WorkerOptions) -> Absent | None:
        """Read the vocabulary."""
        if self.vocabulary is None:
            return None
        if self.vocabulary == SCENES:
            from winnow.stages.sources._scenes.sprites import CONCEPTS

            return Absent(dict.fromkeys(CONCEPTS, 1))
        from winnow.stages._object_statistics import read_statistics

        return Absent(read_statistics(NAME, self.vocabulary).objects)

    def annotate(self, batch: pa.RecordBatch, state: Absent | None, media: Media) -> pa.RecordBatch:
        """Make one conversation per row; no row depends on another."""
        columns = {
            role: _values(batch, getattr(self, role))
            for role in ("objects", "groups", "relations", "background", "caption")
        }
        texts = {kind: _values(batch, name) for kind, name in self._written.items()}
        rows = []
        for place, uid in enumerate(batch.column("uid").to_pylist()):
            written = {kind: first_turns(values[place]) for kind, values in texts.items()}
            if turns := written.get(None):
                rows.append(self._columns_of(turns, [WRITTEN]))
                continue
            facts = facts_of(**{role: values[place] for role, values in columns.items()})
            rows.append(self._row(facts, uid, state, written))
        return pa.RecordBatch.from_pylist(rows, schema=self.writes)

    def _row(
        self,
        facts: Facts,
        uid: bytes,
        absent: Absent | None,
        written: Mapping[Kind | None, list[Turn]],
    ) -> dict[str, Any]:
        made: dict[str, list[Turn]] = {}
        drawn = Dice("kinds", self.seed, uid).shuffled(self.kinds)
        for kind in sorted(drawn, key=lambda kind: not written.get(kind)):
            turns = written.get(kind)
            name = f"{WRITTEN}_{kind}" if turns else kind
            turns = turns or self._make(kind, facts, Dice(kind, self.seed, uid), absent)
            if turns and len(made) < self.kinds_per_row:
                made[name] = turns
        if not made:
            return {f"{self.column}_error": "no_facts"}
        return self._columns_of([t for turns in made.values() for t in turns], list(made))

    def _columns_of(self, turns: Sequence[Turn], kinds: list[str]) -> dict[str, Any]:
        return {self.column: llava_turns(turns), f"{self.column}_kinds": kinds}

    def _make(self, kind: Kind, facts: Facts, dice: Dice, absent: Absent | None) -> list[Turn]:
        if kind == "conversation":
            return _conversations.conversation(facts, dice, num_turns=self.num_turns, absent=absent)
        if kind == "detail":
            return _conversations.detail(facts, dice)
        return _conversations.reasoning(facts, dice)


def facts_of(
    *,
    objects: Sequence[str | None] | None = None,
    groups: Sequence[Mapping[str, Any] | None] | None = None,
    relations: Sequence[Mapping[str, Any] | None] | None = None,
    background: str | None = None,
    caption: str | None = None,
) -> Facts:
    """Return what a row says, without names that are null or white space.

    Relations of things that are not among the labelled ones are left out.
    """
    things = _things(objects, groups)
    names = {thing.name for thing in things or ()}
    said = [tuple(r[k] for k in ("subject", "predicate", "object")) for r in relations or () if r]
    return Facts(
        things=things,
        relations=tuple(
            (a, predicate, b)
            for a, predicate, b in dict.fromkeys(said)
            if predicate and a in names and b in names and a != b
        ),
        background=background if background and background.strip() else None,
        caption=caption if caption and caption.strip() else None,
    )


def _things(
    objects: Sequence[str | None] | None, groups: Sequence[Mapping[str, Any] | None] | None
) -> tuple[Thing, ...] | None:
    if groups is not None:
        found: dict[str, Thing] = {}
        for group in groups:
            if group and group["name"] and group["name"].strip():
                count = group["count"]
                if count is not None and count < 1:
                    continue
                thing = Thing(name=group["name"], count=count, color=group["color"] or None)
                found.setdefault(thing.name, thing)
        return tuple(found.values())
    if objects is None:
        return None
    counts = Counter(name for name in objects if name and name.strip())
    return tuple(Thing(name=name, count=count) for name, count in counts.items())


def _values(batch: pa.RecordBatch, name: str | None) -> list[Any]:
    return [None] * batch.num_rows if name is None else batch.column(name).to_pylist()
