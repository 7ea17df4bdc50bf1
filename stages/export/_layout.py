"""What one export holds, added up over its files, for those who describe it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from winnow.contracts.exporter import ExportContext, FileSummary
from winnow.contracts.identity import UID_TYPE
from winnow.stages.export._columns import KEY, UID, annotation_names
from winnow.stages.export._manifest import MANIFEST_NAME

TEXT_EXTENSION, JSON_EXTENSION = "txt", "json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """One export.

    format: the exporter's name.  data_files: by name.  manifest: manifest.parquet, if it was given.
    columns: the annotations that the data files carry.  payload: their column with the media, ""
    in tars, and where there are none or several.  payloads: of several, each with its samples per
    extension (as the members of a tar end); empty for text alone; None for one.
    text: the caption's column.  extensions: samples per extension of all payloads.
    sidecars: members per extension.
    """

    format: str
    data_files: tuple[FileSummary, ...]
    manifest: FileSummary | None
    columns: pa.Schema
    payload: str
    payloads: Mapping[str, Mapping[str, int]] | None
    text: str | None
    extensions: Mapping[str, int]
    sidecars: Mapping[str, int]
    pickles_omitted: int

    @property
    def num_rows(self) -> int:
        """Rows of all data files."""
        return sum(f.num_rows for f in self.data_files)

    @property
    def size_bytes(self) -> int:
        """Bytes of all data files."""
        return sum(f.size_bytes for f in self.data_files)

    @property
    def suffix(self) -> str:
        """What the names of data files end with."""
        return {"parquet": ".parquet", "llava": ".json"}.get(self.format, ".tar")

    @property
    def media(self) -> Mapping[str, Mapping[str, int]]:
        """Samples per extension of every payload; one payload's name is its kind, "" if unknown."""
        if self.payloads is not None:
            return self.payloads
        return {self.payload: self.extensions}

    @classmethod
    def of(
        cls,
        files: Sequence[FileSummary],
        context: ExportContext,
        *,
        exporter: str,
        text: str | None,
    ) -> Layout:
        """Add up the summaries; the extras are those that the exporters here return."""
        data = sorted((f for f in files if f.name != MANIFEST_NAME), key=lambda f: f.name)
        first = data[0].extra if data else {}
        payloads = None
        if "payloads" in first:
            payloads = {
                name: _total(f.extra["payloads"][name] for f in data) for name in first["payloads"]
            }
        return cls(
            format=exporter,
            data_files=tuple(data),
            manifest=next((f for f in files if f.name == MANIFEST_NAME), None),
            columns=_typed(first.get("columns"), context.schema),
            payload=first.get("payload", ""),
            payloads=payloads,
            text=text,
            extensions=_total(f.extra.get("extensions", {}) for f in data),
            sidecars=_total(f.extra.get("sidecars", {}) for f in data),
            pickles_omitted=sum(f.extra.get("pickles_omitted", 0) for f in data),
        )


def _total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Add up what several files hold, by name."""
    total = Counter[str]()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))


def _typed(names: Sequence[str] | None, schema: pa.Schema) -> pa.Schema:
    """Return the fields of these names; uid and key are in every file whatever the schema says."""
    known = {UID: pa.field(UID, UID_TYPE), KEY: pa.field(KEY, pa.string())}
    known |= {f.name: f for f in schema if f.name != UID}
    if names is None:
        names = sorted({UID, KEY, *annotation_names(schema)})
    return pa.schema([known[name] for name in names if name in known])
