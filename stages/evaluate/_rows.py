"""The samples that an evaluation can use: those that have what it needs, in the order of keys."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from winnow.contracts.errors import SetupError
from winnow.contracts.trial import Embeddings, Score

Vectors = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Samples with a finite vector in every modality asked for, sorted by key.

    vectors: float32 (N, D) unit vectors per modality, in the order asked for. table: N rows of
    ``Embeddings.rows``. num_left_out: samples that lack one of the modalities, of num_samples.
    """

    vectors: tuple[Vectors, ...]
    table: pa.Table
    num_left_out: int
    num_samples: int

    @property
    def keys(self) -> list[str]:
        """The samples' keys, rising."""
        return self.table["key"].to_pylist()

    def __len__(self) -> int:
        return self.table.num_rows

    def take(self, chosen: Indices) -> Rows:
        """Return some of the rows, in the order given; the others are not counted as left out."""
        return Rows(
            vectors=tuple(v[chosen] for v in self.vectors),
            table=self.table.take(pa.array(chosen)),
            num_left_out=self.num_left_out,
            num_samples=self.num_samples,
        )

    def left_out_score(self, who: str, others: int = 0) -> Score:
        """Return how many samples could not be measured: these, and ``others``."""
        left_out = self.num_left_out + others
        return count_score(f"{who}.num_left_out", left_out, self.num_samples)


def count_score(metric: str, count: int, num_items: int) -> Score:
    """Return a score that only says how many of ``num_items`` there are."""
    return Score(metric=metric, value=float(count), num_items=num_items, higher_is_better=None)


def complete_rows(who: str, subject: Embeddings, modalities: Sequence[str], *, least: int) -> Rows:
    """Return the samples that have all ``modalities``.

    A vector with a value that is not finite is a missing modality. Sorted by key, so that the
    order of the samples in the set cannot change a result.

    Fails: SetupError where the model has no such modality, keys repeat, arrays and rows do not
    fit, or fewer than ``least`` samples are left.
    """
    num_rows = subject.rows.num_rows
    usable = np.ones(num_rows, bool)
    for name in modalities:
        vectors = subject.vectors.get(name)
        if vectors is None:
            msg = f"{who}: the model has no {name} vectors; it has {', '.join(subject.vectors)}"
            raise SetupError(msg)
        if vectors.ndim != 2 or len(vectors) != num_rows:
            msg = f"{who}: {name} vectors of shape {vectors.shape} for {num_rows} samples"
            raise SetupError(msg)
        usable &= np.isfinite(vectors).all(axis=1)
    keys = subject.rows["key"]
    if pc.count_distinct(keys, mode="all").as_py() < num_rows:
        msg = f"{who}: some of the set's {num_rows} samples have the same key; export the set anew"
        raise SetupError(msg)
    order = pc.sort_indices(keys).to_numpy().astype(np.int64)
    order = order[usable[order]]
    if len(order) < least:
        has = " and ".join(modalities)
        msg = f"{who}: {len(order)} of {num_rows} samples have {has}; it takes {least} or more"
        raise SetupError(msg)
    return Rows(
        vectors=tuple(subject.vectors[name][order] for name in modalities),
        table=subject.rows.take(pa.array(order)),
        num_left_out=num_rows - len(order),
        num_samples=num_rows,
    )


def column_values(who: str, table: pa.Table, name: str) -> list[object]:
    """Return a column's values, one per row, null as None.

    Fails: SetupError where there is no such column, or no row has a value in it.
    """
    if name not in table.column_names:
        near = difflib.get_close_matches(name, table.column_names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {table.column_names}"
        msg = f"{who}: the samples have no column {name!r}; {hint}"
        raise SetupError(msg)
    column = table[name]
    if column.null_count == len(column):
        msg = f"{who}: column {name!r} is null in all {len(column)} samples; export it with the set"
        raise SetupError(msg)
    values: list[object] = column.to_pylist()
    return values


def text_values(who: str, table: pa.Table, name: str) -> list[str | None]:
    """Return a column as stripped texts; white space alone is None. Numbers become their digits.

    Fails: as ``column_values``; SetupError where the column holds lists or structures.
    """
    values = column_values(who, table, name)
    if pa.types.is_nested(table.schema.field(name).type):
        msg = f"{who}: column {name!r} holds {table.schema.field(name).type}; use one of texts"
        raise SetupError(msg)
    return [(shown(v).strip() or None) if v is not None else None for v in values]


def shown(value: object) -> str:
    """Return a scalar as it reads in JSON, texts without quotes."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def shuffled(keys: Sequence[str], seed: int, purpose: str) -> Indices:
    """Return the rows' indices in an order that depends on nothing but seed, purpose and keys."""
    head = f"{seed}\0{purpose}\0".encode()
    digests = [blake2b(head + key.encode(), digest_size=16).digest() for key in keys]
    return np.array(sorted(range(len(keys)), key=digests.__getitem__), np.int64)


def caption_groups(captions: Sequence[str | None]) -> Indices:
    """Return a number per row, equal where the stripped captions are.

    A row without a caption is a group of its own.
    """
    numbers: dict[str | int, int] = {}
    names = [(caption or "").strip() or row for row, caption in enumerate(captions)]
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)
