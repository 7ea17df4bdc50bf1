"""Small stages for tests of the pipeline; importable in every worker process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from winnow.contracts.media import Media
from winnow.contracts.parameters import effort, result
from winnow.contracts.registry import register_filter, register_global_stage, register_stage
from winnow.contracts.stage import GlobalInputs, GlobalOutputs, GlobalStage, Stage, WorkerOptions
from winnow.filters.rules import TopFraction

TEXT = pa.schema({"text": pa.string()})


@register_stage("toy_length", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class ToyLength(Stage):
    """Counts letters. Every call leaves a line in ``log``, so that tests can count the work."""

    log: str = effort("")
    pause_s: float = effort(0.0)
    factor: int = result(1)

    reads = TEXT
    writes = pa.schema({"num_letters": pa.int32(), "toy_length_error": pa.string()})

    def annotate(self, batch: pa.RecordBatch, state: Any, media: Media) -> pa.RecordBatch:
        texts = batch.column("text").to_pylist()
        note(self.log, "toy_length", texts)
        time.sleep(float(os.environ.get("TOY_PAUSE_S", self.pause_s)))
        numbers = [None if t is None else len(t) * self.factor for t in texts]
        errors = ["empty" if t is None else None for t in texts]
        return pa.RecordBatch.from_arrays(
            [pa.array(numbers, pa.int32()), pa.array(errors, pa.string())], schema=self.writes
        )


@register_stage("toy_double", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class ToyDouble(Stage):
    """Doubles num_letters."""

    log: str = effort("")

    reads = pa.schema({"num_letters": pa.int32()})
    writes = pa.schema({"doubled": pa.int64(), "toy_double_error": pa.string()})

    def annotate(self, batch: pa.RecordBatch, state: Any, media: Media) -> pa.RecordBatch:
        values = batch.column("num_letters").to_pylist()
        note(self.log, "toy_double", values)
        doubled = [None if v is None else 2 * v for v in values]
        errors = ["missing" if v is None else None for v in values]
        return pa.RecordBatch.from_arrays(
            [pa.array(doubled, pa.int64()), pa.array(errors, pa.string())], schema=self.writes
        )


@register_stage("toy_fetch", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class ToyFetch(Stage):
    """Reads ``folder/<text>``: a fetch that fails in passing until the file is there."""

    folder: str
    log: str = effort("")

    deterministic = False
    transient_codes = frozenset({"unavailable"})
    reads = TEXT
    writes = pa.schema({"fetched": pa.string(), "toy_fetch_error": pa.string()})

    def annotate(self, batch: pa.RecordBatch, state: Any, media: Media) -> pa.RecordBatch:
        texts = batch.column("text").to_pylist()
        note(self.log, "toy_fetch", texts)
        found: list[str | None] = []
        for text in texts:
            file = Path(self.folder) / str(text)
            found.append(file.read_text() if file.is_file() else None)
        errors = [None if f is not None else "unavailable" for f in found]
        return pa.RecordBatch.from_arrays(
            [pa.array(found, pa.string()), pa.array(errors, pa.string())], schema=self.writes
        )


@register_stage("toy_fetched_length", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class ToyFetchedLength(Stage):
    """Length of what was fetched."""

    log: str = effort("")

    reads = pa.schema({"fetched": pa.string()})
    writes = pa.schema({"fetched_length": pa.int32(), "toy_fetched_length_error": pa.string()})

    def annotate(self, batch: pa.RecordBatch, state: Any, media: Media) -> pa.RecordBatch:
        values = batch.column("fetched").to_pylist()
        note(self.log, "toy_fetched_length", values)
        lengths = [None if v is None else len(v) for v in values]
        errors = ["missing" if v is None else None for v in values]
        return pa.RecordBatch.from_arrays(
            [pa.array(lengths, pa.int32()), pa.array(errors, pa.string())], schema=self.writes
        )


@register_stage("toy_crash", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class ToyCrash(Stage):
    """Kills its own process with ``signal`` on the texts in ``guilty``."""

    guilty: tuple[str, ...] = ()
    signal_name: str = "SIGSEGV"
    log: str = effort("")

    reads = TEXT
    writes = pa.schema({"survived": pa.bool_(), "toy_crash_error": pa.string()})

    def annotate(self, batch: pa.RecordBatch, state: Any, media: Media) -> pa.RecordBatch:
        texts = batch.column("text").to_pylist()
        note(self.log, "toy_crash", texts)
        for text in texts:
            if text in self.guilty:
                os.kill(os.getpid(), getattr(signal, self.signal_name))
                time.sleep(5)
        return pa.RecordBatch.from_arrays(
            [pa.array([True] * len(texts)), pa.nulls(len(texts), pa.string())], schema=self.writes
        )


@register_stage("toy_gpu", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class ToyGpu(Stage):
    """Says which logical GPU its worker was given."""

    reads = TEXT
    writes = pa.schema({"device": pa.string(), "toy_gpu_error": pa.string()})

    @property
    def resources(self) -> Any:
        from winnow.contracts.stage import Resources

        return Resources(num_cpus=1, num_gpus=1)

    def setup(self, options: WorkerOptions) -> str:
        return os.environ.get("CUDA_VISIBLE_DEVICES", "none")

    def annotate(self, batch: pa.RecordBatch, state: Any, media: Media) -> pa.RecordBatch:
        rows = batch.num_rows
        return pa.RecordBatch.from_arrays(
            [pa.array([state] * rows, pa.string()), pa.nulls(rows, pa.string())],
            schema=self.writes,
        )


@register_global_stage("toy_rank", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class ToyRank(GlobalStage):
    """Writes how many rows of the whole pool have fewer letters."""

    log: str = effort("")

    reads = pa.schema({"num_letters": pa.int32()})
    writes = pa.schema({"rank": pa.int64()})

    def compute(self, inputs: GlobalInputs, outputs: GlobalOutputs) -> Mapping[str, Any]:
        note(self.log, "toy_rank", list(inputs.shards))
        everything = sorted(
            v for _, t in inputs.tables() for v in t.column("num_letters").to_pylist() if v
        )
        for shard, table in inputs.tables():
            values = table.column("num_letters").to_pylist()
            ranks = [sum(1 for e in everything if e < (v or 0)) for v in values]
            outputs.write(shard, pa.table({"rank": pa.array(ranks, pa.int64())}))
        return {"rows": len(everything)}


@register_stage("toy_first", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class ToyFirst(Stage):
    """Writes whether a row is the first of its kind: the opposite of a column over all rows."""

    log: str = effort("")

    reads = pa.schema({"repeated_row": pa.bool_()})
    writes = pa.schema({"first": pa.bool_(), "toy_first_error": pa.string()})

    def annotate(self, batch: pa.RecordBatch, state: Any, media: Media) -> pa.RecordBatch:
        repeated = batch.column("repeated_row").to_pylist()
        note(self.log, "toy_first", repeated)
        first = pa.array([not r for r in repeated], pa.bool_())
        errors = pa.nulls(len(repeated), pa.string())
        return pa.RecordBatch.from_arrays([first, errors], schema=self.writes)


def note(log: str, stage: str, values: list[Any]) -> None:
    """Append what a stage was asked to do."""
    if log:
        with open(log, "a") as file:
            file.write(f"{stage} {len(values)}\n")


@register_stage("toy_batch", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class ToyBatch(Stage):
    """Writes how many rows its batch had: wants ``rows`` of them at a time."""

    rows: int
    column: str = result("batch")

    reads = TEXT

    @property
    def writes(self) -> pa.Schema:
        return pa.schema({self.column: pa.int32(), f"{self.column}_error": pa.string()})

    @property
    def batch_rows(self) -> int | None:
        return self.rows

    def annotate(self, batch: pa.RecordBatch, state: Any, media: Media) -> pa.RecordBatch:
        sizes = pa.array([batch.num_rows] * batch.num_rows, pa.int32())
        errors = pa.nulls(batch.num_rows, pa.string())
        return pa.RecordBatch.from_arrays([sizes, errors], schema=self.writes)


@register_stage("toy_raise", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class ToyRaise(Stage):
    """Raises an ordinary exception on the texts in ``guilty``, while ``file`` is there."""

    guilty: tuple[str, ...]
    file: str = effort("")
    log: str = effort("")

    reads = TEXT
    writes = pa.schema({"fine": pa.bool_(), "toy_raise_error": pa.string()})

    def annotate(self, batch: pa.RecordBatch, state: Any, media: Media) -> pa.RecordBatch:
        texts = batch.column("text").to_pylist()
        note(self.log, "toy_raise", texts)
        if not self.file or Path(self.file).exists():
            bad = [t for t in texts if t in self.guilty]
            if bad:
                msg = f"no way to annotate {bad[0]}"
                raise ValueError(msg)
        errors = pa.nulls(len(texts), pa.string())
        return pa.RecordBatch.from_arrays(
            [pa.array([True] * len(texts)), errors], schema=self.writes
        )


@register_filter("toy_top")
def toy_top(
    *, column: str, fraction: float, over: Literal["unrepeated", "survivors"] = "unrepeated"
) -> TopFraction:
    """Keep the top fraction of any column."""
    return TopFraction(column=column, fraction=fraction, over=over)
