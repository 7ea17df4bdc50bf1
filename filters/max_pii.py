"""Drop texts that carry personal data."""

from __future__ import annotations

from typing import Literal

from winnow.contracts.errors import RecipeError
from winnow.contracts.registry import register_filter
from winnow.filters._bounds import require_between
from winnow.filters.expr import Expr, col

PiiKind = Literal["email", "phone", "ip_address", "card_number", "iban"]
ALL: tuple[PiiKind, ...] = ("email", "phone", "ip_address", "card_number", "iban")
_COLUMNS: dict[PiiKind, str] = {
    "email": "num_emails",
    "phone": "num_phones",
    "ip_address": "num_ip_addresses",
    "card_number": "num_card_numbers",
    "iban": "num_ibans",
}


@register_filter("max_pii")
def max_pii(*, most: int = 0, kinds: tuple[PiiKind, ...] = ALL) -> Expr:
    """Keep rows with at most ``most`` places of the named kinds together.

    Reads:  of the kinds, num_emails, num_phones, num_ip_addresses, num_card_numbers, num_ibans:
            int32 (see the stage pii); null = no text.
    Fails:  RecipeError if most is negative or kinds is empty or names one twice.
    """
    require_between("max_pii", "most", most, 0)
    if not kinds or len(set(kinds)) < len(kinds):
        msg = f"max_pii: kinds={list(kinds)}; name at least one of {', '.join(ALL)}, each once"
        raise RecipeError(msg)
    first, *others = (col(_COLUMNS[kind]) for kind in kinds)
    total: Expr = first
    for column in others:
        total = total + column
    return total <= most
