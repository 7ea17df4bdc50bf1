"""Near-duplicate texts: pairs whose sets of word n-grams overlap, found by MinHash, verified."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.identity import UID_BYTES, UID_TYPE
from winnow.contracts.parameters import effort, result
from winnow.contracts.registry import register_global_stage
from winnow.contracts.stage import GlobalInputs, GlobalOutputs, GlobalStage, Resources
from winnow.stages.dedupe import _minhash
from winnow.stages.dedupe._columns import Octets, big_endian_words, distinct_rows, octets
from winnow.stages.dedupe._hamming import Indices
from winnow.stages.dedupe._minhash import Hashed, Hasher, Scheme, Sets
from winnow.stages.dedupe._neighbors import NeighborLists

NAME = "near_duplicate_texts"
RECALL = 0.995
"""Of the pairs with a Jaccard similarity of exactly ``threshold``, those that share a band."""
LOSS = 1e-6
"""Share of such pairs whose signatures differ too much to be verified."""
_CHUNK_BYTES = 1 << 18
_CHUNK_TEXTS = 1 << 14

TextPairs = tuple[Indices, Indices, npt.NDArray[np.float32]]


@register_global_stage(NAME, version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class NearDuplicateTexts(GlobalStage):
    """List for every text the texts that share most of their runs of ``ngram`` words.

    Words are runs of letters, digits and marks after NFKC and case folding; white space and
    punctuation only separate. In scripts without spaces (Han, kana, Thai, Lao, Burmese, Khmer) each
    letter with its marks is a word. A text of fewer than ``ngram`` words has one run: all of them.
    Two texts are neighbours if |A and B| / |A or B| >= ``threshold`` for their sets of runs.

    Candidates are the pairs whose MinHash signatures agree in a band (Broder 1997; bands as in
    "Mining of Massive Datasets", 3.4). ``num_permutations`` is cut into as few, long bands as let a
    pair at exactly ``threshold`` pass with probability 0.995 (more similar pairs: closer to 1).
    Every candidate is verified by its exact sets, as 48-bit hashes: two texts of 1,000 words share
    a run by accident of hashing once in 280 million pairs. So nothing listed is below
    ``threshold``, and the pairs missed are those that MinHash misses.

    Texts with the same words in the same order form a *group*: they have the same neighbours, and
    lists name groups by their least uid. A group's least member lists all its other members, each
    of these lists the least one, and all of them list the least uid of every neighbouring group.

    Reads:  ``column`` (text): string; null = no text.
    Writes: near_duplicate_texts: list<fixed_size_binary(16)>, uids in ascending order, never the
                row's own; empty = no neighbour; null = null, or no word in the text.
            near_duplicate_texts_jaccard: list<float32> in [threshold, 1], in the same order.
            near_duplicate_texts_group: fixed_size_binary(16), the least uid of the row's group;
                null = the group has no other uid. Rows with equal uids count once: the first with
                a word stands for all of them.
    Cost:   CPU; 0.1 ms (7,500 texts) to 0.4 ms (100,000) a text. About 150 bytes of memory a row;
            in the scratch folder 4 bytes a permutation and row and 8 bytes a word. Comparisons of
            signatures are counted exactly before they are made.
    Fails:  SetupError if there are more than ``max_comparisons`` or more than ``max_pairs`` list
            entries; nothing was written then.
    """

    column: str = result("text")
    ngram: int = result(5)
    threshold: float = result(0.7)
    num_permutations: int = result(128)
    max_comparisons: int = effort(1_000_000_000)
    max_pairs: int = effort(100_000_000)
    num_threads: int = effort(2)

    def __post_init__(self) -> None:
        if not self.column:
            self._refuse("column", "the name of a string column")
        if not 1 <= self.ngram <= 100:
            self._refuse("ngram", "1 to 100 words")
        if not 0.1 <= self.threshold <= 1:
            self._refuse("threshold", "a Jaccard similarity of 0.1 to 1")
        if not 16 <= self.num_permutations <= 1024:
            self._refuse("num_permutations", "16 to 1024")
        for name in ("max_comparisons", "max_pairs", "num_threads"):
            if getattr(self, name) < 1:
                self._refuse(name, "at least 1")

    def _refuse(self, name: str, allowed: str) -> None:
        msg = f"{NAME}: {name}={getattr(self, name)!r} is not allowed; use {allowed}"
        raise RecipeError(msg)

    @property
    def reads(self) -> pa.Schema:
        return pa.schema({self.column: pa.string()})

    @property
    def writes(self) -> pa.Schema:
        return pa.schema(
            {
                NAME: pa.list_(UID_TYPE),
                f"{NAME}_jaccard": pa.list_(pa.float32()),
                f"{NAME}_group": UID_TYPE,
            }
        )

    @property
    def resources(self) -> Resources:
        return Resources(num_cpus=self.num_threads)

    def scheme(self) -> Scheme:
        """Return how signatures are made and cut."""
        bands, rows = _minhash.choose_bands(self.threshold, self.num_permutations, RECALL)
        return Scheme(ngram=self.ngram, bands=bands, rows=rows)

    def compute(self, inputs: GlobalInputs, outputs: GlobalOutputs) -> Mapping[str, Any]:
        pool = _read(self, inputs)
        search = self._search(pool)
        comparisons = search.count_comparisons()
        if comparisons > self.max_comparisons:
            self._too_many_comparisons(comparisons, len(pool.searched))
        pairs, candidates = self._verified(pool, search)
        lists = NeighborLists(pool.uids, pool.groups, pairs)
        if lists.num_entries(pool.items_of_rows) > self.max_pairs:
            self._too_many_pairs(lists.num_entries(pool.items_of_rows))
        first = 0
        for shard in inputs.shards:
            items = pool.items_of_rows[first : first + shard.num_rows]
            neighbours, distances, group = lists.columns(items)
            columns = [neighbours, _similarities(distances), group]
            outputs.write(shard, pa.table(columns, schema=self.writes))
            first += shard.num_rows
        return {
            "rows": len(pool.items_of_rows),
            "rows_without_words": int((pool.items_of_rows < 0).sum()),
            "texts": len(pool.groups),
            "distinct_texts": len(pool.searched),
            "comparisons": comparisons,
            "candidates": candidates,
            "pairs": len(pairs[0]),
        }

    def _search(self, pool: _Pool) -> _minhash.Bands:
        scheme = self.scheme()
        least = _minhash.least_matches(self.threshold, scheme.num_permutations, LOSS)
        rows = pool.rows_of_items[pool.searched]
        return _minhash.Bands(pool.signatures, rows, scheme, least)

    def _verified(self, pool: _Pool, search: _minhash.Bands) -> tuple[TextPairs, int]:
        """Return the pairs of items at or above the threshold as (left, right, 1 - similarity)."""
        rows = pool.rows_of_items[pool.searched]
        sets = Sets(shingles=pool.shingles, starts=pool.starts[rows], sizes=pool.sizes[rows])
        blocks: list[TextPairs] = [_NO_PAIRS]
        candidates = total = 0
        for left, right in search.pairs():
            near, similar = sets.similar(left, right, self.threshold)
            candidates += len(left)
            total += len(near)
            if total > self.max_pairs:
                self._too_many_pairs(total)
            blocks.append((pool.searched[left[near]], pool.searched[right[near]], 1 - similar))
        left, right, distances = (np.concatenate(c) for c in zip(*blocks, strict=True))
        order = np.lexsort((right, left))
        return (left[order], right[order], distances[order]), candidates

    def _too_many_comparisons(self, comparisons: int, texts: int) -> None:
        msg = (
            f"{NAME}: {texts:,} distinct texts need {comparisons:,} comparisons of signatures, and "
            f"max_comparisons is {self.max_comparisons:,}: many share text; raise threshold (now "
            f"{self.threshold:g}) or ngram (now {self.ngram}), or raise max_comparisons (about "
            "six minutes per billion)"
        )
        raise SetupError(msg)

    def _too_many_pairs(self, found: int) -> None:
        msg = (
            f"{NAME}: at least {found:,} neighbours, and max_pairs is {self.max_pairs:,}; raise "
            f"threshold (now {self.threshold:g}), or raise max_pairs (about 50 bytes of memory "
            "each)"
        )
        raise SetupError(msg)


_NO_PAIRS: TextPairs = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))


def _similarities(distances: pa.ListArray) -> pa.ListArray:
    values = pa.array(np.float32(1) - distances.values.to_numpy())
    return pa.ListArray.from_arrays(distances.offsets, values, mask=distances.is_null())


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pool:
    """All rows; an item is a distinct uid whose text has a word, in order of uid.

    Of items: uids; groups, the least item with the same words; rows_of_items.  searched: the least
    items of the groups.  items_of_rows: of all rows in source order, -1 without.
    Of rows with a word: signatures, and where their sets are in ``shingles``: starts, sizes.
    """

    uids: Octets
    groups: Indices
    searched: Indices
    rows_of_items: Indices
    items_of_rows: Indices
    starts: Indices
    sizes: Indices
    signatures: npt.NDArray[np.uint32]
    shingles: npt.NDArray[np.uint64]


def _read(stage: NearDuplicateTexts, inputs: GlobalInputs) -> _Pool:
    """Read and hash all shards once; signatures and sets go to files."""
    scratch, scheme = Path(inputs.scratch), stage.scheme()
    uids: list[Octets] = [np.empty((0, UID_BYTES), np.uint8)]
    sizes, digests = [np.empty(0, np.int64)], [np.empty((0, 16), np.uint8)]
    with (scratch / "signatures").open("wb") as one, (scratch / "shingles").open("wb") as two:
        for names, hashed in _hashed(stage, scheme, inputs):
            uids.append(names)
            sizes.append(hashed.sizes)
            digests.append(hashed.digests)
            _append(one, hashed.signatures[hashed.sizes > 0])
            _append(two, hashed.shingles)
    all_sizes = np.concatenate(sizes)
    usable = np.flatnonzero(all_sizes)
    names_NW = big_endian_words(np.concatenate(uids)[usable])
    rows_of_items, items = distinct_rows(names_NW)
    items_of_rows = np.full(len(all_sizes), -1)
    items_of_rows[usable] = items
    words_NW = big_endian_words(np.concatenate(digests)[usable][rows_of_items])
    least, group = distinct_rows(words_NW)
    kept = all_sizes[usable]
    return _Pool(
        uids=names_NW[rows_of_items].astype(">u8").view(np.uint8).reshape(-1, UID_BYTES),
        groups=least[group],
        searched=np.sort(least),
        rows_of_items=rows_of_items,
        items_of_rows=items_of_rows,
        starts=np.cumsum(kept) - kept,
        sizes=kept,
        signatures=_mapped(scratch / "signatures", "<u4", scheme.num_permutations),
        shingles=_mapped(scratch / "shingles", "<u8", 1)[:, 0],
    )


def _hashed(
    stage: NearDuplicateTexts, scheme: Scheme, inputs: GlobalInputs
) -> Iterator[tuple[Octets, Hashed]]:
    """Yield uids and hashes chunk by chunk, in order; threads are a few chunks ahead."""
    hasher = Hasher(scheme)
    waiting: list[tuple[Octets, Future[Hashed]]] = []
    with ThreadPoolExecutor(stage.num_threads) as threads:
        for _, table in inputs.tables():
            uids, first = octets(table["uid"], UID_BYTES), 0
            for texts in _chunks(table[stage.column]):
                rows = uids[first : first + len(texts)]
                waiting.append((rows, threads.submit(hasher.hash, texts)))
                first += len(texts)
                if len(waiting) > 2 * stage.num_threads:
                    names, ready = waiting.pop(0)
                    yield names, ready.result()
        for names, ready in waiting:
            yield names, ready.result()


def _chunks(column: pa.ChunkedArray) -> Iterator[list[bytes]]:
    """Cut texts into lists of a few hundred kilobytes; a longer text is alone."""
    texts: list[bytes] = []
    size = 0
    for text in column.to_pylist():
        data = _minhash.normalise(text or "")
        if texts and (size + len(data) > _CHUNK_BYTES or len(texts) == _CHUNK_TEXTS):
            yield texts
            texts, size = [], 0
        texts.append(data)
        size += len(data)
    if texts:
        yield texts


def _append(file: BinaryIO, values: npt.NDArray[Any]) -> None:
    file.write(np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")).tobytes())


def _mapped(file: Path, kind: str, width: int) -> npt.NDArray[Any]:
    if not file.stat().st_size:
        return np.empty((0, width), kind)
    return np.memmap(file, kind, mode="r").reshape(-1, width)
