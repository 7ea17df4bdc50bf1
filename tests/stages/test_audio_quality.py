"""What the stage says about recordings whose damage is known, and about bad ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from winnow.contracts.errors import RecipeError
from winnow.contracts.media import DecodedAudio, MediaCaps, Samples
from winnow.stages._audio_encode import encode_audio
from winnow.stages._media import BatchMedia, MediaCache
from winnow.stages.audio_quality import AudioQuality
from winnow.stages.sources._speech.voice import synthesise

CODES = ["missing", "too_large", "undecodable", "too_long", "no_audio", "is_video", "not_finite"]
COLUMNS = set(AudioQuality().writes.names) - {"audio_quality_error"}


class Decoded:
    """Media that is decoded already: samples and rate, or codes."""

    def __init__(self, *rows: tuple[Samples, int] | str) -> None:
        self._rows = rows

    def audio(self, column: str = "audio") -> Any:
        for row in self._rows:
            yield (
                row
                if isinstance(row, str)
                else DecodedAudio(
                    samples=np.atleast_2d(np.asarray(row[0], np.float32)),
                    sample_rate=row[1],
                    codec="pcm_s16le",
                    container="wav",
                )
            )


def run(*rows: tuple[Samples, int] | str, **parameters: Any) -> list[dict[str, Any]]:
    stage = AudioQuality(**parameters)
    batch = pa.record_batch({"audio": pa.nulls(len(rows), pa.large_binary())})
    out = stage.annotate(batch, None, Decoded(*rows))  # type: ignore[arg-type]
    out.validate(full=True)
    assert out.schema == stage.writes
    for name in COLUMNS:
        values = [v for v in out.column(name).to_pylist() if v is not None]
        assert np.isfinite(values).all(), name
    return out.to_pylist()


@pytest.fixture(scope="module")
def speech() -> tuple[Samples, int]:
    return synthesise("The old library has more than forty thousand books about whales.")


def sine(frequency: float, rate: int, seconds: float = 2.0, amplitude: float = 1.0) -> Samples:
    time = np.arange(round(rate * seconds)) / rate
    return (amplitude * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def test_a_sine_of_half_scale() -> None:
    (row,) = run((sine(1_000, 16_000, amplitude=0.5) + 0.25, 16_000))
    assert row["peak_dbfs"] == pytest.approx(20 * np.log10(0.75), abs=1e-3)
    assert row["rms_dbfs"] == pytest.approx(10 * np.log10(0.125 + 0.0625), abs=1e-3)
    assert row["dc_offset"] == pytest.approx(0.25, abs=1e-6)
    assert row["silence_ratio"] == 0.0
    assert row["bandwidth_hz"] == pytest.approx(1_000, abs=100)
    assert row["audio_quality_error"] is None


def test_silence_by_both_thresholds(speech: tuple[Samples, int]) -> None:
    samples, rate = speech
    half = np.concatenate([samples, np.zeros_like(samples)])
    hum = half + sine(200, rate, half.size / rate, 10 ** (-55 / 20))[: half.size]
    before, digital, absolute, relative, gentle = (
        run((samples, rate))
        + run((half, rate))
        + run((hum, rate), silence_dbfs=-40.0, silence_below_loud_db=150.0)
        + run((hum, rate), silence_dbfs=-140.0, silence_below_loud_db=25.0)
        + run((hum, rate))
    )
    whole = before["silence_ratio"]
    assert whole < 0.2
    assert digital["silence_ratio"] == pytest.approx(0.5 + whole / 2, abs=0.02)
    assert 0.5 <= absolute["silence_ratio"] < 0.8
    assert 0.5 <= relative["silence_ratio"] < 0.8
    assert gentle["silence_ratio"] == 0.0


def test_a_quiet_recording_is_silent_only_by_the_absolute_threshold(
    speech: tuple[Samples, int],
) -> None:
    quiet = speech[0] * np.float32(0.002 / np.abs(speech[0]).max())
    default, lower = run((quiet, speech[1])) + run((quiet, speech[1]), silence_dbfs=-120.0)
    assert default["silence_ratio"] > 0.9
    assert lower["silence_ratio"] < 0.2


def test_channels(speech: tuple[Samples, int]) -> None:
    samples, rate = speech
    one, twelve, opposed, worse = run(
        (samples, rate),
        (np.tile(samples, (12, 1)), rate),
        (np.stack([samples, -samples]), rate),
        (np.stack([samples, 0.5 * samples - 0.1]), rate),
    )
    assert twelve == pytest.approx(one)
    assert opposed["snr_db"] == pytest.approx(one["snr_db"], abs=1e-4)
    assert opposed["silence_ratio"] == one["silence_ratio"]
    assert worse["dc_offset"] == pytest.approx(abs(0.5 * samples.mean() - 0.1), abs=1e-4)
    assert worse["peak_dbfs"] == one["peak_dbfs"]


def test_digital_silence_and_short_clips(speech: tuple[Samples, int]) -> None:
    zeros, one, short, window, empty_high = run(
        (np.zeros(16_000, np.float32), 16_000),
        (np.array([0.5], np.float32), 8_000),
        (speech[0][4_000:4_400], speech[1]),
        (speech[0][4_000:8_000], speech[1]),
        (np.full(9_600, 1e-6, np.float32), 192_000),
    )
    assert zeros == {
        "silence_ratio": 1.0,
        "clipping_ratio": 0.0,
        "peak_pile_up": 0.0,
        "snr_db": None,
        "bandwidth_hz": None,
        "dc_offset": 0.0,
        "peak_dbfs": -150.0,
        "rms_dbfs": -150.0,
        "audio_quality_error": "silent",
    }
    assert (one["snr_db"], one["bandwidth_hz"]) == (None, None)
    assert one["audio_quality_error"] == "too_short"
    assert one["peak_dbfs"] == pytest.approx(-6.0206, abs=1e-3)
    assert short["audio_quality_error"] == window["audio_quality_error"] == "too_short"
    assert (short["bandwidth_hz"], window["snr_db"]) == (None, None)
    assert window["bandwidth_hz"] > 1_000
    assert empty_high["audio_quality_error"] == "silent"


@pytest.mark.parametrize("rate", [1, 7, 99, 500, 1_000, 192_000, 768_000])
def test_every_rate_has_defined_values(rate: int) -> None:
    noise = np.random.default_rng(rate).standard_normal((2, max(3, rate // 2))) * 0.1
    (row,) = run((noise, rate))
    assert row["audio_quality_error"] in (None, "too_short")
    assert row["rms_dbfs"] is not None
    if rate >= 1_000:
        assert row["bandwidth_hz"] == pytest.approx(rate / 2, rel=0.02)
        assert row["snr_db"] < 0
        assert row["audio_quality_error"] is None


def test_codes_of_media_are_the_rows_errors(speech: tuple[Samples, int]) -> None:
    rows = run(CODES[0], speech, *CODES[1:])
    assert rows.pop(1)["audio_quality_error"] is None
    for row, code in zip(rows, CODES, strict=True):
        assert row.pop("audio_quality_error") == code
        assert set(row.values()) == {None}
    for code in (*CODES, "silent", "too_short"):
        assert f'"{code}"' in (AudioQuality.__doc__ or "")


def test_files(speech: tuple[Samples, int]) -> None:
    """Through the real decoder: the file's own rate and channels are measured."""
    samples, rate = speech
    loud = samples / np.abs(samples).max()
    hurt = np.clip(loud, -0.5, 0.5) * np.float32(2)
    files = {
        "clean": encode_audio(loud, rate, "wav"),
        "mp3": encode_audio(loud, rate, "mp3"),
        "clipped": encode_audio(hurt, rate, "wav"),
        "scaled": encode_audio(hurt * np.float32(0.7), rate, "flac"),
        "float": encode_audio(loud * np.float32(1.4), rate, "wav_float"),
        "garbage": b"RIFF" + bytes(40),
        "page": b"<html><body>404</body></html>",
        "nan": encode_audio(loud * np.float32("nan"), rate, "wav_float"),
        "null": None,
    }
    batch = pa.record_batch({"sound": pa.array(list(files.values()), pa.large_binary())})
    with MediaCache(1 << 28, 0) as cache:
        media = BatchMedia(batch, caps=MediaCaps(), cache=cache, first_row=0)
        out = AudioQuality(audio_column="sound").annotate(batch, None, media).to_pylist()
    rows = dict(zip(files, out, strict=True))
    codes = {name: row["audio_quality_error"] for name, row in rows.items()}
    assert codes["nan"] == "not_finite"
    assert codes["null"] == "missing"
    assert codes["garbage"] in ("undecodable", "no_audio")
    assert codes["page"] == "undecodable"
    assert rows["clipped"]["clipping_ratio"] > 0.005
    assert rows["scaled"]["clipping_ratio"] == rows["clipped"]["clipping_ratio"]
    for name in ("clean", "mp3", "float"):
        assert codes[name] is None
        assert rows[name]["clipping_ratio"] == 0.0
        assert rows[name]["peak_pile_up"] < 0.001
    assert rows["float"]["peak_dbfs"] == pytest.approx(20 * np.log10(1.4), abs=0.01)


def test_a_file_longer_than_the_cap(speech: tuple[Samples, int]) -> None:
    data = encode_audio(*speech, "wav")
    batch = pa.record_batch({"audio": pa.array([data], pa.large_binary())})
    with MediaCache(1 << 28, 0) as cache:
        caps = MediaCaps(max_duration_s=1.0)
        media = BatchMedia(batch, caps=caps, cache=cache, first_row=0)
        (row,) = AudioQuality().annotate(batch, None, media).to_pylist()
    assert row["audio_quality_error"] == "too_long"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"audio_column": ""}, "names no column"),
        ({"silence_dbfs": 0.0}, "silence_dbfs=0.0; use -149 to -1"),
        ({"silence_dbfs": -150.0}, "silence_dbfs=-150.0"),
        ({"silence_below_loud_db": 0.0}, "silence_below_loud_db=0.0; use a value"),
        ({"silence_below_loud_db": float("nan")}, "silence_below_loud_db=nan"),
        ({"clipping_run": 2}, "clipping_run=2; use 3 or more"),
    ],
)
def test_refuses(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        AudioQuality(**parameters)
