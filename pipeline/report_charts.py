"""Drawings of the report: histograms as SVG, top values as rows of bars. No script, no files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from winnow.pipeline.report_bins import Axis, Bins, nice
from winnow.pipeline.report_scan import DROPPED_ELSEWHERE, DROPPED_HERE, KEPT, ValueCounts
from winnow.pipeline.report_text import plain
from winnow.pipeline.report_views import Category, Cut, Measure, format_number

WIDTH, HEIGHT = 640, 176
LEFT, RIGHT, TOP, BOTTOM = 10, 10, 26, 24
TOP_VALUES = 12
TOP_ASKED = 8
"""Values that the filter names and that are shown even where they are rare."""
FATES = ((KEPT, "kept"), (DROPPED_ELSEWHERE, "elsewhere"), (DROPPED_HERE, "here"))
"""Order of the layers of a bar, from its base, and their CSS classes."""
_MIN_HEIGHT = 1.2
_POWER = {4: "k", 5: "k", 6: "M", 7: "M", 8: "M", 9: "G", 10: "G", 11: "G"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One value of a category: rows by fate, as counts and as percentages of the longest bar."""

    value: str
    is_null: bool
    accepted: bool | None
    counts: tuple[int, int, int]
    widths: tuple[float, float, float]
    share: float

    @property
    def total(self) -> int:
        """All rows with the value."""
        return sum(self.counts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bars:
    """The top values of a category; ``others``: rows with a value that is not shown."""

    label: str
    bars: tuple[Bar, ...]
    num_values: int
    others: int
    forgot: bool


def category_bars(category: Category, found: ValueCounts, num_rows: int) -> Bars:
    """Return the most frequent values and those asked for; null last, whatever its count."""
    totals = {value: sum(counts) for value, counts in found.counts.items()}
    named = [v for v in totals if v is not None]
    ordered = sorted(named, key=lambda v: (-totals[v], v))
    asked = [v for v in ordered if v in found.asked][:TOP_ASKED]
    shown = {*asked, *ordered[:TOP_VALUES]}
    top: list[str | None] = [v for v in ordered if v in shown]
    if None in totals:
        top.append(None)
    longest = max((totals[v] for v in top), default=1) or 1
    bars = []
    for value in top:
        counts = [found.counts[value][fate] for fate, _ in FATES]
        bars.append(
            Bar(
                value="null" if value is None else plain(value, 60) or "(empty)",
                is_null=value is None,
                accepted=category.accepts(value),
                counts=(counts[0], counts[1], counts[2]),
                widths=tuple(round(100 * c / longest, 2) for c in counts),  # type: ignore[arg-type]
                share=totals[value] / (num_rows or 1),
            )
        )
    return Bars(
        label=category.label,
        bars=tuple(bars),
        num_values=len(named),
        others=num_rows - sum(bar.total for bar in bars),
        forgot=found.forgot,
    )


def histogram(measure: Measure, bins: Bins) -> Markup:
    """Return the histogram of a measure as SVG, its thresholds drawn in; "" without values."""
    axis = bins.axis
    if axis is None or not bins.counts.sum():
        return Markup("")
    highest = int(bins.counts.sum(axis=1).max())
    parts = [
        *_shades(axis, measure.cuts),
        *_grid(highest),
        *_columns(axis, bins, highest, measure.integer),
        *_ticks(axis, measure.integer),
        *_lines(axis, measure.cuts),
        *_overflow(bins),
    ]
    head = Markup(
        '<svg class="histogram" viewBox="0 0 {w} {h}" role="img" aria-label="{label}">'
    ).format(w=WIDTH, h=HEIGHT, label=_description(measure, bins))
    return head + Markup("").join(parts) + Markup("</svg>")


def _description(measure: Measure, bins: Bins) -> str:
    assert bins.axis is not None
    sums = bins.counts.sum(axis=0)
    cuts = ", ".join(c.label for c in measure.cuts) or "none"
    low, high = (format_number(float(v)) for v in bins.axis.edges[[0, -1]])
    return (
        f"Histogram of {measure.label} from {low} to {high}; threshold {cuts}; rows kept "
        f"{sums[KEPT]:,}, dropped by this filter {sums[DROPPED_HERE]:,}, "
        f"by others {sums[DROPPED_ELSEWHERE]:,}"
    )


def _x(axis: Axis, value: float) -> float:
    return round(LEFT + axis.position(value) * (WIDTH - LEFT - RIGHT), 2)


def _columns(axis: Axis, bins: Bins, highest: int, integer: bool) -> Iterator[Markup]:
    base, room = HEIGHT - BOTTOM, HEIGHT - BOTTOM - TOP
    for index, counts in enumerate(bins.counts):
        if not counts.sum():
            continue
        low, high = float(axis.edges[index]), float(axis.edges[index + 1])
        left, right = _x(axis, low), _x(axis, high)
        width = max(1.0, right - left - (1.0 if right - left > 4 else 0.25))
        yield Markup("<g><title>{}</title>").format(_tip(low, high, counts, integer))
        y = float(base)
        for fate, name in FATES:
            if counts[fate]:
                height = max(_MIN_HEIGHT, room * int(counts[fate]) / highest)
                y -= height
                yield Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"/>').format(
                    name, left, round(y, 2), round(width, 2), round(height, 2)
                )
        yield Markup("</g>")


def _tip(low: float, high: float, counts: np.ndarray, integer: bool) -> str:
    if integer:
        first, last = math.ceil(low), math.ceil(high) - 1
        span = f"{first:,}" if first == last else f"{first:,} to {last:,}"
    else:
        span = f"{format_number(low)} to {format_number(high)}"
    return (
        f"{span}: {counts[KEPT]:,} kept, {counts[DROPPED_HERE]:,} dropped here, "
        f"{counts[DROPPED_ELSEWHERE]:,} dropped by other filters"
    )


def _grid(highest: int) -> Iterator[Markup]:
    base = HEIGHT - BOTTOM
    yield Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
        LEFT, WIDTH - RIGHT, TOP, TOP
    )
    yield Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{} rows</text>').format(
        WIDTH - RIGHT, TOP - 5, f"{highest:,}"
    )
    yield Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
        LEFT, WIDTH - RIGHT, base, base
    )


def _shades(axis: Axis, cuts: tuple[Cut, ...]) -> Iterator[Markup]:
    """The side of each threshold that is refused."""
    for cut in cuts:
        if cut.op in ("==", "!="):
            continue
        x = _x(axis, cut.edge)
        left, right = (x, WIDTH - RIGHT) if cut.op in ("<", "<=") else (LEFT, x)
        if right > left:
            yield Markup('<rect class="refused" x="{}" y="{}" width="{}" height="{}"/>').format(
                left, TOP, round(right - left, 2), HEIGHT - BOTTOM - TOP
            )


def _lines(axis: Axis, cuts: tuple[Cut, ...]) -> Iterator[Markup]:
    for cut in cuts:
        x = _x(axis, cut.edge)
        label = f"keep {cut.label}"
        if not axis.contains(cut.edge):
            label += " (off the scale)"
        room_right = WIDTH - RIGHT - x
        # The label stands on the side that is kept, unless there is no room for it.
        wants_right = cut.op not in ("<", "<=")
        right = (wants_right and room_right > 150) or x < 150
        anchor, shift = ("start", 5) if right else ("end", -5)
        yield Markup('<line class="cut" x1="{x}" x2="{x}" y1="{y1}" y2="{y2}"/>').format(
            x=x, y1=TOP - 18, y2=HEIGHT - BOTTOM
        )
        yield Markup('<text class="cut" x="{}" y="{}" text-anchor="{}">{}</text>').format(
            round(x + shift, 2), TOP - 9, anchor, label
        )


def _ticks(axis: Axis, integer: bool) -> Iterator[Markup]:
    y = HEIGHT - BOTTOM
    for value in _tick_values(axis, integer):
        x = _x(axis, value)
        yield Markup('<line class="axis" x1="{x}" x2="{x}" y1="{y1}" y2="{y2}"/>').format(
            x=x, y1=y, y2=y + 4
        )
        anchor = "start" if x < LEFT + 12 else "end" if x > WIDTH - RIGHT - 12 else "middle"
        yield Markup('<text class="tick" x="{}" y="{}" text-anchor="{}">{}</text>').format(
            x, y + 16, anchor, _short(value)
        )


def _tick_values(axis: Axis, integer: bool) -> list[float]:
    low, high = float(axis.edges[0]), float(axis.edges[-1])
    if axis.log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        factors = (1, 2, 5) if len(powers) <= 4 else (1,)
        values = [f * 10.0**p for p in powers for f in factors]
        return [v for v in values if low <= v <= high]
    step = nice((high - low) / 8)
    if integer:
        step = max(1.0, math.ceil(step))
    first = math.ceil(low / step)
    return [k * step for k in range(first, math.floor(high / step) + 1)]


def _short(value: float) -> str:
    power = int(math.log10(abs(value))) if value else 0
    if power >= 4 and power in _POWER:
        scale = 10.0 ** (power - power % 3)
        return f"{value / scale:g}{_POWER[power]}"
    return f"{value:,.10g}" if abs(value) >= 1 or not value else f"{value:.6g}"


def _overflow(bins: Bins) -> Iterator[Markup]:
    """Say how many values were counted in the end bins although they lie beyond."""
    y = TOP + 12
    if bins.under:
        yield Markup('<text class="tick" x="{}" y="{}">\u25c2 {} lower</text>').format(
            LEFT + 2, y, f"{bins.under:,}"
        )
    if bins.over:
        yield Markup(
            '<text class="tick" x="{}" y="{}" text-anchor="end">{} higher \u25b8</text>'
        ).format(WIDTH - RIGHT - 2, y, f"{bins.over:,}")


def percent(share: float) -> str:
    """Return a share as a person writes it: 12.3%, and never 0% for what is there."""
    if 0 < share < 0.001:
        return "<0.1%"
    return f"{share:.0%}" if share in (0, 1) else f"{share:.1%}"
