"""Alignment of thumbnails against loops by the words of the docstrings, and the duration window."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.stages.dedupe._verify_audio import (
    THUMBNAIL_BYTES,
    AudioCloseness,
    audio_difference,
    duration_keys,
    spectrum_difference,
)

Row = np.ndarray


def thumbnail(seconds: float, spectrum: Row, cells: Row) -> Row:
    """Return (572,) bytes of 56 quarter decibels and (128, 8) steps of 2 dB."""
    steps = cells.astype(np.uint8)
    packed = (steps[:, 0::2] * 16 + steps[:, 1::2]).tobytes()
    body = np.float32(seconds).tobytes() + spectrum.astype(np.uint8).tobytes() + packed
    return np.frombuffer(body, np.uint8)


def recordings(seed: int, count: int) -> Row:
    """Few scenes, each cut in several ways, with noise and other levels."""
    rng = np.random.default_rng(seed)
    scenes = rng.integers(2, 14, (3, 200, 8)).astype(float)
    found = []
    for _ in range(count):
        scene = scenes[rng.integers(3)]
        first, last = int(rng.integers(0, 20)), int(rng.integers(180, 200))
        at = np.linspace(first, last - 1, 128)
        cells = np.stack([np.interp(at, np.arange(200), scene[:, b]) for b in range(8)], axis=1)
        cells += rng.choice([0, 0, 1]) + rng.normal(0, rng.choice([0, 0.5, 2]), cells.shape)
        spectrum = np.repeat(scene.mean(axis=0), 7) * 8 + rng.normal(0, 2, 56)
        found.append(
            thumbnail((last - first) * 0.02, spectrum.clip(0, 255), np.rint(cells).clip(0, 15))
        )
    return np.stack(found)


def read(row: Row) -> tuple[float, Row, Row]:
    packed = row[60:].reshape(128, 4)
    cells = np.empty((128, 8))
    cells[:, 0::2], cells[:, 1::2] = packed // 16, packed % 16
    return float(row[:4].copy().view("<f4")[0]), row[4:60] / 4.0, cells * 2.0


def slow_difference(a: Row, b: Row, max_trim: float) -> float:
    """One pair, one offset, one cell at a time."""
    # Of one length: the lesser bytes are slid along the greater.
    first, second = sorted((a, b), key=lambda row: (read(row)[0], row.tobytes()))
    (short_s, _, short), (long_s, _, long) = read(first), read(second)
    ratio = short_s / long_s
    if ratio < 1 - max_trim - 1e-6:
        return float("inf")

    def differences(offset: float, x: Row, y: Row) -> dict[int, Row]:
        found = {}
        for cell in range(128):
            place = (offset + (cell + 0.5) / 128 * ratio) * 128 - 0.5
            if -0.25 <= place <= 127.25:
                place = min(max(place, 0.0), 126.9999)
                before = int(place)
                found[cell] = x[cell] - (y[before] + (place - before) * (y[before + 1] - y[before]))
        shift = float(np.clip(np.mean(list(found.values())), -4, 4))
        return {cell: np.abs(d - shift).mean() for cell, d in found.items()}

    steps = 2 * round(200 * max_trim) + 1
    offsets = [(1 - ratio + max_trim) * k / max(steps - 1, 1) - max_trim / 2 for k in range(steps)]
    envelopes = (short.mean(axis=1, keepdims=True), long.mean(axis=1, keepdims=True))
    costs = [np.mean(list(differences(o, *envelopes).values())) for o in offsets]
    worst = []
    for k in np.argsort(costs, kind="stable")[:3]:
        found = differences(offsets[k], short, long)
        runs = [range(c, c + 7) for c in range(122)]
        means = [np.mean([found[c] for c in run]) for run in runs if all(c in found for c in run)]
        worst.append(max(*means, 2 * np.mean(list(found.values()))))
    return float(min(worst))


@pytest.mark.parametrize(("seed", "max_trim"), [(0, 0.14), (1, 0.06), (2, 0.0)])
def test_equals_loops(seed: int, max_trim: float) -> None:
    rows = recordings(seed, 4)
    left, right = np.triu_indices(len(rows), 1)
    found = audio_difference(rows[left], rows[right], max_trim)
    assert np.array_equal(found, audio_difference(rows[right], rows[left], max_trim))
    pairs = list(zip(left, right, strict=True))
    expected = [slow_difference(rows[i], rows[j], max_trim) for i, j in pairs]
    # Two offsets may cost the same but for the last bits; then another third one is tried.
    assert np.isclose(found, expected, atol=2e-3).mean() >= 0.9
    for i, j, value in zip(left, right, spectrum_difference(rows[left], rows[right]), strict=True):
        apart = read(rows[i])[1] - read(rows[j])[1]
        assert value == pytest.approx(np.abs(apart - apart.mean()).mean(), abs=1e-4)


@settings(max_examples=20, deadline=None)
@given(
    seconds=st.floats(0.1, 100_000),
    share=st.floats(0.5, 1),
    max_trim=st.sampled_from([0, 0.14, 0.4]),
)
def test_the_window_holds_every_partner(seconds: float, share: float, max_trim: float) -> None:
    cells, spectrum = np.full((128, 8), 7), np.full(56, 100)
    long, short = (thumbnail(s, spectrum, cells)[None] for s in (seconds, seconds * share))
    closeness = AudioCloseness(detailed=2.0, flat=1.0, spectrum=0.6, max_trim=max_trim)
    low = np.zeros(1, bool)
    close = closeness.close(short, long, low)[0]
    assert close == (read(short[0])[0] / read(long[0])[0] >= 1 - max_trim - 1e-6)
    for a, b in ((long, short), (short, long)):
        least, largest = closeness.window(duration_keys(a)[:, 0].astype(np.int64), low)
        inside = least[0] <= duration_keys(b)[0, 0] <= largest[0]
        assert inside or not close


def test_low_information_asks_for_more() -> None:
    rng = np.random.default_rng(0)
    cells = rng.integers(1, 13, (128, 8))
    other = cells + rng.integers(0, 2, (128, 8))
    spectrum = np.full(56, 100)
    a, b = (thumbnail(3.0, spectrum, c)[None] for c in (cells, other))
    value = float(audio_difference(a, b, 0.0)[0])
    closeness = AudioCloseness(detailed=value * 1.1, flat=value * 0.9, spectrum=0.6, max_trim=0.0)
    assert closeness.close(a, b, np.array([False])).all()
    assert not closeness.close(a, b, np.array([True])).any()
    tilted = thumbnail(3.0, spectrum + np.repeat([0, 4], 28), cells)[None]  # 0.5 dB from the mean
    strict = AudioCloseness(detailed=2.0, flat=1.0, spectrum=0.6, max_trim=0.0)
    assert strict.close(a, tilted, np.array([False])).all()
    assert not strict.close(a, tilted, np.array([True])).any()


def test_hostile_thumbnails_are_compared_all_the_same() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (20, THUMBNAIL_BYTES), dtype=np.uint8)
    seconds = np.array([np.nan, np.inf, -1, 0, 1e38], "<f4")
    rows[:5, :4] = seconds.view(np.uint8).reshape(5, 4)
    found = audio_difference(rows[:10], rows[10:], 0.14)
    assert not np.isnan(found).any()
    assert (audio_difference(rows, rows, 0.14) <= 0.01).all()
    assert duration_keys(rows).shape == (20, 1)
