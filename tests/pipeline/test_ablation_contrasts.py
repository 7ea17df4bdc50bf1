"""Contrasts of simulated ablations: which are named, what is found, what must not be found."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from tests.ablation_simulation import Plan, scenes, simulate
from winnow.contracts.errors import SetupError
from winnow.pipeline.ablation_contrasts import Analysis, Contrast, analyse
from winnow.pipeline.ablation_results import Results
from winnow.pipeline.statistics import ArmResult, Design

METRIC = "zero_shot.accuracy"
DESIGN = Design(name="d", metrics=(METRIC,), seeds=tuple(range(5)))
FRACTIONS = (0.1, 0.3, 0.5)


def _curve(values: dict[float, float], raw: float, metric: str = METRIC) -> list[Plan]:
    plans = [Plan(arm="raw", truth={metric: raw}, num_rows=1000)]
    for fraction, value in values.items():
        rows = int(1000 * fraction)
        name = f"top {fraction}"
        plans += [
            Plan(arm=name, truth={metric: value}, scorer="clip", fraction=fraction, num_rows=rows),
            Plan(
                arm=f"{name} random",
                truth={metric: raw},
                kind="random",
                control_of=name,
                num_rows=rows,
            ),
        ]
    return plans


def _analyse(results: list[ArmResult], design: Design = DESIGN) -> Analysis:
    return analyse(design, Results(results))


def _only(analysis: Analysis, arm: str, role: str, other: str | None = None) -> Contrast:
    found = [
        c
        for c in analysis.contrasts
        if (c.pair.arm, c.pair.role) == (arm, role) and other in (None, c.pair.other)
    ]
    assert len(found) == 1
    return found[0]


def test_which_contrasts_are_named() -> None:
    design = replace(DESIGN, budgets=(1, 4), scorers={"clip_noisy": "n", "clip_packaged": "p"})
    analysis = _analyse(simulate(scenes(), budgets=(1, 4), num_items=5), design)
    roles = Counter((c.pair.role, c.pair.budget) for c in analysis.contrasts)
    for budget in (1, 4):
        # 12 points of two curves and one arm with a filter left out; raw closes both curves.
        assert roles["primary", budget] == 1
        assert roles["control", budget] == 13
        assert roles["raw", budget] == 2
        assert roles["peak", budget] == 2 * 5 * 2
    assert [c.scorer for c in analysis.curves] == ["clip_noisy"] * 2 + ["clip_packaged"] * 2
    assert analysis.curves[0].fractions == (0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)
    assert sum(c.share for c in analysis.contrasts) == pytest.approx(1)
    assert sum(c.share for c in analysis.headlines) == pytest.approx(0.5)
    assert not any(c.pair.arm == "oracle" for c in analysis.contrasts)


def test_a_contrast_is_the_paired_difference_over_common_seeds() -> None:
    plans = [
        Plan(arm="curated", truth={METRIC: 0.6}, num_rows=500),
        Plan(arm="c", truth={METRIC: 0.5}, kind="random", control_of="curated", num_rows=500),
        Plan(arm="raw", truth={METRIC: 0.5}),
    ]
    rows = simulate(plans, num_items=50, failed={("curated", 1, 3): "x", ("raw", 1, 0): "y"})
    analysis = _analyse(rows)
    found = _only(analysis, "curated", "raw")

    def value(arm: str, seed: int) -> float:
        table = next(
            r.metrics for r in rows if (r.arm, r.seed, r.split) == (arm, seed, "test")
        ).to_pylist()
        return float(table[0]["value"])

    seeds = (1, 2, 4)
    differences = [value("curated", s) - value("raw", s) for s in seeds]
    assert found.estimate.difference == pytest.approx(np.mean(differences))
    assert (found.estimate.num_seeds, found.estimate.num_items) == (3, 50)
    assert found.exploratory
    assert analysis.headlines[0].estimate.num_seeds == 4
    alone = _analyse(simulate(plans, num_items=50, with_items=False))
    control = alone.headlines[0]
    rows = simulate(plans, num_items=50)
    sides = [[value(arm, s) for s in range(5)] for arm in ("curated", "c")]
    expected = stats.ttest_rel(*sides)
    assert control.estimate.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert control.estimate.note == "seeds alone: no paired items"


def test_a_point_meets_the_ends_of_its_curve() -> None:
    values = {0.1: 0.3, 0.3: 0.7, 0.5: 0.5}
    with_raw = _analyse(simulate(_curve(values, 0.3), num_items=10))
    found = with_raw.find(METRIC, 1, "top 0.3", "raw")
    assert found is not None and (found.pair.role, found.pair.other) == ("peak", "raw")
    assert with_raw.find(METRIC, 1, "top 0.1", "raw") is None
    own = _analyse(simulate(_curve({**values, 1.0: 0.3}, 0.3), num_items=10))
    assert [arm.name for arm in own.curves[0].arms][-1] == "top 1.0"
    ends = {c.pair.other for c in own.contrasts if c.pair.role == "peak"}
    assert ends == {"top 0.1", "top 1.0"}
    (peak,) = own.peaks
    assert peak.high is not None and peak.high.pair.other == "top 1.0"


def test_the_primary_arm_may_be_a_point_and_is_counted_once() -> None:
    design = replace(DESIGN, primary_arm="top 0.3")
    rows = simulate(_curve({0.1: 0.3, 0.3: 0.7, 0.5: 0.5}, 0.3), num_items=10)
    mine = [c.pair for c in _analyse(rows, design).contrasts if c.pair.arm == "top 0.3"]
    assert [(p.role, p.other) for p in mine] == [
        ("primary", "top 0.3 random"),
        ("raw", "raw"),
        ("peak", "top 0.1"),
    ]


def test_names_and_order_mean_nothing() -> None:
    rows = simulate(_curve({0.1: 0.4, 0.3: 0.6, 0.5: 0.5}, 0.45), num_items=30)
    one = _analyse(rows)
    other = _analyse([replace(r, seed=100 - r.seed) for r in reversed(rows)])
    for a, b in zip(one.contrasts, other.contrasts, strict=True):
        assert a.pair == b.pair
        assert (b.low, b.high, b.p_corrected) == pytest.approx((a.low, a.high, a.p_corrected))
        assert a.verdict == b.verdict


def test_one_seed_gives_no_interval_and_is_still_counted() -> None:
    rows = simulate(_curve({0.3: 0.9, 0.5: 0.9}, 0.4), seeds=(7,), num_items=30)
    analysis = _analyse(rows)
    assert {c.verdict for c in analysis.contrasts} == {"not measured"}
    assert all(c.low is None and c.p_corrected == 1 for c in analysis.contrasts)
    failed = {("top 0.3", 1, s): "x" for s in range(4)}
    all_there = _analyse(simulate(_curve({0.3: 0.9, 0.5: 0.6}, 0.4), num_items=30))
    one_gone = _analyse(simulate(_curve({0.3: 0.9, 0.5: 0.6}, 0.4), num_items=30, failed=failed))
    assert _only(one_gone, "top 0.3", "control").verdict == "not measured"
    # A trial that died does not make the others easier.
    assert len(one_gone.contrasts) == len(all_there.contrasts)
    assert (
        _only(one_gone, "top 0.5", "control").share == _only(all_there, "top 0.5", "control").share
    )


def test_an_arm_without_a_control_is_not_measured() -> None:
    plans = [
        Plan(arm="curated", truth={METRIC: 0.9}, num_rows=5),
        Plan(arm="raw", truth={METRIC: 0.1}),
    ]
    found = _only(_analyse(simulate(plans, num_items=9)), "curated", "primary")
    assert (found.verdict, found.pair.other) == ("not measured", "")
    assert found.estimate.note == "no random control of its size was planned"


def test_lower_can_be_better() -> None:
    rows = simulate(_curve({0.5: 0.2}, 0.6), num_items=100)
    down = [
        replace(
            r,
            metrics=r.metrics.set_column(
                4, "higher_is_better", [[False] * r.metrics.num_rows]
            ).cast(r.metrics.schema),
        )
        for r in rows
    ]
    assert _only(_analyse(rows), "top 0.5", "control").verdict == "worse"
    assert _only(_analyse(down), "top 0.5", "control").verdict == "better"


@pytest.mark.parametrize(
    ("values", "raw", "found", "chosen"),
    [
        ({0.1: 0.3, 0.3: 0.7, 0.5: 0.6}, 0.3, True, 0.3),
        ({0.1: 0.7, 0.3: 0.7, 0.5: 0.6}, 0.3, False, 0.3),  # as good as the smallest
        ({0.1: 0.1, 0.3: 0.4, 0.5: 0.6}, 0.7, False, 0.5),  # rising
        ({0.1: 0.8, 0.3: 0.6, 0.5: 0.5}, 0.3, False, 0.3),  # falling
    ],
)
def test_peaks(values: dict[float, float], raw: float, found: bool, chosen: float) -> None:
    rows = simulate(_curve(values, raw), num_items=300, seed_spread=0.005, item_spread=0.02)
    (peak,) = _analyse(rows).peaks
    assert (peak.found, peak.chosen) == (found, chosen)
    assert peak.low is not None and peak.high is not None
    assert peak.found == (peak.low.verdict == peak.high.verdict == "better")


def test_the_peak_is_chosen_on_validation_not_on_test() -> None:
    plans = _curve({0.1: 0.3, 0.3: 0.7, 0.5: 0.5}, 0.3)
    rows = simulate(plans, num_items=300, seed_spread=0.005, item_spread=0.02)
    swapped = simulate(
        _curve({0.1: 0.3, 0.3: 0.5, 0.5: 0.7}, 0.3), num_items=300, seed_spread=0.005
    )
    mixed = [r for r in rows if r.split == "test"] + [r for r in swapped if r.split == "validation"]
    (peak,) = _analyse(mixed).peaks
    assert peak.chosen == 0.5
    (blind,) = _analyse([r for r in rows if r.split == "test"]).peaks
    assert (blind.chosen, blind.found) == (None, False)


def test_no_peak_without_the_whole_pool_or_an_inside() -> None:
    rows = simulate(_curve({0.1: 0.3, 0.3: 0.7, 0.5: 0.5}, 0.3), num_items=20)
    (peak,) = _analyse([r for r in rows if r.arm != "raw"]).peaks
    assert (peak.chosen, peak.found) == (None, False)
    (short,) = _analyse(simulate(_curve({0.3: 0.7}, 0.3), num_items=20)).peaks
    assert (short.chosen, short.found) == (None, False)


def test_slices_have_differences_and_no_verdict() -> None:
    """Which items a slice holds is not stored, so their part of the spread is not known."""
    slices = {"language=de": -0.3, "language=en": 0.0}
    plans = [
        Plan(arm="curated", truth={METRIC: 0.5}, num_rows=50, slices=slices),
        Plan(
            arm="r",
            truth={METRIC: 0.5},
            kind="random",
            control_of="curated",
            num_rows=50,
            slices=dict.fromkeys(slices, 0.0),
        ),
        Plan(arm="raw", truth={METRIC: 0.5}),
    ]
    rows = simulate(plans, num_items=300, item_spread=0.02)
    analysis = _analyse(rows)
    found = {c.pair.slice: c for c in analysis.slices}
    assert found.keys() == slices.keys()
    for contrast in found.values():
        assert (contrast.verdict, contrast.low, contrast.high) == ("described", None, None)
    gap = found["language=de"].estimate.difference - found["language=en"].estimate.difference
    assert gap == pytest.approx(-0.3)
    assert {c.pair.slice for c in analysis.contrasts} == {""}


def test_other_models_are_compared_on_the_same_rows_only() -> None:
    plans = [Plan(arm=name, truth={METRIC: 0.5}) for name in ("curated", "siglip", "raw")]
    about = {"curated": ("c", "clip"), "siglip": ("c", "siglip"), "raw": ("", "clip")}
    rows = [
        replace(row, selection=about[row.arm][0], trainer=about[row.arm][1])
        for row in simulate(plans, num_items=30)
    ]
    control = simulate(
        [Plan(arm="r", truth={METRIC: 0.5}, kind="random", control_of="curated", num_rows=1000)],
        num_items=30,
    )
    rows += [replace(row, trainer="clip") for row in control]
    found = {(c.pair.arm, c.pair.other, c.pair.role) for c in _analyse(rows).contrasts}
    assert found == {
        ("curated", "r", "primary"),
        ("curated", "raw", "raw"),
        ("siglip", "curated", "model"),
    }


def test_running_a_part_makes_no_contrast_milder() -> None:
    """What was planned and not trained counts in the correction as if it had shown nothing."""
    names = [f"a{i}" for i in range(6)]
    plans = [Plan(arm=n, truth={METRIC: 0.5}, num_rows=100 + i) for i, n in enumerate(names)]
    plans += [
        Plan(arm=f"r{i}", truth={METRIC: 0.45}, kind="random", control_of=n, num_rows=100 + i)
        for i, n in enumerate(names)
    ]
    whole = simulate(plans, num_items=100)
    empty = {"metrics": whole[0].metrics.slice(0, 0), "items": whole[0].items.slice(0, 0)}
    part = [
        row if row.arm in ("a0", "r0") else replace(row, status="missing", num_rows=0, **empty)
        for row in whole
    ]
    alone = [row for row in whole if row.arm in ("a0", "r0")]
    p = {
        name: next(
            c.p_corrected for c in _analyse(rows).contrasts if (c.pair.arm, c.pair.other) == pair
        )
        for pair in [("a0", "r0")]
        for name, rows in (("part", part), ("alone", alone), ("whole", whole))
    }
    assert p["part"] >= p["whole"] > p["alone"]


def test_a_whole_ablation_without_any_difference_says_so() -> None:
    """Verdicts and peaks of 100 simulated nulls: at most 5 % may say anything else."""
    plans = [
        *_curve(dict.fromkeys(FRACTIONS, 0.4), 0.4),
        Plan(arm="curated", truth={METRIC: 0.4}, num_rows=400),
        Plan(arm="c", truth={METRIC: 0.4}, kind="random", control_of="curated", num_rows=400),
    ]
    wrong = peaks = 0
    for state in range(100):
        rows = simulate(plans, num_items=20, item_spread=0.02, noise=0.02, random_state=state)
        analysis = _analyse(rows)
        wrong += any(c.verdict != "no difference shown" for c in analysis.contrasts)
        peaks += any(p.found for p in analysis.peaks)
    assert wrong <= 5
    assert peaks <= 1


def test_a_metric_that_no_trial_measured() -> None:
    rows = simulate(_curve({0.5: 0.5}, 0.5), seeds=(0,), num_items=3)
    with pytest.raises(SetupError, match=r"'top1', and no trial measured it; measured were zero"):
        _analyse(rows, replace(DESIGN, metrics=(METRIC, "top1")))
