"""The fraction curve: how a metric moves with the share of the pool that was kept."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from winnow.pipeline.ablation_canvas import (
    COLOURS,
    INK,
    LINE,
    MARKERS,
    RANDOM,
    legend,
    line,
    new_figure,
)
from winnow.pipeline.ablation_contrasts import Analysis, Curve
from winnow.pipeline.ablation_results import Arm
from winnow.pipeline.ablation_words import curve_label, metric_label, percent
from winnow.pipeline.report_text import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_curves(analysis: Analysis) -> Figure | None:
    """Draw a panel per metric and budget, a line per scorer."""
    budgets = [b for b in analysis.design.budgets if any(c.budget == b for c in analysis.curves)]
    metrics = analysis.design.metrics
    if not budgets:
        return None
    figure, axes = new_figure(
        5.6 * len(budgets), 0.9 + 3.5 * len(metrics), len(metrics), len(budgets)
    )
    handles: dict[str, Any] = {}
    for row, metric in enumerate(metrics):
        for column, budget in enumerate(budgets):
            axis = axes[row, column]
            if column:
                axis.sharey(axes[row, 0])
            handles.update(_curve_panel(analysis, axis, metric, budget))
            axis.set_title(f"{metric_label(metric)}, {budget}x samples")
            if not column:
                axis.set_ylabel(f"{metric_label(metric)} (test)")
    handles["filled: better than random of the same size, corrected"] = _swatch(INK)
    handles["hollow: that is not shown"] = _swatch("white")
    legend(figure, handles)
    return figure


def _swatch(fill: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="", marker="o", color=INK, markerfacecolor=fill)


def _curve_panel(analysis: Analysis, axis: Axes, metric: str, budget: int) -> dict[str, Any]:
    handles: dict[str, Any] = {}
    curves = [curve for curve in analysis.curves if curve.budget == budget]
    random = _random_line(analysis, metric, curves)
    if random:
        handles["random of the same size"] = line(axis, random, RANDOM, "x", "-")
    for curve in curves:
        place = list(dict.fromkeys(c.name for c in analysis.curves)).index(curve.name)
        colour, marker = COLOURS[place % 6], MARKERS[place % 6]
        points = [
            (fraction, list(analysis.results.values(arm, metric).values()))
            for fraction, arm in zip(curve.fractions, curve.arms, strict=True)
        ]
        label = curve_label(analysis, curve)
        handles[label] = line(axis, points, colour, "", "-", offset=0.004 * place)
        for (fraction, values), arm in zip(points, curve.arms, strict=True):
            found = analysis.find(metric, budget, arm.name, "control")
            proven = found is not None and found.verdict == "better"
            if values:
                axis.plot(
                    fraction + 0.004 * place,
                    np.mean(values),
                    marker=marker,
                    color=colour,
                    markerfacecolor=colour if proven else "white",
                    markersize=6,
                )
    on_curves = {arm.name for curve in curves for arm in curve.arms}
    handles.update(_extras(analysis, axis, metric, budget, on_curves))
    _size_ticks(axis, curves)
    axis.grid(axis="y", color=LINE, linewidth=0.7)
    axis.set_axisbelow(True)
    return handles


def _extras(
    analysis: Analysis, axis: Axes, metric: str, budget: int, on_curves: Collection[str]
) -> dict[str, Any]:
    """Draw the ceiling, and the primary arm where it is no point of a curve."""
    handles: dict[str, Any] = {}
    results, design = analysis.results, analysis.design
    for arm in results.arms_of(budget):
        values = list(results.values(arm, metric).values())
        if arm.kind == "oracle" and values:
            handles["oracle (ceiling, uses the truth)"] = axis.axhline(
                float(np.mean(values)), color=INK, linestyle="--", linewidth=1.2
            )
    arm_, raw = results.arm(design.primary_arm, budget), results.arm(design.raw_arm, budget)
    if arm_ and raw and arm_.num_rows and raw.num_rows and arm_.name not in on_curves:
        values = list(results.values(arm_, metric).values())
        if values:
            share = float(np.mean(arm_.num_rows)) / float(np.mean(raw.num_rows))
            handles[f"{plain(design.primary_arm, 30)} (all filters)"] = line(
                axis, [(share, values)], INK, "*", "", size=11
            )
    return handles


def _random_line(
    analysis: Analysis, metric: str, curves: Sequence[Curve]
) -> list[tuple[float, list[float]]]:
    """Return fraction -> values of the random arms; the whole pool closes the line."""
    found: dict[float, dict[tuple[str, int], float]] = {}
    for curve in curves:
        for fraction, arm in zip(curve.fractions, curve.arms, strict=True):
            whole = arm.name == analysis.design.raw_arm
            other: Arm | None = arm if whole else analysis.results.control(arm)
            if other is not None:
                values = analysis.results.values(other, metric)
                found.setdefault(fraction, {}).update(
                    {(other.name, s): v for s, v in values.items()}
                )
    return [(fraction, list(found[fraction].values())) for fraction in sorted(found)]


def _size_ticks(axis: Axes, curves: Sequence[Curve]) -> None:
    """Label the fractions; rows and repeats stand below them."""
    sizes: dict[float, Arm] = {}
    for curve in curves:
        for fraction, arm in zip(curve.fractions, curve.arms, strict=True):
            if arm.num_rows:
                sizes.setdefault(fraction, arm)
    order = sorted(sizes)
    labels = [
        f"{percent(f)}\n{_short(round(np.mean(sizes[f].num_rows)))}\n"
        f"{_short(float(np.mean(sizes[f].repeats)))}x"
        for f in order
    ]
    axis.set_xticks(order, labels, fontsize=7.5)
    axis.set_xlim(0, 1.05)
    axis.set_xlabel("share of the pool that was kept; rows; times each row was seen")


def _short(value: float) -> str:
    """Return a number in three or four digits: 0.25, 25.6, 9,876, 61.4k, 1.23M."""
    if value < 1e4:
        return f"{value:.3g}" if value < 100 else f"{value:,.0f}"
    value = float(f"{value:.3g}")
    unit, name = next((u, n) for u, n in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if value >= u)
    return f"{value / unit:g}{name}"
