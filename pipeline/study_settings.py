"""What the YAML of a study may say: plain values of the right types; ``study.py`` checks more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pydantic

from winnow.contracts import parameters
from winnow.contracts.registry import TRAINERS
from winnow.contracts.trial import Trainer
from winnow.pipeline.study_models import Folders, with_models

ORACLE = "oracle"
RAW = "raw"
_STRICT = pydantic.ConfigDict(extra="forbid", strict=True)


class Rows(pydantic.BaseModel):
    """Some rows of a recipe: which of its filters stay, and what is added behind them."""

    model_config = _STRICT

    recipe: str | None = pydantic.Field(
        default=None, description="Another recipe than the study's."
    )
    set: list[str] = pydantic.Field(default=[], description="Overrides, as with --set.")
    keep: Literal["all"] | list[str] = pydantic.Field(
        default="all", description="Filters that stay."
    )
    without: list[str] = pydantic.Field(default=[], description="Filters that go.")
    add: dict[str, dict[str, Any]] = pydantic.Field(default={}, description="Filters behind those.")


class Pool(Rows):
    """What every arm starts from: the study's recipe without what is held out."""

    keep: Literal["all"] | list[str] = []


class Arm(Rows):
    """One selection of the pool."""

    sweep: dict[str, list[Any]] = pydantic.Field(
        default={}, description="filter.parameter: values; the arm once with each."
    )
    random: bool = pydantic.Field(
        default=True, description="Compare with random rows, equally many."
    )
    scorer: str = pydantic.Field(
        default="", description="The scorer that it ranks by, for the curves."
    )
    trial: dict[str, Any] = pydantic.Field(default={}, description="Changes of the study's trial.")
    export: dict[str, Any] = pydantic.Field(
        default={}, description="Changes of the export, such as text: another caption column."
    )


class Scorer(Rows):
    """A column of scores. With folds, trained here: row by row by a model that never saw it."""

    column: str
    label: str = ""
    folds: int = pydantic.Field(default=0, ge=0, le=20)
    fold_column: str = "fold"
    samples_seen: int = pydantic.Field(default=30_720, ge=1)
    seed: int = pydantic.Field(default=1_000, ge=0)
    trial: dict[str, Any] = pydantic.Field(default={}, description="Changes of the study's trial.")


class Learned(Rows):
    """A model that is trained before the arms, on some rows; stages name it ``trained:NAME``."""

    trial: dict[str, Any] = pydantic.Field(
        default={}, description="Its trainer, `use: ...`; without `use`, changes of the study's."
    )
    samples_seen: int = pydantic.Field(ge=1)
    seed: int = pydantic.Field(default=1_000, ge=0)
    folds: int = pydantic.Field(
        default=0, ge=0, le=20, description="So many models, each without one part of the rows."
    )
    fold_column: str = "fold"
    export: dict[str, Any] = pydantic.Field(
        default={}, description="Changes of the export that it learns from, such as text."
    )


class Primary(pydantic.BaseModel):
    """The contrast that is named before the run: an arm against random rows, equally many."""

    model_config = _STRICT

    arm: str = "curated"
    against: str = pydantic.Field(
        default="", description="Another arm; without it, random rows, equally many."
    )
    metrics: list[str] = pydantic.Field(min_length=1)


class Published(pydantic.BaseModel):
    """A figure from the literature, shown beside the study's own."""

    model_config = _STRICT

    label: str
    fraction: float
    value: float


class Settings(pydantic.BaseModel):
    """The plain values of a study."""

    model_config = _STRICT

    name: str = pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,40}$")
    description: str = ""
    recipe: str
    set: list[str] = []
    stages: dict[str, dict[str, Any] | None] = {}
    export: dict[str, Any] = pydantic.Field(
        default={}, description="Changes of the recipe's webdataset export, such as payload."
    )
    pool: Pool = Pool()
    apart: dict[str, Any] | None = pydantic.Field(
        default=None,
        description="Take rows out of the pool, for all arms, whose pictures resemble one of an "
        "evaluation set: parameters of near_evaluation, {} for its defaults.",
    )
    evaluation: dict[Literal["validation", "test"], Rows]
    trial: dict[str, Any]
    evaluate: dict[str, dict[str, Any] | None] = pydantic.Field(min_length=1)
    samples_seen: int = pydantic.Field(ge=1)
    budgets: list[int] = [1]
    seeds: list[int] = [0]
    models: dict[str, Learned] = {}
    scorers: dict[str, Scorer] = {}
    arms: dict[str, Arm] = {"curated": Arm()}
    leave_one_out: list[str] = []
    primary: Primary | None = None
    labels: list[str] = pydantic.Field(
        default=[],
        description="Columns truth_* that stand for labels which a user would have: models may "
        "learn from them; no arm selects by them.",
    )
    describe: list[str] = []
    published: list[Published] = []
    note: str = ""


def make_trainer(settings: Settings, name: str, folders: Folders) -> Trainer:
    """Return the trainer of one of a study's models."""
    values = with_models(model_values(settings, name), folders)
    factory = TRAINERS.find(values.pop("use"))
    return factory(**parameters.validate(factory, values))  # type: ignore[no-any-return]


def model_values(settings: Settings, name: str) -> dict[str, Any]:
    """Return the trainer of a model as plain data: its own, or the study's with changes."""
    own = settings.models[name].trial
    return dict(own) if "use" in own else {**settings.trial, **own}


def kept(rows: Rows, recipe: Mapping[str, Any]) -> list[str]:
    """Return the names of a recipe's filters that stay, in the recipe's order."""
    names = list(recipe.get("filters") or {})
    chosen = names if rows.keep == "all" else rows.keep
    return [name for name in names if name in chosen and name not in rows.without]
