"""Keep one of each group of near-duplicates: the one that is preferred."""

from __future__ import annotations

from typing import Literal

from winnow.contracts.errors import RecipeError
from winnow.contracts.registry import register_filter
from winnow.filters.rules import PriorityCover

Medium = Literal["image", "audio", "text"]

LARGEST = ("largest width", "largest height", "largest image_size_bytes")
"""Near-duplicates have nearly one aspect ratio, so the wider one has more pixels."""
_PREFER: dict[Medium, tuple[str, ...]] = {
    "image": LARGEST,
    # What was cut is shorter; what was resampled or re-encoded has less of the others.
    "audio": ("largest audio_duration_s", "largest audio_sample_rate", "largest audio_bit_rate"),
    "text": (),
}
_COLUMNS: dict[Medium, tuple[str, str]] = {
    "image": ("near_duplicates", "near_duplicate_group"),
    "audio": ("near_duplicate_audio", "near_duplicate_audio_group"),
    "text": ("near_duplicate_texts", "near_duplicate_texts_group"),
}


@register_filter("drop_near_duplicates")
def drop_near_duplicates(
    *, prefer: tuple[str, ...] | None = None, media: Medium = "image"
) -> PriorityCover:
    """Keep a row unless it neighbours a kept row that is preferred to it.

    ``media`` says whose neighbours: images, recordings or texts. ``prefer`` lists columns with a
    direction, most important first: ``largest clip_score``, ``smallest image_size_bytes``. Nulls
    come last; the smaller uid wins a tie. Left out: for images largest width, height,
    image_size_bytes (of image_info); for audio largest audio_duration_s, audio_sample_rate,
    audio_bit_rate (of audio_info); for text the smallest uid. Every dropped row names the kept row
    it resembles (``duplicate_of`` in the ledger).

    Reads:  near_duplicates, near_duplicate_audio or near_duplicate_texts:
            list<fixed_size_binary(16)>, uids; null = no hash, such rows are kept.
            near_duplicate_group, near_duplicate_audio_group or near_duplicate_texts_group:
            binary(16), see near_duplicates; the columns of ``prefer``.
    Fails:  RecipeError if media is none of these, an item of prefer is not "largest COLUMN" or
            "smallest COLUMN", or a column comes twice.
    """
    if media not in _COLUMNS:
        msg = f"drop_near_duplicates: media={media!r} is not known; use {', '.join(_COLUMNS)}"
        raise RecipeError(msg)
    order = tuple(_preference(item) for item in (_PREFER[media] if prefer is None else prefer))
    columns = [column for column, _ in order]
    for column in columns:
        if columns.count(column) > 1:
            msg = f"drop_near_duplicates: prefer names {column!r} twice; keep the first"
            raise RecipeError(msg)
    neighbors, groups = _COLUMNS[media]
    return PriorityCover(neighbors=neighbors, prefer=order, groups=groups)


def _preference(item: str) -> tuple[str, Literal["largest", "smallest"]]:
    way, _, column = item.strip().partition(" ")
    column = column.strip()
    if column and way == "largest":
        return column, "largest"
    if column and way == "smallest":
        return column, "smallest"
    name = column or way or "clip_score"
    msg = (
        f"drop_near_duplicates: prefer has {item!r}; write a direction and a column, "
        f'such as "largest {name}" or "smallest {name}"'
    )
    raise RecipeError(msg)
