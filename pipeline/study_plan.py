"""A study's recipes, composed and planned once: every mistake in them is found before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.model_names import TRAINED_PREFIX
from winnow.pipeline.arms import Recipes, shared_columns
from winnow.pipeline.plan import Plan, make_plan
from winnow.pipeline.study import ArmEntry, Study
from winnow.pipeline.study_rules import apart_unread, described_filters, judge_warnings

STAND_IN = "tiny"
"""The packaged model stands in for scorers that are not trained yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyPlan:
    """The plans of a study. warnings: what does not make it wrong, and should be known."""

    arms: dict[str, Plan]
    sets: dict[str, Plan]
    pool: Plan
    warnings: tuple[str, ...]


def plan_study(study: Study, chosen: Sequence[ArmEntry]) -> StudyPlan:
    """Plan the evaluation sets, the pool, the scorers and some arms. Reads no row.

    Fails: RecipeError for a recipe that cannot be made, or that reads what nothing writes.
    """
    scorers = {k: s for k, s in study.settings.scorers.items() if s.folds}
    learned: dict[str, str | list[str]] = {}
    for name in study.models:
        folds = study.settings.models[name].folds
        make_plan(Recipes(study, learned=learned).model(name, 0 if folds else None))
        stand_in = f"{TRAINED_PREFIX}{name}"
        learned[name] = [stand_in] * folds if folds else stand_in
    stand_ins = {k: [STAND_IN] * s.folds for k, s in scorers.items()}
    recipes = Recipes(study, stand_ins, learned=learned)
    for key, scorer in scorers.items():
        make_plan(Recipes(study, learned=learned).fold(key, scorer, 0))
    sets: dict[str, Plan] = {
        name: make_plan(recipes.evaluation(name)) for name in study.settings.evaluation
    }
    arms = {arm.name: make_plan(recipes.arm(arm)) for arm in chosen}
    pool = make_plan(recipes.base())
    _check_rules(study, arms, pool)
    plain = [arms[arm.name].recipe for arm in chosen if not arm.is_oracle]
    warnings = list(judge_warnings(study.settings))
    for name, rows in study.settings.evaluation.items():
        shared = shared_columns(sets[name].recipe, plain) if rows.recipe is None else []
        if shared:
            warnings.append(
                f"the {name} set was chosen by {', '.join(shared)}, which an arm filters by too: "
                "it favours that arm"
            )
    return StudyPlan(arms=arms, sets=sets, pool=pool, warnings=tuple(warnings))


def _check_rules(study: Study, arms: Mapping[str, Plan], pool: Plan) -> None:
    missing = apart_unread(study.settings, pool)
    if missing:
        msg = (
            f"{study.file}: apart reads {', '.join(missing)}, which nothing in the pool writes; "
            "add the stage perceptual_hash to its recipe"
        )
        raise RecipeError(msg)
    for said in described_filters(study.settings, arms, pool):
        msg = f"{study.file}: {said}"
        raise RecipeError(msg)


def choose_arms(study: Study, names: Sequence[str]) -> list[ArmEntry]:
    """Return the named arms, all where none is named. Fails: SetupError for an unknown name."""
    known = [a.name for a in study.arms]
    unknown = [n for n in names if n not in known]
    if unknown:
        msg = f"{study.file} has no arm {unknown[0]!r}; it has {', '.join(known)}"
        raise SetupError(msg)
    return [a for a in study.arms if not names or a.name in names]
