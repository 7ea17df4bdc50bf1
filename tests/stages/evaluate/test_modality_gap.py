"""The gap's measures against loops, torch, open_clip and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from sklearn.linear_model import LogisticRegression

from tests.stages.evaluate.subjects import DIM, embeddings, overall, random_unit, unit
from winnow.contracts.errors import RecipeError, SetupError
from winnow.stages.evaluate import _geometry as geometry
from winnow.stages.evaluate._rows import shuffled
from winnow.stages.evaluate.modality_gap import ModalityGap
from winnow.stages.evaluate.retrieval import Retrieval

SIZE = 40


def clouds(size: int = SIZE, seed: int = 0, gap: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    """Matched vectors with a gap along one axis."""
    image = random_unit(size, seed)
    away = np.eye(DIM)[0] * gap
    return unit(image + away), unit(image + 0.5 * random_unit(size, seed + 1) - away)


def double(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)


def test_exact_measures_are_those_of_loops() -> None:
    image, text = clouds()
    got = overall(ModalityGap().measure(embeddings(image, text)))
    means = [sum(float(v[d]) for v in cloud) / SIZE for cloud in (image, text) for d in range(DIM)]
    gap = math.sqrt(sum((means[d] - means[DIM + d]) ** 2 for d in range(DIM)))
    assert got["modality_gap.centroid_distance"] == pytest.approx(gap, rel=1e-6)
    aligned = [sum((float(a) - float(b)) ** 2 for a, b in zip(x, y, strict=True))
               for x, y in zip(image, text, strict=True)]  # fmt: skip
    assert got["modality_gap.alignment"] == pytest.approx(np.mean(aligned), rel=1e-6)
    within = {}
    for name, cloud in (("image", image), ("text", text)):
        cosines = [float(np.dot(double(cloud)[i], double(cloud)[j]))
                   for i in range(SIZE) for j in range(SIZE) if i != j]  # fmt: skip
        within[name] = np.mean([(1 - c) / 2 for c in cosines])
        assert got[f"modality_gap.{name}_cosine_mean"] == pytest.approx(np.mean(cosines), rel=1e-5)
        assert got[f"modality_gap.{name}_cosine_std"] == pytest.approx(np.std(cosines), rel=1e-5)
    matched = np.mean([(1 - float(np.dot(double(x), double(y)))) / 2
                       for x, y in zip(image, text, strict=True)])  # fmt: skip
    expected = matched / (matched + (within["image"] + within["text"]) / 2)
    assert got["modality_gap.relative_gap"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("size", [5, 1024, 1500])
def test_uniformity_is_torchs(size: int) -> None:
    vectors = random_unit(size, 3)
    expected = torch.pdist(torch.from_numpy(double(vectors))).pow(2).mul(-2).exp().mean().log()
    assert geometry.uniformity(double(vectors)) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("size", [6, 1030])
def test_losses_are_open_clips(size: int) -> None:
    image, text = clouds(size)
    tensors = torch.from_numpy(double(image)), torch.from_numpy(double(text))
    clip = overall(ModalityGap(shifts=()).measure(embeddings(image, text, logit_scale=14.5)))
    expected = ClipLoss()(*tensors, torch.tensor(14.5, dtype=torch.float64))
    assert clip["modality_gap.contrastive_loss"] == pytest.approx(float(expected), rel=1e-6)
    subject = embeddings(image, text, logit_scale=9.0, logit_bias=-7.5)
    siglip = overall(ModalityGap(shifts=()).measure(subject))
    scale, bias = (torch.tensor(v, dtype=torch.float64) for v in (9.0, -7.5))
    expected = SigLipLoss()(*tensors, scale, bias)
    assert siglip["modality_gap.contrastive_loss"] == pytest.approx(float(expected), rel=1e-6)


def test_the_linear_classifier_is_scikit_learns() -> None:
    image, text = clouds(300, gap=0.12)
    vectors = double(np.concatenate([image, text]))
    labels = np.repeat([0, 1], 300)
    point = geometry.fit_logistic(vectors, labels)
    theirs = LogisticRegression(C=1.0, tol=1e-8, max_iter=2000).fit(vectors, labels)
    np.testing.assert_allclose(point[:-1], theirs.coef_[0], atol=2e-4)
    assert point[-1] == pytest.approx(theirs.intercept_[0], abs=2e-4)


def test_separability_is_held_out_accuracy() -> None:
    image, text = (double(cloud) for cloud in clouds(301, gap=0.12))
    theirs = LogisticRegression(C=1.0, tol=1e-8, max_iter=2000)
    theirs.fit(np.concatenate([image[:150], text[:150]]), np.repeat([0, 1], 150))
    expected = theirs.score(np.concatenate([image[150:], text[150:]]), np.repeat([0, 1], 151))
    assert 0.55 < expected < 0.95
    assert geometry.linear_separability(image, text) == pytest.approx(expected)


def test_clouds_apart_are_separable_and_noise_is_not() -> None:
    apart = overall(ModalityGap().measure(embeddings(*clouds(200, gap=3.0))))
    noise = overall(ModalityGap().measure(embeddings(random_unit(1000), random_unit(1000, 1))))
    assert apart["modality_gap.linear_separability"] == 1.0
    assert noise["modality_gap.linear_separability"] == pytest.approx(0.5, abs=0.07)


def test_shifts_are_those_of_a_loop() -> None:
    image, text = clouds()
    by = 0.3
    got = overall(ModalityGap(shifts=(0.0, by, 0.5)).measure(embeddings(image, text)))
    gap = double(image).mean(axis=0) - double(text).mean(axis=0)
    moved = [unit(x - by * gap) for x in double(image)], [unit(y + by * gap) for y in double(text)]
    subject = embeddings(np.array(moved[0]), np.array(moved[1]))
    again = overall(ModalityGap(shifts=()).measure(subject))
    recall = overall(Retrieval().measure(subject))["retrieval.mean_recall@1"]
    assert got["modality_gap.mean_recall@1_at_shift_0.3"] == pytest.approx(recall)
    for name, shift_name in (("centroid_distance",) * 2, ("contrastive_loss", "loss")):
        expected = again[f"modality_gap.{name}"]
        assert got[f"modality_gap.{shift_name}_at_shift_0.3"] == pytest.approx(expected, rel=1e-5)
        unmoved = got[f"modality_gap.{shift_name}_at_shift_0"]
        assert unmoved == pytest.approx(got[f"modality_gap.{name}"], rel=1e-6)
    closed = got["modality_gap.centroid_distance_at_shift_0.5"]
    assert closed < 0.2 * got["modality_gap.centroid_distance"]


def test_a_sample_of_the_pairs_depends_on_the_seed_only() -> None:
    image, text = clouds(300)
    small = {s: overall(ModalityGap(max_pairs=50, seed=s).measure(embeddings(image, text)))
             for s in (0, 1)}  # fmt: skip
    whole = overall(ModalityGap().measure(embeddings(image, text)))
    exact = [
        n for n in whole if n.split(".")[1] in ("relative_gap", "alignment", "text_cosine_std")
    ]
    assert len(exact) == 3
    assert all(small[0][name] == small[1][name] == whole[name] for name in exact)
    assert small[0]["modality_gap.text_uniformity"] != small[1]["modality_gap.text_uniformity"]
    assert small[0]["modality_gap.text_uniformity"] == pytest.approx(
        whole["modality_gap.text_uniformity"], abs=0.2
    )
    keys = [f"k{i:05d}" for i in range(300)]
    chosen = shuffled(keys, 0, "modality_gap")[:50]
    drawn = geometry.uniformity(double(image[chosen]))
    assert small[0]["modality_gap.image_uniformity"] == pytest.approx(drawn)


def test_equal_clouds_have_no_gap() -> None:
    image = random_unit(SIZE)
    got = overall(ModalityGap().measure(embeddings(image, image)))
    assert got["modality_gap.centroid_distance"] == 0.0
    assert got["modality_gap.relative_gap"] == pytest.approx(0.0, abs=1e-7)
    assert got["modality_gap.linear_separability"] == 0.5


def test_one_vector_for_all_has_no_relative_gap() -> None:
    one = np.repeat(random_unit(1), SIZE, axis=0)
    got = overall(ModalityGap().measure(embeddings(one, one)))
    assert got["modality_gap.relative_gap"] is None
    assert got["modality_gap.image_uniformity"] == pytest.approx(0.0, abs=1e-6)
    assert got["modality_gap.image_cosine_mean"] == pytest.approx(1.0)
    assert got["modality_gap.contrastive_loss"] == pytest.approx(math.log(SIZE))


def test_only_the_loss_has_a_direction() -> None:
    scores = ModalityGap().measure(embeddings(*clouds()))
    directed = {s.metric: s.higher_is_better for s in scores if s.higher_is_better is not None}
    assert directed == {"modality_gap.contrastive_loss": False}


def test_too_few_pairs_and_bad_parameters() -> None:
    with pytest.raises(SetupError, match="3 of 3 samples have image and text; it takes 4"):
        ModalityGap().measure(embeddings(*clouds(3)))
    with pytest.raises(RecipeError, match="shifts="):
        ModalityGap(shifts=(0.1, 0.1))
    with pytest.raises(RecipeError, match="max_pairs=3; use 4"):
        ModalityGap(max_pairs=3)
