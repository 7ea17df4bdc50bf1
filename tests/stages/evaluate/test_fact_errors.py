"""Fact errors on the paragraphs of scenes, true ones and ones with known mistakes."""

from __future__ import annotations

import dataclasses

import pyarrow as pa
import pytest

from tests.stages.evaluate.subjects import overall
from tests.stages.evaluate.test_chair import says
from winnow.contracts.errors import SetupError
from winnow.stages._objects import Vocabulary
from winnow.stages.evaluate._statements import COLORS, Relation, statements
from winnow.stages.evaluate.fact_errors import FactErrors
from winnow.stages.sources.scenes import SceneSource

NAMES = Vocabulary(["cat", "dog", "hot dog", "bus"])


def facts_of(text: str) -> list[tuple[str, int | None, str | None]]:
    return [(s.name, s.count, s.color) for s in statements(text, NAMES, COLORS)]


def test_statements() -> None:
    assert facts_of("Two small red cats, an orange bus and the dogs.") == [
        ("cat", 2, "red"), ("bus", 1, "orange"), ("dog", None, None),
    ]  # fmt: skip
    assert facts_of("There are no cats; 12 hot dogs, red is a dog") == [
        ("hot dog", 12, None), ("dog", 1, None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "relation"),
    [
        ("A cat to the left of two red dogs.", ("cat", "left of", "dog")),
        ("The cats are below the dog", ("cat", "below", "dog")),
        ("a cat on top of a small bus", ("cat", "on", "bus")),
        ("A cat. Above a dog.", None),
        ("a cat and a dog above a bus", None),
        ("a cat is not above a dog", None),
    ],
)
def test_relations(text: str, relation: tuple[str, str, str] | None) -> None:
    first = statements(text, NAMES, COLORS)[0].relation
    assert first == (relation and Relation(*relation))


ROWS = pa.Table.from_pylist(
    [
        {
            "key": key,
            "caption": "",
            "groups": [
                {"name": "cat", "count": 2, "color": "red"},
                {"name": "dog", "count": 1, "color": None},
            ],
            "relations": [{"subject": "cat", "predicate": "on", "object": "dog"}],
        }
        for key in ("a", "b")
    ]
)


def test_each_kind_of_mistake_counts_as_itself() -> None:
    answers = [
        "Two red cats above a blue dog. The dog is above the cats.",
        "A blue cat. Three dogs. A bus to the left of a cat. The cats are above the dog.",
    ]
    evaluation = FactErrors(groups="groups", relations="relations")
    got = overall(evaluation.measure(says(answers, ROWS)))
    bus = dataclasses.replace(evaluation, colors=("blue",))  # red is known from the column
    assert overall(bus.measure(says(answers, ROWS))) == got
    expected = {
        "object": 0 / 9,  # "bus" is no known name
        "color": 1 / 2,  # blue for red; the dog's own color is not known
        "count": 3 / 5,  # "a" cat twice, three dogs
        "relation": 1 / 3,  # below follows from on
        "attribute": 4 / 7,
        "rate": 5 / 19,
    }
    for name, value in expected.items():
        assert got[f"fact_errors.{name}"] == pytest.approx(value), name
    assert got["fact_errors.num_count"] == 5 / 2


def test_scenes_paragraphs_are_true_and_false_of_other_scenes() -> None:
    source = SceneSource(
        num_rows=60,
        objects=(6, 10),
        weights="zipf",
        captions="paragraph",
        num_concepts=80,
        noise={},
    )
    table = pa.Table.from_batches([b for f in source.files() for b in source.read(f)])
    keys = [f"{i:03d}" for i in range(60)]
    rows = pa.table(
        {
            "key": keys,
            "caption": table["text"],
            **{n: table[n] for n in ("truth_groups", "truth_relations")},
        }
    )
    texts = table["text"].to_pylist()
    evaluation = FactErrors(groups="truth_groups", relations="truth_relations")
    got = overall(evaluation.measure(says(texts, rows)))
    assert got["fact_errors.rate"] == 0
    num_groups = sum(map(len, table["truth_groups"].to_pylist()))
    # Every group is introduced with its count, once.
    assert got["fact_errors.num_count"] == pytest.approx(num_groups / 60)
    painted = sum(g["color"] is not None for row in table["truth_groups"].to_pylist() for g in row)
    assert got["fact_errors.num_color"] == pytest.approx(painted / 60)
    assert got["fact_errors.num_relation"] > 1
    wrong = overall(evaluation.measure(says([*texts[1:], texts[0]], rows)))
    assert wrong["fact_errors.object"] > 0.5
    for kind, most in (("color", 1.0), ("count", 0.6), ("relation", 1.0)):
        assert 0 < wrong[f"fact_errors.{kind}"] <= most


def test_a_column_of_another_type_is_refused() -> None:
    with pytest.raises(SetupError, match="'caption' holds string; use list<struct<name"):
        FactErrors(groups="caption").measure(
            says(["", ""], ROWS.set_column(1, "caption", [["x"] * 2]))
        )
