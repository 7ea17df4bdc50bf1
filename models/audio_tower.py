"""Audio towers: log-mel patches into a transformer (AST style), or frames into a Conformer.

A clip is cut, or filled up, to a fixed length; what is filled up is masked everywhere, so that a
clip's vector does not depend on how much of it there is.

Sources: the Audio Spectrogram Transformer (Gong et al. 2021: patches of a log-mel spectrogram into
a ViT, input normalised by the mean and deviation of the training set); ImageBind's audio tower
(Girdhar et al. 2023: the same, one projection into the images' space); the Conformer (Gulati et al.
2020: half a feed-forward step before and after, attention, then convolution).

Tensor suffixes: B batch, N samples or tokens, M mel bins, T frames, F and S rows and columns of
patches, W width, D embedding, H heads.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import glu, scaled_dot_product_attention, silu

from winnow.contracts.errors import RecipeError
from winnow.models.log_mel import CLAP_64, WHISPER_80, WHISPER_128, LogMel

Kind = Literal["vit", "conformer"]
Mel = Literal["whisper_80", "whisper_128", "clap_64"]
Frames = npt.NDArray[np.float16]
MELS: Mapping[str, LogMel] = MappingProxyType(
    {
        "whisper_80": WHISPER_80,
        "whisper_128": WHISPER_128,
        "clap_64": dataclasses.replace(CLAP_64, duration_s=None),
    }
)
MAX_DURATION_S = 60.0
_PARTS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioTowerConfig:
    """What an audio tower is.

    kind: "vit" or "conformer".  mel: the log-mel spectrogram, see ``winnow.models.log_mel``.
    duration_s: of a clip; longer ones are cut, shorter ones masked.  patch_bins, patch_frames: mel
    bins and frames of a patch (10 ms a frame in all presets); a Conformer takes all bins in one.
    width, layers, heads: of the transformer.  kernel: frames that a Conformer's convolution sees,
    odd.
    """

    kind: Kind = "vit"
    mel: Mel = "whisper_80"
    duration_s: float = 10.0
    patch_bins: int = 16
    patch_frames: int = 16
    width: int = 192
    layers: int = 6
    heads: int = 6
    kernel: int = 15

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        for name, allowed in (("kind", get_args(Kind)), ("mel", tuple(MELS))):
            if getattr(self, name) not in allowed:
                _refuse(name, getattr(self, name), f"use one of {', '.join(allowed)}")
        if not 0 < self.duration_s <= MAX_DURATION_S:
            _refuse("duration_s", self.duration_s, f"use seconds up to {MAX_DURATION_S:g}")
        for name in ("patch_bins", "patch_frames", "width", "layers", "heads", "kernel"):
            if getattr(self, name) < 1:
                _refuse(name, getattr(self, name), "use 1 or more")
        bins = self.log_mel.num_bins
        if bins % self.patch_bins:
            _refuse(
                "patch_bins", self.patch_bins, f"use a divisor of the {bins} bins of {self.mel}"
            )
        if self.kind == "conformer" and self.patch_bins != bins:
            _refuse("patch_bins", self.patch_bins, f"a conformer takes all {bins} bins in one")
        if self.width % self.heads:
            _refuse("heads", self.heads, f"use a divisor of width={self.width}")
        if self.kernel % 2 == 0:
            _refuse("kernel", self.kernel, "use an odd number of frames")

    @property
    def log_mel(self) -> LogMel:
        """The spectrogram that it reads."""
        return MELS[self.mel]

    @property
    def num_frames(self) -> int:
        """Frames of a whole clip, a multiple of ``patch_frames``."""
        wanted = self.duration_s * self.log_mel.sample_rate / self.log_mel.hop
        return max(1, math.ceil(wanted / self.patch_frames - 1e-6)) * self.patch_frames

    @property
    def num_samples(self) -> int:
        """Samples of a whole clip."""
        return round(self.duration_s * self.log_mel.sample_rate)

    def frames(self, samples_N: npt.NDArray[np.float32]) -> Frames:
        """Return the log-mel of a mono waveform at the mel's rate, float16 (M, T).

        It is cut to ``num_samples``; T is the number of frames that the clip reaches into, at
        least 1 and at most ``num_frames``. float16, so that what is kept on disk for training and
        what is computed for inference are the same numbers.
        """
        mel, cut = self.log_mel, samples_N[: self.num_samples]
        wanted = min(self.num_frames, max(1, -(-len(cut) // mel.hop)))
        missing = mel.n_fft - len(cut)
        padded = np.pad(cut, (0, missing)) if missing > 0 else cut
        found = np.asarray(mel.compute(np.ascontiguousarray(padded, np.float32)))
        return found[:, :wanted].astype(np.float16)


PRESETS: Mapping[str, AudioTowerConfig] = MappingProxyType(
    {
        "nano": AudioTowerConfig(
            kind="conformer",
            duration_s=2.0,
            patch_bins=80,
            patch_frames=4,
            width=96,
            layers=2,
            heads=4,
            kernel=7,
        ),
        "tiny": AudioTowerConfig(duration_s=5.12, width=192, layers=6, heads=6),
    }
)
"""Packaged configurations, to train afresh: nano for spoken words, tiny for clips of 5 seconds."""


def tower_config(name: str, **changes: Any) -> AudioTowerConfig:
    """Return a packaged configuration with changes. Fails: RecipeError for what cannot be.

    Where a patch has all mel bins, it has all those of another ``mel`` too, and of a Conformer.
    """
    if name not in PRESETS:
        _refuse("preset", name, f"use one of {', '.join(PRESETS)}")
    preset = PRESETS[name]
    kind, mel = changes.get("kind", preset.kind), changes.get("mel", preset.mel)
    if mel in MELS and (kind == "conformer" or preset.patch_bins == preset.log_mel.num_bins):
        changes = {"patch_bins": MELS[mel].num_bins, **changes}
    return dataclasses.replace(preset, **changes)


def stacked(clips: Sequence[Frames], config: AudioTowerConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float32 (B, M, T) with zeros behind each clip, and the frames of each, int64 (B,)."""
    mel_BMT = torch.zeros(len(clips), config.log_mel.num_bins, config.num_frames)
    for row, clip in enumerate(clips):
        mel_BMT[row, :, : clip.shape[1]] = torch.from_numpy(np.asarray(clip, np.float32))
    return mel_BMT, torch.tensor([clip.shape[1] for clip in clips], dtype=torch.int64)


class AudioTower(nn.Module):
    """Log-mel spectrograms -> embeddings (not yet unit vectors)."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, config: AudioTowerConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        width, rows = config.width, config.log_mel.num_bins // config.patch_bins
        columns = config.num_frames // config.patch_frames
        patch = (config.patch_bins, config.patch_frames)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))
        self.patches = nn.Conv2d(1, width, patch, stride=patch)
        self.position = nn.Parameter(torch.randn(width, rows, columns) * 0.02)
        block = _TransformerBlock if config.kind == "vit" else _ConformerBlock
        self.blocks = nn.ModuleList(block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, embed_dim, bias=False)

    def forward(self, mel_BMT: torch.Tensor, num_frames_B: torch.Tensor) -> torch.Tensor:
        """Return (B, D), the projected mean of ``tokens``."""
        x_BNW, inside_BN = self.tokens(mel_BMT, num_frames_B)
        pooled_BW = x_BNW.sum(dim=1) / inside_BN.sum(dim=1, keepdim=True)
        out: torch.Tensor = self.projection(pooled_BW)
        return out

    def tokens(
        self, mel_BMT: torch.Tensor, num_frames_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (B, N, W) before pooling, 0 where masked, and which tokens are real, bool (B, N).

        T may be shorter than a whole clip, but a multiple of ``patch_frames``. Frames from
        ``num_frames_B`` on are never looked at; the patch that the clip ends in has the training
        set's mean there.
        """
        frame_T = torch.arange(mel_BMT.shape[2], device=mel_BMT.device)
        inside_BT = frame_T < num_frames_B[:, None]
        clip_BMT = (mel_BMT - self.mean) / self.deviation
        clip_BMT = clip_BMT.masked_fill(~inside_BT[:, None], 0.0)
        x_BWFS = self.patches(clip_BMT[:, None])
        x_BWFS = x_BWFS + self.position[:, :, : x_BWFS.shape[3]]
        inside_BS = inside_BT[:, :: self.config.patch_frames]
        inside_BN = inside_BS.repeat(1, x_BWFS.shape[2])
        x_BNW = x_BWFS.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x_BNW = block(x_BNW, inside_BN)
        return self.norm(x_BNW).masked_fill(~inside_BN[:, :, None], 0.0), inside_BN

    def forward_short(
        self, mel_BMT: torch.Tensor, num_frames_B: torch.Tensor, parts: int = _PARTS
    ) -> torch.Tensor:
        """Return the same without computing most of what is masked.

        Sorts the clips by length and runs them in ``parts``, each cut behind its longest clip. For
        training: the last bits depend on what else is in the batch.
        """
        order = num_frames_B.argsort(stable=True)
        step, found = self.config.patch_frames, []
        for rows in order.chunk(parts):
            length = -(-int(num_frames_B[rows].max()) // step) * step
            found.append(self(mel_BMT[rows, :, :length], num_frames_B[rows]))
        return torch.cat(found)[order.argsort()]


class _Attention(nn.Module):
    def __init__(self, config: AudioTowerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = nn.LayerNorm(config.width)
        self.inputs = nn.Linear(config.width, 3 * config.width)
        self.output = nn.Linear(config.width, config.width)

    def forward(self, x_BNW: torch.Tensor, inside_BN: torch.Tensor) -> torch.Tensor:
        batch, length, width = x_BNW.shape
        shape = (batch, length, 3, self.heads, width // self.heads)
        q, k, v = self.inputs(self.norm(x_BNW)).view(shape).permute(2, 0, 3, 1, 4)
        found = scaled_dot_product_attention(q, k, v, attn_mask=inside_BN[:, None, None])
        out: torch.Tensor = self.output(found.transpose(1, 2).reshape(batch, length, width))
        return out


def _feed_forward(config: AudioTowerConfig, activation: nn.Module) -> nn.Sequential:
    width = config.width
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, 4 * width), activation, nn.Linear(4 * width, width)
    )


class _TransformerBlock(nn.Module):
    """A ViT's block: attention, then two layers; normalised before each."""

    def __init__(self, config: AudioTowerConfig) -> None:
        super().__init__()
        self.attention = _Attention(config)
        self.feed_forward = _feed_forward(config, nn.GELU())

    def forward(self, x_BNW: torch.Tensor, inside_BN: torch.Tensor) -> torch.Tensor:
        x_BNW = x_BNW + self.attention(x_BNW, inside_BN)
        out: torch.Tensor = x_BNW + self.feed_forward(x_BNW)
        return out


class _ConformerBlock(nn.Module):
    """Gulati et al. 2020, figure 1; positions are learned ones, added to the frames."""

    def __init__(self, config: AudioTowerConfig) -> None:
        super().__init__()
        self.before = _feed_forward(config, nn.SiLU())
        self.attention = _Attention(config)
        self.convolution = _Convolution(config)
        self.after = _feed_forward(config, nn.SiLU())
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x_BNW: torch.Tensor, inside_BN: torch.Tensor) -> torch.Tensor:
        x_BNW = x_BNW + self.before(x_BNW) / 2
        x_BNW = x_BNW + self.attention(x_BNW, inside_BN)
        x_BNW = x_BNW + self.convolution(x_BNW, inside_BN)
        out: torch.Tensor = self.norm(x_BNW + self.after(x_BNW) / 2)
        return out


class _Convolution(nn.Module):
    """The convolution module, with a layer norm where the paper has a batch norm: a clip's vector
    must not depend on the clips beside it."""

    def __init__(self, config: AudioTowerConfig) -> None:
        super().__init__()
        width = config.width
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 2 * width)
        self.depthwise = nn.Conv1d(
            width, width, config.kernel, padding=config.kernel // 2, groups=width
        )
        self.inner_norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, width)

    def forward(self, x_BNW: torch.Tensor, inside_BN: torch.Tensor) -> torch.Tensor:
        x_BNW = glu(self.widen(self.norm(x_BNW)))
        x_BNW = x_BNW.masked_fill(~inside_BN[:, :, None], 0.0)
        x_BNW = self.depthwise(x_BNW.transpose(1, 2)).transpose(1, 2)
        out: torch.Tensor = self.output(silu(self.inner_norm(x_BNW)))
        return out


def build_tower(config: AudioTowerConfig, embed_dim: int, *, seed: int) -> AudioTower:
    """Return a fresh tower; the seed decides its weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AudioTower(config, embed_dim)


def _refuse(name: str, value: object, hint: str) -> None:
    msg = f"audio tower: {name}={value!r}; {hint}"
    raise RecipeError(msg)
