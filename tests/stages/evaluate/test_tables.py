"""The tables of a trial: renaming, checks, and what becomes of items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tests.stages.evaluate.captioners import captioner, world
from tests.stages.evaluate.subjects import embeddings, random_unit
from winnow.contracts.errors import SetupError, ShardError
from winnow.contracts.trial import ITEMS, METRICS, Evaluation, Score
from winnow.stages.evaluate._tables import measure_all, metrics_table, model_scores
from winnow.stages.evaluate.retrieval import Retrieval
from winnow.stages.evaluate.zero_shot import ZeroShot


@dataclass(frozen=True, kw_only=True, slots=True)
class Fixed(Evaluation):
    """Returns what it was given."""

    scores: tuple[Score, ...] = ()

    def measure(self, subject: Any) -> list[Score]:
        return list(self.scores)


Fixed.name = "fixed"


def scored(metric: str = "fixed.a", value: float | None = 0.5, **fields: Any) -> Score:
    return Score(metric=metric, value=value, num_items=fields.pop("num_items", 2), **fields)


def items(values: Sequence[float], keys: Sequence[str], **fields: Any) -> Score:
    return scored(items=np.array(values), keys=list(keys), **fields)


def test_scores_become_rows_and_items_of_all_rows_alone() -> None:
    scores = (
        items([0.0, 1.0], "xy"),
        scored(slice="kind=a", value=1.0, num_items=1),
        scored("fixed.b", None, higher_is_better=None, num_items=0),
    )
    metrics, found = measure_all([Fixed(scores=scores)], None)
    assert metrics.schema == METRICS
    assert found.schema == ITEMS
    assert metrics.to_pylist() == [
        {"metric": "fixed.a", "slice": "", "value": 0.5, "num_items": 2, "higher_is_better": True},
        {"metric": "fixed.a", "slice": "kind=a", "value": 1.0, "num_items": 1,
         "higher_is_better": True},
        {"metric": "fixed.b", "slice": "", "value": None, "num_items": 0,
         "higher_is_better": None},
    ]  # fmt: skip
    assert found.to_pylist() == [
        {"metric": "fixed.a", "item": "x", "value": 0.0},
        {"metric": "fixed.a", "item": "y", "value": 1.0},
    ]


def test_facts_of_a_captioner_describe_it() -> None:
    subject = captioner(world(3))
    scores = model_scores(subject)
    assert {s.metric: s.value for s in scores} == {
        f"model.{name}": value for name, value in subject.facts.items()
    }
    assert scores
    assert {(s.num_items, s.higher_is_better) for s in scores} == {(3, None)}
    assert metrics_table(scores).num_rows == len(scores)
    assert model_scores(embeddings(random_unit(2), random_unit(2, 1))) == []


def test_no_evaluation_gives_empty_tables() -> None:
    metrics, found = measure_all([], None)
    assert (metrics.schema, metrics.num_rows) == (METRICS, 0)
    assert (found.schema, found.num_rows) == (ITEMS, 0)


def test_names_of_a_mapping_replace_those_of_the_evaluations() -> None:
    thing = ["cat", "dog"] * 10
    subject = embeddings(random_unit(20), random_unit(20, 1), thing=thing, colour=thing[::-1])
    named = {"things": ZeroShot(label="thing"), "colours": ZeroShot(label="colour")}
    metrics, found = measure_all({**named, "retrieval": Retrieval()}, subject)
    names = metrics["metric"].to_pylist()
    assert {n.split(".")[0] for n in names} == {"things", "colours", "retrieval"}
    assert names[0] == "things.accuracy@1"
    assert found.filter(found["metric"].to_numpy() == "colours.accuracy@1").num_rows == 20
    with pytest.raises(SetupError, match=r"zero_shot.accuracy@1 is measured twice"):
        measure_all(list(named.values()), subject)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (scored(value=float("nan")), r"fixed\.a is nan \(stage evaluate fixed\)"),
        (scored(value=float("inf"), slice="k=v"), r"fixed\.a \(k=v\) is inf"),
        (items([0.0, float("nan")], "xy"), "items that are not finite"),
        (items([0.0, 1.0], "xx"), "items with the same key"),
        (items([0.0, 1.0], "x"), "2 items, 1 keys, num_items 2"),
        (items([0.0, 1.0, 1.0], "xyz"), "3 items, 3 keys, num_items 2"),
        (items([0.0, 1.0], "xy", value=0.6), "is 0.6, the mean of its items 0.5"),
        (items([0.0, 1.0], "xy", value=None), "is None, the mean"),
        (scored("other.a"), "'other.a' does not start with 'fixed.'"),
        (scored("fixed."), "'fixed.' does not start"),
    ],
)
def test_broken_scores_are_refused(score: Score, message: str) -> None:
    with pytest.raises(ShardError, match=message) as caught:
        measure_all([Fixed(scores=(score,))], None)
    assert not caught.value.retryable


def test_a_metric_and_slice_can_be_measured_once() -> None:
    twice = (scored(slice="k=v"), scored(slice="k=v"))
    with pytest.raises(SetupError, match=r"fixed\.a of slice k=v is measured twice"):
        measure_all([Fixed(scores=twice)], None)
