"""The work of one pass on one shard: read rows, run the stages, commit one file per stage."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from winnow.contracts.errors import ShardError
from winnow.contracts.media import MediaCaps
from winnow.contracts.stage import CRASHED_WORKER, NOT_SELECTED, Resources, Stage
from winnow.filters.expr import Expr
from winnow.pipeline.arrow_files import UID, ShardWriter, is_payload
from winnow.pipeline.columns import ColumnSet, Patches, ShardReader, null_rows, overlay
from winnow.pipeline.shards import Shard
from winnow.pipeline.storage import Commit, Storage
from winnow.pipeline.units import Suspects, Unit, UnitResult, WorkerContext
from winnow.stages._media import BatchMedia, MediaCache

Mode = Literal["base", "patch", "retry", "gate"]
MEDIA_BUDGET_BYTES = 512 << 20
ROW_FIELD = pa.field("row", pa.int32())
GATED = "gated"
"""Suffix of the file that says, before the base file is there, that a gate may have left rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageTask:
    """A stage to run in a unit.

    marker: suffix of the file that says "all rows of this gate are done"; None without a gate.
    covers: patches of its inputs that a base file takes in; each gets an empty patch of its own.
    """

    key: str
    stage: Stage
    columns: ColumnSet
    marker: str | None = None
    covers: tuple[int, ...] = ()

    @property
    def when(self) -> Expr | None:
        """The gate."""
        return self.columns.when


@dataclass(frozen=True, kw_only=True, slots=True)
class PassUnit(Unit):
    """Stages of one pass on one shard.

    mode: base (a new file for all rows), patch (the rows of the inputs' patch ``number``), retry
        (rows with a transient code), gate (rows that a wider gate now selects).
    poisoned: stage key -> positions in the unit's rows that kill their worker.
    isolate: run only these positions, one by one, up to this stage, and write nothing.
    """

    storage: Storage
    shard: Shard
    sets: tuple[ColumnSet, ...]
    patches: Patches
    tasks: tuple[StageTask, ...]
    mode: Mode = "base"
    number: int = 0
    rows_from: tuple[str, ...] = ()
    chunk_rows: int = 128
    caps: MediaCaps = dataclasses.field(default_factory=MediaCaps)
    needs: Resources = dataclasses.field(default_factory=Resources)
    poisoned: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    isolate: Suspects | None = None

    @property
    def label(self) -> str:
        names = ", ".join(t.key for t in self.tasks)
        mode = "" if self.mode == "base" else f" ({self.mode} {self.number})"
        return f"{names}{mode} on shard {self.shard.id} ({self.shard.file})"

    @property
    def resources(self) -> Resources:
        return self.needs

    def isolating(self, suspects: Suspects) -> Unit:
        return dataclasses.replace(self, isolate=suspects)

    def without(self, stage: str, guilty: tuple[int, ...]) -> Unit:
        known = self.poisoned.get(stage, ())
        poisoned = {**self.poisoned, stage: tuple(sorted({*known, *guilty}))}
        return dataclasses.replace(self, poisoned=poisoned)

    def run(self, context: WorkerContext) -> UnitResult:
        """Run; every file is committed at the end, in stage order."""
        reader = ShardReader(self.storage, self.sets, self.shard, self.patches)
        rows = self._rows(reader)
        if self.isolate is not None:
            return self._run_isolated(reader, rows, context)
        if self.mode in ("retry", "gate") and not len(rows):
            return UnitResult(committed=self._commit_markers())
        return self._run_all(reader, rows, context)

    def _rows(self, reader: ShardReader) -> np.ndarray:
        first = self.tasks[0]
        if self.mode == "patch":
            parts = [
                reader.patch_rows(writer, self.number)
                for writer in self.rows_from
                if self.number in self.patches.get(writer, ())
            ]
            return np.unique(np.concatenate(parts))
        rows = reader.all_rows()
        selected = reader.gate(first.when, rows) if first.when is not None else None
        if self.mode == "base":
            return rows if selected is None else rows[selected]
        assert first.columns.error is not None
        codes = reader.stored(first.key, first.columns.error).to_pylist()
        wanted = (NOT_SELECTED,) if self.mode == "gate" else first.stage.transient_codes
        hit = np.array([code in wanted for code in codes], bool)
        return rows[hit] if selected is None else rows[hit & selected]

    def _run_all(self, reader: ShardReader, rows: np.ndarray, context: WorkerContext) -> UnitResult:
        tallies = {t.key: Counter[str]() for t in self.tasks}
        with ExitStack() as stack:
            outputs = [_Output(self, task, reader, stack) for task in self.tasks]
            for start in range(0, len(rows), self.chunk_rows):
                at = rows[start : start + self.chunk_rows]
                chunk = self._chunk(reader, at, start, context, tallies)
                for output, columns in zip(outputs, chunk, strict=True):
                    output.write(columns, at)
                context.progress(len(at))
            for output in outputs:
                output.finish()
            if context.breadcrumb is not None:
                context.breadcrumb.clear()
            committed, lost = self._commit(stack, outputs)
        return UnitResult(
            rows=len(rows),
            committed=(*committed, *self._commit_markers()) if not lost else committed,
            lost=lost,
            counters={key: dict(tally) for key, tally in tallies.items()},
        )

    def _commit(
        self, stack: ExitStack, outputs: list[_Output]
    ) -> tuple[tuple[tuple[str, str], ...], bool]:
        """Commit in order; a loser throws away what it derived from its own version."""
        committed: list[tuple[str, str]] = []
        for output in outputs:
            task = output.task
            if self.mode == "base" and task.marker is not None:
                self.storage.put(task.columns.file(self.shard, GATED), b"")
            won = output.commit()
            committed.append((task.key, output.suffix))
            if not won:
                # Whose file is there may have had a gate: look for rows that it left.
                return (*committed, (task.key, GATED)), True
        return tuple(committed), False

    def _commit_markers(self) -> tuple[tuple[str, str], ...]:
        done = []
        for task in self.tasks:
            for number in task.covers if self.mode == "base" else ():
                self._commit_empty_patch(task, number)
                done.append((task.key, f"r{number}"))
            if task.marker is not None and self.mode in ("base", "gate"):
                self.storage.put(task.columns.file(self.shard, task.marker), b"")
                done.append((task.key, task.marker))
        return tuple(done)

    def _commit_empty_patch(self, task: StageTask, number: int) -> None:
        name = task.columns.file(self.shard, f"r{number}")
        with self.storage.create(name) as commit:
            writer = ShardWriter(commit.file, pa.schema([ROW_FIELD, UID, *task.stage.writes]))
            writer.close()

    def _chunk(
        self,
        reader: ShardReader,
        at: np.ndarray,
        start: int,
        context: WorkerContext,
        tallies: Mapping[str, Counter[str]],
    ) -> list[pa.Table]:
        """Run all stages on one chunk; ``start`` is its position in the unit's rows."""
        written = {n for t in self.tasks for n in t.stage.writes.names}
        needed = {n for t in self.tasks for n in t.stage.reads.names if n != "uid"}
        if self.mode == "patch":
            needed |= {n for t in self.tasks if t.when is not None for n in t.when.columns()}
        table = reader.take(sorted(needed - written), at)
        found = []
        full_size = any(t.stage.decodes_full_size for t in self.tasks)
        threads = context.options.decode_threads
        with MediaCache(MEDIA_BUDGET_BYTES, threads, full_size=full_size) as cache:
            for task in self.tasks:
                began = time.perf_counter()
                columns = self._annotate(task, table, start, context, cache)
                if self.mode == "patch" and task.when is not None:
                    columns = _gated(task, columns, reader.gate(task.when, at))
                _tally(tallies[task.key], task, columns, time.perf_counter() - began)
                found.append(columns)
                for name in task.stage.writes.names:
                    table = table.append_column(columns.schema.field(name), columns.column(name))
        return found

    def _annotate(
        self,
        task: StageTask,
        table: pa.Table,
        start: int,
        context: WorkerContext,
        cache: MediaCache,
    ) -> pa.Table:
        inputs = table.select(["uid", *(n for n in task.stage.reads.names if n != "uid")])
        guilty = [p - start for p in self.poisoned.get(task.key, ())]
        guilty = [p for p in guilty if 0 <= p < inputs.num_rows]
        if guilty:
            inputs = _blank(inputs, np.array(guilty))
        state = context.state(task.stage)
        size = task.stage.batch_rows or inputs.num_rows or 1
        parts = []
        for low in range(0, inputs.num_rows, size):
            batch = _one_batch(inputs.slice(low, size))
            if context.breadcrumb is not None:
                context.breadcrumb.set(task.key, start + low, start + low + batch.num_rows)
            media = BatchMedia(batch, caps=self.caps, cache=cache, first_row=start + low)
            parts.append(
                _checked(task.stage.annotate(batch, state, media), batch, task, self.shard)
            )
        schema = pa.schema([UID, *task.stage.writes])
        columns = pa.Table.from_batches(parts) if parts else task.stage.writes.empty_table()
        columns = pa.table([inputs.column("uid"), *columns.columns], schema)
        if guilty:
            dead = null_rows(schema, columns.column("uid"), task.columns.error, CRASHED_WORKER)
            columns = overlay(columns, dead.take(pa.array(guilty)), np.array(guilty))
        return columns

    def _run_isolated(
        self, reader: ShardReader, rows: np.ndarray, context: WorkerContext
    ) -> UnitResult:
        """Run suspect rows one at a time; the row that dies again is named by the breadcrumb."""
        assert self.isolate is not None
        keys = [t.key for t in self.tasks]
        tasks = self.tasks[: keys.index(self.isolate.stage) + 1]
        alone = dataclasses.replace(self, tasks=tasks, isolate=None)
        for position in range(self.isolate.start, self.isolate.stop):
            if position not in self.poisoned.get(self.isolate.stage, ()):
                tallies = {t.key: Counter[str]() for t in tasks}
                alone._chunk(reader, rows[position : position + 1], position, context, tallies)
        return UnitResult(rows=self.isolate.stop - self.isolate.start)


class _Output:
    """One stage's file of a unit, from first row to commit."""

    def __init__(
        self, unit: PassUnit, task: StageTask, reader: ShardReader, stack: ExitStack
    ) -> None:
        self.task = task
        self.suffix = "" if unit.mode == "base" else f"r{unit.number}"
        self._name = task.columns.file(unit.shard, self.suffix)
        self._storage = unit.storage
        self._reader, self._num_rows = reader, unit.shard.num_rows
        self._sparse = unit.mode == "base" and task.when is not None
        self._patch = unit.mode != "base"
        head = [ROW_FIELD, UID] if self._patch else [UID]
        self._next = 0
        self._creating = unit.storage.create(self._name)
        self._open: Commit | None = self._creating.__enter__()
        stack.push(self._abandon)
        self._writer = ShardWriter(self._open.file, pa.schema([*head, *task.stage.writes]))

    def write(self, columns: pa.Table, at: np.ndarray) -> None:
        """Append rows at these positions of the shard."""
        if self._open is not None:
            self._open.touch()
        if self._patch:
            rows = pa.array(at, ROW_FIELD.type)
            columns = columns.add_column(0, ROW_FIELD, rows)
        elif self._sparse and len(at):
            self._fill(int(at[-1]) + 1, columns, at)
            return
        self._writer.write(columns)

    def finish(self) -> None:
        """Write what is left and the footer."""
        if self._sparse:
            self._fill(self._num_rows, None, np.array([], np.int64))
        self._writer.close()

    def commit(self) -> bool:
        """Commit; False if the file was there first."""
        commit, self._open = self._open, None
        assert commit is not None
        self._creating.__exit__(None, None, None)
        return commit.won

    def _fill(self, stop: int, columns: pa.Table | None, at: np.ndarray) -> None:
        """Write rows [next, stop): ``columns`` at positions ``at``, null elsewhere."""
        between = np.arange(self._next, stop)
        if not len(between):
            return
        uid = self._reader.take([], between).column("uid")
        schema = pa.schema([UID, *self.task.stage.writes])
        table = null_rows(schema, uid, self.task.columns.error, NOT_SELECTED)
        if columns is not None:
            table = overlay(table, columns, at - self._next)
        self._writer.write(table)
        self._next = stop

    def _abandon(self, *_: object) -> bool:
        """Remove the temporary file of a unit that did not commit it."""
        if self._open is not None:
            # Ctrl-C comes between any two lines: there may be a file and no writer yet.
            writer: ShardWriter | None = getattr(self, "_writer", None)
            if writer is not None:
                writer.abandon()
            error = _Abandoned()
            try:
                self._creating.__exit__(_Abandoned, error, None)
            except _Abandoned:
                pass
        return False


class _Abandoned(BaseException):
    """Thrown into Storage.create to leave without a commit."""


def _blank(table: pa.Table, at: np.ndarray) -> pa.Table:
    empty = null_rows(table.schema, table.column("uid"), None, "")
    return overlay(table, empty.take(pa.array(at)), at)


def _gated(task: StageTask, columns: pa.Table, selected: np.ndarray) -> pa.Table:
    outside = np.flatnonzero(~selected)
    empty = null_rows(columns.schema, columns.column("uid"), task.columns.error, NOT_SELECTED)
    return overlay(columns, empty.take(pa.array(outside)), outside)


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    arrays = [
        pa.concat_arrays(c.chunks) if c.num_chunks else pa.array([], c.type) for c in table.columns
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=table.schema)


def _checked(
    found: pa.RecordBatch, batch: pa.RecordBatch, task: StageTask, shard: Shard
) -> pa.RecordBatch:
    if found.schema.names != task.stage.writes.names or found.num_rows != batch.num_rows:
        msg = (
            f"{task.key} gave {found.num_rows} rows of {found.schema.names} for {batch.num_rows} "
            f"rows; it declares {task.stage.writes.names}"
        )
        raise ShardError(msg, stage=task.key, shard=shard.id, retryable=False)
    return found.cast(task.stage.writes)


def _tally(tally: Counter[str], task: StageTask, columns: pa.Table, seconds: float) -> None:
    tally["rows"] += columns.num_rows
    tally["seconds"] += seconds  # type: ignore[assignment]
    for field in task.stage.writes:
        if is_payload(field.type):
            tally["bytes"] += columns.column(field.name).nbytes
    if task.columns.error is not None:
        for pair in columns.column(task.columns.error).value_counts().to_pylist():
            if pair["values"] is not None:
                tally[f"error:{pair['values']}"] += pair["counts"]
