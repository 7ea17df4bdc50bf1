"""Each damage, measured by other means than it was made by."""

from __future__ import annotations

import numpy as np
import pytest

from winnow.stages.sources._speech import damage
from winnow.stages.sources._speech.voice import synthesise

SPEECH, RATE = synthesise("The old farmer sold seven baskets of lemons at the market.")


def rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples.astype(np.float64)))))


def level_above(samples: np.ndarray, rate: int, hz: float) -> float:
    power = np.square(np.abs(np.fft.rfft(samples.astype(np.float64))))
    frequencies = np.fft.rfftfreq(len(samples), 1 / rate)
    return float(power[frequencies > hz].sum() / power.sum())


def test_active_rms_ignores_pauses_and_equals_the_rms_of_a_tone() -> None:
    tone = (0.5 * np.sin(np.arange(RATE) * 0.1)).astype(np.float32)
    padded = np.concatenate([np.zeros(2 * RATE, np.float32), tone])
    assert damage.active_rms(tone, RATE) == pytest.approx(rms(tone), rel=1e-3)
    assert damage.active_rms(padded, RATE) == pytest.approx(rms(tone), rel=1e-3)
    assert damage.active_rms(np.zeros(100, np.float32), RATE) == 0.0
    assert damage.active_rms(np.zeros(0, np.float32), RATE) == 0.0


@pytest.mark.parametrize("color", ["white", "pink", "babble"])
@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 20.0])
def test_noise_has_the_ratio_asked_for(color: damage.NoiseColor, snr_db: float) -> None:
    others = [synthesise(text, variant="f2")[0] for text in ("good morning", "a long way home")]
    quiet = SPEECH / 10  # so that no sum is scaled down
    noisy = damage.add_noise(quiet, RATE, snr_db, 3, color=color, utterances=others)
    frames = np.square(quiet[: len(quiet) // 441 * 441].reshape(-1, 441)).mean(axis=1)
    speech = np.sqrt(frames[frames >= frames.max() * 10**-3.5].mean())
    assert 20 * np.log10(speech / rms(noisy - quiet)) == pytest.approx(snr_db, abs=0.1)
    again = damage.add_noise(quiet, RATE, snr_db, 3, color=color, utterances=others)
    assert np.array_equal(noisy, again)


def test_a_loud_sum_is_scaled_as_a_whole() -> None:
    sums = [damage.add_noise(SPEECH * k, RATE, -20, 3) for k in (0.01, 1)]
    assert np.abs(sums[1]).max() == pytest.approx(damage.PEAK)
    assert np.corrcoef(sums)[0, 1] > 0.999999


def test_pink_noise_falls_by_3_db_an_octave() -> None:
    for color, slope in (("white", 0.0), ("pink", -1.0)):
        power = np.square(np.abs(np.fft.rfft(damage.noise(1 << 17, 1, color))))
        low, high = power[2048:4096].mean(), power[32768:65536].mean()
        assert np.log2(high / low) == pytest.approx(4 * slope, abs=0.2)


@pytest.mark.parametrize("share", [0.01, 0.08, 0.3])
def test_clip_reaches_full_scale_in_that_share(share: float) -> None:
    clipped = damage.clip(SPEECH, share)
    assert np.mean(np.abs(clipped) >= 1.0) == pytest.approx(share, abs=1e-3)
    assert np.abs(clipped).max() == 1.0
    assert np.array_equal(np.sign(clipped), np.sign(SPEECH))


@pytest.mark.parametrize("where", ["start", "end", "both", "inside"])
def test_silence_is_that_share_and_nothing_is_lost(where: str) -> None:
    longer = damage.with_silence(SPEECH, 0.75, where)  # type: ignore[arg-type]
    assert len(longer) == pytest.approx(4 * len(SPEECH), abs=1)
    assert np.array_equal(longer[longer != 0], SPEECH[SPEECH != 0])
    quiet = np.flatnonzero(longer)
    leading, trailing = quiet[0] > len(SPEECH), quiet[-1] < 3 * len(SPEECH)
    wanted = {"start": (1, 0), "end": (0, 1), "both": (1, 1), "inside": (0, 0)}
    assert (leading, trailing) == wanted[where]


def test_truncate_trim_and_bytes() -> None:
    assert np.array_equal(damage.truncate(SPEECH, 0.25), SPEECH[: round(len(SPEECH) / 4)])
    assert damage.truncate_bytes(bytes(range(100)), 0.3) == bytes(range(30))
    for seed in range(5):
        shorter = damage.trim(SPEECH, 0.05, seed)
        assert len(shorter) == len(SPEECH) - round(0.05 * len(SPEECH))
        assert shorter.tobytes() in SPEECH.tobytes()
    assert len({damage.trim(SPEECH, 0.05, seed).tobytes() for seed in range(5)}) > 1


def test_gain_and_offset() -> None:
    assert rms(damage.gain(SPEECH, -6.0)) == pytest.approx(rms(SPEECH) * 0.5012, rel=1e-3)
    assert np.abs(damage.gain(SPEECH, 60.0)).max() == pytest.approx(damage.PEAK)
    for offset in (0.2, -0.7):
        moved = damage.dc_offset(SPEECH, offset)
        assert moved.mean() == pytest.approx(offset + 0.0, abs=0.01)
        assert np.abs(moved).max() <= damage.PEAK + 1e-6


def test_upsampled_has_nothing_above_4_khz() -> None:
    for rate in (22050, 44100):
        narrow = damage.upsampled(SPEECH, RATE, rate)
        assert len(narrow) / rate == pytest.approx(len(SPEECH) / RATE, abs=0.001)
        assert level_above(narrow, rate, 4100) < 1e-5
    assert level_above(damage.resample(SPEECH, RATE, 44100), 44100, 4100) > 1e-3


def test_silence_has_its_level() -> None:
    assert not damage.silent(100, 0).any()
    assert 20 * np.log10(rms(damage.silent(50_000, 0, -80.0))) == pytest.approx(-80, abs=0.1)
