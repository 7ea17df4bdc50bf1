"""Cards of recordings: the picture shows the frequencies, the clip sounds like the recording."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from winnow.contracts.media import MediaCaps
from winnow.stages._audio import decode_audio
from winnow.stages._audio_encode import encode_audio
from winnow.stages._sound_card import HEIGHT, RATE, WIDTH, sound_card, spectrum


def tone(hertz: float, seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate).astype("float32")


@pytest.mark.parametrize("hertz", [250, 1000, 4000, 7500])
def test_a_tone_is_a_dark_line_at_its_height(hertz: float) -> None:
    dark_HW = -spectrum(tone(hertz)).astype(int).sum(axis=2)
    rows = dark_HW.argmax(axis=0)
    # Row 0 is 8 kHz, one row is 100 Hz.
    expected = HEIGHT - 1 - hertz * HEIGHT / 8000
    assert np.abs(rows - expected).max() <= 1
    assert dark_HW.shape == (HEIGHT, WIDTH)


def test_time_runs_from_left_to_right() -> None:
    both = np.concatenate([tone(1000), np.zeros(RATE, np.float32)])
    light_W = spectrum(both).astype(int).sum(axis=(0, 2))
    assert light_W[: WIDTH // 2 - 8].max() < light_W[WIDTH // 2 + 8 :].min()
    silence = spectrum(np.zeros(100, np.float32))
    assert (silence == silence[0, 0]).all()


def test_the_clip_is_the_start_of_the_recording() -> None:
    long = np.stack([tone(440, 20.0, 22050)] * 2)
    card = sound_card(encode_audio(long, 22050, "flac"))
    assert card is not None
    assert card.duration_s == pytest.approx(20.0)
    assert Image.open(io.BytesIO(card.picture)).size == (WIDTH, HEIGHT)
    heard = decode_audio(card.clip, MediaCaps())
    assert not isinstance(heard, str)
    assert heard.duration_s == pytest.approx(8.0, abs=0.1)
    power = np.abs(np.fft.rfft(heard.samples[0]))
    assert power.argmax() * heard.sample_rate / heard.samples.shape[1] == pytest.approx(440, abs=1)
    assert len(card.clip) < 30_000


@pytest.mark.parametrize("data", [b"", b"RIFF\0\0\0\0WAVE", b"<html>", b"\xff\xfb\x90\x64" * 50])
def test_what_is_no_recording_has_no_card(data: bytes) -> None:
    assert sound_card(data) is None
