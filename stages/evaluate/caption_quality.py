"""Caption quality: are generated captions like the references, how long and how varied are they?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from winnow.contracts.errors import SetupError
from winnow.contracts.parameters import result
from winnow.contracts.registry import register_evaluation
from winnow.contracts.trial import Captioner, Evaluation, Score
from winnow.models.conversation import CAPTION_PROMPT
from winnow.stages._objects import words_of
from winnow.stages.evaluate._answers import Pictures, check_prompt, complete_pictures, described
from winnow.stages.evaluate._cider import cider_d
from winnow.stages.evaluate._parameters import check_least, check_names
from winnow.stages.evaluate._ratios import all_scores, mean
from winnow.stages.evaluate._rows import column_values
from winnow.stages.evaluate._slices import slice_keys


def entropy(counts: Counter[str]) -> float:
    """Return Shannon's entropy of the shares of counts, in bits; 0 for none."""
    values = np.array(sorted(counts.values()), np.float64)
    shares = values / max(values.sum(), 1.0)
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def plain_words(text: str) -> list[str]:
    """Return the lower-case words without punctuation, about what PTB tokenisation leaves."""
    return [word.text for word in words_of(text)]


@register_evaluation("caption_quality", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionQuality(Evaluation):
    """Compare one greedy caption per picture with the sample's own.

    Reads:   the captions, or ``references``: a column of texts or lists of texts; the columns of
             ``slices``. Generates one answer of at most ``max_tokens`` tokens per picture.
    Scores:  caption_quality.cider_d: the headline, CIDEr-D from 0 to 10 (``_cider``; Vedantam et
                 al. 2015), document frequencies from this set's references. Texts are compared as
                 lower-case words without punctuation. 0 throughout in a set of one.
             caption_quality.num_words: mean length, and caption_quality.num_reference_words.
             caption_quality.unique: different answers / answers. caption_quality.entropy: of the
                 answers as wholes, in bits (log2 of the pictures where all differ);
                 caption_quality.word_entropy: of their words.
             caption_quality.cut_off: share of answers that reached ``max_tokens``.
                 caption_quality.empty: share without a word.
             all but unique and the entropies per slice. caption_quality.num_left_out: samples
                 without a reference.
    Cost:    one generation per picture; CIDEr-D about 0.2 ms for ten words.
    Fails:   SetupError where a column is missing or no sample has a reference. RecipeError for bad
             parameters.

    CIDEr-D says how alike texts are, not how useful: it does not predict what captions do for
    training (Nguyen et al. 2023).
    """

    prompt: str = result(CAPTION_PROMPT)
    max_tokens: int = result(64)
    references: str | None = result(None)
    slices: tuple[str, ...] = result(())
    max_slices: int = result(50)

    subject = "captions"

    def __post_init__(self) -> None:
        check_prompt("caption_quality", self.prompt)
        check_least("caption_quality", "max_tokens", self.max_tokens, 1)
        check_least("caption_quality", "max_slices", self.max_slices, 1)
        check_names("caption_quality", "slices", self.slices)
        check_names("caption_quality", "references", (self.references or "caption",))

    @property
    def columns(self) -> tuple[str, ...]:
        return (*((self.references,) if self.references else ()), *self.slices)

    def measure(self, subject: Captioner) -> list[Score]:
        who = "caption_quality"
        found = complete_pictures(who, subject, [self.references or "caption"])
        references = _references(found, self.references or "caption")
        answers = described(who, subject, found, self.prompt, self.max_tokens)
        words = [plain_words(answer.text) for answer in answers]
        lengths = [float(len(w)) for w in words]
        reference_lengths = [float(np.mean([len(r) for r in rows])) for rows in references]
        cut = [float(not answer.finished) for answer in answers]
        keys = found.keys
        ratios = [
            mean(f"{who}.cider_d", cider_d(words, references), keys),
            mean(f"{who}.num_words", lengths, keys, None),
            mean(f"{who}.num_reference_words", reference_lengths, keys, None),
            mean(f"{who}.cut_off", cut, keys, False),
            mean(f"{who}.empty", [float(not w) for w in words], keys, False),
        ]
        slices = slice_keys(who, found.table, self.slices, self.max_slices)
        return [
            *all_scores(ratios, slices),
            *_variety([" ".join(w) for w in words]),
            found.left_out_score(who),
        ]


def _references(found: Pictures, column: str) -> list[list[list[str]]]:
    """Return the words of each reference of each row."""
    kind = found.table.schema.field(column).type
    inner = kind.value_type if pa.types.is_list(kind) else kind
    if not (pa.types.is_string(inner) or pa.types.is_large_string(inner)):
        msg = f"caption_quality: column {column!r} holds {kind}; use texts or lists of texts"
        raise SetupError(msg)
    values = column_values("caption_quality", found.table, column)
    rows = [value if isinstance(value, list) else [value] for value in values]
    if not all(any(row) for row in rows):
        msg = (
            f"caption_quality: column {column!r} has rows without a text; leave them out of the set"
        )
        raise SetupError(msg)
    return [[plain_words(str(text)) for text in row if text] for row in rows]


def _variety(texts: Sequence[str]) -> list[Score]:
    counts = Counter(texts)
    words = Counter(word for text in texts for word in text.split())
    values = {
        "unique": len(counts) / len(texts),
        "entropy": entropy(counts),
        "word_entropy": entropy(words),
    }
    return [
        Score(
            metric=f"caption_quality.{name}",
            value=value,
            num_items=len(texts),
            higher_is_better=None,
        )
        for name, value in values.items()
    ]
