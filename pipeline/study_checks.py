"""What is checked of a study's data before anything trains: a mistake must not cost a night."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from winnow.contracts.errors import SetupError
from winnow.pipeline.arrow_files import from_file
from winnow.pipeline.storage import Storage
from winnow.pipeline.study import Study
from winnow.pipeline.trial import Exported

MOST_PROBED = 10_000
_IDENTITIES = ("uid", "image_digest")
"""Equal in two rows: the same row, or the same bytes under another address."""


def check_sets(storage: Storage, study: Study, sets: Sequence[Exported]) -> None:
    """Refuse evaluation sets that cannot be measured as asked, or that share rows.

    Fails: SetupError for a column that is null everywhere, a set that is too small or of one class
    only, a primary metric that no evaluation gives, and rows of validation that are in test.
    """
    for data in sets:
        rows = _rows(storage, data, study.columns())
        for column in study.columns():
            if rows[column].null_count == len(rows):
                msg = f"the column {column!r} of the {data.name} set is null in every row"
                raise SetupError(msg)
        _check_metrics(study, data, rows)
    for index, data in enumerate(sets):
        _refuse_overlap(storage, sets[:index], data)


def check_apart(storage: Storage, sets: Sequence[Exported], trained_on: Iterable[Exported]) -> None:
    """Refuse rows, or pictures of equal bytes, that are in training and in an evaluation set."""
    for data in {d.digest: d for d in trained_on}.values():
        _refuse_overlap(storage, sets, data)


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


def _rows(storage: Storage, data: Exported, columns: Sequence[str]) -> pa.Table:
    file = storage.parquet(f"{data.folder}/manifest.parquet")
    text = [n for n in ("text",) if n in file.schema_arrow.names]
    table = from_file(file.read(columns=["key", *text, *columns])).slice(0, MOST_PROBED)
    caption = table["text"] if text else pa.nulls(len(table), pa.string())
    chosen: Mapping[str, pa.ChunkedArray] = {
        "key": table["key"],
        "caption": pc.fill_null(caption, ""),
        **{c: table[c] for c in columns},
    }
    return pa.table(dict(chosen))


def _check_metrics(study: Study, data: Exported, rows: pa.Table) -> None:
    if {e.subject for e in study.evaluations.values()} != {"embeddings"}:
        return
    from winnow.stages.evaluate._probe import probe

    try:
        names = probe(study.evaluations, rows)
    except SetupError as error:
        msg = f"the {data.name} set cannot be measured as asked: {error}"
        raise SetupError(msg) from None
    wanted = study.primary.metrics if study.primary else []
    unknown = [name for name in wanted if name not in names]
    if unknown:
        msg = f"primary.metrics: no evaluation gives {unknown[0]!r}; they give {', '.join(names)}"
        raise SetupError(msg)


def _refuse_overlap(storage: Storage, sets: Sequence[Exported], data: Exported) -> None:
    for held in sets:
        for column in _IDENTITIES:
            ours, theirs = (_values(storage, d, column) for d in (held, data))
            if ours is None or theirs is None:
                continue
            shared = pc.sum(pc.is_in(theirs, value_set=ours)).as_py() or 0
            if shared:
                what = "rows" if column == "uid" else "pictures of equal bytes"
                msg = (
                    f"{shared} {what} of {data.name} are in the {held.name} set too: a model would "
                    "be measured on what it learned. Divide the pool with the stage `split`, or "
                    "drop the rows that the stage `near_evaluation` finds"
                )
                raise SetupError(msg)


def _values(storage: Storage, data: Exported, column: str) -> pa.ChunkedArray | None:
    file = storage.parquet(f"{data.folder}/manifest.parquet")
    if column not in file.schema_arrow.names:
        return None
    return from_file(file.read(columns=[column]))[column].drop_null()
