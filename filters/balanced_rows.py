"""Keep a balanced subset: so many rows of each language, modality or any other group."""

from __future__ import annotations

import math
from collections.abc import Mapping

from winnow.contracts.errors import RecipeError
from winnow.contracts.registry import register_filter
from winnow.filters._parse import parse_expression
from winnow.filters.rules import OTHERS, BalancedRows


@register_filter("balanced_rows")
def balanced_rows(
    *,
    by: tuple[str, ...] = (),
    present: Mapping[str, str] | None = None,
    cap: int | Mapping[str, int] | None = None,
    weights: Mapping[str, float] | None = None,
    total: int | None = None,
    seed: int = 0,
) -> BalancedRows:
    """Keep so many rows of each group, of those that the filters before this one kept.

    A row's group is the values of the columns ``by`` and, with ``present``, the names of the
    conditions that are true of it: ``present: {image: "image_ref is not None", audio: "audio_ref
    is not None"}`` gives "image+audio", "image", "audio" and "none". Several parts are joined by
    "/": "en/image+audio". A null is the group "null".

    cap: at most so many rows of each group; or of the groups that a mapping names, ``"*"`` standing
        for each other group (without it, those are not capped).
    weights: group -> relative weight, ``"*"`` for each other group (without it, those are dropped).
        Without ``total``, as many rows as the scarcest group of the pool allows; with it, ``total``
        rows shared out by weight (largest remainder), of a group that is too small all there are.

    The rows of a group are those with the least hash(seed, uid), as with ``random_rows``: no shard,
    worker or order counts, and a larger cap gives a superset. The ledger says of a dropped row its
    group, how many of it were kept, and of how many. Like ``random_rows`` it may stand after
    ``drop_near_duplicates``.

    Reads:  the columns of ``by``: string, integer or boolean; those of the conditions.
    Null:   a group of its own, so on_null changes nothing.
    Fails:  RecipeError unless there is a group and one of cap and weights, of numbers that can be
            meant. ShardError where the rows have more than 100,000 groups.
    """
    if not by and not present:
        _refuse('name a column in by, such as ["language"], or a condition in present')
    if len(set(by)) < len(by) or not all(by):
        _refuse(f"by={list(by)} names a column twice, or none")
    if (cap is None) == (weights is None):
        _refuse("give either cap, such as 10000, or weights, such as {en: 2, de: 1}")
    for name in present or {}:
        if not name or set(name) & set("+/"):
            _refuse(f"present: {name!r} cannot name a condition; use a word without + and /")
    _check_numbers(cap, weights, total)
    caps = {OTHERS: cap} if isinstance(cap, int) else cap
    return BalancedRows(
        by=by,
        present=tuple((name, parse_expression(text)) for name, text in (present or {}).items()),
        caps=None if caps is None else tuple(sorted(caps.items())),
        weights=None if weights is None else tuple(sorted(weights.items())),
        total=total,
        seed=seed,
    )


def _check_numbers(
    cap: int | Mapping[str, int] | None, weights: Mapping[str, float] | None, total: int | None
) -> None:
    if isinstance(cap, int) and cap < 1:
        _refuse(f"cap={cap} must be at least 1")
    if isinstance(cap, Mapping) and (not cap or min(cap.values()) < 0):
        _refuse(f"cap={dict(cap)} must name at least one group, with 0 rows or more")
    if weights is not None:
        good = all(math.isfinite(w) and w >= 0 for w in weights.values())
        if not good or not any(weights.values()):
            _refuse(f"weights={dict(weights)} must be numbers of 0 or more, one of them above 0")
    if total is not None and (weights is None or total < 1):
        _refuse(f"total={total} goes with weights and must be at least 1")


def _refuse(problem: str) -> None:
    msg = f"balanced_rows: {problem}"
    raise RecipeError(msg)
