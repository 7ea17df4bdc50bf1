"""A recipe is the whole run: YAML in, frozen typed objects out, every mistake with its line."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import pydantic
import yaml

from winnow.contracts import parameters
from winnow.contracts.errors import RecipeError
from winnow.contracts.exporter import Exporter
from winnow.contracts.media import MediaCaps
from winnow.contracts.registry import EXPORTERS, FILTERS, GLOBAL_STAGES, SOURCES, STAGES
from winnow.contracts.source import Source
from winnow.contracts.stage import GlobalStage, Stage
from winnow.filters.expr import Expr
from winnow.filters.rules import Rule
from winnow.pipeline.yaml_places import Path as KeyPath
from winnow.pipeline.yaml_places import Places, load_yaml

OnNull = Literal["drop", "keep"]
MAX_NAME_BYTES = {"stages": 64, "filters": 200, "export": 200}
"""A breadcrumb has room for 64 bytes; an export's name, and 13 characters, is a file's name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageEntry:
    """One stage of a recipe: ``key`` is its name there, ``when`` its gate."""

    key: str
    stage: Stage | GlobalStage
    when: Expr | None = None

    @property
    def is_global(self) -> bool:
        """Whether it needs all rows at once."""
        return isinstance(self.stage, GlobalStage)


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterEntry:
    """One filter of a recipe, in funnel order."""

    key: str
    rule: Rule
    on_null: OnNull


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportEntry:
    """One export of a recipe."""

    key: str
    exporter: Exporter
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A parsed recipe. ``resolved`` is the YAML after overrides, as plain data."""

    name: str
    description: str = ""
    license: str = ""
    seed: int = 0
    source: Source
    rows_per_shard: int = 5000
    media: MediaCaps = field(default_factory=MediaCaps)
    stages: tuple[StageEntry, ...] = ()
    filters: tuple[FilterEntry, ...] = ()
    exports: tuple[ExportEntry, ...] = ()
    resolved: Mapping[str, Any] = field(default_factory=dict)
    file: str = ""

    def to_yaml(self) -> str:
        """Return the resolved recipe as YAML."""
        return yaml.safe_dump(dict(self.resolved), sort_keys=False, allow_unicode=True, width=100)


class Settings(pydantic.BaseModel):
    """The plain values of a recipe; the four sections are checked against their registries."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    name: str = pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    description: str = ""
    license: str = ""
    seed: int = pydantic.Field(default=0, ge=0)
    source: dict[str, Any]
    rows_per_shard: int = pydantic.Field(default=5000, ge=1, le=1_000_000)
    media: dict[str, Any] = {}
    stages: dict[str, dict[str, Any] | None] = {}
    filters: dict[str, dict[str, Any] | None] = {}
    export: dict[str, dict[str, Any] | None] = {}


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe file, with ``--set a.b.c=value`` overrides."""
    file = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        near = [str(p) for p in sorted(Path(path).parent.glob("*.yaml"))[:8]]
        hint = f"; recipes beside it: {', '.join(near)}" if near else ""
        msg = f"there is no recipe file here{hint}"
        raise RecipeError(msg, place=file) from None
    except (OSError, UnicodeDecodeError) as error:
        msg = f"the recipe cannot be read: {error}"
        raise RecipeError(msg, place=file) from None
    return parse_recipe(text, file, overrides)


def parse_recipe(text: str, file: str = "<recipe>", overrides: Sequence[str] = ()) -> Recipe:
    """Parse recipe text; raises RecipeError that lists every mistake found in it."""
    data, places = load_yaml(text, file)
    if not isinstance(data, dict):
        msg = "a recipe is a mapping with at least `name` and `source`"
        raise RecipeError(msg, place=file)
    for change in overrides:
        override(data, change)
    return _Parser(data, places).recipe(file)


def recipe_of(data: dict[str, Any], file: str) -> Recipe:
    """Check a recipe that was put together as plain data; mistakes have no line."""
    return _Parser(data, Places(file)).recipe(file)


def override(data: dict[str, Any], change: str) -> None:
    """Apply one ``a.b.c=value``; the value is YAML."""
    target, equals, raw = change.partition("=")
    keys = target.split(".")
    if not equals or not all(keys):
        msg = f"--set {change!r}: write it as section.name.parameter=value"
        raise RecipeError(msg)
    value, _ = load_yaml(raw, f"--set {target}")
    place = data
    for depth, key in enumerate(keys[:-1]):
        if place.get(key) is None:
            if depth == 1 and key not in place:
                known = ", ".join(place) or "nothing"
                msg = f"--set {target}: the recipe has no {'.'.join(keys[:2])}; it has {known}"
                raise RecipeError(msg)
            place[key] = {}
        place = place[key]
        if not isinstance(place, dict):
            msg = f"--set {target}: {'.'.join(keys[: depth + 1])} is a value, not a section"
            raise RecipeError(msg)
    place[keys[-1]] = value


class _Parser:
    """Collects every mistake before it raises."""

    def __init__(self, data: dict[str, Any], places: Places) -> None:
        self.data, self.places = data, places
        self.mistakes: list[str] = []

    def recipe(self, file: str) -> Recipe:
        try:
            plain = Settings.model_validate(self.data)
        except pydantic.ValidationError as error:
            self._pydantic((), error, list(Settings.model_fields))
            raise self._error() from None
        self._check_texts(plain)
        source = self._make(("source",), plain.source, SOURCES.find)
        media = self._call(("media",), MediaCaps, plain.media)
        stages = [self._stage(key, values or {}) for key, values in plain.stages.items()]
        filters = [self._filter(key, values or {}) for key, values in plain.filters.items()]
        exports = [
            self._export(key, values or {}, plain.seed) for key, values in plain.export.items()
        ]
        if self.mistakes:
            raise self._error()
        return Recipe(
            name=plain.name,
            description=plain.description,
            license=plain.license,
            seed=plain.seed,
            source=cast(Source, source),
            rows_per_shard=plain.rows_per_shard,
            media=cast(MediaCaps, media),
            stages=tuple(s for s in stages if s),
            filters=tuple(f for f in filters if f),
            exports=tuple(e for e in exports if e),
            resolved=json.loads(json.dumps(self.data, default=str)),
            file=file,
        )

    def _check_texts(self, plain: Settings) -> None:
        """Refuse names that no file can have or page can show, and texts that are not Unicode."""
        for section, most in MAX_NAME_BYTES.items():
            for key in getattr(plain, section):
                if not key.strip() or not key.isprintable() or len(key.encode()) > most:
                    said = f"{section}: the name {key[:80]!r} is not 1 to {most} printable bytes"
                    self._mistake((section, key), said)
                elif section == "export" and (key[0] == "." or {*key} & {"/", "\\"}):
                    said = f"export: {key!r} names a folder: no slash in it, and no dot in front"
                    self._mistake((section, key), said)
        for name in ("description", "license"):
            if any("\ud800" <= letter <= "\udfff" for letter in getattr(plain, name)):
                self._mistake((name,), f"{name}: half of a surrogate pair is not a character")

    def _stage(self, key: str, values: dict[str, Any]) -> StageEntry | None:
        path: KeyPath = ("stages", key)
        values, when = dict(values), None
        text = values.pop("when", None)
        if text is not None:
            when = self._expression((*path, "when"), text)
        stage = self._make(path, {"use": key, **values}, _find_stage)
        if stage is not None and when is not None and isinstance(stage, GlobalStage):
            self._mistake((*path, "when"), f"{key} needs all rows at once; it cannot have a gate")
        return StageEntry(key=key, stage=stage, when=when) if stage is not None else None

    def _filter(self, key: str, values: dict[str, Any]) -> FilterEntry | None:
        path: KeyPath = ("filters", key)
        values = dict(values)
        on_null = values.pop("on_null", None)
        if on_null not in ("drop", "keep"):
            said = f"on_null={on_null!r}" if on_null is not None else "on_null is missing"
            self._mistake(
                (*path, "on_null"), f"{key}: {said}; say what a null means: `drop` or `keep`"
            )
        rule = self._make(path, {"use": key, **values}, FILTERS.find)
        if rule is None or on_null not in ("drop", "keep"):
            return None
        return FilterEntry(key=key, rule=rule, on_null=on_null)

    def _export(self, key: str, values: dict[str, Any], seed: int) -> ExportEntry | None:
        exporter = self._make(("export", key), {"use": "webdataset", **values}, EXPORTERS.find)
        if exporter is None:
            return None
        own = getattr(exporter, "seed", 0)
        return ExportEntry(key=key, exporter=exporter, seed=own or seed)

    def _make(
        self, path: KeyPath, values: Mapping[str, Any], find: Callable[[str], Any]
    ) -> Any | None:
        values = dict(values)
        use = values.pop("use", None)
        if not isinstance(use, str):
            self._mistake(path, f"{'.'.join(map(str, path))} needs `use: <name>`")
            return None
        try:
            factory = find(use)
        except RecipeError as error:
            self._mistake(path, error.message)
            return None
        return self._call(path, factory, values)

    def _call(self, path: KeyPath, factory: Callable[..., Any], values: Mapping[str, Any]) -> Any:
        try:
            return factory(**parameters.validate(factory, values))
        except pydantic.ValidationError as error:
            self._pydantic(path, error, list(parameters.parameters_model(factory).model_fields))
        except RecipeError as error:
            self._mistake(path, error.message)
        return None

    def _expression(self, path: KeyPath, text: object) -> Expr | None:
        from winnow.filters._parse import parse_expression

        if not isinstance(text, str):
            self._mistake(path, f"when={text!r} is not a text; write it in quotes")
            return None
        try:
            return parse_expression(text)
        except RecipeError as error:
            self._mistake(path, error.message)
            return None

    def _pydantic(
        self, path: KeyPath, error: pydantic.ValidationError, allowed: Sequence[str]
    ) -> None:
        for item in error.errors():
            where: KeyPath = (*path, *item["loc"])
            name = ".".join(str(part) for part in where)
            if item["type"] == "extra_forbidden":
                near = difflib.get_close_matches(str(item["loc"][-1]), allowed, n=1)
                hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(allowed)}"
                self._mistake(where, f"{name} is not known here; {hint}")
            elif item["type"] == "missing":
                self._mistake(where, f"{name} is missing; it has no default")
            else:
                fix, said = _fix(item["input"], item["type"]), item["msg"]
                said = f"{name}={item['input']!r}: {said[:1].lower()}{said[1:]}{fix}"
                self._mistake(where, said)

    def _mistake(self, path: KeyPath, message: str) -> None:
        self.mistakes.append(f"{self.places.place(path)}: {message}")

    def _error(self) -> RecipeError:
        return RecipeError("\n".join(self.mistakes))


def _find_stage(name: str) -> Any:
    found = GLOBAL_STAGES.lookup(name) or STAGES.lookup(name)
    if found is not None:
        return found
    known = [*STAGES, *GLOBAL_STAGES]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(known))}"
    msg = f"there is no stage {name!r}; {hint}"
    raise RecipeError(msg)


def _fix(value: object, kind: str) -> str:
    if isinstance(value, bool) and kind.startswith("string"):
        return " (YAML reads a bare no, yes, on, off as a boolean: write it in quotes)"
    if isinstance(value, str) and kind.startswith(("int", "float", "bool")):
        if re.fullmatch(r"[-+]?[0-9.]+[eE][-+]?[0-9]+", value):
            return " (YAML reads this as a text: write it without e, or as in 1.0e-5)"
        return " (write it without quotes)"
    return ""
