"""Train a small contrastive image-text model: open_clip's towers and losses, one short loop.

The loop takes batches from anywhere; ``on_shards.py`` takes them from exported WebDataset shards.

Sources: CLIP's recipe (Radford et al. 2021: AdamW with beta2 0.98, cosine schedule with warm-up,
learned temperature clamped at 100, no decay of gains and biases); SigLIP's loss and initial bias
(Zhai et al. 2023).
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from winnow.contracts.errors import RecipeError, SetupError, ShardError

if TYPE_CHECKING:
    import torch
    from torch import nn

Pixels = npt.NDArray[np.uint8]
STATE_NAME = "training_state.pt"
_MAX_LOGIT_SCALE = math.log(100)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run; equal ones give equal weights on one kind of CPU, threads being equal.

    num_samples: image-text pairs seen, repeats included.  warmup_samples: of these, at a rising
    rate.  augment_scale: least side of the random crop, as a share of the image's side.
    brightness: greatest relative change.  checkpoint_samples: pairs between two resumable
    checkpoints, 0 for none.
    """

    num_samples: int = 100_000
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    warmup_samples: int = 10_000
    loss: Literal["clip", "siglip"] = "clip"
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    augment_scale: float = 0.85
    brightness: float = 0.15
    checkpoint_samples: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot train."""
        for name in ("num_samples", "batch_size"):
            if getattr(self, name) < 1:
                msg = f"{name}={getattr(self, name)}: use at least 1"
                raise RecipeError(msg)
        if not 0 < self.augment_scale <= 1:
            msg = f"augment_scale={self.augment_scale}: use a share of the side in (0, 1]"
            raise RecipeError(msg)
        if not 0 < self.learning_rate < 1:
            msg = f"learning_rate={self.learning_rate}: use a rate in (0, 1), such as 0.001"
            raise RecipeError(msg)

    @property
    def num_steps(self) -> int:
        """Optimizer steps, all of full batches: up to batch_size - 1 pairs more are seen."""
        return -(-self.num_samples // self.batch_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """What the loop reports after each step."""

    samples_seen: int
    loss: float
    temperature: float
    samples_per_s: float


Batches = Callable[[int], Iterator[tuple[Pixels, "torch.Tensor"]]]
"""Start step -> endless batches (uint8 (B, H, W, 3), int64 tokens (B, T)), the same every time."""


def train_contrastive(
    network: nn.Module,
    batches: Batches,
    config: TrainConfig,
    *,
    normalize: Callable[[torch.Tensor], torch.Tensor],
    image_size: int,
    folder: Path,
    data: str = "",
    report: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Train ``network`` in place; return samples seen and the loss curve.

    ``normalize`` turns uint8 (B, H, W, 3) into the network's float input; ``data`` stands for what
    ``batches`` yields. Resumes from ``folder/training_state.pt``, and removes it at the end.

    Fails: ShardError (not retryable) with the step where the loss is not finite; SetupError where
    the state in ``folder`` is of another configuration or other data.
    """
    import torch

    from winnow.models.contrastive import choose_device

    device = choose_device(config.device)
    network.to(device).train()
    optimizer = _optimizer(network, config)
    loss_of = _loss(config)
    identity = json.dumps([dataclasses.asdict(config), data], sort_keys=True)
    step, curve = _resume(folder, network, optimizer, identity)
    start, first = time.monotonic(), step
    stream = batches(step)
    while step < config.num_steps:
        for group in optimizer.param_groups:
            group["lr"] = _rate(step, config)
        pixels, tokens = next(stream)
        chance = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        crops = augment(torch.from_numpy(pixels), image_size, config, chance)
        images = normalize(crops.to(device))
        loss = loss_of(*_outputs(network, images, tokens.to(device)))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            network.logit_scale.clamp_(0, _MAX_LOGIT_SCALE)  # type: ignore[union-attr, operator]
        step += 1
        value = float(loss.detach())
        if not math.isfinite(value):
            msg = f"the loss is {value} at step {step}; use a smaller learning rate"
            raise ShardError(msg, stage="train contrastive", retryable=False)
        seen = step * config.batch_size
        curve.append(round(value, 4))
        rate = (step - first) * config.batch_size / max(1e-9, time.monotonic() - start)
        scale = float(network.logit_scale.detach().exp())  # type: ignore[operator]
        report(Progress(samples_seen=seen, loss=value, temperature=scale, samples_per_s=rate))
        every = config.checkpoint_samples
        if every and seen // every > (seen - config.batch_size) // every:
            _save_state(folder, network, optimizer, identity, step, curve)
    network.eval()
    (folder / STATE_NAME).unlink(missing_ok=True)
    return {"samples_seen": step * config.batch_size, "loss_curve": _thinned(curve)}


def augment(
    pixels_BHWC: torch.Tensor, size: int, config: TrainConfig, chance: torch.Generator
) -> torch.Tensor:
    """Return random crops, uint8 (B, size, size, 3): own scale, place and brightness per image.

    No mirroring: captions say left and right.
    """
    import torch

    batch = len(pixels_BHWC)
    draw = torch.rand(4, batch, generator=chance)
    scale = config.augment_scale + (1 - config.augment_scale) * draw[0]
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, 0, 2], theta[:, 1, 2] = ((2 * draw[i] - 1) * (1 - scale) for i in (1, 2))
    grid = torch.nn.functional.affine_grid(theta, [batch, 3, size, size], align_corners=False)
    images = pixels_BHWC.permute(0, 3, 1, 2).float()
    crops = torch.nn.functional.grid_sample(
        images, grid, padding_mode="reflection", align_corners=False
    )
    light = 1 + config.brightness * (2 * draw[3] - 1)
    bright = (crops * light[:, None, None, None]).clamp(0, 255)
    return bright.round().to(torch.uint8).permute(0, 2, 3, 1)


def _outputs(network: Any, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What open_clip's losses take: unit vectors, temperature, and the bias where there is one."""
    from torch.nn.functional import normalize

    from winnow.models.contrastive import encode_text_short

    image_features = normalize(network.encode_image(images), dim=-1)
    text_features = normalize(encode_text_short(network, tokens), dim=-1)
    bias = () if network.logit_bias is None else (network.logit_bias,)
    return image_features, text_features, network.logit_scale.exp(), *bias


def _optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    import torch

    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        plain = parameter.ndim < 2 or "embedding" in name
        (free if plain else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), eps=1e-6)


def _loss(config: TrainConfig) -> Callable[..., torch.Tensor]:
    from open_clip.loss import ClipLoss, SigLipLoss

    return SigLipLoss() if config.loss == "siglip" else ClipLoss()


def _rate(step: int, config: TrainConfig) -> float:
    warm = max(1, config.warmup_samples // config.batch_size)
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    done = (step - warm) / max(1, config.num_steps - warm)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def _thinned(curve: list[float], points: int = 200) -> list[float]:
    """The mean loss of each of up to 200 equal stretches."""
    width = max(1, -(-len(curve) // points))
    return [round(float(np.mean(curve[i : i + width])), 4) for i in range(0, len(curve), width)]


def _save_state(
    folder: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: str,
    step: int,
    curve: list[float],
) -> None:
    import torch

    state = {
        "identity": identity,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "curve": curve,
    }
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{STATE_NAME}.part"
    torch.save(state, part)
    part.replace(folder / STATE_NAME)


def _resume(
    folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer, identity: str
) -> tuple[int, list[float]]:
    import torch

    path = folder / STATE_NAME
    if not path.is_file():
        return 0, []
    state: Mapping[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    if state["identity"] != identity:
        msg = f"{path} is of a run with other parameters or data; use another --out, or delete it"
        raise SetupError(msg)
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"]), list(state["curve"])
