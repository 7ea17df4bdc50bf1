"""Measures against naive loops, signals whose answer is known, and speech of known damage."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import soxr

from winnow.contracts.media import MediaCaps, Samples
from winnow.stages import _audio_measures as measures
from winnow.stages._audio import decode_audio
from winnow.stages._audio_encode import encode_audio
from winnow.stages.sources._speech.voice import synthesise

RATE = 22_050
RNG = np.random.default_rng


@pytest.fixture(scope="module")
def voices() -> list[Samples]:
    """Clean speech of peak 1."""
    texts = (
        "The quick brown fox jumps over the lazy dog, while seven old ships sail to the harbour.",
        "Please call me back tomorrow at half past nine; the meeting has been moved again.",
        "She sells fresh fish in the market. People come from far away to buy it.",
    )
    pairs = [(text, variant) for text in texts for variant in ("m3", "f1", "")]
    found = [synthesise(text, variant=variant)[0] for text, variant in pairs]
    return [s / np.abs(s).max() for s in found]


def sine(frequency: float, rate: int, seconds: float, amplitude: float = 1.0) -> Samples:
    time = np.arange(round(rate * seconds)) / rate
    return (amplitude * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def clipped(samples: Samples, share: float) -> Samples:
    level = np.quantile(np.abs(samples), 1 - share)
    return (np.clip(samples, -level, level) / level).astype(np.float32)


def mixed(speech: Samples, noise: np.ndarray, snr_db: float) -> Samples:
    """Speech and noise whose mean squares have this ratio, in 16 bits."""
    wanted = np.mean(speech**2) / 10 ** (snr_db / 10)
    whole = speech + noise * np.sqrt(wanted / np.mean(noise**2))
    return (np.rint(whole / np.abs(whole).max() * 32767) / 32768).astype(np.float32)


def pink(num: int, rng: np.random.Generator) -> np.ndarray:
    """1/f power from 50 Hz up."""
    bins = np.fft.rfft(rng.standard_normal(num))
    frequency = np.fft.rfftfreq(num, 1 / RATE)
    bins[frequency < 50] = 0
    return np.fft.irfft(bins / np.sqrt(np.maximum(frequency, 1)), num)


# levels


def test_frame_powers_are_those_of_a_plain_loop() -> None:
    samples_CN = RNG(0).standard_normal((3, 1_005)).astype(np.float32) + 0.5
    step = 20
    expected = []
    for start in range(0, 1_005, step):
        expected.append(
            max(float(np.var(c[start : start + step], dtype=float)) for c in samples_CN)
        )
    found = measures.frame_powers(samples_CN, 1_000)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_decibels() -> None:
    assert measures.decibels([1.0, 0.01, 0.0]).tolist() == [0.0, -20.0, measures.FLOOR_DB]


def test_dc_that_comes_with_the_speech_is_not_a_sound_in_the_pauses() -> None:
    speech = sine(200, 8_000, 1) + 0.2
    whole = np.concatenate([speech, np.zeros(8_000, np.float32)])[None]
    power = measures.frame_powers(whole, 8_000)
    assert power[:50] == pytest.approx(0.5, rel=0.01)
    assert power[50:].max() < 1e-12


# clipping


def naive_flat_share(samples: Samples, min_run: int) -> float:
    """Runs at the greatest or least value, without the rule about jumps."""
    total, run = 0, 0
    for target in (samples.max(), samples.min()):
        for value in [*samples.tolist(), None]:
            if value is not None and value == target:
                run += 1
                continue
            total += run if run >= min_run else 0
            run = 0
    return total / samples.size


@pytest.mark.parametrize("scale", [1.0, 0.31, 3.7])
@pytest.mark.parametrize("min_run", [3, 5])
def test_clipping_is_the_share_of_runs_whatever_the_scale(
    scale: float, min_run: int, voices: list[Samples]
) -> None:
    for speech in voices[:3]:
        hurt = clipped(speech, 0.02) * np.float32(scale)
        found = measures.flat_run_ratio(hurt[None], min_run)
        assert found == pytest.approx(naive_flat_share(hurt, min_run), rel=0.02)
        assert found > (0.015 if min_run == 3 else 0.01)


def test_what_is_not_clipped(voices: list[Samples]) -> None:
    one_peak = voices[0] * np.float32(0.5)
    one_peak[1_000] = 1.0
    crests = np.rint(sine(50, 48_000, 1) * 32767).astype(np.float32) / 32768
    coarse = np.rint(sine(100, 48_000, 1) * 40).astype(np.float32) / 128
    beyond = voices[1] * np.float32(1.6)
    for samples in (one_peak, crests, coarse, beyond, *voices):
        assert measures.flat_run_ratio(samples[None], 3) == 0.0
    assert naive_flat_share(coarse, 3) > 0.05  # equal samples there are, on every crest


def test_the_worst_channel_counts(voices: list[Samples]) -> None:
    hurt = clipped(voices[0], 0.02)
    both = np.stack([voices[0], hurt])
    alone = hurt[None]
    assert measures.flat_run_ratio(both, 3) == measures.flat_run_ratio(alone, 3) > 0.01
    assert measures.peak_pile_up(both) == measures.peak_pile_up(alone) > 0.01


@pytest.mark.parametrize("kind", ["mp3", "opus", "m4a", "ogg"])
def test_clipping_piles_up_after_every_codec(kind: str, voices: list[Samples]) -> None:
    for speech in voices[::5]:
        found = []
        for share in (0.0, 0.01, 0.05):
            samples = (speech if share == 0 else clipped(speech, share)) * np.float32(0.8)
            decoded = decode_audio(encode_audio(samples, RATE, kind), MediaCaps())
            assert not isinstance(decoded, str)
            found.append(measures.peak_pile_up(decoded.samples))
        assert found[0] < 0.0005
        assert 0.001 < found[1] < 0.0101
        assert 0.01 < found[2] < 0.051


def test_clipping_piles_up_after_resampling(voices: list[Samples]) -> None:
    hurt = soxr.resample(clipped(voices[0], 0.05), RATE, 16_000)
    assert measures.flat_run_ratio(hurt[None], 3) == 0.0
    assert measures.peak_pile_up(hurt[None]) > 0.01


def test_a_tone_piles_up_and_noise_and_an_odd_sample_do_not() -> None:
    assert measures.peak_pile_up(sine(440, RATE, 1)[None]) > 0.1
    assert measures.peak_pile_up(RNG(1).standard_normal((1, 50_000)).astype(np.float32)) < 1e-4
    assert measures.peak_pile_up(np.array([[0.3]], np.float32)) == 0.0
    assert measures.peak_pile_up(np.zeros((2, 100), np.float32)) == 0.0


# spectrum, noise, bandwidth


def powers_of(samples: Samples, rate: int = RATE) -> measures.Spectrum:
    found = measures.spectrum(samples, rate)
    assert found is not None
    return found


def estimated(samples: Samples, rate: int = RATE) -> float:
    quiet = measures.loud_level(measures.frame_powers(samples[None], rate)) - 40
    found = measures.noise_ratio_db(powers_of(samples, rate), quiet)
    assert found is not None
    return found


def test_levels_of_windows_are_mean_squares() -> None:
    noise = RNG(2).standard_normal(400_000).astype(np.float32)
    found = powers_of(noise, 16_000)
    left_out = 1 - (measures.FIRST_BIN - 0.5) / (found.mean_by_bin.size - 1)
    assert found.levels.mean() == pytest.approx(left_out, rel=0.01)
    assert found.mean_by_bin[5:-5] == pytest.approx(found.scale, rel=0.15)
    assert found.bin_hz == 16_000 / 512


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = RNG(3).standard_normal(30_000).astype(np.float32)
    whole = powers_of(noise)
    monkeypatch.setattr(measures, "_CHUNK", 7)
    for one, other in zip(whole, powers_of(noise), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_the_bias_of_the_quantile_is_that_of_white_noise() -> None:
    noise = RNG(4).standard_normal(2_000_000).astype(np.float32)
    bands = powers_of(noise, 16_000).band_powers[:, :-1]
    drawn = np.quantile(bands, measures.NOISE_QUANTILE) / bands.mean()
    assert drawn == pytest.approx(measures.NOISE_BIAS, rel=0.01)


@pytest.mark.parametrize("color", ["white", "pink"])
@pytest.mark.parametrize(
    ("snr_db", "bias", "spread"),
    [(-5, 2.0, 1.0), (0, 1.5, 1.0), (5, 1.5, 1.0), (10, 1.5, 1.0), (20, 2.0, 1.5), (30, 4.5, 3.0)],
)
def test_snr_of_known_mixes(
    color: str, snr_db: int, bias: float, spread: float, voices: list[Samples]
) -> None:
    rng = RNG(5)
    draw: Callable[..., np.ndarray] = pink if color == "pink" else lambda n, r: r.standard_normal(n)
    errors = [estimated(mixed(s, draw(s.size, rng), snr_db)) - snr_db for s in voices]
    assert abs(np.mean(errors)) < bias
    assert np.std(errors) < spread


def test_snr_depends_on_neither_level_nor_inserted_silence(voices: list[Samples]) -> None:
    noisy = mixed(voices[0], RNG(6).standard_normal(voices[0].size), 10)
    padded = np.concatenate([noisy, np.zeros(3 * RATE, np.float32)])
    assert estimated(noisy * np.float32(0.01)) == pytest.approx(estimated(noisy), abs=0.01)
    assert estimated(padded) == pytest.approx(estimated(noisy), abs=0.5)


def test_snr_of_extremes() -> None:
    noise = RNG(7).standard_normal(2 * RATE).astype(np.float32)
    assert estimated(noise) < -8
    assert estimated(sine(500, RATE, 2)) == -measures.MAX_SNR_DB
    few = powers_of(noise[:7_000])
    assert len(few.levels) < measures.MIN_FRAMES
    assert measures.noise_ratio_db(few, -200) is None
    assert measures.spectrum(noise[:700], RATE) is None
    assert measures.spectrum(noise, 100) is None


@pytest.mark.parametrize("kind", ["mp3", "opus", "m4a", "ogg"])
def test_bandwidth_sees_upsampling_through_every_codec(kind: str, voices: list[Samples]) -> None:
    for speech in voices[::5]:
        telephone = soxr.resample(soxr.resample(speech, RATE, 8_000), 8_000, RATE)
        found = []
        for samples in (speech, telephone):
            decoded = decode_audio(encode_audio(samples * 0.2, RATE, kind), MediaCaps())
            assert not isinstance(decoded, str)
            found.append(measures.bandwidth(powers_of(decoded.samples[0], decoded.sample_rate)))
        assert found[0] is not None and found[0] > 7_000
        assert found[1] is not None and 3_500 < found[1] < 4_400


@pytest.mark.parametrize("frequency", [300.0, 3_000.0, 9_000.0])
def test_bandwidth_is_the_highest_frequency(frequency: float) -> None:
    tones = sine(300, RATE, 1, 0.5) + sine(frequency, RATE, 1, 0.02)
    found = measures.bandwidth(powers_of(tones))
    assert found == pytest.approx(frequency, abs=150)  # the Hann window is that wide at -50 dB


def test_dither_is_no_bandwidth(voices: list[Samples]) -> None:
    """A quiet telephone recording, stored in 16 bits with triangular dither."""
    rng = RNG(8)
    quiet = 0.01 * soxr.resample(soxr.resample(voices[0], RATE, 8_000), 8_000, RATE)
    dither = rng.uniform(-0.5, 0.5, quiet.size) + rng.uniform(-0.5, 0.5, quiet.size)
    stored = (np.rint(quiet * 32768 + dither) / 32768).astype(np.float32)
    found = measures.bandwidth(powers_of(stored))
    assert found is not None and found < 4_400
    only_dither = (np.rint(dither) / 32768).astype(np.float32)
    assert measures.bandwidth(powers_of(only_dither)) is None


def test_the_loudest_channel_is_not_the_one_with_most_dc() -> None:
    samples = np.stack([sine(100, 1_000, 1, 0.1), np.full(1_000, 0.9, np.float32)])
    assert measures.loudest_channel(samples) is not None
    np.testing.assert_array_equal(measures.loudest_channel(samples), samples[0])
