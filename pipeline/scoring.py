"""Precision and recall of a ledger, where the source knows the truth about its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from winnow.pipeline.arrow_files import from_file
from winnow.pipeline.columns import ShardReader
from winnow.pipeline.plan import Plan
from winnow.pipeline.storage import Storage
from winnow.pipeline.work import State

TRUTH = "truth_"
HEADINGS = ("filter", "meant to catch", "dropped", "right", "precision", "recall", "caught")


def score_rows(
    storage: Storage, plan: Plan, state: State, summary: Mapping[str, Any]
) -> list[dict[str, Any]] | None:
    """Return what the source says of a selection; None where it does not know the truth.

    A source knows it if it has ``truth_*`` columns and the optional method
    ``score(rows: pa.Table, order: Sequence[str]) -> list[dict]``. It gets uid, its truth_* columns
    and the ledger's outcome, filter and duplicate_of of all rows, and the filters in the order of
    the funnel; it returns an entry per filter, then one with ``filter: overall``: see
    ``score_table`` for the keys that are shown. Memory grows with the rows.
    """
    score = getattr(plan.recipe.source, "score", None)
    names = [n for n in plan.source_schema.names if n.startswith(TRUTH)]
    if score is None or not names:
        return None
    selected = set(summary["shards"])
    tables = []
    for shard in state.shards:
        if shard.id in selected:
            reader = ShardReader(storage, (plan.source_set(),), shard, {})
            file = storage.parquet(f"ledger/{summary['selection']}/{shard.id}.parquet")
            ledger = from_file(file.read(columns=["outcome", "filter", "duplicate_of"]))
            tables.append(_side_by_side(reader.read(names), ledger))
    if not tables:
        return None
    order = [entry["filter"] for entry in summary["funnel"]]
    found: list[dict[str, Any]] = score(pa.concat_tables(tables), order)
    return found


def score_table(entries: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Yield a line per filter under HEADINGS.

    precision: of the rows it dropped, the share that it was meant to drop. recall: of the rows
    that it was meant to drop and that reached it, the share that it dropped. caught: of all rows
    that it was meant to drop, the share that any filter dropped. "-": nothing to divide by.
    """
    for entry in entries:
        if entry["filter"] != "overall":
            yield (
                str(entry["filter"]),
                ", ".join(str(k).replace("_", " ") for k in entry.get("kinds", ())) or "-",
                f"{entry['dropped']:,}",
                f"{entry['right']:,}" if entry.get("kinds") else "-",
                _share(entry.get("precision")),
                _share(entry.get("recall")),
                _share(entry.get("caught")),
            )


def score_verdict(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return the overall entry as a sentence; "" without one."""
    for entry in entries:
        if entry["filter"] == "overall":
            return (
                f"{_share(entry.get('clean_share'))} of the {entry['kept']:,} kept rows are "
                f"clean; {_share(entry.get('clean_kept'))} of the {entry['clean']:,} clean rows "
                "are kept."
            )
    return ""


def _side_by_side(left: pa.Table, right: pa.Table) -> pa.Table:
    for name in right.column_names:
        left = left.append_column(right.schema.field(name), right.column(name))
    return left


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
