"""Audio fingerprints: a 64-bit hash of the log-mel that survives re-encoding, gain and trims."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from winnow.contracts.media import Media, MediaFailure, Samples
from winnow.contracts.parameters import result
from winnow.contracts.registry import register_stage
from winnow.contracts.stage import Stage
from winnow.models.log_mel import WHISPER_80
from winnow.stages import _audio_hash
from winnow.stages._audio_column import check_audio_column

NAME = "audio_fingerprint"
_ERROR = f"{NAME}_error"
_WHISPER_TO_DB = 40.0
"""Whisper's (log10(power) + 4) / 4 in dB, but for a constant."""
_WHISPER_OFFSET_DB = -40.0


@register_stage(NAME, version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class AudioFingerprint(Stage):
    """Fingerprint each recording for near-duplicate search.

    The *loud part* of a recording goes from its first to its last frame within 20 dB of its loud
    frames. Silence around it, gain, and what is above 3.4 kHz change nothing.

    Reads:   audio: large_binary, encoded bytes; null where the download failed. ``audio_column``
             names another one.
    Writes:  audio_hash: uint64, signs of 64 low DCT frequencies (16 along mel, 4 along time) of the
                 loud part's log-mel; in raster order.
             audio_thumbnail: fixed_size_binary(572): seconds of the loud part, as a little-endian
                 float32; its mean level in 56 bands of mel, a byte each, in steps of 0.25 dB; the
                 mean level of 128 cells of time by 8 bands, two to a byte (the lower band in the
                 high bits), in steps of 2 dB. Levels count from 30 dB under the loud frames'
                 strongest band. A second signal beside the hash.
             audio_detail: float32, dB, >= 0: the median size of the 64 coefficients, as the
                 amplitude of a cosine. Near 0 the hash is noise: a steady tone or steady noise.
             audio_fingerprint_error: string; null, or a code of the decoder ("missing",
                 "too_large", "undecodable", "too_long", "no_audio", "is_video", "not_finite"), or
                 "too_short" (the loud part has less than 0.1 s) | "silent" (no band louder than
                 about half a step of 16 bits). Where it is set, the other columns are null;
                 elsewhere none is.
    Cost:    CPU only; shares the pass's decoded audio and its 16 kHz log-mel (Whisper, 80 bands).
    Fails:   a bad row never raises. RecipeError for an empty ``audio_column``.

    Formulas: the sign of DCT coefficients after pHash; relative band energies after Haitsma and
    Kalker, "A Highly Robust Audio Fingerprinting System" (ISMIR 2002).
    """

    audio_column: str = result("audio")

    writes = pa.schema(
        {
            "audio_hash": pa.uint64(),
            "audio_thumbnail": pa.binary(_audio_hash.THUMBNAIL_BYTES),
            "audio_detail": pa.float32(),
            _ERROR: pa.string(),
        }
    )

    def __post_init__(self) -> None:
        check_audio_column(NAME, self.audio_column)

    @property
    def reads(self) -> pa.Schema:
        """The encoded recording."""
        return pa.schema({self.audio_column: pa.large_binary()})

    def annotate(self, batch: pa.RecordBatch, state: None, media: Media) -> pa.RecordBatch:
        features = media.features(self.audio_column, feature=WHISPER_80)
        return pa.RecordBatch.from_pylist([_row(item) for item in features], schema=self.writes)


def _row(log_mel_MT: Samples | MediaFailure) -> dict[str, Any]:
    if isinstance(log_mel_MT, str):
        return {_ERROR: log_mel_MT}
    found = _audio_hash.audio_print(log_mel_MT * _WHISPER_TO_DB + _WHISPER_OFFSET_DB)
    if isinstance(found, str):
        return {_ERROR: found}
    return {
        "audio_hash": found.hash,
        "audio_thumbnail": found.thumbnail,
        "audio_detail": found.detail,
    }
