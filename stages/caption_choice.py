"""Choose the caption to train on: the web's, a synthetic one, several, or none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

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
T = TypeVar("T", str, float)
_NEEDS_THRESHOLD = ("raw_else_synthetic_else_drop",)


class Caption(NamedTuple):
    """One caption that is there. scores: one per scorer; None where it has none (null and NaN).

    refused: it names an object that is not in the picture, as far as one can tell.
    """

    text: str
    scores: tuple[float | None, ...]
    source: Source
    refused: bool = False

    @property
    def score(self) -> float | None:
        """The first scorer's, by which captions are ranked; None where nothing scored it."""
        return self.scores[0] if self.scores else None


def captions(
    texts: Sequence[str | None],
    scores: Sequence[Sequence[float | None]],
    source: Source,
    unsupported: Sequence[Sequence[str | None] | None] = (),
) -> list[Caption]:
    """Return those that are there, in their order.

    scores: a list per scorer; these and unsupported may be shorter than texts.
    """
    found = []
    for place, text in enumerate(texts):
        if text is not None and text.strip():
            given = (one[place] if place < len(one) else None for one in scores)
            known = tuple(None if s is None or math.isnan(s) else s for s in given)
            refused = place < len(unsupported) and bool(unsupported[place])
            found.append(Caption(text, known, source, refused))
    return found


def passing(found: Sequence[Caption], thresholds: Sequence[float]) -> list[Caption]:
    """Return the captions that pass every threshold, the best first, no text twice.

    thresholds: one per scorer, at or above which a caption passes; () = all pass. One without a
    score passes no threshold on it, and comes after those that have one in the order, which is by
    the first scorer. Equal scores keep their order.
    """

    def passes(caption: Caption) -> bool:
        if caption.refused:
            return False
        if not thresholds:
            return True
        pairs = zip(caption.scores, thresholds, strict=True)
        return all(score is not None and score >= least for score, least in pairs)

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
    both = passing([*raw, *synthetic], ())
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

    Several scorers, CLIP and a matching head, judge together where lists name their columns in one
    order; a caption passes if each of its scores is at least its threshold, and none is null:

        raw_score: [clip_score, match_score]
        synthetic_scores: [caption_scores, synthetic_match]
        threshold: [0.28, 0.5]

    The first ranks: "best", "better" and every order are by it alone.

    Reads:   <text_column> (text): string, the raw caption.  <raw_score> (clip_score): float32, each
             that is named.  <synthetic> (synthetic_captions): list<string>.  <synthetic_scores>
             (caption_scores): list<float32>, one per synthetic caption, from the same scorer as
             <raw_score>: CLIP's cosine or a matching head's probability; each that is named.
             <unsupported>: list<list<string>>, see ``hallucination``. Only those that the policy
             looks at.
    Writes:  <column> (chosen_caption): string, the best of those that the policy takes.
             <column>_all (chosen_caption_all): list<string>, all that it takes, best first.
             <column>_source (chosen_caption_source): string, "raw" | "synthetic", of <column>.
             <column>_score (chosen_caption_score): float32, of <column>, the first scorer's; null
             where it has none. Further scores have no column here: they are in those of their
             stages, at the caption's place.
             <column>_error: string (chosen_caption_error); null, "no_caption" (nothing passes: the
             policy drops the row, see the filter ``has_caption``) or "missing" (the sources that
             the policy looks at have no text at all). The others are null exactly then, the score
             aside.
    Cost:    CPU only; a few microseconds a row.
    Fails:   a bad row never raises. RecipeError for a policy that cannot work with its parameters.

    Texts and scores of both sources stay in their own columns, and exports carry them.

    threshold: of both sources, one per scorer; null = whatever is there passes.
    share, seed: of a mix; the draw is ``stable_hash64("caption_choice", seed, uid)``.
    raw_score, synthetic_scores: a column, or a list of them; null = that source has no scores.
    unsupported: a synthetic caption with a name in its list does not pass; null = not looked at. A
    row or caption that has no list was not measured, and passes.
    """

    policy: Policy = result("better")
    threshold: float | tuple[float, ...] | None = result(None)
    share: float = result(0.5)
    seed: int = result(0)
    text_column: str = result("text")
    raw_score: str | tuple[str, ...] | None = result("clip_score")
    synthetic: str = result("synthetic_captions")
    synthetic_scores: str | tuple[str, ...] | None = result("caption_scores")
    unsupported: str | None = result(None)
    column: str = result("chosen_caption")

    def __post_init__(self) -> None:
        """Refuse what can never choose as it says."""
        if not 0 <= self.share <= 1:
            msg = f"{NAME}: share={self.share}; use the share of synthetic captions, in [0, 1]"
            raise RecipeError(msg)
        for name in ("threshold", "raw_score", "synthetic_scores"):
            if getattr(self, name) == ():
                msg = f"{NAME}: {name}=[] holds nothing; give one or more, or null"
                raise RecipeError(msg)
        for value in _each(self.threshold):
            if not math.isfinite(value):
                msg = f"{NAME}: threshold={value} is no score; use one such as 0.28, or null"
                raise RecipeError(msg)
        if self.threshold is None and self.policy in _NEEDS_THRESHOLD:
            msg = f"{NAME}: policy={self.policy} without a threshold drops nothing; give one"
            raise RecipeError(msg)
        self._check_scores()
        self._check_lists()
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
                f"{NAME}: {unscored[0]}=null: nothing can pass threshold={_shown(self.threshold)}; "
                "name the column of scores, or leave the threshold out"
            )
            raise RecipeError(msg)
        if unscored and self.policy == "better":
            msg = f"{NAME}: policy=better compares scores, but {unscored[0]}=null; name a column"
            raise RecipeError(msg)

    def _check_lists(self) -> None:
        """Several scorers: as many columns of each source as thresholds."""
        used = {"raw_score": self._uses_raw, "synthetic_scores": self._uses_synthetic}
        lists = {name: getattr(self, name) for name, is_used in used.items() if is_used}
        lists["threshold"] = self.threshold
        several = [name for name, value in lists.items() if len(_each(value)) > 1]
        if several and self.threshold is None:
            msg = (
                f"{NAME}: {several[0]} names {len(_each(lists[several[0]]))} columns, but without "
                "a threshold for each only the first is looked at; give threshold a list, or name "
                "one column"
            )
            raise RecipeError(msg)
        counts = {name: len(_each(value)) for name, value in lists.items()}
        if self.threshold is not None and len(set(counts.values())) > 1:
            said = ", ".join(f"{name} has {count}" for name, count in counts.items())
            msg = f"{NAME}: {said}; give one column of each source per threshold, in one order"
            raise RecipeError(msg)

    @property
    def _uses_raw(self) -> bool:
        return self.policy != "synthetic"

    @property
    def _uses_synthetic(self) -> bool:
        return self.policy != "raw"

    def _columns(self) -> list[tuple[str, pa.DataType]]:
        wanted: list[tuple[str, pa.DataType]] = []
        if self._uses_raw:
            wanted.append((self.text_column, pa.string()))
            wanted += [(name, pa.float32()) for name in _each(self.raw_score)]
        if self._uses_synthetic:
            texts = pa.list_(pa.string())
            wanted.append((self.synthetic, texts))
            wanted += [(name, pa.list_(pa.float32())) for name in _each(self.synthetic_scores)]
            wanted += [(name, pa.list_(texts)) for name in _each(self.unsupported)]
        return wanted

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
        scores = _rows(batch, self.raw_score)
        return [
            captions([t], [[s] for s in row], "raw") for t, row in zip(texts, scores, strict=True)
        ]

    def _synthetic(self, batch: pa.RecordBatch) -> list[list[Caption]]:
        if not self._uses_synthetic:
            return [[]] * batch.num_rows
        texts = batch.column(self.synthetic).to_pylist()
        scores = _rows(batch, self.synthetic_scores)
        named = _rows(batch, self.unsupported)
        return [
            captions(t or (), [s or () for s in row], "synthetic", (n[0] if n else None) or ())
            for t, row, n in zip(texts, scores, named, strict=True)
        ]

    def _choose(self, uid: bytes, raw: list[Caption], synthetic: list[Caption]) -> tuple[Any, ...]:
        least = [float(np.float32(value)) for value in _each(self.threshold)]
        drawn = self.policy == "mix" and stable_hash64(NAME, self.seed, uid) < self.share * 2**64
        taken = choose(
            self.policy, passing(raw, least), passing(synthetic, least), synthetic_first=drawn
        )
        if not taken:
            return None, None, None, None, "no_caption" if raw or synthetic else "missing"
        best = taken[0]
        return best.text, [c.text for c in taken], best.source, best.score, None


def _each(value: T | tuple[T, ...] | None) -> tuple[T, ...]:
    """What a parameter holds: a list's members, one value, nothing."""
    if value is None:
        return ()
    return value if isinstance(value, tuple) else (value,)


def _shown(value: float | tuple[float, ...]) -> str:
    return str(list(value) if isinstance(value, tuple) else value)


def _rows(batch: pa.RecordBatch, names: str | tuple[str, ...] | None) -> list[tuple[Any, ...]]:
    """Return for every row its values of the columns that are named."""
    columns = [batch.column(name).to_pylist() for name in _each(names)]
    return list(zip(*columns, strict=True)) if columns else [()] * batch.num_rows
