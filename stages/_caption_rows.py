"""What every engine of the caption stage hands back: candidates, from which a row is made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One text that an engine gave.

    log_likelihood: natural logarithm, summed over num_tokens tokens; None where it is not known.
    finished: False = cut at max_tokens.
    """

    text: str
    log_likelihood: float | None = None
    num_tokens: int = 0
    finished: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionRow:
    """One row's outcome: texts with their log-likelihoods, or an error; never both."""

    texts: tuple[str, ...] = ()
    log_likelihoods: tuple[float | None, ...] = ()
    model: str = ""
    error: str | None = None


def failed(code: str) -> CaptionRow:
    """Return the outcome of a row that has no caption."""
    return CaptionRow(error=code)


def caption_row(candidates: Sequence[Candidate], *, model: str, keep_cut: bool) -> CaptionRow:
    """Return a row's outcome: usable candidates, most likely per token first, none twice.

    Those whose likelihood is not known come last, in the engine's own order; of two equal texts the
    one with a likelihood is kept, then the likelier one. A row without a usable candidate
    has the code "not_finite", "too_long" or "empty_caption", whichever of them comes first here.
    """
    codes: set[str] = set()
    usable: dict[str, Candidate] = {}
    for candidate in candidates:
        text = _clean(candidate.text)
        code = _code(candidate, text, keep_cut=keep_cut)
        if code is None:
            best = usable.get(text)
            if best is None or _per_token(candidate) > _per_token(best):
                usable[text] = candidate
        else:
            codes.add(code)
    if not usable:
        order = ("not_finite", "too_long", "empty_caption")
        return failed(next((code for code in order if code in codes), "empty_caption"))
    texts = sorted(usable, key=lambda text: -_per_token(usable[text]))
    return CaptionRow(
        texts=tuple(texts),
        log_likelihoods=tuple(usable[text].log_likelihood for text in texts),
        model=model,
    )


def columns(rows: Sequence[CaptionRow], prompt: str, schema: pa.Schema) -> pa.RecordBatch:
    """Return the five columns of the stage."""
    good = [row.error is None for row in rows]
    values = [
        [list(row.texts) if ok else None for row, ok in zip(rows, good, strict=True)],
        [list(row.log_likelihoods) if ok else None for row, ok in zip(rows, good, strict=True)],
        [row.model if ok else None for row, ok in zip(rows, good, strict=True)],
        [prompt if ok else None for ok in good],
        [row.error for row in rows],
    ]
    arrays = [pa.array(v, field.type) for v, field in zip(values, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _code(candidate: Candidate, text: str, *, keep_cut: bool) -> str | None:
    value = candidate.log_likelihood
    if value is not None and not math.isfinite(value):
        return "not_finite"
    if not candidate.finished and not keep_cut:
        return "too_long"
    return None if text else "empty_caption"


def _per_token(candidate: Candidate) -> float:
    if candidate.log_likelihood is None:
        return -math.inf  # below all that are known: those are finite
    return candidate.log_likelihood / max(candidate.num_tokens, 1)


def _clean(text: str) -> str:
    """Outer white space off; what UTF-8 cannot hold (a lone surrogate out of JSON) replaced."""
    return text.encode("utf-8", "replace").decode("utf-8").strip()
