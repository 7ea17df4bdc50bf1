"""Fingerprints: a digest of everything that can change an output, and of nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from winnow.contracts.media import MediaCaps
from winnow.contracts.parameters import result_parameters
from winnow.contracts.source import Source
from winnow.contracts.stage import GlobalStage, Stage
from winnow.pipeline.arrow_files import is_payload

LENGTH = 16


def digest(value: Any) -> str:
    """Return a 32-character digest of JSON-able data."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.blake2b(text.encode(), digest_size=LENGTH).hexdigest()


def source_key(source: Source) -> list[Any]:
    """Return what identifies how a source reads its files."""
    fields = {f.name: getattr(source, f.name) for f in dataclasses.fields(source)}  # type: ignore[arg-type]
    return [source.name, source.version, result_parameters(source) if fields else {}]


def stage_fingerprint(
    stage: Stage | GlobalStage,
    inputs: Sequence[str],
    caps: MediaCaps,
    pool: Sequence[str] = (),
) -> str:
    """Return the fingerprint of a stage.

    inputs: fingerprints of the writers of what it reads ("source" for the source).
    pool: for a global stage, the ids of all shards and patches it reads.
    """
    parts: dict[str, Any] = {
        "name": stage.name,
        "version": stage.version,
        "parameters": result_parameters(stage),
        "inputs": sorted(set(inputs)),
    }
    if isinstance(stage, Stage):
        parts["model"] = stage.model_digest()
        if any(is_payload(f.type) for f in stage.reads):
            parts["media"] = dataclasses.asdict(caps)
    else:
        parts["pool"] = list(pool)
    return digest(parts)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, frozenset | set):
        return sorted(value)
    if isinstance(value, Path | bytes):
        return str(value)
    msg = f"a {type(value).__name__} cannot enter a fingerprint"
    raise TypeError(msg)
