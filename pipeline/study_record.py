"""When a study's comparisons were named: kept beside its report, so that the report can say so.

``ablations/<study>/design.json`` is a list that only grows: what was compared, since when, and how
many trials of the workspace had results by then.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from winnow.pipeline.statistics import EARLY
from winnow.pipeline.storage import Storage
from winnow.pipeline.study import Study
from winnow.pipeline.trial import TRIALS

LATE = "named when results were there"


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What a report says of when its contrasts were named. named: EARLY or LATE, of the primary
    ones; sentence: since when, and what was changed later."""

    named: str = EARLY
    sentence: str = ""


def record_design(storage: Storage, study: Study) -> Record:
    """Record what a study compares, if that is new, and return since when it is so."""
    path = f"ablations/{study.name}/design.json"
    entries: list[dict[str, Any]] = json.loads(storage.read(path)) if storage.exists(path) else []
    names = _names(study)
    if not entries or entries[-1]["names"] != names:
        today = datetime.now(UTC).date().isoformat()
        entry = {"date": today, "results": _num_results(storage), "names": names}
        entries.append(entry)
        storage.replace(path, json.dumps(entries, indent=1).encode())
    return told(entries)


def told(entries: Sequence[Mapping[str, Any]]) -> Record:
    """Return what a record says, from its entries, the first one first."""
    primary = entries[-1]["names"]["primary"]
    since = len(entries)
    while since and entries[since - 1]["names"]["primary"] == primary:
        since -= 1
    first = entries[since]
    said = [f"Recorded on {entries[0]['date']}, {_when(entries[0])}."]
    for before, entry in zip(entries, entries[1:], strict=False):
        changed = sorted(k for k, v in entry["names"].items() if before["names"].get(k) != v)
        said.append(f"Changed on {entry['date']}, {_when(entry)}: {', '.join(changed)}.")
    return Record(named=LATE if first["results"] else EARLY, sentence=" ".join(said))


def _names(study: Study) -> dict[str, Any]:
    settings = study.settings
    return {
        "primary": None if settings.primary is None else settings.primary.model_dump(),
        "arms": [arm.name for arm in study.arms],
        "seeds": list(settings.seeds),
        "budgets": sorted(settings.budgets),
        "samples_seen": settings.samples_seen,
    }


def _when(entry: Mapping[str, Any]) -> str:
    count = entry["results"]
    if not count:
        return "before the first trial"
    return "when 1 trial had results" if count == 1 else f"when {count:,} trials had results"


def _num_results(storage: Storage) -> int:
    """Return how many trials of the workspace were measured, of whatever study."""
    return sum(
        any(name.startswith("test-") for name in storage.names(f"{TRIALS}/{trial}"))
        for trial in storage.names(TRIALS)
    )
