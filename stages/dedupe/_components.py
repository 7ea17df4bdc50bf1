"""Connected components of rows that share values: which rows must not be separated."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from winnow.contracts.identity import UID_BYTES
from winnow.stages.dedupe._columns import big_endian_words, octets
from winnow.stages.dedupe._hamming import Indices, Words

Rows = npt.NDArray[np.int64]


def value_keys(column: pa.ChunkedArray) -> tuple[Rows, Words]:
    """Return the rows with a value and the values as (N, 2) words; equal words are equal values.

    Lists give one entry per element. Integers are themselves, anything else is its BLAKE2b-128.
    """
    if pa.types.is_list(column.type):
        lists = pa.chunked_array([column.combine_chunks()], column.type)
        rows, inner = value_keys(pc.list_flatten(lists))
        return np.asarray(pc.list_parent_indices(lists).to_numpy(), np.int64)[rows], inner
    rows = np.flatnonzero(column.is_valid().to_numpy())
    values = pc.drop_null(column)
    if pa.types.is_integer(column.type):
        keys = np.zeros((len(rows), 2), np.uint64)
        keys[:, 1] = values.to_numpy().astype(np.int64).view(np.uint64)
        return rows, keys
    if column.type == pa.binary(UID_BYTES):
        return rows, big_endian_words(octets(values, UID_BYTES))
    coded = values.combine_chunks().dictionary_encode()
    raw = coded.dictionary.cast(pa.large_binary()).to_pylist()
    digests = b"".join(hashlib.blake2b(value, digest_size=UID_BYTES).digest() for value in raw)
    words = big_endian_words(np.frombuffer(digests, np.uint8).reshape(-1, UID_BYTES))
    return rows, words[coded.indices.to_numpy()]


def links(rows: Rows, keys: Words) -> tuple[Rows, Rows]:
    """Return pairs of rows that connect all rows of each key, one fewer than the key has rows."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    same = (keys[order[1:]] == keys[order[:-1]]).all(axis=1)
    left, right = rows[order[:-1][same]], rows[order[1:][same]]
    different = left != right
    return left[different], right[different]


def components(num_rows: int, pairs: list[tuple[Rows, Rows]]) -> Indices:
    """Return the number of the component of every row, from 0 without gaps."""
    if not num_rows:
        return np.empty(0, np.int64)
    from scipy import sparse
    from scipy.sparse import csgraph

    none = np.empty(0, np.int64)
    left = np.concatenate([none, *(pair[0] for pair in pairs)])
    right = np.concatenate([none, *(pair[1] for pair in pairs)])
    graph = sparse.coo_matrix(
        (np.ones(len(left), bool), (left, right)), shape=(num_rows, num_rows)
    ).tocsr()
    _, labels = csgraph.connected_components(graph, directed=False)
    return np.asarray(labels, np.int64)


def least_rows(labels: Indices, uids: Words) -> Indices:
    """Return for every component the row with the least uid."""
    order = np.lexsort((uids[:, 1], uids[:, 0]))
    _, first = np.unique(labels[order], return_index=True)
    return order[first]
