"""The JSON Schema accepts what the parser accepts, and refuses what an editor should mark."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from winnow.contracts.errors import RecipeError
from winnow.contracts.registry import EXPORTERS, FILTERS, GLOBAL_STAGES, SOURCES, STAGES
from winnow.pipeline.recipe import parse_recipe
from winnow.pipeline.recipe_schema import recipe_schema

SHIPPED = sorted((Path(__file__).parents[2] / "recipes").glob("**/*.yaml"))
RECIPES = [path for path in SHIPPED if "\nevaluate:" not in path.read_text()]
GOOD = """
name: good
source: {use: url_table, path: in.csv}
media: {max_pixels: 1000000}
stages:
  caption_stats:
  download: {timeout_s: 5.0, when: "num_words > 3"}
  gated: {use: toy_length, factor: 2}
filters:
  where: {expression: "num_words > 5", on_null: drop}
  english: {use: where, expression: "num_words < 50", on_null: keep}
export:
  train: {rows_per_file: 100}
  table: {use: parquet}
"""


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_every_recipe_that_ships_is_valid(
    validator: jsonschema.Draft202012Validator, path: Path
) -> None:
    validator.validate(yaml.safe_load(path.read_text()))
    parse_recipe(path.read_text(), path.name)


def test_a_good_recipe_is_valid_for_schema_and_parser(
    validator: jsonschema.Draft202012Validator,
) -> None:
    validator.validate(yaml.safe_load(GOOD))
    parse_recipe(GOOD)


WRONG: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no name": lambda d: d.pop("name"),
    "no source": lambda d: d.pop("source"),
    "a name with a blank": lambda d: d.update(name="a b"),
    "an unknown section": lambda d: d.update(stage={}),
    "a negative seed": lambda d: d.update(seed=-1),
    "no rows in a shard": lambda d: d.update(rows_per_shard=0),
    "text for a number": lambda d: d.update(rows_per_shard="5"),
    "an unknown source": lambda d: d["source"].update(use="url_tabel"),
    "a source without its path": lambda d: d["source"].pop("path"),
    "an unknown parameter of a source": lambda d: d["source"].update(pth="x"),
    "an unknown stage": lambda d: d["stages"].update(nothing={}),
    "an unknown alias": lambda d: d["stages"]["gated"].update(use="toy_lenght"),
    "an unknown parameter of a stage": lambda d: d["stages"]["gated"].update(facter=1),
    "text for a parameter": lambda d: d["stages"]["gated"].update(factor="2"),
    "a gate that is no text": lambda d: d["stages"]["download"].update(when=3),
    "a filter without on_null": lambda d: d["filters"]["where"].pop("on_null"),
    "another on_null": lambda d: d["filters"]["where"].update(on_null="maybe"),
    "a filter without its parameter": lambda d: d["filters"]["english"].pop("expression"),
    "a filter without anything": lambda d: d["filters"].update(where=None),
    "an unknown parameter of an export": lambda d: d["export"]["train"].update(rows=1),
    "an unknown exporter": lambda d: d["export"]["table"].update(use="parket"),
    "an unknown cap": lambda d: d["media"].update(max_pixel=1),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_the_parser_refuses_the_schema_refuses(
    validator: jsonschema.Draft202012Validator, name: str
) -> None:
    data = copy.deepcopy(yaml.safe_load(GOOD))
    WRONG[name](data)
    with pytest.raises(RecipeError):
        parse_recipe(yaml.safe_dump(data))
    assert not validator.is_valid(data)


def test_every_registered_name_is_in_the_schema_with_its_first_line() -> None:
    definitions = recipe_schema()["$defs"]
    named = {
        **{f"stage.{n}": f for n, f in [*STAGES.items(), *GLOBAL_STAGES.items()]},
        **{f"filter.{n}": f for n, f in FILTERS.items()},
        **{f"source.{n}": f for n, f in SOURCES.items()},
        **{f"exporter.{n}": f for n, f in EXPORTERS.items()},
    }
    assert set(definitions) == set(named)
    for name, factory in named.items():
        first = (factory.__doc__ or "").strip().split("\n")[0]
        assert definitions[name]["description"].startswith(first), name


def test_the_schema_is_json_and_the_same_every_time() -> None:
    text = json.dumps(recipe_schema(), sort_keys=True)
    assert json.loads(text) == recipe_schema()


def test_the_schema_that_ships_is_the_one_of_the_code() -> None:
    """`make schema` writes it. Stages that tests register are not in it."""
    shipped = json.loads((Path(__file__).parents[2] / "recipes/recipe.schema.json").read_text())
    current = recipe_schema()
    definitions = {k: v for k, v in current["$defs"].items() if ".toy_" not in k}
    assert shipped["$defs"] == json.loads(json.dumps(definitions))
