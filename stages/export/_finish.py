"""What every export has beside its data files: files.json, croissant.json, README.md."""

from __future__ import annotations

import json

from winnow.contracts.exporter import ExportContext, Sink
from winnow.stages.export._card import card
from winnow.stages.export._croissant import croissant
from winnow.stages.export._layout import Layout


def write_description(layout: Layout, context: ExportContext, sink: Sink) -> None:
    """Write the three files; each depends on its arguments only."""
    with sink.create("files.json") as out:
        out.write(_json(inventory(layout, context)))
    with sink.create("croissant.json") as out:
        out.write(_json(croissant(layout, context)))
    with sink.create("README.md") as out:
        out.write(card(layout, context).encode())


def inventory(layout: Layout, context: ExportContext) -> dict[str, object]:
    """Return every data file with its digest: what a consumer checks a download against."""
    files = [*layout.data_files, *([layout.manifest] if layout.manifest else [])]
    return {
        "name": context.name,
        "selection": context.selection,
        "files": [
            {"name": f.name, "rows": f.num_rows, "bytes": f.size_bytes, "sha256": f.sha256}
            for f in files
        ],
    }


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"
