"""Choose the caption to train on: the web's, a synthetic one, several, or none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from winnow.contracts.errors import RecipeError
from winnow.contracts.identity import stable_hash64
from winnow.contracts.media import Media
from winnow.contracts.parameters import result
from winnow.contracts.registry import register_stage
from winnow.contracts.stage import Stage

NAME = "caption_choice"
Source = Literal["raw", "synthetic"]
Policy = Literal["raw", "synthetic", "better", "all_passing", "raw_else_synthetic_else_drop", "mix"]
_NEEDS_THRESHOLD = ("raw_else_synthetic_else_drop",)


class Caption(NamedTuple):
    """One caption that is there. score: None where it has none (null and NaN).

    refused: it names an object that is not in the picture, as far as one can tell.
    """

    text: str
    score: float | None
    source: Source
    refused: bool = False


def captions(
    texts: Sequence[str | None],
    scores: Sequence[float | None],
    source: Source,
    unsupported: Sequence[Sequence[str | None] | None] = (),
) -> list[Caption]:
    """Return those that are there, in their order; scores and lists may be fewer than texts."""
    found = []
    for place, text in enumerate(texts):
        if text is not None and text.strip():
            score = scores[place] if place < len(scores) else None
            known = None if score is None or math.isnan(score) else score
            refused = place < len(unsupported) and bool(unsupported[place])
            found.append(Caption(text, known, source, refused))
    return found


def passing(found: Sequence[Caption], threshold: float | None) -> list[Caption]:
    """Return the captions at or above the threshold (None: all), the best first, no text twice.

    One without a score passes no threshold, and comes after those that have one. Equal scores keep
    their order.
    """

    def passes(caption: Caption) -> bool:
        if caption.refused:
            return False
        return threshold is None or (caption.score is not None and caption.score >= threshold)

    passed = [caption for caption in found if passes(caption)]
    passed.sort(key=lambda c: (c.score is None, -(c.score or 0.0)))
    unique: dict[str, Caption] = {}
    for caption in passed:
        unique.setdefault(caption.text, caption)
    return list(unique.values())


def choose(
    policy: Policy, raw: list[Caption], synthetic: list[Caption], *, synthetic_first: bool
) -> list[Caption]:
    """Return the captions that a policy takes, the best first; see ``CaptionChoice``.

    raw, synthetic: those that pass, the best first. synthetic_first: what a mix has drawn.
    """
    if policy == "raw":
        return raw
    if policy == "synthetic":
        return synthetic
    if policy == "raw_else_synthetic_else_drop":
        return raw or synthetic
    if policy == "mix":
        return (synthetic or raw) if synthetic_first else (raw or synthetic)
    both = passing([*raw, *synthetic], None)
    if policy == "all_passing":
        return both
    return [c for c in both if c.source == both[0].source]


@register_stage(NAME, version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionChoice(Stage):
    """Choose among a row's raw caption and its synthetic ones by a policy with a name.

    =============================  ==============================================================
    policy                         takes, of the captions that pass
    =============================  ==============================================================
    raw                            the raw one; synthetic ones are not looked at
    synthetic                      the synthetic ones; the raw one is not looked at
    better                         those of the source that has the best score; equal: raw
    all_passing                    all of both sources (CapFilt's filter: BLIP, Li et al. 2022)
    raw_else_synthetic_else_drop   the raw one; where it fails the synthetic ones, by the same
                                   threshold; where those fail nothing (Nguyen et al. 2023, who
                                   keep raw captions above a CLIP score and caption the rest)
    mix                            those of the drawn source; where it has none those of the
                                   other. Synthetic is drawn for ``share`` of the rows (Nguyen
                                   et al. 2023 mix the sources of captions)
    =============================  ==============================================================

    A caption is there if it is neither null nor white space. It passes if its score is at least
    ``threshold``, compared as float32; without a threshold each one that is there passes, scored or
    not. NaN is null. A text that comes twice counts once. A null of one source never loses the
    other.

    Reads:   <text_column> (text): string, the raw caption.  <raw_score> (clip_score): float32.
             <synthetic> (synthetic_captions): list<string>.  <synthetic_scores> (caption_scores):
             list<float32>, one per synthetic caption, from the same scorer as <raw_score>: CLIP's
             cosine or a matching head's probability.  <unsupported>: list<list<string>>, see
             ``hallucination``. Only those that the policy looks at.
    Writes:  <column> (chosen_caption): string, the best of those that the policy takes.
             <column>_all (chosen_caption_all): list<string>, all that it takes, best first.
             <column>_source (chosen_caption_source): string, "raw" | "synthetic", of <column>.
             <column>_score (chosen_caption_score): float32, of <column>; null where it has none.
             <column>_error: string (chosen_caption_error); null, "no_caption" (nothing passes: the
             policy drops the row, see the filter ``has_caption``) or "missing" (the sources that
             the policy looks at have no text at all). The others are null exactly then, the score
             aside.
    Cost:    CPU only; a few microseconds a row.
    Fails:   a bad row never raises. RecipeError for a policy that cannot work with its parameters.

    Texts and scores of both sources stay in their own columns, and exports carry them.

    threshold: of both sources; null = whatever is there passes.
    share, seed: of a mix; the draw is ``stable_hash64("caption_choice", seed, uid)``.
    raw_score, synthetic_scores: null = that source has no scores.
    unsupported: a synthetic caption with a name in its list does not pass; null = not looked at. A
    row or caption that has no list was not measured, and passes.
    """

    policy: Policy = result("better")
    threshold: float | None = result(None)
    share: float = result(0.5)
    seed: int = result(0)
    text_column: str = result("text")
    raw_score: str | None = result("clip_score")
    synthetic: str = result("synthetic_captions")
    synthetic_scores: str | None = result("caption_scores")
    unsupported: str | None = result(None)
    column: str = result("chosen_caption")

    def __post_init__(self) -> None:
        """Refuse what can never choose as it says."""
        if not 0 <= self.share <= 1:
            msg = f"{NAME}: share={self.share}; use the share of synthetic captions, in [0, 1]"
            raise RecipeError(msg)
        if self.threshold is not None and not math.isfinite(self.threshold):
            msg = f"{NAME}: threshold={self.threshold} is no score; use one such as 0.28, or null"
            raise RecipeError(msg)
        if self.threshold is None and self.policy in _NEEDS_THRESHOLD:
            msg = f"{NAME}: policy={self.policy} without a threshold drops nothing; give one"
            raise RecipeError(msg)
        self._check_scores()
        names = self.reads.names
        clash = set(self.writes.names) & {*names, "uid"}
        if not self.column or clash or len(set(names)) < len(self._columns()):
            msg = (
                f"{NAME}: column={self.column!r} and the columns it reads, {', '.join(names)}, "
                "have to be different names"
            )
            raise RecipeError(msg)

    def _check_scores(self) -> None:
        unscored = [
            name
            for name, used in (
                ("raw_score", self._uses_raw),
                ("synthetic_scores", self._uses_synthetic),
            )
            if used and getattr(self, name) is None
        ]
        if unscored and self.threshold is not None:
            msg = (
                f"{NAME}: {unscored[0]}=null: nothing can pass threshold={self.threshold}; name "
                "the column of scores, or leave the threshold out"
            )
            raise RecipeError(msg)
        if unscored and self.policy == "better":
            msg = f"{NAME}: policy=better compares scores, but {unscored[0]}=null; name a column"
            raise RecipeError(msg)

    @property
    def _uses_raw(self) -> bool:
        return self.policy != "synthetic"

    @property
    def _uses_synthetic(self) -> bool:
        return self.policy != "raw"

    def _columns(self) -> list[tuple[str, pa.DataType]]:
        wanted: list[tuple[str | None, pa.DataType]] = []
        if self._uses_raw:
            wanted += [(self.text_column, pa.string()), (self.raw_score, pa.float32())]
        if self._uses_synthetic:
            texts = pa.list_(pa.string())
            wanted += [(self.synthetic, texts), (self.synthetic_scores, pa.list_(pa.float32()))]
            wanted.append((self.unsupported, pa.list_(texts)))
        return [(name, kind) for name, kind in wanted if name is not None]

    @property
    def reads(self) -> pa.Schema:
        """The texts and scores of the sources that the policy looks at."""
        return pa.schema(dict(self._columns()))

    @property
    def writes(self) -> pa.Schema:
        """The choice, all that could have been chosen, where it came from, the error."""
        return pa.schema(
            {
                self.column: pa.string(),
                f"{self.column}_all": pa.list_(pa.string()),
                f"{self.column}_source": pa.string(),
                f"{self.column}_score": pa.float32(),
                f"{self.column}_error": pa.string(),
            }
        )

    def annotate(self, batch: pa.RecordBatch, state: None, media: Media) -> pa.RecordBatch:
        """Choose for each row; no row depends on another."""
        uids = batch.column("uid").to_pylist()
        raws, synthetics = self._raw(batch), self._synthetic(batch)
        rows = [self._choose(*row) for row in zip(uids, raws, synthetics, strict=True)]
        columns = zip(*rows, strict=True) if rows else ([],) * len(self.writes)
        arrays = [pa.array(list(c), f.type) for c, f in zip(columns, self.writes, strict=True)]
        return pa.record_batch(arrays, schema=self.writes)

    def _raw(self, batch: pa.RecordBatch) -> list[list[Caption]]:
        if not self._uses_raw:
            return [[]] * batch.num_rows
        texts = batch.column(self.text_column).to_pylist()
        scores = _values(batch, self.raw_score)
        return [captions([t], [s], "raw") for t, s in zip(texts, scores, strict=True)]

    def _synthetic(self, batch: pa.RecordBatch) -> list[list[Caption]]:
        if not self._uses_synthetic:
            return [[]] * batch.num_rows
        texts = batch.column(self.synthetic).to_pylist()
        scores = _values(batch, self.synthetic_scores)
        named = _values(batch, self.unsupported)
        return [
            captions(t or (), s or (), "synthetic", n or ())
            for t, s, n in zip(texts, scores, named, strict=True)
        ]

    def _choose(self, uid: bytes, raw: list[Caption], synthetic: list[Caption]) -> tuple[Any, ...]:
        least = None if self.threshold is None else float(np.float32(self.threshold))
        drawn = self.policy == "mix" and stable_hash64(NAME, self.seed, uid) < self.share * 2**64
        taken = choose(
            self.policy, passing(raw, least), passing(synthetic, least), synthetic_first=drawn
        )
        if not taken:
            return None, None, None, None, "no_caption" if raw or synthetic else "missing"
        best = taken[0]
        return best.text, [c.text for c in taken], best.source, best.score, None


def _values(batch: pa.RecordBatch, name: str | None) -> list[Any]:
    return [None] * batch.num_rows if name is None else batch.column(name).to_pylist()
