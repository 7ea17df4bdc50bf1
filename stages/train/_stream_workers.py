"""The lanes of a stream in processes of their own, through torch's DataLoader.

For GPUs that are faster than one Python process can feed. Pixels travel in shared memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

if TYPE_CHECKING:
    from winnow.stages.train.streaming import ShardStream, StreamBatch


class _Lanes(IterableDataset[Any]):
    """Each process decodes an equal number of neighbouring lanes."""

    def __init__(self, stream: ShardStream, lanes: Sequence[int], step: int) -> None:
        self._stream, self._lanes, self._step = stream, list(lanes), step

    def __iter__(self) -> Iterator[Any]:
        import torch

        worker = get_worker_info()
        assert worker is not None
        each = len(self._lanes) // worker.num_workers
        lanes = self._lanes[worker.id * each : (worker.id + 1) * each]
        for batch in self._stream.decoded(self._step, lanes):
            pixels = torch.from_numpy(batch.pixels)
            tokens = None if batch.tokens is None else torch.from_numpy(batch.tokens)
            yield pixels, batch.texts, batch.columns, tokens, dict(batch.skipped)


def in_processes(stream: ShardStream, lanes: Sequence[int], step: int) -> Iterator[StreamBatch]:
    """Yield what ``stream.decoded(step, lanes)`` yields."""
    from winnow.stages.train.streaming import StreamBatch

    number = stream.config.num_processes
    loader = DataLoader(_Lanes(stream, lanes, step), batch_size=None, num_workers=number)
    # An iterable data set's items come in turn: one of each process makes a batch.
    items = iter(loader)
    while parts := list(islice(items, number)):
        tokens = [part[3] for part in parts]
        yield StreamBatch(
            pixels=np.concatenate([part[0].numpy() for part in parts]),
            texts=[text for part in parts for text in part[1]],
            columns={
                name: [value for part in parts for value in part[2][name]]
                for name in stream.config.columns
            },
            tokens=None if tokens[0] is None else np.concatenate([t.numpy() for t in tokens]),
            skipped=sum((Counter(part[4]) for part in parts), Counter()),
        )
