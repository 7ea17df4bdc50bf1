"""Measures of a recording, from its samples alone: levels, clipping, noise, bandwidth.

C channels, N samples, T frames, F frequency bins, K bands. 1 is full scale.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.fft

from winnow.contracts.media import Samples

FLOOR_DB = -150.0
"""Level of digital silence, and of all that is below: 24 bits end at -138 dBFS."""
FRAME_S = 0.02
"""Frames of the silence ratio."""
WINDOW_S = 0.032
"""Hann windows of the spectrum, half overlapping: bins are about 31 Hz apart."""
FIRST_BIN = 2
"""Hum, rumble and DC below 47 Hz are neither speech nor counted as noise."""
BINS_PER_BAND = 8
NOISE_QUANTILE = 0.05
NOISE_BIAS = 0.383
"""That quantile of white noise's power in a band, over its mean (a test draws it afresh)."""
MIN_FRAMES = 20
"""An SNR needs so many windows that are not silent: 0.34 s."""
MAX_SNR_DB = 60.0
SILENT_DBFS = -90.0
"""A window below this holds nothing but rounding errors of 16 bits."""
BANDWIDTH_DB = 50.0
"""How far below the strongest bin a frequency counts as there."""
DITHER_POWER = 0.25 / 32768**2
"""Mean square of what rounding to 16 bits with triangular dither adds: LSB^2 / 4."""
DITHER_MARGIN = 8.0
_LOUD = 0.95
_CHUNK = 2048
_TOP_BINS, _BUMP_BINS = 50, 5

Floats = npt.NDArray[np.float64]


class Spectrum(NamedTuple):
    """Power of a recording by frequency.

    mean_by_bin: (F,), mean power of each bin over all windows.
    band_powers: (T, K), mean power of the bins of a band.
    levels: (T,), mean square of each window, from FIRST_BIN up.
    scale: power of a bin of white noise of variance 1.  bin_hz: distance of two bins.
    """

    mean_by_bin: Floats
    band_powers: Samples
    levels: Floats
    scale: float
    bin_hz: float


def decibels(power: npt.ArrayLike) -> Floats:
    """Return 10 log10 of a power, FLOOR_DB at least."""
    return 10.0 * np.log10(np.maximum(np.asarray(power, np.float64), 10.0 ** (FLOOR_DB / 10)))


def frame_powers(samples_CN: Samples, rate: int) -> Floats:
    """Return the variance of each 20 ms, in the channel where it is greatest.

    Each frame's own mean is left out, as DC that comes and goes with the speech is no sound. The
    last frame may be shorter.
    """
    step = max(1, round(rate * FRAME_S))
    starts = np.arange(0, samples_CN.shape[1], step)
    counts = np.diff(np.append(starts, samples_CN.shape[1]))
    power_T = np.zeros(starts.size)
    for channel_N in samples_CN:
        exact_N = channel_N.astype(np.float64)
        mean_T = np.add.reduceat(exact_N, starts) / counts
        np.square(exact_N, out=exact_N)
        np.maximum(power_T, np.add.reduceat(exact_N, starts) / counts - mean_T**2, out=power_T)
    return power_T


def loud_level(power_T: Floats) -> float:
    """Return the level in dBFS that one frame in 20 exceeds."""
    return float(np.quantile(decibels(power_T), _LOUD))


def flat_run_ratio(samples_CN: Samples, min_run: int) -> float:
    """Return the share of samples in flat tops of ``min_run`` or more, of the worst channel.

    A flat top is a run of samples that are all exactly the channel's greatest (or least) value and
    that the signal enters or leaves by a jump of more than 5 steps of its resolution (the distance
    to the next smaller value, at most 1 % of the peak). A natural crest of k >= 3 equal samples
    leaves by 4 steps at most: it is a parabola, and one step holds its middle k samples.
    """
    return max(
        (_flat_tops(channel_N, min_run) + _flat_tops(-channel_N, min_run)) / channel_N.size
        for channel_N in samples_CN
    )


def _flat_tops(channel_N: Samples, min_run: int) -> int:
    top = channel_N.max()
    at_top = np.flatnonzero(channel_N == top)
    if top <= 0 or at_top.size < min_run or at_top.size == channel_N.size:
        return 0
    breaks = np.flatnonzero(np.diff(at_top) > 1)
    first = at_top[np.append(0, breaks + 1)]
    last = at_top[np.append(breaks, at_top.size - 1)]
    length = last - first + 1
    long = length >= min_run
    if not long.any():
        return 0
    step = min(top - channel_N.max(where=channel_N < top, initial=-np.inf), 0.01 * top)
    before = top - channel_N[np.maximum(first - 1, 0)]
    after = top - channel_N[np.minimum(last + 1, channel_N.size - 1)]
    return int(length[long & (np.maximum(before, after) > 5 * step)].sum())


def peak_pile_up(samples_CN: Samples) -> float:
    """Return the share of samples that pile up at one level near the peak, of the worst channel.

    |x| is counted in bins of 2 % of its 99.99th percentile. A bump is a tenth of that range, from
    60 % up, that holds more samples than the tenth below it; the answer is the greatest surplus,
    less two standard deviations of such counts.
    Speech has ever fewer samples towards its peak, so it has none; clipping makes one that
    resampling, scaling and lossy codecs only smear (the idea of Laguna and Lerch, "An efficient
    algorithm for clipping detection and declipping audio", AES 141, 2016). A tone of constant
    amplitude has one too: the crests of a sine pile up.
    """
    return max(_pile_up(np.abs(channel_N)) for channel_N in samples_CN)


def _pile_up(magnitude_N: Samples) -> float:
    peak = float(np.quantile(magnitude_N, 0.9999))
    if peak <= 0:
        return 0.0
    last = 2 * _TOP_BINS
    scaled_N = np.minimum(magnitude_N * np.float32(_TOP_BINS / peak), np.float32(last))
    counts = np.bincount(scaled_N.astype(np.int32), minlength=last + 1)
    total = np.append(0, np.cumsum(counts))
    edge = np.arange(round(0.6 * _TOP_BINS), round(1.2 * _TOP_BINS))
    above = total[edge + _BUMP_BINS] - total[edge]
    below = total[edge] - total[edge - _BUMP_BINS]
    surplus = above - below - 2 * np.sqrt(above + below)
    return max(0.0, float(surplus.max())) / magnitude_N.size


def loudest_channel(samples_CN: Samples) -> Samples:
    """Return the channel of the greatest variance: a mean of channels could cancel them."""
    if samples_CN.shape[0] == 1:
        return samples_CN[0]
    return samples_CN[int(np.argmax([c.var(dtype=np.float64) for c in samples_CN]))]


def spectrum(channel_N: Samples, rate: int) -> Spectrum | None:
    """Return the powers of one channel; None where it is shorter than one window of 16 samples."""
    width = scipy.fft.next_fast_len(round(rate * WINDOW_S), real=True)
    if width < 16 or channel_N.size < width:
        return None
    hann = np.hanning(width + 2)[1:-1].astype(np.float32)
    windows_TN = np.lib.stride_tricks.sliding_window_view(channel_N, width)[:: width // 2]
    num_bands = (width // 2 + 1 - FIRST_BIN) // BINS_PER_BAND
    total_F = np.zeros(width // 2 + 1)
    bands, levels = [], []
    gain = float(np.square(hann, dtype=np.float64).sum())
    for start in range(0, len(windows_TN), _CHUNK):
        bins_TF = scipy.fft.rfft(windows_TN[start : start + _CHUNK] * hann, axis=1)
        power_TF = np.square(bins_TF.real) + np.square(bins_TF.imag)
        total_F += power_TF.sum(axis=0, dtype=np.float64)
        from_first_TF = power_TF[:, FIRST_BIN:]
        levels.append(2 * from_first_TF.sum(axis=1, dtype=np.float64) / (width * gain))
        in_bands = from_first_TF[:, : num_bands * BINS_PER_BAND]
        bands.append(in_bands.reshape(len(in_bands), num_bands, BINS_PER_BAND).mean(axis=2))
    return Spectrum(
        mean_by_bin=total_F / len(windows_TN),
        band_powers=np.concatenate(bands),
        levels=np.concatenate(levels),
        scale=gain,
        bin_hz=rate / width,
    )


def noise_ratio_db(powers: Spectrum, threshold_db: float) -> float | None:
    """Return the estimated signal-to-noise ratio in dB, within +-MAX_SNR_DB, without a reference.

    Quantile-based noise estimation (Stahl, Fischer and Bippus, "Quantile based noise estimation for
    spectral subtraction and Wiener filtering", ICASSP 2000): speech leaves each frequency free for
    some of the time, so a low quantile over time of a band's power, divided by what that quantile
    is of steady noise's mean, is the noise. Here: the 5 % quantile of bands of 8 bins (250 Hz),
    over windows of ``threshold_db`` or more, so that inserted silence is not taken for a low noise
    floor. Signal = mean power of those windows less the noise. Steady sounds are noise to it.
    None: fewer than MIN_FRAMES such windows, or no band (a rate below 600 Hz).
    """
    loud_TK = powers.band_powers[decibels(powers.levels) >= threshold_db]
    if len(loud_TK) < MIN_FRAMES or not loud_TK.shape[1]:
        return None
    noise = float(np.quantile(loud_TK, NOISE_QUANTILE, axis=0).sum(dtype=np.float64)) / NOISE_BIAS
    signal = float(loud_TK.mean(axis=0, dtype=np.float64).sum()) - noise
    least = 10.0 ** (-MAX_SNR_DB / 10)
    ratio = max(signal, 0.0) / noise if noise > 0 else 1.0 / least
    return float(10.0 * np.log10(np.clip(ratio, least, 1.0 / least)))


def bandwidth(powers: Spectrum) -> float | None:
    """Return the highest frequency, in Hz, that is there; None where none is.

    There: the mean power of three bins around it is within BANDWIDTH_DB of the strongest, and
    DITHER_MARGIN dB over what dither of 16 bits puts into a bin.
    """
    smooth_F = np.convolve(powers.mean_by_bin, np.full(3, 1 / 3), mode="same")
    strongest = float(smooth_F[FIRST_BIN:].max())
    dither = DITHER_POWER * powers.scale * 10 ** (DITHER_MARGIN / 10)
    there = np.flatnonzero(smooth_F >= max(strongest * 10 ** (-BANDWIDTH_DB / 10), dither))
    there = there[there >= FIRST_BIN]
    return float(there[-1] * powers.bin_hz) if there.size else None
