"""What was exported, where it is, and how to load it, as the export's own card says it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from winnow.pipeline.export_plan import plan_export
from winnow.pipeline.storage import Storage
from winnow.pipeline.work import State

CARD = "README.md"
USAGE = "## How to load it"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportSection:
    """One export. usage: (is_code, text) pieces."""

    key: str
    kind: str
    folder: str
    done: bool
    num_files: int
    size: str
    usage: tuple[tuple[bool, str], ...]


def export_entries(
    storage: Storage, state: State, summary: Mapping[str, Any]
) -> list[ExportSection]:
    """Return the exports of a selection."""
    sections = []
    for entry in state.plan.recipe.exports:
        plan = plan_export(state, entry, summary)
        folder, done = plan.job.folder, plan.done
        card = f"{folder}/{CARD}"
        text = storage.read(card).decode() if done and storage.exists(card) else ""
        sections.append(
            ExportSection(
                key=entry.key,
                kind=entry.exporter.name,
                folder=folder,
                done=done,
                num_files=len(plan.names),
                size=size_text(sum(storage.sizes(folder).values())) if done else "",
                usage=tuple(usage_pieces(text)),
            )
        )
    return sections


def usage_pieces(card: str) -> list[tuple[bool, str]]:
    """Return the section of a Markdown card that says how to load it, code told from text."""
    _, found, rest = card.partition(f"{USAGE}\n")
    if not found:
        return []
    section = re.split(r"^## ", rest, maxsplit=1, flags=re.MULTILINE)[0]
    pieces = re.split(r"^```[a-z]*\n", section, flags=re.MULTILINE)
    found_pieces = [(number % 2 == 1, text.strip("\n")) for number, text in enumerate(pieces)]
    return [(code, text) for code, text in found_pieces if text.strip()]


def size_text(num_bytes: int) -> str:
    """Return a number of bytes as a person writes it."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes} bytes"
