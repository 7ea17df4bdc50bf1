"""Zero-shot accuracy against loops and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from tests.stages.evaluate.subjects import (
    DIM,
    embed_by_hash,
    embeddings,
    overall,
    random_unit,
    unit,
    values,
    vector_of,
)
from winnow.contracts.errors import RecipeError, SetupError
from winnow.stages.evaluate.zero_shot import OPENAI_IMAGENET, ZeroShot, class_vectors, written

CLASSES = ("apple", "boat", "cat", "dog", "egg", "fox", "goat")
TEMPLATES = ("a {}", "the {} and {{}}", "{}")


def naive_class_vectors() -> np.ndarray:
    found = []
    for name in CLASSES:
        total = np.zeros(DIM)
        for text in (f"a {name}", f"the {name} and {{{name}}}", name):
            vector = vector_of(text).astype(float)
            total += vector / np.linalg.norm(vector)
        mean = total / len(TEMPLATES)
        found.append(mean / np.linalg.norm(mean))
    return np.array(found)


def labelled(size: int = 140) -> tuple[np.ndarray, list[str]]:
    """Images near their classes, unbalanced."""
    random = np.random.default_rng(0)
    numbers = np.sort(random.integers(0, 7, size) * random.integers(0, 2, size))
    image = unit(naive_class_vectors()[numbers] + 0.45 * random.normal(size=(size, DIM)))
    return image, [CLASSES[i] for i in numbers]


def test_class_vectors_are_those_of_a_loop() -> None:
    got = class_vectors(embed_by_hash, CLASSES, TEMPLATES)
    np.testing.assert_allclose(got, naive_class_vectors(), atol=1e-6)


def test_templates_that_cancel_out_give_no_class_its_vector() -> None:
    def opposite(texts: list[str]) -> np.ndarray:
        return np.array([[1.0, 0.0] if "not" in t else [-1.0, 0.0] for t in texts], np.float32)

    assert class_vectors(opposite, ["a", "b"], ["{}", "not {}"]).tolist() == [[0, 0], [0, 0]]


def test_openai_s_templates_are_open_clip_s() -> None:
    import open_clip

    found = written([OPENAI_IMAGENET])
    assert len(found) == 80
    assert [t.replace("{}", "cat") for t in found] == [
        template("cat") for template in open_clip.OPENAI_IMAGENET_TEMPLATES
    ]
    assert written(("a {}.",)) == ("a {}.",)
    assert ZeroShot(label="x", templates=(OPENAI_IMAGENET,)).templates == (OPENAI_IMAGENET,)
    with pytest.raises(RecipeError, match="has no {}"):
        ZeroShot(label="x", templates=(OPENAI_IMAGENET, "a {}."))


def test_accuracies_are_scikit_learns() -> None:
    image, labels = labelled()
    evaluation = ZeroShot(label="thing", templates=TEMPLATES, top=(1, 3), classes=CLASSES[::-1])
    scores = evaluation.measure(embeddings(image, random_unit(140), thing=labels))
    truth = np.array([CLASSES.index(name) for name in labels])
    similar = image @ naive_class_vectors().T
    got = overall(scores)
    for at in (1, 3):
        expected = top_k_accuracy_score(truth, similar, k=at, labels=np.arange(7))
        assert got[f"zero_shot.accuracy@{at}"] == pytest.approx(expected)
    assert 0.3 < got["zero_shot.accuracy@1"] < 0.95
    balanced = balanced_accuracy_score(truth, similar.argmax(axis=1))
    assert got["zero_shot.mean_per_class_accuracy"] == pytest.approx(balanced)
    assert abs(balanced - got["zero_shot.accuracy@1"]) > 0.01
    assert got["zero_shot.num_classes"] == 7
    assert scores[0].metric == "zero_shot.accuracy@1"
    assert scores[0].items.tolist() == (similar.argmax(axis=1) == truth).tolist()


def test_rows_without_label_vector_or_known_class_are_left_out_and_counted() -> None:
    image, labels = labelled(60)
    image[3] = np.nan
    names = [
        None if i == 0 else " " if i == 1 else "zebra" if i == 2 else n
        for i, n in enumerate(labels)
    ]
    evaluation = ZeroShot(label="thing", templates=TEMPLATES, classes=CLASSES)
    scores = evaluation.measure(embeddings(image, random_unit(60), thing=names))
    rest = evaluation.measure(embeddings(image[4:], random_unit(56), thing=labels[4:]))
    assert overall(scores)["zero_shot.num_left_out"] == 4
    assert overall(scores)["zero_shot.accuracy@1"] == overall(rest)["zero_shot.accuracy@1"]
    assert scores[0].num_items == 56
    left_out = next(s for s in scores if s.metric == "zero_shot.num_left_out")
    assert left_out.num_items == 60


def test_classes_default_to_the_labels() -> None:
    image, labels = labelled()
    given = ZeroShot(label="thing", templates=TEMPLATES, classes=CLASSES)
    taken = ZeroShot(label="thing", templates=TEMPLATES)
    subject = embeddings(image, random_unit(140), thing=labels)
    assert set(labels) == set(CLASSES)
    assert overall(taken.measure(subject)) == overall(given.measure(subject))


def test_slices() -> None:
    image, labels = labelled()
    source = ["web" if i % 3 else "lab" for i in range(140)]
    evaluation = ZeroShot(label="thing", templates=TEMPLATES, slices=("thing", "source"))
    scores = evaluation.measure(embeddings(image, random_unit(140), thing=labels, source=source))
    got = values(scores)
    predicted = (image @ naive_class_vectors().T).argmax(axis=1)
    right = np.array([CLASSES[p] == n for p, n in zip(predicted, labels, strict=True)])
    cats = right[[n == "cat" for n in labels]]
    lab = right[[s == "lab" for s in source]]
    assert got["zero_shot.accuracy@1", "thing=cat"] == pytest.approx(cats.mean())
    assert got["zero_shot.accuracy@1", "source=lab"] == pytest.approx(lab.mean())
    assert evaluation.columns == ("thing", "thing", "source")


def test_numbers_can_be_labels() -> None:
    image = np.stack([vector_of(str(i % 3)) for i in range(30)])
    evaluation = ZeroShot(label="digit", templates=("{}",), top=(1,))
    scores = evaluation.measure(
        embeddings(image, random_unit(30), digit=[i % 3 for i in range(30)])
    )
    assert overall(scores)["zero_shot.accuracy@1"] == 1.0


def test_too_few_classes() -> None:
    image, labels = labelled()
    subject = embeddings(image, random_unit(140), thing=labels, one=["a"] * 140)
    got = overall(ZeroShot(label="thing", top=(1, 7)).measure(subject))
    assert got["zero_shot.accuracy@7"] is None
    with pytest.raises(SetupError, match="1 classes in 'one'; accuracy@1 takes 2"):
        ZeroShot(label="one").measure(subject)
    with pytest.raises(SetupError, match="no sample's 'thing' is one of"):
        ZeroShot(label="thing", classes=("x", "y")).measure(subject)
    with pytest.raises(SetupError, match=r"'many' holds list<.*use one of texts"):
        many = embeddings(image, random_unit(140), many=[["a"]] * 140)
        ZeroShot(label="many").measure(many)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"label": ""}, "label="),
        ({"label": "x", "templates": ("a photo",)}, r"'a photo' has no \{\}"),
        ({"label": "x", "templates": ()}, "1 or more different names"),
        ({"label": "x", "classes": ("a", "a ")}, "classes="),
        ({"label": "x", "top": (0,)}, "top="),
    ],
)
def test_bad_parameters_are_refused(parameters: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        ZeroShot(**parameters)
