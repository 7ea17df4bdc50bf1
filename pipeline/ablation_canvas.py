"""What every picture of an ablation shares: style, colours, and bytes that do not change."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from winnow.pipeline.statistics import mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, LINE, RANDOM = "#1c2730", "#566573", "#dfe5ea", "#8794a0"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's colours, which stay apart for colour-blind eyes; shapes differ as well."""
MARKERS = ("o", "s", "^", "D", "v", "P")
GOOD, BAD = COLOURS[0], COLOURS[1]
SILENT = ("Date", "Creator", "Format", "Type")
"""What an SVG would say about itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One drawing. alt: what it shows, in words."""

    name: str
    png: bytes
    svg: bytes
    alt: str


def render(name: str, alt: str, draw: Callable[[], Figure | None]) -> Picture | None:
    """Draw in the house style and return both files; None where there is nothing to draw."""
    with _style(name):
        figure = draw()
        if figure is None:
            return None
        files = []
        for kind, metadata in (("png", {"Software": None}), ("svg", dict.fromkeys(SILENT))):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
            files.append(buffer.getvalue())
    return Picture(name=name, png=files[0], svg=files[1], alt=alt)


@contextmanager
def _style(salt: str) -> Iterator[None]:
    """Draw with the library's own defaults and ours, whatever a user's matplotlibrc says."""
    import matplotlib as mpl

    ours: Any = {
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "text.color": INK,
        "text.parse_math": False,
        "axes.edgecolor": LINE,
        "axes.labelcolor": INK,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
        "svg.hashsalt": f"winnow-{salt}",
        "svg.fonttype": "path",
    }
    with mpl.rc_context():
        mpl.rcParams.update({k: v for k, v in mpl.rcParamsDefault.items() if k != "backend"})
        mpl.rcParams.update(ours)
        yield


def new_figure(width: float, height: float, rows: int, columns: int) -> tuple[Figure, Any]:
    """Return a figure that belongs to no window, and its panels by row and column."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def legend(figure: Figure, handles: Mapping[str, Any]) -> None:
    """Put the legend above the panels."""
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside upper left",
        ncols=2,
        frameon=False,
        fontsize=8.5,
    )


def line(
    axis: Axes,
    points: Sequence[tuple[float, Sequence[float]]],
    colour: str,
    marker: str,
    style: str,
    *,
    offset: float = 0.0,
    size: float = 6,
) -> Any:
    """Draw means of values per x, with their t intervals; return the handle for the legend."""
    found = [(x + offset, *mean_interval(values)) for x, values in points if len(values)]
    x, y, half = (np.array(column) for column in zip(*found, strict=True)) if found else ((),) * 3
    return axis.errorbar(
        x,
        y,
        yerr=np.nan_to_num(half) if len(found) else None,
        color=colour,
        marker=marker,
        markersize=size,
        linestyle=style,
        linewidth=1.8,
        elinewidth=1.1,
        capsize=2.5,
    )
