"""Fixed-width Arrow columns as numpy arrays and back, without copying where Arrow allows it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from winnow.stages.dedupe._hamming import Indices, Words

Octets = npt.NDArray[np.uint8]


def valid_rows(column: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """Return which rows are not null."""
    return column.is_valid().to_numpy().astype(bool)


def octets(column: pa.ChunkedArray, width: int) -> Octets:
    """Return a fixed_size_binary column as (rows, width) bytes; undefined where null."""
    parts = [_chunk_octets(chunk, width) for chunk in column.chunks]
    return np.concatenate(parts) if parts else np.empty((0, width), np.uint8)


def _chunk_octets(chunk: pa.Array, width: int) -> Octets:
    if not len(chunk):
        return np.empty((0, width), np.uint8)
    data = np.frombuffer(chunk.buffers()[1], np.uint8)
    first = chunk.offset * width
    return data[first : first + len(chunk) * width].reshape(-1, width)


def fixed_binary(rows: Octets, *, null: npt.NDArray[np.bool_] | None = None) -> pa.Array:
    """Return (rows, width) bytes as a fixed_size_binary column, null where ``null``."""
    valid = None if null is None else pa.py_buffer(np.packbits(~null, bitorder="little"))
    buffers = [valid, pa.py_buffer(np.ascontiguousarray(rows))]
    return pa.Array.from_buffers(pa.binary(rows.shape[1]), len(rows), buffers)


def big_endian_words(rows: Octets) -> npt.NDArray[np.uint64]:
    """Return (rows, 8 * W) bytes as (rows, W) integers that order as the bytes do."""
    return np.ascontiguousarray(rows).view(">u8").astype(np.uint64)


def distinct_rows(rows_NW: Words) -> tuple[Indices, Indices]:
    """Return the first row of each distinct row in ascending order, and the number of every row."""
    order = np.lexsort(rows_NW.T[::-1])
    new = np.ones(len(order), bool)
    new[1:] = (rows_NW[order[1:]] != rows_NW[order[:-1]]).any(axis=1)
    number = np.empty(len(order), np.int64)
    number[order] = np.cumsum(new) - 1
    return order[new], number
