"""CIDEr-D: how alike a caption and its references are, common words weighing little."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Gram = tuple[str, ...]

MAX_N = 4
SIGMA = 6.0


@dataclass(frozen=True, slots=True)
class _Weighted:
    """Tf-idf weights per length of n-gram, their norms, and the number of word pairs."""

    weights: list[dict[Gram, float]]
    norms: list[float]
    length: int


def cider_d(
    candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> Floats:
    """Return one score per candidate, float64 (N,), 0 to 10.

    candidates: N lists of words. references: N lists of one or more lists of words.

    CIDEr-D of Vedantam et al. 2015: for n = 1 to 4 the clipped cosine of tf-idf vectors,
    times exp(-(l_c - l_r)^2 / (2 * 6^2)), averaged over references and n, times 10. Documents are
    the N sets of references. Like the authors' code: tf are plain counts, an n-gram in no
    reference has document frequency 1, and l is the number of bigrams. With one row every score is
    0, since the logarithm of one document is.
    """
    grams = [[_grams(words) for words in rows] for rows in references]
    frequency: Counter[Gram] = Counter()
    for counts in grams:
        frequency.update(set().union(*counts))
    log_total = math.log(len(references)) if references else 0.0
    idf = {gram: log_total - math.log(count) for gram, count in frequency.items()}
    scores = []
    for words, counts in zip(candidates, grams, strict=True):
        candidate = _weighted(_grams(words), idf, log_total)
        found = [_similarity(candidate, _weighted(c, idf, log_total)) for c in counts]
        scores.append(10.0 * sum(found) / len(found))
    return np.array(scores, np.float64)


def _grams(words: Sequence[str]) -> Counter[Gram]:
    return Counter(
        tuple(words[start : start + n])
        for n in range(1, MAX_N + 1)
        for start in range(len(words) - n + 1)
    )


def _weighted(counts: Counter[Gram], idf: dict[Gram, float], unseen: float) -> _Weighted:
    weights: list[dict[Gram, float]] = [{} for _ in range(MAX_N)]
    length = 0
    for gram, count in counts.items():
        weights[len(gram) - 1][gram] = count * idf.get(gram, unseen)
        length += count if len(gram) == 2 else 0
    norms = [math.sqrt(sum(w * w for w in part.values())) for part in weights]
    return _Weighted(weights, norms, length)


def _similarity(candidate: _Weighted, reference: _Weighted) -> float:
    """The mean over n of the clipped cosines, with the penalty for another length."""
    total = 0.0
    for n in range(MAX_N):
        norm = candidate.norms[n] * reference.norms[n]
        if norm:
            there = reference.weights[n]
            total += (
                sum(
                    min(w, there[g]) * there[g]
                    for g, w in candidate.weights[n].items()
                    if g in there
                )
                / norm
            )
    delta = candidate.length - reference.length
    return total / MAX_N * math.exp(-(delta**2) / (2 * SIGMA**2))
