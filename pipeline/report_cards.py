"""Rows as cards: a small picture where there is one, the caption, the uid, the values."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from winnow.contracts.stage import CRASHED_WORKER
from winnow.pipeline.arrow_files import is_payload
from winnow.pipeline.plan import Plan
from winnow.pipeline.report_picks import Place
from winnow.pipeline.report_scan import Scan
from winnow.pipeline.report_text import plain, show
from winnow.pipeline.report_views import FilterView, Measure, Panel, format_number

CAPTION = "text"
CAPTION_CHARACTERS = 180
PICTURE_BUDGET = 3_000_000
"""Characters of pictures in one report."""
PAYLOAD_ROWS = 16
NOT_PICTURES = 24
"""A payload column whose first so many values are no pictures is not looked at any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """One row to look at. picture: a data URI. note: what else became of the row."""

    uid: str
    caption: str | None
    values: tuple[tuple[str, str], ...] = ()
    picture: str | None = None
    note: str = ""


def caption_column(plan: Plan) -> str | None:
    """Return the column that says what a row is: ``text``, else the source's first text."""
    names = [f.name for f in plan.schema if pa.types.is_string(f.type)]
    if CAPTION in names:
        return CAPTION
    return next((n for n in plan.source_schema.names if n in names), None)


class CardMaker:
    """Reads the rows that are shown, once, and makes cards of them."""

    def __init__(
        self, scan: Scan, plan: Plan, views: Sequence[FilterView], chosen: Iterable[Place]
    ) -> None:
        self._scan, self._views = scan, views
        self._caption = caption_column(plan)
        self._errors = [f.name for f in plan.schema if f.name.endswith("_error")]
        columns = {n for view in views for n in scan.rule_columns(view)} | {*self._errors}
        self._columns = sorted(columns | ({self._caption} if self._caption else set()))
        self._payloads = [f.name for f in plan.schema if is_payload(f.type)]
        self._refusals = dict.fromkeys(self._payloads, 0)
        self._budget = PICTURE_BUDGET
        self._row: dict[Place, int] = {}
        self._pictures: dict[Place, str] = {}
        self._values: dict[int, list[str]] = {}
        self._dropped_by: list[str | None] = []
        self._table = self._read(sorted(set(chosen)))

    def measure_cards(self, view: FilterView, measure: Measure, rows: list[Place]) -> list[Card]:
        """Return cards that say the value of one measure."""
        return [self._card(place, [measure], view) for place in rows]

    def filter_cards(self, view: FilterView, rows: list[Place]) -> list[Card]:
        """Return cards that say every value that a filter looks at."""
        return [self._card(place, view.panels, view) for place in rows]

    def plain_cards(self, rows: Iterable[Place], names: Sequence[str] = ()) -> list[Card]:
        """Return cards that say the values of some columns."""
        cards = []
        for place in rows:
            values = [(n, show(self._cell(place, n))) for n in names]
            cards.append(self._make(place, values, ""))
        return cards

    def _card(self, place: Place, panels: Sequence[Panel], view: FilterView) -> Card:
        row = self._row[place]
        values = [(panel.label, self._panel_values(panel)[row]) for panel in panels]
        dropped_by = self._dropped_by[row]
        later = f"dropped later by {dropped_by}" if dropped_by else ""
        return self._make(place, values, "" if dropped_by == view.entry.key else later)

    def _make(self, place: Place, values: Iterable[tuple[str, str]], note: str) -> Card:
        caption = self._cell(place, self._caption) if self._caption else None
        picture = self._pictures.get(place)
        if picture is not None:
            self._budget -= len(picture)
            if self._budget < 0:
                picture, note = None, note or "picture left out: the report would be too large"
        return Card(
            uid=self._cell(place, "uid").hex(),
            caption=None if caption is None else plain(caption, CAPTION_CHARACTERS),
            values=tuple(values),
            picture=picture,
            note=note,
        )

    def _cell(self, place: Place, name: str) -> Any:
        return self._table.column(name)[self._row[place]].as_py()

    def _panel_values(self, panel: Panel) -> list[str]:
        if id(panel) not in self._values:
            if isinstance(panel, Measure):
                numbers = panel.values(self._table).tolist()
                found = ["null" if v != v else format_number(v) for v in numbers]
            else:
                found = [show(v) for v in panel.values(self._table).to_pylist()]
            self._values[id(panel)] = found
        return self._values[id(panel)]

    def _read(self, chosen: list[Place]) -> pa.Table:
        by_shard: dict[int, list[int]] = defaultdict(list)
        for place in chosen:
            self._row[place] = len(self._row)
            by_shard[place.shard].append(place.position)
        tables = [self._read_shard(n, np.array(rows)) for n, rows in sorted(by_shard.items())]
        return pa.concat_tables(tables) if tables else pa.table({})

    def _read_shard(self, number: int, rows: np.ndarray) -> pa.Table:
        shard = self._scan.shards[number]
        reader = self._scan.reader(shard)
        table = reader.take(self._columns, rows)
        reasons = self._scan.ledger(shard, ["filter"]).column("filter")
        self._dropped_by += reasons.take(pa.array(rows)).to_pylist()
        crashed = np.zeros(len(rows), bool)
        for name in self._errors:
            crashed |= np.array([e == CRASHED_WORKER for e in table.column(name).to_pylist()])
        for name in self._payloads:
            left = [p for p in rows[~crashed].tolist() if Place(number, p) not in self._pictures]
            for start in range(0, len(left), PAYLOAD_ROWS):
                if self._refusals[name] >= NOT_PICTURES:
                    break
                part = np.array(left[start : start + PAYLOAD_ROWS])
                self._look(number, name, part, reader.take([name], part).column(name))
        return table

    def _look(self, number: int, name: str, rows: np.ndarray, data: pa.ChunkedArray) -> None:
        from winnow.stages._thumbnail import thumbnail

        for position, value in zip(rows.tolist(), data, strict=True):
            if not value.is_valid:
                continue
            picture = thumbnail(value.as_py())
            if picture is not None:
                uri = "data:image/jpeg;base64," + base64.b64encode(picture).decode()
                self._pictures[Place(number, position)] = uri
                self._refusals[name] = -(10**9)
            else:
                self._refusals[name] += 1
