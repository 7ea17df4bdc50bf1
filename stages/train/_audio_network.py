"""The towers of an audio trial: what is trained, what is frozen, and how a row becomes vectors.

Frozen images and texts are embedded once, before the first step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from winnow.models.audio_text import copy_image_text, is_named, save_tower_model
from winnow.models.audio_tower import AudioTower, AudioTowerConfig, build_tower, stacked
from winnow.models.contrastive import (
    ContrastiveModel,
    Preprocess,
    encode_text_short,
    load_model,
    save_model,
)
from winnow.stages.train._audio_config import AudioTrainConfig
from winnow.stages.train._audio_samples import AudioSamples, Indices
from winnow.stages.train._augment import augment
from winnow.stages.train._config import TrainConfig
from winnow.stages.train._embed import image_view, text_view
from winnow.stages.train._memory_source import WORK_SCALE
from winnow.stages.train._network import NetworkPlan, Setup, network_plan
from winnow.stages.train._steps import step_seed

if TYPE_CHECKING:
    from winnow.models.checkpoint import ModelFiles


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageTextPlan:
    """An image-text model that can be had: from ``init``, or built afresh from ``fresh``."""

    init: ModelFiles | None
    fresh: NetworkPlan | None
    device: str

    @property
    def preprocess(self) -> dict[str, Any]:
        """open_clip's preprocess_cfg."""
        if self.fresh is not None:
            return self.fresh.preprocess
        assert self.init is not None
        size = self.init.preprocess.get("size") or self.init.config["vision_cfg"]["image_size"]
        return {**self.init.preprocess, "size": (size, size) if isinstance(size, int) else size}

    @property
    def width(self) -> int:
        """Width of its embeddings."""
        config: Any = self.fresh.config if self.fresh else self.init and self.init.config
        return int(config["embed_dim"])

    @property
    def digest(self) -> str:
        """Digest of the weights it starts from (of a text tower of the hub), "" for fresh ones."""
        if self.fresh is not None:
            return self.fresh.start
        assert self.init is not None
        return self.init.digest()

    def resize(self, *, augmented: bool) -> Callable[[Any], Any]:
        """Return what makes pictures small; a little larger where random crops follow."""
        scale = WORK_SCALE if augmented else 1.0
        size = tuple(round(side * scale) for side in self.preprocess["size"])
        return Preprocess({**self.preprocess, "size": size}).pixels

    def model(self, texts: Sequence[str], seed: int) -> tuple[ContrastiveModel, list[str] | None]:
        """Return the model, and the merges of a vocabulary that was chosen for ``texts``."""
        from winnow.models.devices import choose_device

        if self.init is not None:
            return load_model(self.init, device=self.device), None
        assert self.fresh is not None
        network, tokenizer, merges = self.fresh.build(texts, seed=seed)
        device = choose_device(self.device)
        preprocess = Preprocess(self.fresh.preprocess)
        return ContrastiveModel(network.to(device), preprocess, tokenizer, device=device), merges


def image_text_plan(
    init: ModelFiles | None, *, model: str, vocabulary: int | None, device: str
) -> ImageTextPlan:
    """Fails: RecipeError for an architecture or a vocabulary that cannot be built."""
    if init is not None:
        return ImageTextPlan(init=init, fresh=None, device=device)
    fresh = network_plan(Setup(model=model, vocabulary=vocabulary), TrainConfig())
    return ImageTextPlan(init=None, fresh=fresh, device=device)


class AudioNetwork(nn.Module):
    """All that is trained: the audio tower, temperatures, and what is not frozen of the model."""

    def __init__(
        self,
        tower: AudioTower,
        model: ContrastiveModel,
        config: AudioTrainConfig,
        scale: float,
    ) -> None:
        super().__init__()
        self.tower = tower
        siglip = config.loss == "siglip"
        self.log_scales = nn.ParameterDict(
            {pair: nn.Parameter(torch.tensor(scale)) for pair in config.pairs}
        )
        biases = {pair: nn.Parameter(torch.tensor(-10.0)) for pair in config.pairs if siglip}
        self.biases = nn.ParameterDict(biases)
        trained = {m for m in ("image", "text") if m in config.modalities} - set(config.frozen)
        for name, parameter in model.network.named_parameters():
            side = "image" if name.startswith("visual.") else "text"
            own = name not in ("logit_scale", "logit_bias")
            parameter.requires_grad_(own and side in trained)
        # A frozen model is no part of the resumable state.
        self.image_text = model.network if trained else None

    def bias(self, pair: str) -> torch.Tensor | None:
        """Return SigLIP's bias of a pair, None for the other loss."""
        return dict(self.biases.items()).get(pair)


@dataclass(kw_only=True, slots=True)
class Towers:
    """Embeds rows of the samples: unit vectors, float32 (B, D) on the model's device."""

    network: AudioNetwork
    model: ContrastiveModel
    samples: AudioSamples
    config: AudioTrainConfig
    tokens: torch.Tensor | None = None
    frozen: dict[str, torch.Tensor] = field(default_factory=dict)

    def prepare(self) -> None:
        """Embed what is frozen, tokenise what is not."""
        config = self.config
        with torch.no_grad():
            for name, embed in (("image", self._all_images), ("text", self._all_texts)):
                if name in config.modalities and name in config.frozen:
                    self.frozen[name] = embed()
        if "text" in config.modalities and "text" not in config.frozen:
            self.tokens = self.model.tokenizer(self.samples.texts)

    def embed(self, modality: str, places: Indices, step: int) -> torch.Tensor:
        """Return the vectors of the samples' parts at these places of their store."""
        if modality in self.frozen:
            return self.frozen[modality][torch.from_numpy(places)].to(self.model.device)
        if modality == "audio":
            features = self._audio(places, step)
        elif modality == "text":
            assert self.tokens is not None
            tokens = self.tokens[torch.from_numpy(places)].to(self.model.device)
            features = encode_text_short(self.model.network, tokens)
        else:
            features = self._images(places, step)
        return nn.functional.normalize(features.float(), dim=-1)

    def _audio(self, places: Indices, step: int) -> torch.Tensor:
        tower = self.network.tower
        clips = [self.samples.clip(place) for place in places.tolist()]
        mel_BMT, frames_B = stacked(clips, tower.config)
        if self.config.mask_share:
            chance = torch.Generator().manual_seed(step_seed(self.config.seed, step))
            mean = float(tower.mean)
            mask_spectrograms(mel_BMT, frames_B, self.config.mask_share, mean, chance)
        return tower.forward_short(mel_BMT.to(self.model.device), frames_B.to(self.model.device))

    def _images(self, places: Indices, step: int) -> torch.Tensor:
        chance = torch.Generator().manual_seed(step_seed(self.config.seed, step))
        crops = augment(
            torch.from_numpy(np.asarray(self.samples.pixels[places])).to(self.model.device),
            self.model.preprocess.height,
            torch.rand(4, len(places), generator=chance),
            scale=self.config.augment_scale,
            brightness=self.config.brightness,
        )
        network: Any = self.model.network
        features: torch.Tensor = network.encode_image(self.model.preprocess.normalize(crops))
        return features

    def _all_images(self) -> torch.Tensor:
        return image_view(self.model).all(self.samples.pixels)

    def _all_texts(self) -> torch.Tensor:
        different = sorted(set(self.samples.texts))
        number = {text: place for place, text in enumerate(different)}
        rows = torch.tensor([number[text] for text in self.samples.texts])
        return text_view(self.model).all(different)[rows]


def mask_spectrograms(
    mel_BMT: torch.Tensor,
    frames_B: torch.Tensor,
    share: float,
    value: float,
    chance: torch.Generator,
) -> None:
    """Put ``value`` into one band of bins and one stretch of frames of each clip, in place.

    SpecAugment (Park et al. 2019) without time warping: widths are uniform from 0 to ``share`` of
    the bins, and of the clip's own frames.
    """
    bins = mel_BMT.shape[1]
    draws = torch.rand(len(mel_BMT), 4, generator=chance).tolist()
    for row, (width, place, length, start) in enumerate(draws):
        frames = int(frames_B[row])
        for size, part, at, axis in ((bins, width, place, 0), (frames, length, start, 1)):
            wide = int(part * (share * size + 1))
            first = int(at * (size - wide + 1))
            mel_BMT[row].narrow(axis, first, wide).fill_(value)


def new_network(
    tower: AudioTowerConfig, model: ContrastiveModel, config: AudioTrainConfig, plan: ImageTextPlan
) -> AudioNetwork:
    """Return a network with a fresh tower; the seed decides its weights."""
    width, started = plan.width, plan.init is not None
    fresh = build_tower(tower, width, seed=config.seed)
    # Vectors of a trained model lie in a narrow cone: only its own temperature tells them apart.
    inner: Any = model.network
    first = math.log(10) if config.loss == "siglip" else math.log(1 / 0.07)
    scale = float(inner.logit_scale.detach()) if started and config.loss == "clip" else first
    return AudioNetwork(fresh, model, config, scale).to(model.device)


def set_input_statistics(tower: AudioTower, samples: AudioSamples) -> None:
    """Give the tower the mean and deviation of the training set's log-mels (Gong et al. 2021)."""
    total = square = count = 0.0
    for start in range(0, len(samples.clips), 1 << 22):
        part = samples.clips[start : start + (1 << 22)].astype(np.float64)
        total, square, count = total + part.sum(), square + (part**2).sum(), count + len(part)
    mean = total / count
    deviation = math.sqrt(max(square / count - mean**2, 1e-12))
    tower.mean.fill_(mean)
    tower.deviation.fill_(deviation)


def save_audio_model(
    folder: Path,
    towers: Towers,
    plan: ImageTextPlan,
    merges: list[str] | None,
) -> None:
    """Write the folder that ``find_audio_text_model`` finds; see ``winnow.models.audio_text``."""
    network, model = towers.network, towers.model
    named = None
    if plan.fresh is not None:
        _take_temperature(network, model)
        save_model(
            folder,
            model.network,
            config=plan.fresh.config,
            preprocess=plan.fresh.preprocess,
            merges=merges,
            tokenizer=plan.fresh.tokenizer,
        )
    elif plan.init is not None and network.image_text is None and is_named(plan.init):
        named = plan.init
    else:
        assert plan.init is not None
        _take_temperature(network, model)
        copy_image_text(folder, model, plan.init)
    fresh = plan.init is None
    save_tower_model(
        folder,
        network.tower,
        temperatures={
            **{f"log_scale.{pair}": value for pair, value in network.log_scales.items()},
            **{f"bias.{pair}": value for pair, value in network.biases.items()},
        },
        modalities=towers.config.modalities if fresh else ("image", "text", "audio"),
        image_text=named,
    )


def _take_temperature(network: AudioNetwork, model: ContrastiveModel) -> None:
    """The image-text model is saved with the temperature that it was trained at."""
    inner: Any = model.network
    if "image_text" in network.log_scales:
        with torch.no_grad():
            inner.logit_scale.copy_(network.log_scales["image_text"])
            bias = network.bias("image_text")
            if bias is not None and inner.logit_bias is not None:
                inner.logit_bias.copy_(bias)
