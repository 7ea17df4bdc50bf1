"""Pictures of an ablation, as PNG and SVG: the same bytes for the same results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from winnow.pipeline.ablation_canvas import (
    BAD,
    COLOURS,
    GOOD,
    INK,
    LINE,
    MARKERS,
    RANDOM,
    SOFT,
    Picture,
    legend,
    new_figure,
    render,
)
from winnow.pipeline.ablation_contrasts import Analysis, Contrast
from winnow.pipeline.ablation_curves import draw_curves
from winnow.pipeline.ablation_results import Arm
from winnow.pipeline.ablation_words import metric_label
from winnow.pipeline.report_text import plain
from winnow.pipeline.statistics import mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GAP = "modality_gap."
GAP_PANELS = (
    *("centroid_distance", "relative_gap", "linear_separability", "alignment"),
    *("image_uniformity", "text_uniformity"),
)
"""What is drawn of the gap; the other measures are in metrics.parquet."""


def pictures(analysis: Analysis) -> list[Picture]:
    """Return the pictures that there is something to draw for: verdict, curve, gap."""
    found = []
    for name, draw, alt in (
        ("verdict", _verdict, "Differences to random data of the same size, with intervals"),
        ("curve", draw_curves, "Metric against the fraction of the pool that was kept"),
        ("gap", _gap, "Modality gap of each arm"),
    ):
        picture = render(name, alt, partial(draw, analysis))
        if picture is not None:
            found.append(picture)
    return found


def _verdict(analysis: Analysis) -> Figure | None:
    """Draw a forest: a panel per metric, a line per arm and budget, zero in the middle."""
    off_curve = {arm.name for arm in _off_curve(analysis)}
    shown = [
        c
        for c in analysis.contrasts
        if c.pair.role == "primary"
        # An arm of which nothing was trained yet is in the table, and needs no empty line here.
        or (
            c.pair.role == "control"
            and c.pair.arm in off_curve
            and c.pair.other
            and c.estimate.num_seeds
        )
    ]
    keys = dict.fromkeys((c.pair.role, c.pair.arm, c.pair.budget) for c in shown)
    rows = sorted(keys, key=lambda key: key[0] != "primary")
    if not rows:
        return None
    metrics = analysis.design.metrics
    left, width = 2.2, 3.6
    height = 1.25 + 0.42 * len(rows)
    figure, axes = new_figure(left + width * len(metrics), height, 1, len(metrics))
    for place, metric in enumerate(metrics):
        axis = axes[0, place]
        found = {
            (c.pair.role, c.pair.arm, c.pair.budget): c for c in shown if c.pair.metric == metric
        }
        for at, key in enumerate(rows):
            if key in found:
                _whisker(axis, len(rows) - 1 - at, found[key], strong=key[0] == "primary")
        axis.axvline(0, color=INK, linewidth=1, zorder=0)
        axis.set_title(metric_label(metric))
        axis.margins(x=0.12)
        _cut(axis, [c for c in shown if c.pair.metric == metric])
        axis.set_ylim(-0.6, len(rows) - 0.4)
        labels = [_row_label(analysis, *row) for row in rows][::-1]
        axis.set_yticks(range(len(rows)), labels if place == 0 else [""] * len(rows), color=INK)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.set_xlabel(_towards(analysis, metric))
    return figure


def _row_label(analysis: Analysis, role: str, arm: str, budget: int) -> str:
    rival = analysis.design.primary_against if role == "primary" else ""
    return f"{plain(arm, 30)}{f' - {plain(rival, 30)}' if rival else ''}, {budget}x"


def _towards(analysis: Analysis, metric: str) -> str:
    said = "difference to random of the same size"
    if analysis.design.primary_against:
        said += ", or as named"
    higher_is_better = analysis.results.direction(metric)
    if higher_is_better is None:
        return said
    return said + (
        "\nworse \u2190  \u2192 better" if higher_is_better else "\nbetter \u2190  \u2192 worse"
    )


def _whisker(axis: Axes, y: float, contrast: Contrast, *, strong: bool) -> None:
    colour = {"better": GOOD, "worse": BAD}.get(contrast.verdict, RANDOM)
    estimate = contrast.estimate
    if contrast.low is None or contrast.high is None:
        axis.annotate(
            "not measured", (0, y), (4, 3), textcoords="offset points", color=SOFT, fontsize=8
        )
        return
    thick = 3.0 if strong else 1.6
    axis.plot(
        [contrast.low, contrast.high], [y, y], color=colour, linewidth=thick, solid_capstyle="butt"
    )
    proven = contrast.verdict not in ("no difference shown", "not measured")
    axis.plot(
        estimate.difference,
        y,
        marker="o",
        markersize=8 if strong else 6,
        color=colour,
        markerfacecolor=colour if proven else "white",
        markeredgewidth=1.6,
    )
    said = contrast.verdict + (" (exploratory)" if contrast.exploratory else "")
    axis.annotate(
        said,
        (estimate.difference, y),
        (0, 7),
        textcoords="offset points",
        ha="center",
        color=colour if proven else SOFT,
        fontsize=8,
        fontweight="bold" if strong and proven else "normal",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
    )


def _cut(axis: Axes, contrasts: Sequence[Contrast]) -> None:
    """Let the widest intervals run out of the picture: two seeds would flatten all others."""
    ends = [0.0]
    for c in contrasts:
        if c.low is not None and c.high is not None:
            ends.append(3 * abs(c.estimate.difference))
            if c.pair.role == "primary" and not c.exploratory:
                ends += [abs(c.low), abs(c.high)]
    limit = 1.15 * max(ends)
    low, high = axis.get_xlim()
    if limit and max(-low, high) > limit:
        axis.set_xlim(max(low, -limit), min(high, limit))


def _gap(analysis: Analysis) -> Figure | None:
    """Draw a panel per measure of the gap, a line per arm that is no point of a curve."""
    results = analysis.results
    metrics = [f"{GAP}{name}" for name in GAP_PANELS if f"{GAP}{name}" in results.directions]
    names = list(dict.fromkeys(a.name for a in _off_curve(analysis)))
    if not metrics or not names:
        return None
    figure, axes = new_figure(2.4 + 2.9 * len(metrics), 1.4 + 0.36 * len(names), 1, len(metrics))
    budgets = analysis.design.budgets
    handles: dict[str, Any] = {}
    for place, metric in enumerate(metrics):
        axis = axes[0, place]
        for at, name in enumerate(reversed(names)):
            for order, budget in enumerate(budgets):
                arm = results.arm(name, budget)
                values = [] if arm is None else list(results.values(arm, metric).values())
                if arm is None or not values:
                    continue
                mean, half = mean_interval(values)
                handles[f"{budget}x samples"] = axis.errorbar(
                    mean,
                    at - 0.13 * (order - (len(budgets) - 1) / 2),
                    xerr=np.nan_to_num(half),
                    color=RANDOM if arm.kind == "random" else COLOURS[order % 6],
                    marker=MARKERS[order % 6],
                    capsize=2.5,
                    linestyle="",
                )
        axis.set_title(metric_label(metric[len(GAP) :]))
        labels = [plain(name, 34) for name in reversed(names)] if not place else [""] * len(names)
        axis.set_yticks(range(len(names)), labels, color=INK)
        axis.tick_params(axis="y", length=0)
        axis.set_ylim(-0.6, len(names) - 0.4)
        axis.grid(axis="x", color=LINE, linewidth=0.7)
        axis.margins(x=0.15)
    if len(budgets) > 1:
        legend(figure, handles)
    return figure


def _off_curve(analysis: Analysis) -> Iterator[Arm]:
    """Yield the arms that are neither a point of a curve nor random for one."""
    design = analysis.design
    points = {a.name for c in analysis.curves for a in c.arms}
    points -= {design.raw_arm, design.primary_arm}
    for arm in analysis.results.arms:
        if arm.name not in points and not (arm.kind == "random" and arm.control_of in points):
            yield arm
