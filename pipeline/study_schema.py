"""The JSON Schema of studies, generated from the types that parse them."""

from __future__ import annotations

from typing import Any

from winnow.contracts.registry import EVALUATIONS, FILTERS, GLOBAL_STAGES, STAGES, TRAINERS
from winnow.pipeline.recipe_schema import ON_NULL, WHEN, section, union
from winnow.pipeline.study_settings import Settings


def study_schema() -> dict[str, Any]:
    """Return the schema (draft 2020-12) of a study file."""
    own: dict[str, Any] = {}
    schema = Settings.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Winnow study"
    schema.pop("description", None)
    properties = schema["properties"]
    filters = section(FILTERS.items(), "filter", own, {"on_null": ON_NULL}, ["on_null"])
    for name in ("Rows", "Pool", "Arm", "Scorer"):
        schema["$defs"][name]["properties"]["add"] = filters
    stages = [*STAGES.items(), *GLOBAL_STAGES.items()]
    properties["stages"] = section(stages, "stage", own, {"when": WHEN}, [])
    properties["trial"] = union(TRAINERS.items(), "trainer", own, default=None)
    properties["evaluate"] = section(EVALUATIONS.items(), "evaluation", own, {}, [])
    schema["$defs"] |= own
    return schema
