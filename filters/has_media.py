"""Keep rows whose image or audio is there."""

from __future__ import annotations

from winnow.contracts.registry import register_filter
from winnow.filters.expr import Expr, col


@register_filter("has_media")
def has_media(*, error_column: str) -> Expr:
    """Keep rows with ``error_column is None``: the stage that brought the media did not fail.

    The pipeline puts this filter first by itself, with the error column of the stage that writes
    the exported payload (``download_error``, ``image_info_error``).

    Reads:  the error column: string, null = no error.
    Null:   never; the condition is true or false for every row.
    """
    return col(error_column).is_null()
