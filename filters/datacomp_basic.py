"""DataComp's basic filter: English, long enough, large enough, not too narrow."""

from __future__ import annotations

from winnow.contracts.registry import register_filter
from winnow.filters.caption_length import caption_length
from winnow.filters.expr import Expr, all_of
from winnow.filters.language_is import language_is
from winnow.filters.max_aspect_ratio import max_aspect_ratio
from winnow.filters.min_image_size import min_image_size


@register_filter("datacomp_basic")
def datacomp_basic() -> Expr:
    """Keep rows that DataComp's basic filter keeps.

    Source: mlfoundations/datacomp, baselines/apply_filter.py, load_uids_with_basic_filter_helper:
    the language is English, more than 2 words (``str.split``) and more than 5 characters (code
    points), smaller side >= 200, longer / shorter side <= 3.0. Two differences: the language is
    what the stage ``language`` says (``method: fasttext`` there for lid.176 alone), and sides are
    measured after EXIF orientation, which changes neither the smaller side nor the ratio.

    Reads:  language: string; num_words, num_characters: int32; width, height: int32;
            aspect_ratio: float32. Null = no caption, or not decoded.
    """
    return all_of(
        language_is(languages=("en",)),
        caption_length(min_words=3, min_characters=6),
        min_image_size(side=200),
        max_aspect_ratio(ratio=3.0),
    )
