"""What a recording looks like where it is loud: a hash, a thumbnail and their information.

Of a log-mel spectrogram only the part from the first to the last loud frame is used, and levels
only relative to the loud frames, so that silence around it and gain change nothing. Only bands up
to 3.4 kHz are used, which every usual codec and telephone keep. The hash takes low frequencies in
time, weighted towards the middle, so that a cut of a few percent at either end moves few bits. The
thumbnail is fine in time, so that two takes of a sentence which differ in one word differ in it.

The hash is the sign of DCT coefficients, as of pictures (pHash); that band energies relative to
their surroundings survive a codec is Haitsma and Kalker, "A Highly Robust Audio Fingerprinting
System" (ISMIR 2002).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

# Shape suffixes: M mel bands, T frames of 10 ms, C cells of time, B bands of the thumbnail, U
# frequency along mel, V frequency along time.

Floats = npt.NDArray[np.float64]
PrintFailure = Literal["too_short", "silent"]

BANDS = slice(2, 58)
"""Of Whisper's 80 mel bands: centres from 110 Hz to 3.3 kHz."""
FRAME_S = 0.01
NUM_CELLS = 128
NUM_LEVEL_BANDS = 8
LEVEL_DB = 2.0
SPECTRUM_DB = 0.25
THUMBNAIL_BYTES = 4 + (BANDS.stop - BANDS.start) + NUM_CELLS * NUM_LEVEL_BANDS // 2
MIN_LOUD_FRAMES = 10
SILENT_DB = -70.0
"""The loud frames' strongest band, in dB where a full-scale sine has 19 to 24."""
_LOUD_RANGE_DB = 20.0
_FLOOR_DB = 30.0
_CELL_WIDTH = 1.5
_MAX_FRAMES = 1 << 13
_TIE = 1e-6


def _cosines(num_frequencies: int, length: int) -> Floats:
    position = (np.arange(length) + 0.5) / length
    return np.cos(np.pi * np.outer(np.arange(num_frequencies), position))


_NUM_BANDS = BANDS.stop - BANDS.start
_MEL_UM = _cosines(16, _NUM_BANDS)
_TIME_VC = _cosines(5, NUM_CELLS)[1:]
_HANN_C = np.sin(np.pi * (np.arange(NUM_CELLS) + 0.5) / NUM_CELLS) ** 2


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioPrint:
    """Hash, thumbnail and information of one recording; see ``audio_fingerprint``."""

    hash: int
    thumbnail: bytes
    detail: float


def audio_print(level_MT: npt.NDArray[np.float32]) -> AudioPrint | PrintFailure:
    """Return the print of a log-mel spectrogram in dB (80 bands, frames of 10 ms)."""
    if level_MT.shape[1] < MIN_LOUD_FRAMES:
        return "too_short"
    level_MT = level_MT[BANDS]
    power_MT = 10.0 ** (level_MT / 10.0)
    reference_db = 10.0 * np.log10(_loudness(power_MT.max(axis=0)))
    if reference_db < SILENT_DB:
        return "silent"
    first, last = _loud_part(power_MT.sum(axis=0))
    if last - first < MIN_LOUD_FRAMES:
        return "too_short"
    relative_MT = np.maximum(level_MT[:, first:last] - reference_db, -_FLOOR_DB)
    level_MC = _cells(_shortened(relative_MT))
    dct_UV = _low_frequencies(level_MC)
    return AudioPrint(
        hash=int.from_bytes(np.packbits(dct_UV > _TIE).tobytes(), "big"),
        thumbnail=_thumbnail((last - first) * FRAME_S, relative_MT.mean(axis=1), level_MC),
        # A product of two cosines of amplitude 1 has about this coefficient, the weights included.
        detail=float(np.median(np.abs(dct_UV)) / (_NUM_BANDS * NUM_CELLS / 8)),
    )


def _loudness(power_T: npt.NDArray[np.floating]) -> float:
    """Return the mean power weighted by power: what quiet frames, however many, do not change."""
    wide_T = power_T.astype(np.float64)
    return float((wide_T**2).sum() / wide_T.sum())


def _loud_part(power_T: npt.NDArray[np.floating]) -> tuple[int, int]:
    """Return the first loud frame and the one after the last."""
    limit = _loudness(power_T) * 10.0 ** (-_LOUD_RANGE_DB / 10.0)
    loud = np.flatnonzero(power_T >= limit)
    return int(loud[0]), int(loud[-1]) + 1


def _shortened(level_MT: npt.NDArray[np.floating]) -> Floats:
    """Return means over so many frames that a long recording fits the memory."""
    step = -(-level_MT.shape[1] // _MAX_FRAMES)
    if step == 1:
        return level_MT.astype(np.float64)
    edges = np.arange(0, level_MT.shape[1], step)
    counts = np.diff(edges, append=level_MT.shape[1])
    return np.add.reduceat(level_MT, edges, axis=1, dtype=np.float64) / counts


def _cells(level_MT: Floats) -> Floats:
    """Return the mean level of 128 cells of equal length that overlap their neighbours."""
    num_frames = level_MT.shape[1]
    sums_MT = np.zeros((level_MT.shape[0], num_frames + 1))
    np.cumsum(level_MT, axis=1, out=sums_MT[:, 1:])
    middle_C = (np.arange(NUM_CELLS) + 0.5) * num_frames / NUM_CELLS
    half = _CELL_WIDTH / 2 * num_frames / NUM_CELLS
    start_C = np.clip(middle_C - half, 0, num_frames)
    stop_C = np.clip(middle_C + half, 0, num_frames)

    def sum_before(position_C: Floats) -> Floats:
        frame_C = np.minimum(position_C.astype(np.int64), num_frames - 1)
        within: Floats = (position_C - frame_C) * level_MT[:, frame_C]
        return sums_MT[:, frame_C] + within

    means: Floats = (sum_before(stop_C) - sum_before(start_C)) / (stop_C - start_C)
    return means


def _low_frequencies(level_MC: Floats) -> Floats:
    """Return 16 frequencies along mel by 4 along time, the constant one along time left out."""
    mean_M = (level_MC * _HANN_C).sum(axis=1, keepdims=True) / _HANN_C.sum()
    dct_UV: Floats = _MEL_UM @ ((level_MC - mean_M) * _HANN_C) @ _TIME_VC.T
    return dct_UV


def _thumbnail(duration_s: float, mean_M: npt.NDArray[np.floating], level_MC: Floats) -> bytes:
    level_BC = level_MC.reshape(NUM_LEVEL_BANDS, -1, NUM_CELLS).mean(axis=1)
    steps_CB = np.rint((level_BC.T + _FLOOR_DB) / LEVEL_DB).clip(0, 15).astype(np.uint8)
    packed = steps_CB[:, 0::2] << 4 | steps_CB[:, 1::2]
    spectrum_M = np.rint((mean_M + _FLOOR_DB) / SPECTRUM_DB).clip(0, 255).astype(np.uint8)
    return np.float32(duration_s).astype("<f4").tobytes() + spectrum_M.tobytes() + packed.tobytes()
