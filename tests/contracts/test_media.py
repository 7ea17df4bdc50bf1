"""Decoded media: the size of what was decoded smaller, seconds, and a type for references."""

from __future__ import annotations

import dataclasses
import math
import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from winnow.contracts.identity import content_digest
from winnow.contracts.media import MEDIA_REF, DecodedAudio, DecodedImage, MediaCaps

SIDES = st.integers(1, 70_000)
FLIPS = st.sampled_from([(x, y) for x in (False, True) for y in (False, True)])


class Canvas:
    """As much of a picture as its size; pixels of a large one would take all the memory."""

    def __init__(self, width: int, height: int) -> None:
        self.size = (width, height)
        self.width, self.height = self.size


@settings(deadline=None, max_examples=40)
@given(SIDES, SIDES, st.sampled_from([1, 2, 4, 8]), FLIPS)
def test_the_size_is_that_of_the_picture_however_small_it_was_decoded(
    width: int, height: int, scale: int, flips: tuple[bool, bool]
) -> None:
    """Orientation can put the fraction of a column on either side."""
    columns, rows = math.ceil(width / scale), math.ceil(height / scale)
    right, lower = width / scale, height / scale
    left, upper = (columns - right) * flips[0], (rows - lower) * flips[1]
    image = DecodedImage(
        pixels=Canvas(columns, rows),  # type: ignore[arg-type]
        format="JPEG",
        scale=scale,
        covered=(left, upper, left + right, upper + lower),
    )
    assert image.size == (width, height)
    assert all(type(side) is int for side in image.size)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 4, 8]))
def test_a_picture_without_edges_covers_all_of_its_pixels(
    width: int, height: int, scale: int
) -> None:
    pixels = Image.new("L", (width, height))
    image = DecodedImage(pixels=pixels, format="PNG", scale=scale)
    assert image.size == (width * scale, height * scale)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(0, 500), st.sampled_from([1, 8000, 44100, 192000]))
def test_seconds_are_samples_of_one_channel_over_the_rate(
    channels: int, samples: int, rate: int
) -> None:
    audio = DecodedAudio(
        samples=np.zeros((channels, samples), np.float32),
        sample_rate=rate,
        codec="pcm_s16le",
        container="wav",
        header_duration_s=99.0,
    )
    assert audio.num_channels == channels
    assert audio.duration_s == samples / rate


def test_a_reference_says_where_bytes_are_and_what_they_were() -> None:
    value = {"path": "s3://b/a.tar", "offset": 2**40, "length": 3, "digest": content_digest(b"abc")}
    assert pa.array([value, None], MEDIA_REF).to_pylist() == [value, None]
    with pytest.raises(pa.ArrowInvalid):
        pa.array([{**value, "digest": b"short"}], MEDIA_REF)


def test_caps_are_pillows_default_frozen_and_travel_to_workers() -> None:
    caps = MediaCaps()
    assert caps.max_pixels == Image.MAX_IMAGE_PIXELS
    assert pickle.loads(pickle.dumps(caps)) == caps
    with pytest.raises(dataclasses.FrozenInstanceError):
        caps.max_pixels = 1  # type: ignore[misc]
