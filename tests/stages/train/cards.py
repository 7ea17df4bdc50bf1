"""Coloured cards with captions as shards, and an architecture that learns them in a second."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COLORS = {
    "red": (220, 30, 30), "green": (20, 190, 40), "blue": (30, 40, 220), "yellow": (230, 220, 20),
    "black": (10, 10, 10), "white": (250, 250, 250), "pink": (250, 130, 190),
    "brown": (120, 70, 20),
}  # fmt: skip


def architecture(*, context_length: int = 12, **vision: Any) -> dict[str, Any]:
    """Return a configuration file's content; ``vision`` is added to the vision tower's."""
    tower = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
    text = {"vocab_size": 560, "width": 32, "heads": 2, "layers": 1}
    config = {
        "embed_dim": 24,
        "vision_cfg": {**tower, **vision},
        "text_cfg": {"context_length": context_length, **text},
    }
    return {"model_cfg": config, "preprocess_cfg": {"resize_mode": "squash"}}


def card(
    color: tuple[int, int, int], seed: int, size: tuple[int, int], file_format: str = "JPEG"
) -> bytes:
    """Return a picture of a colour with noise; ``size`` is (width, height)."""
    noise = np.random.default_rng(seed).normal(0, 12, (size[1], size[0], 3))
    buffer = io.BytesIO()
    pixels = np.clip(noise + color, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, file_format)
    return buffer.getvalue()


def write_shard(
    path: Path, samples: Sequence[Mapping[str, bytes]], *, prefix: str = "key", start: int = 0
) -> str:
    """Write samples (extension -> bytes) as <prefix><number>.<extension>; return the path."""
    with tarfile.open(path, "w") as tar:
        for index, sample in enumerate(samples, start):
            for extension, data in sample.items():
                info = tarfile.TarInfo(f"{prefix}{index:04d}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return str(path)
