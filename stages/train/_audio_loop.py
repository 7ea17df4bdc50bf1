"""The training loop of an audio model: several pairs of modalities, each with its own temperature.

CLIP's recipe (Radford et al. 2021: see ``_steps.py``), gradients clipped to a norm of 1.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from winnow.models.losses import Outputs, contrastive_loss
from winnow.stages.train import _state
from winnow.stages.train._audio_config import PAIRS, AudioTrainConfig
from winnow.stages.train._audio_network import AudioNetwork, Towers
from winnow.stages.train._audio_samples import AudioSamples, Indices
from winnow.stages.train._steps import (
    MAX_LOG_SCALE,
    check_loss,
    check_weights,
    checkpoint_due,
    clip_optimizer,
    cosine_rate,
    decay_groups,
    step_seed,
    thinned,
)
from winnow.stages.train.shards import batch_indices

_STAGE = "train audio"
_LEAST_ROWS = 2


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

    Fails: ShardError, not retryable, with the step, where the loss is not finite or weights that
    are not finite would be written; SetupError where the state is of another run.
    """
    network = towers.network.train()
    optimizer = _optimizer(network, config)
    identity = json.dumps([config.identity(), data], sort_keys=True)
    done = _state.resume(folder, network, optimizer, identity)
    places = places_of(towers.samples, config)
    size = config.batch_size
    batches = batch_indices(len(towers.samples.keys), size, config.seed, done.steps)
    device = towers.model.device
    if done.steps:
        report(done.steps * size)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        while done.steps < config.num_steps:
            rows = next(batches)
            for group in optimizer.param_groups:
                group["lr"] = _rate(done.steps, config)
            torch.manual_seed(step_seed(config.seed, done.steps))  # dropout in a text tower
            optimizer.zero_grad(set_to_none=True)
            value = backward(towers, {m: p[rows] for m, p in places.items()}, done.steps)
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0, foreach=True)
            optimizer.step()
            with torch.no_grad():
                for scale in network.log_scales.values():
                    scale.clamp_(0, MAX_LOG_SCALE)
            done.steps += 1
            check_loss(value, done.steps, _STAGE)
            done.curve.append(round(value, 4))
            report(size)
            due = checkpoint_due(done.steps * size, size, config.checkpoint_samples)
            if due and done.steps < config.num_steps:
                check_weights(network.named_parameters(), done.steps, _STAGE)
                _state.save(folder, network, optimizer, identity, done)
                saved()
    check_weights(network.named_parameters(), done.steps, _STAGE)
    network.eval()
    return {"samples_seen": done.steps * size, "loss_curve": thinned(done.curve)}


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
    used: dict[str, Indices] = {}
    for modality in config.modalities:
        found = [rows for pair, rows in whole.items() if modality in PAIRS[pair]]
        if found:
            used[modality] = np.unique(np.concatenate(found))
    vectors = {m: towers.embed(m, places[m][rows], step) for m, rows in used.items()}
    total = torch.zeros((), device=towers.model.device)
    for pair, rows in whole.items():
        one, two = (
            vectors[m][torch.from_numpy(np.searchsorted(used[m], rows))] for m in PAIRS[pair]
        )
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
    trained = ((name, p) for name, p in network.named_parameters() if p.requires_grad)
    groups = decay_groups(trained, config.weight_decay, _is_embedding)
    return clip_optimizer(groups, config.learning_rate)


def _is_embedding(name: str) -> bool:
    return "embedding" in name or name.endswith("position")


def _rate(step: int, config: AudioTrainConfig) -> float:
    warm = round(config.warmup * config.num_steps)
    return cosine_rate(config.learning_rate, step, warm=warm, num_steps=config.num_steps)
