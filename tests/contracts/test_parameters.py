"""Parameters: strict types out of YAML, and which of them name what was made."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

import pydantic
import pytest
import yaml
from annotated_types import Ge
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.contracts.parameters import (
    effort,
    later,
    parameters_model,
    result,
    result_parameters,
    role_of,
    validate,
    validate_some,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """One of each."""

    count: Annotated[int, Ge(1)]
    ratio: float = result(0.5)
    workers: int = effort(4)
    names: tuple[str, ...] = ()
    mode: Literal["fast", "slow"] = "fast"
    pairs: tuple[tuple[str, int], ...] = result(())
    extra: str | None = later(None)
    flag: bool = later(False)
    timeout_s: float = effort()


def thing(*, count: Annotated[int, Ge(1)], names: tuple[str, ...] = ("a",)) -> tuple[Any, ...]:
    """A function has parameters as a class has them."""
    return count, names


GIVEN = {"count": 2, "timeout_s": 1.5}


def test_roles_are_those_that_were_declared() -> None:
    assert {f.name: role_of(f) for f in fields(Thing)} == {
        "count": "result",
        "ratio": "result",
        "workers": "effort",
        "names": "result",
        "mode": "result",
        "pairs": "result",
        "extra": "result",
        "flag": "result",
        "timeout_s": "effort",
    }


def test_only_results_name_what_was_made_and_later_ones_where_they_differ() -> None:
    first = ["count", "ratio", "names", "mode", "pairs"]
    assert list(result_parameters(Thing(**GIVEN))) == first
    changed = Thing(**GIVEN, workers=99, extra="x", flag=True, ratio=0.25)
    found = result_parameters(changed)
    assert list(found) == [*first, "extra", "flag"]
    assert found == {
        "count": 2, "ratio": 0.25, "names": (), "mode": "fast", "pairs": (), "extra": "x",
        "flag": True,
    }  # fmt: skip


@pytest.mark.parametrize("value", [0, "", 0.0, ()])
def test_a_later_value_that_only_resembles_the_default_is_another_one(value: Any) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Later:
        value: Any = later(None)

    assert result_parameters(Later()) == {}
    assert result_parameters(Later(value=value)) == {"value": value}


def test_a_field_without_a_default_is_needed() -> None:
    with pytest.raises(TypeError, match="timeout_s"):
        Thing(count=1)  # type: ignore[call-arg]
    with pytest.raises(pydantic.ValidationError, match=r"(?s)count.*timeout_s"):
        validate(Thing, {})


def test_what_is_validated_is_what_the_factory_takes() -> None:
    text = "{count: 3, ratio: 1, names: [a, b], pairs: [[a, 1], [b, 2]], timeout_s: 2}"
    made = Thing(**validate(Thing, yaml.safe_load(text)))
    assert made == Thing(
        count=3, ratio=1.0, names=("a", "b"), pairs=(("a", 1), ("b", 2)), timeout_s=2.0
    )
    assert isinstance(hash(made), int)
    assert thing(**validate(thing, {"count": 1})) == (1, ("a",))
    assert thing(**validate(thing, {"count": 1, "names": []})) == (1, ())


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("count: '1'", "count"),
        ("count: 1.0", "count"),
        ("count: true", "count"),
        ("count: 0", "count"),
        ("count: null", "count"),
        ("ratio: '0.5'", "ratio"),
        ("ratio: yes", "ratio"),
        ("flag: 1", "flag"),
        ("flag: 'no'", "flag"),
        ("extra: no", "extra"),
        ("extra: 1", "extra"),
        ("names: a", "names"),
        ("names: [no]", "names"),
        ("names: {a: b}", "names"),
        ("mode: FAST", "mode"),
        ("pairs: [[a, '1']]", "pairs"),
        ("pairs: [[a]]", "pairs"),
        ("colour: red", "colour"),
    ],
)
@pytest.mark.parametrize("check", [validate, validate_some])
def test_types_are_strict_and_unknown_names_are_refused(check: Any, change: str, name: str) -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        check(Thing, {**GIVEN, **yaml.safe_load(change)})
    assert {str(error["loc"][0]) for error in caught.value.errors()} == {name}


VALUES = st.fixed_dictionaries(
    {},
    optional={
        "count": st.integers(1),
        "ratio": st.floats(allow_nan=False),
        "workers": st.integers(),
        "names": st.lists(st.text(max_size=3), max_size=3),
        "mode": st.sampled_from(["fast", "slow"]),
        "pairs": st.lists(st.tuples(st.text(max_size=3), st.integers()).map(list), max_size=2),
        "extra": st.none() | st.text(max_size=3),
        "flag": st.booleans(),
        "timeout_s": st.floats(allow_nan=False),
    },
)


def frozen(value: Any) -> Any:
    return tuple(map(frozen, value)) if isinstance(value, list) else value


@settings(deadline=None, max_examples=40)
@given(VALUES)
def test_some_parameters_are_checked_and_the_others_not_made_up(values: dict[str, Any]) -> None:
    assert validate_some(Thing, values) == {k: frozen(v) for k, v in values.items()}


@settings(deadline=None, max_examples=40)
@given(VALUES)
def test_what_is_given_is_kept_and_defaults_are_the_factorys(values: dict[str, Any]) -> None:
    values = {**GIVEN, **values}
    before = dict(values)
    assert Thing(**validate(Thing, values)) == Thing(**{k: frozen(v) for k, v in values.items()})
    assert values == before


def test_a_model_is_made_once_and_describes_its_fields() -> None:
    model = parameters_model(Thing)
    assert parameters_model(Thing) is model
    assert list(model.model_fields) == [f.name for f in fields(Thing)]
    required = {name for name, field in model.model_fields.items() if field.is_required()}
    assert required == {"count", "timeout_s"}
    assert list(parameters_model(thing).model_fields) == ["count", "names"]


def test_a_default_that_is_made_anew_is_a_default() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Made:
        names: tuple[str, ...] = field(default_factory=lambda: ("a",))

    assert Made(**validate(Made, {})) == Made()
    assert result_parameters(Made()) == {"names": ("a",)}
