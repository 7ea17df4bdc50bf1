"""Known damage to a recording: pure functions of samples, rate and seed.

Samples are float32 (N,), 1 is full scale. Levels are RMS over the active part of the speech
(``active_rms``), so that pauses do not change what "10 dB" means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from winnow.contracts.media import Samples

NoiseColor = Literal["white", "pink", "babble"]
Where = Literal["start", "end", "both", "inside"]
FRAME_S = 0.02
ACTIVE_DB = 35.0
"""A frame is active where its level is at most this far below the loudest frame's."""
PEAK = 0.98
"""No function but ``clip`` makes a peak beyond this: sums are scaled down as a whole."""
TELEPHONE_RATE = 8000


def active_rms(samples: Samples, rate: int) -> float:
    """Return the RMS of the active frames of FRAME_S: within ACTIVE_DB of the loudest one.

    0.0 where every sample is 0. The rest after the last whole frame counts as a frame.
    """
    size = max(1, round(FRAME_S * rate))
    padded = np.zeros(-(-max(1, len(samples)) // size) * size, np.float64)
    padded[: len(samples)] = samples
    power = np.square(padded).reshape(-1, size).mean(axis=1)
    active = power >= power.max() * 10 ** (-ACTIVE_DB / 10)
    return float(np.sqrt(power[active].mean()))


def noise(num_samples: int, seed: int, color: NoiseColor = "white") -> Samples:
    """Return white or pink (1 / f power) Gaussian noise of RMS 1."""
    drawn = np.random.Generator(np.random.PCG64(seed)).standard_normal(num_samples)
    if color == "pink":
        spectrum = np.fft.rfft(drawn)
        spectrum /= np.sqrt(np.maximum(1, np.arange(len(spectrum))))
        spectrum[0] = 0
        drawn = np.fft.irfft(spectrum, num_samples)
    return _unit(drawn)


def babble(num_samples: int, seed: int, utterances: Sequence[Samples]) -> Samples:
    """Return the sum of utterances of RMS 1, each turned round to a random start and repeated."""
    starts = np.random.Generator(np.random.PCG64(seed))
    whole = np.zeros(num_samples)
    for samples in utterances:
        turned = np.roll(samples, int(starts.integers(len(samples))))
        whole += np.resize(_unit(turned), num_samples)
    return _unit(whole)


def add_noise(
    samples: Samples,
    rate: int,
    snr_db: float,
    seed: int,
    *,
    color: NoiseColor = "white",
    utterances: Sequence[Samples] = (),
) -> Samples:
    """Return speech plus noise: ``active_rms`` of the speech over the RMS of the noise is snr_db.

    color: "babble" takes ``utterances`` at the same rate. The sum is scaled down as a whole where
    it would exceed PEAK, which leaves the ratio as it is.
    """
    if color == "babble":
        added = babble(len(samples), seed, utterances)
    else:
        added = noise(len(samples), seed, color)
    level = active_rms(samples, rate) * 10 ** (-snr_db / 20)
    return _below_peak(samples + level * added)


def clip(samples: Samples, share: float) -> Samples:
    """Return the recording made so loud that this share of its samples lies at full scale."""
    ordered = np.sort(np.abs(samples))
    count = max(1, round(share * len(samples)))
    level = ordered[-count]
    if level == 0:
        return samples
    return _float32(np.clip(samples / level, -1, 1))


def silent(num_samples: int, seed: int, level_db: float | None = None) -> Samples:
    """Return no sound: zeros, or white noise of an RMS in dB below full scale ("-80")."""
    if level_db is None:
        return np.zeros(num_samples, np.float32)
    return _float32(noise(num_samples, seed) * 10 ** (level_db / 20))


def with_silence(samples: Samples, share: float, where: Where) -> Samples:
    """Return the recording with zeros added, so that they are this share of the result.

    "inside" is in the middle; "both" is half before and half after. share is below 1.
    """
    added = np.zeros(round(len(samples) * share / (1 - share)), np.float32)
    half = len(added) // 2
    middle = len(samples) // 2
    parts = {
        "start": (added, samples),
        "end": (samples, added),
        "both": (added[:half], samples, added[half:]),
        "inside": (samples[:middle], added, samples[middle:]),
    }
    return np.concatenate(parts[where])


def truncate(samples: Samples, kept: float) -> Samples:
    """Return the first part; kept is a share, and at least one sample is kept."""
    return samples[: max(1, round(len(samples) * kept))]


def truncate_bytes(data: bytes, kept: float) -> bytes:
    """Return the first part of a file, at least one byte."""
    return data[: max(1, round(len(data) * kept))]


def trim(samples: Samples, share: float, seed: int) -> Samples:
    """Return the recording without this share of its samples, cut from both ends at random."""
    lost = round(len(samples) * share)
    first = int(np.random.Generator(np.random.PCG64(seed)).integers(lost + 1))
    return samples[first : len(samples) - (lost - first)]


def gain(samples: Samples, gain_db: float) -> Samples:
    """Return the recording louder or softer, at most PEAK."""
    return _below_peak(samples * 10 ** (gain_db / 20))


def dc_offset(samples: Samples, offset: float) -> Samples:
    """Return the recording around ``offset`` instead of 0; the speech gets softer to fit in."""
    room = PEAK - abs(offset)
    peak = float(np.abs(samples).max(initial=0))
    return _float32(samples * min(1.0, room / peak if peak else 1.0) + offset)


def resample(samples: Samples, rate: int, wanted_rate: int) -> Samples:
    """Return the recording at another rate (soxr, HQ)."""
    import soxr

    if rate == wanted_rate:
        return samples
    return _float32(soxr.resample(samples, rate, wanted_rate))


def upsampled(samples: Samples, rate: int, wanted_rate: int) -> Samples:
    """Return a telephone recording (8 kHz, nothing above 4 kHz) in a file of another rate."""
    return resample(resample(samples, rate, TELEPHONE_RATE), TELEPHONE_RATE, wanted_rate)


def _unit(samples: np.ndarray) -> Samples:
    rms = float(np.sqrt(np.square(samples, dtype=np.float64).mean()))
    return _float32(samples / rms if rms else samples)


def _below_peak(samples: np.ndarray) -> Samples:
    peak = float(np.abs(samples).max(initial=0))
    return _float32(samples * (PEAK / peak) if peak > PEAK else samples)


def _float32(samples: np.ndarray) -> Samples:
    return np.ascontiguousarray(samples, dtype=np.float32)
