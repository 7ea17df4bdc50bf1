"""Models that a study trains before its arms: stages name them ``trained:NAME``.

A model learns from some rows of the pool (or of another recipe) as they are before the first stage
that names it: so the stages of a study, read from top to bottom, are the order of its work, and
rounds of bootstrapping (train, annotate, train again) need no other notation.

A model with folds is several: one for each part of the rows, which that part did not train. A stage
takes the list of them (``models: [trained:NAME]``) and uses for each row the one that never saw it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from winnow.contracts.model_names import TRAINED_PREFIX

Stages = Mapping[str, Mapping[str, Any] | None]
Folders = Mapping[str, str | list[str]]
"""Model -> its folder; of a model with folds one for each of them."""


def named_models(values: Any) -> Iterator[str]:
    """Yield the names behind ``trained:`` in plain data, in order, also twice."""
    if isinstance(values, str):
        if values.startswith(TRAINED_PREFIX):
            yield values.removeprefix(TRAINED_PREFIX)
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from named_models(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from named_models(value)


def with_models(values: Any, folders: Folders) -> Any:
    """Return a copy of plain data in which ``trained:NAME`` is the model's folder."""
    if isinstance(values, str):
        found = values.removeprefix(TRAINED_PREFIX) if values.startswith(TRAINED_PREFIX) else ""
        return copy.copy(folders.get(found, values))
    if isinstance(values, Mapping):
        return {key: with_models(value, folders) for key, value in values.items()}
    if isinstance(values, list | tuple):
        every: list[Any] = []
        for value in values:
            new = with_models(value, folders)
            # The models of all folds take the place of one name in a list.
            every += new if isinstance(value, str) and isinstance(new, list) else [new]
        return every
    return copy.deepcopy(values)


def ready_stages(stages: Stages, folders: Folders) -> dict[str, Any]:
    """Return the stages before the first one that names a model which is not trained yet."""
    ready: dict[str, Any] = {}
    for key, values in stages.items():
        if any(name not in folders for name in named_models(values)):
            break
        ready[key] = with_models(values, folders)
    return ready


def training_order(stages: Stages, models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the models that stages name, each after those that its own trainer starts from.

    models: name -> the parameters of its trainer (``init: trained:OTHER``).
    """
    order: list[str] = []

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in order or name in above or name not in models:
            return
        for other in named_models(models[name]):
            visit(other, (*above, name))
        order.append(name)

    for name in named_models(stages):
        visit(name, ())
    return order
