"""What a file says about its recording: duration, rate, channels, codec, bit rate, digest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from winnow.contracts.identity import content_digest
from winnow.contracts.media import DecodedAudio, Media
from winnow.contracts.registry import register_stage
from winnow.contracts.stage import Stage


def bit_rate(audio: DecodedAudio, size_bytes: int) -> int:
    """Return bit/s as the header has it, else by the size of the file and its duration."""
    if audio.bit_rate is not None:
        return audio.bit_rate
    return round(8 * size_bytes / audio.duration_s)


def describe(audio: DecodedAudio, size_bytes: int) -> dict[str, Any]:
    """Return the columns that come from decoding."""
    return {
        "audio_duration_s": audio.duration_s,
        "audio_header_duration_s": audio.header_duration_s,
        "audio_sample_rate": audio.sample_rate,
        "audio_channels": audio.num_channels,
        "audio_codec": audio.codec,
        "audio_container": audio.container,
        "audio_bit_rate": bit_rate(audio, size_bytes),
        "audio_truncated": audio.truncated,
        "audio_info_error": None,
    }


@register_stage("audio_info", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class AudioInfo(Stage):
    """Describe each recording and its bytes.

    Reads:   audio: large_binary, encoded bytes; null where the download failed.
    Writes:  audio_duration_s: float64, seconds that were decoded, > 0.
             audio_header_duration_s: float64, seconds that the file announces: by its header, the
                 tag of an MP3, the last page of an Ogg file. Null also where it announces none:
                 ADTS, AMR, an MP3 without a tag, a WAV written into a pipe.
             audio_sample_rate: int32, Hz.
             audio_channels: int16.
             audio_codec: string, FFmpeg's name: "pcm_s16le", "flac", "mp3", "aac", "opus",
                 "vorbis", "alac", "amr_nb", "wmav2" ...
             audio_container: string: "wav", "flac", "ogg", "mp3", "aac" (ADTS), "mp4", "aiff",
                 "asf", "matroska", "amr", "caf", "au".
             audio_bit_rate: int64, bit/s as the header has it; where it has none (FLAC, Ogg, ADTS,
                 WebM), eight times the file's bytes over audio_duration_s, covers included.
             audio_size_bytes: int64, length of the encoded bytes; null only where they are.
             audio_truncated: bool, the file ends before it says, or a part of it is damaged.
             audio_digest: fixed_size_binary(16), BLAKE2b-128 of the encoded bytes, equal for equal
                 files; null only where they are.
             audio_info_error: string; null, or "missing" (null bytes) | "too_long" (over the
                 recipe's duration cap, by the header or as decoded) | "too_large" (over 1 GiB of
                 decoded samples) | "undecodable" (unknown format, or damaged from the beginning) |
                 "no_audio" (no audio stream, or not one sample) | "is_video" (moving pictures; a
                 cover is none) | "not_finite" (a sample is NaN, infinite or beyond 2^20 times full
                 scale). Where it is set, all columns but audio_size_bytes and audio_digest are
                 null.
    Cost:    CPU only; shares the pass's decoded recording.
    Fails:   a bad row never raises.
    """

    reads = pa.schema({"audio": pa.large_binary()})
    writes = pa.schema(
        {
            "audio_duration_s": pa.float64(),
            "audio_header_duration_s": pa.float64(),
            "audio_sample_rate": pa.int32(),
            "audio_channels": pa.int16(),
            "audio_codec": pa.string(),
            "audio_container": pa.string(),
            "audio_bit_rate": pa.int64(),
            "audio_size_bytes": pa.int64(),
            "audio_truncated": pa.bool_(),
            "audio_digest": pa.binary(16),
            "audio_info_error": pa.string(),
        }
    )

    def annotate(self, batch: pa.RecordBatch, state: None, media: Media) -> pa.RecordBatch:
        rows: list[dict[str, Any]] = []
        for data, audio in zip(batch.column("audio"), media.audio("audio"), strict=True):
            row: dict[str, Any] = {}
            if data.is_valid:
                encoded = memoryview(data.as_buffer())
                row["audio_size_bytes"] = len(encoded)
                row["audio_digest"] = content_digest(encoded)
            if isinstance(audio, str):
                row["audio_info_error"] = audio
            else:
                row |= describe(audio, row["audio_size_bytes"])
            rows.append(row)
        return pa.RecordBatch.from_pylist(rows, schema=self.writes)
