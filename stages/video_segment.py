"""Cut a segment out of a video: a picture of its middle, its sound, and what does not move."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

import pyarrow as pa

from winnow.contracts.errors import RecipeError
from winnow.contracts.media import MEDIA_REF, Media
from winnow.contracts.parameters import result
from winnow.contracts.registry import register_stage
from winnow.contracts.stage import Stage, WorkerOptions
from winnow.stages._video import VideoError, VideoRef, check_digest

MAX_FRAMES = 32
MAX_SEGMENT_S = 600.0


@dataclass(kw_only=True, slots=True)
class Known:
    """Of one worker: the videos whose bytes were checked, and why others cannot be read."""

    checked: dict[VideoRef, str | None]

    def check(self, ref: VideoRef) -> None:
        """Raise VideoError where the bytes are not those that were found; reads them once."""
        if ref not in self.checked:
            try:
                check_digest(ref)
                self.checked[ref] = None
            except VideoError as error:
                self.checked[ref] = error.code
        code = self.checked[ref]
        if code is not None:
            raise VideoError(code=code)


@register_stage("video_segment", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class VideoSegment(Stage):
    """Decode each segment of a video once: pictures, sound, and whether anything happens.

    Reads:  video_ref: MEDIA_REF.  segment_start_s, segment_end_s: float64, seconds from the
            beginning of the file (source ``video``).
    Writes: image: large_binary, JPEG of the frame that is shown in the middle of the segment,
            upright by the file's display matrix.
            frame_1 ... frame_<num_frames>: large_binary, JPEGs of the frames shown in the middle of
            as many equal parts; only with num_frames above 1.
            audio: large_binary, FLAC (16 bit) of the segment's sound, cut at the sample, silence
            where the file has none in between or no finite numbers; more than 8 channels are their
            mean; null = the file has no sound, none here, or at more than 655,350 Hz.
            segment_frames: int32, pictures that begin in the segment; 0 = the last one before it
            is still shown.
            segment_motion: float32, greatest mean absolute difference, in levels of 0 to 255,
            between a picture of the segment (32x32 grey) and the first one shown in it.
            segment_frozen: bool, segment_motion <= frozen_level.
            segment_rms_dbfs: float32, root mean square of all samples, 0 = full scale; -120 at
            least.  segment_silent: bool, segment_rms_dbfs <= silent_dbfs. Both null without sound.
            video_segment_error: string.
    Cost:   one decode of a batch's part of each video, in stretches of 20 s; one read of
            each video per worker, to check its digest. Memory: a frame, a segment's JPEGs, the
            sound of 20 s and a segment.
    Fails:  missing (no reference, or a row without a segment), bad_segment (it ends before it
            begins, or begins before 0), too_long (more than 600 s), unreadable, changed (other
            bytes than when the rows were read), undecodable, no_video, no_picture (no frame is
            shown in the segment).

    quality: of the JPEGs, 1 to 95.  max_side: larger frames are made smaller, null for never.
    """

    num_frames: int = result(1)
    quality: int = result(90)
    max_side: int | None = result(None)
    frozen_level: float = result(0.5)
    silent_dbfs: float = result(-60.0)

    def __post_init__(self) -> None:
        bounds = {
            "num_frames": (1, MAX_FRAMES),
            "quality": (1, 95),
            "max_side": (16, 16_384),
            "frozen_level": (0, 255),
            "silent_dbfs": (-120, 0),
        }
        for name, (least, most) in bounds.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                msg = f"video_segment: {name}={value!r} is not allowed; use {least} to {most}"
                raise RecipeError(msg)

    @property
    def frame_columns(self) -> tuple[str, ...]:
        """The columns of further pictures."""
        count = self.num_frames if self.num_frames > 1 else 0
        return tuple(f"frame_{number}" for number in range(1, count + 1))

    transient_codes: ClassVar[frozenset[str]] = frozenset({"unreadable"})

    @property
    def reads(self) -> pa.Schema:
        return pa.schema(
            {
                "video_ref": MEDIA_REF,
                "segment_start_s": pa.float64(),
                "segment_end_s": pa.float64(),
            }
        )

    @property
    def writes(self) -> pa.Schema:
        return pa.schema(
            {
                "image": pa.large_binary(),
                **dict.fromkeys(self.frame_columns, pa.large_binary()),
                "audio": pa.large_binary(),
                "segment_frames": pa.int32(),
                "segment_motion": pa.float32(),
                "segment_frozen": pa.bool_(),
                "segment_rms_dbfs": pa.float32(),
                "segment_silent": pa.bool_(),
                "video_segment_error": pa.string(),
            }
        )

    @property
    def presence(self) -> Mapping[str, str]:
        """A video without sound is no mistake."""
        return {"audio": "segment_rms_dbfs"}

    def setup(self, options: WorkerOptions) -> Known:
        return Known(checked={})

    def annotate(self, batch: pa.RecordBatch, state: Known, media: Media) -> pa.RecordBatch:
        references = batch.column("video_ref").to_pylist()
        starts = batch.column("segment_start_s").to_pylist()
        ends = batch.column("segment_end_s").to_pylist()
        rows: list[dict[str, Any]] = []
        for reference, group in groupby(range(batch.num_rows), references.__getitem__):
            spans = [(starts[row], ends[row]) for row in group]
            rows += self._cut(reference, spans, state)
        return pa.RecordBatch.from_pylist(rows, schema=self.writes)

    def _cut(
        self,
        reference: dict[str, Any] | None,
        spans: Sequence[tuple[float | None, float | None]],
        state: Known,
    ) -> Iterator[dict[str, Any]]:
        """Yield a row per segment of one video."""
        from winnow.stages._video_cut import CutOptions, cut

        codes = [_span_code(start, end) for start, end in spans]
        whole = [
            (start, end)
            for (start, end), code in zip(spans, codes, strict=True)
            if code is None and start is not None and end is not None
        ]
        options = CutOptions(
            num_frames=self.num_frames, quality=self.quality, max_side=self.max_side
        )
        try:
            ref = VideoRef.of(reference)
            state.check(ref)
            found = iter(cut(ref, whole, options)) if whole else iter(())
        except VideoError as error:
            for code in codes:
                yield {"video_segment_error": code or error.code}
            return
        for code in codes:
            yield self._row(next(found)) if code is None else {"video_segment_error": code}

    def _row(self, found: Any) -> dict[str, Any]:
        if found.code is not None or not found.pictures:
            return {"video_segment_error": found.code or "no_picture"}
        silent = None if found.rms_dbfs is None else found.rms_dbfs <= self.silent_dbfs
        return {
            "image": found.pictures[0],
            **dict(zip(self.frame_columns, found.pictures[1:], strict=False)),
            "audio": found.sound,
            "segment_frames": found.num_frames,
            "segment_motion": found.motion,
            "segment_frozen": found.motion <= self.frozen_level,
            "segment_rms_dbfs": found.rms_dbfs,
            "segment_silent": silent,
        }


def _span_code(start: float | None, end: float | None) -> str | None:
    """Return why a segment cannot be cut out, null where it can."""
    if start is None or end is None:
        return "missing"
    if not (0 <= start < end < float("inf")):
        return "bad_segment"
    return "too_long" if end - start > MAX_SEGMENT_S else None
