"""The JSON Schema of recipes, generated from the types that parse them, so editors complete it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from winnow.contracts import parameters
from winnow.contracts.media import MediaCaps
from winnow.contracts.registry import EXPORTERS, FILTERS, GLOBAL_STAGES, SOURCES, STAGES
from winnow.pipeline.recipe import Settings

WHEN = {
    "type": "string",
    "description": "Run the stage only on rows for which this expression is true.",
}
ON_NULL = {
    "enum": ["drop", "keep"],
    "description": "What happens to a row for which the filter's condition is null.",
}


def recipe_schema() -> dict[str, Any]:
    """Return the schema (draft 2020-12) of a recipe file."""
    definitions: dict[str, Any] = {}
    stages = [*STAGES.items(), *GLOBAL_STAGES.items()]
    schema = Settings.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Winnow recipe"
    schema.pop("description", None)
    properties = schema["properties"]
    properties["source"] = union(SOURCES.items(), "source", definitions, default=None)
    properties["media"] = _parameters(MediaCaps, {})
    properties["stages"] = section(stages, "stage", definitions, {"when": WHEN}, [])
    properties["filters"] = section(
        FILTERS.items(), "filter", definitions, {"on_null": ON_NULL}, ["on_null"]
    )
    exporters = union(EXPORTERS.items(), "exporter", definitions, default="webdataset")
    properties["export"] = {"type": "object", "additionalProperties": exporters}
    schema["$defs"] = definitions
    return schema


def section(
    entries: Iterable[tuple[str, Callable[..., Any]]],
    kind: str,
    definitions: dict[str, Any],
    extra: dict[str, Any],
    required: list[str],
) -> dict[str, Any]:
    """Return a mapping whose keys are names of the registry, or free names with ``use``."""
    known, aliases = {}, []
    for name, factory in entries:
        body = _parameters(factory, extra)
        needs = sorted({*body.get("required", []), *required})
        body["properties"]["use"] = {"const": name}
        body["required"] = needs
        definitions[f"{kind}.{name}"] = body
        reference = {"$ref": f"#/$defs/{kind}.{name}"}
        known[name] = reference if needs else {"anyOf": [reference, {"type": "null"}]}
        aliases.append({"allOf": [reference], "required": ["use"]})
    return {"type": "object", "properties": known, "additionalProperties": {"anyOf": aliases}}


def union(
    entries: Iterable[tuple[str, Callable[..., Any]]],
    kind: str,
    definitions: dict[str, Any],
    default: str | None,
) -> dict[str, Any]:
    """Return one of the registry's entries, chosen by ``use``."""
    options = []
    for name, factory in entries:
        body = _parameters(factory, {})
        body["properties"]["use"] = {"const": name}
        needs = set(body.get("required", [])) | (set() if name == default else {"use"})
        body["required"] = sorted(needs)
        definitions[f"{kind}.{name}"] = body
        options.append({"$ref": f"#/$defs/{kind}.{name}"})
    return {"anyOf": options}


def _parameters(factory: Callable[..., Any], extra: dict[str, Any]) -> dict[str, Any]:
    schema = parameters.parameters_model(factory).model_json_schema()
    schema["properties"] = {**schema.get("properties", {}), **extra}
    schema["additionalProperties"] = False
    schema["description"] = inspect.cleandoc(factory.__doc__ or "").split("\n\n")[0]
    schema.pop("title", None)
    return schema
