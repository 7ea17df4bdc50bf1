"""What an audio trial does: which pairs of modalities train, what is frozen, for how long."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from winnow.contracts.errors import RecipeError

PAIRS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "audio_text": ("audio", "text"),
        "image_audio": ("image", "audio"),
        "image_text": ("image", "text"),
    }
)
MODALITIES = ("image", "text", "audio")


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioTrainConfig:
    """One run; equal ones give equal weights on one kind of CPU, threads being equal.

    pairs: pair -> weight, those above 0.  frozen: modalities whose tower stays as it is.
    mask_share: SpecAugment's widest mask.  shuffle_pairs: the control, see the trainer.
    checkpoint_samples: samples between two resumable states, 0 for none.
    """

    pairs: Mapping[str, float]
    frozen: tuple[str, ...] = ()
    num_samples: int = 100_000
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    warmup: float = 0.1
    loss: Literal["clip", "siglip"] = "clip"
    mask_share: float = 0.0
    augment_scale: float = 0.85
    brightness: float = 0.15
    shuffle_pairs: bool = False
    seed: int = 0
    checkpoint_samples: int = 0

    @property
    def num_steps(self) -> int:
        """Optimizer steps, all of full batches."""
        return -(-self.num_samples // self.batch_size)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities of the pairs that train."""
        return tuple(m for m in MODALITIES if any(m in PAIRS[pair] for pair in self.pairs))

    def identity(self) -> dict[str, Any]:
        """Return everything that can change the weights, on one kind of device."""
        values = dataclasses.asdict(self)
        del values["checkpoint_samples"]
        return values


def checked_pairs(
    pairs: Mapping[str, float] | None, freeze: Sequence[str], *, from_weights: bool
) -> dict[str, float]:
    """Return the pairs with a weight above 0, in a fixed order; None is CLAP's: audio and text.

    Fails: RecipeError for unknown pairs, negative weights, no audio, frozen towers without weights,
    and a pair that nothing could learn from.
    """
    given = {"audio_text": 1.0} if pairs is None else dict(pairs)
    unknown = [name for name in given if name not in PAIRS]
    if unknown:
        msg = f"audio: pairs has {unknown[0]!r}; use some of {', '.join(PAIRS)}"
        raise RecipeError(msg)
    for name, weight in given.items():
        if not 0 <= weight <= 1000:
            msg = f"audio: pairs.{name}={weight}; use a weight from 0 to 1000"
            raise RecipeError(msg)
    kept = {name: float(given[name]) for name in PAIRS if given.get(name)}
    if not any("audio" in PAIRS[name] for name in kept):
        msg = f"audio: pairs={given} trains no audio; add audio_text or image_audio"
        raise RecipeError(msg)
    if len(set(freeze)) < len(freeze):
        msg = f"audio: freeze={list(freeze)} names a tower twice"
        raise RecipeError(msg)
    if freeze and not from_weights:
        msg = f"audio: freeze={list(freeze)} without init: a random tower would stay random"
        raise RecipeError(msg)
    if "image_text" in kept and {"image", "text"} <= set(freeze):
        msg = "audio: pairs.image_text with both towers frozen trains nothing; leave it out"
        raise RecipeError(msg)
    return kept


def check_numbers(config: AudioTrainConfig) -> None:
    """Raise RecipeError for numbers that cannot be meant."""
    for name, least in (("batch_size", 2), ("weight_decay", 0), ("checkpoint_samples", 0)):
        if not getattr(config, name) >= least:
            msg = f"audio: {name}={getattr(config, name)}; use at least {least}"
            raise RecipeError(msg)
    if not 0 < config.learning_rate < 1:
        msg = f"audio: learning_rate={config.learning_rate}; use a rate in (0, 1), such as 0.001"
        raise RecipeError(msg)
    for name in ("warmup", "mask_share", "brightness"):
        if not 0 <= getattr(config, name) < 1:
            msg = f"audio: {name}={getattr(config, name)}; use a share in [0, 1)"
            raise RecipeError(msg)
    if not 0 < config.augment_scale <= 1:
        msg = f"audio: augment_scale={config.augment_scale}; use a share in (0, 1]"
        raise RecipeError(msg)
