"""What is checked of a study's data before anything trains: a mistake must not cost a night."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

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
    held = [_identities(storage, data) for data in sets]
    for index, theirs in enumerate(held):
        _refuse_overlap(held[:index], theirs)


def check_apart(storage: Storage, sets: Sequence[Exported], trained_on: Iterable[Exported]) -> None:
    """Refuse rows, or pictures of equal bytes, that are in training and in an evaluation set."""
    held = [_identities(storage, data) for data in sets]
    for data in {d.digest: d for d in trained_on}.values():
        _refuse_overlap(held, _identities(storage, data))


def check_judged(
    storage: Storage, learned: Sequence[tuple[str, Exported]], arms: Iterable[Exported]
) -> None:
    """Refuse arms with rows, or pictures of equal bytes, that trained a model which judged them.

    learned: what each model learned from whose recipe is not the study's.
    """
    held = [(name, _identities(storage, data)) for name, data in learned]
    for data in {d.digest: d for d in arms}.values() if held else ():
        theirs = _identities(storage, data)
        for name, own in held:
            shared, what = _shared(own, theirs)
            if shared:
                msg = (
                    f"{shared} {what} of {data.name} trained the model {name}, which judges or "
                    "describes them; take them out of its recipe, or train it on the pool with "
                    "folds"
                )
                raise SetupError(msg)


def _rows(storage: Storage, data: Exported, columns: Sequence[str]) -> pa.Table:
    file = storage.parquet(f"{data.folder}/manifest.parquet")
    text = ["text"] if "text" in file.schema_arrow.names else []
    table = from_file(file.read(columns=["key", *text, *columns])).slice(0, MOST_PROBED)
    caption = table["text"] if text else pa.nulls(len(table), pa.string())
    read = {c: table[c] for c in columns}
    return pa.table({"key": table["key"], "caption": pc.fill_null(caption, ""), **read})


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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Identities:
    """What tells the rows of a dataset apart: those of _IDENTITIES that its manifest has."""

    name: str
    columns: Mapping[str, pa.ChunkedArray]


def _identities(storage: Storage, data: Exported) -> _Identities:
    file = storage.parquet(f"{data.folder}/manifest.parquet")
    table = from_file(file.read([c for c in _IDENTITIES if c in file.schema_arrow.names]))
    columns = {name: table[name].drop_null() for name in table.column_names}
    return _Identities(name=data.name, columns=columns)


def _refuse_overlap(held: Iterable[_Identities], data: _Identities) -> None:
    for other in held:
        shared, what = _shared(other, data)
        if shared:
            msg = (
                f"{shared} {what} of {data.name} are in the {other.name} set too: a model "
                "would be measured on what it learned. Divide the pool with the stage `split`, "
                "or drop the rows that the stage `near_evaluation` finds"
            )
            raise SetupError(msg)


def _shared(one: _Identities, other: _Identities) -> tuple[int, str]:
    """Return how many rows of ``other`` are in ``one``, and what is equal in them."""
    for column in [c for c in _IDENTITIES if c in one.columns and c in other.columns]:
        found = pc.is_in(other.columns[column], value_set=one.columns[column])
        shared = pc.sum(found).as_py() or 0
        if shared:
            return int(shared), "rows" if column == "uid" else "pictures of equal bytes"
    return 0, ""
