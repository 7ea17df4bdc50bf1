"""Rows as cards: a small picture, a sound to listen to, the caption, the uid, the values."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
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
TEXT_CHARACTERS = 400
"""Of a row that has no media: its text is all there is to look at."""
PICTURE_BUDGET = 3_000_000
"""Characters of pictures in one report."""
SOUND_BUDGET = 1_200_000
"""Characters of sounds in one report."""
PAYLOAD_ROWS = 16
NOT_MEDIA = 24
"""A payload column whose first so many values are no media is not looked at any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sound:
    """A recording: data URIs of its spectrum and of its first seconds, and its length."""

    picture: str
    clip: str | None
    length: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """One row to look at. picture: a data URI. note: what else became of the row.

    text: whether the caption is all there is of the row.
    """

    uid: str
    caption: str | None
    values: tuple[tuple[str, str], ...] = ()
    picture: str | None = None
    note: str = ""
    sound: Sound | None = None
    text: bool = False


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
        self._budget, self._sound_budget = PICTURE_BUDGET, SOUND_BUDGET
        self._sounds: dict[Place, Sound] = {}
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
        picture, sound = self._pictures.get(place), self._sounds.get(place)
        left_out = "left out: the report would be too large"
        if picture is not None:
            self._budget -= len(picture)
            if self._budget < 0:
                picture, note = None, note or f"picture {left_out}"
        if sound is not None:
            self._budget -= len(sound.picture)
            sound = self._affordable(sound)
            if self._budget < 0:
                sound, note = None, note or f"sound {left_out}"
        limit = CAPTION_CHARACTERS if self._payloads else TEXT_CHARACTERS
        return Card(
            uid=self._cell(place, "uid").hex(),
            caption=None if caption is None else plain(caption, limit),
            values=tuple(values),
            picture=picture,
            note=note,
            sound=sound,
            text=not self._payloads,
        )

    def _affordable(self, sound: Sound) -> Sound:
        """Return the sound, without its clip once the clips of the page are enough."""
        if sound.clip is not None and len(sound.clip) > self._sound_budget:
            return replace(sound, clip=None)
        self._sound_budget -= len(sound.clip or "")
        return sound

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
            left = rows[~crashed].tolist()
            for start in range(0, len(left), PAYLOAD_ROWS):
                if self._refusals[name] >= NOT_MEDIA:
                    break
                part = np.array(left[start : start + PAYLOAD_ROWS])
                self._look(number, name, part, reader.take([name], part).column(name))
        return table

    def _look(self, number: int, name: str, rows: np.ndarray, data: pa.ChunkedArray) -> None:
        """Keep the first picture and the first sound of each row."""
        for position, value in zip(rows.tolist(), data, strict=True):
            if not value.is_valid:
                continue
            place, payload = Place(number, position), value.as_py()
            if (picture := _picture(payload)) is not None:
                self._pictures.setdefault(place, picture)
            elif (sound := _sound(payload)) is not None:
                self._sounds.setdefault(place, sound)
            else:
                self._refusals[name] += 1
                continue
            self._refusals[name] = -(10**9)


def _picture(data: bytes) -> str | None:
    from winnow.stages._thumbnail import thumbnail

    picture = thumbnail(data)
    return None if picture is None else _uri("image/jpeg", picture)


def _sound(data: bytes) -> Sound | None:
    from winnow.stages._sound_card import sound_card

    card = sound_card(data)
    if card is None:
        return None
    length = f"{card.duration_s:.1f} s"
    if card.duration_s >= 60:
        minutes, seconds = divmod(round(card.duration_s), 60)
        length = f"{minutes} min {seconds} s"
    return Sound(
        picture=_uri("image/jpeg", card.picture), clip=_uri("audio/mpeg", card.clip), length=length
    )


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
