"""Checks of parameters that several evaluations have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from winnow.contracts.errors import RecipeError

Modality = Literal["image", "text", "audio"]


def check_cutoffs(who: str, name: str, values: Sequence[int]) -> None:
    """Refuse cut-offs (the k of recall@k) that are not rising whole numbers from 1."""
    if not values or values[0] < 1 or any(b <= a for a, b in zip(values, values[1:], strict=False)):
        msg = f"{who}: {name}={list(values)}; use rising whole numbers from 1, such as [1, 5]"
        raise RecipeError(msg)


def check_names(who: str, name: str, values: Sequence[str], *, least: int = 0) -> None:
    """Refuse a list of names with an empty or a repeated one, or with fewer than ``least``."""
    if len(values) < least or len(set(values)) < len(values) or not all(v.strip() for v in values):
        some = f"{least} or more different names" if least else "different names"
        msg = f"{who}: {name}={list(values)}; use {some}, none of them empty"
        raise RecipeError(msg)


def check_pair(who: str, pair: Sequence[str]) -> None:
    """Refuse a pair of equal modalities."""
    if len(pair) != 2 or pair[0] == pair[1]:
        msg = f"{who}: pair={list(pair)}; use two different modalities, such as [image, text]"
        raise RecipeError(msg)


def check_least(who: str, name: str, value: int | None, least: int) -> None:
    """Refuse a number below ``least``; None is no number."""
    if value is not None and value < least:
        msg = f"{who}: {name}={value}; use {least} or more"
        raise RecipeError(msg)
