"""A ledger against the ground truth: what each filter caught, missed and took by mistake."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from winnow.stages.sources._scenes.noise import CLEAN, COPIES

CATCHES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "has_media": ("dead_link", "slow_link", "html", "corrupt"),
        "decodable": ("corrupt",),
        "drop_repeated_rows": ("repeated_row",),
        "language_is": ("foreign_caption",),
        "caption_shape_is": ("file_name_caption",),
        "caption_length": ("boilerplate_caption", "file_name_caption"),
        "caption_quality": ("boilerplate_caption", "file_name_caption"),
        "max_caption_occurrences": ("boilerplate_caption",),
        "min_image_size": ("tiny",),
        "max_aspect_ratio": ("extreme_aspect",),
        "datacomp_basic": (
            "foreign_caption",
            "boilerplate_caption",
            "file_name_caption",
            "tiny",
            "extreme_aspect",
        ),
        "min_clip_score": ("swapped_caption", "boilerplate_caption", "file_name_caption"),
        "clip_top_fraction": ("swapped_caption", "boilerplate_caption", "file_name_caption"),
        "drop_near_duplicates": ("near_duplicate", "exact_duplicate"),
    }
)
"""The kinds of noise that each filter is meant to catch."""


@dataclass(slots=True)
class _Row:
    uid: bytes
    kind: str
    original: bytes | None
    filter: str | None
    duplicate_of: bytes | None

    @property
    def kept(self) -> bool:
        return self.filter is None


def score(
    rows: pa.Table,
    order: Sequence[str] | None = None,
    catches: Mapping[str, tuple[str, ...]] = CATCHES,
) -> list[dict[str, Any]]:
    """Return one entry per filter, then one named "overall".

    rows: all rows of the ledger, with ``uid``, ``truth_kind: string``, ``truth_duplicate_of:
        binary(16)``, ``outcome: string`` ("kept" | "dropped"), ``filter: string`` (null = kept)
        and, where there is one, ``duplicate_of``.
    order: the filters in the order of the funnel.
    catches: filter -> kinds of noise.

    An entry of a filter:
        filter, kinds; dropped: rows it dropped; right: those of its kinds.
        precision: right / dropped.  precision_any: dropped rows with anything wrong / dropped.
        reached: rows of its kinds that no earlier filter dropped. Without ``order``: that no
            other filter dropped, so that what a later one caught does not count as missed.
        recall: right / reached.
        total: all rows of its kinds.  caught: share of them that any filter dropped.
    For drop_near_duplicates the unit of ``reached``, ``recall``, ``total`` and ``caught`` is a
    pair (original, copy), caught where not both are left; ``right`` (and precision) counts rows
    of a set of copies that lose to another row of the same set, whichever of them it is.
    overall:
        kept, dropped, clean: rows.  clean_share: kept rows that are clean / kept.
        clean_kept: clean rows kept / clean. A kept copy stands for its original where no other
        row of their set is kept: it counts as clean, and its original as kept.
    A ratio without a denominator is None.
    """
    table = _rows(rows)
    sets = _copy_sets(table)
    names = list(order) if order is not None else list(catches)
    names += sorted({r.filter for r in table if r.filter} - set(names))
    rank = {name: i for i, name in enumerate(order)} if order is not None else {}
    found = []
    for name in names:
        if order is None and not any(r.filter == name for r in table):
            continue
        kinds = catches.get(name, ())
        reached = [r for r in table if _reached(r, name, rank)]
        if "near_duplicate" in kinds:
            found.append(_duplicates_entry(name, kinds, table, reached, sets))
        else:
            found.append(_entry(name, kinds, table, reached))
    return [*found, _overall(table, sets)]


def _rows(rows: pa.Table) -> list[_Row]:
    def column(name: str) -> list[Any]:
        return rows[name].to_pylist() if name in rows.column_names else [None] * rows.num_rows

    outcome = column("outcome")
    names = column("filter")
    return [
        _Row(
            uid=_bytes(uid) or b"",
            kind=kind,
            original=_bytes(original),
            filter=None if kept == "kept" else (name or "unknown"),
            duplicate_of=_bytes(duplicate_of),
        )
        for uid, kind, original, kept, name, duplicate_of in zip(
            column("uid"), column("truth_kind"), column("truth_duplicate_of"), outcome, names,
            column("duplicate_of"), strict=True,
        )
    ]  # fmt: skip


def _bytes(value: Any) -> bytes | None:
    """Accept uids as bytes or as uuid.UUID, which pa.uuid() columns give."""
    return getattr(value, "bytes", value)


def _copy_sets(table: Sequence[_Row]) -> dict[bytes, list[_Row]]:
    """Return the rows of each set of copies, by the original's uid; the original comes first."""
    sets: dict[bytes, list[_Row]] = defaultdict(list)
    for row in table:
        if row.original is not None:
            sets[row.original].append(row)
    for row in table:
        if row.original is None and row.uid in sets:
            sets[row.uid].insert(0, row)
    return dict(sets)


def _reached(row: _Row, name: str, rank: Mapping[str, int]) -> bool:
    if row.filter is None or row.filter == name:
        return True
    return name in rank and rank.get(row.filter, -1) > rank[name]


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _entry(
    name: str, kinds: tuple[str, ...], table: Sequence[_Row], reached: Sequence[_Row]
) -> dict[str, Any]:
    dropped = [r for r in table if r.filter == name]
    right = sum(r.kind in kinds for r in dropped)
    meant = sum(r.kind in kinds for r in reached)
    total = [r for r in table if r.kind in kinds]
    return {
        "filter": name,
        "kinds": list(kinds),
        "dropped": len(dropped),
        "right": right,
        "precision": _ratio(right, len(dropped)) if kinds else None,
        "precision_any": _ratio(sum(r.kind != CLEAN for r in dropped), len(dropped)),
        "reached": meant,
        "recall": _ratio(right, meant),
        "total": len(total),
        "caught": _ratio(sum(not r.kept for r in total), len(total)),
    }


def _duplicates_entry(
    name: str,
    kinds: tuple[str, ...],
    table: Sequence[_Row],
    reached: Sequence[_Row],
    sets: Mapping[bytes, list[_Row]],
) -> dict[str, Any]:
    dropped = [r for r in table if r.filter == name]
    right = sum(_lost_to_its_own(r, sets, name) for r in dropped)
    here = {id(r) for r in reached}
    pairs = [
        (members[0], copy)
        for members in sets.values()
        for copy in members[1:]
        if copy.kind in kinds and members[0].original is None
    ]
    met = [(a, b) for a, b in pairs if id(a) in here and id(b) in here]
    caught = sum(a.filter == name or b.filter == name for a, b in met)
    return {
        "filter": name,
        "kinds": list(kinds),
        "dropped": len(dropped),
        "right": right,
        "precision": _ratio(right, len(dropped)),
        "precision_any": _ratio(
            sum(r.kind != CLEAN or _lost_to_its_own(r, sets, name) for r in dropped), len(dropped)
        ),
        "reached": len(met),
        "recall": _ratio(caught, len(met)),
        "total": len(pairs),
        "caught": _ratio(sum(not (a.kept and b.kept) for a, b in pairs), len(pairs)),
    }


def _lost_to_its_own(row: _Row, sets: Mapping[bytes, list[_Row]], name: str) -> bool:
    """Whether a row was dropped for another row of its own set of copies."""
    members = sets.get(row.original if row.original is not None else row.uid, [])
    if row.duplicate_of is not None:
        return any(m.uid == row.duplicate_of and m is not row for m in members)
    return any(m is not row and (m.kept or m.filter == name) for m in members)


def _overall(table: Sequence[_Row], sets: Mapping[bytes, list[_Row]]) -> dict[str, Any]:
    stands_in: set[int] = set()  # kept copies that count as clean
    saved: set[bytes] = set()  # originals that count as kept
    for original, members in sets.items():
        kept = [m for m in members if m.kept]
        if kept and kept[0].kind in COPIES:
            stands_in.add(id(kept[0]))
            saved.add(original)
    kept_rows = [r for r in table if r.kept]
    clean = [r for r in table if r.kind == CLEAN]
    good = sum(r.kind == CLEAN or id(r) in stands_in for r in kept_rows)
    return {
        "filter": "overall",
        "kept": len(kept_rows),
        "dropped": len(table) - len(kept_rows),
        "clean": len(clean),
        "clean_share": _ratio(good, len(kept_rows)),
        "clean_kept": _ratio(sum(r.kept or r.uid in saved for r in clean), len(clean)),
    }
