"""Ranks of what is relevant among many, and the chance of a hit where scores are tied."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from winnow.stages.evaluate._rows import Indices, Vectors

Floats = npt.NDArray[np.float64]

TIE = 1e-6
"""Cosines nearer than this are tied: a float32 sum does not tell them apart, and which is larger
would depend on their places in the matrix."""

_MAX_CELLS = 1 << 25


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Where the best relevant entry of each query stands.

    num_better: entries that score higher, none of them relevant. num_tied: entries that score the
    same, relevant ones included. num_tied_relevant: the relevant ones of these, at least 1.
    """

    num_better: Indices
    num_tied: Indices
    num_tied_relevant: Indices


def rank_relevant(
    queries_ND: Vectors, gallery_ND: Vectors, groups_N: Indices, *, max_cells: int = _MAX_CELLS
) -> Places:
    """Rank the gallery for every query; relevant to a query are the rows of its group.

    The matrix of cosines is made ``max_cells`` at a time.
    """
    order = np.argsort(groups_N, kind="stable")
    queries, gallery = queries_ND[order], gallery_ND[order]
    size = len(order)
    starts = np.flatnonzero(np.diff(groups_N[order], prepend=groups_N[order[:1]] - 1))
    ends = np.append(starts[1:], size)
    better, tied, tied_relevant = (np.empty(size, np.int64) for _ in range(3))
    step = max(1, max_cells // size)
    for begin in range(0, size, step):
        stop = min(begin + step, size)
        scores = queries[begin:stop] @ gallery.T
        best = np.empty(stop - begin, np.float32)
        first = int(np.searchsorted(starts, begin, "right")) - 1
        for start, end in zip(starts[first:], ends[first:], strict=True):
            if start >= stop:
                break
            rows = slice(max(start, begin) - begin, min(end, stop) - begin)
            relevant = scores[rows, start:end]
            best[rows] = relevant.max(axis=1)
            near = relevant >= best[rows, None] - np.float32(TIE)
            tied_relevant[begin:stop][rows] = np.count_nonzero(near, axis=1)
        better[begin:stop] = np.count_nonzero(scores > best[:, None] + np.float32(TIE), axis=1)
        tied[begin:stop] = np.count_nonzero(scores >= best[:, None] - np.float32(TIE), axis=1)
    tied -= better
    places = np.empty_like(order)
    places[order] = np.arange(size)
    return Places(
        num_better=better[places], num_tied=tied[places], num_tied_relevant=tied_relevant[places]
    )


def rank_label(scores_NC: Floats, labels_N: Indices) -> Places:
    """Rank C classes for every row; relevant is its label."""
    label_scores = np.take_along_axis(scores_NC, labels_N[:, None], axis=1)
    better = np.count_nonzero(scores_NC > label_scores + TIE, axis=1)
    near = np.count_nonzero(scores_NC >= label_scores - TIE, axis=1)
    return Places(
        num_better=better, num_tied=near - better, num_tied_relevant=np.ones_like(labels_N)
    )


def hits(places: Places, at: int) -> Floats:
    """Return per query the chance that a relevant entry is among the first ``at``.

    Tied entries stand in random order: of r relevant and m other tied entries, s fill the places
    that are left, and all of these are others with the chance C(m, s) / C(m + r, s). So an item is
    0 or 1 but for ties, and a model that maps all to one vector scores what chance does.
    """
    num_others = places.num_tied - places.num_tied_relevant
    places_left = np.clip(at - places.num_better, 0, places.num_tied)
    miss = np.ones(len(num_others))
    for drawn in range(int(places_left.max(initial=0))):
        share = np.maximum(num_others - drawn, 0) / np.maximum(places.num_tied - drawn, 1)
        miss *= np.where(drawn < places_left, share, 1.0)
    return 1.0 - miss
