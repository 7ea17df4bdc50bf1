"""What a person is told: the plan before a run, the funnel after it, the story of one row."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from winnow.contracts.errors import SetupError
from winnow.contracts.parameters import result_parameters
from winnow.contracts.stage import Stage
from winnow.filters.expr import Expr
from winnow.pipeline.arrow_files import from_file, is_payload
from winnow.pipeline.columns import ShardReader
from winnow.pipeline.export_exchange import group_rows, partition_bits
from winnow.pipeline.export_plan import is_global, plan_export
from winnow.pipeline.export_rows import WORK
from winnow.pipeline.plan import Pass, Plan
from winnow.pipeline.recipe import ExportEntry
from winnow.pipeline.selection import SUMMARY, select_unit
from winnow.pipeline.shards import Shard
from winnow.pipeline.storage import Storage
from winnow.pipeline.work import State, library_versions

SHOWN_ITEMS = 20


def plan_lines(plan: Plan, state: State | None) -> Iterator[str]:
    """Yield the plan as text; with a state, what is cached and what will run."""
    recipe = plan.recipe
    yield f"recipe {recipe.name} ({recipe.file})"
    yield f"source {recipe.source.name}: {_source_summary(plan, state)}"
    yield f"  columns {', '.join(f'{f.name}: {f.type}' for f in plan.source_schema)}"
    number = 0
    for step in plan.steps:
        if isinstance(step, Pass):
            number += 1
            needs = step.resources
            gpus = f", {needs.num_gpus:g} GPU" if needs.num_gpus else ""
            yield f"pass {number}: {needs.num_cpus:g} CPU{gpus}, {step.chunk_rows} rows a chunk"
            for entry in step.entries:
                yield from _stage_lines(plan, state, entry.key)
        else:
            yield "all rows at once:"
            yield from _stage_lines(plan, state, step.key)
    yield "filters, in this order:"
    for position, entry_ in enumerate(plan.filters, 1):
        kind = "" if isinstance(entry_.rule, Expr) else " [over all rows]"
        yield f"  {position}. {entry_.key}: {entry_.rule}; null: {entry_.on_null}{kind}"
    for export in recipe.exports:
        payloads = ", ".join(export.exporter.payloads(plan.schema)) or "no payload"
        yield f"export {export.key}: {export.exporter.name}, {payloads}, seed {export.seed}"
        if is_global(export.exporter):
            yield from _exchange_lines(plan, state, export)


def _source_summary(plan: Plan, state: State | None) -> str:
    parameters = ", ".join(f"{k}={v!r}" for k, v in result_parameters(plan.recipe.source).items())
    if state is None:
        return f"{parameters}; not read yet"
    rows = sum(s.num_rows for s in state.shards)
    return f"{parameters}; {rows:,} rows in {len(state.shards)} shards"


def _stage_lines(plan: Plan, state: State | None, key: str) -> Iterator[str]:
    entry = plan.entry(key)
    writes = ", ".join(entry.stage.writes.names)
    status = "will run on all rows"
    if state is not None and key in state.fingerprints:
        left = state.missing(key)
        total = sum(s.num_rows for s in state.contents)
        status = "cached" if not left else f"will run on {left:,} of {total:,} rows"
        if not left and (rows := state.regated(key)):
            status = f"cached under another gate: will run on what this one adds in {rows:,} rows"
        status += f" [{state.fingerprints[key][:12]}]"
    when = f" when {entry.when}" if entry.when is not None else ""
    use = "" if entry.stage.name == key else f" ({entry.stage.name})"
    yield f"  {key}{use}{when}: {status}"
    yield f"    writes {writes}"
    if isinstance(entry.stage, Stage):
        yield from (f"    {note}" for note in entry.stage.notes)


def _exchange_lines(plan: Plan, state: State | None, export: ExportEntry) -> Iterator[str]:
    """Say what a global shuffle reads and writes; a bound where the selection is not known yet."""
    if state is None:
        yield "  shuffle: global, a two-pass exchange: kept rows are read twice and written twice"
        return
    total = sum(s.num_rows for s in state.shards)
    summary = _summary_of(state)
    if summary is None:
        kept, groups = total, min(-(-total // group_rows(total)), len(state.shards))
    else:
        exchange = plan_export(state, export, summary).exchange
        assert exchange is not None
        kept, groups = int(summary["kept"]), len(exchange.groups)
    files = -(-kept // export.exporter.rows_per_file)
    most = "at most " if summary is None else ""
    payloads = export.exporter.payloads(plan.schema)
    media = _media_bytes(plan, state, payloads)
    size = media * kept / max(total, 1) / 1e6
    copied = f"media: about {size:,.1f} MB" if media else "size of the media not known yet"
    if all(p in plan.virtual for p in payloads):
        copied = "without media, which are read from where they are"
    factor = 1 + files / (1 << partition_bits(files)) if files > 1 else 1.0
    yield f"  shuffle: global, a two-pass exchange of {most}{kept:,} rows"
    yield (
        f"    pass 1 reads {len(state.shards)} shards and writes {most}{groups} files ({copied}) "
        f"to {WORK}/"
    )
    yield (
        f"    pass 2 writes {most}{files} files; each opens all {groups} of pass 1 and reads "
        f"{factor:.2f} times its own rows"
    )


def _summary_of(state: State) -> dict[str, Any] | None:
    """Return the summary of the selection as it is now; None where it was not made yet."""
    name = f"ledger/{select_unit(state).selection}/{SUMMARY}"
    if not state.storage.exists(name):
        return None
    found: dict[str, Any] = json.loads(state.storage.read(name))
    return found


def _media_bytes(plan: Plan, state: State, payloads: list[str]) -> int:
    """Return the bytes of the files that hold payloads, as far as they are there."""
    total = 0
    for writer in {plan.origins[p] for p in payloads if p not in plan.virtual}:
        columns = state.sets[writer]
        sizes = state.storage.sizes(columns.folder)
        total += sum(sizes.get(columns.file(s), 0) for s in state.contents)
    return total


def mixture_warnings(plan: Plan, state: State) -> Iterator[str]:
    """Yield a line per stage whose files come from other library versions than these."""
    here = library_versions()
    for entry in plan.recipe.stages:
        if entry.key not in state.committed:
            continue
        folder = state.sets[entry.key].folder
        there = json.loads(state.storage.read(f"{folder}/_stage.json")).get("libraries", {})
        differing = [
            f"{n} {there[n]} (here {here.get(n)})" for n in there if there[n] != here.get(n)
        ]
        if differing:
            yield f"{entry.key} was computed with {', '.join(differing)}"


def latest_selection(storage: Storage) -> str:
    """Return the selection of the last run."""
    from winnow.pipeline.run import LATEST

    if not storage.exists(LATEST):
        msg = f"{storage.root} has no finished run; `winnow run RECIPE --workspace {storage.root}`"
        raise SetupError(msg)
    selection = str(json.loads(storage.read(LATEST))["selection"])
    if not selection:
        msg = f"the last run in {storage.root} failed before it selected anything"
        raise SetupError(msg)
    return selection


def load_summary(storage: Storage, selection: str | None) -> dict[str, Any]:
    """Return the summary of a selection (a prefix of its name is enough), or of the latest."""
    if selection is None:
        selection = latest_selection(storage)
    known = storage.names("ledger")
    found = [name for name in known if name.startswith(selection)]
    if len(found) != 1 or not storage.exists(f"ledger/{found[0]}/{SUMMARY}"):
        near = difflib.get_close_matches(selection, known, n=3, cutoff=0.3)
        msg = (
            f"there is no selection {selection!r}; there are: {', '.join(near or known) or 'none'}"
        )
        raise SetupError(msg)
    summary: dict[str, Any] = json.loads(storage.read(f"ledger/{found[0]}/{SUMMARY}"))
    return summary


def funnel_rows(summary: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the funnel: filter, rule, dropped, of these only by it, null, kept, share."""
    total = summary["rows"] or 1
    for entry in summary["funnel"]:
        yield (
            entry["filter"],
            entry["rule"],
            f"{entry['dropped']:,}",
            f"{entry['only']:,}",
            f"{entry['null']:,}",
            f"{entry['kept']:,}",
            f"{entry['kept'] / total:.1%}",
        )


@dataclass(frozen=True, slots=True)
class RowStory:
    """Everything there is about one row."""

    uid: str
    shard: Shard
    position: int
    columns: dict[str, Any]
    outcome: dict[str, Any]


def readable(value: Any) -> str:
    """Return a value as a person reads it: digests and uids in hex, numbers with six digits, of a
    long list its beginning."""
    if isinstance(value, bytes):
        return value.hex() if len(value) <= 32 else f"{value[:16].hex()}... ({len(value)} bytes)"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {readable(item)}' for name, item in value.items())}}}"
    if isinstance(value, list):
        shown = [readable(item) for item in value[:SHOWN_ITEMS]]
        if len(value) > SHOWN_ITEMS:
            shown.append(f"... ({len(value):,} in all)")
        return f"[{', '.join(shown)}]"
    return repr(value)


def explain(
    plan: Plan, state: State, storage: Storage, uid: str, summary: Mapping[str, Any]
) -> list[RowStory]:
    """Return the story of each row with this uid (hex; a prefix of 6 or more is enough)."""
    wanted = uid.replace("-", "").lower()
    if not 6 <= len(wanted) <= 32 or any(c not in "0123456789abcdef" for c in wanted):
        msg = f"{uid!r} is not a uid: 6 to 32 hexadecimal digits"
        raise SetupError(msg)
    stories = []
    selected = set(summary["shards"])
    for shard in state.shards:
        # A run that failed half-way has no files for its later stages.
        sets = tuple(s for s in state.sets.values() if storage.exists(s.file(shard)))
        reader = ShardReader(storage, sets, shard, state.all_patches(shard.id))
        for position in _positions(storage, shard, wanted):
            stories.append(_story(plan, reader, storage, shard, position, summary, selected))
    if not stories:
        msg = f"no row has the uid {uid}"
        raise SetupError(msg)
    return stories


def _positions(storage: Storage, shard: Shard, wanted: str) -> list[int]:
    file = storage.parquet(f"rows/{shard.content_id}.parquet")
    uids = from_file(file.read(columns=["uid"])).column("uid").to_pylist()
    low = bytes.fromhex(wanted[: len(wanted) // 2 * 2])
    return [i for i, u in enumerate(uids) if u.startswith(low) and u.hex().startswith(wanted)]


def _story(
    plan: Plan,
    reader: ShardReader,
    storage: Storage,
    shard: Shard,
    position: int,
    summary: Mapping[str, Any],
    selected: set[str],
) -> RowStory:
    import numpy as np

    names = [f.name for f in plan.schema if not is_payload(f.type) and reader.has(f.name)]
    table = reader.take(names, np.array([position]))
    columns = table.to_pylist()[0]
    uid = columns.pop("uid").hex()
    outcome: dict[str, Any] = {"outcome": "not in this selection"}
    if shard.id in selected:
        name = f"ledger/{summary['selection']}/{shard.id}.parquet"
        row = from_file(pa.table(storage.parquet(name).read())).slice(position, 1).to_pylist()[0]
        row.pop("uid")
        row["duplicate_of"] = row["duplicate_of"].hex() if row["duplicate_of"] else None
        outcome = {k: v for k, v in row.items() if v is not None}
    return RowStory(uid, shard, position, columns, outcome)
