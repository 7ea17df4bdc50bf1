"""Fingerprints of real speech: against slow code, through codecs, and of bytes made to hurt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.fft
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.contracts.errors import RecipeError
from winnow.contracts.media import MediaCaps
from winnow.models.log_mel import WHISPER_80
from winnow.stages import _audio_hash
from winnow.stages._audio import to_mono
from winnow.stages._audio_encode import encode_audio
from winnow.stages._media import BatchMedia
from winnow.stages._media_cache import MediaCache
from winnow.stages.audio_fingerprint import AudioFingerprint
from winnow.stages.dedupe._verify_audio import audio_difference, spectrum_difference
from winnow.stages.sources._speech.voice import synthesise

RATE = 22_050
SENTENCES = (
    ("The teacher found a small wooden lantern near the river.", "f1"),
    ("The teacher found a small wooden mirror near the river.", "f1"),
    ("The teacher found a small wooden lantern near the river.", "m3"),
    ("Our doctor sold the yellow piano last winter.", "f1"),
    ("stone", "m3"),
)


@pytest.fixture(scope="module")
def speech() -> list[np.ndarray]:
    return [synthesise(text, variant=voice)[0] for text, voice in SENTENCES]


def annotate(files: list[bytes | None], stage: AudioFingerprint | None = None) -> pa.Table:
    """Return the stage's columns, from one batch."""
    stage = stage or AudioFingerprint()
    batch = pa.record_batch({stage.audio_column: pa.array(files, pa.large_binary())})
    with MediaCache(1 << 26, 0) as cache:
        media = BatchMedia(batch, caps=MediaCaps(), cache=cache, first_row=0)
        found = stage.annotate(batch, None, media)
    assert found.schema == stage.writes
    found.validate(full=True)
    return pa.Table.from_batches([found])


def rows(files: list[bytes | None]) -> list[dict[str, Any]]:
    return annotate(files).to_pylist()


def bits(a: dict[str, Any], b: dict[str, Any]) -> int:
    return int(a["audio_hash"] ^ b["audio_hash"]).bit_count()


def octets(row: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(row["audio_thumbnail"], np.uint8)[None]


def alike(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """What near_duplicates asks with its defaults."""
    return (
        bits(a, b) <= 12
        and spectrum_difference(octets(a), octets(b))[0] <= 0.4
        and audio_difference(octets(a), octets(b), 0.14)[0] <= 1.8
    )


def slow_print(level_MT: np.ndarray) -> tuple[int, bytes, float]:
    """The words of the docstrings, frame by frame and cell by cell."""
    frames = [[float(x) for x in column] for column in level_MT[2:58].T]
    power = [[10 ** (x / 10) for x in frame] for frame in frames]

    def loudness(values: list[float]) -> float:
        return sum(v * v for v in values) / sum(values)

    reference = 10 * np.log10(loudness([max(frame) for frame in power]))
    sums = [sum(frame) for frame in power]
    loud = [i for i, s in enumerate(sums) if s >= loudness(sums) / 100]
    kept = frames[loud[0] : loud[-1] + 1]
    levels = np.array([[max(x - reference, -30.0) for x in frame] for frame in kept])
    num = len(kept)
    cells = np.empty((128, 56))
    for cell in range(128):
        start = max((cell + 0.5 - 0.75) * num / 128, 0)
        stop = min((cell + 0.5 + 0.75) * num / 128, num)
        share = [max(0.0, min(stop, i + 1) - max(start, i)) for i in range(num)]
        cells[cell] = np.average(levels, axis=0, weights=share)
    weights = np.sin(np.pi * (np.arange(128) + 0.5) / 128) ** 2
    weighted = (cells - np.average(cells, axis=0, weights=weights)) * weights[:, None]
    dct = scipy.fft.dctn(weighted, type=2)[1:5, :16].T / 4
    number = int("".join("1" if x > 1e-6 else "0" for x in dct.ravel()), 2)
    body = bytearray(np.float32(num * 0.01).tobytes())
    body += bytes(int(np.rint((x + 30) * 4)) for x in levels.mean(axis=0))
    for cell in cells:
        bands = [cell[7 * b : 7 * b + 7].mean() for b in range(8)]
        steps = [min(15, int(np.rint((x + 30) / 2))) for x in bands]
        body += bytes(steps[i] * 16 + steps[i + 1] for i in (0, 2, 4, 6))
    return number, bytes(body), float(np.median(np.abs(dct))) / (56 * 128 / 8)


def test_equals_slow_code(speech: list[np.ndarray]) -> None:
    sounds = [speech[0], speech[4]]
    prints = rows([encode_audio(s, RATE, "wav_float") for s in sounds])
    for sound, found in zip(sounds, prints, strict=True):
        level = WHISPER_80.compute(to_mono(sound[None], RATE, 16_000)) * 40 - 40
        number, thumbnail, detail = slow_print(level)
        assert found["audio_hash"] == number
        assert found["audio_thumbnail"] == thumbnail
        assert found["audio_detail"] == pytest.approx(detail, rel=1e-5)
        assert found["audio_fingerprint_error"] is None


@settings(max_examples=8, deadline=None)
@given(
    gain_db=st.floats(-40, 12),
    before=st.integers(0, 30_000),
    after=st.integers(0, 30_000),
    which=st.integers(0, len(SENTENCES) - 1),
)
def test_gain_and_silence_around_leave_it_alike(
    speech: list[np.ndarray], gain_db: float, before: int, after: int, which: int
) -> None:
    sound = speech[which]
    silence = (np.zeros(before, np.float32), np.zeros(after, np.float32))
    edited = np.concatenate([silence[0], sound, silence[1]]) * np.float32(10 ** (gain_db / 20))
    one, other = rows([encode_audio(s, RATE, "wav_float") for s in (sound, edited)])
    # Frames fall elsewhere: at most 5 ms of shift.
    assert bits(one, other) <= 8
    assert spectrum_difference(octets(one), octets(other))[0] <= 0.6
    assert audio_difference(octets(one), octets(other), 0.14)[0] <= 1.8


def test_gain_alone_changes_nothing(speech: list[np.ndarray]) -> None:
    """Powers of two are exact in float32."""
    gains = [np.float32(2.0**power) for power in (0, -1, -4, 1)]
    whole, *others = rows([encode_audio(speech[0] * g, RATE, "wav_float") for g in gains])
    for other in others:
        assert other["audio_hash"] == whole["audio_hash"]
        assert np.abs(octets(other).astype(int) - octets(whole)).max() <= 16  # one step of 2 dB
        assert other["audio_detail"] == pytest.approx(whole["audio_detail"], rel=1e-3)


def test_copies_are_alike_and_other_takes_are_not(speech: list[np.ndarray]) -> None:
    originals = rows([encode_audio(s, RATE, "wav") for s in speech])
    cut = [s[len(s) // 20 :] for s in speech]
    ends = [s[len(s) // 20 : -len(s) // 20] for s in speech]
    edits = (
        [encode_audio(s, RATE, "m4a", bit_rate=64_000) for s in speech],
        [encode_audio(s, RATE, "mp3", bit_rate=64_000) for s in cut],
        [encode_audio(s, RATE, "opus", bit_rate=32_000) for s in ends],
        [encode_audio(to_mono(s[None], RATE, 8_000), 8_000, "flac") for s in speech],
    )
    found = [rows(list(files)) for files in edits]
    for copies in found:
        assert sum(alike(a, b) for a, b in zip(originals, copies, strict=True)) >= 4
    assert sum(alike(a, b) for f in found for a, b in zip(originals, f, strict=True)) >= 18
    for copies in (originals, *found):
        pairs = [(a, b) for i, a in enumerate(originals) for j, b in enumerate(copies) if i != j]
        assert not any(alike(a, b) for a, b in pairs)


def test_rows_do_not_depend_on_their_batch(speech: list[np.ndarray]) -> None:
    files = [encode_audio(s, RATE, "wav") for s in speech] + [None, b"RIFF"]
    whole = annotate(files)
    order = [3, 6, 0, 5, 2, 4, 1]
    assert annotate([files[i] for i in order]).equals(whole.take(order))
    assert pa.concat_tables([annotate(files[:2]), annotate(files[2:])]).equals(whole)
    assert annotate([]).num_rows == 0


def test_codes(speech: list[np.ndarray]) -> None:
    sound = speech[0]
    tiny = np.full(RATE, 1e-6, np.float32)
    shapes = {
        "missing": None,
        "undecodable": b"no sound at all",
        "silent": encode_audio(np.zeros(RATE, np.float32), RATE, "wav"),
        "too_short": encode_audio(sound[RATE // 2 : RATE // 2 + RATE // 20], RATE, "wav"),
    }
    found = rows(list(shapes.values()))
    assert [row["audio_fingerprint_error"] for row in found] == list(shapes)
    for row in found:
        assert {row["audio_hash"], row["audio_thumbnail"], row["audio_detail"]} == {None}
    one = encode_audio(np.array([0.5], np.float32), RATE, "wav")
    few = encode_audio(np.full(40, 0.5, np.float32), RATE, "wav")
    faint = encode_audio(tiny, RATE, "wav_float")
    codes = [row["audio_fingerprint_error"] for row in rows([one, few, faint])]
    assert codes == ["too_short", "too_short", "silent"]


def test_a_long_recording_takes_little_memory_and_keeps_its_hash() -> None:
    """More than 8,192 frames are averaged first; the same sound at a quarter of the rate is not."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(-20, 8, (80, 40))
    level = np.repeat(coarse, 1000, axis=1).astype(np.float32)
    long, short = _audio_hash.audio_print(level), _audio_hash.audio_print(level[:, ::8])
    assert not isinstance(long, str)
    assert not isinstance(short, str)
    assert (long.hash ^ short.hash).bit_count() <= 1
    assert long.detail == pytest.approx(short.detail, rel=0.02)


def test_steady_sound_has_no_detail() -> None:
    time = np.arange(2 * RATE) / RATE
    tone = encode_audio(np.sin(2 * np.pi * 440 * time).astype(np.float32), RATE, "wav")
    word = encode_audio(synthesise("seven")[0], RATE, "wav")
    steady, spoken = rows([tone, word])
    assert steady["audio_detail"] < 0.03
    assert spoken["audio_detail"] > 0.1


def test_another_column_and_bad_parameters(speech: list[np.ndarray]) -> None:
    stage = AudioFingerprint(audio_column="speech")
    assert stage.reads == pa.schema({"speech": pa.large_binary()})
    file = encode_audio(speech[4], RATE, "wav")
    assert annotate([file], stage).equals(annotate([file]))
    with pytest.raises(RecipeError, match="column='' is not allowed"):
        AudioFingerprint(audio_column="")
