"""The parameters of a training run, what it takes in and what it reports."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from winnow.contracts.errors import RecipeError
from winnow.stages.train._members import Pixels

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run; equal ones give equal weights on one kind of CPU, threads being equal.

    num_samples: image-text pairs seen, repeats included.  warmup_samples: of these, at a rising
    rate.  augment_scale: least side of the random crop, as a share of the image's side.
    brightness: greatest relative change.  precision: of the towers' arithmetic; weights, losses
    and the optimizer stay in float32.  micro_batch_size: rows embedded at a time, for batches that
    do not fit (GradCache); 0: all at once.  separation_weight: of AlignCLIP's image separation.
    checkpoint_samples: pairs between two resumable checkpoints, 0 for none; it cannot change the
    weights.
    """

    num_samples: int = 100_000
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    warmup_samples: int = 10_000
    loss: Literal["clip", "siglip"] = "clip"
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    augment_scale: float = 0.85
    brightness: float = 0.15
    micro_batch_size: int = 0
    separation_weight: float = 0.0
    checkpoint_samples: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot train."""
        least = dict.fromkeys(("num_samples", "batch_size"), 1)
        least |= dict.fromkeys(("warmup_samples", "micro_batch_size", "checkpoint_samples"), 0)
        least |= dict.fromkeys(("weight_decay", "separation_weight"), 0)
        for name, value in least.items():
            if not getattr(self, name) >= value:
                msg = f"{name}={getattr(self, name)}: use at least {value}"
                raise RecipeError(msg)
        if not 0 < self.augment_scale <= 1:
            msg = f"augment_scale={self.augment_scale}: use a share of the side in (0, 1]"
            raise RecipeError(msg)
        if not 0 <= self.brightness < 1:
            msg = f"brightness={self.brightness}: use a relative change in [0, 1), such as 0.15"
            raise RecipeError(msg)
        if not 0 < self.learning_rate < 1:
            msg = f"learning_rate={self.learning_rate}: use a rate in (0, 1), such as 0.001"
            raise RecipeError(msg)

    @property
    def num_steps(self) -> int:
        """Optimizer steps, all of full batches: up to batch_size - 1 pairs more are seen."""
        return -(-self.num_samples // self.batch_size)

    def identity(self) -> dict[str, Any]:
        """Return everything that can change the weights, on one kind of device."""
        values = dataclasses.asdict(self)
        del values["checkpoint_samples"], values["device"]
        return values


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """What the loop reports after each step."""

    samples_seen: int
    loss: float
    temperature: float
    samples_per_s: float


def increments(progress: Callable[[int], None]) -> Callable[[Progress], None]:
    """Return a report for the loop that tells ``progress`` the samples seen since the last one,
    first those that a resumed state had seen."""
    seen = 0

    def report(at: Progress) -> None:
        nonlocal seen
        progress(at.samples_seen - seen)
        seen = at.samples_seen

    return report


@dataclass(frozen=True, kw_only=True, slots=True)
class Extras:
    """What some losses take beside images and captions.

    negatives: int64 (N, T), tokens of texts that are wrong for every image; N is a multiple of the
    batch size.  has_negative: bool (N,), False for padding.  meanings: float32 (B, S), the captions
    in a frozen encoder, unit vectors.  skipped: samples that this batch could not use, by reason.
    """

    negatives: torch.Tensor | None = None
    has_negative: torch.Tensor | None = None
    meanings: torch.Tensor | None = None
    skipped: Mapping[str, int] = field(default_factory=dict)


Batch = tuple[Pixels, "torch.Tensor"] | tuple[Pixels, "torch.Tensor", Extras]
Batches = Callable[[int], Iterator[Batch]]
"""Start step -> endless batches (uint8 (B, H, W, 3), int64 tokens (B, T)), the same every time."""
