"""What describes two clouds of unit vectors: gap, cones, alignment, uniformity, separability.

Arrays are (N, D), row i of ``one`` and of ``two`` belong to the same sample. Sums are in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit, logsumexp

Floats = npt.NDArray[np.float64]

_BLOCK_ROWS = 1024
_SAME = 1e-12
"""Dissimilarity that is rounding: float32 vectors 1e-6 apart."""


def centroid_gap(one: Floats, two: Floats) -> Floats:
    """Return the difference of the means, (D,): the gap of Liang et al. 2022."""
    difference: Floats = one.mean(axis=0) - two.mean(axis=0)
    return difference


def cosine_mean_and_spread(vectors: Floats) -> tuple[float, float]:
    """Return mean and standard deviation of the cosines of all pairs i != j.

    The mean is the cone effect's measure (Liang et al. 2022). In closed form, without the N x N
    matrix: sum of cosines = |sum x|^2 - sum |x|^2; sum of their squares = |X'X|_F^2 -
    sum |x|^4.
    """
    num_pairs = len(vectors) * (len(vectors) - 1)
    squares = (vectors**2).sum(axis=1)
    mean = (float((vectors.sum(axis=0) ** 2).sum()) - float(squares.sum())) / num_pairs
    gram = vectors.T @ vectors
    mean_square = (float((gram**2).sum()) - float((squares**2).sum())) / num_pairs
    return mean, float(np.sqrt(max(0.0, mean_square - mean**2)))


def relative_gap(matched: float, within_one: float, within_two: float) -> float | None:
    """Return the relative modality gap of mean cosines, in [0, 1]; None where all are 1.

    Schrodi et al. 2024 ("Two Effects, One Trigger", RMG): with the dissimilarity d = (1 - cos) / 2,
    d(matched pairs) / (d(matched pairs) + (d(within one) + d(within two)) / 2).
    """
    between, first, second = ((1 - cosine) / 2 for cosine in (matched, within_one, within_two))
    whole = between + (first + second) / 2
    return between / whole if whole > _SAME else None


def alignment_items(one: Floats, two: Floats) -> Floats:
    """Return |x - y|^2 per sample; the mean is Wang and Isola's alignment (2020), alpha = 2."""
    distances: Floats = ((one - two) ** 2).sum(axis=1)
    return distances


def uniformity(vectors: Floats, t: float = 2.0) -> float:
    """Return log of the mean of exp(-t |x - y|^2) over pairs i < j (Wang and Isola 2020)."""
    squares = (vectors**2).sum(axis=1)
    total = 0.0
    for begin in range(0, len(vectors), _BLOCK_ROWS):
        block = slice(begin, begin + _BLOCK_ROWS)
        distances = squares[block, None] + squares[None] - 2 * vectors[block] @ vectors.T
        near = np.exp(-t * np.maximum(distances, 0.0))
        total += float(near.sum() - np.trace(near, offset=begin))
    return float(np.log(total / (len(vectors) * (len(vectors) - 1))))


def clip_loss_items(one: Floats, two: Floats, scale: float) -> Floats:
    """Return CLIP's loss per sample (Radford et al. 2021, figure 3), all samples in one batch.

    The mean of the two cross-entropies of the logits scale * cos, of its row and of its column.
    """
    matched = scale * (one * two).sum(axis=1)
    rows = np.empty(len(one))
    columns = np.full(len(one), -np.inf)
    for begin in range(0, len(one), _BLOCK_ROWS):
        block = slice(begin, begin + _BLOCK_ROWS)
        logits = scale * one[block] @ two.T
        rows[block] = logsumexp(logits, axis=1)
        columns = np.logaddexp(columns, logsumexp(logits, axis=0))
    return (rows + columns) / 2 - matched


def siglip_loss_items(one: Floats, two: Floats, scale: float, bias: float) -> Floats:
    """Return SigLIP's loss per sample (Zhai et al. 2023), all samples in one batch.

    The sum over its row of -log sigmoid(z (scale * cos + bias)), z = 1 for its own pair, else -1.
    """
    items = np.empty(len(one))
    for begin in range(0, len(one), _BLOCK_ROWS):
        block = slice(begin, begin + _BLOCK_ROWS)
        logits = scale * one[block] @ two.T + bias
        own = np.diagonal(logits, offset=begin)
        items[block] = np.logaddexp(0.0, logits).sum(axis=1) - own
    return items


def shifted(one: Floats, two: Floats, by: float) -> tuple[Floats, Floats]:
    """Return both clouds moved along the gap and made unit vectors again.

    x -> normalize(x - by * gap), y -> normalize(y + by * gap) (the embedding shift experiment of
    Liang et al. 2022): 0 leaves them, 0.5 lets the centroids meet before the vectors are normalised
    again, a negative number widens the gap.
    """
    gap = centroid_gap(one, two)
    return unit(one - by * gap), unit(two + by * gap)


def unit(vectors: npt.NDArray[np.floating[Any]]) -> Floats:
    """Return the rows at length 1, in float64; a row of zeros stays one."""
    vectors = vectors.astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 1e-12)


def fit_logistic(vectors: Floats, labels: npt.NDArray[np.int64], c: float = 1.0) -> Floats:
    """Return weights (D,) and intercept, appended, of an L2-regularised logistic regression.

    The least of |w|^2 / 2 + c * sum of log(1 + exp(-z (w x + b))), z = +-1 (Hastie et al. 2009,
    section 4.4; c as in scikit-learn), by L-BFGS.
    """
    signs = 2.0 * labels - 1.0

    def objective(point: Floats) -> tuple[float, Floats]:
        weights, intercept = point[:-1], point[-1]
        margins = signs * (vectors @ weights + intercept)
        pull = -c * signs * expit(-margins)
        value = 0.5 * weights @ weights + c * np.logaddexp(0.0, -margins).sum()
        return float(value), np.append(weights + vectors.T @ pull, pull.sum())

    start = np.zeros(vectors.shape[1] + 1)
    found = minimize(
        objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 500, "gtol": 1e-6}
    )
    solution: Floats = found.x
    return solution


def linear_separability(one: Floats, two: Floats) -> float:
    """Return how often a linear classifier tells the modality of a held-out vector.

    Fitted on both vectors of the first half of the samples, measured on those of the second half;
    0.5 is chance. (Linear separability as in Fahim et al. 2024, "It's Not a Modality Gap"; half is
    held out here.)
    """
    half = len(one) // 2
    labels = np.repeat([0, 1], half)
    point = fit_logistic(np.concatenate([one[:half], two[:half]]), labels)
    right_one = (one[half:] @ point[:-1] + point[-1]) <= 0
    right_two = (two[half:] @ point[:-1] + point[-1]) > 0
    return float((right_one.mean() + right_two.mean()) / 2)
