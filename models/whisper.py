"""Whisper's rule for recordings of any length, whatever computes the network.

A recording is heard in windows of 30 s, one after the other. A window's text comes with time
stamps; the next window begins at the last stamp after which the window says more, or where this one
ends (Radford et al. 2022, section 3.8 of "Robust Speech Recognition via Large-Scale Weak
Supervision"; the reference implementation's ``transcribe``). Departures from the reference: no
window is told what earlier ones said, nothing is ever sampled (temperature 0, no second attempt),
no text is dropped as silence, and each window moves on by at least a second.

Tensor suffixes: M mel bins, T frames, N samples.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from winnow.contracts.media import Samples

SAMPLE_RATE = 16_000
HOP = 160
"""Samples per frame of the spectrogram."""
STAMP_FRAMES = 2
"""Frames per step of a time stamp: 0.02 s."""
MIN_ADVANCE = 100
"""Frames, one second: what a window moves on by at least, so that no recording takes for ever."""
MAX_COMPRESSION_RATIO = 2.4
"""Above it Whisper's reference calls a window's text a repetition."""

_FRAMES_PER_S = SAMPLE_RATE / HOP
_LOOP = re.compile(r"(\w.{0,39}?)\1{4,}", re.DOTALL)

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A recording as the network sees it: log-mel (M, T), and how many frames are recording."""

    log_mel: Floats
    num_frames: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What the network wrote about one window.

    tokens: text and time stamps, without the end token.  log_probability: natural logarithm,
    summed over the tokens and the end.  no_speech: probability of the token for no speech.
    """

    tokens: Sequence[int]
    log_probability: float
    no_speech: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A piece of a transcript, in seconds of the recording."""

    start_s: float
    end_s: float
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Transcript:
    """All that was heard; the transcript stage's docstring defines the measures."""

    text: str
    language: str
    language_probability: float | None
    no_speech_probability: float
    log_probability: float
    compression_ratio: float
    repeats: bool
    segments: tuple[Segment, ...]


class Whisper(Protocol):
    """A loaded model."""

    @property
    def batch_size(self) -> int:
        """Windows per call of ``encode``, at most."""
        ...

    @property
    def window_frames(self) -> int:
        """Frames of a window: 3000."""
        ...

    @property
    def stamp_zero(self) -> int:
        """The token of time stamp 0; all tokens above are stamps."""
        ...

    @property
    def end(self) -> int:
        """The token that ends a text; special tokens have numbers from here on."""
        ...

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes that it can be told; only ("en",) for an English model."""
        ...

    def clip(self, samples_N: Samples) -> Clip:
        """Return the log-mel spectrogram of a recording of 16 kHz."""
        ...

    def encode(self, windows: Sequence[Floats]) -> Any:
        """Return what ``languages_of`` and ``write`` read about up to ``batch_size`` windows."""
        ...

    def languages_of(self, encoded: Any) -> list[tuple[str, float]]:
        """Return the likeliest language of each window and its probability."""
        ...

    def write(self, encoded: Any, languages: Sequence[str]) -> list[Written]:
        """Return the text of each window."""
        ...

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens; stamps and other special ones give none."""
        ...


def transcribe(
    model: Whisper, recordings: Sequence[Samples], *, language: str | None = None
) -> list[Transcript]:
    """Return the transcripts of up to ``model.batch_size`` recordings of 16 kHz.

    language: a code; None = the model's guess from a recording's first window.
    """
    states = [_State(clip=model.clip(samples), language=language) for samples in recordings]
    known = len(model.languages) == 1
    for state in states:
        if known:
            state.language, state.language_probability = model.languages[0], 1.0
    while True:
        waiting = [state for state in states if state.seek < state.clip.num_frames]
        if not waiting:
            break
        encoded = model.encode([_window(state, model.window_frames) for state in waiting])
        if any(state.language is None for state in waiting):
            for state, (code, value) in zip(waiting, model.languages_of(encoded), strict=True):
                if state.language is None:
                    state.language, state.language_probability = code, value
        written = model.write(encoded, [str(state.language) for state in waiting])
        for state, one in zip(waiting, written, strict=True):
            _note(state, one, model)
    return [_finished(state) for state in states]


def compression_ratio(text: str) -> float:
    """Return bytes of UTF-8 over bytes after zlib: Whisper's measure of repetition; 0 for ""."""
    data = text.encode("utf-8", "replace")
    return len(data) / len(zlib.compress(data))


def loops(text: str) -> bool:
    """Whether most of a text is one thing of up to 40 characters said five times on end, or more.

    Finds the short loops that a ratio of compression does not.
    """
    flat = " ".join(text.lower().split()) + " "
    return sum(len(found.group()) for found in _LOOP.finditer(flat)) > len(flat) / 2


@dataclass(kw_only=True, slots=True)
class _State:
    """How far a recording is heard."""

    clip: Clip
    language: str | None
    language_probability: float | None = None
    seek: int = 0
    log_probability: float = 0.0
    num_tokens: int = 0
    silent_frames: float = 0.0
    ratio: float = 0.0
    repeats: bool = False
    segments: list[Segment] = field(default_factory=list)


def _window(state: _State, frames: int) -> Floats:
    """Return the next window; frames behind the recording's end are 0."""
    piece = state.clip.log_mel[:, state.seek : state.seek + frames]
    missing = frames - piece.shape[1]
    return np.pad(piece, ((0, 0), (0, missing))) if missing else piece


def _note(state: _State, one: Written, model: Whisper) -> None:
    """Add what a window says, and move on."""
    room = min(model.window_frames, state.clip.num_frames - state.seek)
    segments, advance = split(one.tokens, model.stamp_zero, room)
    offset = state.seek / _FRAMES_PER_S
    for start, end, tokens in segments:
        text = model.text(tokens)
        if start != end and text.strip():
            begin = offset + start / _FRAMES_PER_S
            last = offset + end / _FRAMES_PER_S
            state.segments.append(Segment(start_s=begin, end_s=last, text=text))
    whole = model.text(one.tokens).strip()
    ratio = compression_ratio(whole)
    state.ratio = max(state.ratio, ratio)
    state.repeats = state.repeats or ratio > MAX_COMPRESSION_RATIO or loops(whole)
    state.log_probability += one.log_probability
    state.num_tokens += len(one.tokens) + 1
    advance = min(max(advance, MIN_ADVANCE), room)
    state.silent_frames += one.no_speech * advance
    state.seek += advance


def split(
    tokens: Sequence[int], stamp_zero: int, room: int
) -> tuple[list[tuple[int, int, Sequence[int]]], int]:
    """Return a window's segments (start, end, tokens) and how far to move on, all in frames.

    Two stamps side by side end a segment. Text behind the last such pair is heard again in the next
    window, unless a single stamp closes it, which means that nothing follows in this window.
    """
    stamps = [token >= stamp_zero for token in tokens]
    cuts = [i for i in range(1, len(tokens)) if stamps[i] and stamps[i - 1]]
    closed = len(tokens) >= 2 and stamps[-1] and not stamps[-2]
    if not cuts:
        times = [t - stamp_zero for t in tokens if t >= stamp_zero]
        end = times[-1] * STAMP_FRAMES if times and times[-1] > 0 else room
        return [(0, end, tokens)], room
    edges = [0, *cuts, *([len(tokens)] if closed else [])]
    segments = []
    for first, last in zip(edges, edges[1:], strict=False):
        piece = tokens[first:last]
        start, end = ((t - stamp_zero) * STAMP_FRAMES for t in (piece[0], piece[-1]))
        segments.append((start, end, piece))
    return segments, room if closed else segments[-1][1]


def _finished(state: _State) -> Transcript:
    text = "".join(segment.text for segment in state.segments).strip()
    num_frames = max(state.clip.num_frames, 1)
    return Transcript(
        text=" ".join(text.split()) if any(map(str.isalnum, text)) else "",
        language=state.language or "",
        language_probability=state.language_probability,
        no_speech_probability=state.silent_frames / num_frames if state.num_tokens else 1.0,
        log_probability=state.log_probability / max(state.num_tokens, 1),
        compression_ratio=state.ratio,
        repeats=state.repeats,
        segments=tuple(state.segments),
    )
