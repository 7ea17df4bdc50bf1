"""Parameters of stages, filters, sources and exporters: declared once, validated, described.

A parameter is a keyword of a factory or a field of a frozen dataclass, with a type that pydantic
understands (``int``, ``float``, ``bool``, ``str``, ``Literal``, ``tuple[str, ...]``,
``Annotated[int, Ge(1)]``, ...). Types are strict: ``"1"`` is not an ``int``, and YAML's ``no`` is
not a ``str``.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

import pydantic

Role = typing.Literal["result", "effort"]


def result(default: Any = dataclasses.MISSING) -> Any:
    """Declare a field that can change the output: it enters the fingerprint. The default role."""
    return dataclasses.field(default=default, metadata={"role": "result"})


def later(default: Any) -> Any:
    """Declare a ``result`` field that came after the first release of its class.

    At its default it is left out of the fingerprint, so that what was made before keeps its name;
    the default must do what the class did before.
    """
    return dataclasses.field(default=default, metadata={"role": "result", "later": True})


def effort(default: Any = dataclasses.MISSING) -> Any:
    """Declare a field that cannot change the output (workers, time-outs): no fingerprint."""
    return dataclasses.field(default=default, metadata={"role": "effort"})


def role_of(field: dataclasses.Field[Any]) -> Role:
    """Return the declared role of a dataclass field; ``result`` where nothing was declared."""
    return typing.cast(Role, field.metadata.get("role", "result"))


def result_parameters(instance: Any) -> dict[str, Any]:
    """Return the ``result`` parameters of a stage, in declaration order; see ``later``."""
    return {
        f.name: getattr(instance, f.name)
        for f in dataclasses.fields(instance)
        if role_of(f) == "result"
        and not (f.metadata.get("later") and getattr(instance, f.name) == f.default)
    }


@functools.cache
def parameters_model(factory: Callable[..., Any]) -> type[pydantic.BaseModel]:
    """Return the strict pydantic model of a factory's keywords (a dataclass or a function)."""
    return pydantic.create_model(
        factory.__name__,
        __config__=pydantic.ConfigDict(extra="forbid", strict=True, protected_namespaces=()),
        __doc__=(inspect.getdoc(factory) or "").split("\n")[0],
        **_fields(factory),
    )


def validate(factory: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords for ``factory`` from untyped YAML values.

    Raises pydantic.ValidationError; the recipe parser turns it into a RecipeError with its place.
    """
    lists = {k: _tuples(v) for k, v in values.items()}
    model = parameters_model(factory).model_validate(lists)
    return {name: getattr(model, name) for name in type(model).model_fields}


def validate_some(factory: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords that are given, checked; the others may be missing."""
    model = _optional_model(factory).model_validate({k: _tuples(v) for k, v in values.items()})
    return {name: getattr(model, name) for name in model.model_fields_set}


@functools.cache
def _optional_model(factory: Callable[..., Any]) -> type[pydantic.BaseModel]:
    fields: dict[str, Any] = {name: (kind, None) for name, (kind, _) in _fields(factory).items()}
    config = parameters_model(factory).model_config
    return pydantic.create_model(factory.__name__, __config__=config, **fields)


def _fields(factory: Callable[..., Any]) -> dict[str, Any]:
    """Return name -> (type with its constraints, default) of a factory's keywords."""
    target = factory.__init__ if inspect.isclass(factory) else factory  # type: ignore[misc]
    hints = typing.get_type_hints(target, include_extras=True)
    if inspect.isclass(factory):
        hints = {**typing.get_type_hints(factory, include_extras=True), **hints}
    return {
        name: (hints.get(name, Any), ... if p.default is inspect.Parameter.empty else p.default)
        for name, p in inspect.signature(factory).parameters.items()
    }


def _tuples(value: Any) -> Any:
    """YAML has lists only; frozen parameters hold tuples."""
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
