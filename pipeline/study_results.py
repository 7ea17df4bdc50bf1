"""From a study that was run to what its report needs; and what a study would do, as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import pyarrow as pa

from winnow.contracts.parameters import result_parameters
from winnow.contracts.trial import ITEMS, METRICS
from winnow.pipeline.ablation import Outcome, TrialEntry
from winnow.pipeline.arms import Recipes, shared_columns
from winnow.pipeline.plan import make_plan
from winnow.pipeline.statistics import ArmResult, Design, Published
from winnow.pipeline.storage import Storage
from winnow.pipeline.study import RAW, Scorer, Study
from winnow.pipeline.trial import Exported, load_measured


def design_of(study: Study, outcome: Outcome, metrics: Sequence[str]) -> Design:
    """Return what the study compares: all of it was written down before the first trial.

    metrics: what to compare where the study names no primary contrast.
    """
    settings, prepared = study.settings, outcome.prepared
    primary = settings.primary
    descriptions: dict[str, dict[str, float]] = {}
    for arm, means in prepared.described.items():
        for column, value in means.items():
            if value is not None:
                descriptions.setdefault(f"mean {column}", {})[arm] = value
    return Design(
        name=study.name,
        description=settings.description,
        metrics=tuple(primary.metrics if primary else metrics),
        primary_arm=primary.arm if primary else study.arms[0].name,
        raw_arm=RAW,
        seeds=tuple(settings.seeds),
        budgets=tuple(sorted(settings.budgets)),
        scorers={s.column: s.label or s.column for s in settings.scorers.values()},
        published=tuple(
            Published(label=p.label, fraction=p.fraction, value=p.value) for p in settings.published
        ),
        descriptions=descriptions,
        facts=_facts(study, outcome),
        command=f"winnow ablate {study.file}",
        fingerprints={
            **{f"{s.name} set": s.digest for s in prepared.sets},
            **{f"arm {name}": data.digest for name, data in prepared.arms.items()},
        },
    )


def collect(study: Study, outcome: Outcome, storage: Storage) -> list[ArmResult]:
    """Return one result per trial and evaluation set, failed ones included."""
    return [
        _result(study, storage, trial, data, outcome.failures.get(trial.spec.fingerprint(), ""))
        for trial in outcome.trials
        for data in outcome.prepared.sets
    ]


def headline_metrics(results: Sequence[ArmResult]) -> list[str]:
    """Return the first metric of each evaluation."""
    firsts: dict[str, str] = {}
    for result in results:
        for metric in result.metrics["metric"].to_pylist():
            firsts.setdefault(metric.partition(".")[0], metric)
    return list(firsts.values())


def study_lines(
    study: Study,
    *,
    arms: Sequence[str] = (),
    seeds: Sequence[int] = (),
    budgets: Sequence[int] = (),
    controls: bool = True,
) -> Iterator[str]:
    """Yield what a study would do. Checks every recipe's plan; reads no row and writes nothing."""
    settings, recipes = study.settings, Recipes(study)
    chosen = [a for a in study.arms if not arms or a.name in arms]
    seeds, budgets = seeds or settings.seeds, budgets or settings.budgets
    trained = {k for k, s in settings.scorers.items() if s.folds}
    yield f"study {study.name} ({study.file})"
    if settings.note:
        yield f"note: {settings.note}"
    for name in settings.evaluation:
        yield f"{name} set: {_filters(make_plan(recipes.evaluation(name)))}"
    yield f"pool: {settings.recipe}: {_filters(make_plan(recipes.base()))}"
    for key, scorer in settings.scorers.items():
        yield _scorer_line(key, scorer)
    pairs = 0
    for arm in chosen:
        recipe = recipes.arm(arm)
        if arm.rows.scorer not in trained:
            make_plan(recipe)
        control = arm.rows.random and not arm.is_oracle and controls
        pairs += 2 if control else 1
        names = ", ".join(f.key for f in recipe.filters) or "no filter"
        yield f"arm {arm.name}: {names}" + ("; and as many random rows" if control else "")
    yield f"trial: {study.trainer.name}, {_parameters(study)}"
    yield f"evaluations: {', '.join(study.evaluations)}"
    yield from _cost_lines(study, pairs, seeds, budgets)
    if study.primary is not None:
        named = ", ".join(study.primary.metrics)
        yield f"primary contrast: {study.primary.arm} against as many random rows, by {named}"
    plain = [recipes.arm(a) for a in chosen if not a.is_oracle]
    for name, rows in settings.evaluation.items():
        shared = [] if rows.recipe else shared_columns(recipes.evaluation(name), plain)
        if shared:
            yield f"warning: the {name} set and an arm are both chosen by {', '.join(shared)}"


def _scorer_line(key: str, scorer: Scorer) -> str:
    label = f"; {scorer.label}" if scorer.label else ""
    if not scorer.folds:
        return f"scorer {key}: the column {scorer.column}{label}"
    return (
        f"scorer {key}: {scorer.folds} models of {scorer.samples_seen:,} samples, each row scored "
        f"by one that never saw it, into {scorer.column}{label}"
    )


def _cost_lines(
    study: Study, pairs: int, seeds: Sequence[int], budgets: Sequence[int]
) -> Iterator[str]:
    base = study.settings.samples_seen
    scored = sum(s.folds * s.samples_seen for s in study.settings.scorers.values())
    samples = pairs * len(seeds) * sum(budgets) * base + scored
    sizes = ", ".join(f"{b * base:,}" for b in sorted(budgets))
    yield (
        f"at most {pairs * len(seeds) * len(budgets)} trials: seeds "
        f"{', '.join(map(str, seeds))}; {sizes} samples each; {samples:,} samples in all"
    )


def _filters(plan: Any) -> str:
    return ", ".join(f.key for f in plan.filters) or "no filter"


def _parameters(study: Study) -> str:
    return ", ".join(f"{k}={v}" for k, v in result_parameters(study.trainer).items())


def _result(
    study: Study, storage: Storage, trial: TrialEntry, data: Exported, error: str
) -> ArmResult:
    spec, rows = trial.spec, trial.spec.train.num_rows
    if error:
        metrics, items = METRICS.empty_table(), ITEMS.empty_table()
    else:
        metrics, items = load_measured(storage, spec, study.evaluations, data)
    random = trial.kind == "random"
    name = trial.arm.rows.scorer
    return ArmResult(
        arm=f"random:{trial.arm.name}" if random else trial.arm.name,
        kind=cast(Literal["arm", "random", "oracle"], trial.kind),
        control_of=trial.arm.name if random else "",
        scorer="" if random or not name else study.settings.scorers[name].column,
        fraction=trial.arm.fraction,
        budget=trial.budget,
        seed=spec.seed,
        num_rows=rows,
        samples_seen=spec.num_samples,
        repeats=spec.num_samples / rows,
        status="failed" if error else "done",
        error=error,
        split=cast(Literal["validation", "test"], data.name),
        metrics=_as(metrics, METRICS),
        items=_as(items, ITEMS),
    )


def _as(table: pa.Table, schema: pa.Schema) -> pa.Table:
    return table.select(schema.names).cast(schema)


def _facts(study: Study, outcome: Outcome) -> dict[str, str]:
    prepared, settings = outcome.prepared, study.settings
    facts = {
        "Pool": f"{prepared.pool_rows:,} rows of {settings.recipe}",
        "Trainer": f"{study.trainer.name}, {_parameters(study)}",
        "Samples seen": ", ".join(f"{b * settings.samples_seen:,}" for b in settings.budgets),
    }
    for data in prepared.sets:
        facts[f"{data.name.capitalize()} set"] = f"{data.num_rows:,} rows, the same for all arms"
    if study.primary is None:
        facts["Metrics"] = "the first of each evaluation: the study names no primary contrast"
    if settings.note:
        facts["Note"] = settings.note
    for number, warning in enumerate(prepared.warnings, 1):
        facts[f"Warning {number}"] = warning
    return facts
