"""Sentences: the headline, small numbers of seeds, brackets, and what is never said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.ablation_simulation import Plan, scenes, simulate
from winnow.pipeline.ablation_contrasts import Analysis, analyse
from winnow.pipeline.ablation_report import reading
from winnow.pipeline.ablation_results import Results
from winnow.pipeline.ablation_words import (
    answer,
    contrast_sentence,
    failure_lines,
    interval_text,
    needed_errors,
    number,
    p_text,
    peak_sentence,
    percent,
    published_lines,
    signed,
    verdict_text,
)
from winnow.pipeline.statistics import Design, Published

DESIGN = Design(name="d", metrics=("m", "k"), seeds=tuple(range(5)))


def _two(m: float, k: float, *, design: Design = DESIGN, num_seeds: int = 5) -> Analysis:
    """Return curated against random that is better by m and k."""
    plans = [
        Plan(arm="curated", truth={"m": 0.5 + m, "k": 0.5 + k}, num_rows=10),
        Plan(arm="r", truth={"m": 0.5, "k": 0.5}, kind="random", control_of="curated", num_rows=10),
    ]
    rows = simulate(plans, seeds=range(num_seeds), num_items=200, item_spread=0.05)
    return analyse(design, Results(rows))


@pytest.mark.parametrize(
    ("m", "k", "headline", "tone"),
    [
        (0.3, 0.3, "Curated beats random data of the same size", "good"),
        (0.3, 0.0, "Curated beats random data of the same size in 1 of 2 contrasts", "good"),
        (0.0, 0.0, "No difference shown between curated and random data of the same size", "open"),
        (-0.3, 0.3, "Mixed: curated is better in 1 contrasts and worse in 1", "open"),
        (0.0, -0.3, "Curated loses to random data of the same size in 1 of 2 contrasts", "bad"),
        (-0.3, -0.3, "Curated loses to random data of the same size", "bad"),
    ],
)
def test_the_headline(m: float, k: float, headline: str, tone: str) -> None:
    found = answer(_two(m, k))
    assert (found.headline, found.tone) == (headline, tone)
    assert "Of 2 primary contrasts, named before the run" in found.detail
    assert "xploratory" not in found.headline + found.detail


def test_without_a_primary_arm_nothing_is_claimed() -> None:
    analysis = _two(0.3, 0.0, design=replace(DESIGN, primary_arm=""))
    found = answer(analysis)
    assert (found.headline, found.tone) == ("No primary contrast was named", "open")
    assert found.detail == ("Of 2 contrasts, all secondary: better in 1, no difference shown in 1.")
    assert sum(contrast.share for contrast in analysis.contrasts) == pytest.approx(1)


def test_a_contrast_that_was_named_late_is_not_called_early() -> None:
    late = replace(DESIGN, named="named when results were there", record="Recorded on a day.")
    found = answer(_two(0.3, 0.3, design=late))
    assert "Of 2 primary contrasts, named when results were there: better in 2" in found.detail
    assert reading(_two(0.3, 0.3, design=late)).endswith(" sd: over seeds. Recorded on a day.")


def test_an_arm_without_a_filter_is_held_against_the_arm_that_has_it() -> None:
    """The filter "good" gains .3, "idle" nothing: each by the arm without it minus the arm."""
    values = {"curated": 0.8, "curated-without:good": 0.5, "curated-without:idle": 0.8}
    plans = [Plan(arm=name, truth={"m": v, "k": v}, num_rows=10) for name, v in values.items()]
    rows = simulate(plans, seeds=range(5), num_items=200, item_spread=0.05)
    analysis = analyse(DESIGN, Results(rows))
    found = {(c.pair.arm, c.pair.other, c.pair.metric): c for c in analysis.left_out}
    assert {(arm, other) for arm, other, _ in found} == {
        ("curated-without:good", "curated"),
        ("curated-without:idle", "curated"),
    }
    good = found["curated-without:good", "curated", "m"]
    assert good.verdict == "worse"
    assert good.estimate.difference == pytest.approx(-0.3, abs=0.02)
    assert found["curated-without:idle", "curated", "m"].verdict == "no difference shown"
    said = contrast_sentence(analysis, good)
    assert said.startswith("m at 1x: curated-without:good against curated: worse; ")


def test_few_seeds_are_said() -> None:
    analysis = _two(0.4, 0.4, num_seeds=4, design=replace(DESIGN, seeds=(0, 1, 2, 3)))
    found = answer(analysis)
    assert found.headline.startswith("Exploratory: curated beats")
    assert found.tone == "open"  # no color
    assert found.detail.endswith("Exploratory: 4 seeds in common, and a headline needs 5.")
    assert "better (exploratory)" in contrast_sentence(analysis, analysis.headlines[0])
    assert verdict_text(analysis.headlines[0]) == "better (exploratory, 4 seeds)"
    assert "4 seeds, 200 items" in contrast_sentence(analysis, analysis.headlines[0])


def test_one_seed_is_not_measured() -> None:
    analysis = _two(0.4, 0.4, num_seeds=1, design=replace(DESIGN, seeds=(0,)))
    assert answer(analysis).headline == "Not measured"
    assert contrast_sentence(analysis, analysis.headlines[0]).endswith("not measured (one seed).")
    assert interval_text(analysis.headlines[0]) == "[no interval]"
    assert needed_errors(analysis) == ""


def test_no_difference_is_never_called_equal() -> None:
    analysis = _two(0.0, 0.0)
    for contrast in analysis.headlines:
        said = contrast_sentence(analysis, contrast)
        assert "no difference shown" in said
        assert said.endswith("This does not show that they are equal.")


def test_brackets_are_round_where_holm_excludes_zero() -> None:
    contrast = _two(0.3, 0.3).headlines[0]
    assert interval_text(replace(contrast, low=0.0, high=0.25)) == "(0, +0.2500]"
    assert interval_text(replace(contrast, low=-0.1, high=0.0)) == "[-0.1000, 0)"
    assert interval_text(replace(contrast, low=0.0, high=0.0)) == "[0, 0]"
    assert interval_text(replace(contrast, low=-0.1, high=0.25)) == "[-0.1000, +0.2500]"


def test_an_inverted_u_is_said_only_where_it_was_found() -> None:
    design = replace(
        DESIGN, metrics=("zero_shot.accuracy",), scorers={"clip_packaged": "packaged: in-dist"}
    )
    for effect in (0.0, 1.0):
        rows = simulate(scenes(effect=effect), num_items=300, seed_spread=0.002, item_spread=0.02)
        analysis = analyse(design, Results(rows))
        for peak in analysis.peaks:
            said = peak_sentence(analysis, peak)
            assert ("inverted U" in said) == peak.found
            assert ("no peak was found" in said) != peak.found
        assert any(p.found for p in analysis.peaks) == bool(effect)
    assert "1x, packaged: in-dist: " in peak_sentence(analysis, analysis.peaks[0])


def test_failures_and_missing_trials_are_listed() -> None:
    plans = [Plan(arm="a", truth={"m": 1.0}), Plan(arm="raw", truth={"m": 1.0})]
    rows = simulate(
        plans, seeds=(0, 1), num_items=3, failed={("a", 1, 1): "nan\nat \x1b[31mstep 4"}
    )
    analysis = analyse(replace(DESIGN, metrics=("m",), seeds=(0, 1, 2)), Results(rows))
    assert list(failure_lines(analysis)) == [
        "a, 1x, seed 1: failed: nan at \ufffd[31mstep 4",
        "a, 1x, seed 2: no result",
        "raw, 1x, seed 2: no result",
    ]


def test_numbers() -> None:
    assert [signed(v) for v in (0.01234, -0.5, 0.0, 123.4, float("nan"))] == [
        "+0.0123",
        "-0.5000",
        "0",
        "+123.4",
        "-",
    ]
    assert [number(v) for v in (0.5, None, float("nan"), 1234.5)] == ["0.5000", "-", "-", "1,234"]
    assert [number(v) for v in (10_161.0, -12.034, 999.96)] == ["10,161", "-12.03", "1000"]
    assert [p_text(p) for p in (0.00001, 0.0123, 0.5)] == ["< 0.0001", "0.0123", "0.50"]
    assert [percent(f) for f in (0.1, 1.0, 0.025)] == ["10 %", "100 %", "2.5 %"]


def test_published_numbers_are_grouped() -> None:
    published = (
        Published(label="clip", fraction=0.1, value=0.021),
        Published(label="clip", fraction=0.2, value=0.042),
        Published(label="random", fraction=None, value=0.01),
    )
    analysis = _two(0, 0, design=replace(DESIGN, published=published))
    assert published_lines(analysis) == {"clip": "10 %: 0.021, 20 %: 0.042", "random": "0.01"}
