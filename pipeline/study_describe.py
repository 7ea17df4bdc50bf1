"""What describes a selection without training anything: means of columns, variety of captions.

None of it is a result. It says what the arms were made of.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from winnow.contracts.errors import SetupError
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
    texts = [getattr(entry.exporter, "text", None) for entry in recipe.exports]
    found = {f"mean {name}": value for name, value in means(storage, data, columns).items()}
    for column in [choices or next((t for t in texts if t), None)]:
        found |= variety(captions(storage, data, column)) if column else {}
    return found


def variety(texts: Iterable[str]) -> Described:
    """Return how many different captions there are, and their entropy in bits.

    Entropy of the distribution of whole captions (Shannon 1948): at most log2 of their number,
    lower where captions repeat.
    """
    counts = Counter(texts)
    total = sum(counts.values())
    shares = [n / total for n in counts.values()]
    return {
        "unique captions": float(len(counts)),
        "caption entropy (bits)": -sum(p * math.log2(p) for p in shares) + 0.0 if total else None,
    }


def captions(storage: Storage, data: Exported, column: str) -> list[str]:
    """Return the captions of an export, from a column of texts or of lists of texts."""
    file = storage.parquet(f"{data.folder}/manifest.parquet")
    if column not in file.schema_arrow.names:
        return []
    values = file.read(columns=[column])[column].combine_chunks()
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        values = pc.list_flatten(values)
    return [text for text in values.to_pylist() if text]


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
