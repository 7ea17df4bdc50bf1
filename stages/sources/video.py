"""Videos cut into segments: one row per second, so that picture, sound and text belong together."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa

from winnow.contracts.errors import RecipeError
from winnow.contracts.identity import UID_TYPE, row_uid
from winnow.contracts.media import MEDIA_REF
from winnow.contracts.parameters import result
from winnow.contracts.registry import register_source
from winnow.contracts.source import Source, SourceFile
from winnow.stages import _subtitles, _video
from winnow.stages._subtitles import Cue
from winnow.stages.sources._files import open_file, printable
from winnow.stages.sources._folders import (
    Entry,
    find_folders,
    read_folder,
    whole_file,
    with_extension,
)
from winnow.stages.sources._media_refs import Ref, ref_array

logger = logging.getLogger(__name__)

SCHEMA = pa.schema(
    [
        pa.field("path", pa.string()),
        pa.field("text", pa.string()),
        pa.field("segment", pa.int32()),
        pa.field("segment_start_s", pa.float64()),
        pa.field("segment_end_s", pa.float64()),
        pa.field("video_ref", MEDIA_REF),
    ]
)
_BATCH_ROWS = 1024
_SUBTITLES = tuple(f".{extension}" for extension in _subtitles.FORMATS)
_Segment = tuple[int | None, float | None, float | None, str | None]


@register_source("video", version=2)
@dataclass(frozen=True, kw_only=True, slots=True)
class VideoFolder(Source):
    """One row per segment of each video below a folder; the stage video_segment cuts them out.

    Reads:  path: a folder, local or any fsspec URL, with all folders below it. Subtitles: the file
            of the same stem with .srt, .vtt, .ass or .ssa, also ``<stem>.<language>.srt`` (the
            first by name); without one the first text track of the video.
    Writes: path: string, relative to the folder.
            text: string, the subtitles that are shown at any time of the segment, each once, in
            order of time; null = none. Of one at most 2,000 characters, of those shown at a time
            the first 100.
            segment: int32, from 0. segment_start_s, segment_end_s: float64, seconds from the
            beginning of the file; the last segment ends with the file.
            video_ref: MEDIA_REF of the whole file, the same in all its rows.
            A file that is no video, or cannot be read, is one row without a segment.
    Identity: relative path, digest of the file's bytes, segment's number and length.
    Cost:   two reads of every file, one for the digest and one for its packets; nothing is decoded.
            The length is that of the packets that are there: a header that claims 100 hours adds
            no row. Memory: a folder's names, one batch of rows, the subtitles of one video.
    Fails:  SetupError: no folder, no video. ShardError: a folder that went away.

    segment_s: length of a segment in seconds.
    extensions: of videos, lower case, instead of the usual ones.
    max_segments: a longer video ends there, with a warning; time stamps can be broken.
    """

    path: str
    segment_s: float = result(1.0)
    extensions: tuple[str, ...] = result(_video.VIDEO_EXTENSIONS)
    max_segments: int = result(36_000)

    def __post_init__(self) -> None:
        if not 0.05 <= self.segment_s <= 600:
            msg = f"video: segment_s={self.segment_s}; use 0.05 to 600 seconds"
            raise RecipeError(msg)
        if self.max_segments < 1:
            msg = f"video: max_segments={self.max_segments}; use 1 or more"
            raise RecipeError(msg)
        if not self.extensions or any(e != e.lower().strip(".") for e in self.extensions):
            msg = f"video: extensions={self.extensions}; write them in lower case, as mp4"
            raise RecipeError(msg)

    def files(self) -> list[SourceFile]:
        """Return the folders that hold videos, sorted by name; the root's name is "."."""
        return find_folders(
            "video",
            self.path,
            "video",
            self.extensions,
            beside=lambda name: name.lower().endswith(_SUBTITLES),
        )

    def schema(self) -> pa.Schema:
        """Return the columns."""
        return SCHEMA

    def read(self, file: SourceFile) -> Iterator[pa.RecordBatch]:
        """Yield the segments of the videos of one folder, by name."""
        before, entries = read_folder(self.path, file.path)
        for entry in with_extension(entries, self.extensions):
            yield from self._rows(entry, printable(before + entry.name), _sidecar(entry, entries))

    def _rows(self, entry: Entry, path: str, sidecar: Entry | None) -> Iterator[pa.RecordBatch]:
        ref = whole_file(entry)
        length_s, cues = (0.0, []) if ref is None else _look(path, ref, sidecar)
        # A length of 3.0000001 s is three segments, not four.
        count = math.ceil(length_s / self.segment_s - 1e-6)
        if count > self.max_segments:
            logger.warning("%s: %d segments, cut at %d", path, count, self.max_segments)
            count = self.max_segments
        starts = [index * self.segment_s for index in range(count)]
        ends = [min(start + self.segment_s, length_s) for start in starts]
        texts = _subtitles.texts_between(cues, zip(starts, ends, strict=True))
        segments: Iterator[_Segment] = zip(range(count), starts, ends, texts, strict=True)
        if not count:
            segments = iter([(None, None, None, None)])
        while some := list(islice(segments, _BATCH_ROWS)):
            yield self._batch(path, ref, some)

    def _batch(self, path: str, ref: Ref | None, segments: Sequence[_Segment]) -> pa.RecordBatch:
        digest = None if ref is None else ref.digest
        numbers, starts, ends, texts = zip(*segments, strict=True)
        uids = [row_uid(path, digest, f"{n}", f"{self.segment_s!r}") for n in numbers]
        return pa.RecordBatch.from_arrays(
            [
                pa.array(uids, UID_TYPE),
                pa.array([path] * len(uids), pa.string()),
                pa.array(texts, pa.string()),
                pa.array(numbers, pa.int32()),
                pa.array(starts, pa.float64()),
                pa.array(ends, pa.float64()),
                ref_array([ref] * len(uids)),
            ],
            schema=pa.schema([("uid", UID_TYPE), *SCHEMA]),
        )


def _look(path: str, ref: Ref, sidecar: Entry | None) -> tuple[float, list[Cue]]:
    """Return the length of a video in seconds, 0 where it is none, and its subtitles."""
    video = _video.VideoRef(**ref._asdict())
    try:
        with _video.opened(video) as container:
            start = _video.start_s(container)
            ends = [extent.last_s for extent in _video.extents(container).values()]
        cues = [] if sidecar is None else _read_sidecar(sidecar)
        if sidecar is None:
            with _video.opened(video) as container:
                cues = _shifted(_subtitles.embedded_cues(container), -start)
    except _video.VideoError as error:
        logger.warning("%s: no video that can be read: %s", path, error.code)
        return 0.0, []
    return max([0.0, *(end - start for end in ends)]), cues


def _shifted(cues: Sequence[Cue], by_s: float) -> list[Cue]:
    return [Cue(start_s=c.start_s + by_s, end_s=c.end_s + by_s, text=c.text) for c in cues]


def _sidecar(video: Entry, entries: Sequence[Entry]) -> Entry | None:
    """Return the subtitle file of a video: of the same stem, else with a language behind it."""
    kinds = list(_subtitles.FORMATS)
    texts = [entry for entry in with_extension(entries, kinds) if entry.token]
    exact = [entry for entry in texts if entry.stem == video.stem]
    exact.sort(key=lambda entry: kinds.index(entry.extension))
    in_language = [e for e in texts if e.stem.rpartition(".")[0] == video.stem]
    return next(iter([*exact, *in_language]), None)


def _read_sidecar(entry: Entry) -> list[Cue]:
    try:
        with open_file(entry.path) as stream:
            data = stream.read(_subtitles.MAX_BYTES + 1)
    except OSError:
        return []
    if len(data) > _subtitles.MAX_BYTES:
        return []
    return _subtitles.sidecar_cues(data, entry.extension)
