"""The report of an ablation: tables, text for the terminal, pictures and one page, offline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import jinja2
from markupsafe import Markup

from winnow.pipeline import ablation_words as words
from winnow.pipeline.ablation_canvas import GOOD, INK, LINE, SOFT, Picture
from winnow.pipeline.ablation_charts import pictures
from winnow.pipeline.ablation_contrasts import Analysis, Contrast, analyse
from winnow.pipeline.ablation_results import Arm, Results
from winnow.pipeline.ablation_tables import (
    CONTRASTS_FILE,
    METRICS_FILE,
    contrast_rows,
    means_csv,
    metric_rows,
    to_parquet,
)
from winnow.pipeline.report_text import plain
from winnow.pipeline.statistics import ArmResult, Design
from winnow.pipeline.storage import Storage

MAX_SLICES = 40
"""Slices that the page shows; contrasts.parquet has all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One arm in the table of one metric and budget. random: the mean of its random control."""

    arm: Arm
    label: str
    role: str
    rows: str
    repeats: str
    seeds: str
    mean: float | None
    spread: float | None
    random: float | None
    random_seeds: str
    control: Contrast | None
    raw: Contrast | None
    described: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """The table of one metric at one budget."""

    metric: str
    budget: int
    direction: str
    lines: tuple[Line, ...]


def write_ablation(
    storage: Storage, folder: str, design: Design, results: Sequence[ArmResult]
) -> list[str]:
    """Write an ablation's tables, pictures and page into a folder; return the names written.

    metrics.parquet, contrasts.parquet, means.csv, table.txt, index.html, and <picture>.png and .svg
    for each of verdict, curve and gap that there is something to draw for. The same results give
    the same bytes, in whatever order they come.
    Fails: SetupError where results contradict each other.
    """
    analysis = analyse(design, Results(results))
    drawn = pictures(analysis)
    metrics = list(metric_rows(analysis.results))
    files = {
        "metrics.parquet": to_parquet(metrics, METRICS_FILE),
        "contrasts.parquet": to_parquet(list(contrast_rows(analysis)), CONTRASTS_FILE),
        "means.csv": means_csv(metrics),
        "table.txt": ("\n".join(_text(analysis)) + "\n").encode(),
        "index.html": _page(analysis, drawn).encode("utf-8", "replace"),
    }
    for picture in drawn:
        files[f"{picture.name}.png"] = picture.png
        files[f"{picture.name}.svg"] = picture.svg
    for name, data in files.items():
        storage.replace(f"{folder}/{name}", data)
    return [f"{folder}/{name}" for name in files]


def ablation_lines(design: Design, results: Sequence[ArmResult]) -> list[str]:
    """Return the report as text: the verdict, a block per metric and budget, what failed."""
    return list(_text(analyse(design, Results(results))))


def make_blocks(analysis: Analysis) -> list[Block]:
    """Return the tables: the primary arm first, each arm with its control beside it.

    An arm of which no trial was run at a budget is left out there; ``words.failure_lines`` counts
    them.
    """
    design, results = analysis.design, analysis.results
    blocks = []
    for metric in design.metrics:
        direction = results.direction(metric)
        said = {True: "higher is better", False: "lower is better", None: "only describes"}
        for budget in design.budgets:
            lines = tuple(
                _line(analysis, metric, arm, role)
                for arm, role in _in_order(design, results, budget)
            )
            block = Block(metric=metric, budget=budget, direction=said[direction], lines=lines)
            if lines:
                blocks.append(block)
    return blocks


def _in_order(design: Design, results: Results, budget: int) -> Iterator[tuple[Arm, str]]:
    arms = [arm for arm in results.arms_of(budget) if arm.was_run]
    shown: set[str] = set()
    order = [a for a in arms if a.name == design.primary_arm]
    order += [a for a in arms if a.kind == "arm" and a not in order and a.name != design.raw_arm]
    for arm in order:
        yield arm, "primary" if arm.name == design.primary_arm else "arm"
        control = results.control(arm)
        if control is not None:
            shown.add(control.name)
    for arm in arms:
        if arm.name == design.raw_arm:
            yield arm, "raw"
    for arm in arms:
        if arm.kind == "random" and arm.name not in shown:
            yield arm, "random"
    for arm in arms:
        if arm.kind == "oracle":
            yield arm, "oracle"


def _line(analysis: Analysis, metric: str, arm: Arm, role: str) -> Line:
    design = analysis.design
    values = list(analysis.results.values(arm, metric).values())
    control = analysis.results.control(arm) if role in ("primary", "arm") else None
    random = [] if control is None else list(analysis.results.values(control, metric).values())
    planned = len(design.seeds)
    label = plain(arm.name, 60)
    return Line(
        arm=arm,
        label=f"{label} (ceiling: uses the truth)" if role == "oracle" else label,
        role=role,
        rows=words.rows_text(arm),
        repeats=words.repeats_text(arm),
        seeds=words.seeds_text(arm, planned),
        mean=sum(values) / len(values) if values else None,
        spread=words.spread(values),
        random=sum(random) / len(random) if random else None,
        random_seeds="" if control is None else words.seeds_text(control, planned),
        control=analysis.find(metric, arm.budget, arm.name, "control"),
        raw=analysis.find(metric, arm.budget, arm.name, "raw"),
        described=tuple(words.number(d.get(arm.name)) for d in design.descriptions.values()),
    )


def _text(analysis: Analysis) -> Iterator[str]:
    design = analysis.design
    said = words.answer(analysis)
    yield f"ablation {plain(design.name, 120)}: {said.headline}."
    if said.detail:
        yield said.detail
    for contrast in analysis.headlines:
        yield f"  {words.contrast_sentence(analysis, contrast)}"
    for contrast in analysis.models:
        yield f"  {words.contrast_sentence(analysis, contrast)}"
    for contrast in analysis.left_out:
        yield f"  {words.contrast_sentence(analysis, contrast)}"
    yield from (f"  {line}" for line in words.peak_lines(analysis))
    heading = ["arm", "rows", "repeats", "seeds", "test mean", "sd", "random of its size"]
    heading += ["arm - random", "p", "verdict", "arm - raw", "verdict"]
    for block in make_blocks(analysis):
        yield ""
        yield f"{words.metric_label(block.metric)}, {block.budget}x samples ({block.direction})"
        yield from _aligned([heading, *(_cells(line) for line in block.lines)])
    yield ""
    yield reading(analysis)
    failures = list(words.failure_lines(analysis))
    if failures:
        yield ""
        yield "trials without a result:"
        yield from (f"  {line}" for line in failures)


def reading(analysis: Analysis) -> str:
    """Return how the intervals are made, in a few sentences."""
    design = analysis.design
    total, heads = len(analysis.contrasts), len(analysis.headlines)
    needed = words.needed_errors(analysis)
    shared = (
        f"The {heads} primary contrasts share {100 * design.headline_weight:g} % of that, the "
        "others the rest. "
    )
    return (
        f"Intervals: t over seeds, paired by initialisation, the variance over paired items added. "
        f"All {total} contrasts that the study names are corrected as one table (Holm): "
        f"the chance of any false verdict in it is at most {100 * design.alpha:g} %. "
        f"{shared if heads else ''}{needed}A round bracket at 0: Holm's steps exclude 0, the wider "
        "simultaneous interval alone would not. sd: over seeds."
        f"{' ' if design.record else ''}{design.record}"
    )


def _cells(line: Line) -> list[str]:
    cells = [line.label, line.rows, line.repeats, line.seeds]
    cells += [words.number(line.mean), words.number(line.spread)]
    lost = f" ({line.random_seeds})" if " of " in line.random_seeds else ""
    cells.append(words.number(line.random) + lost if line.random_seeds else "")
    for contrast, with_p in ((line.control, True), (line.raw, False)):
        if contrast is None:
            cells += [""] * (3 if with_p else 2)
            continue
        measured = contrast.low is not None
        difference = words.signed(contrast.estimate.difference)
        cells.append(f"{difference} {words.interval_text(contrast)}" if measured else "-")
        cells += [words.p_text(contrast.p_corrected) if measured else "-"] if with_p else []
        cells.append(words.verdict_text(contrast))
    return cells


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.rjust(width) if 1 <= at <= 6 else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield ("  " + "  ".join(cells)).rstrip()


def _page(analysis: Analysis, drawn: Sequence[Picture]) -> str:
    slices = sorted(
        (c for c in analysis.slices if c.verdict != "not measured"),
        key=lambda c: _gain(analysis, c),
    )
    return _template().render(
        design=analysis.design,
        answer=words.answer(analysis),
        analysis=analysis,
        blocks=make_blocks(analysis),
        pictures={p.name: {"alt": p.alt, "svg": _inline(p)} for p in drawn},
        headlines=[words.contrast_sentence(analysis, c) for c in analysis.headlines],
        models=[words.contrast_sentence(analysis, c) for c in analysis.models],
        left_out=[words.contrast_sentence(analysis, c) for c in analysis.left_out],
        peaks=list(words.peak_lines(analysis)),
        slices=slices[:MAX_SLICES],
        num_slices=len(slices),
        failures=list(words.failure_lines(analysis)),
        reading=reading(analysis),
        published=words.published_lines(analysis),
        words=words,
        plain=plain,
    )


def _gain(analysis: Analysis, contrast: Contrast) -> float:
    """Return how much a slice gained: the worst loss sorts first."""
    down = analysis.results.direction(contrast.pair.metric) is False
    return -contrast.estimate.difference if down else contrast.estimate.difference


def _inline(picture: Picture) -> Markup:
    """Return the SVG for the page: its colours follow the page, its ids meet no other's."""
    text = picture.svg.decode()
    text = text[text.index("<svg") :]
    names = {INK: "ink", SOFT: "soft", LINE: "line", "#ffffff": "paper", GOOD: "good"}
    for colour, name in names.items():
        text = text.replace(colour, f"var(--{name})")
    for before in ('id="', "url(#", 'href="#'):
        text = text.replace(before, f"{before}{picture.name}-")
    # The library escapes what it draws, and text is drawn as outlines.
    return Markup(text)


@cache
def _template() -> jinja2.Template:
    folder = resources.files("winnow.pipeline") / "templates"
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # The style sheets are ours and hold no data.
    environment.globals["style"] = Markup(
        "\n".join((folder / name).read_text("utf-8") for name in ("report.css", "ablation.css"))
    )
    return environment.from_string((folder / "ablation.html.j2").read_text("utf-8"))
