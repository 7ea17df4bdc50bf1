"""Keep captions that look like text, and not like a URL or a file name."""

from __future__ import annotations

from typing import Literal

from winnow.contracts.errors import RecipeError
from winnow.contracts.registry import register_filter
from winnow.filters.expr import Expr, col

Shape = Literal["text", "url", "email", "file_name", "empty", "digits"]
"""What caption_stats can say a caption is."""


@register_filter("caption_shape_is")
def caption_shape_is(*, shapes: tuple[Shape, ...] = ("text",)) -> Expr:
    """Keep rows whose ``caption_shape`` is one of ``shapes``.

    Reads:  caption_shape: string (see caption_stats); null = no caption.
    Fails:  RecipeError if shapes is empty.
    """
    if not shapes:
        msg = 'caption_shape_is: shapes is empty; write for example shapes: ["text"]'
        raise RecipeError(msg)
    return col("caption_shape").is_in(shapes)
