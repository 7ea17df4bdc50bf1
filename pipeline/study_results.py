"""From a study that was run to what its report needs; and what a study would do, as text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import pyarrow as pa

from winnow.contracts.parameters import result_parameters
from winnow.contracts.trial import ITEMS, METRICS, MODEL, Trainer
from winnow.pipeline.ablation import Outcome, TrialEntry
from winnow.pipeline.fingerprint import digest
from winnow.pipeline.plan import Plan
from winnow.pipeline.statistics import ArmResult, Design, Published
from winnow.pipeline.storage import Storage
from winnow.pipeline.study import ArmEntry, Study
from winnow.pipeline.study_plan import choose_arms, plan_study
from winnow.pipeline.study_settings import RAW, Learned, Scorer
from winnow.pipeline.trial import TRAINED, Exported, load_measured


def design_of(study: Study, outcome: Outcome, results: Sequence[ArmResult]) -> Design:
    """Return what the study compares, and since when that is so.

    results: say what the models are, and what to compare where the study names no primary contrast:
    the first metric of each evaluation.
    """
    settings, prepared = study.settings, outcome.prepared
    primary = settings.primary
    descriptions: dict[str, dict[str, float]] = {}
    for arm, means in prepared.described.items():
        for label, value in means.items():
            if value is not None:
                descriptions.setdefault(label, {})[arm] = value
    return Design(
        name=study.name,
        description=settings.description,
        metrics=tuple(primary.metrics if primary else _headlines(results)),
        primary_arm=primary.arm if primary else "",
        primary_against=primary.against if primary else "",
        raw_arm=RAW,
        seeds=tuple(settings.seeds),
        budgets=tuple(sorted(settings.budgets)),
        scorers={s.column: s.label or s.column for s in settings.scorers.values()},
        published=tuple(
            Published(label=p.label, fraction=p.fraction, value=p.value) for p in settings.published
        ),
        descriptions=descriptions,
        facts={**_facts(study, outcome), **_models(results)},
        command=f"winnow ablate {study.file}",
        named=outcome.record.named,
        record=outcome.record.sentence,
        fingerprints={
            **{f"{s.name} set": s.digest for s in prepared.sets},
            **{f"arm {name}": data.digest for name, data in prepared.arms.items()},
        },
    )


def collect(study: Study, outcome: Outcome, storage: Storage) -> list[ArmResult]:
    """Return one result per trial and evaluation set of the whole study.

    What failed and what was not trained yet are there too: the contrasts that a study names do not
    become fewer, and their correction no milder, because a part of it was run.
    """
    found = [
        _result(study, storage, trial, data, outcome.failures.get(trial.spec.fingerprint(), ""))
        for trial in outcome.trials
        for data in outcome.prepared.sets
    ]
    have = {(r.arm, r.budget, r.seed) for r in found}
    for arm, kind, budget, seed in _planned(study, outcome):
        name = f"random:{arm.name}" if kind == "random" else arm.name
        if (name, budget, seed) not in have:
            found += [
                _about(study, arm, kind, budget, seed, split=split, status="missing")
                for split in ("validation", "test")
                if split in study.settings.evaluation
            ]
    return found


def _planned(study: Study, outcome: Outcome) -> Iterator[tuple[ArmEntry, str, int, int]]:
    made, randoms = outcome.prepared.arms, {name for name, _ in outcome.prepared.randoms}
    for arm in study.arms:
        # An arm that is the whole pool has no control; of one not selected yet it is not known.
        control = arm.rows.random and not arm.is_oracle
        control = control and (arm.name in randoms or arm.name not in made)
        for budget in study.settings.budgets:
            for seed in study.settings.seeds:
                yield arm, "oracle" if arm.is_oracle else "arm", budget, seed
                if control:
                    yield arm, "random", budget, seed


def study_lines(
    study: Study,
    *,
    arms: Sequence[str] = (),
    seeds: Sequence[int] = (),
    budgets: Sequence[int] = (),
    controls: bool = True,
) -> Iterator[str]:
    """Yield what a study would do. Checks every recipe's plan; reads no row and writes nothing."""
    settings = study.settings
    chosen = choose_arms(study, arms)
    plan = plan_study(study, chosen)
    seeds, budgets = seeds or settings.seeds, budgets or settings.budgets
    yield f"study {study.name} ({study.file})"
    if settings.note:
        yield f"note: {settings.note}"
    for name, found in plan.sets.items():
        yield f"{name} set: {_filters(found)}"
    yield f"pool: {settings.recipe}: {_filters(plan.pool)}"
    if settings.apart is not None:
        yield "apart: rows whose pictures resemble one of an evaluation set leave the pool"
    for key in study.models:
        yield _model_line(key, settings.models[key])
    for key, scorer in settings.scorers.items():
        yield _scorer_line(key, scorer)
    pairs = 0
    for arm in chosen:
        control = arm.rows.random and not arm.is_oracle and controls
        pairs += 2 if control else 1
        names = ", ".join(f.key for f in plan.arms[arm.name].recipe.filters) or "no filter"
        yield f"arm {arm.name}: {names}" + ("; and as many random rows" if control else "")
    yield f"trial: {study.trainer.name}, {_parameters(study)}"
    yield f"evaluations: {', '.join(study.evaluations)}"
    yield from _cost_lines(study, pairs, seeds, budgets)
    if study.primary is not None:
        named = ", ".join(study.primary.metrics)
        rival = study.primary.against or "as many random rows"
        yield f"primary contrast: {study.primary.arm} against {rival}, by {named}"
    for warning in plan.warnings:
        yield f"warning: {warning}"


def _model_line(key: str, model: Learned) -> str:
    if not model.folds:
        return f"model {key}: trained here, on {model.samples_seen:,} samples"
    return (
        f"model {key}: trained here, {model.folds} models of {model.samples_seen:,} samples, each "
        "without one part of the rows"
    )


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
    models = [study.settings.models[key] for key in study.models]
    first = sum(max(m.folds, 1) * m.samples_seen for m in models)
    first += sum(s.folds * s.samples_seen for s in study.settings.scorers.values())
    samples = pairs * len(seeds) * sum(budgets) * base + first
    sizes = ", ".join(f"{b * base:,}" for b in sorted(budgets))
    yield (
        f"at most {pairs * len(seeds) * len(budgets)} trials: seeds "
        f"{', '.join(map(str, seeds))}; {sizes} samples each; {samples:,} samples in all"
    )


def _filters(plan: Plan) -> str:
    return ", ".join(f.key for f in plan.filters) or "no filter"


def _parameters(study: Study) -> str:
    return ", ".join(f"{k}={v}" for k, v in result_parameters(study.trainer).items())


def _result(
    study: Study, storage: Storage, trial: TrialEntry, data: Exported, error: str
) -> ArmResult:
    spec, rows = trial.spec, trial.spec.train.num_rows
    split = cast(Literal["validation", "test"], data.name)
    about = _about(study, trial.arm, trial.kind, trial.budget, spec.seed, split=split)
    if error:
        return dataclasses.replace(about, status="failed", error=error, num_rows=rows)
    metrics, items = load_measured(storage, spec, study.evaluations, data)
    if split == "validation":
        items = items.slice(0, 0)  # only the test set is compared item by item
    seen = int(json.loads(storage.read(f"{spec.checkpoint}/{TRAINED}"))["samples_seen"])
    return dataclasses.replace(
        about,
        status="done",
        num_rows=rows,
        samples_seen=seen,
        repeats=seen / rows,
        metrics=_as(metrics, METRICS),
        items=_as(items, ITEMS),
    )


def _about(
    study: Study,
    arm: ArmEntry,
    kind: str,
    budget: int,
    seed: int,
    *,
    split: str,
    status: str = "missing",
) -> ArmResult:
    """Return what is known of a trial before it is trained."""
    random, name = kind == "random", arm.rows.scorer
    chosen = arm.rows.model_dump(include={"keep", "without", "add", "export"})
    chosen["captions"] = _captions(study.changed_trainer(arm.rows))
    return ArmResult(
        arm=f"random:{arm.name}" if random else arm.name,
        kind=cast(Literal["arm", "random", "oracle"], kind),
        control_of=arm.name if random else "",
        scorer="" if random or not name else study.settings.scorers[name].column,
        fraction=arm.fraction,
        budget=budget,
        seed=seed,
        num_rows=0,
        samples_seen=0,
        repeats=0.0,
        status=cast(Literal["done", "failed", "missing"], status),
        split=cast(Literal["validation", "test"], split),
        metrics=METRICS.empty_table(),
        items=ITEMS.empty_table(),
        curve="" if random or arm.fraction is None else arm.name.partition(":")[0],
        selection="" if random else digest(chosen),
        trainer=_learning(study.changed_trainer(arm.rows)),
    )


def _learning(trainer: Trainer) -> str:
    """Return a digest of how models learn, whatever captions they are given."""
    values = result_parameters(trainer).items()
    return digest({k: v for k, v in values if k not in trainer.data_parameters})


def _captions(trainer: Trainer) -> dict[str, Any]:
    """Return which captions a trainer reads."""
    values = result_parameters(trainer).items()
    return {k: v for k, v in values if k in trainer.data_parameters}


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


def _headlines(results: Sequence[ArmResult]) -> list[str]:
    """Return the first metric of each evaluation."""
    firsts: dict[str, str] = {}
    for result in results:
        for metric in result.metrics["metric"].to_pylist():
            if not metric.startswith(MODEL):
                firsts.setdefault(metric.partition(".")[0], metric)
    return list(firsts.values())


def _models(results: Sequence[ArmResult]) -> dict[str, str]:
    """Return what each arm's model is, where its metrics say so; once for arms that are alike."""
    arms: dict[str, list[str]] = {}
    for result in results:
        rows = result.metrics.select(["metric", "value"]).to_pylist()
        said = ", ".join(
            f"{row['value']:,.0f} {row['metric'].removeprefix(MODEL).replace('_', ' ')}"
            for row in rows
            if row["metric"].startswith(MODEL) and row["value"]
        )
        if said and result.arm not in arms.setdefault(said, []):
            arms[said].append(result.arm)
    return {f"Model of {', '.join(names)}": said for said, names in arms.items()}
