"""Swap tests: does an image prefer its caption to the same caption with two things swapped?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from winnow.contracts.errors import SetupError
from winnow.contracts.parameters import result
from winnow.contracts.registry import register_evaluation
from winnow.contracts.trial import Embeddings, Evaluation, Score
from winnow.stages.evaluate._parameters import Modality, check_least, check_names, check_pair
from winnow.stages.evaluate._ranking import TIE, Floats
from winnow.stages.evaluate._rows import Rows, complete_rows, text_values
from winnow.stages.evaluate._slices import slice_keys, slice_scores, worst_slice


def preference(right: Floats, wrong: Floats) -> Floats:
    """Return 1 where the right caption is nearer, 0 where the wrong one is, 0.5 for a tie."""
    margin = right - wrong
    return np.where(np.abs(margin) <= TIE, 0.5, (margin > 0).astype(np.float64))


@register_evaluation("swaps", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class Swaps(Evaluation):
    """Ask of each sample whether its caption is nearer than a wrong one made from it.

    A test is passed where cos(image, caption) > cos(image, wrong caption); chance is 0.5 (ARO,
    Yuksekgonul et al. 2023; SugarCrepe, Hsieh et al. 2023). A tie counts one half, so that a model
    that cannot tell the captions apart scores chance. A wrong caption that equals the caption is
    no test.

    Reads:   the vectors of ``modality`` and "text"; the captions; ``wrong_captions``: columns of
             texts, null = no such test for the sample; the columns of ``slices``. Embeds the wrong
             captions with the model.
    Scores:  swaps.mean: the headline, the mean over the columns' accuracies. Its items are one per
                 tested sample, S of them: S/C times the sum of result / (the column's tests), over
                 the sample's own tests and C columns. Their mean is the headline, and an item is
                 the mean of the sample's results where every sample has every test.
             swaps.<column>: accuracy, one item per test.
             the same per slice (swaps.mean only where the slice has tests of every column);
             swaps.worst_slice: the headline in its worst slice of 20 tests or more.
             swaps.num_left_out: samples that lack a vector or have no test.
    Cost:    one forward pass of the different wrong captions.
    Fails:   SetupError where a modality or column is missing or a column has no test.
             RecipeError for bad parameters.
    """

    wrong_captions: tuple[str, ...] = result()
    modality: Modality = result("image")
    slices: tuple[str, ...] = result(())
    max_slices: int = result(50)

    def __post_init__(self) -> None:
        check_names("swaps", "wrong_captions", self.wrong_captions, least=1)
        check_names("swaps", "slices", self.slices)
        check_pair("swaps", (self.modality, "text"))
        check_least("swaps", "max_slices", self.max_slices, 1)

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.wrong_captions, *self.slices)

    def measure(self, subject: Embeddings) -> list[Score]:
        rows = complete_rows("swaps", subject, (self.modality, "text"), least=1)
        scores = [self._column(subject, rows, name) for name in self.wrong_captions]
        headline = _mean(scores)
        slices = slice_keys("swaps", rows.table, self.slices, self.max_slices)
        sliced = slice_scores(scores, slices)
        sliced += _slice_means(sliced, slices, len(scores))
        return [
            headline,
            *scores,
            *sliced,
            *worst_slice("swaps", headline.metric, sliced),
            rows.left_out_score("swaps", len(rows) - headline.num_items),
        ]

    def _column(self, subject: Embeddings, rows: Rows, column: str) -> Score:
        wrong = text_values("swaps", rows.table, column)
        captions = [(caption or "").strip() for caption in rows.table["caption"].to_pylist()]
        tested = [i for i, text in enumerate(wrong) if text is not None and text != captions[i]]
        if not tested:
            msg = f"swaps: no caption in column {column!r} differs from the sample's own"
            raise SetupError(msg)
        texts = sorted({wrong[i] or "" for i in tested})
        number = {text: i for i, text in enumerate(texts)}
        vectors = np.asarray(subject.embed_texts(texts), np.float64)
        images, captions_ND = (v[tested].astype(np.float64) for v in rows.vectors)
        wrong_ND = vectors[[number[wrong[i] or ""] for i in tested]]
        items = preference((images * captions_ND).sum(axis=1), (images * wrong_ND).sum(axis=1))
        keys = rows.keys
        return Score(
            metric=f"swaps.{column}",
            value=float(items.mean()),
            num_items=len(items),
            items=items,
            keys=[keys[i] for i in tested],
        )


def _mean(scores: Sequence[Score]) -> Score:
    """The mean of the scores, with items per sample that have this mean."""
    sums: dict[str, float] = {}
    for score in scores:
        for key, item in zip(score.keys, () if score.items is None else score.items, strict=True):
            sums[key] = sums.get(key, 0.0) + float(item) / score.num_items
    keys = sorted(sums)
    items = np.array([sums[key] for key in keys]) * len(keys) / len(scores)
    return Score(
        metric="swaps.mean",
        value=float(items.mean()),
        num_items=len(items),
        items=items,
        keys=keys,
    )


def _slice_means(sliced: Sequence[Score], slices: Iterable[str], num_columns: int) -> list[Score]:
    found = []
    for name in slices:
        inside = [s for s in sliced if s.slice == name]
        if len(inside) == num_columns:
            value = float(np.mean([s.value for s in inside if s.value is not None]))
            tests = sum(s.num_items for s in inside)
            found.append(Score(metric="swaps.mean", value=value, num_items=tests, slice=name))
    return found
