"""The second signal of recordings: two thumbnails, aligned in time, agree everywhere.

A thumbnail (``audio_fingerprint``) is the seconds of the loud part, its mean spectrum in 56 bands
of mel, and 128 cells of time by 8 bands. Mean spectra tell voices apart that say the same at the
same pace. Of two recordings of which one may have been cut at either end, the shorter is slid along
the longer, cells resampled to one time scale: first at all offsets by the mean over bands alone,
then in full at the best three. What counts is the worst stretch of seven cells, for two takes of a
sentence that differ in one word differ in one place; or twice the mean, for two voices differ a
little everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from winnow.stages.dedupe._hamming import Indices
from winnow.stages.dedupe._verify import Flags, Octets

# Shape suffixes: P pairs, N recordings, C cells of time, B bands, T bytes, K offsets, M mel bands.

NUM_CELLS, NUM_BANDS = 128, 8
LEVEL_DB = 2.0
NUM_SPECTRUM_BANDS = 56
SPECTRUM_DB = 0.25
THUMBNAIL_BYTES = 4 + NUM_SPECTRUM_BANDS + NUM_CELLS * NUM_BANDS // 2
STRETCH_CELLS = 7
_NUM_TRIED = 3
_MAX_SHIFT_DB = 4.0
_KEYS_PER_OCTAVE = 2400
_LARGEST_KEY = 2**16 - 1
_ROUNDING = 1e-5
_LONGEST_S = 1e6
_BLOCK = 1 << 10

Levels = npt.NDArray[np.float32]


def duration_keys(thumbnails_NT: Octets) -> npt.NDArray[np.uint16]:
    """Return the logarithm of the seconds of (N, 572) thumbnails, (N, 1), 2,400 steps an octave."""
    steps = _KEYS_PER_OCTAVE * np.log2(np.maximum(_seconds(thumbnails_NT) * 100, 1))
    return np.rint(steps).clip(0, _LARGEST_KEY).astype(np.uint16)[:, None]


def _seconds(thumbnails_NT: Octets) -> Levels:
    seconds = np.ascontiguousarray(thumbnails_NT[:, :4]).view("<f4")[:, 0].astype(np.float32)
    # Columns can come from anywhere; a duration that cannot be is an instant.
    possible = (seconds > 0) & (seconds < _LONGEST_S)
    return np.where(possible, seconds, np.float32(0.01))


def _levels(thumbnails_NT: Octets) -> Levels:
    packed = thumbnails_NT[:, 4 + NUM_SPECTRUM_BANDS :].reshape(-1, NUM_CELLS, NUM_BANDS // 2)
    both = np.stack([packed >> 4, packed & 15], axis=-1)
    return both.reshape(-1, NUM_CELLS, NUM_BANDS).astype(np.float32) * np.float32(LEVEL_DB)


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioCloseness:
    """When the thumbnails of two recordings are close.

    The loud part of the shorter lasts at least 1 - ``max_trim`` of the longer's. The mean spectra,
    a difference in level taken off, differ by at most ``spectrum`` dB in the mean. And at one of
    the offsets at which the shorter lies inside the longer, or sticks out by half of ``max_trim``
    at most, no seven neighbouring cells differ by more than ``detailed`` dB in the mean, and all by
    no more than half of it, again a difference in level (4 dB at most) taken off. Where either has
    low information: ``flat`` dB, and ``spectrum`` in proportion.
    """

    detailed: float
    flat: float
    spectrum: float
    max_trim: float

    first_sum_slack = _LARGEST_KEY
    """The first sum, the key of the duration, says nothing that ``window`` has not said."""
    weight = 5000
    """One comparison costs as much as so many of ``_hamming``."""

    def bad_parameters(self, min_detail: float) -> Iterator[tuple[str, str]]:
        """Yield stages' parameters that cannot be meant, and what is allowed."""
        if not 0 <= self.detailed <= 30:
            yield "thumbnail_distance", "0 to 30 dB for audio_hash"
        if not 0 <= self.flat <= self.detailed:
            yield "flat_thumbnail_distance", "0 to thumbnail_distance dB"
        if not 0 <= self.spectrum <= 30:
            yield "spectrum_distance", "0 to 30 dB"
        if not 0 <= self.max_trim <= 0.4:
            yield "max_trim", "0 to 0.4 of the loud part"
        if not 0 <= min_detail < float("inf"):
            yield "min_detail", "at least 0 dB"

    def window(self, keys: Indices, low: Flags) -> tuple[Indices, Indices]:
        """Return the least and the largest duration key of a partner."""
        slack = int(np.ceil(-np.log2(1 - self.max_trim) * _KEYS_PER_OCTAVE)) + 1
        return np.clip(keys - slack, 0, None), np.clip(keys + slack, 0, _LARGEST_KEY)

    def possible(self, a_N1: Indices, b_N1: Indices, low: Flags) -> Flags:
        """Return all pairs: durations have been compared already."""
        return np.ones(len(low), bool)

    def close(self, a_PT: Octets, b_PT: Octets, low: Flags) -> Flags:
        """Return which pairs are close."""
        share = np.where(low, self.flat / self.detailed if self.detailed else 1.0, 1.0)
        found = spectrum_difference(a_PT, b_PT) <= self.spectrum * share + _ROUNDING
        alike = np.flatnonzero(found)
        for start in range(0, len(alike), _BLOCK):
            part = alike[start : start + _BLOCK]
            worst = audio_difference(a_PT[part], b_PT[part], self.max_trim)
            found[part] = worst <= self.detailed * share[part] + _ROUNDING
        return found


def spectrum_difference(a_PT: Octets, b_PT: Octets) -> Levels:
    """Return the mean difference of the mean spectra in dB, their difference in level taken off."""
    a_PM, b_PM = (x[:, 4 : 4 + NUM_SPECTRUM_BANDS].astype(np.float32) for x in (a_PT, b_PT))
    difference_PM = (a_PM - b_PM) * np.float32(SPECTRUM_DB)
    difference_PM -= difference_PM.mean(axis=1, keepdims=True)
    mean: Levels = np.abs(difference_PM).mean(axis=1)
    return mean


def audio_difference(a_PT: Octets, b_PT: Octets, max_trim: float) -> Levels:
    """Return, at the best offset, the larger of the worst stretch's difference and twice the mean.

    In dB; inf where the durations are too unequal.
    """
    swap = _comes_later(a_PT, b_PT)[:, None]
    short_PT, long_PT = np.where(swap, b_PT, a_PT), np.where(swap, a_PT, b_PT)
    exact_P = _seconds(short_PT) / _seconds(long_PT)
    ratio_P = np.maximum(exact_P, np.float32(1 - max_trim))
    pairs = _Pairs(short=_levels(short_PT), long=_levels(long_PT), ratio=ratio_P)
    # An odd number: recordings of one length are compared as they are, too.
    offsets_K = np.linspace(0, 1, 2 * round(200 * max_trim) + 1)
    offsets_PK = (1 - ratio_P[:, None] + max_trim) * offsets_K - max_trim / 2
    envelopes = pairs.envelopes()
    cost_PK = np.stack([envelopes.mean_difference(o) for o in offsets_PK.T], axis=1)
    tried_PK = np.argsort(cost_PK, axis=1, kind="stable")[:, :_NUM_TRIED]
    offset_PK = np.take_along_axis(offsets_PK, tried_PK, axis=1)
    worst_P = np.min([pairs.largest_difference(o) for o in offset_PK.T], axis=0)
    return np.where(exact_P >= 1 - max_trim - 1e-6, worst_P, np.inf).astype(np.float32)


def _comes_later(a_PT: Octets, b_PT: Octets) -> Flags:
    """Return where a is the longer one, of one length that of the greater bytes."""
    a_s, b_s = _seconds(a_PT), _seconds(b_PT)
    rows, first = np.arange(len(a_PT)), (a_PT != b_PT).argmax(axis=1)
    greater: Flags = a_PT[rows, first] > b_PT[rows, first]
    return np.where(a_s == b_s, greater, a_s > b_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pairs:
    """Levels (P, C, B) of a shorter and a longer recording; ratio of their durations."""

    short: Levels
    long: Levels
    ratio: Levels

    def envelopes(self) -> _Pairs:
        """Return the mean over bands."""
        short, long = (x.mean(axis=2, keepdims=True) for x in (self.short, self.long))
        return _Pairs(short=short, long=long, ratio=self.ratio)

    def mean_difference(self, offset_P: Levels) -> Levels:
        """Return the mean difference in dB where both are."""
        difference_PC, both_PC = self._differences(offset_P)
        mean: Levels = difference_PC.sum(axis=1) / both_PC.sum(axis=1)
        return mean

    def largest_difference(self, offset_P: Levels) -> Levels:
        """Return the larger of the mean of the worst seven cells in a row and twice the mean."""
        windows = np.lib.stride_tricks.sliding_window_view
        difference_PC, both_PC = self._differences(offset_P)
        mean_PC = windows(difference_PC, STRETCH_CELLS, axis=1).mean(axis=2)
        inside_PC = windows(both_PC, STRETCH_CELLS, axis=1).all(axis=2)
        worst_P = np.where(inside_PC, mean_PC, 0).max(axis=1)
        return np.maximum(worst_P, 2 * difference_PC.sum(axis=1) / both_PC.sum(axis=1))

    def _differences(self, offset_P: Levels) -> tuple[Levels, Flags]:
        """Return the mean over bands of the difference in dB, 0 where only one is, and where both.

        offset: where the shorter begins, as a share of the longer.
        """
        middle_C = (np.arange(NUM_CELLS) + 0.5) / NUM_CELLS
        place_PC = offset_P[:, None] + middle_C * self.ratio[:, None]
        cell_PC = (place_PC * NUM_CELLS - 0.5).astype(np.float32)
        both_PC = (cell_PC >= -0.25) & (cell_PC <= NUM_CELLS - 0.75)
        before_PC = np.clip(cell_PC, 0, NUM_CELLS - 1.0001).astype(np.int64)
        after_PC1 = np.clip(cell_PC - before_PC, 0, 1)[..., None]
        rows = np.arange(len(cell_PC))[:, None]
        left = self.long[rows, before_PC]
        right = self.long[rows, before_PC + 1]
        difference = (self.short - left - (right - left) * after_PC1) * both_PC[..., None]
        num_P = both_PC.sum(axis=1) * difference.shape[2]
        shift_P = np.clip(difference.sum(axis=(1, 2)) / num_P, -_MAX_SHIFT_DB, _MAX_SHIFT_DB)
        absolute = np.abs(difference - shift_P[:, None, None].astype(np.float32)).mean(axis=2)
        return absolute * both_PC, both_PC
