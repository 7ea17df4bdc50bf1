"""The samples of one lane of a stream, in the lane's order, read ahead in a thread."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from winnow.contracts.errors import ShardError
from winnow.stages.train._lanes import Lane
from winnow.stages.train._shard_reader import Sample, read_shard

logger = logging.getLogger(__name__)

MISSING: Sample = {}
"""In place of a sample that its shard should hold and does not."""

Slot = list[Sample]
"""A sample and those that stand in for it if it cannot be used."""


class LaneReader:
    """Reads the shards of a lane: ``paths`` in the order of the lane's sizes.

    wanted: the extensions whose members are read.
    """

    def __init__(self, paths: Sequence[str], lane: Lane, wanted: Callable[[str], bool]) -> None:
        self._paths, self._lane, self._wanted = paths, lane, wanted

    def slots(self, position: int) -> Iterator[Slot]:
        """Yield the lane's samples from a position of its endless order on.

        What comes before costs no decoding, and no reading but of the shards whose samples wait
        in the shuffle buffer there.

        Fails: SetupError for a shard that cannot be opened; ShardError, retryable, where reading
        stops. A shard that is cut or no tar gives MISSING for what is not there.
        """
        epoch, place = self._lane.locate(position)
        while True:
            yield from self._epoch(epoch, place)
            epoch, place = epoch + 1, 0

    def _epoch(self, epoch: int, place: int) -> Iterator[Slot]:
        """Yield the samples of one epoch from ``place`` on."""
        shuffle = self._lane.shuffle(epoch)
        for _ in range(place):
            shuffle.pop()
        held: dict[int, Sample] = {}
        reader = self._read(self._lane.shards(epoch), set(shuffle.waiting), shuffle.entered)
        while (number := shuffle.pop()) is not None:
            spares = shuffle.spares(number)
            for needed in (number, *spares):
                while needed not in held:
                    at, sample = next(reader)
                    held[at] = sample
            yield [held.pop(number), *(held[spare] for spare in spares)]

    def _read(
        self, shards: Sequence[int], waiting: set[int], entered: int
    ) -> Iterator[tuple[int, Sample]]:
        """Yield (number, sample) of those that wait and of all from ``entered`` on, in order.

        Shards that hold none of them are not opened.
        """
        start = 0
        for shard in shards:
            size = self._lane.sizes[shard]
            end = start + size
            if end > entered or any(start <= number < end for number in waiting):
                for number, sample in enumerate(self._samples(self._paths[shard], size), start):
                    if number >= entered or number in waiting:
                        yield number, sample
            start = end

    def _samples(self, path: str, size: int) -> Iterator[Sample]:
        """Yield exactly ``size`` samples of a shard; MISSING for those behind a cut."""
        count = 0
        try:
            for sample in read_shard(path, self._wanted):
                if count == size:
                    logger.warning("%s holds more than the %d samples it should", path, size)
                    return
                yield sample
                count += 1
        except ShardError as error:
            if error.retryable:
                raise
            logger.warning("%s", error)
        for _ in range(count, size):
            yield MISSING


@contextmanager
def ahead(parts: Iterator[list[Slot]]) -> Iterator[Iterator[list[Slot]]]:
    """Run an iterator in a thread of its own, one part ahead of the reader."""
    ready: queue.Queue[list[Slot] | BaseException | None] = queue.Queue(maxsize=1)
    stopped = threading.Event()

    def put(item: list[Slot] | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.2)
                return
            except queue.Full:
                pass

    def read() -> None:
        try:
            for part in parts:
                put(part)
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:  # noqa: BLE001  (raised again in the reader's thread)
            put(error)

    def received() -> Iterator[list[Slot]]:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    thread = threading.Thread(target=read, name="read", daemon=True)
    thread.start()
    try:
        yield received()
    finally:
        stopped.set()
        with suppress(queue.Empty):
            ready.get_nowait()  # so that the thread need not wait for room
        thread.join()
