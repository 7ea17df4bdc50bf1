"""Swap tests against a loop."""

from __future__ import annotations

import numpy as np
import pytest

from tests.stages.evaluate.subjects import embeddings, overall, random_unit, unit, values, vector_of
from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.trial import Embeddings
from winnow.stages.evaluate.swaps import Swaps

SIZE = 50
CAPTIONS = [f"caption {i}" for i in range(SIZE)]
COLOUR = [f"colour {i % 30}" if i % 2 else None for i in range(SIZE)]
COUNT = [f"count {i}" if i % 3 == 0 else None for i in range(SIZE)]
KIND = ["a" if i < 20 else "b" for i in range(SIZE)]


def subject() -> Embeddings:
    text = np.stack([vector_of(caption) for caption in CAPTIONS])
    image = unit(text + 3 * random_unit(SIZE, 4))
    return embeddings(image, text, captions=CAPTIONS, colour=COLOUR, count=COUNT, kind=KIND)


def passed(row: int, wrong: str) -> bool:
    image = subject().vectors["image"][row].astype(float)
    return bool(image @ vector_of(CAPTIONS[row]) > image @ vector_of(wrong))


def test_accuracies_are_those_of_a_loop() -> None:
    scores = Swaps(wrong_captions=("colour", "count")).measure(subject())
    colour = {i: passed(i, w) for i, w in enumerate(COLOUR) if w}
    count = {i: passed(i, w) for i, w in enumerate(COUNT) if w}
    got = {score.metric: score for score in scores}
    assert got["swaps.colour"].items.tolist() == list(colour.values())
    assert got["swaps.count"].value == pytest.approx(np.mean(list(count.values())))
    assert 0 < got["swaps.count"].value < 1
    headline = scores[0]
    means = [np.mean(list(colour.values())), np.mean(list(count.values()))]
    assert headline.metric == "swaps.mean"
    assert headline.value == pytest.approx(np.mean(means))
    tested = sorted({*colour, *count})
    assert list(headline.keys) == [f"k{i:05d}" for i in tested]
    expected = [
        len(tested) / 2 * (colour.get(i, 0) / len(colour) + count.get(i, 0) / len(count))
        for i in tested
    ]
    assert headline.items.tolist() == pytest.approx(expected)
    assert got["swaps.num_left_out"].value == SIZE - len(tested)
    assert got["swaps.num_left_out"].num_items == SIZE


def test_items_of_the_headline_are_the_samples_own_means_where_all_have_all_tests() -> None:
    one = [f"one {i}" for i in range(SIZE)]
    two = [f"two {i}" for i in range(SIZE)]
    base = subject()
    full = embeddings(
        base.vectors["image"], base.vectors["text"], captions=CAPTIONS, one=one, two=two
    )
    headline = Swaps(wrong_captions=("one", "two")).measure(full)[0]
    expected = [(passed(i, one[i]) + passed(i, two[i])) / 2 for i in range(SIZE)]
    assert headline.items.tolist() == pytest.approx(expected)


def test_slices() -> None:
    got = values(Swaps(wrong_captions=("colour", "count"), slices=("kind",)).measure(subject()))
    for kind, rows in (("a", range(20)), ("b", range(20, SIZE))):
        colour = np.mean([passed(i, COLOUR[i]) for i in rows if COLOUR[i]])
        count = np.mean([passed(i, COUNT[i]) for i in rows if COUNT[i]])
        assert got["swaps.colour", f"kind={kind}"] == pytest.approx(colour)
        assert got["swaps.mean", f"kind={kind}"] == pytest.approx((colour + count) / 2)


def test_a_slice_that_lacks_a_test_has_no_mean() -> None:
    base = subject()
    count = [text if i < 20 else None for i, text in enumerate(COUNT)]
    lacking = embeddings(
        base.vectors["image"], base.vectors["text"], captions=CAPTIONS, colour=COLOUR, count=count,
        kind=KIND,
    )  # fmt: skip
    scores = Swaps(wrong_captions=("colour", "count"), slices=("kind",)).measure(lacking)
    assert ("swaps.mean", "kind=a") in values(scores)
    assert ("swaps.mean", "kind=b") not in values(scores)
    assert ("swaps.colour", "kind=b") in values(scores)


def test_ties_count_a_half_and_equal_captions_are_no_test() -> None:
    image = random_unit(4)
    wrong = ["x", "x", " caption 2 ", None]
    text = np.stack([vector_of("x")] * 2 + [vector_of("y")] * 2)
    scores = Swaps(wrong_captions=("w",)).measure(embeddings(image, text, w=wrong))
    by_name = {score.metric: score for score in scores}
    assert by_name["swaps.w"].items.tolist() == [0.5, 0.5]
    assert by_name["swaps.num_left_out"].value == 2


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(SetupError, match="no column 'swap_attribute'"):
        Swaps(wrong_captions=("swap_attribute",)).measure(subject())
    same = embeddings(random_unit(3), random_unit(3), w=["caption 0", None, None])
    with pytest.raises(SetupError, match="no caption in column 'w' differs"):
        Swaps(wrong_captions=("w",)).measure(same)


def test_columns_and_bad_parameters() -> None:
    assert Swaps(wrong_captions=("w",), slices=("kind",)).columns == ("w", "kind")
    with pytest.raises(RecipeError, match="wrong_captions"):
        Swaps(wrong_captions=())
    with pytest.raises(RecipeError, match="two different modalities"):
        Swaps(wrong_captions=("w",), modality="text")


def test_the_mean_of_one_column_is_the_column() -> None:
    got = overall(Swaps(wrong_captions=("colour",)).measure(subject()))
    assert got["swaps.mean"] == pytest.approx(got["swaps.colour"])
