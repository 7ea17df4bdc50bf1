"""Readers of tables: parquet, csv, tsv, jsonl and txt as streams of Arrow batches.

Types: those of a parquet file, simplified (``plain_type``); strings for text formats, unless
``types`` says otherwise. Memory is one batch, for remote parquet one row group.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Literal, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from winnow.contracts.errors import SetupError
from winnow.stages.sources._files import is_local, open_file, printable
from winnow.stages.sources._text_rows import (
    CORRUPT,
    Row,
    TextFormat,
    TextOptions,
    TextTable,
    fail,
    open_stream,
)

TableFormat = Literal["parquet", "csv", "tsv", "jsonl", "txt"]

BATCH_ROWS = 4096
EXTENSIONS: dict[str, TableFormat] = {
    "parquet": "parquet",
    "pq": "parquet",
    "csv": "csv",
    "tsv": "tsv",
    "tab": "tsv",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "txt": "txt",
}
COMPRESSIONS = ("gz", "bz2", "xz", "zst")
TYPES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "bool": pa.bool_(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us"),
    "timestamp_utc": pa.timestamp("us", "UTC"),
}
"""What ``types`` may say of a column."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TableOptions:
    """How to read tables: see UrlTable, whose parameters these are."""

    format: TableFormat | None = None
    text: TextOptions = field(default_factory=TextOptions)
    bad_rows: Literal["error", "null"] = "error"


def extension_format(path: str) -> TableFormat | None:
    """Return the format that a file's extension says, compression left out."""
    parts = path.lower().split(".")
    if parts[-1] in COMPRESSIONS:
        parts.pop()
    return EXTENSIONS.get(parts[-1]) if len(parts) > 1 else None


def format_of(path: str, options: TableOptions) -> TableFormat:
    """Return the format of a file; raise SetupError where nothing says it."""
    found = options.format or extension_format(path)
    if found is None:
        msg = (
            f"{printable(path)}: the extension says no format; set format to one of "
            f"{', '.join(dict.fromkeys(EXTENSIONS.values()))}"
        )
        raise SetupError(msg)
    return found


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type that Winnow keeps a column in: large, view and dictionary strings become
    string, large lists become lists, extension types their storage, null string; others stay."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(plain_type(kind.value_type), kind.list_size)
    if pa.types.is_map(kind):
        return pa.map_(plain_type(kind.key_type), plain_type(kind.item_type))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(plain_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(f.name, plain_type(f.type)) for f in kind])
    return kind


def header(path: str, options: TableOptions) -> pa.Schema | None:
    """Return the columns of a file and their plain types; None for a text file with no line."""
    form = format_of(path, options)
    if form == "parquet":
        with _parquet(path) as file:
            columns = file.schema_arrow
            for name in columns.names:
                if columns.names.count(name) > 1:
                    fail(path, f"two columns are called {name!r}")
            return pa.schema([pa.field(f.name, plain_type(f.type)) for f in columns])
    with contextlib.closing(TextTable(path, form, options.text)) as table:
        names = table.columns
    return pa.schema([(name, pa.string()) for name in names]) if names else None


def batches(
    path: str, options: TableOptions, wanted: pa.Schema, known: frozenset[str] | None
) -> Iterator[pa.RecordBatch]:
    """Yield ``wanted``, columns by name, of every row of a file, in order.

    ``known``: the columns a file may have; others fail it. None: others are ignored.
    Raises ShardError, with the line or row, where a row cannot be read and ``bad_rows="error"``.
    """
    form = format_of(path, options)
    if form == "parquet":
        yield from _parquet_batches(path, options, wanted, known)
    else:
        yield from _text_batches(path, form, options, wanted, known)


def _text_batches(
    path: str,
    form: TextFormat,
    options: TableOptions,
    wanted: pa.Schema,
    known: frozenset[str] | None,
) -> Iterator[pa.RecordBatch]:
    with contextlib.closing(TextTable(path, form, options.text)) as table:
        if not table.columns and form != "jsonl":  # which may hold nothing but bad rows
            return
        # A jsonl row may leave a key out, and so may all rows of a file: null.
        _check_columns(path, table.columns, () if form == "jsonl" else wanted.names, known)
        rows: list[Row] = []
        for row in table.rows(wanted.names, known):
            if row.problem and options.bad_rows == "error":
                fail(path, f"{row.problem}; or set bad_rows: 'null'", line=row.line)
            rows.append(row)
            if len(rows) == BATCH_ROWS:
                yield _text_batch(path, rows, wanted, options)
                rows = []
        if rows:
            yield _text_batch(path, rows, wanted, options)


def _text_batch(
    path: str, rows: Sequence[Row], wanted: pa.Schema, options: TableOptions
) -> pa.RecordBatch:
    nothing = (None,) * len(wanted)
    values = zip(*(nothing if row.problem else row.values for row in rows), strict=True)
    columns = []
    for column, kind in zip(values, wanted, strict=True):
        strings = whole_strings(column)
        try:
            columns.append(strings.cast(kind.type))
        except pa.ArrowInvalid:
            columns.append(_cast_each(path, rows, strings, kind, options))
        except pa.ArrowNotImplementedError:
            fail(
                path, f"column {kind.name!r}: text cannot become {kind.type}, as in the first file"
            )
    return pa.RecordBatch.from_arrays(columns, schema=wanted)


def whole_strings(values: Sequence[str | None]) -> pa.StringArray:
    """Return strings as Arrow takes them: half a pair of surrogates becomes U+FFFD."""
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError:
        # JSON can hold half of a surrogate pair (a caption cut within an emoji); UTF-8 cannot.
        whole = [
            v and v.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for v in values
        ]
        return pa.array(whole, pa.string())


def _cast_each(
    path: str, rows: Sequence[Row], strings: pa.Array, kind: pa.Field, options: TableOptions
) -> pa.Array:
    # As Arrow's values: Python has no year 0 and none after 9999.
    pieces: list[pa.Array] = []
    for at, row in enumerate(rows):
        value = strings.slice(at, 1)
        try:
            pieces.append(value.cast(kind.type))
        except pa.ArrowInvalid:
            if options.bad_rows == "error":
                problem = f"{kind.name}: {value[0].as_py()!r} is not a {kind.type}"
                fail(path, f"{problem}; or set bad_rows: 'null'", line=row.line)
            pieces.append(pa.nulls(1, kind.type))
    return pa.concat_arrays(pieces)


def _check_columns(
    path: str, names: Sequence[str], wanted: Sequence[str], known: frozenset[str] | None
) -> None:
    missing = [name for name in wanted if name not in names]
    if missing:
        problem = (
            f"there is no column {missing[0]!r}, which the first file has; the columns here are "
            f"{', '.join(names)}; list the columns that all files have in `keep`"
        )
        fail(path, problem)
    extra = sorted(set(names) - known) if known is not None else []
    if extra:
        fail(path, f"the column {extra[0]!r} is not in the first file; list the columns in `keep`")


@contextlib.contextmanager
def _parquet(path: str) -> Iterator[pq.ParquetFile]:
    """Open a parquet file; a compressed one is unpacked into a temporary file first."""
    with contextlib.ExitStack() as stack:
        try:
            raw = stack.enter_context(_parquet_stream(path))
            # Locally, columns are streamed page by page; remotely, each row group in few reads.
            local = is_local(path)
            reader = pq.ParquetFile(raw, buffer_size=1 << 20 if local else 0, pre_buffer=not local)
        except (*CORRUPT, pa.ArrowNotImplementedError, UnicodeDecodeError) as error:
            fail(path, f"not a whole parquet file: {error}")
        except OSError as error:
            fail(path, f"cannot open: {error}", retryable=not isinstance(error, FileNotFoundError))
        yield stack.enter_context(reader)


def _parquet_stream(path: str) -> BinaryIO:
    if path.rsplit(".", 1)[-1].lower() not in COMPRESSIONS:
        return open_file(path)
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    with open_stream(path) as packed:
        shutil.copyfileobj(packed, unpacked)
    unpacked.seek(0)
    return cast(BinaryIO, unpacked)


def _parquet_batches(
    path: str, options: TableOptions, wanted: pa.Schema, known: frozenset[str] | None
) -> Iterator[pa.RecordBatch]:
    with _parquet(path) as file:
        _check_columns(path, file.schema_arrow.names, wanted.names, known)
        row = 1
        for group in range(file.num_row_groups):
            # One group at a time: with pre_buffer, Arrow would fetch all groups ahead.
            stream = file.iter_batches(BATCH_ROWS, row_groups=[group], columns=wanted.names)
            while (batch := _next_batch(path, stream, row)) is not None:
                columns = {name: batch.column(name) for name in wanted.names}
                yield _plain_batch(path, columns, batch.num_rows, wanted, options, row)
                row += batch.num_rows


def _next_batch(path: str, stream: Iterator[pa.RecordBatch], row: int) -> pa.RecordBatch | None:
    try:
        return next(stream, None)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        fail(path, f"corrupt after row {row - 1}: {error}")
    except OSError as error:
        # Arrow reports a damaged page as an OSError too: another try is cheap.
        fail(path, f"cannot read on after row {row - 1}: {error}", retryable=True)


def _plain_batch(
    path: str,
    columns: Mapping[str, pa.Array],
    num_rows: int,
    wanted: pa.Schema,
    options: TableOptions,
    first_row: int,
) -> pa.RecordBatch:
    arrays = []
    for kind in wanted:
        try:
            array = _to_type(columns[kind.name], kind.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            array = _mend(path, columns[kind.name], kind, options, first_row, error)
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, schema=wanted)


def _to_type(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if array.type != kind:
        array = pc.cast(array, kind)
    array.validate(full=True)  # parquet does not promise that its strings are UTF-8
    return array


def _mend(
    path: str,
    array: pa.Array,
    kind: pa.Field,
    options: TableOptions,
    first_row: int,
    error: pa.ArrowException,
) -> pa.Array:
    """Find the rows that cannot be read: fail at the first, or make them null."""
    pieces = []
    for i in range(len(array)):
        try:
            pieces.append(_to_type(array.slice(i, 1), kind.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as bad:
            if options.bad_rows == "error":
                fail(
                    path,
                    f"row {first_row + i}, column {kind.name!r}: {bad}; or set bad_rows: 'null'",
                )
            pieces.append(pa.nulls(1, kind.type))
    if not pieces:
        fail(path, f"column {kind.name!r} cannot become {kind.type}: {error}")
    return pa.concat_arrays(pieces)
