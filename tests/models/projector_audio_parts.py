"""An audio tower of a few thousand weights in a folder as the trainer "audio" writes it, sounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from winnow.models.audio_text import save_tower_model
from winnow.models.audio_tower import AudioTowerConfig, build_tower

CONFIG = AudioTowerConfig(
    kind="conformer", duration_s=0.32, patch_bins=80, patch_frames=8, width=24, layers=1, heads=2,
    kernel=3,
)  # fmt: skip
"""4 tokens of a whole clip."""


def audio_tower(folder: Path, *, seed: int = 0) -> str:
    """Write an untrained tower that knows the mean of a log-mel; return its path."""
    tower = build_tower(CONFIG, 16, seed=seed)
    tower.mean.fill_(-0.5)
    tower.deviation.fill_(0.5)
    temperatures = {"log_scale.image_audio": torch.tensor(2.0)}
    save_tower_model(
        folder, tower, temperatures=temperatures, modalities=["audio"], image_text=None
    )
    return str(folder)


def chord(number: int, seed: int = 0, duration_s: float = 0.3) -> npt.NDArray[np.float32]:
    """Return one of several chords with a little noise, mono at 16 kHz."""
    draw = np.random.default_rng(seed)
    time = np.arange(round(duration_s * 16_000)) / 16_000
    base = 250 * 1.35**number * draw.uniform(0.98, 1.02)
    sound = np.sin(2 * np.pi * base * time) + 0.5 * np.sin(6 * np.pi * base * time)
    return (0.2 * sound + draw.normal(0, 0.01, len(time))).astype(np.float32)
