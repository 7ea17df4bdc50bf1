"""The plan: which columns exist when, which stages share a pass, checked before anything runs."""

from __future__ import annotations

import difflib
import functools
import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from winnow.contracts.errors import RecipeError
from winnow.contracts.exporter import Exporter
from winnow.contracts.media import MEDIA_REF
from winnow.contracts.stage import GlobalStage, Resources, Stage
from winnow.filters import expr
from winnow.filters.expr import Expr
from winnow.filters.rules import BalancedRows, PriorityCover, RandomRows, TopFraction
from winnow.pipeline.arrow_files import is_payload
from winnow.pipeline.columns import SOURCE, ColumnSet
from winnow.pipeline.recipe import FilterEntry, Recipe, StageEntry

DEFAULT_CHUNK_ROWS = 128
MAX_CHUNK_ROWS = 4096
IMPLIED = "has_media"
"""Key of the filter that every recipe with media begins with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """Consecutive per-row stages that one worker runs over one read and one decode."""

    entries: tuple[StageEntry, ...]
    chunk_rows: int
    resources: Resources

    @property
    def keys(self) -> tuple[str, ...]:
        """The stages' names in the recipe."""
        return tuple(e.key for e in self.entries)


Step = Pass | StageEntry
"""A pass, or a global stage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A checked recipe.

    schema: every column there is, in order.  origins: column -> writer (SOURCE or a stage's key).
    filters: has_media first, then the recipe's.
    """

    recipe: Recipe
    source_schema: pa.Schema
    schema: pa.Schema
    origins: dict[str, str]
    steps: tuple[Step, ...]
    filters: tuple[FilterEntry, ...]

    @property
    def virtual(self) -> tuple[str, ...]:
        """Payload columns that the source gives by reference."""
        return virtual_payloads(self.source_schema)

    def entry(self, key: str) -> StageEntry:
        """Return a stage by its name in the recipe."""
        return next(e for e in self.recipe.stages if e.key == key)

    def inputs(self, key: str, *, gate: bool = False) -> tuple[str, ...]:
        """Return the writers of what a stage reads; with ``gate``, also of what its gate reads."""
        entry = self.entry(key)
        names = set(entry.stage.reads.names)
        if gate and entry.when is not None:
            names |= entry.when.columns()
        return tuple(sorted({self.origins[n] for n in names if n != "uid"}))

    def placed(self, key: str) -> bool:
        """Whether a stage's columns depend on all rows, by what it or its gate reads."""
        if self.entry(key).is_global:
            return True
        return any(self.placed(w) for w in self.inputs(key, gate=True) if w != SOURCE)

    def column_set(self, key: str, fingerprint: str) -> ColumnSet:
        """Return where a stage's columns are, given its fingerprint."""
        entry = self.entry(key)
        return ColumnSet(
            writer=key,
            folder=f"columns/{entry.stage.name}-{fingerprint}",
            schema=entry.stage.writes,
            when=entry.when,
            placed=self.placed(key),
        )

    def source_set(self) -> ColumnSet:
        """Return where the source's columns are."""
        return ColumnSet(
            writer=SOURCE, folder="rows", schema=self.source_schema, virtual=self.virtual
        )


def make_plan(recipe: Recipe) -> Plan:
    """Check a recipe's columns by name and type and group its stages into passes."""
    source_schema = recipe.source.schema()
    virtual = virtual_payloads(source_schema)
    fields = [*source_schema, *(pa.field(n, pa.large_binary()) for n in virtual)]
    schema = pa.schema(fields)
    origins = dict.fromkeys(schema.names, SOURCE)
    mistakes: list[str] = []
    for entry in recipe.stages:
        mistakes += _check_stage(entry, schema, recipe)
        for field in entry.stage.writes:
            if field.name in origins or field.name == "uid":
                mistakes.append(_collision(entry.key, field.name, origins))
            else:
                schema = schema.append(field)
                origins[field.name] = entry.key
    for export in recipe.exports:
        try:
            export.exporter.payloads(schema)
        except RecipeError as error:
            mistakes.append(f"export.{export.key}: {error.message}")
    implied = [] if mistakes else _implied(recipe, schema, origins)
    if any(f.key == IMPLIED for f in recipe.filters):
        mistakes.append(f"filters.{IMPLIED} is always there, first; give yours another name")
    filters = (*implied, *recipe.filters)
    for filter_ in filters:
        mistakes += _check_rule(filter_, schema)
    mistakes += _check_covers_last(filters)
    if mistakes:
        raise RecipeError("\n".join(mistakes), place=recipe.file or None)
    return Plan(
        recipe=recipe,
        source_schema=source_schema,
        schema=schema,
        origins=origins,
        steps=_steps(recipe.stages),
        filters=filters,
    )


def check_models(plan: Plan) -> None:
    """Raise SetupError where a stage's model files are missing, before any work."""
    for entry in plan.recipe.stages:
        if isinstance(entry.stage, Stage):
            entry.stage.model_digest()


def virtual_payloads(schema: pa.Schema) -> tuple[str, ...]:
    """Return the payloads that a source gives as ``<payload>_ref`` columns."""
    return tuple(f.name[:-4] for f in schema if f.type == MEDIA_REF and f.name.endswith("_ref"))


def _check_stage(entry: StageEntry, schema: pa.Schema, recipe: Recipe) -> list[str]:
    mistakes = []
    where = f"stages.{entry.key}"
    for field in entry.stage.reads:
        index = schema.get_field_index(field.name)
        if index < 0:
            mistakes.append(f"{where} reads {_absent(field.name, schema, recipe)}")
        elif schema.field(index).type != field.type:
            mistakes.append(
                f"{where} reads {field.name} as {field.type}, but it is {schema.field(index).type}"
            )
    if entry.when is not None:
        try:
            expr.check(entry.when, schema)
        except RecipeError as error:
            mistakes.append(f"{where}.when: {error.message}")
    return mistakes


def _absent(name: str, schema: pa.Schema, recipe: Recipe) -> str:
    later = [e.key for e in recipe.stages if name in e.stage.writes.names]
    if later:
        return f"the column {name!r}, which {later[0]} writes: put {later[0]} before it"
    near = difflib.get_close_matches(name, schema.names, n=1)
    writers = [n for n, use in _writers() if name in use]
    hint = f"; did you mean {near[0]!r}?" if near else ""
    if writers:
        hint = f"; the stage {writers[0]} writes it: add it before"
    return f"the column {name!r}, which nothing writes{hint} (there are: {', '.join(schema.names)})"


def _writers() -> Iterable[tuple[str, list[str]]]:
    """Stages that can be built without parameters, with what they write."""
    from winnow.contracts.registry import GLOBAL_STAGES, STAGES

    for name, factory in [*STAGES.items(), *GLOBAL_STAGES.items()]:
        try:
            stage: Stage | GlobalStage = factory()  # type: ignore[assignment]
            yield name, stage.writes.names
        except (TypeError, RecipeError):
            continue


def _collision(key: str, name: str, origins: dict[str, str]) -> str:
    owner = origins.get(name)
    who = "the source" if owner == SOURCE else f"stages.{owner}" if owner else "every row"
    return f"stages.{key} writes the column {name!r}, which {who} already has"


def _implied(recipe: Recipe, schema: pa.Schema, origins: dict[str, str]) -> list[FilterEntry]:
    """has_media: payloads that are exported, or not derived from others, must be there.

    Of the payloads that one export writes together, one must be there (``require: any``) or all;
    with such an export, or where the source itself has several media, what nobody exports may be
    missing. Nothing must be there where every export is of text alone.
    """
    groups = [(e.exporter.payloads(schema), _require(e.exporter)) for e in recipe.exports]
    there = _presence(recipe, schema, origins)
    asked = dict.fromkeys(name for names, _ in groups for name in names)
    if groups and not asked:
        return []
    of_source = [name for name in there if origins[name] == SOURCE]
    any_of = [names for names, require in groups if len(names) > 1 and require == "any"]
    if not groups and len(of_source) > 1:
        any_of = [of_source]
    loose = len(of_source) > 1 or any(len(names) > 1 for names, _ in groups)
    strict = [names for names, require in groups if len(names) == 1 or require == "all"]
    needed = {name for names in strict for name in names}
    if not loose:
        needed |= {name for name in there if _is_root(name, recipe, origins)}
    conditions = [condition for name, condition in there.items() if name in needed]
    conditions += [
        functools.reduce(operator.or_, (there[name] for name in names))
        for names in any_of
        if needed.isdisjoint(names)
    ]
    if not conditions:
        return []
    return [FilterEntry(key=IMPLIED, rule=expr.all_of(*conditions), on_null="drop")]


def _presence(recipe: Recipe, schema: pa.Schema, origins: dict[str, str]) -> dict[str, Expr]:
    """Return for every payload the condition that says a row has it."""
    conditions: dict[str, Expr] = {}
    for field in schema:
        if not is_payload(field.type):
            continue
        if origins[field.name] == SOURCE:
            reference = f"{field.name}_ref"
            name = reference if reference in schema.names else field.name
            conditions[field.name] = ~expr.col(name).is_null()
        else:
            stage = _writer(field.name, recipe, origins)
            there = expr.col(stage.writes.names[-1]).is_null()
            if isinstance(stage, Stage) and field.name in stage.presence:
                there = there & ~expr.col(stage.presence[field.name]).is_null()
            conditions[field.name] = there
    return conditions


def _is_root(name: str, recipe: Recipe, origins: dict[str, str]) -> bool:
    """Whether a payload is not derived from others, and no row may lack it without an error."""
    if origins[name] == SOURCE:
        return True
    stage = _writer(name, recipe, origins)
    if isinstance(stage, Stage) and name in stage.presence:
        return False
    return not any(is_payload(f.type) for f in stage.reads)


def _writer(name: str, recipe: Recipe, origins: dict[str, str]) -> Stage | GlobalStage:
    return next(e.stage for e in recipe.stages if e.key == origins[name])


def _require(exporter: Exporter) -> str:
    return str(getattr(exporter, "require", "all"))


def _check_rule(entry: FilterEntry, schema: pa.Schema) -> list[str]:
    where = f"filters.{entry.key}"
    if isinstance(entry.rule, Expr):
        try:
            expr.check(entry.rule, schema)
        except RecipeError as error:
            return [f"{where}: {error.message}"]
        return []
    missing = sorted(entry.rule.columns() - set(schema.names))
    if missing:
        return [f"{where} reads {', '.join(missing)}, which nothing writes"]
    if isinstance(entry.rule, TopFraction):
        kind = schema.field(entry.rule.column).type
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            return [f"{where}: {entry.rule.column} is {kind}, not a number"]
    if isinstance(entry.rule, BalancedRows):
        return [f"{where}: {problem}" for problem in _balance_mistakes(entry.rule, schema)]
    if isinstance(entry.rule, PriorityCover):
        kind = schema.field(entry.rule.neighbors).type
        if kind != pa.list_(pa.binary(16)):
            return [f"{where}: {entry.rule.neighbors} is {kind}, not a list of uids"]
    return []


def _balance_mistakes(rule: BalancedRows, schema: pa.Schema) -> Iterable[str]:
    for name in rule.by:
        kind = schema.field(name).type
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        kinds = (pa.types.is_string, pa.types.is_integer, pa.types.is_boolean)
        if not any(is_kind(plain) for is_kind in kinds):
            yield f"{name} is {kind}; balance by texts, integers or booleans"
    for name, condition in rule.present:
        try:
            expr.check(condition, schema)
        except RecipeError as error:
            yield f"present.{name}: {error.message}"


def _check_covers_last(filters: Iterable[FilterEntry]) -> list[str]:
    """A cover keeps a row because it survives: a later filter must not take that row away.

    A random draw may: it takes rows whatever they are, and an exact size needs the last word.
    """
    seen: str | None = None
    for entry in filters:
        if isinstance(entry.rule, PriorityCover):
            if seen is not None:
                said = f"filters.{entry.key} comes after filters.{seen}: a recipe has one of them"
                return [said]
            seen = entry.key
        elif seen is not None and not isinstance(entry.rule, RandomRows | BalancedRows):
            return [
                f"filters.{entry.key} comes after filters.{seen}: put {seen} last, or a duplicate "
                f"is dropped for a row that {entry.key} drops too"
            ]
    return []


def _steps(entries: tuple[StageEntry, ...]) -> tuple[Step, ...]:
    steps: list[Step] = []
    current: list[StageEntry] = []

    def finish() -> None:
        if current:
            steps.append(_pass(tuple(current)))
            current.clear()

    for entry in entries:
        if isinstance(entry.stage, GlobalStage):
            finish()
            steps.append(entry)
            continue
        if current and not _fits(current, entry):
            finish()
        current.append(entry)
        if not entry.stage.deterministic:
            finish()
    finish()
    return tuple(steps)


def _fits(current: list[StageEntry], entry: StageEntry) -> bool:
    """Whether a stage can share the pass: same gate, same kind of worker, batches that divide."""
    first = current[0]
    if str(first.when) != str(entry.when):
        return False
    if entry.when is not None:
        written = {n for e in current for n in e.stage.writes.names}
        if entry.when.columns() & written:
            return False
    gpus = {_stage(e).resources.num_gpus for e in [*current, entry]}
    return len(gpus) == 1 and _chunk_rows([*current, entry]) <= MAX_CHUNK_ROWS


def _pass(entries: tuple[StageEntry, ...]) -> Pass:
    needs = [_stage(e).resources for e in entries]
    return Pass(
        entries=entries,
        chunk_rows=_chunk_rows(entries),
        resources=Resources(
            num_cpus=max(r.num_cpus for r in needs),
            num_gpus=max(r.num_gpus for r in needs),
            memory_bytes=max(r.memory_bytes for r in needs),
        ),
    )


def _chunk_rows(entries: Iterable[StageEntry]) -> int:
    sizes = [b for e in entries if (b := _stage(e).batch_rows) is not None]
    return math.lcm(*sizes) if sizes else DEFAULT_CHUNK_ROWS


def _stage(entry: StageEntry) -> Stage:
    assert isinstance(entry.stage, Stage)
    return entry.stage
