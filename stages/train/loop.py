"""The training loop of a contrastive image-text model: open_clip's towers and losses, one step.

The loop takes batches from anywhere; ``on_shards.py`` takes them from exported WebDataset shards.

Sources: CLIP's recipe (Radford et al. 2021: see ``_steps.py``); SigLIP's loss and initial bias
(Zhai et al. 2023).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from winnow.stages.train import _state
from winnow.stages.train._augment import augment
from winnow.stages.train._config import Batch, Batches, Extras, Progress, TrainConfig
from winnow.stages.train._members import Pixels
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
from winnow.stages.train.distributed import current_workers

if TYPE_CHECKING:
    import torch
    from torch import nn

    from winnow.models.gradcache import Tower

__all__ = ["Extras", "Progress", "TrainConfig", "forget_state", "train_contrastive"]
_STAGE = "train contrastive"


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
    saved: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Train ``network`` in place; return samples seen, the loss curve and what was skipped.

    ``normalize`` turns uint8 (B, H, W, 3) into the network's float input; ``data`` stands for what
    ``batches`` yields. Resumes from ``folder/training_state.pt``; ``saved`` is called after each
    time it was written. The caller removes it with ``forget_state`` when the model is written.

    In a torch.distributed group every process calls this with the same arguments, but its own
    ``folder`` if it likes: each embeds its rows of every batch, the loss is that of the whole
    batch, and the first one reports, saves and resumes.

    Fails: ShardError (not retryable) with the step, where the loss is not finite or weights that
    are not finite would be written; SetupError where the state in ``folder`` is of another
    configuration, network or data.
    """
    import torch

    from winnow.models.devices import choose_device

    device = choose_device(config.device)
    network.to(device).train()
    optimizer = _optimizer(network, config)
    identity = json.dumps([config.identity(), data], sort_keys=True)
    workers = current_workers()
    workers.rows(config.batch_size)
    done = _state.resume(folder, network, optimizer, identity)
    run = _Run(network, optimizer, config, device, normalize, image_size)
    start, first = time.monotonic(), done.steps
    stream = batches(first)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        while done.steps < config.num_steps:
            batch = next(stream)
            value = run.step(done.steps, batch)
            done.steps += 1
            done.skipped.update(batch[2].skipped if len(batch) == 3 else {})
            check_loss(value, done.steps, _STAGE)
            seen = done.steps * config.batch_size
            done.curve.append(round(value, 4))
            rate = (done.steps - first) * config.batch_size / max(1e-9, time.monotonic() - start)
            scale = float(network.logit_scale.detach().exp())  # type: ignore[operator]
            due = checkpoint_due(seen, config.batch_size, config.checkpoint_samples)
            if due:  # all workers have the same weights, and end together
                check_weights(network.named_parameters(), done.steps, _STAGE)
            if not workers.is_first:
                continue
            report(Progress(samples_seen=seen, loss=value, temperature=scale, samples_per_s=rate))
            if due:
                _state.save(folder, network, optimizer, identity, done)
                saved()
    check_weights(network.named_parameters(), done.steps, _STAGE)
    network.eval()
    return {
        "samples_seen": done.steps * config.batch_size,
        "loss_curve": thinned(done.curve),
        "skipped": dict(done.skipped),
    }


def forget_state(folder: Path) -> None:
    """Remove the resumable state of a run whose model is written."""
    _state.forget(folder)


class _Run:
    """What one optimizer step needs."""

    def __init__(
        self,
        network: Any,
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        device: torch.device,
        normalize: Callable[[torch.Tensor], torch.Tensor],
        image_size: int,
    ) -> None:
        self.network, self.optimizer, self.config = network, optimizer, config
        self.device, self.normalize, self.image_size = device, normalize, image_size
        self.workers = current_workers()

    def step(self, step: int, batch: Batch) -> float:
        """Take one step; return the loss before it."""
        import torch

        from winnow.models.gradcache import cached_backward, plain_backward

        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = _rate(step, config)
        pixels, tokens = batch[0], batch[1]
        extras = batch[2] if len(batch) == 3 else Extras()
        # Dropout inside the network.
        torch.manual_seed(step_seed(config.seed, step) + (self.workers.rank << 48))
        towers = self._towers(step, pixels, tokens, extras)
        loss_of = self._loss_of(extras)
        self.optimizer.zero_grad(set_to_none=True)
        if 0 < config.micro_batch_size < towers[0].num_rows:
            loss = cached_backward(towers, loss_of, config.micro_batch_size, self.device)
        else:
            loss = plain_backward(towers, loss_of)
        self.workers.average_gradients(self.network.parameters())
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            self.network.logit_scale.clamp_(0, MAX_LOG_SCALE)
        return float(loss)

    def _towers(
        self, step: int, pixels: Pixels, tokens: torch.Tensor, extras: Extras
    ) -> list[Tower]:
        import torch

        from winnow.models.gradcache import Tower

        config = self.config
        rows = self.workers.rows(len(pixels))
        chance = torch.Generator().manual_seed(step_seed(config.seed, step))
        crops = augment(
            torch.from_numpy(pixels[rows]).to(self.device),
            self.image_size,
            torch.rand(4, len(pixels), generator=chance)[:, rows],
            scale=config.augment_scale,
            brightness=config.brightness,
        )

        def images(start: int, stop: int) -> torch.Tensor:
            return self._embed(self.network.encode_image, self.normalize(crops[start:stop]))

        towers = [Tower(images, len(crops)), self._text_tower(tokens)]
        return towers if extras.negatives is None else [*towers, self._text_tower(extras.negatives)]

    def _text_tower(self, tokens: torch.Tensor) -> Tower:
        from winnow.models.contrastive import encode_text_short
        from winnow.models.gradcache import Tower

        here = tokens[self.workers.rows(len(tokens))].to(self.device)

        def encode(tokens_BT: torch.Tensor) -> torch.Tensor:
            return encode_text_short(self.network, tokens_BT)

        return Tower(lambda start, stop: self._embed(encode, here[start:stop]), len(here))

    def _embed(
        self, encode: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor
    ) -> torch.Tensor:
        import torch

        mixed = self.config.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=mixed):
            features = encode(inputs)
        return torch.nn.functional.normalize(features.float(), dim=-1)

    def _loss_of(self, extras: Extras) -> Callable[..., torch.Tensor]:
        from winnow.models.losses import Outputs, contrastive_loss

        def put(value: torch.Tensor | None) -> torch.Tensor | None:
            return None if value is None else value.to(self.device)

        def loss_of(image: torch.Tensor, text: torch.Tensor, *negative: torch.Tensor) -> Any:
            outputs = Outputs(
                images=self.workers.gather(image),
                texts=self.workers.gather(text),
                scale=self.network.logit_scale.exp(),
                bias=self.network.logit_bias,
                negatives=self.workers.gather(negative[0]) if negative else None,
                has_negative=put(extras.has_negative),
                meanings=put(extras.meanings),
            )
            weight = self.config.separation_weight
            return contrastive_loss(outputs, kind=self.config.loss, separation_weight=weight)

        return loss_of


def _optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    named = network.named_parameters()
    groups = decay_groups(named, config.weight_decay, lambda name: "embedding" in name)
    return clip_optimizer(groups, config.learning_rate)


def _rate(step: int, config: TrainConfig) -> float:
    warm = config.warmup_samples // config.batch_size
    return cosine_rate(config.learning_rate, step, warm=warm, num_steps=config.num_steps)
