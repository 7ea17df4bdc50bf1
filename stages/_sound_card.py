"""A recording for people: a picture of its spectrum and its first seconds to listen to."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from winnow.contracts.media import MediaCaps
from winnow.stages import _audio, _audio_encode

MAX_DURATION_S = 300.0
"""Longer recordings are not decoded: a card is not worth the time."""
SHOWN_S = 30.0
HEARD_S = 8.0
HEARD_BIT_RATE = 24_000
RATE = 16_000
WIDTH, HEIGHT = 232, 80
WINDOW = 512
RANGE_DB = 70.0

_COLOURS = np.array(
    [(248, 249, 251), (190, 212, 232), (84, 141, 196), (43, 70, 128), (32, 18, 58)], np.float64
)
"""From silence to the loudest: paper to ink, so that it prints."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SoundCard:
    """picture: JPEG, WIDTH by HEIGHT: time from left to right, 0 to 8 kHz upwards, RANGE_DB below
    the loudest is paper; of the first SHOWN_S seconds.  clip: MP3 of the first HEARD_S seconds, at
    most about 25 kB.  duration_s: of the whole recording."""

    picture: bytes
    clip: bytes
    duration_s: float


def sound_card(data: bytes) -> SoundCard | None:
    """Return the card of a recording; None where it cannot be decoded or is longer than
    MAX_DURATION_S. Never raises for the content of ``data``; the same bytes give the same card."""
    found = _audio.decode_audio(data, MediaCaps(max_duration_s=MAX_DURATION_S))
    if isinstance(found, str):
        return None
    start_CN = found.samples[:, : int(SHOWN_S * found.sample_rate)]
    samples_N = _audio.to_mono(start_CN, found.sample_rate, RATE)
    heard_N = samples_N[: int(HEARD_S * RATE)]
    if not heard_N.size:
        return None
    clip = _audio_encode.encode_audio(heard_N, RATE, "mp3", bit_rate=HEARD_BIT_RATE)
    return SoundCard(picture=_jpeg(spectrum(samples_N)), clip=clip, duration_s=found.duration_s)


def spectrum(samples_N: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Return the picture of a waveform at RATE as (HEIGHT, WIDTH, 3) pixels.

    Power of Hann windows of WINDOW samples, as many as there are columns, in dB.
    """
    padded_N = np.pad(samples_N, (0, max(0, WINDOW - samples_N.size)))
    starts_T = np.linspace(0, padded_N.size - WINDOW, WIDTH).astype(np.int64)
    frames_TW = padded_N[starts_T[:, None] + np.arange(WINDOW)] * np.hanning(WINDOW)
    power_TF = np.abs(np.fft.rfft(frames_TW, axis=1))[:, 1:] ** 2
    level_TF = 10 * np.log10(power_TF + 1e-10)
    rows_H = np.linspace(0, level_TF.shape[1], HEIGHT, endpoint=False).astype(np.int64)
    bands_TH = np.maximum.reduceat(level_TF, rows_H, axis=1)
    # A silent recording is paper, not its own noise made loud.
    top = max(float(bands_TH.max()), -30.0)
    share_TH = np.clip(1 + (bands_TH - top) / RANGE_DB, 0, 1)
    place_HT = share_TH.T[::-1] * (len(_COLOURS) - 1)
    stops = np.arange(len(_COLOURS))
    pixels = np.stack([np.interp(place_HT, stops, channel) for channel in _COLOURS.T], axis=-1)
    return pixels.round().astype(np.uint8)


def _jpeg(pixels: npt.NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=72, optimize=True)
    return out.getvalue()
