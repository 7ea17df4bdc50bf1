"""Functions that workers of one training run; in a module that their processes can import."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from winnow.contracts.errors import SetupError, ShardError
from winnow.stages.train.distributed import current_workers

SMALL = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 6, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1},
}
BATCH = 12
STEPS = 4


def _network(loss: str) -> Any:
    """A small model in float64, so that only real differences show."""
    import open_clip
    import torch

    torch.manual_seed(0)
    bias = {"init_logit_bias": -10.0} if loss == "siglip" else {}
    return open_clip.CLIP(**SMALL, **bias).double()


def _batches() -> Any:
    import torch

    chance = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        images = torch.randn(BATCH, 3, 16, 16, generator=chance, dtype=torch.float64)
        yield images, torch.randint(1, 32, (BATCH, 6), generator=chance)


def _optimizer(network: Any) -> Any:
    import torch

    return torch.optim.AdamW(network.parameters(), lr=1e-2, eps=1e-6)


def _weights(network: Any) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in network.state_dict().items()}


def train(loss: str = "clip", rows_per_part: int = 0) -> dict[str, np.ndarray]:
    """Train a little with ``Workers``; return the weights of this worker."""
    import torch
    from open_clip.loss import ClipLoss, SigLipLoss

    from winnow.models.gradcache import Tower, cached_backward, plain_backward

    torch.set_num_threads(1)
    workers = current_workers()
    network = _network(loss)
    if not workers.is_first:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()
    workers.share_state(network)
    optimizer = _optimizer(network)
    loss_class = SigLipLoss() if loss == "siglip" else ClipLoss()

    def loss_of(image: Any, text: Any) -> Any:
        bias = () if network.logit_bias is None else (network.logit_bias,)
        image, text = workers.gather(image), workers.gather(text)
        return loss_class(image, text, network.logit_scale.exp(), *bias)

    for all_images, all_texts in _batches():
        rows = workers.rows(BATCH)
        images, texts = all_images[rows], all_texts[rows]
        towers = [
            Tower(lambda a, b, x=images: network.encode_image(x[a:b], normalize=True), len(images)),
            Tower(lambda a, b, x=texts: network.encode_text(x[a:b], normalize=True), len(texts)),
        ]
        optimizer.zero_grad()
        if rows_per_part:
            cached_backward(towers, loss_of, rows_per_part, torch.device("cpu"))
        else:
            plain_backward(towers, loss_of)
        workers.average_gradients(network.parameters())
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    return _weights(network)


def train_as_open_clip_does() -> dict[str, np.ndarray]:
    """The same with torch's DistributedDataParallel and open_clip's own gathering loss."""
    import torch
    from open_clip.loss import ClipLoss

    torch.set_num_threads(1)
    workers = current_workers()
    network = _network("clip")
    wrapped = torch.nn.parallel.DistributedDataParallel(network)
    loss_class = ClipLoss(gather_with_grad=True, rank=workers.rank, world_size=workers.world_size)
    optimizer = _optimizer(network)
    for images, texts in _batches():
        rows = workers.rows(BATCH)
        image, text, scale = wrapped(images[rows], texts[rows])
        optimizer.zero_grad()
        loss_class(image, text, scale).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    return _weights(network)


def gathered() -> list[Any]:
    """What gathering and sharing give the first worker."""
    import torch

    workers = current_workers()
    flags = workers.gather(torch.tensor([workers.rank == 1]))
    numbers = workers.gather(torch.arange(2) + 10 * workers.rank)
    # Each gives one more than the last; only the first one's counts.
    shared = workers.from_first({"step": 7 + workers.rank})
    return [workers.world_size, flags.tolist(), numbers.tolist(), shared, str(flags.dtype)]


def train_stream(shards: dict[str, int], loss: str = "clip") -> dict[str, Any]:
    """The real loop on a stream with hard negatives; weights and losses."""
    import tempfile
    from pathlib import Path

    import torch
    from open_clip.tokenizer import SimpleTokenizer

    from winnow.models.contrastive import Preprocess, build_network
    from winnow.models.tokenizer import Tokenizer
    from winnow.stages.train._stream_source import StreamSource
    from winnow.stages.train.contrastive import TrainConfig, train_contrastive
    from winnow.stages.train.streaming import StreamConfig

    torch.set_num_threads(1)
    preprocess = Preprocess({"size": (16, 16), "resize_mode": "squash"})
    tokenizer = Tokenizer(SimpleTokenizer(context_length=6), 6)
    order = StreamConfig(batch_size=8, num_lanes=2, buffer_samples=8, columns=("wrong",))
    source = StreamSource(shards, preprocess.pixels, tokenizer, order)
    config = TrainConfig(num_samples=64, batch_size=8, warmup_samples=8, loss=loss, device="cpu")
    text = {**SMALL["text_cfg"], "vocab_size": 49408}
    network = build_network({**SMALL, "text_cfg": text}, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        outcome = train_contrastive(
            network, source.batches, config,
            normalize=preprocess.normalize, image_size=16, folder=Path(folder),
        )  # fmt: skip
    return {"weights": _weights(network), "losses": outcome["loss_curve"]}


def everything(shards: dict[str, int]) -> dict[str, Any]:
    """All of the above in one group: starting its processes takes most of the time."""
    return {
        "clip": train(),
        "siglip in parts": train("siglip", 2),
        "open_clip": train_as_open_clip_does(),
        "gathered": gathered(),
        "stream": train_stream(shards),
    }


def second_fails() -> None:
    """The first waits for the second, which has failed."""
    workers = current_workers()
    if workers.rank == 1:
        msg = "the second worker has no data"
        raise ShardError(msg, stage="train", retryable=False)
    workers.from_first(1)
    import torch

    workers.gather(torch.ones(2))


def second_dies() -> None:
    """As a crash in native code."""
    workers = current_workers()
    if workers.rank == 1:
        os._exit(11)
    import torch

    workers.gather(torch.ones(2))


def on_ray(progress: Callable[[int], None]) -> dict[str, np.ndarray]:
    """``train``, counted."""
    weights = train()
    for _ in range(STEPS):
        progress(BATCH)
    return weights


def second_fails_on_ray(progress: Callable[[int], None]) -> None:
    """The same as without Ray, with an error that no retry can help."""
    if current_workers().rank == 1:
        msg = "the second worker has no disk"
        raise SetupError(msg)
    second_dies()
