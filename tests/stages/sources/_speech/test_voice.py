"""espeak-ng itself: the same words give the same samples, whatever was said before."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from winnow.contracts.errors import RecipeError, SetupError
from winnow.stages.sources._speech import voice
from winnow.stages.sources._speech.voice import SPEAKERS, VARIANTS, languages, synthesise, variants

CALLS = [
    ("The quick brown fox jumps over the lazy dog.", {"variant": "f3"}),
    ("Guten Tag, wie geht es Ihnen?", {"language": "de", "variant": "m1", "pitch": 70}),
    ("Hello.", {"speed": 220}),
    ("A breath of cold wind.", {"variant": "whisper"}),
    ("The quick brown fox jumps over the lazy dog.", {"variant": "klatt", "pitch": 20}),
]
PROGRAM = """
import hashlib
from winnow.stages.sources._speech.voice import synthesise
for text, options in reversed({calls!r}):
    print(hashlib.sha256(synthesise(text, **options)[0].tobytes()).hexdigest())
"""


def digests() -> list[str]:
    return [hashlib.sha256(synthesise(t, **o)[0].tobytes()).hexdigest() for t, o in CALLS]


def test_order_and_process_change_no_sample() -> None:
    first = digests()
    synthesise("Something else in between", variant="m5", speed=100)
    assert digests() == first
    program = PROGRAM.format(calls=CALLS)
    other = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert other.stdout.split() == first[::-1]
    assert len(set(first)) == len(CALLS)


def test_samples_are_speech_within_full_scale() -> None:
    samples, rate = synthesise("The quick brown fox jumps over the lazy dog.")
    assert (samples.dtype, samples.ndim, rate) == (np.float32, 1, 22050)
    assert 2.0 < len(samples) / rate < 4.0
    assert 0.05 < np.abs(samples).max() < 1.0


def test_no_voice_clips() -> None:
    for variant in VARIANTS:
        samples, _ = synthesise("Attack all odd boats, bob!", variant=variant)
        assert 0.03 < np.abs(samples).max() < 0.95, variant


def test_parameters_are_heard() -> None:
    text = "The quick brown fox jumps over the lazy dog."
    usual, rate = synthesise(text)
    assert len(synthesise(text, speed=350)[0]) < 0.75 * len(usual)
    assert pitch_hz(synthesise(text, pitch=90)[0], rate) > 1.3 * pitch_hz(usual, rate)
    assert pitch_hz(synthesise(text, variant="f1")[0], rate) > 1.3 * pitch_hz(usual, rate)


def pitch_hz(samples: np.ndarray, rate: int) -> float:
    """Median over frames of the best autocorrelation lag from 60 to 450 Hz."""
    frames = np.lib.stride_tricks.sliding_window_view(samples, 2048)[::512]
    loud = frames[np.square(frames).mean(axis=1) > 0.25 * np.square(samples).mean()]
    lags = []
    for frame in loud:
        full = np.correlate(frame, frame, "full")[len(frame) - 1 :]
        lags.append(rate // 450 + int(np.argmax(full[rate // 450 : rate // 60])))
    return float(rate / np.median(lags))


def test_speakers_of_parts_are_disjoint_and_there() -> None:
    assert len(VARIANTS) == len(set(VARIANTS)) == sum(len(names) for names in SPEAKERS.values())
    assert set(VARIANTS) <= set(variants())
    assert {"en-us", "en-gb", "de", "fr-fr", "cmn"} <= set(languages())
    assert all(len(names) >= 6 for names in SPEAKERS.values())


def test_text_without_words_is_nearly_nothing() -> None:
    for text in ("", "   ", "\n"):
        assert len(synthesise(text)[0]) < 2205, repr(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"language": "xx"}, r"language='xx'; use one of af, "),
        ({"variant": "m99"}, r"variant='m99'; use one of "),
        ({"speed": 20}, "speed=20; use 80 to 450"),
        ({"pitch": 100}, "pitch=100; use 0 to 99"),
    ],
)
def test_values_that_there_are_not(options: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        synthesise("a", **options)  # type: ignore[arg-type]


def test_without_the_wheel_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    voice._files.cache_clear()
    with pytest.raises(SetupError, match=r'pip install "winnow-data\[speech\]"'):
        synthesise("a")
    voice._files.cache_clear()
