"""The order in which a stream shows its samples, from numbers alone: no shard is opened for it.

A stream has lanes. Every epoch the shards are shuffled and dealt to the lanes like cards; a lane
goes through its shards one after the other, through a shuffle buffer of its own. The order depends
on the sizes of the shards, the seed, and the numbers of lanes and of waiting samples only, so that
any position can be found again and any number of workers that divides the lanes sees the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np

NUM_SPARES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Lane:
    """One of ``num_lanes`` lanes over shards of ``sizes`` samples.

    waiting: samples in its shuffle buffer.
    """

    sizes: Sequence[int]
    seed: int
    number: int
    num_lanes: int
    waiting: int

    def shards(self, epoch: int) -> list[int]:
        """Return the numbers of its shards in an epoch, in order."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.sizes))
        return [int(shard) for shard in order[self.number :: self.num_lanes]]

    def length(self, epoch: int) -> int:
        """Return the number of its samples in an epoch."""
        return sum(self.sizes[shard] for shard in self.shards(epoch))

    def locate(self, position: int) -> tuple[int, int]:
        """Return the epoch and the place in it of a position in the lane's endless order."""
        epoch = 0
        while True:
            length = self.length(epoch)
            if position < length:
                return epoch, position
            position -= length
            epoch += 1

    def epochs(self, position: int) -> Iterator[int]:
        """Yield the epoch of each position from this one on, for ever."""
        epoch, place = self.locate(position)
        while True:
            yield from repeat(epoch, self.length(epoch) - place)
            epoch, place = epoch + 1, 0

    def shuffle(self, epoch: int) -> Shuffle:
        """Return the shuffle buffer at the start of an epoch."""
        return Shuffle(self.length(epoch), self.waiting, [self.seed, epoch, self.number])


class Shuffle:
    """A shuffle buffer over the numbers 0 .. length - 1, which enter it in order.

    waiting: the numbers that are in it.  entered: how many have entered it so far.
    """

    def __init__(self, length: int, capacity: int, seed: Sequence[int]) -> None:
        self.length, self.entered = length, min(capacity, length)
        self.waiting = list(range(self.entered))
        self._draw = np.random.default_rng(seed).random

    def pop(self) -> int | None:
        """Return the next number, or None after the last."""
        waiting = self.waiting
        if not waiting:
            return None
        place = int(self._draw() * len(waiting))
        number = waiting[place]
        if self.entered < self.length:
            waiting[place] = self.entered
            self.entered += 1
        else:
            waiting[place] = waiting[-1]
            waiting.pop()
        return number

    def spares(self, number: int) -> list[int]:
        """Return up to three numbers that wait, for use in place of one that cannot be."""
        count = len(self.waiting)
        return [self.waiting[(number + i) % count] for i in range(min(NUM_SPARES, count))]
