"""The fraction curve: what its lines say is what the trials gave."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from tests.ablation_simulation import POOL, Plan, scenes, simulate
from winnow.pipeline.ablation_canvas import MARKERS
from winnow.pipeline.ablation_contrasts import Analysis, analyse
from winnow.pipeline.ablation_curves import draw_curves
from winnow.pipeline.ablation_results import Results
from winnow.pipeline.statistics import ArmResult, Design, mean_interval

METRICS = ("zero_shot.accuracy", "retrieval.image_to_text_recall@1")
DESIGN = Design(
    name="d", metrics=METRICS, seeds=(0, 1, 2, 3, 4), budgets=(1, 4),
    scorers={"clip_noisy": "noisy $x$", "clip_packaged": "packaged"},
)  # fmt: skip
FAILED = {("clip_noisy 40%", 1, 1): "x", ("clip_packaged 20%", 4, 0): "x"}


def simulated(plans: list[Plan], **options: Any) -> list[ArmResult]:
    options = {"seeds": DESIGN.seeds, "budgets": DESIGN.budgets, "num_items": 6, **options}
    return simulate(plans, **options)


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    spread = {"seed_spread": 0.002, "item_spread": 0.01, "noise": 0.01}
    return analyse(DESIGN, Results(simulated(scenes(), failed=FAILED, **spread)))


@pytest.fixture(scope="module")
def figure(analysis: Analysis) -> Iterator[Figure]:
    found = draw_curves(analysis)
    assert found is not None
    yield found


def drawn(axis: Axes) -> list[dict[float, tuple[float, float]]]:
    """x -> (mean, half of the interval) of every line with error bars in a panel."""
    found = []
    for bars in axis.containers:
        assert isinstance(bars, ErrorbarContainer)
        points, _, ends = bars
        halves = [float(s[1, 1] - s[0, 1]) / 2 for bar in ends for s in bar.get_segments()]
        xs, ys = np.asarray(points.get_xdata(), float), np.asarray(points.get_ydata(), float)
        found.append({x: (y, h) for x, y, h in zip(xs, ys, halves, strict=True)})
    return found


def means(analysis: Analysis, points: dict[float, list[str]], metric: str, budget: int) -> Any:
    """The naive way: all the test values of some arms, by fraction."""
    found = {}
    for fraction, names in points.items():
        arms = [analysis.results.arm(name, budget) for name in names]
        values = [v for a in arms if a for v in analysis.results.values(a, metric).values()]
        if values:
            found[fraction] = mean_interval(values)
    return found


FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.75)


def close(line: dict[float, tuple[float, float]], expected: dict[float, Any]) -> bool:
    """Whether a line has these points; panels may move its points a little to the side."""
    if len(line) != len(expected):
        return False
    pairs = zip(sorted(line.items()), sorted(expected.items()), strict=True)
    return all(
        abs(x - f) < 0.02 and np.allclose(values, said, equal_nan=True)
        for (x, values), (f, said) in pairs
    )


def test_there_is_a_panel_per_metric_and_budget(figure: Figure) -> None:
    assert len(figure.axes) == 4


def test_each_scorers_line_goes_through_its_means_to_the_whole_pool(
    analysis: Analysis, figure: Figure
) -> None:
    panels = iter(figure.axes)
    pairs = [(m, b) for m in METRICS for b in (1, 4)]
    order = sorted(pairs, key=lambda p: (METRICS.index(p[0]), p[1]))
    for axis, (metric, budget) in zip(panels, order, strict=True):
        lines = drawn(axis)
        for scorer in ("clip_noisy", "clip_packaged"):
            points = {f: [f"{scorer} {f:.0%}"] for f in FRACTIONS} | {1.0: ["raw"]}
            expected = means(analysis, points, metric, budget)
            assert sum(close(line, expected) for line in lines) == 1, (metric, budget, scorer)


def test_the_random_line_has_all_random_arms_of_a_size_and_the_whole_pool(
    analysis: Analysis, figure: Figure
) -> None:
    scorers = ("clip_noisy", "clip_packaged")
    points = {f: [f"{s} {f:.0%}.random" for s in scorers] for f in FRACTIONS} | {1.0: ["raw"]}
    expected = means(analysis, points, METRICS[0], 1)
    assert sum(close(line, expected) for line in drawn(figure.axes[0])) == 1


def test_without_two_fractions_there_is_no_curve() -> None:
    plans = [p for p in scenes() if p.fraction is None]
    assert draw_curves(analyse(DESIGN, Results(simulated(plans)))) is None
    one = [p for p in plans if p.arm != "raw"] + [
        Plan(arm="s 30%", truth=plans[0].truth, scorer="s", fraction=0.3, num_rows=10)
    ]
    assert draw_curves(analyse(DESIGN, Results(simulated(one)))) is None


def test_a_budget_without_a_curve_has_no_panel() -> None:
    results = [
        r for r in simulated(scenes()) if r.budget == 1 or (r.fraction is None and r.arm != "raw")
    ]
    found = draw_curves(analyse(DESIGN, Results(results)))
    assert found is not None and len(found.axes) == 2


def test_only_trials_that_failed_draw_no_warning() -> None:
    lost = [p.arm for p in scenes() if p.arm not in ("curated", "oracle")]
    failed = {(arm, b, s): "x" for arm in lost for b in (1, 4) for s in range(5)}
    results = Results(simulated(scenes(), failed=failed))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = draw_curves(analyse(DESIGN, results))
    assert figure is not None
    for axis in figure.axes:
        (star,) = [points for points in drawn(axis) if points]
        assert list(star) == [0.38]


def test_the_smallest_and_largest_sizes_are_written_below(figure: Figure) -> None:
    words = " ".join(t.get_text() for t in figure.axes[0].get_xticklabels())
    assert "10 %" in words and "100 %" in words
    assert "600" in words and f"{POOL:,}" in words


def sizes(*num_rows: int) -> list[str]:
    """The labels below points of so many rows, the pool last; 15,360 samples are seen."""
    *parts, pool = [
        Plan(
            arm=f"s {rows}",
            truth=dict.fromkeys(METRICS, 0.5),
            scorer="s",
            fraction=rows / max(num_rows),
            num_rows=rows,
        )
        for rows in num_rows
    ]
    plans = [*parts, replace(pool, arm="raw", fraction=None, scorer="")]
    figure = draw_curves(analyse(DESIGN, Results(simulated(plans, budgets=[1]))))
    assert figure is not None
    return [label.get_text() for label in figure.axes[0].get_xticklabels()]


def test_sizes_are_written_without_powers_of_ten() -> None:
    assert sizes(15, 60, 600) == ["2.5 %\n15\n1,024x", "10 %\n60\n256x", "100 %\n600\n25.6x"]
    found = sizes(9_876, 61_440, 999_600, 1_234_567)
    assert [label.split("\n")[1:] for label in found] == [
        ["9,876", "1.56x"],
        ["61.4k", "0.25x"],
        ["1M", "0.0154x"],
        ["1.23M", "0.0124x"],
    ]


def test_a_point_is_filled_where_it_beats_random_rows(analysis: Analysis, figure: Figure) -> None:
    better = {
        (c.pair.arm, c.pair.metric, c.pair.budget)
        for c in analysis.contrasts
        if c.pair.other == f"{c.pair.arm}.random" and c.verdict == "better"
    }
    filled = 0
    for axis, metric, budget in zip(figure.axes, np.repeat(METRICS, 2), (1, 4, 1, 4), strict=True):
        for curve in (c for c in analysis.curves if c.budget == budget):
            for fraction, arm in zip(curve.fractions, curve.arms, strict=True):
                values = list(analysis.results.values(arm, metric).values())
                at = [
                    point
                    for point in axis.get_lines()
                    if len(point.get_xdata()) == 1
                    and point.get_marker() in MARKERS
                    and abs(float(point.get_xdata()[0]) - fraction) < 0.02
                    and np.isclose(float(point.get_ydata()[0]), np.mean(values))
                ]
                said = {p.get_markerfacecolor() != "white" for p in at}
                assert said == {(arm.name, metric, budget) in better}
                filled += True in said
    assert filled == len({b for b in better if "%" in b[0]}) > 0


@pytest.mark.parametrize("scorer", ["clip_noisy", ""])
def test_the_primary_arm_is_drawn_once(scorer: str) -> None:
    """A star of its own only where it is no point of a curve."""
    truth = dict.fromkeys(METRICS, 0.5)
    plans = [
        Plan(arm=f"a {f:.0%}", truth=truth, scorer=scorer, fraction=f, num_rows=int(POOL * f))
        for f in (0.25, 0.5)
    ]
    plans += [Plan(arm="raw", truth=truth), Plan(arm="other", truth=truth, num_rows=10)]
    results = Results(simulated(plans, budgets=[1]))
    for primary, stars in (("a 25%", 0), ("raw", 0), ("other", 1)):
        figure = draw_curves(analyse(replace(DESIGN, primary_arm=primary), results))
        assert figure is not None
        lines = figure.axes[0].get_lines()
        assert sum(line.get_marker() == "*" for line in lines) == stars, primary


def test_one_seed_draws_means_without_intervals() -> None:
    results = Results(simulated(scenes(), seeds=[0], budgets=[1]))
    design = replace(DESIGN, seeds=(0,), budgets=(1,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = draw_curves(analyse(design, results))
    assert figure is not None and len(figure.axes) == 2
