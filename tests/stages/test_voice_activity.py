"""Silero VAD in the stage against its own package on the same waveforms."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.media import MediaCaps, Samples
from winnow.contracts.stage import WorkerOptions
from winnow.stages import voice_activity as module
from winnow.stages._audio_encode import encode_audio
from winnow.stages._media import BatchMedia, MediaCache
from winnow.stages.sources._speech.voice import synthesise
from winnow.stages.voice_activity import (
    FRAME,
    MAX_FRAMES,
    VoiceActivity,
    padded_runs,
    speech_probabilities,
)

RATE = 16_000
CODES = ["missing", "too_large", "undecodable", "too_long", "no_audio", "is_video", "not_finite"]


@pytest.fixture(scope="module")
def session() -> Any:
    return VoiceActivity().setup(WorkerOptions())


@pytest.fixture(scope="module")
def reference() -> Any:
    """The network that reads one frame at a time."""
    import torch

    threads = torch.get_num_threads()
    import silero_vad

    torch.set_num_threads(threads)
    return silero_vad.load_silero_vad(onnx=True)


class Waveforms:
    """Media that is decoded already: waveforms or codes."""

    def __init__(self, *rows: Samples | str) -> None:
        self._rows = rows

    def waveforms(self, column: str = "audio", *, sample_rate: int) -> Any:
        assert sample_rate == RATE
        return iter(self._rows)


def spoken(text: str, rate: int = RATE, **voice: Any) -> Samples:
    import soxr

    samples, own = synthesise(text, **voice)
    return np.asarray(soxr.resample(samples, own, rate), np.float32)


def gap(seconds: float) -> Samples:
    return np.zeros(round(seconds * RATE), np.float32)


@pytest.fixture(scope="module")
def talk() -> Samples:
    """Two voices, gaps of all lengths, noise: more than one block of the network."""
    rng = np.random.default_rng(0)
    parts = [gap(2.6)]
    sentences = ("Nobody knew the answer.", "Yes.", "The river was dark, and then we lit a fire.")
    for i, pause in enumerate((0.03, 0.08, 0.2, 0.9, 0.12, 2.0, 0.05, 1.1)):
        parts += [spoken(sentences[i % 3], variant=("m3", "f1")[i % 2]), gap(pause)]
    whole = np.concatenate(parts)
    return (whole + 0.003 * rng.standard_normal(whole.size)).astype(np.float32)


def listen(stage: VoiceActivity, session: Any, *rows: Samples | str) -> list[dict[str, Any]]:
    batch = pa.record_batch({"audio": pa.nulls(len(rows), pa.large_binary())})
    out = stage.annotate(batch, session, Waveforms(*rows))  # type: ignore[arg-type]
    out.validate(full=True)
    assert out.schema == stage.writes
    return out.to_pylist()


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"threshold": 0.9, "min_speech_ms": 0, "min_silence_ms": 0, "speech_pad_ms": 0},
        {"threshold": 0.1, "min_speech_ms": 1000, "min_silence_ms": 700, "speech_pad_ms": 400},
        {"min_speech_ms": 500, "min_silence_ms": 30, "speech_pad_ms": 25},
    ],
)
def test_segments_are_those_of_silero(
    parameters: dict[str, Any], talk: Samples, session: Any, reference: Any
) -> None:
    import silero_vad
    import torch

    names = {"min_speech_ms": "min_speech_duration_ms", "min_silence_ms": "min_silence_duration_ms"}
    expected = silero_vad.get_speech_timestamps(
        torch.from_numpy(talk),
        reference,
        **{names.get(k, k): v for k, v in parameters.items()},
    )
    (row,) = listen(VoiceActivity(write_segments=True, **parameters), session, talk)
    found = [(round(s["start_s"] * RATE), round(s["end_s"] * RATE)) for s in row["speech_segments"]]
    assert found == [(e["start"], e["end"]) for e in expected]
    assert len(found) >= 2
    assert talk.size > MAX_FRAMES * FRAME
    total = sum(end - start for start, end in found)
    assert row["num_speech_segments"] == len(found)
    assert row["speech_seconds"] == pytest.approx(total / RATE, rel=1e-6)
    assert row["speech_ratio"] == pytest.approx(total / talk.size, rel=1e-6)
    assert row["speech_start_s"] == row["speech_segments"][0]["start_s"]
    assert row["speech_end_s"] == row["speech_segments"][-1]["end_s"]


@pytest.mark.parametrize("size", [1, 511, 512, 513, 8_000])
def test_probabilities_are_those_of_the_network_frame_by_frame(
    size: int, talk: Samples, session: Any, reference: Any
) -> None:
    import torch

    samples = talk[50_000 : 50_000 + size]
    padded = np.pad(samples, (0, -size % FRAME))
    expected = reference.audio_forward(torch.from_numpy(padded), RATE)
    found = speech_probabilities(session, samples)
    np.testing.assert_allclose(found, expected[0].numpy(), atol=1e-5)


def test_a_gap_of_odd_length_is_halved() -> None:
    assert padded_runs([(10, 100), (121, 200)], 210, 30) == [(0, 110), (111, 210)]
    assert padded_runs([(100, 200), (400, 500)], 600, 30) == [(70, 230), (370, 530)]
    assert padded_runs([], 600, 30) == []


def test_what_is_no_speech(session: Any) -> None:
    rng = np.random.default_rng(1)
    noise = (0.05 * rng.standard_normal(2 * RATE)).astype(np.float32)
    one = np.full(1, 0.5, np.float32)
    rows = listen(VoiceActivity(), session, gap(1.0), noise, one, gap(0.0))
    nothing = {
        "speech_ratio": 0.0,
        "num_speech_segments": 0,
        "speech_seconds": 0.0,
        "speech_start_s": None,
        "speech_end_s": None,
        "voice_activity_error": None,
    }
    assert rows == [nothing] * 4


def test_codes_of_media_are_the_rows_errors(session: Any, talk: Samples) -> None:
    stage = VoiceActivity(write_segments=True)
    rows = listen(stage, session, CODES[0], talk, *CODES[1:])
    assert rows.pop(1)["num_speech_segments"] > 1
    for row, code in zip(rows, CODES, strict=True):
        assert row.pop("voice_activity_error") == code
        assert set(row.values()) == {None}
        assert code in (VoiceActivity.__doc__ or "")


def test_files_of_all_rates_and_codecs_agree(session: Any) -> None:
    """Through the real decoder: half a second of silence, speech, one second of silence."""
    speech = spoken("The old library has many books about whales.", rate=48_000, variant="f1")
    edges = [np.zeros(24_000, np.float32), speech, np.zeros(48_000, np.float32)]
    whole = np.concatenate(edges)
    stereo = np.stack([whole, whole])
    files = [encode_audio(whole, 48_000, kind) for kind in ("wav", "flac", "mp3", "opus")]
    files += [encode_audio(stereo, 48_000, "wav"), files[0][:40]]
    batch = pa.record_batch({"audio": pa.array([*files, None], pa.large_binary())})
    with MediaCache(1 << 28, 0) as cache:
        media = BatchMedia(batch, caps=MediaCaps(), cache=cache, first_row=0)
        rows = VoiceActivity().annotate(batch, session, media).to_pylist()
    assert rows[4] == rows[0]
    assert rows[-1]["voice_activity_error"] == "missing"
    assert rows[-2]["voice_activity_error"] is not None
    for row in rows[:4]:
        assert row["speech_start_s"] == pytest.approx(0.5, abs=0.15)
        assert row["speech_end_s"] == pytest.approx(0.5 + speech.size / 48_000, abs=0.15)
        assert row["speech_ratio"] == pytest.approx(speech.size / whole.size, abs=0.1)


def test_the_digest_is_of_the_packaged_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(VoiceActivity().model_digest()) == 32
    assert VoiceActivity().model_digest() == VoiceActivity(threshold=0.1).model_digest()
    monkeypatch.setattr(module, "_FILE", "another.onnx")
    with pytest.raises(SetupError, match=r'silero-vad.*pip install "winnow-data\[audio\]"'):
        VoiceActivity().model_digest()


def test_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SetupError, match="needs onnxruntime"):
        VoiceActivity().setup(WorkerOptions())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"threshold": 0.0}, r"threshold=0.0; use a value in \(0, 1\)"),
        ({"threshold": 1.0}, "threshold=1.0"),
        ({"min_speech_ms": -1}, "min_speech_ms=-1; use 0 or more"),
        ({"min_silence_ms": -1}, "min_silence_ms=-1"),
        ({"speech_pad_ms": -1}, "speech_pad_ms=-1"),
        ({"audio_column": ""}, "names no column"),
    ],
)
def test_refuses(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        VoiceActivity(**parameters)
