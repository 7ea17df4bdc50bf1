"""Recipes: what is accepted, and a message with place, value, what is allowed, the fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from winnow.contracts.errors import RecipeError
from winnow.pipeline.recipe import load_recipe, parse_recipe

GOOD = """\
name: good
source: {use: url_table, path: in.csv}
stages:
  toy_length: {factor: 2}
  gated:
    use: toy_double
    when: "num_letters > 3"
filters:
  long: {use: where, expression: "num_letters > 5", on_null: drop}
export:
  train: {rows_per_file: 100}
"""


def test_a_recipe_becomes_typed_frozen_objects() -> None:
    recipe = parse_recipe(GOOD)
    assert [s.key for s in recipe.stages] == ["toy_length", "gated"]
    assert recipe.stages[0].stage.factor == 2  # type: ignore[union-attr]
    assert str(recipe.stages[1].when) == "num_letters > 3"
    assert recipe.filters[0].on_null == "drop"
    assert recipe.exports[0].exporter.rows_per_file == 100
    with pytest.raises(AttributeError):
        recipe.name = "other"  # type: ignore[misc]


def test_the_resolved_recipe_parses_to_the_same() -> None:
    recipe = parse_recipe(GOOD, overrides=["stages.toy_length.factor=7"])
    again = parse_recipe(recipe.to_yaml())
    assert repr(again.stages) == repr(recipe.stages)
    assert again.stages[0].stage.factor == 7  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("factor: 2", "factor: two", r"r.yaml:4: stages.toy_length.factor='two'"),
        ("factor: 2", "factor: '2'", r"write it without quotes"),
        ("factor: 2", "facter: 2", r"r.yaml:4: stages.toy_length.facter .* did you mean factor"),
        (
            "  toy_length:",
            "  toy_lenght:",
            r"r.yaml:4: there is no stage 'toy_lenght'; did",
        ),
        ("name: good", "name: no", r"r.yaml:1: name=False: .*write it in quotes"),
        ("name: good", "nam: good", r"name is missing"),
        ("on_null: drop", "on_null: maybe", r"r.yaml:9: .*on_null='maybe'; say what a null means"),
        (", on_null: drop", "", r"on_null is missing; say what a null means: `drop` or `keep`"),
        ("use: url_table", "use: url_tabel", r"r.yaml:2: there is no source 'url_tabel'; did you"),
        ("num_letters > 3", "num_letters >", r"r.yaml:7: "),
        ("num_letters > 3", "__import__('os')", r"r.yaml:7: "),
        (
            "path: in.csv",
            "path: in.csv, pth: 1",
            r"source.pth is not known .* did you mean path",
        ),
        ("  gated:", "  toy_length:", r"r.yaml:5: 'toy_length' is given twice"),
        ("source: {use", "source: {no: 1, use", r"the key False is a bool; write it in quotes"),
        ("stages:", "stages: [", r"not valid YAML"),
        ("factor: 2", "factor: 1e3", r"reads this as a text: write it without e, or as in 1.0e-5"),
        ("name: good", "name: Good Name", r"should match pattern '\^\[A-Za-z0-9\]"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_fix(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in GOOD
    file = tmp_path / "r.yaml"
    file.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(RecipeError, match=message):
        load_recipe(file)


def test_all_mistakes_are_told_at_once() -> None:
    text = GOOD.replace("factor: 2", "factor: x").replace("rows_per_file: 100", "rows_per_file: y")
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text)
    assert "toy_length.factor" in str(caught.value)
    assert "train.rows_per_file" in str(caught.value)


def test_a_missing_recipe_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "real.yaml").write_text(GOOD)
    with pytest.raises(RecipeError, match=r"no recipe file here; .*real\.yaml"):
        load_recipe(tmp_path / "rael.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.toy_length.factor", "write it as section.name.parameter=value"),
        ("stages.nothing.factor=1", "the recipe has no stages.nothing; it has toy_length, gated"),
        ("name.x=1", "name is a value, not a section"),
        ("stages.toy_length.factor=x", "stages.toy_length.factor='x'"),
    ],
)
def test_a_bad_override_is_refused(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe(GOOD, overrides=[override])


@pytest.mark.parametrize("name", ["../../evil", "a/b", "/tmp", "a\\\\b", ".", ".tmp-x"])
def test_the_name_of_an_export_is_no_path(name: str) -> None:
    """It names a folder: with a slash the folder is outside, or `winnow gc` does not find it."""
    with pytest.raises(RecipeError, match=r"<recipe>:\d+: export: .* names a folder: no slash"):
        parse_recipe(GOOD.replace("  train:", f'  "{name}":'))


@pytest.mark.parametrize("name", ["", " ", "a\\nb", "a\\0b", "\\ud800", "x" * 201, "\u00e9" * 101])
@pytest.mark.parametrize("old", ["  toy_length: {", "  train: {"])
def test_a_name_is_short_and_can_be_printed(old: str, name: str) -> None:
    assert old in GOOD
    new = f'  "{name}": {{use: toy_length, ' if "toy" in old else f'  "{name}": {{'
    with pytest.raises(
        RecipeError, match=r"<recipe>:\d+: (stages|export): the name .* is not 1 to"
    ):
        parse_recipe(GOOD.replace(old, new))


def test_other_names_are_free() -> None:
    long = "\u00e9" * 32
    text = GOOD.replace("  toy_length: {", f'  "{long}": {{use: toy_length, ')
    found = parse_recipe(text.replace("  train: {", '  "a [b] \u2603 \U0001f600": {'))
    assert found.stages[0].key == long
    assert found.exports[0].key == "a [b] \u2603 \U0001f600"
    with pytest.raises(RecipeError, match="stages: the name"):
        parse_recipe(text.replace(long, f"{long}x"))


@pytest.mark.parametrize("name", ["description", "license"])
def test_half_a_surrogate_pair_is_refused_before_the_work(name: str) -> None:
    with pytest.raises(RecipeError, match=f"<recipe>:1: {name}: half of a surrogate pair"):
        parse_recipe(f'{name}: "\\ud800"\n{GOOD}')
    assert getattr(parse_recipe(f'{name}: "\\U0001f600"\n{GOOD}'), name) == "\U0001f600"
