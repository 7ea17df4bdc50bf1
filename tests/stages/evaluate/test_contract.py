"""One contract for every registered evaluation; parameters that one needs are in EXAMPLES.

What takes captioners (subject "captions") is measured in test_captions_contract.
"""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tests.stages.evaluate.subjects import (
    Vectors,
    embeddings,
    overall,
    random_unit,
    unit,
    values,
    vector_of,
)
from tests.stages.evaluate.test_captions_contract import EXAMPLES as CAPTION_EXAMPLES
from winnow.contracts.errors import SetupError
from winnow.contracts.parameters import parameters_model, validate
from winnow.contracts.registry import EVALUATIONS
from winnow.contracts.trial import Embeddings, Evaluation
from winnow.stages.evaluate._tables import measure_all

SIZE = 120
CLASSES = [f"class {i}" for i in range(8)]

EXAMPLES: dict[str, dict[str, Any]] = {
    "retrieval": {"slices": ("kind",)},
    "zero_shot": {"label": "kind", "templates": ("{}",), "slices": ("kind",)},
    "swaps": {"wrong_captions": ("wrong", "rare"), "slices": ("kind",)},
}

PERFECT = {
    "retrieval": ("retrieval.mean_recall@1", 1.0),
    "zero_shot": ("zero_shot.accuracy@1", 1.0),
    "swaps": ("swaps.mean", 1.0),
    "modality_gap": ("modality_gap.centroid_distance", 0.0),
}

COLLAPSED = {
    "retrieval": {f"retrieval.image_to_text_recall@{k}": k / SIZE for k in (1, 5, 10)},
    "zero_shot": {
        "zero_shot.accuracy@1": 1 / 8,
        "zero_shot.accuracy@5": 5 / 8,
        "zero_shot.mean_per_class_accuracy": 1 / 8,
    },
    "swaps": {"swaps.mean": 0.5, "swaps.rare": 0.5},
    "modality_gap": {
        "modality_gap.mean_recall@1_at_shift_0": 1 / SIZE,
        "modality_gap.linear_separability": 0.5,
    },
}

ALL = [n for n in EVALUATIONS if EVALUATIONS[n].__module__.startswith("winnow.stages.")]
NAMES = [n for n in ALL if EVALUATIONS[n].subject == "embeddings"]


@pytest.fixture(params=NAMES)
def evaluation(request: pytest.FixtureRequest) -> Evaluation:
    return EVALUATIONS[request.param](**EXAMPLES.get(request.param, {}))


@pytest.fixture(params=ALL)
def any_evaluation(request: pytest.FixtureRequest) -> Evaluation:
    examples = {**EXAMPLES, **CAPTION_EXAMPLES}
    return EVALUATIONS[request.param](**examples.get(request.param, {}))


def kinds() -> list[str]:
    return [CLASSES[i % 8] for i in range(SIZE)]


def columns() -> dict[str, Any]:
    captions = [f"{kind} number {i}" for i, kind in enumerate(kinds())]
    return {
        "captions": captions,
        "kind": kinds(),
        "wrong": [f"not {caption}" for caption in captions],
        "rare": [f"rare {i}" if i % 3 == 0 else None for i in range(SIZE)],
    }


def noisy(**changes: Any) -> Embeddings:
    """Images near their captions and classes."""
    text = np.stack([vector_of(caption) for caption in columns()["captions"]])
    kind = np.stack([vector_of(kind) for kind in kinds()])
    image = unit(text + 0.8 * kind + 1.2 * random_unit(SIZE, 5))
    return embeddings(image, text, **{**columns(), **changes})


def perfect(name: str) -> Embeddings:
    """Images at their captions, or at their classes' names for zero-shot."""
    text = np.stack([vector_of(caption) for caption in columns()["captions"]])
    image = np.stack([vector_of(kind) for kind in kinds()]) if name == "zero_shot" else text
    return embeddings(image, text, **columns())


def rearranged(subject: Embeddings, order: Any) -> Embeddings:
    return dataclasses.replace(
        subject,
        vectors={name: vectors[order] for name, vectors in subject.vectors.items()},
        rows=subject.rows.take(pa.array(order)),
    )


def test_every_evaluation_is_in_the_tables_of_this_test() -> None:
    assert set(NAMES) == set(PERFECT) == set(COLLAPSED)
    assert set(ALL) == {*NAMES, *CAPTION_EXAMPLES}


def test_parameters_are_typed_and_strict(any_evaluation: Evaluation) -> None:
    evaluation = any_evaluation
    factory = type(evaluation)
    fields = {f.name for f in dataclasses.fields(evaluation)}
    assert set(parameters_model(factory).model_fields) == fields
    given = {**EXAMPLES, **CAPTION_EXAMPLES}.get(evaluation.name, {})
    untyped = {k: list(v) if isinstance(v, tuple) else v for k, v in given.items()}
    assert factory(**validate(factory, untyped)) == evaluation
    with pytest.raises(ValueError, match="Extra inputs"):
        validate(factory, {**untyped, "no_such_parameter": 1})


def test_it_survives_pickling(any_evaluation: Evaluation) -> None:
    assert pickle.loads(pickle.dumps(any_evaluation)) == any_evaluation


def test_the_tables_accept_its_scores(evaluation: Evaluation) -> None:
    metrics, items = measure_all([evaluation], noisy())
    names = metrics["metric"].to_pylist()
    assert names[0] == PERFECT[evaluation.name][0]
    assert all(name.startswith(f"{evaluation.name}.") for name in names)
    assert set(items["metric"].to_pylist()) <= set(names)
    assert pc.all(pc.is_valid(metrics["value"])).as_py()


def test_slices_hold_all_samples_between_them(evaluation: Evaluation) -> None:
    scores = evaluation.measure(noisy())
    headline = scores[0]
    parts = [s for s in scores if s.metric == headline.metric and s.slice]
    if "kind" not in evaluation.columns:
        assert not parts
        return
    assert {s.slice for s in parts} == {f"kind={name}" for name in CLASSES}
    if evaluation.name != "swaps":  # there, slices count tests and weigh columns
        assert sum(s.num_items for s in parts) == headline.num_items
        weighted = sum(s.value * s.num_items for s in parts) / headline.num_items
        assert weighted == pytest.approx(headline.value)


def test_the_same_subject_gives_the_same_scores(evaluation: Evaluation) -> None:
    once, again = evaluation.measure(noisy()), evaluation.measure(noisy())
    assert values(once) == values(again)
    for one, two in zip(once, again, strict=True):
        assert list(one.keys) == list(two.keys)
        assert (one.items is None) == (two.items is None)
        assert one.items is None or one.items.tolist() == two.items.tolist()


def test_the_order_of_the_samples_changes_nothing(evaluation: Evaluation) -> None:
    order = np.random.default_rng(8).permutation(SIZE)
    shuffled = evaluation.measure(rearranged(noisy(), order))
    straight = evaluation.measure(noisy())
    assert values(shuffled) == values(straight)
    assert [list(s.keys) for s in shuffled] == [list(s.keys) for s in straight]


def test_samples_that_lack_a_modality_are_left_out_and_counted(evaluation: Evaluation) -> None:
    lacking = noisy()
    lacking.vectors["image"][[3, 77]] = np.nan
    lacking.vectors["image"][50, 2] = np.inf
    rest = rearranged(noisy(), [i for i in range(SIZE) if i not in (3, 50, 77)])
    got, expected = (evaluation.measure(s) for s in (lacking, rest))
    name = f"{evaluation.name}.num_left_out"
    left_out = next(s for s in got if s.metric == name)
    assert (left_out.value, left_out.num_items) == (3.0, SIZE)
    assert {**values(got), (name, ""): 0.0} == values(expected)


@pytest.mark.parametrize("empty", ["no rows", "no images"])
def test_an_empty_set_is_refused(evaluation: Evaluation, empty: str) -> None:
    subject = noisy()
    if empty == "no rows":
        subject = rearranged(subject, np.array([], np.int64))
    else:
        subject.vectors["image"][:] = np.nan
    with pytest.raises(
        SetupError, match=rf"^{evaluation.name}: 0 of (0|{SIZE}) samples have image"
    ):
        evaluation.measure(subject)


def test_a_missing_column_is_refused(evaluation: Evaluation) -> None:
    for column in dict.fromkeys(evaluation.columns):
        subject = noisy()
        lacking = dataclasses.replace(subject, rows=subject.rows.drop_columns([column]))
        with pytest.raises(SetupError, match=rf"^{evaluation.name}: .*no column '{column}'"):
            evaluation.measure(lacking)


def test_perfect_vectors_give_the_maximum(evaluation: Evaluation) -> None:
    metric, value = PERFECT[evaluation.name]
    scores = evaluation.measure(perfect(evaluation.name))
    assert overall(scores)[metric] == pytest.approx(value, abs=1e-9)
    for score in scores:
        if score.higher_is_better and "recall" in score.metric or "accuracy" in score.metric:
            assert score.value == pytest.approx(1.0)


@pytest.mark.parametrize("noise", [0.0, 1e-8])
def test_collapsed_vectors_give_chance(evaluation: Evaluation, noise: float) -> None:
    """Equal up to rounding: which of two cosines is larger in the last bit means nothing."""
    one = vector_of("one")

    def near(rows: int, seed: int) -> Vectors:
        return unit(one + noise * random_unit(rows, seed))

    subject = embeddings(
        near(SIZE, 1), near(SIZE, 2), embed_texts=lambda texts: near(len(texts), 3), **columns()
    )
    got = overall(evaluation.measure(subject))
    for metric, value in COLLAPSED[evaluation.name].items():
        assert got[metric] == pytest.approx(value, abs=1e-9), metric


def test_random_vectors_give_about_chance() -> None:
    makers: dict[str, Callable[[], Evaluation]] = {n: EVALUATIONS[n] for n in NAMES}
    subject = embeddings(random_unit(SIZE), random_unit(SIZE, 1), **columns())
    for name, metric, chance in (
        ("retrieval", "retrieval.mean_recall@1", 1 / SIZE),
        ("zero_shot", "zero_shot.accuracy@1", 1 / 8),
        ("swaps", "swaps.wrong", 0.5),
    ):
        got = overall(makers[name](**EXAMPLES[name]).measure(subject))
        assert got[metric] == pytest.approx(chance, abs=4 * (chance * (1 - chance) / SIZE) ** 0.5)
