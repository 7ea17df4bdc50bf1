"""The work of one trial: train, keep what a killed attempt left, measure, commit."""

from __future__ import annotations

import io
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from winnow.contracts.errors import SetupError, ShardError
from winnow.contracts.stage import Resources
from winnow.contracts.trial import Dataset, Evaluation
from winnow.pipeline.storage import Storage
from winnow.pipeline.trial import (
    ITEMS_FILE,
    METRICS_FILE,
    TRAINED,
    Exported,
    TrialSpec,
    evaluation_folder,
    is_measured,
    local_dataset,
)
from winnow.pipeline.trial_cache import with_shared_cache
from winnow.pipeline.units import Unit, UnitResult, WorkerContext
from winnow.stages.train.distributed import current_workers

log = logging.getLogger(__name__)

STATE = "state"
CACHE = "datasets"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialUnit(Unit):
    """Train one model and measure it on every evaluation set; only what is missing is done.

    A resumable state lies in the trial's folder while it trains: whoever runs the unit next, on
    whatever machine, goes on from there.

    Where several processes train together each of them runs the unit, and the first one reads and
    writes the trial's folder.
    """

    storage: Storage
    spec: TrialSpec
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    sets: tuple[Exported, ...] = ()
    name: str = ""

    @property
    def label(self) -> str:
        return f"trial {self.name}" if self.name else f"trial {self.spec.fingerprint()[:12]}"

    @property
    def resources(self) -> Resources:
        return self.spec.trainer.resources

    @property
    def group_size(self) -> int:
        """How many processes have to run it together: what is trained is measured by one."""
        trained = self.spec.is_trained(self.storage)
        return 1 if trained else int(getattr(self.spec.trainer, "num_workers", 1))

    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return self.spec.is_trained(self.storage) and all(
            is_measured(self.storage, self.spec, self.evaluations, s) for s in self.sets
        )

    def run(self, context: WorkerContext) -> UnitResult:
        """Do what is missing. Progress is counted in samples seen."""
        folder = Path(tempfile.mkdtemp(prefix="trial-", dir=context.scratch))
        workers = current_workers()
        try:
            if workers.from_first(self.spec.is_trained(self.storage)):
                self._fetch(self.spec.checkpoint, folder)
                if workers.is_first:
                    self._forget_state()
                context.progress(self.spec.num_samples)
            else:
                self._train(folder, context)
            for data in self.sets if workers.is_first else ():
                if not is_measured(self.storage, self.spec, self.evaluations, data):
                    self._measure(folder, data, context)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return UnitResult(rows=self.spec.num_samples)

    def _train(self, folder: Path, context: WorkerContext) -> None:
        spec, is_first = self.spec, current_workers().is_first
        if is_first:
            text = json.dumps(spec.described(), indent=1, sort_keys=True, default=str)
            self.storage.put(f"{spec.folder}/trial.json", text.encode() + b"\n")
            self._fetch(f"{spec.folder}/{STATE}", folder)
        resumed = current_workers().from_first(any(folder.iterdir()))

        def saved() -> None:
            for path in sorted(p for p in folder.iterdir() if p.is_file()):
                self.storage.replace(f"{spec.folder}/{STATE}/{path.name}", path.read_bytes())

        def train() -> Mapping[str, Any]:
            return with_shared_cache(spec.trainer).train(
                self._dataset(spec.train, context),
                folder,
                num_samples=spec.num_samples,
                seed=spec.seed,
                progress=context.progress,
                saved=saved,
            )

        try:
            summary = train()
        except SetupError as error:
            # A torn state, or one of another version, must not keep a trial from ever being done.
            if not resumed:
                raise
            log.warning("%s: starting again from the beginning: %s", self.label, error)
            if is_first:
                self._forget_state()
            _empty(folder)
            summary = train()
        if is_first:
            self._commit(folder, summary)
            self._forget_state()

    def _forget_state(self) -> None:
        if self.storage.names(f"{self.spec.folder}/{STATE}"):
            self.storage.remove(f"{self.spec.folder}/{STATE}")

    def _commit(self, folder: Path, summary: Mapping[str, Any]) -> None:
        """Put the model there, ``training.json`` last; leave in ``folder`` what is there."""
        names = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name != TRAINED)
        if not names:
            msg = f"{self.spec.trainer.name} left no model"
            raise ShardError(msg, stage=self.label, retryable=False)
        for name in names:
            self.storage.upload(folder / name, f"{self.spec.checkpoint}/{name}")
        path = folder / TRAINED
        if not path.exists():
            path.write_text(json.dumps(summary, indent=1, default=str) + "\n", encoding="utf-8")
        self.storage.upload(path, f"{self.spec.checkpoint}/{TRAINED}")
        # Another attempt may have been first with some file: what is measured is what is there.
        _empty(folder)
        self._fetch(self.spec.checkpoint, folder)

    def _measure(self, folder: Path, data: Exported, context: WorkerContext) -> None:
        from winnow.stages.evaluate._tables import measure_all, metrics_table, model_scores

        columns = sorted({c for e in self.evaluations.values() for c in e.columns})
        subject = self.spec.trainer.load(folder, self._dataset(data, context), columns)
        scores, items = measure_all(self.evaluations, subject)
        metrics = pa.concat_tables([scores, metrics_table(model_scores(subject))])
        where = evaluation_folder(self.spec, self.evaluations, data)
        self.storage.put(f"{where}/{ITEMS_FILE}", _parquet(items))
        self.storage.put(f"{where}/{METRICS_FILE}", _parquet(metrics))

    def _dataset(self, data: Exported, context: WorkerContext) -> Dataset:
        return local_dataset(self.storage, data, context.scratch / CACHE)

    def _fetch(self, source: str, folder: Path) -> None:
        for name in self.storage.names(source):
            self.storage.download(f"{source}/{name}", folder / name)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _parquet(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()
