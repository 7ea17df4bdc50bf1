"""Decode the media of a batch once for all the stages of a pass, ahead of the reader.

A pass makes one ``MediaCache`` per chunk of rows and one ``BatchMedia`` per ``annotate`` call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Protocol, cast

import numpy as np
import pyarrow as pa
from PIL import Image

from winnow.contracts.media import (
    REDUCED_SIDE,
    AudioFeature,
    DecodedAudio,
    DecodedImage,
    MediaCaps,
    MediaFailure,
    Samples,
)
from winnow.stages._audio import decode_audio, to_mono
from winnow.stages._media_cache import Kept, Kind, Made, MediaCache
from winnow.stages._media_images import FORMATS, HOSTILE_INPUT, decode_image, quiet_pillow

__all__ = [
    "FORMATS",
    "HOSTILE_INPUT",
    "BatchMedia",
    "MediaCache",
    "decode_audio",
    "decode_image",
    "quiet_pillow",
]

_Kinds = dict[Kind, Kept]

_NATIVE = "native"
"""The kind of a ``DecodedAudio``, and of the failure to decode one."""


class _Wanted(Protocol):
    """What a stage wants of each row: found in the cache, or made of the bytes."""

    def find(self, cache: MediaCache, column: str, row: int) -> Made | None:
        """Return it as it was kept; None where there is work to do."""
        ...

    def work(self, cache: MediaCache, column: str, row: int, data: pa.Scalar) -> Callable[[], Made]:
        """Return the work that makes it, of what is kept or of the bytes."""
        ...


class BatchMedia:
    """``contracts.media.Media`` of one batch.

    ``first_row`` is the absolute number of the batch's first row within the cache's chunk: two
    batches that hold the same row under the same number share its media. Null bytes are
    "missing" and are never cached, so a gate that nulls a row for one stage hides nothing from
    the next.

    Of a recording the cache holds apart: its samples, a waveform per rate, an array per feature.
    What is wanted is made of the nearest of these, so that bytes are decoded again only where none
    is kept. Resampling and features are made in the decoding threads, too.

    Memory: the cache's budget, plus at most half as much again and ``threads`` rows that are
    decoded ahead of the reader.
    """

    def __init__(
        self, batch: pa.RecordBatch, *, caps: MediaCaps, cache: MediaCache, first_row: int
    ) -> None:
        self._batch, self._caps, self._cache, self._first_row = batch, caps, cache, first_row
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and limit < caps.max_pixels:
            # Pillow would refuse beyond twice its own limit what the recipe allows.
            Image.MAX_IMAGE_PIXELS = caps.max_pixels

    def images(
        self, column: str = "image", *, min_side: int | None = None
    ) -> Iterator[DecodedImage | MediaFailure]:
        """Yield one decoded image or failure code per row, in row order."""
        wanted = _Image(self._caps, min_side, any_size=False)
        return cast(Iterator[DecodedImage | MediaFailure], self._read(column, wanted))

    def facts(self, column: str = "image") -> Iterator[DecodedImage | MediaFailure]:
        """Yield the same, at whatever size it was decoded already."""
        min_side = None if self._cache.full_size else REDUCED_SIDE
        wanted = _Image(self._caps, min_side, any_size=True)
        return cast(Iterator[DecodedImage | MediaFailure], self._read(column, wanted))

    def audio(self, column: str = "audio") -> Iterator[DecodedAudio | MediaFailure]:
        """Yield one decoded recording or failure code per row, in row order, as recorded."""
        wanted = _Audio(self._caps)
        return cast(Iterator[DecodedAudio | MediaFailure], self._read(column, wanted))

    def waveforms(
        self, column: str = "audio", *, sample_rate: int
    ) -> Iterator[Samples | MediaFailure]:
        """Yield mono waveforms, float32 (N,), resampled; or failure codes."""
        wanted = _Audio(self._caps, sample_rate)
        return cast(Iterator[Samples | MediaFailure], self._read(column, wanted))

    def features(
        self, column: str = "audio", *, feature: AudioFeature
    ) -> Iterator[Samples | MediaFailure]:
        """Yield the feature of each row's waveform, or failure codes."""
        wanted = _Audio(self._caps, feature.sample_rate, feature)
        return cast(Iterator[Samples | MediaFailure], self._read(column, wanted))

    def _read(self, column: str, wanted: _Wanted) -> Iterator[Kept]:
        payload = self._batch.column(column)
        pending: deque[Made | Future[Made]] = deque()
        ahead, next_row, num_rows = 0, 0, len(payload)
        try:
            for row in range(num_rows):
                while next_row < num_rows and (
                    next_row == row or self._may_look_further(pending, ahead)
                ):
                    pending.append(self._start(column, payload[next_row], next_row, wanted))
                    next_row += 1
                first = pending.popleft()
                made = first.result() if isinstance(first, Future) else first
                ahead = sum(map(_done_bytes, pending))
                self._cache.read(column, self._first_row + row, made)
                yield made.wanted
        finally:
            for item in pending:
                if isinstance(item, Future):
                    item.cancel()

    def _may_look_further(self, pending: deque[Made | Future[Made]], ahead: int) -> bool:
        depth = 2 * self._cache.threads
        return len(pending) <= depth and ahead < self._cache.budget_bytes // 2

    def _start(
        self, column: str, value: pa.Scalar, row: int, wanted: _Wanted
    ) -> Made | Future[Made]:
        if not value.is_valid:
            return Made(wanted="missing")
        at = column, self._first_row + row
        found = wanted.find(self._cache, *at)
        return self._cache.submit(wanted.work(self._cache, *at, value)) if found is None else found


def _done_bytes(item: Made | Future[Made]) -> int:
    if not isinstance(item, Future):
        return 0
    done = item.done() and not item.cancelled()
    return item.result().size_bytes if done else 0


class _Image:
    """A picture. Its kind: ``min_side``; None for one at full size and for a failure."""

    def __init__(self, caps: MediaCaps, min_side: int | None, *, any_size: bool) -> None:
        self.caps, self.min_side, self.any_size = caps, min_side, any_size

    def find(self, cache: MediaCache, column: str, row: int) -> Made | None:
        """Return what would be decoded alike, or of any size."""
        full = cache.get(column, row, None)
        if full is not None and (isinstance(full, str) or self._will_do(full)):
            return Made(wanted=full, keep={None: full})
        if self.min_side is None:
            return None
        reduced = cache.get(column, row, self.min_side)
        return None if reduced is None else Made(wanted=reduced, keep={self.min_side: reduced})

    def _will_do(self, full: Kept) -> bool:
        assert isinstance(full, DecodedImage)
        if self.min_side is None or self.any_size:
            return True
        return not (full.format == "JPEG" and min(full.size) >= 2 * self.min_side)

    def work(self, cache: MediaCache, column: str, row: int, data: pa.Scalar) -> Callable[[], Made]:
        """Return the decoding of the bytes."""
        cache.num_decoded += 1
        return partial(self._decode, data.as_py())

    def _decode(self, data: bytes) -> Made:
        decoded = decode_image(data, self.caps, self.min_side)
        at_full_size = isinstance(decoded, str) or decoded.scale == 1
        kind = None if at_full_size else self.min_side
        return Made(wanted=decoded, keep={kind: decoded})


class _Audio:
    """A recording as it was decoded; its waveform at a rate; a feature of that."""

    def __init__(
        self, caps: MediaCaps, rate: int | None = None, feature: AudioFeature | None = None
    ) -> None:
        self.caps, self.rate, self.feature = caps, rate, feature
        self.kind: Kind = _NATIVE if rate is None else (rate, feature)

    def find(self, cache: MediaCache, column: str, row: int) -> Made | None:
        """Return what is kept under this kind, or why the row has none."""
        failed = cache.get(column, row, _NATIVE)
        kept = failed if isinstance(failed, str) else cache.get(column, row, self.kind)
        if kept is None:
            return None
        return Made(wanted=kept, keep={_NATIVE if isinstance(kept, str) else self.kind: kept})

    def work(self, cache: MediaCache, column: str, row: int, data: pa.Scalar) -> Callable[[], Made]:
        """Return what begins with the waveform, else the samples, else the bytes."""
        native = cache.get(column, row, _NATIVE)
        waveform = cache.get(column, row, (self.rate, None))
        if isinstance(waveform, np.ndarray):
            return partial(self._of_waveform, waveform, {(self.rate, None): waveform}, {})
        if isinstance(native, DecodedAudio):
            return partial(self._of_samples, native, cache.budget_bytes)
        cache.num_decoded += 1
        return partial(self._of_bytes, data.as_py(), cache.budget_bytes)

    def _of_bytes(self, data: bytes, budget_bytes: int) -> Made:
        decoded = decode_audio(data, self.caps)
        if isinstance(decoded, str) or self.rate is None:
            return Made(wanted=decoded, keep={_NATIVE: decoded})
        return self._of_samples(decoded, budget_bytes)

    def _of_samples(self, native: DecodedAudio, budget_bytes: int) -> Made:
        assert self.rate is not None
        waveform = to_mono(native.samples, native.sample_rate, self.rate)
        if np.may_share_memory(waveform, native.samples):
            # As it was recorded: kept as such, and not a second time.
            return self._of_waveform(waveform, {_NATIVE: native}, {})
        spare: _Kinds = {_NATIVE: native} if native.samples.nbytes <= budget_bytes // 4 else {}
        return self._of_waveform(waveform, {(self.rate, None): waveform}, spare)

    def _of_waveform(self, waveform: Samples, keep: _Kinds, spare: _Kinds) -> Made:
        if self.feature is None:
            return Made(wanted=waveform, keep=keep, spare=spare)
        feature = self.feature.compute(waveform)
        return Made(wanted=feature, keep={self.kind: feature}, spare={**keep, **spare})
