"""Sentences and cells about an ablation: computed from the statistics, never stronger than they."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from winnow.pipeline.ablation_contrasts import Analysis, Contrast, Curve, Peak
from winnow.pipeline.ablation_results import Arm
from winnow.pipeline.report_text import plain
from winnow.pipeline.statistics import Design, t_reach

Tone = Literal["good", "bad", "open"]
LONGEST = 400
VERDICTS = ("better", "worse", "higher", "lower", "no difference shown", "not measured")


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The whole ablation in a line. tone: how it is coloured."""

    headline: str
    detail: str
    tone: Tone


def rival_of(design: Design) -> str:
    """Return what the primary arm is compared with."""
    return plain(design.primary_against, 60) or "random data of the same size"


def answer(analysis: Analysis) -> Answer:
    """Say whether the primary arm helped, over all contrasts that were named as primary."""
    if not analysis.design.primary_arm:
        return _no_primary(analysis)
    found = analysis.headlines
    arm = plain(analysis.design.primary_arm, 60)
    rival = rival_of(analysis.design)
    measured = [c for c in found if c.verdict != "not measured"]
    detail = (
        f"Of {len(found)} primary contrasts, {analysis.design.named}: "
        f"{_counted(found) or 'nothing was named'}."
    )
    few = [c for c in measured if c.exploratory]
    if few:
        least = min(c.estimate.num_seeds for c in few)
        detail += f" Exploratory: {least} seeds in common, and a headline needs 5."
    if not measured:
        return Answer(headline="Not measured", detail=detail, tone="open")
    prefix = "Exploratory: " if few else ""  # and no color: a headline needs more seeds
    better, worse = (sum(c.verdict == word for c in found) for word in ("better", "worse"))
    if better == len(found):
        said, tone = f"{arm} beats {rival}", "good"
    elif worse == len(found):
        said, tone = f"{arm} loses to {rival}", "bad"
    elif better and not worse:
        said = f"{arm} beats {rival} in {better} of {len(found)} contrasts"
        tone = "good"
    elif worse and not better:
        said = f"{arm} loses to {rival} in {worse} of {len(found)} contrasts"
        tone = "bad"
    elif better:
        said, tone = f"mixed: {arm} is better in {better} contrasts and worse in {worse}", "open"
    else:
        said, tone = f"no difference shown between {arm} and {rival}", "open"
    headline = prefix + said
    tone = "open" if few else tone
    return Answer(headline=headline[:1].upper() + headline[1:], detail=detail, tone=tone)  # type: ignore[arg-type]


def _no_primary(analysis: Analysis) -> Answer:
    found = analysis.contrasts
    detail = f"Of {len(found)} contrasts, all secondary: {_counted(found)}." if found else ""
    return Answer(headline="No primary contrast was named", detail=detail, tone="open")


def _counted(found: Sequence[Contrast]) -> str:
    counts = {word: sum(c.verdict == word for c in found) for word in VERDICTS}
    return ", ".join(f"{word} in {n}" for word, n in counts.items() if n)


def contrast_sentence(analysis: Analysis, contrast: Contrast) -> str:
    """Return one contrast as a sentence, with its interval, corrected p, seeds and items."""
    pair, estimate = contrast.pair, contrast.estimate
    against = pair.other
    if pair.role == "control" or (pair.role == "primary" and not analysis.design.primary_against):
        against = "random of the same size"
    arm, against = plain(pair.arm, 60), plain(against, 60)
    if pair.role == "model":
        against += " (the same rows)"
    start = f"{metric_label(pair.metric)} at {pair.budget}x: {arm} against {against}: "
    if contrast.verdict == "not measured":
        return f"{start}not measured ({estimate.note})."
    said = f"{contrast.verdict}{' (exploratory)' if contrast.exploratory else ''}"
    tail = (
        ""
        if contrast.verdict != "no difference shown"
        else " This does not show that they are equal."
    )
    return (
        f"{start}{said}; difference {signed(estimate.difference)} {interval_text(contrast)}, "
        f"corrected p {p_text(contrast.p_corrected)}, {basis(contrast)}.{tail}"
    )


def peak_lines(analysis: Analysis) -> Iterator[str]:
    """Yield a sentence per metric and curve of which a trial was run."""
    for peak in analysis.peaks:
        if any(arm.was_run for arm in peak.curve.arms if arm.fraction is not None):
            yield peak_sentence(analysis, peak)


def peak_sentence(analysis: Analysis, peak: Peak) -> str:
    """Say "inverted U" only where one interior fraction beat both ends on test."""
    label = curve_label(analysis, peak.curve)
    start = f"{metric_label(peak.metric)} at {peak.curve.budget}x, {label}: "
    if peak.chosen is None or peak.low is None or peak.high is None:
        return f"{start}no peak was found (too few fractions, or none was measured on validation)."
    ends = [
        f"{percent(fraction)}: {side.verdict}, {signed(side.estimate.difference)} "
        f"{interval_text(side)}"
        for fraction, side in (
            (peak.curve.fractions[0], peak.low),
            (peak.curve.fractions[-1], peak.high),
        )
    ]
    few = (
        " Exploratory: fewer than 5 seeds." if peak.low.exploratory or peak.high.exploratory else ""
    )
    said = "inverted U" if peak.found else "no peak was found"
    return (
        f"{start}{said}. {percent(peak.chosen)}, the best inside on validation, against "
        f"{' and against '.join(ends)}.{few}"
    )


def basis(contrast: Contrast) -> str:
    """Return what a contrast rests on: "5 seeds, 600 items"."""
    estimate = contrast.estimate
    items = f"{estimate.num_items:,} items" if estimate.num_items else "seeds alone"
    return f"{estimate.num_seeds} {'seed' if estimate.num_seeds == 1 else 'seeds'}, {items}"


def verdict_text(contrast: Contrast) -> str:
    """Return a verdict for a table: with "(exploratory)" where few seeds stand behind it."""
    if contrast.verdict == "not measured":
        return f"not measured: {contrast.estimate.note}"
    if contrast.verdict == "described":
        return "no verdict"
    return contrast.verdict + (
        f" (exploratory, {contrast.estimate.num_seeds} seeds)" if contrast.exploratory else ""
    )


def interval_text(contrast: Contrast) -> str:
    """Return the interval; a round bracket where Holm's steps exclude a zero end."""
    if contrast.low is None or contrast.high is None:
        return "[no interval]"
    zero_width = contrast.low == contrast.high
    left = "(" if contrast.low == 0 and not zero_width else "["
    right = ")" if contrast.high == 0 and not zero_width else "]"
    return f"{left}{signed(contrast.low)}, {signed(contrast.high)}{right}"


def signed(value: float) -> str:
    """Return a difference with its sign and as many digits as a share of 1 needs."""
    if not math.isfinite(value):
        return "-"
    if value == 0:
        return "0"
    return f"{value:+.4f}" if abs(value) < 10 else f"{value:+.4g}"


def number(value: float | None) -> str:
    """Return a mean or a spread."""
    if value is None or not math.isfinite(value):
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.4g}"


def p_text(p: float) -> str:
    """Return a p-value; below 0.0001 only that."""
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def percent(fraction: float) -> str:
    """Return a share as a person writes it: 30 %, 2.5 %."""
    return f"{100 * fraction:g} %"


def rows_text(arm: Arm) -> str:
    """Return the rows of an arm, as a range where its seeds differ."""
    return _range(
        [f"{n:,}" for n in (min(arm.num_rows), max(arm.num_rows))] if arm.num_rows else []
    )


def repeats_text(arm: Arm) -> str:
    """Return how often each row was seen."""
    ends = (min(arm.repeats), max(arm.repeats)) if arm.repeats else ()
    return _range([f"{n:.1f}" for n in ends])


def _range(ends: Sequence[str]) -> str:
    return "-".join(dict.fromkeys(ends)) or "-"


def seeds_text(arm: Arm, planned: int) -> str:
    """Return seeds done of planned: "5", "4 of 5, 1 failed"."""
    if len(arm.done) == planned and not arm.failed:
        return str(planned)
    failed = f", {len(arm.failed)} failed" if arm.failed else ""
    return f"{len(arm.done)} of {planned}{failed}"


def metric_label(metric: str) -> str:
    """Return a metric's name for a person: "zero_shot.accuracy" as "zero shot accuracy"."""
    return plain(metric.replace(".", " ").replace("_", " "), 80)


def scorer_label(analysis: Analysis, scorer: str) -> str:
    """Return what the design calls a scorer."""
    return plain(analysis.design.scorers.get(scorer, scorer), 100)


def curve_label(analysis: Analysis, curve: Curve) -> str:
    """Return the scorer's label; with the arm's name where a scorer has several curves."""
    if not curve.scorer:
        return plain(curve.name, 100)
    alike = {c.name for c in analysis.curves if c.scorer == curve.scorer}
    label = scorer_label(analysis, curve.scorer)
    return f"{label} ({plain(curve.name, 40)})" if len(alike) > 1 else label


def failure_lines(analysis: Analysis) -> Iterator[str]:
    """Yield a line per trial that failed, one per arm and budget with trials not done yet, and one
    per budget for the arms of which none was run."""
    results = analysis.results
    for arm, budget, seed, error in results.failures():
        why = plain(error, LONGEST) or "no reason given"
        yield f"{plain(arm, 80)}, {budget}x, seed {seed}: failed: {why}"
    open_: dict[tuple[str, int], list[int]] = {}
    not_run: dict[int, list[str]] = {}
    for idle in results.arms:
        if not idle.was_run:
            not_run.setdefault(idle.budget, []).append(idle.name)
    for arm, budget, seed in results.missing(analysis.design.seeds):
        if arm not in not_run.get(budget, ()):
            open_.setdefault((arm, budget), []).append(seed)
    for (arm, budget), seeds in open_.items():
        named = "seed" if len(seeds) == 1 else "seeds"
        yield f"{plain(arm, 80)}, {budget}x, {named} {', '.join(map(str, seeds))}: no result"
    for budget, arms in not_run.items():
        yield f"{budget}x, not run: {listed([plain(arm, 80) for arm in arms])}"


def listed(names: Sequence[str], most: int = 6) -> str:
    """Return the first names, and how many others there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def spread(values: Sequence[float]) -> float | None:
    """Return the standard deviation over seeds, None for fewer than two."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def needed_errors(analysis: Analysis) -> str:
    """Say how many standard errors a difference needs with all seeds; "" for one seed."""
    n = len(analysis.design.seeds)
    found = []
    for name, primary in (("primary", True), ("other", False)):
        shares = [c.share for c in analysis.contrasts if (c.pair.role == "primary") == primary]
        if shares and n > 1:
            reach = t_reach(analysis.design.alpha * shares[0], n - 1)
            found.append(f"{reach:.1f} ({name} contrasts)")
    if not found:
        return ""
    return (
        f"With {n} seeds the simultaneous interval reaches {' and '.join(found)} standard errors "
        "to each side; more seeds shorten it most. "
    )


def published_lines(analysis: Analysis) -> dict[str, str]:
    """Return label -> "10 %: 0.021, 20 %: 0.042" of the published numbers."""
    found: dict[str, list[str]] = {}
    for entry in analysis.design.published:
        kept = "" if entry.fraction is None else f"{percent(entry.fraction)}: "
        found.setdefault(plain(entry.label, 120), []).append(f"{kept}{entry.value:.4g}")
    return {label: ", ".join(values) for label, values in found.items()}
