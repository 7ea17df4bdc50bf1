"""The modality gap: how far apart, how narrow and how even the two clouds of vectors lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from winnow.contracts.errors import RecipeError
from winnow.contracts.parameters import result
from winnow.contracts.registry import register_evaluation
from winnow.contracts.trial import Embeddings, Evaluation, Score
from winnow.stages.evaluate._geometry import (
    Floats,
    alignment_items,
    centroid_gap,
    clip_loss_items,
    cosine_mean_and_spread,
    linear_separability,
    relative_gap,
    shifted,
    siglip_loss_items,
    uniformity,
    unit,
)
from winnow.stages.evaluate._parameters import Modality, check_least, check_pair
from winnow.stages.evaluate._ranking import hits, rank_relevant
from winnow.stages.evaluate._rows import Indices, Rows, caption_groups, complete_rows, shuffled

MIN_PAIRS = 4
"""Two pairs to fit the linear classifier on, two to test it on."""


@register_evaluation("modality_gap", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class ModalityGap(Evaluation):
    """Describe the gap between two modalities' vectors (Liang et al. 2022, "Mind the Gap").

    None of this says that a model is better, but for the loss: a gap can close by collapse. It is
    comparable between models only on the same evaluation set. <m> is each modality of ``pair``.

    Reads:   the vectors of ``pair``, the captions, the learned temperature (and SigLIP's bias).
    Scores:  over all pairs:
             modality_gap.centroid_distance: the headline, |mean x - mean y| of the unit vectors, in
                 [0, 2] (Liang et al. 2022).
             modality_gap.relative_gap: in [0, 1], the dissimilarity of matched pairs against the
                 spread within the modalities (Schrodi et al. 2024, RMG; formula in ``_geometry``);
                 null where all vectors are the same.
             modality_gap.alignment: mean |x - y|^2 of matched pairs, in [0, 4], items per pair
                 (Wang and Isola 2020, alpha = 2).
             modality_gap.<m>_cosine_mean and _cosine_std: of all pairs within the modality; a high
                 mean is a narrow cone (Liang et al. 2022). Exact.
             over at most ``max_pairs`` of them, chosen by a hash of seed and key:
             modality_gap.<m>_uniformity: log mean exp(-2 |x - x'|^2), in [-8, 0], lower is more
                 even (Wang and Isola 2020, t = 2).
             modality_gap.linear_separability: accuracy of a logistic regression that tells the
                 modality of held-out vectors, 0.5 is chance (formula in ``_geometry``).
             modality_gap.contrastive_loss: CLIP's loss, or SigLIP's for a model with a bias, at the
                 learned temperature, all sampled pairs in one batch, items per pair. Lower is
                 better; it depends on the number of pairs, and equal captions count as wrong.
             modality_gap.<what>_at_shift_<s> for s of ``shifts``, a diagnostic: each cloud moved by
                 s times the gap towards the other and made unit vectors again (Liang et al. 2022,
                 the embedding shift experiment; 0 leaves them, 0.5 closes the gap); what:
                 centroid_distance, loss, mean_recall@1 (as in ``retrieval``).
             modality_gap.num_left_out: samples that lack a modality.
    Cost:    4 N D^2 multiplications and additions, and (4 + 3 shifts) max_pairs^2 D.
    Fails:   SetupError where a modality is missing or fewer than 4 samples have both.
             RecipeError for bad parameters.
    """

    pair: tuple[Modality, Modality] = result(("image", "text"))
    shifts: tuple[float, ...] = result((-0.25, 0.0, 0.25, 0.5, 0.75))
    max_pairs: int = result(4096)
    seed: int = result(0)

    def __post_init__(self) -> None:
        check_pair("modality_gap", self.pair)
        check_least("modality_gap", "max_pairs", self.max_pairs, MIN_PAIRS)
        if len(set(self.shifts)) < len(self.shifts) or not np.isfinite(self.shifts).all():
            msg = f"modality_gap: shifts={list(self.shifts)}; use different numbers, such as 0.25"
            raise RecipeError(msg)

    def measure(self, subject: Embeddings) -> list[Score]:
        rows = complete_rows("modality_gap", subject, self.pair, least=MIN_PAIRS)
        sample = rows.take(shuffled(rows.keys, self.seed, "modality_gap")[: self.max_pairs])
        groups = caption_groups(sample.table["caption"].to_pylist())
        one, two = (unit(v) for v in sample.vectors)
        scores = self._whole(rows)
        for name, vectors in zip(self.pair, (one, two), strict=True):
            scores.append(_score(f"{name}_uniformity", uniformity(vectors), len(one)))
        scores.append(
            _score(
                "linear_separability", linear_separability(one, two), 2 * (len(one) - len(one) // 2)
            )
        )
        loss = _loss_items(subject, one, two)
        scores.append(_items_score("contrastive_loss", loss, sample.keys, higher_is_better=False))
        for by in self.shifts:
            scores += _at_shift(subject, *shifted(one, two, by), groups, by)
        return [*scores, rows.left_out_score("modality_gap")]

    def _whole(self, rows: Rows) -> list[Score]:
        """What is exact over all pairs."""
        one, two = (unit(v) for v in rows.vectors)
        cones = [cosine_mean_and_spread(vectors) for vectors in (one, two)]
        matched = float((one * two).sum(axis=1).mean())
        distance = float(np.linalg.norm(centroid_gap(one, two)))
        scores = [
            _score("centroid_distance", distance, len(rows)),
            _score("relative_gap", relative_gap(matched, cones[0][0], cones[1][0]), len(rows)),
            _items_score("alignment", alignment_items(one, two), rows.keys),
        ]
        for name, (mean, spread) in zip(self.pair, cones, strict=True):
            scores.append(_score(f"{name}_cosine_mean", mean, len(rows)))
            scores.append(_score(f"{name}_cosine_std", spread, len(rows)))
        return scores


def _loss_items(subject: Embeddings, one: Floats, two: Floats) -> Floats:
    if subject.logit_bias is None:
        return clip_loss_items(one, two, subject.logit_scale)
    return siglip_loss_items(one, two, subject.logit_scale, subject.logit_bias)


def _at_shift(
    subject: Embeddings, one: Floats, two: Floats, groups: Indices, by: float
) -> list[Score]:
    near, far = one.astype(np.float32), two.astype(np.float32)
    forward, back = rank_relevant(near, far, groups), rank_relevant(far, near, groups)
    recall = float((hits(forward, 1).mean() + hits(back, 1).mean()) / 2)
    loss = float(_loss_items(subject, one, two).mean())
    distance = float(np.linalg.norm(centroid_gap(one, two)))
    named = {"centroid_distance": distance, "loss": loss, "mean_recall@1": recall}
    return [_score(f"{name}_at_shift_{by:g}", value, len(one)) for name, value in named.items()]


def _score(name: str, value: float | None, num_items: int) -> Score:
    return Score(
        metric=f"modality_gap.{name}", value=value, num_items=num_items, higher_is_better=None
    )


def _items_score(
    name: str, items: Floats, keys: list[str], higher_is_better: bool | None = None
) -> Score:
    return Score(
        metric=f"modality_gap.{name}",
        value=float(items.mean()),
        num_items=len(items),
        higher_is_better=higher_is_better,
        items=items,
        keys=keys,
    )
