"""One trial: which data, which model, which compute; where its results lie; how they are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from winnow.contracts.errors import SetupError
from winnow.contracts.parameters import result_parameters
from winnow.contracts.trial import Dataset, Evaluation, Trainer
from winnow.pipeline.fingerprint import digest
from winnow.pipeline.storage import Storage

TRIALS = "trials"
TRAINED = "training.json"
"""Written last in a trial's checkpoint: the model is whole where it is there."""
METRICS_FILE = "metrics.parquet"
ITEMS_FILE = "items.parquet"


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """An export as training data: a folder of the workspace, its tars, its content.

    digest covers the bytes of the tars and nothing else, so two recipes that select the same rows
    share their trials.
    """

    name: str
    folder: str
    tars: tuple[str, ...]
    digest: str
    num_rows: int


def exported(storage: Storage, folder: str, name: str) -> Exported:
    """Return a committed export. Raises SetupError for one without rows."""
    sizes: dict[str, int] = json.loads(storage.read(f"{folder}/sizes.json"))
    files = json.loads(storage.read(f"{folder}/files.json"))["files"]
    sums = {file["name"]: file["sha256"] for file in files}
    tars = tuple(sorted(sizes))
    rows = sum(sizes.values())
    if not rows:
        msg = f"{name}: the selection is empty; nothing can be trained or measured on it"
        raise SetupError(msg)
    content = [[tar, sums[tar]] for tar in tars]
    return Exported(name=name, folder=folder, tars=tars, digest=digest(content), num_rows=rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialSpec:
    """Everything that decides a trial's outcome."""

    trainer: Trainer
    train: Exported
    num_samples: int
    seed: int

    def fingerprint(self) -> str:
        """Return the digest that names the trial's folder."""
        parts = [
            self.trainer.name,
            self.trainer.version,
            result_parameters(self.trainer),
            self.trainer.model_digest(),
            self.train.digest,
            self.num_samples,
            self.seed,
        ]
        return digest(parts)

    @property
    def folder(self) -> str:
        """The trial's folder in the workspace."""
        return f"{TRIALS}/{self.fingerprint()}"

    @property
    def checkpoint(self) -> str:
        """Where the trained model lies."""
        return f"{self.folder}/checkpoint"

    def is_trained(self, storage: Storage) -> bool:
        """Whether the model is there, whole."""
        return storage.exists(f"{self.checkpoint}/{TRAINED}")

    def described(self) -> dict[str, Any]:
        """Return the trial as plain data, for trial.json."""
        return {
            "trainer": self.trainer.name,
            "version": self.trainer.version,
            "parameters": result_parameters(self.trainer),
            "model": self.trainer.model_digest(),
            "train": {
                "export": self.train.folder,
                "digest": self.train.digest,
                "num_rows": self.train.num_rows,
            },
            "samples_seen": self.num_samples,
            "seed": self.seed,
        }


def evaluation_folder(
    spec: TrialSpec, evaluations: Mapping[str, Evaluation], data: Exported
) -> str:
    """Return where the metrics of a trial on one evaluation set lie."""
    parts = [
        [n, e.name, e.version, result_parameters(e), *filter(None, [e.files_digest()])]
        for n, e in evaluations.items()
    ]
    return f"{spec.folder}/{data.name}-{digest([parts, data.digest])[:16]}"


def is_measured(
    storage: Storage, spec: TrialSpec, evaluations: Mapping[str, Evaluation], data: Exported
) -> bool:
    """Whether a trial was evaluated on a set."""
    return storage.exists(f"{evaluation_folder(spec, evaluations, data)}/{METRICS_FILE}")


def load_measured(
    storage: Storage, spec: TrialSpec, evaluations: Mapping[str, Evaluation], data: Exported
) -> tuple[pa.Table, pa.Table]:
    """Return the tables METRICS and ITEMS of a trial on an evaluation set."""
    folder = evaluation_folder(spec, evaluations, data)
    metrics = storage.parquet(f"{folder}/{METRICS_FILE}").read()
    return metrics, storage.parquet(f"{folder}/{ITEMS_FILE}").read()


def local_dataset(storage: Storage, data: Exported, cache: Path) -> Dataset:
    """Return an export whose tars lie on a local disk; fetched into ``cache`` where they do not."""
    if storage.is_local:
        shards = tuple(storage.path(f"{data.folder}/{tar}") for tar in data.tars)
    else:
        shards = tuple(_fetched(storage, data, tar, cache) for tar in data.tars)
    return Dataset(name=data.name, shards=shards, digest=data.digest, num_rows=data.num_rows)


def _fetched(storage: Storage, data: Exported, tar: str, cache: Path) -> str:
    target = cache / data.digest / tar
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(".part")
        storage.download(f"{data.folder}/{tar}", part)
        part.replace(target)
    return str(target)
