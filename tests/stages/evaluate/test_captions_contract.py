"""One contract for every registered evaluation of captioners; as test_contract for embeddings."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tests.stages.evaluate.captioners import Kind, captioner, world
from tests.stages.evaluate.subjects import overall, values
from winnow.contracts.errors import SetupError
from winnow.contracts.registry import EVALUATIONS
from winnow.contracts.trial import Captioner, Evaluation
from winnow.stages.evaluate._answers import remembering
from winnow.stages.evaluate._tables import measure_all

SIZE = 60

EXAMPLES: dict[str, dict[str, Any]] = {
    "caption_quality": {"slices": ("kind",)},
    "pope": {"objects": "objects", "slices": ("kind",)},
    "chair": {"objects": "objects", "slices": ("kind",)},
    "fact_errors": {"groups": "groups", "relations": "relations", "slices": ("kind",)},
    "grounding": {"objects": "objects"},
    "question_answering": {"conversations": "conversations", "slices": ("kind",)},
}
"""Also what tests of all evaluations make one with."""

BEST: dict[str, dict[str, float]] = {
    "caption_quality": {"cider_d": 10.0, "empty": 0.0, "cut_off": 0.0},
    "pope": {"accuracy": 1.0, "adversarial_f1": 1.0, "popular_precision": 1.0, "unparsed": 0.0},
    "chair": {"chair_i": 0.0, "chair_s": 0.0, "recall": 1.0},
    "fact_errors": {"rate": 0.0, "object": 0.0, "color": 0.0, "count": 0.0, "attribute": 0.0},
    "grounding": {"hallucinated_1": 0.0, "hallucinated_4": 0.0},
    "question_answering": {"accuracy": 1.0, "number": 1.0, "f1": 1.0, "yes_rate": 0.5},
}

BLIND: dict[str, dict[str, float]] = {
    "caption_quality": {"unique": 1 / SIZE, "entropy": 0.0},
    "pope": {
        "accuracy": 0.5,
        "random_recall": 1.0,
        "random_precision": 0.5,
        "random_yes_rate": 1.0,
    },
    "chair": {"num_mentions": 2.0, "num_words": 10.0},
    "fact_errors": {"num_object": 2.0},
    "grounding": {"drop": 0.0, "drop_objects": 0.0},
    "question_answering": {"yes_no": 0.5, "yes_rate": 1.0, "other": 0.0, "num_questions": 4.0},
}

NAMES = [n for n in EVALUATIONS if EVALUATIONS[n].subject == "captions"]
ROWS = world(SIZE)


@pytest.fixture(params=NAMES)
def evaluation(request: pytest.FixtureRequest) -> Evaluation:
    return EVALUATIONS[request.param](**EXAMPLES[request.param])


def noisy(rows: pa.Table = ROWS, kind: Kind = "noisy") -> Captioner:
    return captioner(rows, kind)


def test_every_evaluation_is_in_the_tables_of_this_test() -> None:
    assert set(NAMES) == set(EXAMPLES) == set(BEST) == set(BLIND)


def test_the_tables_accept_its_scores(evaluation: Evaluation) -> None:
    metrics, items = measure_all([evaluation], noisy())
    names = metrics["metric"].to_pylist()
    assert names[0] == f"{evaluation.name}.{HEADLINES[evaluation.name]}"
    assert all(name.startswith(f"{evaluation.name}.") for name in names)
    assert set(items["metric"].to_pylist()) <= set(names)
    valid = pc.is_valid(metrics["value"]).to_pylist()
    # These answers state no relations.
    assert {n for n, v in zip(names, valid, strict=True) if not v} <= {"fact_errors.relation"}
    assert names[0] in items["metric"].to_pylist()


HEADLINES = {
    "caption_quality": "cider_d",
    "pope": "accuracy",
    "chair": "chair_i",
    "fact_errors": "rate",
    "grounding": "drop",
    "question_answering": "accuracy",
}


def test_the_order_of_the_samples_changes_nothing(evaluation: Evaluation) -> None:
    order = np.random.default_rng(8).permutation(SIZE)
    shuffled = evaluation.measure(noisy(ROWS.take(pa.array(order))))
    straight = evaluation.measure(noisy())
    assert values(shuffled) == values(straight)
    for one, two in zip(shuffled, straight, strict=True):
        assert list(one.keys) == list(two.keys)
        assert one.items is None or one.items.tolist() == two.items.tolist()


@pytest.mark.parametrize("gaps", ["nulls", "no rows"])
def test_samples_without_what_is_read_are_left_out_and_counted(
    evaluation: Evaluation, gaps: str
) -> None:
    column = next(iter(evaluation.columns), "caption")
    if evaluation.name == "caption_quality":
        column = "caption"
    rows = ROWS.to_pylist()
    gone = range(SIZE) if gaps == "no rows" else (3, 30, 44)
    for index in gone:
        rows[index][column] = None
    lacking = pa.Table.from_pylist(rows, schema=ROWS.schema)
    if gaps == "no rows":
        with pytest.raises(SetupError, match=rf"^{evaluation.name}: .*{column}"):
            evaluation.measure(noisy(lacking))
        with pytest.raises(SetupError, match=rf"^{evaluation.name}: 0 of 0 samples have"):
            evaluation.measure(noisy(ROWS.slice(0, 0)))
        return
    rest = ROWS.take(pa.array([i for i in range(SIZE) if i not in gone]))
    got, expected = (evaluation.measure(noisy(s)) for s in (lacking, rest))
    name = f"{evaluation.name}.num_left_out"
    left_out = next(s for s in got if s.metric == name)
    assert (left_out.value, left_out.num_items) == (3.0, SIZE)
    assert {**values(got), (name, ""): 0.0} == values(expected)


def test_a_missing_column_is_refused(evaluation: Evaluation) -> None:
    for column in dict.fromkeys(evaluation.columns):
        with pytest.raises(SetupError, match=rf"^{evaluation.name}: .*no column '{column}'"):
            evaluation.measure(noisy(ROWS.drop_columns([column])))


def test_one_who_knows_all_gets_the_best_scores(evaluation: Evaluation) -> None:
    got = overall(evaluation.measure(noisy(kind="perfect")))
    for metric, value in BEST[evaluation.name].items():
        assert got[f"{evaluation.name}.{metric}"] == pytest.approx(value, abs=1e-9), metric


def test_one_who_does_not_look_scores_chance(evaluation: Evaluation) -> None:
    got = overall(evaluation.measure(noisy(kind="blind")))
    for metric, value in BLIND[evaluation.name].items():
        assert got[f"{evaluation.name}.{metric}"] == pytest.approx(value, abs=1e-9), metric


def test_one_who_says_nothing_breaks_nothing(evaluation: Evaluation) -> None:
    metrics, _ = measure_all([evaluation], noisy(kind="silent"))
    assert metrics["metric"][0].as_py().endswith(HEADLINES[evaluation.name])


def test_slices_hold_what_a_set_of_their_rows_holds(evaluation: Evaluation) -> None:
    if "kind" not in evaluation.columns or evaluation.name == "caption_quality":
        return  # document frequencies are of the whole set
    whole = values(evaluation.measure(noisy()))
    given = {**EXAMPLES[evaluation.name], "slices": ()}
    one = ROWS.filter(pc.equal(ROWS["kind"], "one"))
    if evaluation.name == "pope":  # who takes its statistics from the set
        return
    alone = overall(EVALUATIONS[evaluation.name](**given).measure(noisy(one)))
    headline = f"{evaluation.name}.{HEADLINES[evaluation.name]}"
    assert whole[headline, "kind=one"] == pytest.approx(alone[headline])


def test_the_same_question_is_asked_once() -> None:
    asked: list[tuple[int, str]] = []
    base = noisy()

    def generate(rows: Any, prompts: Any, most: int) -> Any:
        asked.extend(zip(rows, prompts, strict=True))
        return base.generate(rows, prompts, most)

    subject = remembering(dataclasses.replace(base, generate=generate))
    evaluations = [EVALUATIONS[n](**EXAMPLES[n]) for n in ("chair", "fact_errors", "grounding")]
    direct = [overall(e.measure(base)) for e in evaluations]
    assert [overall(e.measure(subject)) for e in evaluations] == direct
    assert len(asked) == len(set(asked)) == SIZE
