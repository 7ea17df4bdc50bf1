"""What a stage is: parameters in, columns out, one row per row."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from winnow.contracts.media import Media, MediaCaps

NOT_SELECTED = "not_selected"
"""Error code of a row outside a stage's ``when`` gate."""
CRASHED_WORKER = "crashed_worker"
"""Error code of a row that killed its worker process, twice, the second time alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What one worker of a stage holds; fractions of a GPU are bookkeeping, not isolation."""

    num_cpus: float = 1.0
    num_gpus: float = 0.0
    memory_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerOptions:
    """Run-time options that can never change the output: outside every fingerprint.

    resolve: host name -> "address:port" for the fetcher, as curl's --resolve.
    scratch: a local folder for temporary files, private to this worker.
    decode_threads: threads that decode media beside the stage.
    """

    resolve: Mapping[str, str] = field(default_factory=dict)
    scratch: Path | None = None
    decode_threads: int = 2
    caps: MediaCaps = field(default_factory=MediaCaps)


class Stage(abc.ABC):
    """Base of every annotator: a frozen, keyword-only dataclass of parameters.

    Subclasses declare ``reads`` and ``writes`` (a class variable, or a property where they depend
    on parameters) and ``annotate``. A stage never drops a row, never raises for a row, and imports
    heavy libraries (torch, open_clip) inside ``setup`` only.
    """

    name: ClassVar[str] = ""
    version: ClassVar[int] = 0
    deterministic: ClassVar[bool] = True
    """False where the same input can give other output (fetch, endpoint): ends its pass."""
    transient_codes: ClassVar[frozenset[str]] = frozenset()
    """Error codes that ``--retry-failed`` tries again."""

    @property
    @abc.abstractmethod
    def reads(self) -> pa.Schema:
        """Columns needed, by name and type; ``uid`` is always there and is not listed."""

    @property
    @abc.abstractmethod
    def writes(self) -> pa.Schema:
        """Columns added; the last one is ``<stage>_error: string``."""

    @property
    def resources(self) -> Resources:
        """What one worker needs."""
        return Resources()

    @property
    def batch_rows(self) -> int | None:
        """Rows per ``annotate`` call where the output's last bits depend on it; None: any cut.

        A stage with a value pads shorter batches itself.
        """
        return None

    @property
    def decodes_full_size(self) -> bool:
        """Whether it may read images at full size: ``Media.facts`` then shares that decode.

        A payload with "audio" in its name holds sound.
        """
        payloads = [f.name for f in self.reads if pa.types.is_large_binary(f.type)]
        return any("audio" not in name for name in payloads)

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines that `winnow plan` prints below the stage: what a user may not expect."""
        return ()

    @property
    def presence(self) -> Mapping[str, str]:
        """Payload -> a column that is null exactly where that payload is, for payloads that a row
        may lack without an error. Of the others ``<stage>_error`` tells."""
        return {}

    def model_digest(self) -> str:
        """Return a digest of the model files, "" for a stage without a model. Called in planning:
        it must not load the model."""
        return ""

    def setup(self, options: WorkerOptions) -> Any:
        """Return the worker's state (a loaded model, an event loop); called once per worker."""
        return None

    def preflight(self, sample: pa.RecordBatch, options: WorkerOptions) -> None:
        """Raise SetupError where no row can succeed (no network), before the first shard is begun.

        ``sample``: a few rows (uid + ``reads``). Called on a worker, only for a stage that is not
        deterministic, reads the source alone and has no file in the workspace yet.
        """
        return

    @abc.abstractmethod
    def annotate(self, batch: pa.RecordBatch, state: Any, media: Media) -> pa.RecordBatch:
        """Return exactly ``writes``, one row per row of ``batch`` (uid + ``reads``), in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRef:
    """One input shard: its content id and its number of rows, in source order."""

    id: str
    num_rows: int


class GlobalInputs(abc.ABC):
    """All rows of the pool, shard by shard."""

    shards: tuple[ShardRef, ...]
    scratch: Path
    """A local folder for files larger than memory; removed afterwards."""

    @abc.abstractmethod
    def table(self, shard: ShardRef) -> pa.Table:
        """Return ``uid`` (binary(16)) + the stage's ``reads`` of a shard, in row order."""

    def tables(self) -> Iterator[tuple[ShardRef, pa.Table]]:
        """Yield every shard with its table."""
        for shard in self.shards:
            yield shard, self.table(shard)


class GlobalOutputs(abc.ABC):
    """Where a global stage puts its columns."""

    @abc.abstractmethod
    def write(self, shard: ShardRef, columns: pa.Table) -> None:
        """Write exactly ``writes`` for all rows of a shard, in row order."""


class GlobalStage(abc.ABC):
    """Base of a stage that needs all rows at once. Same declarations as Stage, other method."""

    name: ClassVar[str] = ""
    version: ClassVar[int] = 0

    @property
    @abc.abstractmethod
    def reads(self) -> pa.Schema:
        """Columns needed; ``uid`` is always there and is not listed."""

    @property
    @abc.abstractmethod
    def writes(self) -> pa.Schema:
        """Columns added."""

    @property
    def resources(self) -> Resources:
        """What the one worker needs."""
        return Resources()

    @abc.abstractmethod
    def compute(self, inputs: GlobalInputs, outputs: GlobalOutputs) -> Mapping[str, Any]:
        """Write every shard's columns; return JSON-able counters (pairs found, clusters ...).

        Memory may grow with the narrow columns it reads (about 40 bytes a row), never with media.
        """
