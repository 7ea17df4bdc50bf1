"""The report: one page that a person would rather look at than read, in one file, offline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from winnow.contracts.errors import SetupError
from winnow.contracts.stage import Stage
from winnow.filters.rules import PriorityCover
from winnow.pipeline.plan import Plan
from winnow.pipeline.report_cards import Card, CardMaker
from winnow.pipeline.report_charts import Bars, category_bars, histogram, percent
from winnow.pipeline.report_exports import export_entries
from winnow.pipeline.report_picks import ClusterSample, Picks, Place
from winnow.pipeline.report_scan import DROPPED_HERE, Findings, Scan, Sheets
from winnow.pipeline.report_views import FilterView, Measure, make_views
from winnow.pipeline.scoring import HEADINGS, score_rows, score_table, score_verdict
from winnow.pipeline.storage import Storage
from winnow.pipeline.work import State

REPORT = "report/index.html"
MAX_SHEETS = 40
"""Sheets of rows in one report; the filters after them have their charts alone."""
MAX_CODES = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """What is drawn of one value: an SVG or bars; ``null`` counts rows without a value."""

    label: str
    svg: Markup | None = None
    bars: Bars | None = None
    null: int = 0
    null_dropped: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """Rows on both sides of a threshold."""

    label: str
    below: list[Card]
    above: list[Card]


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterSection:
    """Everything that is shown of one filter."""

    number: int
    view: FilterView
    charts: list[Chart]
    sheets: list[Sheet]
    dropped: list[Card]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterSection:
    """One cluster: the kept row, the first rows dropped for it, how many there are."""

    kept: list[Card]
    dropped: list[Card]
    size: int


def write_report(
    storage: Storage,
    plan: Plan,
    state: State,
    summary: Mapping[str, Any],
    counters: Mapping[str, Mapping[str, float]] | None = None,
) -> str:
    """Write the report of a selection; return its name within the workspace.

    counters: stage -> rows, seconds, bytes of the run that has just ended, if one has.
    Cost: reads the columns that filters look at twice, shard by shard; memory does not grow with
    the rows, except for a source that knows the truth (``score_rows``). The file is below 5 MB.
    Fails: SetupError where the selection was made by other filters than the plan's.
    """
    text = render_report(storage, plan, state, summary, counters)
    storage.replace(REPORT, text.encode("utf-8", "replace"))
    return REPORT


def render_report(
    storage: Storage,
    plan: Plan,
    state: State,
    summary: Mapping[str, Any],
    counters: Mapping[str, Mapping[str, float]] | None = None,
) -> str:
    """Return the report as HTML: the same for the same workspace and counters."""
    _check_same_filters(plan, summary)
    views = make_views(plan, summary)
    scan = Scan(storage, state, summary, views)
    found = scan.findings()
    shown = _with_sheets(views, found)
    cards = CardMaker(scan, plan, views, _chosen(found, shown))
    scores = score_rows(storage, plan, state, summary)
    return _template().render(
        recipe=plan.recipe,
        recipe_yaml=plan.recipe.to_yaml(),
        summary=summary,
        percent=percent,
        sections=[_section(v, found, cards, summary, v.index < len(shown)) for v in views],
        kept=cards.plain_cards(found.kept.places),
        clusters=_clusters(plan, found.clusters, cards),
        cluster_sample=found.clusters,
        errors=list(_errors(state, found, int(summary["rows"]))),
        scores=list(score_table(scores)) if scores else [],
        score_headings=HEADINGS,
        verdict=score_verdict(scores) if scores else "",
        exports=export_entries(storage, state, summary),
        work=list(_work(counters or {})),
        stages=[_stage_line(state, e.key) for e in plan.recipe.stages],
        num_shards=len(scan.shards),
    )


def _check_same_filters(plan: Plan, summary: Mapping[str, Any]) -> None:
    here = [f.key for f in plan.filters]
    there = [entry["filter"] for entry in summary["funnel"]]
    if here != there:
        msg = (
            f"the selection {summary['selection']} was made by the filters {', '.join(there)}, "
            f"and this recipe has {', '.join(here)}; run the recipe, then ask for its report"
        )
        raise SetupError(msg)


def _with_sheets(views: Sequence[FilterView], found: Findings) -> list[FilterView]:
    """Return the first filters, as many as MAX_SHEETS allows: they are shown with rows."""
    shown, left = [], MAX_SHEETS
    for view in views:
        left -= max(1, len(found.sheets[view.index].below))
        if left < 0:
            break
        shown.append(view)
    return shown


def _chosen(found: Findings, shown: Sequence[FilterView]) -> Iterator[Place]:
    """Yield the places of all rows that will be cards."""
    yield from found.kept.places
    for cluster in found.clusters.shown:
        yield from cluster.members
        if cluster.kept is not None:
            yield cluster.kept
    for view in shown:
        sheets = found.sheets[view.index]
        for picks in [*(p for _, _, p in sheets.below), *sheets.above]:
            yield from picks.places
        if _shows_dropped(view):
            yield from sheets.dropped.places


def _shows_dropped(view: FilterView) -> bool:
    """Whether a filter shows a random sample: it has no threshold and no clusters."""
    return not view.measures and not view.is_cover


def _section(
    view: FilterView,
    found: Findings,
    cards: CardMaker,
    summary: Mapping[str, Any],
    with_rows: bool,
) -> FilterSection:
    charts = []
    for place, panel in enumerate(view.panels):
        data = found.panels[view.index, place]
        if isinstance(panel, Measure):
            assert data.bins is not None
            null = data.bins.null
            chart = Chart(
                label=panel.label,
                svg=histogram(panel, data.bins),
                null=int(null.sum()),
                null_dropped=int(null[DROPPED_HERE]),
            )
        else:
            assert data.values is not None
            bars = category_bars(panel, data.values, int(summary["rows"]))
            chart = Chart(label=panel.label, bars=bars)
        charts.append(chart)
    sheets = found.sheets[view.index]
    dropped = sheets.dropped.places if with_rows and _shows_dropped(view) else []
    return FilterSection(
        number=view.index + 1,
        view=view,
        charts=charts,
        sheets=list(_sheets(view, sheets, cards)) if with_rows else [],
        dropped=cards.filter_cards(view, dropped),
    )


def _sheets(view: FilterView, sheets: Sheets, cards: CardMaker) -> Iterator[Sheet]:
    pairs: list[tuple[tuple[Measure, int, Picks], Picks]] = list(
        zip(sheets.below, sheets.above, strict=True)
    )
    for (measure, number, below), above in pairs:
        if below.places:
            yield Sheet(
                label=f"{measure.label} {measure.cuts[number].label}",
                below=cards.measure_cards(view, measure, below.places),
                above=cards.measure_cards(view, measure, above.places),
            )


def _clusters(plan: Plan, sample: ClusterSample, cards: CardMaker) -> list[ClusterSection]:
    prefer: list[str] = []
    for entry in plan.filters:
        if isinstance(entry.rule, PriorityCover):
            prefer = [name for name, _ in entry.rule.prefer]
    return [
        ClusterSection(
            kept=cards.plain_cards([cluster.kept] if cluster.kept else [], prefer),
            dropped=cards.plain_cards(cluster.members, prefer),
            size=cluster.size,
        )
        for cluster in sample.shown
    ]


def _errors(state: State, found: Findings, rows: int) -> Iterator[dict[str, Any]]:
    left = MAX_CODES
    for key, columns in state.sets.items():
        codes = found.errors.get(columns.error or "")
        if not codes:
            continue
        stage = state.plan.entry(key).stage if key else None
        transient = stage.transient_codes if isinstance(stage, Stage) else frozenset()
        for code, count in sorted(codes.items(), key=lambda item: (-item[1], item[0]))[:left]:
            left -= 1
            yield {
                "stage": key or "source",
                "code": code,
                "rows": count,
                "share": count / (rows or 1),
                "transient": code in transient,
            }


def _work(counters: Mapping[str, Mapping[str, float]]) -> Iterator[dict[str, Any]]:
    for key, numbers in counters.items():
        seconds = float(numbers.get("seconds", 0))
        rows = int(numbers.get("rows", 0))
        if rows and seconds:
            yield {"stage": key, "rows": rows, "seconds": seconds, "rate": rows / seconds}


def _stage_line(state: State, key: str) -> dict[str, str]:
    entry = state.plan.entry(key)
    return {
        "key": key,
        "fingerprint": state.fingerprints.get(key, "")[:12],
        "when": "" if entry.when is None else str(entry.when),
        "columns": ", ".join(entry.stage.writes.names),
    }


@cache
def _template() -> jinja2.Template:
    folder = resources.files("winnow.pipeline") / "templates"
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = lambda value: f"{value:,}"
    # The style sheet is ours and holds no data.
    environment.globals["style"] = Markup((folder / "report.css").read_text("utf-8"))
    return environment.from_string((folder / "report.html.j2").read_text("utf-8"))
