"""Audio towers: masks that hold, whatever stands behind them; frames; both kinds; presets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from winnow.contracts.errors import RecipeError
from winnow.models.audio_tower import (
    PRESETS,
    AudioTowerConfig,
    build_tower,
    stacked,
    tower_config,
)

VIT = AudioTowerConfig(
    duration_s=0.64, patch_bins=40, patch_frames=8, width=16, layers=2, heads=2, kernel=3
)
CONFORMER = AudioTowerConfig(
    kind="conformer", duration_s=0.64, patch_bins=80, patch_frames=4, width=16, layers=2, heads=2,
    kernel=3,
)  # fmt: skip


def tone(seconds: float, hertz: float = 440.0, rate: int = 16_000) -> np.ndarray:
    """A sine with a little noise, float32."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(int(hertz)).normal(0, 0.01, len(time))
    return (0.4 * np.sin(2 * np.pi * hertz * time) + noise).astype(np.float32)


@pytest.mark.parametrize("config", [VIT, CONFORMER], ids=["vit", "conformer"])
def test_what_stands_behind_a_clip_changes_nothing(config: AudioTowerConfig) -> None:
    tower = build_tower(config, 12, seed=3).eval()
    clips = [config.frames(tone(s, h)) for s, h in ((0.2, 300), (0.64, 500), (0.31, 900))]
    mel, frames = stacked(clips, config)
    with torch.no_grad():
        expected = tower(mel, frames)
        noisy = mel.clone()
        for row, count in enumerate(frames.tolist()):
            noisy[row, :, count:] = torch.randn_like(noisy[row, :, count:]) * 100
        torch.testing.assert_close(tower(noisy, frames), expected, rtol=0, atol=0)
        # Alone and without the filling: the same but for the order of sums.
        step = config.patch_frames
        for row, count in enumerate(frames.tolist()):
            length = -(-count // step) * step
            alone = tower(mel[row : row + 1, :, :length], frames[row : row + 1])
            torch.testing.assert_close(alone[0], expected[row], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            tower.forward_short(mel, frames, parts=2), expected, rtol=1e-4, atol=1e-5
        )
        # The mask matters: with one more patch taken for sound the vector is another one.
        longer = frames + torch.tensor([step, 0, 0])
        assert (tower(mel, longer)[0] - expected[0]).abs().max() > 1e-3


@pytest.mark.parametrize("config", [VIT, CONFORMER], ids=["vit", "conformer"])
def test_every_parameter_learns_and_the_seed_decides_them(config: AudioTowerConfig) -> None:
    tower = build_tower(config, 12, seed=3)
    again = build_tower(config, 12, seed=3).state_dict()
    other = build_tower(config, 12, seed=4).state_dict()
    for name, value in tower.state_dict().items():
        assert torch.equal(value, again[name])
    assert not torch.equal(other["projection.weight"], again["projection.weight"])
    mel, frames = stacked([config.frames(tone(0.5)), config.frames(tone(0.64, 900))], config)
    (tower(mel, frames) ** 2).sum().backward()
    idle = [n for n, p in tower.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_frames_are_those_of_the_log_mel_cut_to_the_clip() -> None:
    config = VIT
    assert (config.num_frames, config.num_samples) == (64, 10_240)
    whole = config.frames(tone(3.0))
    assert whole.shape == (80, 64)
    assert whole.dtype == np.float16
    expected = config.log_mel.compute(tone(3.0)[:10_240]).astype(np.float16)
    assert np.array_equal(whole, expected[:, :64])
    assert config.frames(tone(0.2)).shape == (80, 20)
    for length in (0, 1, 159, 400):
        found = config.frames(tone(3.0)[:length])
        assert found.shape[1] >= 1
        assert np.isfinite(found).all()


def test_clap_frames_are_not_repeated_to_ten_seconds() -> None:
    config = tower_config("nano", mel="clap_64")
    assert config.patch_bins == 64
    found = config.frames(tone(0.5, rate=48_000))
    assert found.shape == (64, 50)
    tower = build_tower(config, 8, seed=0).eval()
    with torch.no_grad():
        assert tower(*stacked([found], config)).shape == (1, 8)


def test_presets_build_and_are_small() -> None:
    sizes = {}
    for name in PRESETS:
        tower = build_tower(tower_config(name), 32, seed=0)
        sizes[name] = sum(p.numel() for p in tower.parameters())
    assert 200_000 < sizes["nano"] < 1_000_000 < sizes["tiny"] < 6_000_000
    assert tower_config("tiny", kind="conformer").patch_bins == 80


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"kind": "rnn"}, "kind='rnn'; use one of vit, conformer"),
        ({"duration_s": 0.0}, "duration_s=0.0"),
        ({"patch_bins": 33}, "patch_bins=33; use a divisor of the 80 bins"),
        ({"kind": "conformer", "patch_bins": 40}, "a conformer takes all 80 bins"),
        ({"heads": 7}, "heads=7; use a divisor of width=96"),
        ({"kernel": 4}, "kernel=4; use an odd"),
        ({"layers": 0}, "layers=0"),
    ],
)
def test_what_cannot_be_built_is_refused(changes: dict[str, object], match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        tower_config("nano", **changes)
    with pytest.raises(RecipeError, match="preset='huge'; use one of nano, tiny"):
        tower_config("huge")
