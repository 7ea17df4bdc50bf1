"""Technical quality of a recording: silence, clipping, noise, bandwidth, DC offset, level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from winnow.contracts.errors import RecipeError
from winnow.contracts.media import DecodedAudio, Media, Samples
from winnow.contracts.parameters import result
from winnow.contracts.registry import register_stage
from winnow.contracts.stage import Stage
from winnow.stages import _audio_measures as measures
from winnow.stages._audio_column import check_audio_column

_ERROR = "audio_quality_error"


def levels(samples_CN: Samples) -> dict[str, float]:
    """Return the columns that need no parameter and no spectrum."""
    square = float(np.mean([np.mean(np.square(c, dtype=np.float64)) for c in samples_CN]))
    peak = float(np.abs(samples_CN).max())
    return {
        "peak_pile_up": measures.peak_pile_up(samples_CN),
        "dc_offset": float(np.abs(samples_CN.mean(axis=1, dtype=np.float64)).max()),
        "peak_dbfs": float(measures.decibels(peak * peak)),
        "rms_dbfs": float(measures.decibels(square)),
    }


@register_stage("audio_quality", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class AudioQuality(Stage):
    """Measure each recording as it was recorded: its own rate, all its channels.

    Reads:   audio (or ``audio_column``): large_binary, encoded; null where the download failed.
    Writes:  silence_ratio: float32 in [0, 1], share of 20 ms frames whose level is under the
                 greater of ``silence_dbfs`` and (95th percentile of the frames' levels less
                 ``silence_below_loud_db``). Level: 10 log10 of a frame's variance, in the channel
                 where it is greatest.
             clipping_ratio: float32 in [0, 1], share of samples in flat tops: runs of
                 ``clipping_run`` or more that are all exactly the channel's greatest (or least)
                 value and are entered or left by a jump; of the worst channel. The level of the
                 top does not matter, so a float file beyond 1, one single peak at 1 and a file
                 that was scaled after clipping are judged alike. Not seen: clipping that was
                 resampled, dithered or lossily encoded afterwards.
             peak_pile_up: float32 in [0, 1], share of samples that pile up near the peak; sees
                 clipping after all that too, as about half to nine tenths of the share that was
                 clipped. A steady tone piles up as well, so it is for speech. Laguna and Lerch
                 2016, as in _audio_measures.peak_pile_up.
             snr_db: float32 in [-60, 60], estimated without a reference from the quietest moments
                 of each band (quantile-based noise estimation, Stahl et al. 2000, as in
                 _audio_measures.noise_ratio_db), over 32 ms windows within
                 ``silence_below_loud_db`` of the loud ones; of the loudest channel. Steady sounds
                 are noise to it, and clean dry speech has 23 to 45: above 25 it says little. On
                 mixes of speech with white (pink) noise of -5 to 25 dB it errs by -1.4 to -0.4
                 (-0.2 to +1.5) dB on average, with a spread of 1 dB at most.
             bandwidth_hz: float32, the highest frequency within 50 dB of the strongest (and 8 dB
                 above the dither of 16 bits), in the mean spectrum of the loudest channel; about
                 4000 for a telephone's 8 kHz at any rate. Not seen: upsampling without a filter
                 (a straight line from sample to sample), which mirrors the speech upwards.
             dc_offset: float32, >= 0, magnitude of the mean, 1 = full scale; of the worst channel.
             peak_dbfs: float32, 20 log10 of the greatest magnitude; 0 = full scale.
             rms_dbfs: float32, 10 log10 of the mean square over all channels; a sine of full
                 scale has -3.01. Both are -150 at least: digital silence has that.
             audio_quality_error: string; null, or the code of the decoder: "missing" |
                 "too_large" | "undecodable" | "too_long" | "no_audio" | "is_video" | "not_finite",
                 where all columns are null; or "silent" (no 32 ms over -90 dBFS) or "too_short"
                 (less than 0.34 s that is not silent), where snr_db is null and bandwidth_hz may
                 be: it needs one window of 32 ms that has 16 samples and is not silent.
    Cost:    CPU only; shares the pass's decoded audio. One FFT per 16 ms of the loudest channel.
             ITU-R BS.1770 loudness is not measured: no library that is kept here gives it.
    Fails:   a bad row never raises. RecipeError for parameters that cannot be meant.
    """

    audio_column: str = result("audio")
    silence_dbfs: float = result(-60.0)
    silence_below_loud_db: float = result(40.0)
    clipping_run: int = result(3)

    def __post_init__(self) -> None:
        check_audio_column("audio_quality", self.audio_column)
        if not measures.FLOOR_DB < self.silence_dbfs < 0:
            msg = f"audio_quality: silence_dbfs={self.silence_dbfs}; use -149 to -1, such as -60.0"
            raise RecipeError(msg)
        if not 0 < self.silence_below_loud_db <= -measures.FLOOR_DB:
            msg = (
                f"audio_quality: silence_below_loud_db={self.silence_below_loud_db}; use a value"
                " over 0, 150 at most, such as 40.0"
            )
            raise RecipeError(msg)
        if self.clipping_run < 3:
            msg = (
                f"audio_quality: clipping_run={self.clipping_run}; use 3 or more: two equal samples"
                " are any crest"
            )
            raise RecipeError(msg)

    @property
    def reads(self) -> pa.Schema:
        """The recording."""
        return pa.schema({self.audio_column: pa.large_binary()})

    @property
    def writes(self) -> pa.Schema:
        """See the class."""
        names = (
            "silence_ratio", "clipping_ratio", "peak_pile_up", "snr_db", "bandwidth_hz",
            "dc_offset", "peak_dbfs", "rms_dbfs",
        )  # fmt: skip
        return pa.schema([(name, pa.float32()) for name in names] + [(_ERROR, pa.string())])

    def annotate(self, batch: pa.RecordBatch, state: None, media: Media) -> pa.RecordBatch:
        rows = [
            {_ERROR: audio} if isinstance(audio, str) else self._measure(audio)
            for audio in media.audio(self.audio_column)
        ]
        return pa.RecordBatch.from_pylist(rows, schema=self.writes)

    def _measure(self, audio: DecodedAudio) -> dict[str, Any]:
        power_T = measures.frame_powers(audio.samples, audio.sample_rate)
        quiet = measures.loud_level(power_T) - self.silence_below_loud_db
        silent_T = measures.decibels(power_T) < max(self.silence_dbfs, quiet)
        return {
            "silence_ratio": float(silent_T.mean()),
            "clipping_ratio": measures.flat_run_ratio(audio.samples, self.clipping_run),
            **levels(audio.samples),
            **_spectral(audio, quiet),
        }


def _spectral(audio: DecodedAudio, quiet_dbfs: float) -> dict[str, Any]:
    """Return SNR and bandwidth, or why they are not there."""
    powers = measures.spectrum(measures.loudest_channel(audio.samples), audio.sample_rate)
    if powers is None:
        return {_ERROR: "too_short"}
    if measures.decibels(powers.levels.max()) <= measures.SILENT_DBFS:
        return {_ERROR: "silent"}
    snr_db = measures.noise_ratio_db(powers, max(quiet_dbfs, measures.SILENT_DBFS))
    return {
        "snr_db": snr_db,
        "bandwidth_hz": measures.bandwidth(powers),
        _ERROR: "too_short" if snr_db is None else None,
    }
