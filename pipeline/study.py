"""A study is what a trial or an ablation compares: YAML in, frozen typed objects out.

It names a recipe, freezes its evaluation sets, and says which selections (*arms*) are trained on,
for how many samples, with which seeds. Everything that decides the outcome is named before the run.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

from winnow.contracts import parameters
from winnow.contracts.errors import RecipeError
from winnow.contracts.registry import EVALUATIONS, STAGES, TRAINERS, Registry
from winnow.contracts.trial import Evaluation, Trainer
from winnow.pipeline.recipe import load_recipe, override
from winnow.pipeline.statistics import WITHOUT
from winnow.pipeline.study_models import Folders, named_models, training_order
from winnow.pipeline.study_rules import apart_values, judge_mistakes, primary_mistakes
from winnow.pipeline.study_settings import (
    ORACLE,
    Arm,
    Primary,
    Rows,
    Scorer,
    Settings,
    kept,
    make_trainer,
    model_values,
)
from winnow.pipeline.yaml_places import Places, load_yaml


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmEntry:
    """One arm after sweeps and leave-one-out are written out. fraction: the swept ``fraction``."""

    name: str
    rows: Arm
    fraction: float | None = None

    @property
    def is_oracle(self) -> bool:
        """Whether it may select by the truth."""
        return self.name == ORACLE or self.name.startswith(f"{ORACLE}:")


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """A parsed study. ``base`` is the folder that its paths start from."""

    name: str
    settings: Settings
    base: Path
    recipe: Mapping[str, Any]
    """The study's recipe after overrides, as plain data."""
    trainer: Trainer
    evaluations: Mapping[str, Evaluation]
    arms: tuple[ArmEntry, ...]
    file: str = ""

    @property
    def primary(self) -> Primary | None:
        """The primary contrast."""
        return self.settings.primary

    @property
    def models(self) -> list[str]:
        """The models that are trained before the arms, in the order of their training."""
        values = {name: model_values(self.settings, name) for name in self.settings.models}
        return training_order(self.settings.stages, values)

    def changed_trainer(self, rows: Arm | Scorer) -> Trainer:
        """Return the study's trainer with an arm's or a scorer's own parameters."""
        values = parameters.validate_some(type(self.trainer), rows.trial)
        changed: Trainer = dataclasses.replace(self.trainer, **values)  # type: ignore[type-var]
        return changed

    def control_trainer(self, rows: Arm) -> Trainer:
        """Return an arm's trainer as its random rows have it: with the captions of the pool."""
        changed = self.changed_trainer(rows)
        same = {name: getattr(self.trainer, name) for name in self.trainer.data_parameters}
        control: Trainer = dataclasses.replace(changed, **same)  # type: ignore[type-var]
        return control

    def model_trainer(self, name: str, folders: Folders) -> Trainer:
        """Return the trainer of a model; ``folders`` are the models that are trained already."""
        return make_trainer(self.settings, name, folders)

    def columns(self) -> tuple[str, ...]:
        """Columns of the evaluation sets that evaluations read; all have a key and a caption."""
        read = {c for e in self.evaluations.values() for c in e.columns}
        return tuple(sorted(read - {"key", "caption"}))


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read and check a study. Raises RecipeError with every mistake found."""
    file = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"the study cannot be read: {error}"
        raise RecipeError(msg, place=file) from None
    data, places = load_yaml(text, file)
    if not isinstance(data, dict):
        msg = "a study is a mapping with `recipe`, `evaluation`, `trial`, `evaluate`"
        raise RecipeError(msg, place=file)
    if "recipe" not in data and "source" in data:
        msg = "this is a recipe (winnow run); a study names one in `recipe:`"
        raise RecipeError(msg, place=file)
    for change in overrides:
        override(data, change)
    try:
        settings = Settings.model_validate(data)
    except pydantic.ValidationError as error:
        lines = [f"{places.place(e['loc'])}: {_said(e)}" for e in error.errors()]
        raise RecipeError("\n".join(lines)) from None
    base = Path(path).parent
    recipe = load_recipe(base / settings.recipe, settings.set)
    return _Checker(settings, places, recipe.resolved).study(base, file)


def _said(error: Any) -> str:
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{name} is not known here"
    if error["type"] == "missing":
        return f"{name} is missing; it has no default"
    return f"{name}={error['input']!r}: {error['msg'].lower()}"


class _Checker:
    def __init__(self, settings: Settings, places: Places, recipe: Mapping[str, Any]) -> None:
        self.settings, self.places, self.recipe = settings, places, recipe
        self.mistakes: list[str] = []

    def study(self, base: Path, file: str) -> Study:
        settings = self.settings
        trainer = self._make(TRAINERS, ("trial",), settings.trial)
        evaluations = {
            key: self._make(EVALUATIONS, ("evaluate", key), {"use": key, **(values or {})})
            for key, values in settings.evaluate.items()
        }
        self._check_numbers()
        arms = self._arms()
        names = [a.name for a in arms]
        for name in sorted({n for n in names if names.count(n) > 1}):
            self._mistake(("arms",), f"{name} comes twice; swept values must differ", [])
        primary = settings.primary
        if primary is not None and primary.arm not in names:
            self._mistake(("primary", "arm"), f"there is no arm {primary.arm!r}", names)
        if primary is not None and primary.against and primary.against not in names:
            self._mistake(("primary", "against"), f"there is no arm {primary.against!r}", names)
        self._check_models()
        if settings.apart is not None:
            self._make(STAGES, ("apart",), apart_values(settings.apart))
        rules = (primary_mistakes, judge_mistakes)
        for place, said in itertools.chain.from_iterable(rule(settings) for rule in rules):
            self._mistake(place, said, [])
        for name, arm in settings.arms.items():
            if arm.scorer and arm.scorer not in settings.scorers:
                said = f"there is no scorer {arm.scorer!r}"
                self._mistake(("arms", name, "scorer"), said, list(settings.scorers))
        for evaluation in evaluations.values():
            if trainer is not None and evaluation is not None:
                self._check_subject(trainer, evaluation)
        if "test" not in settings.evaluation:
            self._mistake(("evaluation",), "evaluation.test is missing", [])
        self._check_filters()
        if trainer is not None:
            self._check_trials(trainer)
        for name, scorer in settings.scorers.items():
            if scorer.folds == 1:
                said = "folds=1 leaves no rows to train on; use 5, or 0 for a column that is there"
                self._mistake(("scorers", name, "folds"), said, [])
        if self.mistakes:
            raise RecipeError("\n".join(self.mistakes))
        return Study(
            name=settings.name,
            settings=settings,
            base=base,
            recipe=self.recipe,
            trainer=trainer,
            evaluations=evaluations,
            arms=tuple(arms),
            file=file,
        )

    def _check_filters(self) -> None:
        settings, known = self.settings, list(self.recipe.get("filters") or {})
        places: list[tuple[tuple[str, ...], Rows]] = [(("pool",), settings.pool)]
        places += [(("arms", k), v) for k, v in settings.arms.items()]
        places += [(("scorers", k), v) for k, v in settings.scorers.items()]
        places += [(("models", k), v) for k, v in settings.models.items()]
        places += [(("evaluation", k), v) for k, v in settings.evaluation.items()]
        for path, rows in places:
            named = [*rows.without, *(rows.keep if rows.keep != "all" else [])]
            allowed = [*known, *rows.add]
            unknown = [n for n in named if n not in allowed]
            if unknown and rows.recipe is None:
                self._mistake(path, f"the recipe has no filter {unknown[0]!r}", allowed)
            if rows.recipe is not None and path[0] not in ("evaluation", "models"):
                said = "only an evaluation set, or what a model learns from, may be another recipe"
                self._mistake((*path, "recipe"), said, [])
            if rows.set and rows.recipe is None and path[0] not in ("evaluation",):
                self._mistake((*path, "set"), "all arms share one pool: use the study's set", [])

    def _check_trials(self, trainer: Trainer) -> None:
        settings = self.settings
        for section, entries in (("arms", settings.arms), ("scorers", settings.scorers)):
            for key, rows in entries.items():
                values = {"use": trainer.name, **settings.trial, **rows.trial}
                if rows.trial:
                    self._make(TRAINERS, (section, key, "trial"), values)

    def _check_models(self) -> None:
        settings, known = self.settings, list(self.settings.models)
        used = [*named_models(settings.stages)]
        for name in known:
            values = model_values(settings, name)
            self._make(TRAINERS, ("models", name, "trial"), values)
            used += named_models(values)
        for name in dict.fromkeys(used):
            if name not in known:
                self._mistake(("stages",), f"there is no model {name!r} to be trained", known)
        every = {name: model_values(settings, name) for name in known}
        order = training_order(settings.stages, every)
        for name in known:
            if name not in order:
                said = f"no stage names trained:{name}, so nothing would come of it"
                self._mistake(("models", name), said, [])
            if settings.models[name].folds == 1:
                said = "folds=1 leaves no rows to train on; use 2 or more, or 0 for one model"
                self._mistake(("models", name, "folds"), said, [])
            late = [other for other in named_models(every[name]) if other in order]
            if any(order.index(other) > order.index(name) for other in late if name in order):
                said = f"it starts from {late[0]}, which starts from it"
                self._mistake(("models", name, "trial"), said, [])

    def _check_numbers(self) -> None:
        for name in ("budgets", "seeds"):
            values = getattr(self.settings, name)
            low = 1 if name == "budgets" else 0
            if not values or len(set(values)) != len(values) or min(values) < low:
                said = f"{name}={values}: give different whole numbers from {low} on"
                self._mistake((name,), said, [])

    def _check_subject(self, trainer: Trainer, evaluation: Evaluation) -> None:
        if trainer.subject != evaluation.subject:
            said = (
                f"{evaluation.name} measures {evaluation.subject}, but {trainer.name} gives "
                f"{trainer.subject}"
            )
            self._mistake(("evaluate", evaluation.name), said, [])

    def _arms(self) -> list[ArmEntry]:
        found: list[ArmEntry] = []
        for name, arm in self.settings.arms.items():
            if not pydantic.TypeAdapter(str).validate_python(name).isascii() or ":" in name:
                self._mistake(("arms", name), f"{name!r}: use letters, digits, - and _", [])
            found += self._swept(name, arm)
        for name in self.settings.leave_one_out:
            found += self._each_left_out(name)
        return found

    def _swept(self, name: str, arm: Arm) -> list[ArmEntry]:
        if not arm.sweep:
            return [ArmEntry(name=name, rows=arm)]
        found = []
        for values in itertools.product(*arm.sweep.values()):
            changed = {key: dict(value) for key, value in arm.add.items()}
            for path, value in zip(arm.sweep, values, strict=True):
                key, _, parameter = path.partition(".")
                if key not in changed or not parameter:
                    said = f"{path}: write filter.parameter, of a filter under `add`"
                    self._mistake(("arms", name, "sweep", path), said, list(changed))
                    return []
                changed[key][parameter] = value
            text = ",".join(f"{value:g}" if isinstance(value, float) else f"{value}"
                            for value in values)  # fmt: skip
            parts = zip(arm.sweep, values, strict=True)
            fractions = [v for path, v in parts if path.endswith(".fraction")]
            rows = arm.model_copy(update={"add": changed, "sweep": {}})
            fraction = float(fractions[0]) if fractions else None
            found.append(ArmEntry(name=f"{name}:{text}", rows=rows, fraction=fraction))
        return found

    def _each_left_out(self, name: str) -> list[ArmEntry]:
        arm = self.settings.arms.get(name)
        if arm is None or arm.sweep:
            said = f"there is no arm {name!r} without a sweep"
            self._mistake(("leave_one_out",), said, list(self.settings.arms))
            return []
        return [
            ArmEntry(
                name=f"{name}{WITHOUT}{key}",
                rows=arm.model_copy(update={"without": [*arm.without, key]}),
            )
            for key in [*kept(arm, self.recipe), *arm.add]
            if key not in kept(self.settings.pool, self.recipe)
        ]

    def _make(self, registry: Registry[Any], path: Any, values: Mapping[str, Any]) -> Any:
        values = dict(values)
        use = values.pop("use", None)
        if not isinstance(use, str):
            self._mistake(path, f"{'.'.join(path)} needs `use: <name>`", list(registry))
            return None
        try:
            factory = registry.find(use)
            return factory(**parameters.validate(factory, values))
        except pydantic.ValidationError as error:
            allowed = list(parameters.parameters_model(factory).model_fields)
            for item in error.errors():
                self._mistake((*path, *item["loc"]), _said(item), allowed)
        except RecipeError as error:
            self._mistake(path, error.message, [])
        return None

    def _mistake(self, path: Any, message: str, allowed: Sequence[str]) -> None:
        known = f"; known: {', '.join(allowed)}" if allowed else ""
        self.mistakes.append(f"{self.places.place(tuple(path))}: {message}{known}")
