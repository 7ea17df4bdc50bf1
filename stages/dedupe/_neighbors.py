"""Neighbour lists of uids out of pairs of groups: bounded, sorted, assembled shard by shard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from winnow.stages.dedupe._columns import Octets, fixed_binary
from winnow.stages.dedupe._hamming import Indices, expand

Distances = npt.NDArray[Any]
"""Of any numeric type, 0 for equal items; the list of distances has that type."""


class NeighborLists:
    """Lists for items (distinct uids, in ascending order) in groups with pairs between groups.

    groups: for every item the least item of its group.  pairs: between such least items, each once.
    """

    def __init__(
        self, uids: Octets, groups: Indices, pairs: tuple[Indices, Indices, Distances]
    ) -> None:
        self._uids, self._groups = uids, groups
        left, right, distances = pairs
        sources, targets = np.concatenate((left, right)), np.concatenate((right, left))
        order = np.argsort(sources, kind="stable")
        self._targets = targets[order]
        self._distances = np.concatenate((distances, distances))[order]
        self._starts = _starts(sources, len(groups))
        self._members = np.argsort(groups, kind="stable")
        self._member_starts = _starts(groups, len(groups))

    def num_entries(self, items_of_rows: Indices) -> int:
        """Return the length of the lists of some rows, -1 standing for null."""
        items = items_of_rows[items_of_rows >= 0]
        counts = np.bincount(items, minlength=len(self._groups))
        sizes, degrees = np.diff(self._member_starts), np.diff(self._starts)
        lengths = degrees[self._groups] + self._num_siblings(np.arange(len(self._groups)), sizes)
        return int(counts @ lengths)

    def _num_siblings(self, items: Indices, sizes: Indices) -> Indices:
        """Entries from the item's own group: all others for its least member, else one."""
        return np.where(self._groups[items] == items, sizes[items] - 1, 1)

    def columns(self, items_of_rows: Indices) -> Iterator[pa.Array]:
        """Yield neighbours, distances and groups for the rows of a shard; -1 stands for null."""
        null = items_of_rows < 0
        rows = np.flatnonzero(~null)
        items = items_of_rows[rows]
        row, entry, distance = self._entries(rows, items)
        offsets = np.zeros(len(null) + 1, np.int64)
        np.cumsum(np.bincount(row, minlength=len(null)), out=offsets[1:])
        bounds = pa.array(offsets.astype(np.int32))
        mask = pa.array(null)
        for values in (fixed_binary(self._uids[entry]), pa.array(distance)):
            yield pa.ListArray.from_arrays(bounds, values, mask=mask)
        group = np.zeros((len(null), self._uids.shape[1]), np.uint8)
        group[rows] = self._uids[self._groups[items]]
        alone = null.copy()
        alone[rows] = np.diff(self._member_starts)[self._groups[items]] < 2
        yield fixed_binary(group, null=alone)

    def _entries(self, rows: Indices, items: Indices) -> tuple[Indices, Indices, Distances]:
        """Return (row, item listed, distance) in order of row and item."""
        groups = self._groups[items]
        degrees = self._starts[groups + 1] - self._starts[groups]
        near = expand(self._starts[groups], degrees)
        least = groups == items
        sizes = self._member_starts[groups + 1] - self._member_starts[groups] - 1
        # The least member comes first among its group's members.
        others = expand(self._member_starts[groups[least]] + 1, sizes[least])
        row = np.concatenate(
            (np.repeat(rows, degrees), np.repeat(rows[least], sizes[least]), rows[~least])
        )
        entry = np.concatenate((self._targets[near], self._members[others], groups[~least]))
        distance = np.zeros(len(row), self._distances.dtype)
        distance[: len(near)] = self._distances[near]
        order = np.lexsort((entry, row))
        return row[order], entry[order], distance[order]


def _starts(sources: Indices, count: int) -> Indices:
    starts = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(sources, minlength=count), out=starts[1:])
    return starts
