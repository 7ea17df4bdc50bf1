"""The members of a sample: what an extension means, and how one is decoded.

What cannot be decoded is a reason, a str: never an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from winnow.contracts.media import MediaCaps
from winnow.stages._audio import decode_audio, to_mono
from winnow.stages._media import decode_image

if TYPE_CHECKING:
    from winnow.models.audio_tower import AudioTowerConfig, Frames

Pixels = npt.NDArray[np.uint8]
IMAGE_MEMBERS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
AUDIO_MEMBERS = ("wav", "flac", "mp3", "ogg", "opus", "m4a")
NO_IMAGE, NO_AUDIO = "no image", "no audio"


def image_member(sample: Mapping[str, Any]) -> bytes:
    """Return the encoded picture of a sample, b"" where it has none."""
    return _first(sample, IMAGE_MEMBERS)


def audio_member(sample: Mapping[str, Any]) -> bytes:
    """Return the encoded recording of a sample, b"" where it has none."""
    return _first(sample, AUDIO_MEMBERS)


def text_member(sample: Mapping[str, Any], name: str) -> str:
    """Return the text of a member, "" where there is none."""
    member = sample.get(name)
    return member.decode("utf-8", "replace").strip() if isinstance(member, bytes) else ""


def decoded_picture(data: bytes, resize: Callable[[Any], Pixels]) -> Pixels | str:
    """Return what ``resize`` makes of an encoded picture, or why there is none."""
    if not data:
        return NO_IMAGE
    decoded = decode_image(data, MediaCaps())
    return decoded if isinstance(decoded, str) else resize(decoded.pixels)


def decoded_frames(data: bytes, tower: AudioTowerConfig) -> Frames | str:
    """Return the log-mel of an encoded recording as a tower takes it, or why there is none."""
    if not data:
        return NO_AUDIO
    decoded = decode_audio(data, MediaCaps())
    if isinstance(decoded, str):
        return decoded
    rate = tower.log_mel.sample_rate
    return tower.frames(to_mono(decoded.samples, decoded.sample_rate, rate))


def _first(sample: Mapping[str, Any], names: tuple[str, ...]) -> bytes:
    return next((sample[name] for name in names if name in sample), b"")
