"""What makes a study honest, told from its settings alone: who judges whom, what is compared.

Every function yields mistakes as (place in the study, what is said), or warnings as text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from winnow.contracts.model_names import TRAINED_PREFIX
from winnow.contracts.parameters import validate
from winnow.contracts.registry import STAGES
from winnow.pipeline.plan import Plan
from winnow.pipeline.study_models import named_models, training_order
from winnow.pipeline.study_settings import ORACLE, Settings, model_values

Mistake = tuple[tuple[str, ...], str]

_WRITERS = frozenset({"caption"})
_JUDGES = frozenset(
    {"clip_score", "cross_fit_clip_score", "caption_scores", "match_score", "hallucination"}
)
APART_STAGE = "near_evaluation"
_MANIFEST = "manifest.parquet"


def primary_mistakes(settings: Settings) -> Iterator[Mistake]:
    """A primary contrast that no trial would measure."""
    primary = settings.primary
    if primary is None:
        return
    name = primary.arm.partition(":")[0]
    if name == ORACLE:
        said = (
            "an oracle shows the ceiling and has no contrasts; name an arm that anyone could make"
        )
        yield ("primary", "arm"), said
    arm = settings.arms.get(name)
    if arm is not None and not arm.random and not primary.against and name != ORACLE:
        said = (
            f"the arm {name} has random: false, so there are no random rows to compare it with; "
            "leave that out, or name the other arm in primary.against"
        )
        yield ("primary", "arm"), said


def judge_mistakes(settings: Settings) -> Iterator[Mistake]:
    """A captioner and what judges its captions share weights that were trained here.

    BLIP trains its captioner and its filter apart (Li et al. 2022, section 4.4): with shared
    weights noisy captions pass the filter that learned with them.
    """
    values = {name: model_values(settings, name) for name in settings.models}
    # A model and all that it started from: what is trained for a stage that names it.
    families = {
        name: training_order({"": {"model": f"{TRAINED_PREFIX}{name}"}}, values) for name in values
    }
    kinds: dict[str, dict[str, str]] = {"writer": {}, "judge": {}}
    for key, stage in settings.stages.items():
        use = str((stage or {}).get("use", key))
        kind = "writer" if use in _WRITERS else "judge" if use in _JUDGES else ""
        for name in named_models(stage) if kind else ():
            for one in families.get(name, [name]):
                kinds[kind].setdefault(one, key)
    for name in sorted(kinds["writer"].keys() & kinds["judge"].keys()):
        said = (
            f"trained:{name} writes the captions of the stage {kinds['writer'][name]} and judges "
            f"in {kinds['judge'][name]}; train a model of its own for each"
        )
        yield ("stages", kinds["judge"][name]), said


def judge_warnings(settings: Settings) -> Iterator[str]:
    """Models that judge or describe the rows that they learned from."""
    for key, values in settings.stages.items():
        for name in dict.fromkeys(named_models(values)):
            model = settings.models.get(name)
            if model is not None and model.recipe is None and not model.folds:
                yield (
                    f"the stage {key} uses trained:{name} on the rows that trained it: give that "
                    "model folds, or a recipe of its own"
                )


def apart_values(apart: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stage that ``apart`` describes as YAML has it, with a stand-in for the sets."""
    return {**apart, "use": APART_STAGE, "evaluation": [_MANIFEST]}


def apart_unread(settings: Settings, pool: Plan) -> list[str]:
    """Return the columns that ``apart`` needs and nothing in the pool writes."""
    if settings.apart is None:
        return []
    factory = STAGES.find(APART_STAGE)
    values = apart_values(settings.apart)
    values.pop("use")
    stage = factory(**validate(factory, values))
    return [name for name in stage.reads.names if name not in pool.origins]


def described_filters(settings: Settings, arms: Mapping[str, Plan], pool: Plan) -> Iterator[str]:
    """Yield why a column that describes the selections is what an arm was selected by.

    By itself, or by another column of the same model.
    """
    # What the study trains itself has no digest yet when this is asked.
    own = {f"{name}_scores" for name, scorer in settings.scorers.items() if scorer.folds}
    own |= {key for key, values in settings.stages.items() if any(named_models(values))}
    made = {
        column: digest
        for entry in pool.recipe.stages
        if entry.key not in own and (digest := _digest(entry.stage))
        for column in entry.stage.writes.names
    }
    for column in settings.describe:
        for arm, plan in arms.items():
            used = {c for entry in plan.recipe.filters for c in entry.rule.columns()}
            same = sorted(c for c in used if c == column or made.get(c, 0) == made.get(column, 1))
            if same:
                yield (
                    f"describe: {column} says nothing of the arm {arm}, which was selected by "
                    f"{same[0]}"
                    + ("" if same[0] == column else " of the same model")
                    + "; describe by a model that no filter used"
                )


def _digest(stage: Any) -> str:
    return str(stage.model_digest()) if hasattr(stage, "model_digest") else ""
