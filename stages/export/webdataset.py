"""WebDataset shards: tars that webdataset, open_clip and Hugging Face datasets read as they are."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal

import pyarrow as pa

from winnow.contracts.errors import RecipeError
from winnow.contracts.exporter import ExportContext, Exporter, FileSummary, Sink
from winnow.contracts.parameters import later, result
from winnow.contracts.registry import register_exporter
from winnow.stages.export import _columns, _finish, _json_values, _sidecars
from winnow.stages.export._columns import KEY, UID
from winnow.stages.export._layout import JSON_EXTENSION, TEXT_EXTENSION, Layout
from winnow.stages.export._sniff import payload_extension, preferred_to
from winnow.stages.export._tar import TarWriter

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def json_documents(batch: pa.RecordBatch, columns: Sequence[str]) -> list[bytes]:
    """Return one compact JSON object per row: keys sorted, UTF-8, no NaN."""
    names = sorted(columns)
    values = [_json_values.json_values(batch.column(name)) for name in names]
    encode = _ENCODER.encode
    return [
        encode(dict(zip(names, row, strict=True))).encode() for row in zip(*values, strict=True)
    ]


@dataclass(kw_only=True, slots=True)
class Tally:
    """What one tar holds."""

    extensions: Counter[str] = field(default_factory=Counter)
    payloads: dict[str, Counter[str]] = field(default_factory=dict)
    sidecars: Counter[str] = field(default_factory=Counter)
    pickles_omitted: int = 0


@register_exporter("webdataset", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class WebDataset(Exporter):
    """Write tars of ``<key>.<extension>``, ``<key>.txt`` and ``<key>.json``, sizes and a card.

    Reads:   uid: fixed_size_binary(16); key: string; the payload: large_binary, not null; of
             several, null where a row has not this one; ``text``: string, null = an empty .txt
             (the .json says null); every annotation column; members:
             list<struct<extension, path, offset, length, digest>>, sidecars of the source, written
             beside.
    Writes:  00000.tar ... with ``rows_per_file`` samples each (ustar, mode 0644, owner 0, time 0);
             sizes.json (samples per tar, for open_clip), files.json (sha256 of every file),
             croissant.json (Croissant 1.0), README.md (dataset card).
             Several payloads of a sample stand one after the other, each named by its format; of
             two images (or recordings) the later one is ``<key>.<column>.<extension>``, in every
             sample. A member that a sample has not is not written.
             .json: sorted keys, UTF-8; _json_values says how each Arrow type is written;
             references into files of the machine that read them are left out. A sidecar whose
             extension Winnow writes itself, or readers would take for the payload (a ``.png``
             beside a ``.webp``), becomes ``source.<extension>``; a pickle is left out and counted.
    Cost:    CPU; holds one row batch; one read per sidecar.
    Fails:   ShardError, not retryable, where a row has no payload or a sidecar has changed.

    payload: the column with the bytes; a list of columns; [] for text alone, .txt and .json;
        null = image, else audio, else the first there is, else text alone.
    require: of several payloads, a row must have "any" (at least one) or "all". The filter
        ``has_media`` drops the others first, so that the ledger has them.
    text: the caption's column; null = no .txt.
    columns: annotations in the .json; null = all. ``uid`` and ``key`` are always there.
    extension: "auto" names each payload by its first bytes; a fixed one ("jpg") makes every
    sample look alike, which decoders that look at the bytes (Pillow's) do not mind.
    seed, shuffle: the order of the rows, which the pipeline makes before they come here.
    """

    payload: str | tuple[str, ...] | None = result(None)
    text: str | None = result("text")
    columns: tuple[str, ...] | None = result(None)
    extension: str = result("auto")
    rows_per_file: int = result(10_000)
    seed: int = result(0)
    shuffle: Literal["bucket", "global"] = result("bucket")
    require: Literal["any", "all"] = later("any")

    def __post_init__(self) -> None:
        if self.rows_per_file < 1:
            msg = f"webdataset: rows_per_file={self.rows_per_file}; use 1 or more"
            raise RecipeError(msg)
        reserved = self.extension in (TEXT_EXTENSION, JSON_EXTENSION)
        reserved = reserved or _sidecars.is_pickle(self.extension, b"")
        if reserved or not re.fullmatch(r"[a-z0-9]{1,16}", self.extension):
            msg = (
                f"webdataset: extension={self.extension!r} cannot name a payload; use auto, or "
                f"lower-case letters and digits such as jpg (not txt, json or a pickle's)"
            )
            raise RecipeError(msg)
        _columns.check_payloads("webdataset", self.payload, self.extension)

    def payloads(self, columns: pa.Schema) -> list[str]:
        _columns.check_text(self.name, self.text, columns)
        _columns.check_annotations(self.name, self.columns or (), columns)
        return _columns.choose_payloads(self.name, self.payload, columns)

    def file_name(self, index: int) -> str:
        return f"{index:05d}.tar"

    def write_file(self, rows: Iterator[pa.RecordBatch], out: BinaryIO) -> Mapping[str, Any]:
        tar, tally, names = TarWriter(out), Tally(), list[str]()
        with _sidecars.SidecarReader() as reader:
            for batch in rows:
                names = self._json_columns(batch.schema)
                self._write_batch(batch, names, tar, reader, tally)
        tar.close()
        extra: dict[str, Any] = {
            "columns": names,
            "extensions": dict(sorted(tally.extensions.items())),
            "sidecars": dict(sorted(tally.sidecars.items())),
            "pickles_omitted": tally.pickles_omitted,
        }
        if names and len(tally.payloads) != 1:
            counts = tally.payloads.items()
            extra["payloads"] = {name: dict(sorted(counter.items())) for name, counter in counts}
        return extra

    def finish(self, files: Sequence[FileSummary], context: ExportContext, sink: Sink) -> None:
        layout = Layout.of(files, context, exporter=self.name, text=self.text)
        sizes = {f.name: f.num_rows for f in layout.data_files}
        with sink.create("sizes.json") as out:
            out.write(json.dumps(sizes, indent=1, sort_keys=True).encode() + b"\n")
        _finish.write_description(layout, context, sink)

    def _json_columns(self, schema: pa.Schema) -> list[str]:
        chosen = _columns.annotation_names(schema) if self.columns is None else self.columns
        return sorted({UID, KEY, *chosen})

    def _write_batch(
        self,
        batch: pa.RecordBatch,
        names: list[str],
        tar: TarWriter,
        reader: _sidecars.SidecarReader,
        tally: Tally,
    ) -> None:
        uids, keys = batch.column(UID).to_pylist(), batch.column(KEY).to_pylist()
        payloads = _columns.choose_payloads(self.name, self.payload, batch.schema)
        named = list(zip(payloads, _columns.own_names(payloads), strict=True))
        for name in payloads:
            tally.payloads.setdefault(name, Counter())
        media = _columns.row_payloads(batch, payloads, self.require, uids)
        texts = self._texts(batch)
        documents = json_documents(batch, names)
        members = _sidecars.members_of(batch)
        for row, text in enumerate(texts):
            taken = {JSON_EXTENSION} | ({TEXT_EXTENSION} if text is not None else set())
            stem = keys[row]
            for suffix, data in self._media(named, [column[row] for column in media], tally):
                tar.add(f"{stem}.{suffix}", data)
                taken |= preferred_to(suffix) | {suffix}
            tar.add(f"{stem}.{JSON_EXTENSION}", documents[row])
            if text is not None:
                tar.add(f"{stem}.{TEXT_EXTENSION}", text.encode())
            for member in members[row] if members else ():
                content = reader.read(member, uids[row])
                suffix = _sidecars.free_extension(member["extension"], taken)
                if _sidecars.is_pickle(suffix, content[:2]):
                    tally.pickles_omitted += 1
                    continue
                taken.add(suffix)
                tally.sidecars[suffix] += 1
                tar.add(f"{stem}.{suffix}", content)

    def _media(
        self,
        named: Sequence[tuple[str, bool]],
        data: Sequence[memoryview | None],
        tally: Tally,
    ) -> Iterator[tuple[str, memoryview]]:
        """Yield how each payload of one sample ends, and its bytes.

        named: each payload, and whether it goes by its own name."""
        taken = set[str]()
        for (name, own), view in zip(named, data, strict=True):
            if view is None:
                continue
            extension = payload_extension(self.extension, view)
            suffix = f"{name}.{extension}" if own or extension in taken else extension
            taken.add(suffix)
            tally.extensions[suffix] += 1
            tally.payloads[name][suffix] += 1
            yield suffix, view

    def _texts(self, batch: pa.RecordBatch) -> list[str | None]:
        """Captions; "" where there is none, None in a row where none is to be written."""
        if self.text is None:
            return [None] * batch.num_rows
        return [text or "" for text in batch.column(self.text).to_pylist()]
