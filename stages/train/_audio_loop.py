"""The training loop of an audio model: several pairs of modalities, each with its own temperature.

AdamW with beta2 0.98, a cosine with warm-up, gradients clipped to a norm of 1, temperatures at
most 100 (Radford et al. 2021).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from winnow.contracts.errors import ShardError
from winnow.models.losses import Outputs, contrastive_loss
from winnow.stages.train import _state
from winnow.stages.train._audio_config import PAIRS, AudioTrainConfig
from winnow.stages.train._audio_network import AudioNetwork, Towers
from winnow.stages.train._audio_samples import AudioSamples, Indices
from winnow.stages.train.shards import batch_indices

_MAX_LOG_SCALE = math.log(100)
_CURVE_POINTS = 200
_LEAST_ROWS = 2
_STEP_SEED = 1_000_003


def places_of(samples: AudioSamples, config: AudioTrainConfig) -> dict[str, Indices]:
    """Return ``samples.place``; with shuffle_pairs the recordings change places, by the seed."""
    places = dict(samples.place)
    if config.shuffle_pairs:
        heard = np.flatnonzero(places["audio"] >= 0)
        order = np.random.default_rng([config.seed, 0x5F]).permutation(len(heard))
        moved = places["audio"].copy()
        moved[heard] = moved[heard[order]]
        places["audio"] = moved
    return places


def train_audio(
    towers: Towers,
    config: AudioTrainConfig,
    *,
    folder: Path,
    data: str,
    report: Callable[[int], None] = lambda samples: None,
    saved: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Train in place; return samples seen, the loss curve, and the rows that each pair used.

    ``data`` stands for the samples and the models that are not trained. Goes on from
    ``folder/training_state.pt``, which the caller removes when the model is written.

    Fails: ShardError, not retryable, with the step of a loss that is not finite; SetupError where
    the state is of another run.
    """
    network = towers.network.train()
    optimizer = _optimizer(network, config)
    identity = json.dumps([config.identity(), data], sort_keys=True)
    done = _state.resume(folder, network, optimizer, identity)
    places = places_of(towers.samples, config)
    size, every = config.batch_size, config.checkpoint_samples
    batches = batch_indices(len(towers.samples.keys), size, config.seed, done.steps)
    device = towers.model.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        while done.steps < config.num_steps:
            rows = next(batches)
            for group in optimizer.param_groups:
                group["lr"] = _rate(done.steps, config)
            torch.manual_seed(config.seed * _STEP_SEED + done.steps)  # dropout in a text tower
            optimizer.zero_grad(set_to_none=True)
            value = backward(towers, {m: p[rows] for m, p in places.items()}, done.steps)
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0, foreach=True)
            optimizer.step()
            with torch.no_grad():
                for scale in network.log_scales.values():
                    scale.clamp_(0, _MAX_LOG_SCALE)
            done.steps += 1
            if not math.isfinite(value):
                msg = f"the loss is {value} at step {done.steps}; use a smaller learning rate"
                raise ShardError(msg, stage="train audio", retryable=False)
            done.curve.append(round(value, 4))
            report(size)
            seen = done.steps * size
            if every and seen // every > (seen - size) // every and done.steps < config.num_steps:
                _state.save(folder, network, optimizer, identity, done)
                saved()
    _check_finite(network, done.steps)
    network.eval()
    return {"samples_seen": done.steps * size, "loss_curve": _thinned(done.curve)}


def backward(towers: Towers, places: dict[str, Indices], step: int) -> float:
    """Add the gradient of one batch; return its loss, the sum of weight times loss over pairs.

    places: modality -> where the rows' parts are in their stores, -1 for none. A row that lacks a
    side of a pair is no part of that pair's loss, not even as a wrong answer; a pair with fewer
    than 2 rows is left out.
    """
    config, network = towers.config, towers.network
    whole = {
        pair: np.flatnonzero((places[one] >= 0) & (places[two] >= 0))
        for pair, (one, two) in PAIRS.items()
        if pair in config.pairs
    }
    whole = {pair: rows for pair, rows in whole.items() if len(rows) >= _LEAST_ROWS}
    vectors: dict[str, torch.Tensor] = {}
    number: dict[str, Indices] = {}
    for modality in config.modalities:
        used = [rows for pair, rows in whole.items() if modality in PAIRS[pair]]
        if used:
            rows = np.unique(np.concatenate(used))
            number[modality] = np.full(len(places[modality]), -1, np.int64)
            number[modality][rows] = np.arange(len(rows))
            vectors[modality] = towers.embed(modality, places[modality][rows], step)
    total = torch.zeros((), device=towers.model.device)
    for pair, rows in whole.items():
        one, two = (vectors[m][torch.from_numpy(number[m][rows])] for m in PAIRS[pair])
        outputs = Outputs(
            images=one,
            texts=two,
            scale=network.log_scales[pair].exp(),
            bias=network.bias(pair),
        )
        total = total + config.pairs[pair] * contrastive_loss(outputs, kind=config.loss)
    if total.requires_grad:
        total.backward()  # type: ignore[no-untyped-call]
    return float(total.detach())


def _optimizer(network: AudioNetwork, config: AudioTrainConfig) -> torch.optim.Optimizer:
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim < 2 or "embedding" in name or name.endswith("position")
            (free if plain else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    rate = config.learning_rate
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), eps=1e-6, fused=True)


def _rate(step: int, config: AudioTrainConfig) -> float:
    warm = max(1, round(config.warmup * config.num_steps))
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    done = (step - warm) / max(1, config.num_steps - warm)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def _check_finite(network: nn.Module, step: int) -> None:
    """The loss is that before a step: only the weights tell of what the last one did."""
    broken = [name for name, p in network.named_parameters() if not torch.isfinite(p).all()]
    if broken:
        msg = f"the weights ({broken[0]} ...) are not finite after step {step}; use a smaller rate"
        raise ShardError(msg, stage="train audio", retryable=False)


def _thinned(curve: list[float]) -> list[float]:
    """The mean loss of each of up to 200 equal stretches."""
    width = max(1, -(-len(curve) // _CURVE_POINTS))
    return [round(float(np.mean(curve[i : i + width])), 4) for i in range(0, len(curve), width)]
