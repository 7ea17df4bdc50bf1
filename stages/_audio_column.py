"""The column of a recording, where its name is a stage's parameter."""

from __future__ import annotations

from winnow.contracts.errors import RecipeError


def check_audio_column(stage: str, column: str) -> None:
    """Raise RecipeError where ``audio_column`` names no column."""
    if not column:
        msg = f"{stage}: audio_column='' is not allowed: it names no column; use one, such as audio"
        raise RecipeError(msg)
