"""Frozen parts of a pool (train, validation, test, or folds) that share no look-alikes."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from winnow.contracts.errors import RecipeError
from winnow.contracts.identity import UID_BYTES, UID_TYPE, stable_hashes64
from winnow.contracts.parameters import result
from winnow.contracts.registry import register_global_stage
from winnow.contracts.stage import GlobalInputs, GlobalOutputs, GlobalStage
from winnow.stages.dedupe import _components
from winnow.stages.dedupe._columns import Octets, big_endian_words, fixed_binary, octets
from winnow.stages.dedupe._components import Rows
from winnow.stages.dedupe._hamming import Indices, Words

NEIGHBORS = "near_duplicates"
DEFAULT_PARTS = {"train": 0.8, "validation": 0.1, "test": 0.1}
LARGE = 0.1
"""A component with a greater share of the rows is worth a warning."""
_log = logging.getLogger(__name__)


def part_bounds(parts: Mapping[str, float]) -> tuple[tuple[str, ...], npt.NDArray[np.uint64]]:
    """Return the parts in order of name, and where on the 64-bit line each but the first begins."""
    names = tuple(sorted(parts))
    sums = [math.fsum(parts[n] for n in names[: i + 1]) for i in range(len(names) - 1)]
    return names, np.array([min(int(s * 2.0**64), 2**64 - 1) for s in sums], np.uint64)


def parse_column(item: str) -> tuple[str, pa.DataType]:
    """Return the name and the type of an item of group_by: "artist", "tags list<string>"."""
    name, _, kind = item.strip().rpartition(" ")
    found = _type_named(kind)
    if name.strip() and found is not None:
        return name.strip(), found
    return item.strip(), pa.string()


def _type_named(text: str) -> pa.DataType | None:
    if inner := re.fullmatch(r"list<(.+)>", text):
        element = _type_named(inner[1])
        return None if element is None or pa.types.is_list(element) else pa.list_(element)
    if width := re.fullmatch(r"binary\((\d{1,4})\)", text):
        return pa.binary(int(width[1]))
    if text in ("string", "large_string", "binary") or re.fullmatch(r"u?int(8|16|32|64)", text):
        return pa.type_for_alias(text)
    return None


@register_global_stage("split", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class Split(GlobalStage):
    """Put every row into one part, so that rows which belong together are in the same part.

    Rows are joined where they share a value of a ``group_by`` column, where they are
    near-duplicates, and where their uids are equal; what is joined over any number of steps is a
    *component*. The part of a component is decided by hash(column, seed, least uid) against the
    shares: neither other components, nor the order of rows, nor shards, nor retries change it. A
    new row can join two components into one, so freeze the pool before its parts mean anything.

    Reads:  the columns of ``group_by``: each item is a name, and its type where that is not
            string: "artist", "tags list<string>", "year int32", "image_digest binary(16)";
            string, integer or binary, or a list of one of them, which joins by each element. A
            null joins nothing; an empty string is a value.
            near_duplicates: list<fixed_size_binary(16)>, uids; with ``near_duplicates``.
            ``given``: string, a part that the source declares; null = none.
    Writes: <column> (split): string, a name of ``parts`` or of ``given``; null = in no part.
            <column>_group (split_group): fixed_size_binary(16), the least uid of the row's
            component; never null.
    Cost:   about 60 bytes of memory a row and 60 more per column and value; 1 us of CPU a value.
    Fails:  never for a row. RecipeError for parts that do not add up to 1 and columns that cannot
            be meant.

    parts: name -> share, in (0, 1], sum 1; none = train 0.8, validation 0.1, test 0.1. Shares are
    of components, so parts differ from them in rows, the more the larger the components are.
    given: a row that has a value there keeps it, and every other row of its component is in no
    part: it may be used by neither side. Two values in one component are kept and counted.
    column: it is hashed too, so two splits of one pool (parts and folds) are independent.

    Counters: components, rows_in_largest_component, rows_in_<part>, rows_in_no_part,
    components_with_two_given_parts; ``warning`` where a component holds more than 10 % of rows.
    """

    parts: dict[str, float] | None = result(None)
    group_by: tuple[str, ...] = result(())
    near_duplicates: bool = result(True)
    given: str | None = result(None)
    seed: int = result(0)
    column: str = result("split")

    def __post_init__(self) -> None:
        shares = self._shares()
        if not all(shares) or not all(0 < share <= 1 for share in shares.values()):
            self._refuse("parts", shares, "a name and a share above 0 for each part")
        if abs(math.fsum(shares.values()) - 1) > 1e-9:
            total = f"their sum is {math.fsum(shares.values()):g}"
            self._refuse("parts", shares, f"shares that add up to 1 ({total})")
        names = [name for name, _ in self._columns()]
        if not all(names) or len(set(names)) < len(names) or "uid" in names:
            self._refuse("group_by", list(self.group_by), "names of columns, each once, not uid")
        if self.given == "":
            self._refuse("given", "", "the name of a string column, or leave it out")
        if not self.column or {self.column, f"{self.column}_group"} & {"uid", *self.reads.names}:
            self._refuse("column", self.column, "a new name, such as split")

    def _refuse(self, name: str, value: object, allowed: str) -> None:
        msg = f"split: {name}={value!r} is not allowed; use {allowed}"
        raise RecipeError(msg)

    def _shares(self) -> Mapping[str, float]:
        return DEFAULT_PARTS if self.parts is None else self.parts

    def _columns(self) -> list[tuple[str, pa.DataType]]:
        columns = [parse_column(item) for item in self.group_by]
        if self.near_duplicates and NEIGHBORS not in dict(columns):
            columns.append((NEIGHBORS, pa.list_(UID_TYPE)))
        return columns

    @property
    def reads(self) -> pa.Schema:
        given = {} if self.given is None else {self.given: pa.string()}
        return pa.schema({**dict(self._columns()), **given})

    @property
    def writes(self) -> pa.Schema:
        return pa.schema({self.column: pa.string(), f"{self.column}_group": UID_TYPE})

    def compute(self, inputs: GlobalInputs, outputs: GlobalOutputs) -> Mapping[str, Any]:
        pool = _read(self, inputs)
        labels = _components.components(len(pool.uids), pool.links)
        groups = pool.uids[_components.least_rows(labels, big_endian_words(pool.uids))]
        names, codes = self._codes(pool, labels, groups)
        first = 0
        for shard in inputs.shards:
            rows = slice(first, first + shard.num_rows)
            index = pa.array(codes[rows], mask=codes[rows] < 0)
            part = pc.take(pa.array(names, pa.string()), index)
            columns = [part, fixed_binary(groups[labels[rows]])]
            outputs.write(shard, pa.table(columns, schema=self.writes))
            first += shard.num_rows
        return self._counters(pool, labels, names, codes)

    def _codes(
        self, pool: _Pool, labels: Indices, groups: Octets
    ) -> tuple[list[str], npt.NDArray[np.int32]]:
        """Return names, and for every row the position of its part in them; -1 = no part."""
        parts, bounds = part_bounds(self._shares())
        hashes = stable_hashes64(("split", self.column, self.seed), map(bytes, groups))
        drawn = np.searchsorted(bounds, hashes, side="right").astype(np.int32)
        declared = np.zeros(len(groups), bool)
        declared[labels[pool.given >= 0]] = True
        codes = np.where(declared[labels], np.int32(-1), drawn[labels])
        has = pool.given >= 0
        codes[has] = pool.given[has] + np.int32(len(parts))
        return [*parts, *pool.given_names], codes

    def _counters(
        self, pool: _Pool, labels: Indices, names: list[str], codes: npt.NDArray[np.int32]
    ) -> dict[str, Any]:
        sizes = np.bincount(labels)
        largest = int(sizes.max(initial=0))
        counts: Counter[str] = Counter(dict.fromkeys(names, 0))
        for name, count in zip(
            names, np.bincount(codes[codes >= 0], minlength=len(names)), strict=True
        ):
            counts[name] += int(count)
        found: dict[str, Any] = {
            "rows": len(labels),
            "components": len(sizes),
            "rows_in_largest_component": largest,
            **{f"rows_in_{name}": count for name, count in sorted(counts.items())},
            "rows_in_no_part": int((codes < 0).sum()),
        }
        if self.given is not None:
            has = pool.given >= 0
            pairs = np.unique(np.stack([labels[has], pool.given[has]]), axis=1)
            found["components_with_two_given_parts"] = int((np.bincount(pairs[0]) > 1).sum())
        if largest > max(1, LARGE * len(labels)):
            share = largest / len(labels)
            found["warning"] = (
                f"one component holds {share:.0%} of the rows: its part is one draw, so shares can "
                f"be far off; a value of {', '.join(self.reads.names)} joins too much"
            )
            _log.warning("split: %s", found["warning"])
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pool:
    """All rows in source order."""

    uids: Octets
    links: list[tuple[Rows, Rows]]
    given: npt.NDArray[np.int32]
    """Position of the row's given part in ``given_names``; -1 = none."""
    given_names: tuple[str, ...]


def _read(stage: Split, inputs: GlobalInputs) -> _Pool:
    """Read all shards once; the keys of a column are forgotten when its links are known."""
    names = [name for name, _ in stage._columns()]
    uids: list[Octets] = []
    found: dict[str, list[tuple[Rows, Words]]] = {name: [] for name in names}
    given: list[npt.NDArray[np.int32]] = []
    given_names: dict[str, int] = {}
    first = 0
    for _, table in inputs.tables():
        uids.append(octets(table["uid"], UID_BYTES))
        for name in names:
            rows, keys = _components.value_keys(table[name])
            found[name].append((rows + first, keys))
        given.append(_given(stage, table, given_names))
        first += table.num_rows
    all_uids = np.concatenate([np.empty((0, UID_BYTES), np.uint8), *uids])
    same = [(np.arange(first), big_endian_words(all_uids))]
    columns = {"uid": same, **found}
    # A neighbour is a row that has the uid which the list names.
    columns["uid"] += columns.pop(NEIGHBORS, []) if stage.near_duplicates else []
    return _Pool(
        uids=all_uids,
        links=list(_links(columns)),
        given=np.concatenate([np.empty(0, np.int32), *given]),
        given_names=tuple(given_names),
    )


def _links(columns: dict[str, list[tuple[Rows, Words]]]) -> Iterator[tuple[Rows, Rows]]:
    for name in list(columns):
        parts = columns.pop(name)
        if parts:
            rows, keys = (np.concatenate(side) for side in zip(*parts, strict=True))
            yield _components.links(rows, keys)


def _given(stage: Split, table: pa.Table, names: dict[str, int]) -> npt.NDArray[np.int32]:
    if stage.given is None:
        return np.full(table.num_rows, -1, np.int32)
    coded = table[stage.given].combine_chunks().dictionary_encode()
    numbers = [names.setdefault(value, len(names)) for value in coded.dictionary.to_pylist()]
    index = pc.fill_null(coded.indices, -1).to_numpy()
    return np.array([*numbers, -1], np.int32)[index]
