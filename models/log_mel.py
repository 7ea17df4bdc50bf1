"""Log-mel spectrograms as Whisper and CLAP compute them, in numpy and scipy.

Names of shapes: N samples, T frames, F frequencies, M mel bins.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy.fft
import scipy.sparse

from winnow.contracts.media import Samples

_Values = npt.NDArray[np.float64]

FLOOR = 1e-10
"""The least power that is told from silence: -100 dB."""

_BLOCK_FRAMES = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class LogMel:
    """A log-mel spectrogram, an ``AudioFeature``: mono samples (N,) in, float32 (M, T) out.

    Frames of ``n_fft`` samples, one every ``hop``, times a periodic Hann window; squared magnitude;
    triangular filters; logarithm. Whisper: Radford et al. 2022, ``whisper/audio.py``. CLAP: Wu et
    al. 2023, as in Hugging Face's ``ClapFeatureExtractor`` with truncation "rand_trunc".

    sample_rate: Hz of the waveform that ``compute`` takes.
    n_fft, hop: samples.  win_length: samples of the window, mid-frame; None: n_fft.
    num_bins: mel bins.  fmin, fmax: Hz, lower edge of the first and upper edge of the last filter;
        fmax None: half the sample rate.
    mel_scale: "slaney" (linear up to 1 kHz, then logarithmic; Auditory Toolbox, 1998) or "htk"
        (2595 log10(1 + f / 700); HTK Book, 5.4).
    norm: "slaney": a filter's weights are divided by half the width of its band in Hz. "none":
        its peak is 1.
    log: "db": 10 log10(max(power, FLOOR)). "whisper": log10(max(power, FLOOR)), nothing more than
        8 below the clip's greatest value, (x + 4) / 4; and no last frame, as in Whisper.
    center: frame t is centred on sample t * hop: both ends are extended by n_fft // 2 samples,
        reflected. Else the first frame begins with the first sample.
    duration_s: cut or extend every clip to this length first; None: as long as it is. What is cut
        is the end.
    fill: how a clip is extended: "zeros"; "repeat": begun again until it is full; "repeatpad":
        repeated as often as it fits whole, then zeros (CLAP).

    ``compute`` gives the same values for the same samples on every number of threads.
    """

    sample_rate: int
    n_fft: int
    hop: int
    num_bins: int
    win_length: int | None = None
    fmin: float = 0.0
    fmax: float | None = None
    mel_scale: Literal["slaney", "htk"] = "slaney"
    norm: Literal["slaney", "none"] = "slaney"
    log: Literal["whisper", "db"] = "db"
    center: bool = True
    duration_s: float | None = None
    fill: Literal["zeros", "repeat", "repeatpad"] = "zeros"

    def __post_init__(self) -> None:
        top = self.sample_rate / 2 if self.fmax is None else self.fmax
        sizes = (self.sample_rate, self.n_fft, self.hop, self.num_bins)
        if min(sizes) < 1 or not 0 < self.window_length <= self.n_fft:
            msg = f"LogMel: {self} needs positive sizes and win_length <= n_fft"
            raise ValueError(msg)
        if not 0 <= self.fmin < top <= self.sample_rate / 2:
            msg = f"LogMel: fmin={self.fmin}, fmax={self.fmax}; use 0 <= fmin < fmax <= rate / 2"
            raise ValueError(msg)
        if self.duration_s is not None and self.duration_s * self.sample_rate < 1:
            msg = f"LogMel: duration_s={self.duration_s} is less than a sample"
            raise ValueError(msg)

    @property
    def window_length(self) -> int:
        """Samples of the window."""
        return self.n_fft if self.win_length is None else self.win_length

    def num_frames(self, num_samples: int) -> int:
        """Return T for a clip of N samples."""
        if self.duration_s is not None:
            num_samples = round(self.duration_s * self.sample_rate)
        if num_samples < 1:
            return 0
        seen = num_samples + (2 * (self.n_fft // 2) if self.center else 0)
        frames = max(0, 1 + (seen - self.n_fft) // self.hop)
        return max(0, frames - 1) if self.log == "whisper" else frames

    def compute(self, samples_N: Samples) -> Samples:
        """Return the spectrogram, float32 (M, T). T may be 0 for a clip shorter than a hop."""
        clip_N = self._fitted(samples_N)
        num_frames = self.num_frames(len(clip_N))
        if not num_frames:
            return np.zeros((self.num_bins, 0), np.float32)
        if self.center:
            clip_N = np.pad(clip_N, self.n_fft // 2, mode="reflect")
        frames_TN = np.lib.stride_tricks.sliding_window_view(clip_N, self.n_fft)[:: self.hop]
        power_MT = np.empty((self.num_bins, num_frames), np.float64)
        window_N = _window(self.n_fft, self.window_length)
        filters_MF = _filters(
            self.sample_rate,
            self.n_fft,
            self.num_bins,
            (self.fmin, self.sample_rate / 2 if self.fmax is None else self.fmax),
            self.mel_scale,
            self.norm,
        )
        for at in range(0, num_frames, _BLOCK_FRAMES):
            stop = min(at + _BLOCK_FRAMES, num_frames)
            spectrum_TF = scipy.fft.rfft(frames_TN[at:stop] * window_N, axis=1)
            power_TF = spectrum_TF.real**2 + spectrum_TF.imag**2
            power_MT[:, at:stop] = filters_MF @ np.ascontiguousarray(power_TF.T)
        return self._logarithm(power_MT).astype(np.float32)

    def _fitted(self, samples_N: Samples) -> Samples:
        if self.duration_s is None:
            return samples_N
        wanted, num = round(self.duration_s * self.sample_rate), len(samples_N)
        if num >= wanted:
            return samples_N[:wanted]
        if num and self.fill == "repeat":
            return np.tile(samples_N, wanted // num + 1)[:wanted]
        if num and self.fill == "repeatpad":
            samples_N = np.tile(samples_N, wanted // num)
        return np.pad(samples_N, (0, wanted - len(samples_N)))

    def _logarithm(self, power_MT: _Values) -> _Values:
        log_MT = np.log10(np.maximum(power_MT, FLOOR))
        if self.log == "db":
            return 10.0 * log_MT
        return (np.maximum(log_MT, log_MT.max() - 8.0) + 4.0) / 4.0


WHISPER_80 = LogMel(sample_rate=16_000, n_fft=400, hop=160, num_bins=80, log="whisper")
"""Whisper up to large-v2: 25 ms window, 10 ms hop. Set ``duration_s=30.0`` for its encoder."""

WHISPER_128 = LogMel(sample_rate=16_000, n_fft=400, hop=160, num_bins=128, log="whisper")
"""Whisper large-v3 and turbo."""

CLAP_64 = LogMel(
    sample_rate=48_000,
    n_fft=1024,
    hop=480,
    num_bins=64,
    fmin=50.0,
    fmax=14_000.0,
    log="db",
    duration_s=10.0,
    fill="repeatpad",
)
"""LAION's CLAP (checkpoints without fusion): 10 seconds, T = 1001. A longer clip: its beginning."""


def mel_edges(
    num_bins: int, fmin: float, fmax: float, mel_scale: Literal["slaney", "htk"]
) -> _Values:
    """Return the M + 2 frequencies in Hz between which the M triangular filters stand."""
    low, high = _to_mel(fmin, mel_scale), _to_mel(fmax, mel_scale)
    mels = np.linspace(low, high, num_bins + 2)
    if mel_scale == "htk":
        return 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
    return np.where(mels < 15.0, mels * 200.0 / 3.0, 1000.0 * np.exp((mels - 15.0) * _LOG_STEP))


_LOG_STEP = float(np.log(6.4)) / 27.0


def _to_mel(frequency: float, mel_scale: Literal["slaney", "htk"]) -> float:
    if mel_scale == "htk":
        return float(2595.0 * np.log10(1.0 + frequency / 700.0))
    if frequency < 1000.0:
        return frequency * 3.0 / 200.0
    return float(15.0 + np.log(frequency / 1000.0) / _LOG_STEP)


@functools.lru_cache(maxsize=32)
def _filters(
    sample_rate: int,
    n_fft: int,
    num_bins: int,
    band: tuple[float, float],
    mel_scale: Literal["slaney", "htk"],
    norm: Literal["slaney", "none"],
) -> scipy.sparse.csr_array:
    """Return the filter bank (M, F). Sparse: a twentieth of the work, and no BLAS threads."""
    edges = mel_edges(num_bins, *band, mel_scale)
    frequencies_F = np.arange(n_fft // 2 + 1) * (sample_rate / n_fft)
    distance_EF = edges[:, None] - frequencies_F[None, :]
    width_E = np.diff(edges)[:, None]
    rising_MF, falling_MF = -distance_EF[:-2] / width_E[:-1], distance_EF[2:] / width_E[1:]
    weights_MF = np.maximum(0.0, np.minimum(rising_MF, falling_MF))
    if norm == "slaney":
        weights_MF *= 2.0 / (edges[2:] - edges[:-2])[:, None]
    return scipy.sparse.csr_array(weights_MF)


@functools.lru_cache(maxsize=32)
def _window(n_fft: int, win_length: int) -> _Values:
    """Return a periodic Hann window in the middle of n_fft samples."""
    hann = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(win_length) / win_length)
    left = (n_fft - win_length) // 2
    return np.pad(hann, (left, n_fft - win_length - left))
