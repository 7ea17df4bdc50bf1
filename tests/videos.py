"""Small videos of known content, written with PyAV."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

RATE, FPS, SIDE = 16_000, 10, 64
LEVELS = (40, 90, 140, 190, 240)
"""Grey of the frames of second 0, 1, 2 ..."""


def write_video(
    path: Path,
    *,
    seconds: int = 4,
    frozen: tuple[int, ...] = (),
    silent: tuple[int, ...] = (),
    sound_delay_s: float = 0.0,
    sound_s: float | None = None,
    sound: bool = True,
    title: str = "",
) -> None:
    """Write MPEG-4 pictures and AAC (PCM in .mkv) sound.

    Second i is of grey LEVELS[i], with a moving bar except in ``frozen`` seconds; its tone has
    200 + 100 i Hz, except in ``silent`` seconds. sound_s: length of the sound; None: as long.
    """
    codec = "pcm_s16le" if path.suffix == ".mkv" else "aac"
    with av.open(path, "w", options={"fflags": "+bitexact"}) as container:
        if title:
            container.metadata["title"] = title
        video = container.add_stream("mpeg4", rate=FPS)
        video.width = video.height = SIDE
        video.pix_fmt, video.bit_rate, video.gop_size = "yuv420p", 400_000, 15
        track = container.add_stream(codec, rate=RATE, layout="mono") if sound else None
        for index in range(seconds * FPS):
            second, part = divmod(index, FPS)
            pixels = np.full((SIDE, SIDE, 3), LEVELS[second], np.uint8)
            place = 0 if second in frozen else part * 6
            pixels[:, place : place + 4] = 0
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if track is not None:
            heard = waveform(sound_s or seconds, silent)
            frame = av.AudioFrame.from_ndarray(
                np.rint(heard[None] * 32767).astype(np.int16), format="s16", layout="mono"
            )
            frame.sample_rate, frame.time_base = RATE, Fraction(1, RATE)
            frame.pts, delay = 0, round(sound_delay_s * RATE)
            resampler = av.AudioResampler(
                format="fltp" if codec == "aac" else "s16", layout="mono", rate=RATE
            )
            fifo = av.AudioFifo()
            for part_frame in resampler.resample(frame):
                fifo.write(part_frame)
            while (piece := fifo.read(1024, partial=True)) is not None:
                piece.pts = (piece.pts or 0) + delay
                container.mux(track.encode(piece))
            container.mux(track.encode(None))


def waveform(seconds: float, silent: tuple[int, ...] = ()) -> np.ndarray:
    """Return what is heard: float64 (N,) at RATE."""
    times = np.arange(round(seconds * RATE)) / RATE
    second = times.astype(int)
    tone = 0.4 * np.sin(2 * np.pi * (200 + 100 * second) * times)
    return np.where(np.isin(second, silent), 0.0, tone)
