"""An evaluation set's image hashes, and an exact search for the one nearest to each of many rows.

The search is that of ``dedupe/_hamming.py`` (multi-index hashing, Norouzi, Punjani and Fleet 2012)
between two sets: chunks i of the hash with radii r_i, sum(r_i + 1) = d + 1, so hashes within d bits
agree within r_i bits in some chunk. For a small set all pairs are compared. "Alike" is what
``near_duplicates`` means by it.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from winnow.contracts.errors import SetupError
from winnow.contracts.identity import UID_BYTES, UID_TYPE
from winnow.contracts.paths import user_path
from winnow.stages.dedupe import _hamming
from winnow.stages.dedupe._columns import Octets, octets, valid_rows
from winnow.stages.dedupe._hamming import Chunk, Indices, Words, expand, split_ranges
from winnow.stages.dedupe._verify import THUMBNAIL_BYTES, Closeness, Flags

_BLOCK = 1 << 18
_THUMBNAILS = 1 << 12
# Nanoseconds on one core, measured; they only steer the choice of chunks.
_NS_LOOKUP, _NS_CANDIDATE, _NS_BRUTE = 15.0, 40.0, 1.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Pictures:
    """What is compared of images; a row is an image.

    hashes: (N, 1) words.  low: low information, the hash says little.  thumbnails: (N, 192).
    sums: (N, 3), of the thumbnail's channels.
    has_thumbnail: whether it has one, undefined bytes where not.
    """

    hashes: Words
    low: Flags
    thumbnails: Octets
    sums: Indices
    has_thumbnail: Flags

    def take(self, rows: Indices) -> Pictures:
        """Return some rows."""
        return Pictures(
            hashes=self.hashes[rows],
            low=self.low[rows],
            thumbnails=self.thumbnails[rows],
            sums=self.sums[rows],
            has_thumbnail=self.has_thumbnail[rows],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationSet:
    """Distinct pictures of an evaluation set in ascending order of uid.

    has_uid: false where the file names no uid.
    """

    pictures: Pictures
    uids: Octets
    has_uid: Flags


def check_file(path: str, hash_name: str) -> None:
    """Raise SetupError where a file is no evaluation set: missing, without the hash, no rows."""
    try:
        with fsspec.open(path, "rb") as file, pq.ParquetFile(file) as found:
            schema, num_rows = found.schema_arrow, found.metadata.num_rows
    except (OSError, ValueError, ImportError) as error:
        msg = f"near_evaluation: {path} cannot be read as Parquet: {error}"
        raise SetupError(msg) from error
    if hash_name not in schema.names or schema.field(hash_name).type != pa.uint64():
        there = ", ".join(f"{f.name}: {f.type}" for f in schema)
        msg = (
            f"near_evaluation: {path} has no column {hash_name}: uint64 (there are: {there}); "
            "export the evaluation set with the stage perceptual_hash"
        )
        raise SetupError(msg)
    if not num_rows:
        msg = f"near_evaluation: {path} has no rows; an empty evaluation set is a mistake"
        raise SetupError(msg)


def file_digest(path: str) -> str:
    """Return a digest of a file's bytes; local files that did not change are read once."""
    local = user_path(path)
    if local.is_file():
        stat = local.stat()
        return _local_digest(str(local), stat.st_mtime_ns, stat.st_size)
    return _digest(path)


@functools.lru_cache(maxsize=64)
def _local_digest(path: str, _mtime_ns: int, _size: int) -> str:
    return _digest(path)


def _digest(path: str) -> str:
    with fsspec.open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def read_evaluation(paths: Sequence[str], hash_name: str, min_detail: float) -> EvaluationSet:
    """Return the pictures of all files that have a hash; of equal ones that with the least uid."""
    tables = [_read(path, hash_name) for path in paths]
    whole = pa.concat_tables(tables)
    pictures = pictures_of(whole.rename_columns(["hash", *whole.column_names[1:]]), min_detail)
    has_uid = valid_rows(whole["uid"])
    uids = octets(whole["uid"], UID_BYTES)
    order = np.lexsort((*uids.T[::-1], ~has_uid))
    order = order[valid_rows(whole[hash_name])[order]]
    signature = np.concatenate(
        [
            pictures.hashes.view(np.uint8),
            pictures.low[:, None],
            pictures.has_thumbnail[:, None],
            np.where(pictures.has_thumbnail[:, None], pictures.thumbnails, 0),
        ],
        axis=1,
        dtype=np.uint8,
    )[order]
    whole_rows = np.ascontiguousarray(signature).view(f"V{signature.shape[1]}")[:, 0]
    _, first = np.unique(whole_rows, return_index=True)
    kept = order[np.sort(first)]
    return EvaluationSet(pictures=pictures.take(kept), uids=uids[kept], has_uid=has_uid[kept])


def _read(path: str, hash_name: str) -> pa.Table:
    """Return hash, thumbnail, image_detail and uid of a file; what it lacks is null.

    Without image_detail the pool's own rows say alone what has low information.
    """
    check_file(path, hash_name)
    with fsspec.open(path, "rb") as file, pq.ParquetFile(file) as found:
        names = [hash_name, "thumbnail", "image_detail", "uid"]
        table = found.read(columns=[n for n in names if n in found.schema_arrow.names])
    nothing = pa.nulls(table.num_rows)
    columns = {n: table[n] if n in table.column_names else nothing for n in names}
    if columns["uid"].type == pa.uuid():
        chunks = [chunk.storage for chunk in columns["uid"].chunks]
        columns["uid"] = pa.chunked_array(chunks, UID_TYPE)
    kinds = {"thumbnail": pa.binary(THUMBNAIL_BYTES), "uid": UID_TYPE}
    for name, kind in kinds.items():
        if columns[name].type != kind:
            columns[name] = pa.nulls(table.num_rows, kind)
    if not pa.types.is_floating(columns["image_detail"].type):
        columns["image_detail"] = pa.repeat(pa.scalar(np.inf), table.num_rows)
    columns["image_detail"] = columns["image_detail"].cast(pa.float32())
    return pa.table(columns)


def pictures_of(table: pa.Table, min_detail: float) -> Pictures:
    """Return the pictures of ``hash``, ``thumbnail`` and ``image_detail``; undefined where null."""
    hashes = pc.fill_null(table["hash"], pa.scalar(0, pa.uint64())).to_numpy()
    detailed = pc.fill_null(pc.greater_equal(table["image_detail"], min_detail), False)
    thumbnails = octets(table["thumbnail"], THUMBNAIL_BYTES)
    return Pictures(
        hashes=np.ascontiguousarray(hashes, np.uint64).reshape(-1, 1),
        low=~np.asarray(detailed.to_numpy(), bool),
        thumbnails=thumbnails,
        sums=thumbnails.reshape(-1, THUMBNAIL_BYTES // 3, 3).sum(axis=1, dtype=np.int64),
        has_thumbnail=valid_rows(table["thumbnail"]),
    )


class EvaluationIndex:
    """Finds the nearest alike picture of an evaluation set."""

    def __init__(self, found: EvaluationSet, distance: int, closeness: Closeness) -> None:
        self.found, self._distance, self._closeness = found, distance, closeness
        chunks = choose_chunks(len(found.uids), distance)
        self._tables = [_ChunkTable(found.pictures.hashes, chunk) for chunk in chunks]

    def nearest(self, pictures: Pictures) -> Indices:
        """Return for every picture the nearest alike row of the set, -1 for none.

        Nearest in bits of the hash; of equally near ones that with the least uid.
        """
        best = np.full(len(pictures.low), -1)
        rows, others, distances = [], [], []
        for here, there in self._candidates(pictures.hashes):
            bits = _hamming.hamming(pictures.hashes[here], self.found.pictures.hashes[there])
            near = np.flatnonzero(bits <= self._distance)
            here, there, bits = here[near], there[near], bits[near]
            alike = self._alike(pictures, here, there)
            rows.append(here[alike])
            others.append(there[alike])
            distances.append(bits[alike])
        if rows:
            row, other = np.concatenate(rows), np.concatenate(others)
            order = np.lexsort((other, np.concatenate(distances), row))
            hit, first = np.unique(row[order], return_index=True)
            best[hit] = other[order[first]]
        return best

    def _alike(self, pictures: Pictures, here: Indices, there: Indices) -> Flags:
        known, closeness = self.found.pictures, self._closeness
        low = pictures.low[here] | known.low[there]
        has = known.has_thumbnail[there]
        alike = ~has & ~low
        # The channels' sums refuse most pairs of flat pictures, which may share one hash.
        possible = closeness.possible(pictures.sums[here], known.sums[there], low)
        rest = np.flatnonzero(has & possible)
        for start in range(0, len(rest), _THUMBNAILS):
            part = rest[start : start + _THUMBNAILS]
            ours, theirs = pictures.thumbnails[here[part]], known.thumbnails[there[part]]
            alike[part] = closeness.close(ours, theirs, low[part])
        return alike

    def _candidates(self, hashes: Words) -> Iterator[tuple[Indices, Indices]]:
        """Yield (row, row of the set) in blocks: all pairs within the distance, and others."""
        if self._tables:
            for table in self._tables:
                yield from table.candidates(hashes)
            return
        size = len(self.found.uids)
        step = max(1, _BLOCK // max(size, 1))
        for start in range(0, len(hashes), step):
            part = hashes[start : start + step]
            bits = _hamming.hamming(part[:, None], self.found.pictures.hashes[None])
            here, there = np.nonzero(bits <= self._distance)
            yield here + start, there


def choose_chunks(num_hashes: int, distance: int) -> tuple[Chunk, ...]:
    """Return the chunks with the least expected cost of a lookup; none: compare with all."""
    best: tuple[Chunk, ...] = ()
    best_ns = num_hashes * _NS_BRUTE
    for num_chunks in range(3, distance + 2):
        chunks = _hamming.cut(64, distance, num_chunks)
        ns = sum(
            c.num_masks() * (_NS_LOOKUP + num_hashes / 2**c.width * _NS_CANDIDATE) for c in chunks
        )
        if ns < best_ns:
            best, best_ns = chunks, ns
    return best


class _ChunkTable:
    """Rows of the set by the value of one chunk."""

    def __init__(self, hashes: Words, chunk: Chunk) -> None:
        self._chunk = chunk
        values = _hamming.chunk_values(hashes, chunk)
        self._order = np.argsort(values, kind="stable")
        self._starts = np.zeros(2**chunk.width + 1, np.int32)
        np.cumsum(np.bincount(values, minlength=2**chunk.width), out=self._starts[1:])
        self._masks = np.array(
            [
                sum(1 << bit for bit in bits)
                for radius in range(chunk.radius + 1)
                for bits in itertools.combinations(range(chunk.width), radius)
            ],
            np.int64,
        )

    def candidates(self, hashes: Words) -> Iterator[tuple[Indices, Indices]]:
        """Yield (row, row of the set) whose chunks differ in at most the radius, in blocks."""
        step = max(1, _BLOCK // len(self._masks))
        for start in range(0, len(hashes), step):
            values = _hamming.chunk_values(hashes[start : start + step], self._chunk)
            buckets = (values[:, None] ^ self._masks).ravel()
            lows = self._starts[buckets].astype(np.int64)
            counts = self._starts[buckets + 1] - lows
            filled = np.flatnonzero(counts)
            for part in split_ranges(counts[filled], _BLOCK):
                at = filled[part]
                there = self._order[expand(lows[at], counts[at])]
                yield np.repeat(at // len(self._masks) + start, counts[at]), there
