"""Recall@k against loops, scikit-learn and all orders of the tied."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score

from tests.stages.evaluate.subjects import embeddings, overall, random_unit, unit, values
from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.parameters import result_parameters
from winnow.stages.evaluate._ranking import Places, hits, rank_relevant
from winnow.stages.evaluate._rows import caption_groups, shuffled
from winnow.stages.evaluate.retrieval import Retrieval


def noisy_pairs(size: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Texts near their images, so that recall is neither 0 nor 1."""
    image = random_unit(size, seed)
    return image, unit(image + 1.1 * random_unit(size, seed + 1))


def naive_recall(queries: np.ndarray, gallery: np.ndarray, captions: list[str], at: int) -> list:
    found = []
    for row, query in enumerate(queries):
        scores = [float(np.dot(query.astype(float), entry.astype(float))) for entry in gallery]
        nearest = sorted(range(len(gallery)), key=lambda j: -scores[j])[:at]
        found.append(any(captions[j].strip() == captions[row].strip() for j in nearest))
    return found


def test_recall_with_repeated_captions_is_that_of_a_loop() -> None:
    image, text = noisy_pairs()
    captions = [f"caption {i // 2 % 20}" + " " * (i % 3) for i in range(60)]
    scores = Retrieval().measure(embeddings(image, text, captions=captions))
    got = {score.metric: score for score in scores}
    for at in (1, 5, 10):
        there = naive_recall(image, text, captions, at)
        back = naive_recall(text, image, captions, at)
        assert got[f"retrieval.image_to_text_recall@{at}"].items.tolist() == there
        assert got[f"retrieval.text_to_image_recall@{at}"].items.tolist() == back
        if at == 1:
            assert 0.2 < np.mean(there) < 0.95
            headline = scores[0]
            assert headline.metric == "retrieval.mean_recall@1"
            assert headline.items.tolist() == [
                (a + b) / 2 for a, b in zip(there, back, strict=True)
            ]
    assert got["retrieval.num_captions"].value == 20


def test_recall_without_repeats_is_scikit_learns() -> None:
    image, text = noisy_pairs(80, 5)
    got = overall(Retrieval(at=(1, 3, 7)).measure(embeddings(image, text)))
    for at in (1, 3, 7):
        expected = top_k_accuracy_score(np.arange(80), image @ text.T, k=at)
        assert got[f"retrieval.image_to_text_recall@{at}"] == pytest.approx(expected)


@pytest.mark.parametrize("max_cells", [1, 60, 7 * 60, 10**6])
def test_the_size_of_a_block_changes_nothing(max_cells: int) -> None:
    image, text = noisy_pairs()
    groups = np.random.default_rng(1).integers(0, 15, 60)
    whole = rank_relevant(image, text, groups)
    cut = rank_relevant(image, text, groups, max_cells=max_cells)
    for name in ("num_better", "num_tied", "num_tied_relevant"):
        assert getattr(cut, name).tolist() == getattr(whole, name).tolist()


def test_a_tie_counts_as_the_mean_over_all_orders() -> None:
    for better, others, relevant in itertools.product(range(3), range(4), (1, 2)):
        entries = [True] * relevant + [False] * others
        orders = list(itertools.permutations(entries))
        places = Places(
            num_better=np.array([better]),
            num_tied=np.array([others + relevant]),
            num_tied_relevant=np.array([relevant]),
        )
        for at in range(1, 7):
            expected = np.mean([any(order[: max(0, at - better)]) for order in orders])
            assert hits(places, at)[0] == pytest.approx(expected)


def test_equal_images_share_the_hit() -> None:
    """Two equal images with different captions: either may come first."""
    image = np.repeat(random_unit(10, 3), 2, axis=0)
    text = image.copy()
    got = overall(Retrieval(at=(1, 2)).measure(embeddings(image, text)))
    assert got["retrieval.text_to_image_recall@1"] == pytest.approx(0.5)
    assert got["retrieval.text_to_image_recall@2"] == pytest.approx(1.0)


def test_chance_is_what_random_orders_score() -> None:
    captions = [f"c{i % 9}" for i in range(30)] + ["x"] * 10
    scores = Retrieval(at=(2, 5)).measure(
        embeddings(random_unit(40), random_unit(40, 1), captions=captions)
    )
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(400):
        for row in range(40):
            picked = random.permutation(40)[:2]
            drawn.append(any(captions[j] == captions[row] for j in picked))
    assert overall(scores)["retrieval.chance@2"] == pytest.approx(np.mean(drawn), abs=0.015)


def test_the_gallery_is_the_first_rows_by_key() -> None:
    image, text = noisy_pairs()
    keys = [f"k{i:02d}" for i in np.random.default_rng(2).permutation(60)]
    first = np.argsort(keys)[:25]
    limited = Retrieval(gallery=25).measure(embeddings(image, text, keys=keys))
    alone = Retrieval().measure(
        embeddings(
            image[first],
            text[first],
            keys=[keys[i] for i in first],
            captions=[f"caption {i}" for i in first],
        )
    )
    for name, value in overall(alone).items():
        if name != "retrieval.num_left_out":
            assert overall(limited)[name] == value


def test_slices_are_means_of_items_over_the_whole_gallery() -> None:
    image, text = noisy_pairs(90)
    language = [("en", "de", None)[i % 3] for i in range(90)]
    things = [["cat", "dog"] if i % 2 else ["cat"] for i in range(90)]
    small = [i < 5 for i in range(90)]
    evaluation = Retrieval(slices=("language", "things", "small"))
    scores = evaluation.measure(
        embeddings(image, text, language=language, things=things, small=small)
    )
    got = values(scores)
    hit = naive_recall(image, text, [f"caption {i}" for i in range(90)], 1)
    metric = "retrieval.image_to_text_recall@1"
    german = [hit[i] for i in range(90) if language[i] == "de"]
    dogs = [hit[i] for i in range(90) if "dog" in things[i]]
    assert got[metric, "language=de"] == pytest.approx(np.mean(german))
    assert got[metric, "things=dog"] == pytest.approx(np.mean(dogs))
    assert got[metric, "things=cat"] == pytest.approx(np.mean(hit))
    assert got[metric, "small=true"] == pytest.approx(np.mean(hit[:5]))
    assert (metric, "language=None") not in got
    headline = "retrieval.mean_recall@1"
    large = ("language=en", "language=de", "things=cat", "things=dog", "small=false")
    assert got["retrieval.worst_slice", ""] == min(got[headline, name] for name in large)


def test_only_the_largest_slices_are_kept() -> None:
    image, text = noisy_pairs(40)
    source = ["a"] * 10 + ["b"] * 20 + ["c"] * 10
    scores = Retrieval(slices=("source",), max_slices=2).measure(
        embeddings(image, text, source=source)
    )
    assert {s.slice for s in scores} == {"", "source=a", "source=b"}


def test_other_pairs_of_modalities() -> None:
    image, audio = noisy_pairs()
    subject = embeddings(image, random_unit(60, 9))
    subject.vectors["audio"] = audio  # type: ignore[index]
    got = overall(Retrieval(pair=("audio", "image")).measure(subject))
    expected = np.mean(naive_recall(audio, image, [f"caption {i}" for i in range(60)], 1))
    assert got["retrieval.audio_to_image_recall@1"] == pytest.approx(expected)


def test_a_cut_off_beyond_the_gallery_has_no_value() -> None:
    image, text = noisy_pairs(5)
    got = overall(Retrieval(at=(1, 5)).measure(embeddings(image, text)))
    assert got["retrieval.image_to_text_recall@5"] is None
    with pytest.raises(SetupError, match="5 of 5 samples have image and text; it takes 6"):
        Retrieval(at=(5,)).measure(embeddings(image, text))


def test_rows_without_a_caption_are_relevant_to_themselves_alone() -> None:
    assert caption_groups(["a", None, " a", "", None]).tolist() == [0, 1, 0, 2, 3]


def test_what_cannot_be_measured_is_refused() -> None:
    image, text = noisy_pairs(6)
    with pytest.raises(SetupError, match="no audio vectors; it has image, text"):
        Retrieval(pair=("audio", "text")).measure(embeddings(image, text))
    with pytest.raises(SetupError, match="same key"):
        Retrieval().measure(embeddings(image, text, keys=["a", "b", "c", "d", "e", "a"]))
    with pytest.raises(SetupError, match="no column 'langage'; did you mean 'language'"):
        Retrieval(slices=("langage",)).measure(embeddings(image, text, language=["en"] * 6))
    with pytest.raises(SetupError, match="'language' is null in all 6"):
        Retrieval(slices=("language",)).measure(embeddings(image, text, language=[None] * 6))
    with pytest.raises(SetupError, match=r"shape \(5, 12\) for 6 samples"):
        broken = embeddings(image, text)
        broken.vectors["text"] = text[:5]  # type: ignore[index]
        Retrieval().measure(broken)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"at": ()}, "at="),
        ({"at": (5, 1)}, "rising whole numbers"),
        ({"pair": ("image", "image")}, "two different modalities"),
        ({"gallery": 1}, "gallery=1; use 2"),
        ({"slices": ("a", "a")}, "different names"),
        ({"max_slices": 0}, "max_slices=0"),
    ],
)
def test_bad_parameters_are_refused(parameters: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Retrieval(**parameters)


def test_permuted_pairs_are_those_of_a_loop() -> None:
    image, text = noisy_pairs(40, 3)
    captions = [f"caption {i // 2}" for i in range(40)]
    subject = embeddings(image, text, captions=captions)
    got = overall(Retrieval(at=(1, 5), permutations=40).measure(subject))
    keys = subject.rows["key"].to_pylist()
    order = sorted(range(40), key=keys.__getitem__)
    a, b, said = image[order], text[order], [captions[i] for i in order]
    for at in (1, 5):
        found = []
        for number in range(40):
            moved = b[shuffled([keys[i] for i in order], number, "retrieval.permutations")]
            there, back = naive_recall(a, moved, said, at), naive_recall(moved, a, said, at)
            found.append((np.mean(there) + np.mean(back)) / 2)
        assert got[f"retrieval.permuted_mean_recall@{at}"] == pytest.approx(np.mean(found))
        upper = np.quantile(found, 0.95)
        assert got[f"retrieval.permuted_upper_recall@{at}"] == pytest.approx(upper)
        times = got[f"retrieval.mean_recall@{at}"] / np.mean(found)
        assert got[f"retrieval.times_permuted@{at}"] == pytest.approx(times)
    assert got["retrieval.times_permuted@1"] > 5
    plain = Retrieval(at=(1, 5))
    assert not [m for m in overall(plain.measure(subject)) if "permuted" in m]
    assert "permutations" not in result_parameters(plain)


def test_permutations_are_the_same_for_every_model() -> None:
    image, text = noisy_pairs(40, 3)
    one = Retrieval(at=(1,), permutations=5).measure(embeddings(image, text))
    two = Retrieval(at=(1,), permutations=5).measure(embeddings(image, text))
    assert [s.value for s in one] == [s.value for s in two]
    with pytest.raises(RecipeError, match="permutations=-1"):
        Retrieval(permutations=-1)
