"""Subtitles of a video: a text track inside it, or a file beside it; read by FFmpeg."""

from __future__ import annotations

import heapq
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import av
from av.container import InputContainer

MAX_BYTES = 16 << 20
FORMATS = {"srt": "srt", "vtt": "webvtt", "ass": "ass", "ssa": "ass"}
"""Extension -> FFmpeg's demuxer; the first that is there counts."""
MAX_SHOWN = 100
MAX_CHARACTERS = 2000
"""Of one cue: longer ones are cut."""
_NUM_FIELDS = 8
"""Of a line of FFmpeg's ASS before its text, each with a comma behind it."""
_TEXT_CODECS = frozenset({"subrip", "srt", "ass", "ssa", "mov_text", "webvtt", "text"})
_ESCAPED = re.compile(r"\\\{\{\}|\\\u2060|\\[Nnh]|\{(?!\\)[^}]*\}?")
_PLAIN = {r"\{{}": "{", "\\\u2060": "\\", r"\N": "\n", r"\n": " ", r"\h": " "}
"""How FFmpeg writes braces, backslashes and breaks as ASS; other braces hold a comment."""
_STYLE = re.compile(r"\{\\[^{}]*\}|<[^<>\s][^<>\n]{0,39}>")
"""Style commands of ASS, and tags of SRT that FFmpeg does not know."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cue:
    """One subtitle: when it is shown, in seconds on the file's clock, and what it says."""

    start_s: float
    end_s: float
    text: str


def sidecar_cues(data: bytes, extension: str) -> list[Cue]:
    """Return the cues of a subtitle file, by time; [] where it is none that can be read.

    UTF-16 with its mark, UTF-8, else Windows-1252 as most old files are.
    """
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = data.decode("utf-16", "replace")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("cp1252", "replace")
    try:
        with av.open(io.BytesIO(text.encode()), "r", format=FORMATS[extension]) as container:
            return _cues(container, container.streams.subtitles[0])
    except (av.FFmpegError, ValueError, IndexError):
        return []


def embedded_cues(container: InputContainer) -> list[Cue]:
    """Return the cues of the first text track of a video, by time; [] where it has none."""
    for stream in container.streams.subtitles:
        if stream.codec_context.name in _TEXT_CODECS:
            try:
                return _cues(container, stream)
            except (av.FFmpegError, ValueError):
                return []
    return []


def _cues(container: InputContainer, stream: Any) -> list[Cue]:
    found = []
    for packet in container.demux(stream):
        if packet.pts is None or not packet.size:
            continue
        start = float(packet.pts * packet.time_base)
        end = start + float((packet.duration or 0) * packet.time_base)
        text = _plain(packet.decode())[:MAX_CHARACTERS]
        if text and end > start:
            found.append(Cue(start_s=start, end_s=end, text=text))
    return sorted(found, key=lambda cue: (cue.start_s, cue.end_s, cue.text))


def _plain(subtitles: Iterable[Any]) -> str:
    """Return what subtitles say: no style, one line."""
    parts = []
    for subtitle in subtitles:
        for rect in subtitle if isinstance(subtitle, Iterable) else (subtitle,):
            said = (getattr(rect, "ass", b"") or b"").decode("utf-8", "replace")
            parts.append("".join(said.split(",", _NUM_FIELDS)[_NUM_FIELDS:]))
    text = _ESCAPED.sub(lambda match: _PLAIN.get(match[0], ""), " ".join(parts))
    return " ".join(_STYLE.sub("", text).split())


def texts_between(
    cues: Sequence[Cue], spans: Iterable[tuple[float, float]]
) -> Iterator[str | None]:
    """Yield what is shown at any time in each [start, end), each text once; None where nothing is.

    cues: by time. spans: in order. Of more than MAX_SHOWN cues at a time the first ones count, so
    that a file made to hurt costs no more than a large one.
    """
    shown: list[Cue] = []
    ends_s: list[float] = []
    place = 0
    for start_s, end_s in spans:
        shown = [cue for cue in shown if cue.end_s > start_s]
        while place < len(cues) and cues[place].start_s < end_s:
            cue, place = cues[place], place + 1
            while ends_s and ends_s[0] <= cue.start_s:
                heapq.heappop(ends_s)
            if len(ends_s) < MAX_SHOWN:
                heapq.heappush(ends_s, cue.end_s)
                if cue.end_s > start_s:
                    shown.append(cue)
        yield " ".join(dict.fromkeys(cue.text for cue in shown)) or None
