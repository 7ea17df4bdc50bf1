"""The recipes of a study: one per evaluation set, per scorer's fold, per arm, per random control.

All are the study's recipe with other filters, so they share one workspace and every annotation.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from winnow.contracts.errors import RecipeError
from winnow.contracts.trial import Trainer
from winnow.filters.rules import PriorityCover
from winnow.pipeline.recipe import FilterEntry, Recipe, load_recipe, recipe_of
from winnow.pipeline.study import ArmEntry, Study
from winnow.pipeline.study_models import Folders, ready_stages
from winnow.pipeline.study_settings import Learned, Rows, Scorer, kept

EXPORT = "train"
TRUTH = "truth_"
_USABLE = "usable_"
_OWN_FILTERS = frozenset({f"{_USABLE}caption", f"{_USABLE}payload"})
"""What studies add themselves: these ask only whether a row can be learned from."""
ROWS_PER_FILE = 1000


class Recipes:
    """Composes a study's recipes.

    models: scorer -> the model folders of its folds. manifests: those of the evaluation sets, for a
    study that keeps look-alikes of them out of its pool. learned: the study's own models, name ->
    folder; the study's stages end before the first one that names a model which is not there.
    """

    def __init__(
        self,
        study: Study,
        models: Mapping[str, Sequence[str]] | None = None,
        manifests: Sequence[str] = (),
        learned: Folders | None = None,
    ) -> None:
        self.study, self.models, self.manifests = study, models or {}, manifests
        self.learned = learned or {}

    @property
    def stages(self) -> dict[str, Any]:
        """The study's stages, as far as the models that they name are trained."""
        return ready_stages(self.study.settings.stages, self.learned)

    def arm(self, arm: ArmEntry) -> Recipe:
        """Return the recipe of an arm."""
        trainer = self.study.changed_trainer(arm.rows)
        recipe = self._of_pool(arm.name, arm.rows, trainer, arm.rows.export)
        if not arm.is_oracle:
            _refuse_truth(recipe, trainer, arm.name, self.study.settings.labels)
        return recipe

    def random(self, arm: ArmEntry, count: int, seed: int) -> Recipe:
        """Return the recipe of as many random rows of the pool as an arm has."""
        rule = {"use": "random_rows", "count": count, "seed": seed, "on_null": "drop"}
        name = f"random-{count}-{seed}"
        trainer = self.study.control_trainer(arm.rows)
        return self._of_pool(name, Rows(keep=[], add={"random_rows": rule}), trainer)

    def model(self, name: str, fold: int | None = None) -> Recipe:
        """Return the recipe of what one of the study's models, or one of its folds, learns from."""
        model, settings = self.study.settings.models[name], self.study.settings
        trainer = self.study.model_trainer(name, self.learned)
        recipe = self._learning(model, f"model-{name}", f"the model {name}", trainer, fold)
        _refuse_truth(recipe, trainer, f"the model {name}", settings.labels)
        return recipe

    def fold(self, name: str, scorer: Scorer, fold: int) -> Recipe:
        """Return the recipe of what the scorer of one fold trains on: all other folds."""
        trainer = self.study.changed_trainer(scorer)
        recipe = self._learning(scorer, name, f"the scorer {name}", trainer, fold)
        _refuse_truth(recipe, trainer, f"the scorer {name}")
        return recipe

    def _learning(
        self, learner: Learned | Scorer, title: str, label: str, trainer: Trainer, fold: int | None
    ) -> Recipe:
        """Return the recipe of what is learned from before the arms: without one fold, if any."""
        rows: Rows = learner
        if fold is not None:
            # A row without a fold trains no model, so that whichever judges it never saw it.
            expression = f'{learner.fold_column} != "{fold}"'
            rule = {"use": "where", "expression": expression, "on_null": "drop"}
            added = {**learner.add, f"not_fold_{fold}": rule}
            rows, title = learner.model_copy(update={"add": added}), f"{title}-fold-{fold}"
        export = learner.export if isinstance(learner, Learned) else {}
        if learner.recipe is None:
            recipe = self._of_pool(title, rows, trainer, export)
        else:
            path = self.study.base / learner.recipe
            data = copy.deepcopy(dict(load_recipe(path, learner.set).resolved))
            _set_filters(data, [rows])
            _require_usable(data, export, trainer)
            recipe = self._parsed(data, title, trainer.columns, export)
        if fold is not None:
            _check_folds(recipe, label, learner.folds, learner.fold_column)
        return recipe

    def evaluation(self, name: str) -> Recipe:
        """Return the recipe of an evaluation set."""
        study = self.study
        rows: Rows = dict(study.settings.evaluation)[name]  # type: ignore[index]
        own = rows.recipe is None
        path = study.base / (study.settings.recipe if own else str(rows.recipe))
        changes = [*study.settings.set, *rows.set] if own else rows.set
        data = copy.deepcopy(dict(load_recipe(path, changes).resolved))
        if own:
            _add_stages(data, self.stages)
        _set_filters(data, [rows])
        export = study.settings.export if own else {}
        return self._parsed(data, f"evaluation-{name}", study.columns(), export)

    def base(self) -> Recipe:
        """Return the recipe of the whole pool."""
        return self._of_pool("pool", Rows(keep=[]), self.study.trainer)

    def _of_pool(
        self, name: str, rows: Rows, trainer: Trainer, changes: Mapping[str, Any] | None = None
    ) -> Recipe:
        study = self.study
        data = copy.deepcopy(dict(study.recipe))
        _add_stages(data, self.stages)
        for key, folders in self.models.items():
            _add_stages(data, {f"{key}_scores": _scorer_stage(study, key, folders)})
        pool = study.settings.pool
        if study.settings.apart is not None and self.manifests:
            stage = {**study.settings.apart, "evaluation": list(self.manifests)}
            _add_stages(data, {"near_evaluation": stage})
            rule = {"use": "not_near_evaluation", "on_null": "keep"}
            pool = pool.model_copy(update={"add": {**pool.add, "apart": rule}})
        _set_filters(data, [pool, rows])
        export = {**study.settings.export, **(changes or {})}
        _require_usable(data, export, trainer)
        return self._parsed(data, name, trainer.columns, export)

    def _parsed(
        self, data: dict[str, Any], name: str, columns: Iterable[str], changes: Mapping[str, Any]
    ) -> Recipe:
        text = re.sub(r"[^A-Za-z0-9._-]", "-", f"{self.study.name}-{name}")
        data["name"] = text[:63]
        own = [e for e in (data.get("export") or {}).values() if _is_webdataset(e)]
        export = {"rows_per_file": ROWS_PER_FILE, **(own[0] or {} if own else {}), **changes}
        # Only what a trial reads: another annotation must not make another training set.
        data["export"] = {EXPORT: {**export, "use": "webdataset", "columns": sorted(columns)}}
        try:
            return recipe_of(data, f"{self.study.file} ({name})")
        except RecipeError as error:
            msg = f"{self.study.file}: the recipe of {name} cannot be made:\n{error}"
            raise RecipeError(msg) from None


def shared_columns(evaluation: Recipe, arms: Iterable[Recipe]) -> list[str]:
    """Return columns by which both an evaluation set and an arm were chosen.

    Such a set favours that arm. What says only whether a row can be used does not count.
    """
    chosen = _columns(evaluation.filters)
    used = {name for arm in arms for name in _columns(arm.filters)}
    return sorted(chosen & used)


def _columns(filters: Iterable[FilterEntry]) -> set[str]:
    # A cover chooses among copies of one picture; what it prefers says nothing of the caption.
    judging = [f.rule for f in filters if not isinstance(f.rule, PriorityCover)]
    names = {c for rule in judging for c in rule.columns()}
    usable = {"image", "audio", "repeated_row", "split", "near_evaluation"}
    return {n for n in names if n not in usable and not n.endswith("_error")}


def _refuse_truth(recipe: Recipe, trainer: Trainer, name: str, labels: Iterable[str] = ()) -> None:
    """Refuse an arm that selects or learns by the truth, also by a stage that reads it.

    labels: columns of the truth that the study declares as labels; they may be learned from, and
    never selected by.
    """
    for place, columns, free in [
        *(
            (
                f"the filter {f.key}",
                f.rule.columns(),
                frozenset(labels if f.key in _OWN_FILTERS else ()),
            )
            for f in recipe.filters
        ),
        ("training", trainer.columns, frozenset(labels)),
    ]:
        derived = _made_of_truth(recipe, free)
        known = sorted(c for c in columns if _is_truth(c, free) or c in derived)
        if known:
            why = "" if known[0].startswith(TRUTH) else ", which a stage made of the truth"
            hint = "; labels that anyone would have go into the study's `labels`"
            hint = hint if place == "training" else ""
            msg = (
                f"{name}: {place} reads {known[0]}{why}; only an arm named oracle, which shows "
                f"the ceiling, may use the truth{hint}"
            )
            raise RecipeError(msg)


def _is_truth(column: str, labels: frozenset[str]) -> bool:
    return column.startswith(TRUTH) and column not in labels


def _made_of_truth(recipe: Recipe, labels: frozenset[str]) -> set[str]:
    """Return the columns that stages made of the truth, or were gated by it."""
    derived: set[str] = set()
    for entry in recipe.stages:
        read = set(entry.stage.reads.names) | (entry.when.columns() if entry.when else set())
        if any(_is_truth(c, labels) or c in derived for c in read):
            derived |= set(entry.stage.writes.names)
    return derived


def _check_folds(recipe: Recipe, label: str, folds: int, column: str) -> None:
    """A fold without a model would leave its rows without a score, so out of every selection."""
    wanted = {str(k) for k in range(folds)}
    for entry in recipe.stages:
        parts = getattr(entry.stage, "parts", None)
        if column in entry.stage.writes.names and parts and set(parts) != wanted:
            msg = (
                f"{label} has folds={folds}, but the stage {entry.key} writes "
                f"{', '.join(sorted(parts))} into {column}; name its parts "
                f"{', '.join(sorted(wanted))}"
            )
            raise RecipeError(msg)


def _require_usable(data: dict[str, Any], changes: Mapping[str, Any], trainer: Trainer) -> None:
    """Let only rows into the pool that can be trained on: words, and bytes to export.

    Trainers leave others out, and then an arm and its control would not be of one size.
    """
    own = [e or {} for e in (data.get("export") or {}).values() if _is_webdataset(e)]
    export = {**(own[0] if own else {}), **changes}
    text = export.get("text") or "text"
    rules = {"caption": f"length(strip({text})) > 0"}
    talks, mixed = (getattr(trainer, name, None) for name in ("conversations", "interleaved"))
    if talks:
        rules["caption"] = f"{talks} is not None or ({text} is not None and {rules['caption']})"
    if mixed:
        rules["caption"] = f"{mixed} is not None"
    for key, stage in (data.get("stages") or {}).items():
        if (stage or {}).get("use", key) == "resize" and export.get("payload") == "resized_image":
            rules["payload"] = "resize_error is None"
    usable = {
        f"{_USABLE}{key}": {"use": "where", "expression": rule, "on_null": "drop"}
        for key, rule in rules.items()
    }
    taken = sorted(_OWN_FILTERS & data["filters"].keys())
    if taken:
        msg = f"a filter is named {taken[0]}, which studies have of their own; rename it"
        raise RecipeError(msg)
    data["filters"] = {**usable, **data["filters"]}


def _add_stages(data: dict[str, Any], stages: Mapping[str, Any]) -> None:
    data["stages"] = {**(data.get("stages") or {}), **copy.deepcopy(dict(stages))}


def _set_filters(data: dict[str, Any], chosen: Sequence[Rows]) -> None:
    """Write out the filters of several selections, one after the other, each name once."""
    known = data.get("filters") or {}
    filters: dict[str, Any] = {}
    added: dict[str, Any] = {}
    for rows in chosen:
        filters |= {key: known[key] for key in kept(rows, data)}
        added |= {k: v for k, v in rows.add.items() if k not in rows.without}
    # A cover of near-duplicates comes behind what judges single rows; a draw of exactly so many
    # rows comes behind that.
    whole = {**filters, **copy.deepcopy(added)}
    covers = _using(whole, "drop_near_duplicates")
    draws = _using(whole, "random_rows")
    single = {k: v for k, v in whole.items() if k not in covers and k not in draws}
    data["filters"] = {**single, **covers, **draws}


def _using(filters: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {k: v for k, v in filters.items() if (v or {}).get("use", k) == name}


def _scorer_stage(study: Study, key: str, folders: Sequence[str]) -> dict[str, Any]:
    scorer = study.settings.scorers[key]
    return {
        "use": "cross_fit_clip_score",
        "models": list(folders),
        "fold": scorer.fold_column,
        "column": scorer.column,
    }


def _is_webdataset(entry: Mapping[str, Any] | None) -> bool:
    return (entry or {}).get("use", "webdataset") == "webdataset"
