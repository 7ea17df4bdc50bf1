"""Fact errors: which things, colours, numbers and places that a description states are wrong?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from winnow.contracts.errors import SetupError
from winnow.contracts.parameters import result
from winnow.contracts.registry import register_evaluation
from winnow.contracts.trial import Captioner, Evaluation, Score
from winnow.models.conversation import PARAGRAPH_PROMPT
from winnow.stages._object_statistics import files_digest, read_statistics
from winnow.stages._objects import Vocabulary, read_synonyms
from winnow.stages.evaluate._answers import check_prompt, complete_pictures, described
from winnow.stages.evaluate._parameters import check_least, check_names
from winnow.stages.evaluate._ratios import all_scores, mean, ratio
from winnow.stages.evaluate._rows import column_values
from winnow.stages.evaluate._slices import slice_keys
from winnow.stages.evaluate._statements import COLORS, Relation, Statement, statements

Kind = Literal["object", "color", "count", "relation"]
KINDS: tuple[Kind, ...] = ("object", "color", "count", "relation")
_INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_ALSO = {"on": "above"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What is true of a picture. counts, colors: by name; None = not known. relations: all that
    are true of it, with what follows from them; None = not known."""

    counts: Mapping[str, int | None]
    colors: Mapping[str, str | None]
    relations: frozenset[Relation] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """How many statements of each kind could be judged, and how many of them are wrong."""

    stated: Counter[Kind]
    wrong: Counter[Kind]


def judge(said: Iterable[Statement], facts: Facts) -> Tally:
    """Compare statements with the facts.

    Of a thing that is not there only its being named is judged, and of a relation only one between
    things that are there.
    """
    stated: Counter[Kind] = Counter()
    wrong: Counter[Kind] = Counter()

    def note(kind: Kind, is_wrong: bool) -> None:
        stated[kind] += 1
        wrong[kind] += is_wrong

    for one in said:
        note("object", one.name not in facts.counts)
        if one.name in facts.counts:
            count, color = facts.counts[one.name], facts.colors[one.name]
            if one.count is not None and count is not None:
                note("count", one.count != count)
            if one.color is not None and color is not None:
                note("color", one.color != color)
        relation = one.relation
        if relation and facts.relations is not None:
            ends = {relation.subject, relation.object}
            if len(ends) == 2 and ends <= facts.counts.keys():
                note("relation", relation not in facts.relations)
    return Tally(stated=stated, wrong=wrong)


@register_evaluation("fact_errors", version=2)
@dataclass(frozen=True, kw_only=True, slots=True)
class FactErrors(Evaluation):
    """Judge what descriptions state, one kind of fact at a time.

    It understands English statements of the form "two red cars", "a cat is to the left of the
    dogs" (``_statements``), which the packaged scenes' captions use, and models trained on them;
    what is said otherwise is not judged. A picture's truth is in columns, so that any set with such
    columns can be measured.

    Reads:   column ``groups``: list<struct<name: string, count: int, color: string>>, one entry per
             kind of thing in the picture, complete; a null field = not known, and not judged; a
             null list = not annotated. Column ``relations``: list<struct<subject: string,
             predicate: string, object: string>>, all that are true of the picture ("left of",
             "right of", "above", "below", "on"; the inverse of each follows, and "above" from
             "on"); null = not known. The columns of ``slices``. Generates one answer of at most
             ``max_tokens`` tokens per picture.
    Scores:  fact_errors.rate: the headline, wrong / judged statements of all kinds.
             fact_errors.object: named things that are not there / named things.
             fact_errors.attribute: wrong / judged colours and numbers; fact_errors.color;
                 fact_errors.count. fact_errors.relation. Null where no answer states such a fact.
             fact_errors.num_<kind>: judged statements per answer: who states less errs less.
             all per slice; a picture is one item (``_ratios.Ratio``). fact_errors.num_left_out:
             samples without groups.
    Cost:    one generation per picture.
    Fails:   SetupError where a column or file is missing, of another type, or no sample is
             annotated. RecipeError for bad parameters.

    statistics, synonyms: as ``chair``'s. colors: words that are taken for colours where they stand
    before a thing, beside those of the column.
    """

    groups: str = result()
    relations: str | None = result(None)
    statistics: str | None = result(None)
    synonyms: str | None = result(None)
    colors: tuple[str, ...] = result(COLORS)
    prompt: str = result(PARAGRAPH_PROMPT)
    max_tokens: int = result(192)
    slices: tuple[str, ...] = result(())
    max_slices: int = result(50)

    subject = "captions"

    def __post_init__(self) -> None:
        check_names("fact_errors", "groups", (self.groups,))
        check_names("fact_errors", "colors", self.colors, least=1)
        check_names("fact_errors", "slices", self.slices)
        check_prompt("fact_errors", self.prompt)
        check_least("fact_errors", "max_tokens", self.max_tokens, 1)
        check_least("fact_errors", "max_slices", self.max_slices, 1)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.groups, *((self.relations,) if self.relations else ()), *self.slices)

    def files_digest(self) -> str:
        return files_digest(self.statistics, self.synonyms)

    def measure(self, subject: Captioner) -> list[Score]:
        who = "fact_errors"
        found = complete_pictures(who, subject, [self.groups])
        facts = self._facts(found.table)
        known = read_statistics(who, self.statistics).objects if self.statistics else {}
        names = {*known, *(name for one in facts for name in one.counts)}
        vocabulary = Vocabulary(names, read_synonyms(who, self.synonyms))
        colors = {*self.colors, *(c for one in facts for c in one.colors.values() if c)}
        answers = described(who, subject, found, self.prompt, self.max_tokens)
        tallies = [
            judge(statements(answer.text, vocabulary, colors), one)
            for answer, one in zip(answers, facts, strict=True)
        ]
        slices = slice_keys(who, found.table, self.slices, self.max_slices)
        scores = all_scores(_ratios(tallies, found.keys), slices)
        return [*scores, found.left_out_score(who)]

    def _facts(self, table: pa.Table) -> list[Facts]:
        groups = _structs(table, self.groups, ("name",))
        relations: list[list[dict[str, Any]] | None] = [None] * table.num_rows
        if self.relations:
            relations = _structs(table, self.relations, ("subject", "predicate", "object"))
        return [
            Facts(
                counts={g["name"]: g.get("count") for g in things or () if g["name"]},
                colors={g["name"]: g.get("color") for g in things or () if g["name"]},
                relations=None if pairs is None else _closed(pairs),
            )
            for things, pairs in zip(groups, relations, strict=True)
        ]


def _ratios(tallies: Sequence[Tally], keys: Sequence[str]) -> list[Any]:
    kinds: dict[str, tuple[Kind, ...]] = {
        "rate": KINDS,
        "object": ("object",),
        "attribute": ("color", "count"),
        "color": ("color",),
        "count": ("count",),
        "relation": ("relation",),
    }
    found = [
        ratio(
            f"fact_errors.{name}",
            [sum(t.wrong[k] for k in some) for t in tallies],
            [sum(t.stated[k] for k in some) for t in tallies],
            keys,
            False,
        )
        for name, some in kinds.items()
    ]
    for kind in KINDS:
        numbers = [t.stated[kind] for t in tallies]
        found.append(mean(f"fact_errors.num_{kind}", numbers, keys, None))
    return found


def _closed(pairs: Iterable[Mapping[str, str]]) -> frozenset[Relation]:
    """The relations, and what follows from each."""
    found: set[Relation] = set()
    for pair in pairs:
        subject, predicate, other = pair["subject"], pair["predicate"], pair["object"]
        for word in (predicate, _ALSO.get(predicate, predicate)):
            found.add(Relation(subject, word, other))
            if word in _INVERSE:
                found.add(Relation(other, _INVERSE[word], subject))
    return frozenset(found)


def _structs(table: pa.Table, column: str, fields: Sequence[str]) -> list[Any]:
    """Return a column of lists of structures; an empty column's structures may have no type."""
    values = column_values("fact_errors", table, column)
    kind = table.schema.field(column).type
    inner = kind.value_type if pa.types.is_list(kind) else kind
    is_right = pa.types.is_struct(inner) and all(inner.get_field_index(f) >= 0 for f in fields)
    if not pa.types.is_list(kind) or not (is_right or pa.types.is_null(inner)):
        wanted = ", ".join(f"{name}: string" for name in fields)
        msg = f"fact_errors: column {column!r} holds {kind}; use list<struct<{wanted}, ...>>"
        raise SetupError(msg)
    return values
