"""Croissant 1.0 metadata (JSON-LD): what the files are, and which records are in them.

https://docs.mlcommons.org/croissant/docs/croissant-spec.html
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from winnow.contracts.exporter import ExportContext, FileSummary
from winnow.contracts.identity import UID_BYTES
from winnow.stages.export._columns import KEY, UID, media_kind
from winnow.stages.export._layout import Layout
from winnow.stages.export._sniff import (
    AUDIO_EXTENSIONS,
    IMAGE_EXTENSIONS,
    last_extension,
    media_type,
)

_TERMS = (
    "citeAs", "column", "extract", "field", "fileProperty", "fileObject", "fileSet", "format",
    "includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet",
    "references", "regex", "repeated", "replace", "samplingRate", "separator", "source",
    "subField", "transform", "equivalentProperty",
)  # fmt: skip
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{term: f"cr:{term}" for term in _TERMS},
}
TERMS = {"image": "sc:ImageObject", "audio": "sc:AudioObject", "media": "sc:Text"}
TAR, PARQUET = "application/x-tar", "application/x-parquet"
_FORMATS = {"parquet": PARQUET, "llava": "application/json"}

Json = dict[str, Any]


def croissant(layout: Layout, context: ExportContext) -> Json:
    """Return the JSON-LD document of one export."""
    media = _FORMATS.get(layout.format, TAR)
    distribution = [_file(f, media) for f in layout.data_files]
    records: list[Json] = []
    if layout.data_files:
        described = {"parquet": _parquet_records, "llava": _llava_records}
        sets, records = described.get(layout.format, _tar_records)(layout)
        distribution += sets
    if layout.manifest is not None:
        distribution.append(_file(layout.manifest, PARQUET))
        records.append(_manifest_records(context.schema, layout.manifest.name))
    document: Json = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": [
            "http://mlcommons.org/croissant/1.0",
            "http://mlcommons.org/croissant/RAI/1.0",
        ],
        "name": context.name,
        "description": context.description
        or f"{context.name}, made by the recipe {context.recipe_name}.",
        "version": f"1.0.0+{context.selection}" if context.selection.isalnum() else "1.0.0",
        "rai:dataPreprocessingProtocol": [
            f"{step['filter']}: {step.get('description', '')}".rstrip(": ")
            for step in context.funnel
        ],
        "distribution": distribution,
        "recordSet": records if layout.data_files else [],
    }
    if context.license:
        document["license"] = context.license
    return document


def _file(file: FileSummary, media: str) -> Json:
    return {
        "@type": "cr:FileObject",
        "@id": file.name,
        "name": file.name,
        "contentUrl": file.name,
        "contentSize": f"{file.size_bytes} B",
        "encodingFormat": media,
        "sha256": file.sha256,
    }


def _members(name: str, layout: Layout, includes: list[str], extensions: Iterable[str]) -> Json:
    return {
        "@type": "cr:FileSet",
        "@id": name,
        "name": name,
        "containedIn": [{"@id": f.name} for f in layout.data_files],
        "encodingFormat": list(dict.fromkeys(map(media_type, extensions))),
        "includes": includes,
    }


def _tar_records(layout: Layout) -> tuple[list[Json], list[Json]]:
    """Samples: the media in the tars, joined with the manifest by key.

    Texts and annotations are read from the manifest: mlcroissant cannot look into the .json members
    of an archive, and finds nothing once an archive has a second FileSet.
    """
    if layout.payloads is not None:
        return _several_tar_records(layout)
    kind = _kind(list(layout.extensions))
    sets = [_members(kind, layout, _patterns(layout.payload, layout), layout.extensions)]
    fields = _member_fields("samples", kind, kind)
    if layout.manifest is not None:
        name = layout.manifest.name
        fields[0]["references"] = {"fileObject": {"@id": name}, "extract": {"column": KEY}}
        columns = [c for c in layout.columns if c.name not in (KEY, kind)]
        fields += _annotations("samples", columns, {"fileObject": {"@id": name}})
    return sets, [_record_set("samples", "One sample of the tars.", fields)]


def _several_tar_records(layout: Layout) -> tuple[list[Json], list[Json]]:
    """A set of files and of records per payload, each with the key that joins them.

    A sample may lack a payload, so no set of records has them all; of text alone there is only the
    manifest, for the reason that ``_tar_records`` gives.
    """
    sets, records = [], []
    for name, counts in layout.media.items():
        if not counts:
            continue
        extensions = [last_extension(e) for e in counts]
        sets.append(_members(name, layout, _patterns(name, layout), extensions))
        fields = _member_fields(f"{name}_samples", name, _kind(extensions))
        text = f"The {name} of every sample of the tars that has one."
        records.append(_record_set(f"{name}_samples", text, fields))
    return sets, records


def _member_fields(record_set: str, members: str, kind: str) -> list[Json]:
    """Return two fields: a member's key, with which its name begins, and its bytes."""
    source = {"fileSet": {"@id": members}}
    stem = {"regex": r"^([^.]+)(?:\..*)?$"}
    key = {**source, "extract": {"fileProperty": "fullpath"}, "transform": stem}
    content = {**source, "extract": {"fileProperty": "content"}}
    return [
        _field(record_set, KEY, "sc:Text", key),
        _field(record_set, members, TERMS[kind], content),
    ]


def _patterns(name: str, layout: Layout) -> list[str]:
    """Return globs for the members of one payload, of no other and no sidecar: ``*.wav`` would be
    ``<key>.audio_2.wav`` too, so there the stem has as many characters as a uid."""
    others = [e for n, counts in layout.media.items() if n != name for e in counts]
    others += layout.sidecars
    return [
        ("?" * 2 * UID_BYTES if any(o.endswith(f".{e}") for o in others) else "*") + f".{e}"
        for e in layout.media[name]
    ]


def _llava_records(layout: Layout) -> tuple[list[Json], list[Json]]:
    """The parts' entries; the conversations are nested, which Croissant 1.0 has no type for."""
    sets: list[Json] = [
        {
            "@type": "cr:FileSet",
            "@id": "parts",
            "name": "parts",
            "encodingFormat": _FORMATS["llava"],
            "includes": f"[0-9]*{layout.suffix}",
        }
    ]
    fields = [
        _field("samples", name, "sc:Text",
               {"fileSet": {"@id": "parts"}, "extract": {"jsonPath": f"$[*].{name}"}})
        for name in ("id", "image")
    ]  # fmt: skip
    records = _record_set("samples", "One entry of llava.json.", fields)
    return sets, [records | {"key": {"@id": "samples/id"}}]


def _parquet_records(layout: Layout) -> tuple[list[Json], list[Json]]:
    source = {"fileSet": {"@id": "rows"}}
    sets = [
        {
            "@type": "cr:FileSet",
            "@id": "rows",
            "name": "rows",
            "encodingFormat": PARQUET,
            "includes": f"[0-9]*{layout.suffix}",
        }
    ]
    fields = _annotations("samples", layout.columns, source)
    for name in layout.media:
        media = {**source, "extract": {"column": name}, "transform": {"jsonPath": "bytes"}}
        fields.append(_field("samples", name, TERMS[media_kind(name)], media))
    return sets, [_record_set("samples", "One row of the Parquet files.", fields)]


def _manifest_records(schema: pa.Schema, name: str) -> Json:
    fields = _annotations("manifest", schema, {"fileObject": {"@id": name}})
    return _record_set("manifest", "Every annotation of every sample, without the media.", fields)


def _record_set(name: str, description: str, fields: list[Json]) -> Json:
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": description,
        "key": {"@id": f"{name}/{KEY}"},
        "field": fields,
    }


def _field(record_set: str, name: str, data_type: str, source: Json) -> Json:
    return {
        "@type": "cr:Field",
        "@id": f"{record_set}/{name}",
        "name": name,
        "dataType": data_type,
        "source": source,
    }


def _annotations(record_set: str, columns: Iterable[pa.Field], source: Json) -> list[Json]:
    """Return the fields of columns; none for structs, maps and lists of lists, nor for the uid:
    it is the key without its suffix, and mlcroissant cannot read UUIDs."""
    fields = []
    for column in columns:
        if column.name == UID:
            continue
        repeated = _is_list(column.type)
        term = data_type(column.type.value_type if repeated else column.type)
        if term is not None:
            extract = {**source, "extract": {"column": column.name}}
            fields.append(_field(record_set, column.name, term, extract))
            if repeated:
                fields[-1]["repeated"] = True
    return fields


def data_type(kind: pa.DataType) -> str | None:
    """Return the Croissant type of a scalar Arrow type; None for a nested one."""
    if pt.is_dictionary(kind):
        return data_type(kind.value_type)
    if pt.is_boolean(kind):
        return "sc:Boolean"
    if pt.is_integer(kind) or pt.is_duration(kind):
        return "sc:Integer"
    if pt.is_floating(kind) or pt.is_decimal(kind):
        return "sc:Float"
    if pt.is_date(kind):
        return "sc:Date"
    if pt.is_timestamp(kind):
        return "sc:DateTime"
    return None if pt.is_nested(kind) else "sc:Text"


def _is_list(kind: pa.DataType) -> bool:
    return bool(pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind))


def _kind(extensions: list[str]) -> str:
    for kind, known in (("image", IMAGE_EXTENSIONS), ("audio", AUDIO_EXTENSIONS)):
        if extensions and known.issuperset(extensions):
            return kind
    return "media"
