"""One message for every threshold that cannot be meant."""

from __future__ import annotations

from winnow.contracts.errors import RecipeError


def require_between(
    filter_name: str, parameter: str, value: float, low: float, high: float = float("inf")
) -> None:
    """Raise RecipeError unless ``low <= value <= high``; NaN is never between."""
    if low <= value <= high:
        return
    allowed = f"at least {low:g}" if high == float("inf") else f"in [{low:g}, {high:g}]"
    msg = f"{filter_name}: {parameter}={value} can never be right; use a value {allowed}"
    raise RecipeError(msg)


def require_some(filter_name: str, **parameters: object) -> None:
    """Raise RecipeError where every parameter is None: such a filter would keep everything."""
    if all(value is None for value in parameters.values()):
        msg = f"{filter_name}: nothing is asked; give at least one of {', '.join(parameters)}"
        raise RecipeError(msg)


def require_column(filter_name: str, column: str, example: str) -> None:
    """Raise RecipeError where ``column`` names no column."""
    if not column:
        msg = f"{filter_name}: column='' names no column; use one, such as {example!r}"
        raise RecipeError(msg)
