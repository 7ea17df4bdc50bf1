"""Histograms of a stream of numbers: first the range, then counts in bins that meet at the cuts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from winnow.pipeline.report_views import Measure

NUM_BINS = 48
SAMPLE_VALUES = 100_000
MIN_SHARD_SAMPLE = 64
LOG_RATIO = 100.0
"""Beyond this ratio of the 99.5th to the 0.5th percentile a positive measure gets a log axis."""
FAR_SPANS = 3.0
"""A threshold farther from the values than this many times their span is left off the axis."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """Edges of the bins, ascending; ``log``: equal steps of the logarithm."""

    edges: np.ndarray
    log: bool = False

    def position(self, value: float) -> float:
        """Return where a value is, from 0 (left end) to 1 (right end), clipped."""
        low, high = float(self.edges[0]), float(self.edges[-1])
        if self.log:
            value = max(value, low)
            low, high, value = math.log(low), math.log(high), math.log(value)
        return min(1.0, max(0.0, (value - low) / (high - low)))

    def contains(self, value: float) -> bool:
        """Whether a value is on the axis."""
        return bool(self.edges[0] <= value <= self.edges[-1])


class Range:
    """Where the values of a measure are: extremes, and a bounded random sample."""

    def __init__(self, measure: Measure, num_shards: int) -> None:
        self._measure = measure
        self._quota = max(MIN_SHARD_SAMPLE, SAMPLE_VALUES // max(1, num_shards))
        self._sample: list[np.ndarray] = []
        self._low, self._high = math.inf, -math.inf

    def add(self, values: np.ndarray, hashes: np.ndarray) -> None:
        """Look at the values of one shard; hashes put its rows in a random order."""
        finite = np.isfinite(values)
        values, hashes = values[finite], hashes[finite]
        if not len(values):
            return
        self._low = min(self._low, float(values.min()))
        self._high = max(self._high, float(values.max()))
        if len(values) > self._quota:
            values = values[np.argpartition(hashes, self._quota)[: self._quota]]
        self._sample.append(values)

    def axis(self) -> Axis | None:
        """Return the axis; None where there is no value."""
        if not self._sample:
            return None
        low, high = np.quantile(np.concatenate(self._sample), (0.005, 0.995)).tolist()
        if self._measure.integer and self._high - self._low < NUM_BINS:
            low, high = self._low, self._high
        edges = [c.edge for c in self._measure.cuts]
        log = low > 0 and high / low > LOG_RATIO and all(e > 0 for e in edges)
        if log:
            return self._log_axis(low, high, edges)
        span = (high - low) or abs(high) * 0.2 or 1.0
        near = [e for e in edges if low - FAR_SPANS * span <= e <= high + FAR_SPANS * span]
        if near:
            margin = 0.04 * (max(high, *near) - min(low, *near) or span)
            low = low if low < min(near) else min(near) - margin
            high = high if high > max(near) else max(near) + margin
        return Axis(edges=_aligned(low, high, near, self._measure.integer))

    def _log_axis(self, low: float, high: float, edges: list[float]) -> Axis:
        ends = [
            math.log10(v)
            for v in (low, high, *(e * 0.8 for e in edges), *(e * 1.25 for e in edges))
        ]
        anchor = math.log10(edges[0]) if edges else None
        return Axis(
            edges=10 ** _steps(min(ends), max(ends), (max(ends) - min(ends)) / NUM_BINS, anchor),
            log=True,
        )


@dataclass(slots=True)
class Bins:
    """Rows per bin, by what became of them; values off the axis are counted in its end bins."""

    axis: Axis | None
    counts: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.int64))
    null: np.ndarray = field(default_factory=lambda: np.zeros(3, np.int64))
    under: int = 0
    over: int = 0

    def __post_init__(self) -> None:
        if self.axis is not None:
            self.counts = np.zeros((len(self.axis.edges) - 1, 3), np.int64)

    def add(self, values: np.ndarray, fate: np.ndarray) -> None:
        """Count the values of one shard; ``fate`` is 0, 1 or 2 per row."""
        null = np.isnan(values)
        self.null += np.bincount(fate[null], minlength=3)
        values, fate = values[~null], fate[~null]
        if self.axis is None:
            return
        edges, size = self.axis.edges, len(self.counts)
        place = np.searchsorted(edges, values, side="right") - 1
        self.under += int((place < 0).sum())
        self.over += int((place >= size).sum())
        place = np.clip(place, 0, size - 1)
        self.counts += np.bincount(place * 3 + fate, minlength=3 * size).reshape(-1, 3)


def _aligned(low: float, high: float, cuts: list[float], integer: bool) -> np.ndarray:
    """Return equal steps over [low, high]; the first cut is an edge exactly."""
    width = nice((high - low) / NUM_BINS) if high > low else (abs(low) * 0.05 or 0.05)
    if integer:
        width = max(1.0, math.ceil((high - low) / NUM_BINS))
        anchor = cuts[0] if cuts else math.floor(low) - 0.5
        # "= 3" has its line in the middle of a bin, and the edges are between integers.
        anchor = anchor if anchor != int(anchor) else anchor - 0.5
        return _steps(low, high, width, anchor)
    return _steps(low, high, width, cuts[0] if cuts else None)


def _steps(low: float, high: float, width: float, anchor: float | None) -> np.ndarray:
    anchor = math.floor(low / width) * width if anchor is None else anchor
    before = math.ceil((anchor - low) / width)
    after = math.floor((high - anchor) / width) + 1
    return anchor + width * np.arange(-before, max(after, 1 - before) + 1)


def nice(width: float) -> float:
    """Return the least of 1, 2, 2.5, 5 times a power of ten that is not below ``width``."""
    power = 10.0 ** math.floor(math.log10(width))
    for factor in (1.0, 2.0, 2.5, 5.0):
        if factor * power >= width * (1 - 1e-9):
            return factor * power
    return 10.0 * power
