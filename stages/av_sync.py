"""Picture and sound of a video: do they begin together, and do they stay together?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from winnow.contracts.media import MEDIA_REF, Media
from winnow.contracts.registry import register_stage
from winnow.contracts.stage import Stage, WorkerOptions
from winnow.stages._video import (
    VideoError,
    VideoRef,
    check_digest,
    extents,
    opened,
    picture_stream,
    sound_stream,
)


@register_stage("av_sync", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class AvSync(Stage):
    """Compare the time stamps of a video's picture and sound.

    Reads:  video_ref: MEDIA_REF.
    Writes: av_start_offset_s: float64, when the first sound begins, after the first picture;
                negative = before it.
            av_end_offset_s: float64, when the last sound ends, after the last picture.
            av_drift_s: float64, av_end_offset_s - av_start_offset_s: by how much longer the sound
                lasts than the pictures do.
            av_gap_s: float64, length of the sound by its time stamps less its length by the
                packets' own durations: holes are positive, and so is sound that plays faster
                than its time stamps say.
            av_sync_error: string.
            All null where the file has no sound (code no_audio).
    Cost:   two reads of each file per worker, for its digest and its packets; nothing is decoded.
    Fails:  missing, unreadable, changed (other bytes than when the rows were read), undecodable,
            no_video, no_audio.

    Time stamps only: a film dubbed out of step has none that say so.
    """

    transient_codes: ClassVar[frozenset[str]] = frozenset({"unreadable"})

    @property
    def reads(self) -> pa.Schema:
        return pa.schema({"video_ref": MEDIA_REF})

    @property
    def writes(self) -> pa.Schema:
        return pa.schema(
            {
                "av_start_offset_s": pa.float64(),
                "av_end_offset_s": pa.float64(),
                "av_drift_s": pa.float64(),
                "av_gap_s": pa.float64(),
                "av_sync_error": pa.string(),
            }
        )

    def setup(self, options: WorkerOptions) -> dict[VideoRef, dict[str, Any]]:
        """What this worker knows of each video: its rows come one after the other."""
        return {}

    def annotate(
        self, batch: pa.RecordBatch, state: dict[VideoRef, dict[str, Any]], media: Media
    ) -> pa.RecordBatch:
        rows = [_measured(value, state) for value in batch.column("video_ref").to_pylist()]
        return pa.RecordBatch.from_pylist(rows, schema=self.writes)


def _measured(value: Any, known: dict[VideoRef, dict[str, Any]]) -> dict[str, Any]:
    try:
        ref = VideoRef.of(value)
    except VideoError as error:
        return {"av_sync_error": error.code}
    if ref not in known:
        try:
            known[ref] = _compare(ref)
        except VideoError as error:
            # Kept too: a file that cannot be read is not read again for each of its rows.
            known[ref] = {"av_sync_error": error.code}
    return known[ref]


def _compare(ref: VideoRef) -> dict[str, Any]:
    check_digest(ref)
    with opened(ref) as container:
        found = extents(container)
        sound = sound_stream(container)
        seen = found.get(picture_stream(container).index)
        heard = None if sound is None else found.get(sound.index)
    if heard is None:
        return {"av_sync_error": "no_audio"}
    if seen is None:
        return {"av_sync_error": "no_video"}
    start, end = heard.first_s - seen.first_s, heard.last_s - seen.last_s
    return {
        "av_start_offset_s": start,
        "av_end_offset_s": end,
        "av_drift_s": end - start,
        "av_gap_s": heard.last_s - heard.first_s - heard.samples_s,
    }
