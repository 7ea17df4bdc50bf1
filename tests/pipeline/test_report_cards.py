"""Lengths of recordings as cards say them; cards themselves are tested in ``test_report.py``."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from tests.sounds import encode_audio
from winnow.pipeline.report_cards import _sound


@pytest.mark.parametrize(
    ("duration_s", "text"),
    [
        (0.25, "0.2 s"), (59.9, "59.9 s"), (60.0, "1 min 0 s"), (61.4, "1 min 1 s"),
        (119.4, "1 min 59 s"), (119.7, "2 min 0 s"), (179.96, "3 min 0 s"),
    ],
)  # fmt: skip
def test_seconds_stay_below_sixty(duration_s: float, text: str) -> None:
    rate = 8000
    wave = 0.1 * np.sin(np.arange(round(duration_s * rate)) / 5, dtype=np.float32)
    card = _sound(encode_audio(wave[None], rate, "wav"))
    assert card is not None
    assert card.length == text
    kind, _, data = card.picture.partition(",")
    assert kind == "data:image/jpeg;base64"
    assert base64.b64decode(data).startswith(b"\xff\xd8")


def test_what_is_no_recording_has_no_card() -> None:
    assert _sound(b"") is None
    assert _sound(b"RIFF\x00\x00\x00\x00WAVEfmt ") is None
