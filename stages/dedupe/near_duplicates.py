"""Near-duplicates: every pair within a Hamming distance whose thumbnails agree as well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.identity import UID_BYTES, UID_TYPE
from winnow.contracts.parameters import effort, later, result
from winnow.contracts.registry import register_global_stage
from winnow.contracts.stage import GlobalInputs, GlobalOutputs, GlobalStage, Resources
from winnow.stages.dedupe import _hamming, _verify, _verify_audio
from winnow.stages.dedupe._columns import (
    Octets,
    big_endian_words,
    distinct_rows,
    octets,
    valid_rows,
)
from winnow.stages.dedupe._hamming import Indices, Pairs, Words
from winnow.stages.dedupe._neighbors import NeighborLists

HashName = Literal["phash", "dhash", "pdq", "audio_hash"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kind:
    """What one hash needs: its columns, and the defaults of the parameters."""

    type: pa.DataType = pa.uint64()
    largest_distance: int = 12
    thumbnail: str = "thumbnail"
    thumbnail_bytes: int = _verify.THUMBNAIL_BYTES
    detail: str = "image_detail"
    written: tuple[str, str, str] = (
        "near_duplicates",
        "near_duplicate_distances",
        "near_duplicate_group",
    )
    distance: int = 8
    thumbnail_distance: float = 12.0
    flat_thumbnail_distance: float = 2.0
    min_detail: float = 0.2


_AUDIO = _Kind(
    thumbnail="audio_thumbnail",
    thumbnail_bytes=_verify_audio.THUMBNAIL_BYTES,
    detail="audio_detail",
    written=(
        "near_duplicate_audio",
        "near_duplicate_audio_distances",
        "near_duplicate_audio_group",
    ),
    distance=12,
    thumbnail_distance=1.8,
    flat_thumbnail_distance=0.9,
    min_detail=0.005,
)
_KINDS: dict[HashName, _Kind] = {
    "phash": _Kind(),
    "dhash": _Kind(),
    "pdq": _Kind(type=pa.binary(32), largest_distance=31),
    "audio_hash": _AUDIO,
}
_BY_HASH = ("distance", "thumbnail_distance", "flat_thumbnail_distance", "min_detail")
_MAX_GAIN, _MAX_TRIM, _SPECTRUM_DISTANCE = 1.35, 0.14, 0.4


@register_global_stage("near_duplicates", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class NearDuplicates(GlobalStage):
    """List for every image the images that look like it, or for every recording its copies.

    Two images are neighbours if their hashes differ in at most ``distance`` bits and their 8x8
    thumbnails are close: the darker one brightened to the mean of the other, by ``max_gain`` at
    most, their mean absolute difference is at most ``thumbnail_distance`` levels of 0 to 255. If
    ``image_detail`` of either is under ``min_detail`` or null, the hash is mostly noise, and the
    thumbnails must be nearly equal: ``flat_thumbnail_distance``, nothing brightened. Images with
    equal bytes have equal hashes and thumbnails and so are neighbours. No such pair is missed.

    Two recordings are neighbours (``hash: audio_hash``) if their hashes differ in at most
    ``distance`` bits, the loud part of the shorter lasts at least 1 - ``max_trim`` of the longer's,
    their mean spectra differ by at most ``spectrum_distance`` dB in the mean over 56 bands, and
    with the shorter laid at the best place along the longer no stretch of 5 % of it differs by more
    than ``thumbnail_distance`` dB in the mean over 8 bands, nor the whole by more than half of it;
    a difference in level is taken off. If ``audio_detail`` of either is under ``min_detail`` or
    null: ``flat_thumbnail_distance`` dB, and ``spectrum_distance`` in proportion. Copies are
    found through lossy codecs, gain, cuts of 5 % at either end, other sample rates and mild noise;
    another take of the same words is none. No such pair is missed.

    Images with one hash and thumbnail, on one side of ``min_detail``, form a *group*: they have the
    same neighbours, and would list each other, which is a square number of entries. So lists name
    groups by their least uid: a group's least member lists all its other members, each of these
    lists the least one, and all of them list the least uid of every neighbouring group.
    docs/near_duplicates.md has the measurements behind the defaults.

    Reads:  phash, dhash: uint64, or pdq: fixed_size_binary(32); null = image not decoded.
            thumbnail: fixed_size_binary(192), 8x8 RGB.  image_detail: float32.
            With audio_hash: audio_hash: uint64; audio_thumbnail: fixed_size_binary(572);
            audio_detail: float32; of ``audio_fingerprint``.
    Writes: near_duplicates: list<fixed_size_binary(16)>, uids in ascending order, never the row's
                own; empty = no neighbour; null = no hash or no thumbnail.
            near_duplicate_distances: list<uint8>, differing bits of the hashes, in the same order.
            near_duplicate_group: fixed_size_binary(16), the least uid of the row's group;
                null = the group has no other uid. Rows with equal uids count once: the first with
                a hash stands for all of them.
            With audio_hash the same in near_duplicate_audio, near_duplicate_audio_distances,
            near_duplicate_audio_group, so that one recipe can have both.
    Cost:   about 120 bytes of memory a row; 200 bytes a row in the scratch folder (audio 580). The
            comparisons grow with the square of the rows; they are counted exactly before they are
            made. Laying one recording along another takes 0.2 ms; it counts as 5,000 comparisons.
    Fails:  SetupError if there are more than ``max_comparisons`` or more than ``max_pairs`` list
            entries; nothing was written then. RecipeError for parameters that cannot be meant.

    The defaults of distance, thumbnail_distance, flat_thumbnail_distance and min_detail are those
    of the hash: 8 bits, 12 levels, 2 levels, 0.2 grey levels; for audio_hash 12 bits, 1.8 dB, 0.9
    dB, 0.005 dB. max_gain is for images, max_trim and spectrum_distance for audio.
    """

    hash: HashName = result("phash")
    # Where it is None the hash's default takes its place, before anything reads it.
    distance: int = result(None)
    thumbnail_distance: float = result(None)
    flat_thumbnail_distance: float = result(None)
    max_gain: float = result(_MAX_GAIN)
    min_detail: float = result(None)
    max_comparisons: int = effort(100_000_000_000)
    max_pairs: int = effort(100_000_000)
    num_threads: int = effort(2)
    max_trim: float = later(_MAX_TRIM)
    spectrum_distance: float = later(_SPECTRUM_DISTANCE)

    def __post_init__(self) -> None:
        if self.hash not in _KINDS:
            self._refuse("hash", f"one of {', '.join(_KINDS)}")
        for name in _BY_HASH:
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(self._kind, name))
        most = self._kind.largest_distance
        if not 0 <= self.distance <= most:
            self._refuse("distance", f"0 to {most} bits for {self.hash}")
        for name, allowed in self._closeness().bad_parameters(self.min_detail):
            self._refuse(name, allowed)
        if self._kind is _AUDIO and self.max_gain != _MAX_GAIN:
            self._refuse("max_gain", "it with images only; any gain is allowed between recordings")
        for name, default in (("max_trim", _MAX_TRIM), ("spectrum_distance", _SPECTRUM_DISTANCE)):
            if self._kind is not _AUDIO and getattr(self, name) != default:
                self._refuse(name, "it with hash: audio_hash only")
        for name in ("max_comparisons", "max_pairs", "num_threads"):
            if getattr(self, name) < 1:
                self._refuse(name, "at least 1")

    @property
    def _kind(self) -> _Kind:
        return _KINDS[self.hash]

    def _closeness(self) -> _verify.Comparison:
        if self._kind is _AUDIO:
            return _verify_audio.AudioCloseness(
                detailed=self.thumbnail_distance,
                flat=self.flat_thumbnail_distance,
                spectrum=self.spectrum_distance,
                max_trim=self.max_trim,
            )
        return _verify.Closeness(
            detailed=self.thumbnail_distance,
            flat=self.flat_thumbnail_distance,
            max_gain=self.max_gain,
        )

    def sums(self, thumbnails_NT: Octets) -> npt.NDArray[np.uint16]:  # noqa: N803
        """Return what the comparison knows of a thumbnail without reading it again."""
        if self._kind is _AUDIO:
            return _verify_audio.duration_keys(thumbnails_NT)
        channels = thumbnails_NT.reshape(-1, _verify.THUMBNAIL_BYTES // 3, 3)
        return channels.sum(axis=1, dtype=np.uint16)

    def _refuse(self, name: str, allowed: str) -> None:
        msg = f"near_duplicates: {name}={getattr(self, name)!r} is not allowed; use {allowed}"
        raise RecipeError(msg)

    @property
    def reads(self) -> pa.Schema:
        return pa.schema(
            {
                self.hash: self._kind.type,
                self._kind.thumbnail: pa.binary(self._kind.thumbnail_bytes),
                self._kind.detail: pa.float32(),
            }
        )

    @property
    def writes(self) -> pa.Schema:
        types = (pa.list_(UID_TYPE), pa.list_(pa.uint8()), UID_TYPE)
        return pa.schema(list(zip(self._kind.written, types, strict=True)))

    @property
    def resources(self) -> Resources:
        return Resources(num_cpus=self.num_threads)

    def compute(self, inputs: GlobalInputs, outputs: GlobalOutputs) -> Mapping[str, Any]:
        pool = _read(self, inputs)
        hash_pairs, comparisons = self._search(pool.hashes)
        groups = _verify.least_with_same_signature(pool.items)
        pairs, more = self._verified(pool.items, groups, hash_pairs)
        lists = NeighborLists(pool.uids, groups, pairs)
        if lists.num_entries(pool.items_of_rows) > self.max_pairs:
            self._too_many_pairs(lists.num_entries(pool.items_of_rows))
        first = 0
        for shard in inputs.shards:
            items = pool.items_of_rows[first : first + shard.num_rows]
            outputs.write(shard, pa.table(list(lists.columns(items)), schema=self.writes))
            first += shard.num_rows
        return {
            "rows": len(pool.items_of_rows),
            "rows_without_hash": int((pool.items_of_rows < 0).sum()),
            "recordings" if self._kind is _AUDIO else "images": len(groups),
            "distinct_hashes": len(pool.hashes),
            "groups": len(np.unique(groups)),
            "hash_pairs": len(hash_pairs[0]),
            "pairs": len(pairs[0]),
            "comparisons": comparisons + more,
        }

    def _search(self, hashes_NW: Words) -> tuple[Pairs, int]:
        """Return all pairs of distinct hashes within the distance, and the comparisons made."""
        plan = _hamming.make_plan(len(hashes_NW), hashes_NW.shape[1] * 64, self.distance)
        comparisons = _hamming.count_comparisons(hashes_NW, plan)
        if comparisons > self.max_comparisons:
            self._too_many_comparisons(f"{len(hashes_NW):,} distinct hashes", comparisons)
        try:
            pairs = _hamming.pairs_within(
                hashes_NW,
                self.distance,
                plan,
                max_pairs=self.max_pairs,
                num_threads=self.num_threads,
            )
        except _hamming.TooManyPairsError:
            self._too_many_pairs(self.max_pairs + 1)
        return pairs, comparisons

    def _verified(
        self, items: _verify.Items, groups: Indices, hash_pairs: Pairs
    ) -> tuple[Pairs, int]:
        signatures = np.flatnonzero(groups == np.arange(len(groups)))
        join = _verify.ThumbnailJoin(items, signatures, self._closeness())
        comparisons = join.count_comparisons(hash_pairs)
        if comparisons > self.max_comparisons:
            media = "recordings" if self._kind is _AUDIO else "images"
            what = f"{len(signatures):,} {media} with close or equal hashes"
            self._too_many_comparisons(what, comparisons)
        blocks, total = [], 0
        for block in join.pairs(hash_pairs):
            blocks.append(block)
            total += len(block[0])
            if total > self.max_pairs:
                self._too_many_pairs(total)
        return _concatenate(blocks), comparisons

    def _too_many_comparisons(self, what: str, comparisons: int) -> None:
        msg = (
            f"near_duplicates: {what} need {comparisons:,} comparisons within distance "
            f"{self.distance}, and max_comparisons is {self.max_comparisons:,}; lower distance "
            f"(now {self.distance}), or raise max_comparisons (about a minute per 3 billion)"
        )
        raise SetupError(msg)

    def _too_many_pairs(self, found: int) -> None:
        msg = (
            f"near_duplicates: at least {found:,} neighbours, and max_pairs is "
            f"{self.max_pairs:,}; lower distance (now {self.distance}) or thumbnail_distance (now "
            f"{self.thumbnail_distance:g}), raise min_detail (now {self.min_detail:g}), or raise "
            "max_pairs (about 40 bytes of memory each)"
        )
        raise SetupError(msg)


def _concatenate(blocks: list[Pairs]) -> Pairs:
    empty = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8))
    left, right, distances = (np.concatenate(column) for column in zip(empty, *blocks, strict=True))
    return left, right, distances


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pool:
    """All rows; an item is a distinct uid that has a hash and a thumbnail, in order of uid."""

    uids: Octets
    items: _verify.Items
    hashes: Words
    """(H, W): distinct hashes."""
    items_of_rows: Indices
    """Item of every row in source order; -1 without."""


def _read(stage: NearDuplicates, inputs: GlobalInputs) -> _Pool:
    """Read all shards once; thumbnails go to a file."""
    file = Path(inputs.scratch) / "thumbnails"
    uids, hashes, sums, low, usable = [], [], [], [], []
    kind = stage._kind
    with file.open("wb") as out:
        for _, table in inputs.tables():
            has = valid_rows(table[stage.hash]) & valid_rows(table[kind.thumbnail])
            usable.append(has)
            uids.append(octets(table["uid"], UID_BYTES)[has])
            hashes.append(_hash_words(table[stage.hash])[has])
            thumbnails = octets(table[kind.thumbnail], kind.thumbnail_bytes)[has]
            out.write(thumbnails.tobytes())
            sums.append(stage.sums(thumbnails))
            detailed = pc.fill_null(pc.greater_equal(table[kind.detail], stage.min_detail), False)
            low.append(~detailed.to_numpy()[has].astype(bool))
    has = _join(usable, np.empty(0, bool))
    uid_words = big_endian_words(_join(uids, np.empty((0, UID_BYTES), np.uint8)))
    row_of_item, item_of_usable = distinct_rows(uid_words)
    items_of_rows = np.full(len(has), -1)
    items_of_rows[has] = item_of_usable
    num_words = kind.type.bit_width // 64
    hashes_NW = _join(hashes, np.empty((0, num_words), np.uint64))[row_of_item]
    row_of_hash, hash_ids = distinct_rows(hashes_NW)
    items = _verify.Items(
        hash_ids=hash_ids,
        low=_join(low, np.empty(0, bool))[row_of_item],
        sums=_join(sums[1:], sums[0] if sums else np.empty((0, 1), np.uint16))[row_of_item],
        thumbnail_rows=row_of_item,
        thumbnails=_verify.map_thumbnails(file, len(uid_words), kind.thumbnail_bytes),
    )
    return _Pool(
        uids=uid_words[row_of_item].astype(">u8").view(np.uint8).reshape(-1, UID_BYTES),
        items=items,
        hashes=hashes_NW[row_of_hash],
        items_of_rows=items_of_rows,
    )


def _join(parts: list[Any], empty: Any) -> Any:
    return np.concatenate([empty, *parts])


def _hash_words(column: pa.ChunkedArray) -> Words:
    if pa.types.is_fixed_size_binary(column.type):
        return big_endian_words(octets(column, column.type.byte_width))
    filled = pc.fill_null(column, pa.scalar(0, column.type))
    return filled.to_numpy().astype(np.uint64).reshape(-1, 1)
