"""What was decoded in a pass, as far as it fits, and the threads that decode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import TypeVar

import numpy as np

from winnow.contracts.media import DecodedAudio, DecodedImage, MediaFailure, Samples
from winnow.stages._media_images import BYTES_PER_PIXEL

Result = TypeVar("Result")

Kept = DecodedImage | DecodedAudio | Samples | MediaFailure
"""What can be kept of a row: pixels, samples, a waveform, a feature, or why there is none."""

Kind = Hashable
"""What it is of all that can be kept of a row, such as the rate of a waveform."""

_Key = tuple[str, int, Kind]
"""Column, absolute row, kind."""


def size_bytes(kept: Kept) -> int:
    """Return the memory that it takes."""
    if isinstance(kept, DecodedImage):
        pixels = kept.pixels
        return pixels.width * pixels.height * BYTES_PER_PIXEL.get(pixels.mode, 4)
    if isinstance(kept, DecodedAudio):
        return int(kept.samples.nbytes)
    return int(kept.nbytes) if isinstance(kept, np.ndarray) else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What the work on one row gave.

    wanted: what the stage asked for.  keep: that, under its kind; empty where it is a view of
    something else that is kept.  spare: what came by the way and may serve another stage.
    """

    wanted: Kept
    keep: Mapping[Kind, Kept] = field(default_factory=dict)
    spare: Mapping[Kind, Kept] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """The memory that it takes."""
        return sum(map(size_bytes, (*self.keep.values(), *self.spare.values())))


class MediaCache:
    """Decoded media of one chunk of rows, within ``budget_bytes``, and the threads that decode.

    When it is full, what has been read more often than the newcomer makes room for it, and
    otherwise what is there stays: right both for stages that each read the whole chunk (where
    dropping the oldest would always drop what is needed next) and for stages that take turns on
    each batch. What no stage has asked for yet (``Made.spare``) is kept only where there is room,
    and goes first. What was dropped is decoded again when it is asked for.

    ``threads=0`` decodes in the reader's own thread.  ``full_size``: some stage of the pass reads
    images at full size, so whoever can do with any size makes that decode and not another.
    """

    def __init__(self, budget_bytes: int, threads: int, *, full_size: bool = False) -> None:
        self.budget_bytes, self.threads, self.full_size = budget_bytes, threads, full_size
        self.num_decoded = 0
        """Images and recordings decoded so far, repeats included."""
        self._kept: dict[_Key, tuple[Kept, int]] = {}
        self._kept_bytes = 0
        self._num_reads: Counter[_Key] = Counter()
        self._spare: dict[_Key, None] = {}
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, work: Callable[[], Result]) -> Future[Result]:
        """Do the work in a thread."""
        if self.threads < 1:
            done: Future[Result] = Future()
            done.set_result(work())
            return done
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        return self._pool.submit(work)

    def get(self, column: str, row: int, kind: Kind) -> Kept | None:
        """Return what was kept of an absolute row."""
        kept, _ = self._kept.get((column, row, kind), (None, 0))
        return kept

    def read(self, column: str, row: int, made: Made) -> None:
        """Note that a stage reads this of a row now, and keep what there is room for."""
        for kind, kept in made.keep.items():
            key = (column, row, kind)
            self._num_reads[key] += 1
            self._spare.pop(key, None)
            if key not in self._kept:
                self._make_room(size_bytes(kept), self._num_reads[key])
                self._keep(key, kept)
        for kind, kept in made.spare.items():
            key = (column, row, kind)
            if key not in self._kept and self._keep(key, kept):
                self._spare[key] = None

    def _keep(self, key: _Key, kept: Kept) -> bool:
        size = size_bytes(kept)
        if self._kept_bytes + size > self.budget_bytes:
            return False
        self._kept[key] = (kept, size)
        self._kept_bytes += size
        return True

    def _make_room(self, size: int, num_reads: int) -> None:
        if self._kept_bytes + size <= self.budget_bytes:
            return
        more = [k for k in self._kept if self._num_reads[k] > num_reads and k not in self._spare]
        # Of the spare ones the latest go first: the next stage begins with the earliest row.
        for key in (*reversed(self._spare), *sorted(more, key=lambda k: -self._num_reads[k])):
            if self._kept_bytes + size <= self.budget_bytes:
                return
            self._spare.pop(key, None)
            self._kept_bytes -= self._kept.pop(key)[1]

    def close(self) -> None:
        """Stop the threads and forget the media."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        self._kept.clear()
        self._spare.clear()
        self._kept_bytes = 0

    def __enter__(self) -> MediaCache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
