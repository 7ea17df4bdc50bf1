"""What describes a selection without training anything: means of columns, variety of captions.

None of it is a result. It says what the arms were made of.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from winnow.contracts.errors import SetupError
from winnow.pipeline.draw import MEMORY_LIMIT
from winnow.pipeline.recipe import Recipe
from winnow.pipeline.storage import Storage
from winnow.pipeline.trial import Exported

Described = dict[str, float | None]


def describe(
    storage: Storage, data: Exported, recipe: Recipe, columns: Sequence[str], choices: str | None
) -> Described:
    """Return what describes a selection: name -> number.

    recipe: the one that exported it. columns: means of these. choices: the column with several
    captions a row, where the trainer reads one.
    """
    found = {f"mean {name}": value for name, value in means(storage, data, columns).items()}
    texts = [getattr(entry.exporter, "text", None) for entry in recipe.exports]
    column = choices or next((text for text in texts if text), None)
    return found | (variety(storage, data, column) if column else {})


def variety(storage: Storage, data: Exported, column: str) -> Described:
    """Return how many different captions an export has, and their entropy in bits.

    ``column``: texts, or lists of texts. Entropy of the distribution of whole captions (Shannon
    1948): at most log2 of their number, lower where captions repeat. The captions go through DuckDB
    batch by batch; the driver holds none of them.
    """
    import duckdb

    file = storage.parquet(f"{data.folder}/manifest.parquet")
    if column not in file.schema_arrow.names:
        return {"unique captions": 0.0, "caption entropy (bits)": None}
    field = file.schema_arrow.field(column)
    many = pa.types.is_list(field.type) or pa.types.is_large_list(field.type)
    texts = pa.RecordBatchReader.from_batches(
        pa.schema([field.with_name("text")]),
        (b.rename_columns(["text"]) for b in file.iter_batches(columns=[column])),
    )
    with (
        tempfile.TemporaryDirectory() as spill,
        duckdb.connect(
            ":memory:", config={"memory_limit": MEMORY_LIMIT, "temp_directory": spill}
        ) as database,
    ):
        database.register("rows", texts)
        unique, bits = database.execute(
            f"""
            with texts as (select {"unnest(text)" if many else "text"} as text from rows),
            counts as (select count(*) as n from texts where text <> '' group by text),
            shares as (select n / sum(n) over () as p from counts)
            select count(*), -sum(p * log2(p)) from shares
            """
        ).fetchone() or (0, None)
    bits = None if bits is None else bits + 0.0  # a single caption has -0.0
    return {"unique captions": float(unique), "caption entropy (bits)": bits}


def check_described(storage: Storage, columns: Sequence[str], data: Exported) -> None:
    """Refuse columns that have no mean."""
    schema = storage.parquet(f"{data.folder}/manifest.parquet").schema_arrow
    for column in columns:
        if column not in schema.names:
            msg = f"describe: there is no column {column!r}; there is {', '.join(schema.names)}"
            raise SetupError(msg)
        kind = schema.field(column).type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            msg = f"describe: {column} is a {kind}, which has no mean; name a number's column"
            raise SetupError(msg)


def means(storage: Storage, data: Exported, columns: Sequence[str]) -> dict[str, float | None]:
    """Return the mean of some columns over a selection: it describes it, and measures no model."""
    if not columns:
        return {}
    table = storage.parquet(f"{data.folder}/manifest.parquet").read(columns=list(columns))
    return {c: pc.mean(table[c].cast(pa.float64())).as_py() for c in columns}
