"""Rows that resemble an evaluation set which is not part of this pool."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from winnow.contracts.errors import RecipeError
from winnow.contracts.identity import UID_BYTES, UID_TYPE
from winnow.contracts.media import Media
from winnow.contracts.parameters import effort, result
from winnow.contracts.registry import register_stage
from winnow.contracts.stage import Stage, WorkerOptions
from winnow.stages import _evaluation_index
from winnow.stages._evaluation_index import EvaluationIndex
from winnow.stages.dedupe._columns import fixed_binary, valid_rows
from winnow.stages.dedupe._verify import THUMBNAIL_BYTES, Closeness


@register_stage("near_evaluation", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class NearEvaluation(Stage):
    """Mark images that look like an image of an evaluation set, so that no arm trains on them.

    "Look like" is what ``near_duplicates`` means by it: the hashes differ in at most ``distance``
    bits and the 8x8 thumbnails are close (``thumbnail_distance`` levels of 0 to 255 after
    brightening the darker one by ``max_gain`` at most). Where ``image_detail`` of either is under
    ``min_detail`` or null, the hash is mostly noise, and the thumbnails must be nearly equal
    (``flat_thumbnail_distance``, nothing brightened): a white page in the evaluation set marks
    white pages, not every flat picture. No such pair is missed.

    evaluation: Parquet files, by path or fsspec URL, that every worker can read: the
    manifest.parquet of Winnow exports, or any file with the hash as uint64. Their *content* enters
    the fingerprint. Of a file without ``thumbnail`` the hash alone decides, and images of low
    information are not marked at all; without ``image_detail`` the pool's own value decides what
    that is; without ``uid`` near_evaluation_uid is null. thumbnail_distance: 255 leaves detailed
    images to the hash alone, which finds more edits and more false pairs.

    Reads:   phash (or dhash): uint64; null = not decoded.  thumbnail: fixed_size_binary(192), 8x8
             RGB.  image_detail: float32, grey levels.
    Writes:  near_evaluation: bool, an evaluation image is alike; null exactly when
             near_evaluation_error is set.
             near_evaluation_uid: fixed_size_binary(16), the alike evaluation image whose hash
             differs least, the least uid of equals; null = none, or its file has no uids.
             near_evaluation_error: string; null, or "missing" (no hash or no thumbnail).
    Cost:    CPU only; about 250 bytes of memory per evaluation image (four times that while it is
             read), and up to 50 MB for an index. 10 to 50 us a row for up to 50,000 evaluation
             images, 150 us for a million.
    Fails:   a bad row never raises. RecipeError for parameters that cannot be meant; SetupError for
             a file that cannot be read, lacks the hash, or has no rows.
    """

    evaluation: tuple[str, ...] = effort()
    hash: Literal["phash", "dhash"] = result("phash")
    distance: int = result(8)
    thumbnail_distance: float = result(12.0)
    flat_thumbnail_distance: float = result(2.0)
    max_gain: float = result(1.35)
    min_detail: float = result(0.2)

    writes = pa.schema(
        {
            "near_evaluation": pa.bool_(),
            "near_evaluation_uid": UID_TYPE,
            "near_evaluation_error": pa.string(),
        }
    )

    def __post_init__(self) -> None:
        if not self.evaluation or not all(self.evaluation):
            self._refuse("evaluation", "one or more Parquet files, such as an export's manifest")
        if self.hash not in ("phash", "dhash"):
            self._refuse("hash", "phash or dhash")
        if not 0 <= self.distance <= 12:
            self._refuse("distance", "0 to 12 bits")
        for name, allowed in self._closeness().bad_parameters(self.min_detail):
            self._refuse(name, allowed)

    def _closeness(self) -> Closeness:
        return Closeness(
            detailed=self.thumbnail_distance,
            flat=self.flat_thumbnail_distance,
            max_gain=self.max_gain,
        )

    def _refuse(self, name: str, allowed: str) -> None:
        msg = f"near_evaluation: {name}={getattr(self, name)!r} is not allowed; use {allowed}"
        raise RecipeError(msg)

    @property
    def reads(self) -> pa.Schema:
        """The hash and what verifies it."""
        return pa.schema(
            {
                self.hash: pa.uint64(),
                "thumbnail": pa.binary(THUMBNAIL_BYTES),
                "image_detail": pa.float32(),
            }
        )

    def model_digest(self) -> str:
        """Digest of the evaluation files' bytes, whatever their names and order."""
        for path in self.evaluation:
            _evaluation_index.check_file(path, self.hash)
        found = sorted({_evaluation_index.file_digest(path) for path in self.evaluation})
        return hashlib.blake2b("\n".join(found).encode(), digest_size=16).hexdigest()

    def setup(self, options: WorkerOptions) -> EvaluationIndex:
        """Read the evaluation files and index their hashes."""
        found = _evaluation_index.read_evaluation(self.evaluation, self.hash, self.min_detail)
        return EvaluationIndex(found, self.distance, self._closeness())

    def annotate(
        self, batch: pa.RecordBatch, state: EvaluationIndex, media: Media
    ) -> pa.RecordBatch:
        table = pa.table({n: batch.column(n) for n in self.reads.names})
        usable = valid_rows(table[self.hash]) & valid_rows(table["thumbnail"])
        rows = np.flatnonzero(usable)
        table = table.rename_columns(["hash", *table.column_names[1:]])
        pictures = _evaluation_index.pictures_of(table, self.min_detail).take(rows)
        nearest = np.full(batch.num_rows, -1)
        nearest[rows] = state.nearest(pictures)
        hit = nearest >= 0
        uids = np.zeros((batch.num_rows, UID_BYTES), np.uint8)
        uids[hit] = state.found.uids[nearest[hit]]
        named = hit.copy()
        named[hit] = state.found.has_uid[nearest[hit]]
        codes = pc.if_else(pa.array(usable), pa.scalar(None, pa.string()), "missing")
        return pa.record_batch(
            [pa.array(hit, mask=~usable), fixed_binary(uids, null=~named), codes],
            schema=self.writes,
        )
