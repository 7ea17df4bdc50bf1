"""Rows that trained a model, and the model that never saw them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from winnow.contracts.identity import stable_hash64

UNKNOWN_FOLD = "unknown_fold"
"""The error code of a row whose fold has no model."""


def model_of_fold(
    stage: str, uids: Sequence[bytes], folds: Sequence[str | None], num_models: int
) -> Iterator[int | None]:
    """Yield the place of each row's model: fold "k" has model k; None where there is none.

    A row without a fold trained no model: hash(stage, uid) chooses, so that none decides for all.
    """
    known = {str(index): index for index in range(num_models)}
    for uid, fold in zip(uids, folds, strict=True):
        if fold is None:
            yield stable_hash64(stage, uid) % num_models
        else:
            yield known.get(fold)
