"""Random draws that are the same on every machine and Python version."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from winnow.contracts.identity import Identity, stable_hash64

T = TypeVar("T")


class Draw:
    """A stream of draws that depends on nothing but its fields.

    Only ``random.Random.random`` is used, whose sequence Python promises to keep.
    """

    __slots__ = ("_random",)

    def __init__(self, *fields: Identity) -> None:
        self._random = random.Random(stable_hash64(*fields)).random

    def uniform(self, low: float, high: float) -> float:
        """Return a float in [low, high)."""
        return low + (high - low) * self._random()

    def integer(self, low: int, high: int) -> int:
        """Return an int in [low, high], both ends included."""
        return low + int((high - low + 1) * self._random())

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self._random() < probability

    def pick(self, values: Sequence[T]) -> T:
        """Return one of the values."""
        return values[int(len(values) * self._random())]
