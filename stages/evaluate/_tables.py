"""Run evaluations on one subject and put their scores into the tables of a trial."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from winnow.contracts.errors import SetupError, ShardError
from winnow.contracts.trial import ITEMS, METRICS, MODEL, Captioner, Evaluation, Score
from winnow.stages.evaluate._answers import remembering


def measure_all(
    evaluations: Iterable[Evaluation] | Mapping[str, Evaluation], subject: Any
) -> tuple[pa.Table, pa.Table]:
    """Return (METRICS, ITEMS) of all evaluations, each one's headline first.

    A mapping names the evaluations: its keys take the place of their names in the metrics
    ("colours.accuracy@1"), so that one kind can be used twice.

    Fails: SetupError where the set cannot be measured so, or two scores have the same metric and
    slice. ShardError, not retryable, for a value that is not finite, items whose mean is not the
    value, or items that keys do not fit: a broken model or evaluation.
    """
    if isinstance(evaluations, Mapping):
        named = list(evaluations.items())
    else:
        named = [(evaluation.name, evaluation) for evaluation in evaluations]
    if isinstance(subject, Captioner):
        subject = remembering(subject)
    scores: list[Score] = []
    seen: set[tuple[str, str]] = set()
    for name, evaluation in named:
        for score in evaluation.measure(subject):
            renamed = replace(score, metric=_renamed(score.metric, evaluation.name, name))
            _check(renamed, name)
            if (renamed.metric, renamed.slice) in seen:
                place = renamed.metric + (f" of slice {renamed.slice}" if renamed.slice else "")
                msg = f"{place} is measured twice; give the evaluations different names"
                raise SetupError(msg)
            seen.add((renamed.metric, renamed.slice))
            scores.append(renamed)
    return metrics_table(scores), items_table(scores)


def model_scores(subject: Any) -> list[Score]:
    """Return what a captioner's ``facts`` say of the model, as scores "model.<fact>" that only
    describe; none of other subjects."""
    if not isinstance(subject, Captioner):
        return []
    return [
        Score(
            metric=f"{MODEL}{name}",
            value=value,
            num_items=subject.rows.num_rows,
            higher_is_better=None,
        )
        for name, value in subject.facts.items()
    ]


def metrics_table(scores: Iterable[Score]) -> pa.Table:
    """Return one METRICS row per score."""
    rows = [{name: getattr(score, name) for name in METRICS.names} for score in scores]
    return pa.Table.from_pylist(rows, schema=METRICS)


def items_table(scores: Iterable[Score]) -> pa.Table:
    """Return one ITEMS row per item of each score over all rows that has items."""
    parts = [ITEMS.empty_table()]
    for score in scores:
        if score.items is not None and not score.slice:
            columns = [
                pa.repeat(pa.scalar(score.metric), len(score.items)),
                pa.array(score.keys, pa.string()),
                pa.array(score.items, pa.float64()),
            ]
            parts.append(pa.Table.from_arrays(columns, schema=ITEMS))
    return pa.concat_tables(parts).combine_chunks()


def _renamed(metric: str, old: str, new: str) -> str:
    head, dot, tail = metric.partition(".")
    if head != old or not dot or not tail:
        msg = f"metric {metric!r} does not start with {old + '.'!r}"
        raise ShardError(msg, stage=f"evaluate {new}", retryable=False)
    return f"{new}.{tail}"


def _check(score: Score, name: str) -> None:
    problem = _problem(score)
    if problem:
        where = score.metric + (f" ({score.slice})" if score.slice else "")
        msg = f"{where} {problem}"
        raise ShardError(msg, stage=f"evaluate {name}", retryable=False)


def _problem(score: Score) -> str:
    """What is wrong with a score, "" for nothing."""
    if score.value is not None and not math.isfinite(score.value):
        return f"is {score.value}"
    if score.items is None:
        return ""
    if not len(score.items) == len(score.keys) == score.num_items:
        return f"has {len(score.items)} items, {len(score.keys)} keys, num_items {score.num_items}"
    if len(set(score.keys)) < len(score.keys):
        return "has items with the same key"
    if not np.isfinite(score.items).all():
        return "has items that are not finite"
    if score.value is None or not math.isclose(
        float(np.mean(score.items)), score.value, rel_tol=1e-9, abs_tol=1e-9
    ):
        return f"is {score.value}, the mean of its items {float(np.mean(score.items))}"
    return ""
