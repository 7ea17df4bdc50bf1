"""Several captions for one picture: which of them a sample has in which epoch.

One is drawn per epoch and sample, by a hash of the seed, the epoch and the sample's key. So a run
that was killed goes on with the same captions, and a stream draws what memory would.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.identity import stable_hash64


def caption_number(seed: int, epoch: int, key: str, count: int) -> int:
    """Return which of ``count`` captions a sample has in an epoch."""
    return stable_hash64("caption", seed, epoch, key) % count if count > 1 else 0


def texts_of(value: Any, *, column: str, key: str) -> list[str]:
    """Return the texts of a JSON value: none for null; null and white space are no texts.

    Fails: SetupError for a value that is no list of texts.
    """
    values = [] if value is None else value
    if not isinstance(values, list) or not all(isinstance(v, str | None) for v in values):
        msg = f"caption_choices: {column} of sample {key} is no list of texts"
        raise SetupError(msg)
    return [v.strip() for v in values if v and v.strip()]


def check_found(found: Iterable[Sequence[str]], column: str) -> None:
    """Raise SetupError where no sample has a list with a text: the column is not there."""
    if not any(found):
        msg = (
            f"caption_choices: no sample has a list of texts in the column {column} of its .json "
            "member; name a column that the export writes"
        )
        raise SetupError(msg)


def check_choices(
    caption_choices: str | None, hard_negatives: str | None, separation_weight: float
) -> None:
    """Raise RecipeError for what several captions cannot be combined with."""
    if caption_choices is None:
        return
    if not caption_choices or caption_choices == hard_negatives:
        msg = (
            f"contrastive: caption_choices={caption_choices!r}; name a .json column with true "
            "captions, or leave it out"
        )
        raise RecipeError(msg)
    if separation_weight:
        msg = (
            f"contrastive: separation_weight={separation_weight} with caption_choices: it compares "
            "one caption per sample; leave one of them out"
        )
        raise RecipeError(msg)
