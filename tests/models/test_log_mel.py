"""Log-mel spectrograms against the extractors that the models were trained with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from winnow.models import log_mel
from winnow.models.log_mel import CLAP_64, WHISPER_80, WHISPER_128, LogMel, mel_edges


def clip(rate: int, seconds: float, seed: int = 0) -> np.ndarray:
    """Tones, a sweep, noise and a silent gap."""
    rng, t = np.random.default_rng(seed), np.arange(int(rate * seconds)) / rate
    wave = 0.3 * np.sin(2 * np.pi * (150 + 300 * t) * t) + 0.1 * np.sin(2 * np.pi * 3_100 * t)
    wave += 0.02 * rng.standard_normal(len(t))
    wave[len(t) // 3 : len(t) // 2] = 0.0
    return wave.astype(np.float32)


CLIPS = [(1.0, 0), (2.37, 1), (0.031, 2)]


@pytest.mark.parametrize("preset", [WHISPER_80, WHISPER_128], ids=["80", "128"])
@pytest.mark.parametrize(("seconds", "seed"), CLIPS)
def test_whisper_is_what_faster_whisper_computes(preset: LogMel, seconds: float, seed: int) -> None:
    extractor = pytest.importorskip("faster_whisper.feature_extractor")
    wave = clip(16_000, seconds, seed)
    theirs = extractor.FeatureExtractor(feature_size=preset.num_bins)(wave, padding=0)
    ours = preset.compute(wave)
    assert ours.shape == theirs.shape == (preset.num_bins, preset.num_frames(len(wave)))
    assert ours.dtype == np.float32
    assert np.abs(ours - theirs).max() < 1e-4


@pytest.mark.parametrize("preset", [WHISPER_80, WHISPER_128], ids=["80", "128"])
def test_whisper_is_what_transformers_computes(preset: LogMel) -> None:
    transformers = pytest.importorskip("transformers")
    extractor = transformers.WhisperFeatureExtractor(feature_size=preset.num_bins)
    for seconds, seed in CLIPS:
        wave = clip(16_000, seconds, seed)
        theirs = extractor(wave, sampling_rate=16_000, return_tensors="np").input_features[0]
        ours = replace(preset, duration_s=30.0).compute(wave)
        assert ours.shape == theirs.shape == (preset.num_bins, 3_000)
        assert np.abs(ours - theirs).max() < 1e-4
    longer = clip(16_000, 31.0)
    theirs = extractor(longer, sampling_rate=16_000, return_tensors="np").input_features[0]
    assert np.abs(replace(preset, duration_s=30.0).compute(longer) - theirs).max() < 1e-4


@pytest.mark.parametrize("seconds", [10.0, 3.3, 0.7])
def test_clap_is_what_transformers_computes(seconds: float) -> None:
    transformers = pytest.importorskip("transformers")
    extractor = transformers.ClapFeatureExtractor(
        frequency_min=50, frequency_max=14_000, truncation="rand_trunc", padding="repeatpad"
    )
    wave = clip(48_000, seconds)
    theirs = extractor(wave, sampling_rate=48_000, return_tensors="np").input_features[0, 0].T
    ours = CLAP_64.compute(wave)
    assert ours.shape == theirs.shape == (64, 1001)
    assert np.abs(ours - theirs).max() < 1e-3  # dB, of a range of 100
    assert np.sqrt(np.square(ours - theirs).mean()) < 1e-4


@pytest.mark.parametrize("fill", ["pad", "repeat"])
def test_the_other_ways_to_fill(fill: str) -> None:
    transformers = pytest.importorskip("transformers")
    extractor = transformers.ClapFeatureExtractor(
        frequency_min=50, truncation="rand_trunc", padding=fill, max_length_s=2
    )
    wave = clip(48_000, 0.9)
    theirs = extractor(wave, sampling_rate=48_000, return_tensors="np").input_features[0, 0].T
    feature = replace(CLAP_64, duration_s=2.0, fill="zeros" if fill == "pad" else "repeat")
    assert np.abs(feature.compute(wave) - theirs).max() < 1e-3


def test_htk_filters_and_a_short_window_are_those_of_a_plain_sum() -> None:
    """A DFT, window and triangles written out, frame by frame, without padding."""
    feature = LogMel(
        sample_rate=8_000, n_fft=64, win_length=40, hop=30, num_bins=6, fmin=100.0, fmax=3_000.0,
        mel_scale="htk", norm="none", center=False,
    )  # fmt: skip
    wave = clip(8_000, 0.05)
    edges = [700 * (10 ** (m / 2595) - 1) for m in np.linspace(
        2595 * np.log10(1 + 100 / 700), 2595 * np.log10(1 + 3_000 / 700), 8
    )]  # fmt: skip
    expected = []
    for start in range(0, len(wave) - 64 + 1, 30):
        frame = wave[start : start + 64].astype(np.float64)
        window = np.zeros(64)
        window[12:52] = [np.sin(np.pi * i / 40) ** 2 for i in range(40)]
        dft = [
            sum(frame[n] * window[n] * np.exp(-2j * np.pi * k * n / 64) for n in range(64))
            for k in range(33)
        ]
        row = []
        for low, mid, high in zip(edges, edges[1:], edges[2:], strict=False):
            total = 0.0
            for k in range(33):
                f = k * 125.0
                weight = (f - low) / (mid - low) if f <= mid else (high - f) / (high - mid)
                total += max(weight, 0.0) * abs(dft[k]) ** 2
            row.append(10 * np.log10(max(total, 1e-10)))
        expected.append(row)
    ours = feature.compute(wave)
    assert ours.shape == (6, feature.num_frames(len(wave))) == np.array(expected).T.shape
    assert np.abs(ours - np.array(expected).T).max() < 1e-4


def test_a_tone_is_in_its_bin() -> None:
    edges = mel_edges(64, 50.0, 14_000.0, "slaney")
    for index in (3, 20, 50):
        t = np.arange(48_000) / 48_000
        tone = np.sin(2 * np.pi * edges[index + 1] * t).astype(np.float32)
        spectrum = replace(CLAP_64, duration_s=None).compute(tone)[:, 20:80]
        assert (np.abs(spectrum.argmax(0) - index) <= 1).all()


@pytest.mark.parametrize("num", [0, 1, 2, 159, 160, 161, 399, 401])
def test_clips_of_a_few_samples(num: int) -> None:
    for feature in (WHISPER_80, CLAP_64, replace(CLAP_64, duration_s=None, center=False)):
        found = feature.compute(np.full(num, 0.5, np.float32))
        assert found.shape == (feature.num_bins, feature.num_frames(num))
        assert np.isfinite(found).all()


def test_levels_that_a_float_file_may_hold_stay_finite() -> None:
    for feature in (WHISPER_80, CLAP_64):
        assert np.isfinite(feature.compute(np.full(500, 2.0**20, np.float32))).all()
        assert np.isfinite(feature.compute(np.zeros(500, np.float32))).all()


def test_the_cut_into_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    wave = clip(16_000, 9.0)
    whole = WHISPER_80.compute(wave)
    monkeypatch.setattr(log_mel, "_BLOCK_FRAMES", 97)
    assert np.array_equal(WHISPER_80.compute(wave), whole)


def test_equal_parameters_are_one_key() -> None:
    again = LogMel(sample_rate=16_000, n_fft=400, hop=160, num_bins=80, log="whisper")
    assert {WHISPER_80: 1}[again] == 1
    assert WHISPER_80 != WHISPER_128


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"hop": 0}, "positive sizes"),
        ({"win_length": 500}, "win_length <= n_fft"),
        ({"fmax": 9_000.0}, "fmax=9000.0"),
        ({"fmin": 8_000.0}, "0 <= fmin < fmax"),
        ({"duration_s": 0.0}, "less than a sample"),
    ],
)
def test_wrong_parameters(wrong: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(WHISPER_80, **wrong)
