"""Retrieval: is a sample's caption found by its image, and its image by its caption?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from winnow.contracts.parameters import later, result
from winnow.contracts.registry import register_evaluation
from winnow.contracts.trial import Embeddings, Evaluation, Score
from winnow.stages.evaluate._parameters import (
    Modality,
    check_cutoffs,
    check_least,
    check_names,
    check_pair,
)
from winnow.stages.evaluate._ranking import Floats, Places, hits, rank_relevant
from winnow.stages.evaluate._rows import (
    Indices,
    Rows,
    caption_groups,
    complete_rows,
    count_score,
    shuffled,
)
from winnow.stages.evaluate._slices import slice_keys, slice_scores, worst_slice


@register_evaluation("retrieval", version=2)
@dataclass(frozen=True, kw_only=True, slots=True)
class Retrieval(Evaluation):
    """Measure recall@k in both directions.

    Recall@k: the share of queries with a relevant entry among the k nearest by cosine (Karpathy
    and Fei-Fei 2015). Relevant is every row whose caption is equal after stripping: a set with
    repeated captions has no single right answer. Queries and gallery are the same rows, those that
    have both modalities. Tied entries count as standing in random order (``_ranking.hits``), so an
    item is 0 or 1 except in ties, and a model that maps everything to one vector scores what chance
    does.

    Reads:   the vectors of ``pair``, the captions, and the columns of ``slices``.
    Scores:  retrieval.mean_recall@k for each k of ``at``, the first is the headline: the mean of
                 both directions, as DataComp reports retrieval (Gadre et al. 2023).
             retrieval.<a>_to_<b>_recall@k and back, in [0, 1], for each k of ``at``; null where
                 the gallery has no more than k rows, as every answer would be right.
             the same per slice of the queries; the gallery stays whole. retrieval.worst_slice: the
                 headline in its worst slice of 20 samples or more.
             retrieval.chance@k: what a random order scores, k the first of ``at``.
             with ``permutations``, for each k of ``at``: retrieval.permuted_mean_recall@k, the mean
                 over that many random permutations of the pairing of what the first score would
                 be; retrieval.permuted_upper_recall@k, their 95 % quantile, what chance reaches;
                 retrieval.times_permuted@k, the first score over the permuted mean.
             retrieval.num_captions: different captions. retrieval.num_left_out: samples that lack
                 a modality.
    Cost:    2 N^2 D multiplications and additions per direction, and per permutation; memory for
             2^25 cosines.
    Fails:   SetupError where a modality or column is missing, or fewer rows than the first k + 1
             have both modalities. RecipeError for bad parameters.

    gallery: at most so many rows, the first by key. max_slices: per column, the largest ones.
    permutations: of which row belongs to which, the same ones whatever the model; 0 = none.
    """

    at: tuple[int, ...] = result((1, 5, 10))
    pair: tuple[Modality, Modality] = result(("image", "text"))
    gallery: int | None = result(None)
    slices: tuple[str, ...] = result(())
    max_slices: int = result(50)
    permutations: int = later(0)

    def __post_init__(self) -> None:
        check_cutoffs("retrieval", "at", self.at)
        check_pair("retrieval", self.pair)
        check_names("retrieval", "slices", self.slices)
        check_least("retrieval", "max_slices", self.max_slices, 1)
        check_least("retrieval", "permutations", self.permutations, 0)
        check_least("retrieval", "gallery", self.gallery, self.at[0] + 1)

    @property
    def columns(self) -> tuple[str, ...]:
        return self.slices

    def measure(self, subject: Embeddings) -> list[Score]:
        rows = complete_rows("retrieval", subject, self.pair, least=self.at[0] + 1)
        if self.gallery is not None and self.gallery < len(rows):
            rows = rows.take(np.arange(self.gallery))
        groups = caption_groups(rows.table["caption"].to_pylist())
        scores = self._recalls(rows, groups)
        slices = slice_keys("retrieval", rows.table, self.slices, self.max_slices)
        sliced = slice_scores(scores, slices)
        return [
            *scores,
            *sliced,
            *worst_slice("retrieval", scores[0].metric, sliced),
            self._chance(groups),
            *self._permuted(rows, groups, scores),
            count_score("retrieval.num_captions", int(groups.max()) + 1, len(rows)),
            rows.left_out_score("retrieval"),
        ]

    def _recalls(self, rows: Rows, groups: Indices) -> list[Score]:
        (one, two), keys = rows.vectors, rows.keys
        forward, back = rank_relevant(one, two, groups), rank_relevant(two, one, groups)
        scores = [self._mean_recall(forward, back, at, keys) for at in self.at]
        names = (f"{self.pair[0]}_to_{self.pair[1]}", f"{self.pair[1]}_to_{self.pair[0]}")
        for name, places in zip(names, (forward, back), strict=True):
            for at in self.at:
                metric = f"retrieval.{name}_recall@{at}"
                if at >= len(rows):
                    scores.append(Score(metric=metric, value=None, num_items=0))
                else:
                    scores.append(_score(metric, hits(places, at), keys))
        return scores

    def _permuted(self, rows: Rows, groups: Indices, scores: Sequence[Score]) -> list[Score]:
        """What chance gives this model's vectors: a gallery full of hubs differs from a random
        order only in its spread, which is what the quantile is for."""
        one, two = rows.vectors
        values: dict[int, list[float]] = {at: [] for at in self.at if at < len(rows)}
        for number in range(self.permutations):
            order = shuffled(rows.keys, number, "retrieval.permutations")
            both = rank_relevant(one, two[order], groups), rank_relevant(two[order], one, groups)
            for at, found in values.items():
                found.append(float(np.mean([hits(places, at).mean() for places in both])))
        permuted = []
        for score, (at, found) in zip(
            scores, values.items() if self.permutations else (), strict=False
        ):
            mean, upper = float(np.mean(found)), float(np.quantile(found, 0.95))
            for name, value in (("mean", mean), ("upper", upper)):
                metric = f"retrieval.permuted_{name}_recall@{at}"
                permuted.append(
                    Score(metric=metric, value=value, num_items=len(found), higher_is_better=None)
                )
            if score.items is not None and mean > 0:
                permuted.append(
                    _score(f"retrieval.times_permuted@{at}", score.items / mean, rows.keys)
                )
        return permuted

    def _mean_recall(self, forward: Places, back: Places, at: int, keys: list[str]) -> Score:
        metric = f"retrieval.mean_recall@{at}"
        if at >= len(keys):
            return Score(metric=metric, value=None, num_items=0)
        return _score(metric, (hits(forward, at) + hits(back, at)) / 2, keys)

    def _chance(self, groups: Indices) -> Score:
        """What a random order scores: all entries tied."""
        sizes = np.bincount(groups)[groups]
        tied = Places(
            num_better=np.zeros_like(sizes),
            num_tied=np.full_like(sizes, len(groups)),
            num_tied_relevant=sizes,
        )
        return Score(
            metric=f"retrieval.chance@{self.at[0]}",
            value=float(hits(tied, self.at[0]).mean()),
            num_items=len(groups),
            higher_is_better=None,
        )


def _score(metric: str, items: Floats, keys: list[str]) -> Score:
    return Score(
        metric=metric, value=float(items.mean()), num_items=len(items), items=items, keys=keys
    )
