"""Audio-text models: what embeds a recording and a text so that they can be compared.

Two kinds, by what a name means: a folder with ``audio_model.json`` is a model trained here, with an
image side too; anything else is CLAP, see ``winnow.models.clap``.

    audio_model.json          the tower, and which image-text model goes with it
    audio_model.safetensors   the tower's weights and the temperatures
    open_clip_config.json ... the image-text model, where it was trained with the tower or came from
                              a folder; else it is named, with the digest of its content

Tensor suffixes: B batch, N samples, D embedding.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.media import Samples
from winnow.contracts.paths import user_path
from winnow.models.audio_tower import AudioTower, AudioTowerConfig, Frames, stacked
from winnow.models.checkpoint import (
    HUB_PREFIX,
    PACKAGED,
    ModelFiles,
    find_tower,
    is_path,
)
from winnow.models.clap import ClapFiles, find_clap, load_clap
from winnow.models.contrastive import ContrastiveModel, load_model, save_model
from winnow.models.devices import Precision
from winnow.models.file_digest import named_digest

AUDIO_CONFIG = "audio_model.json"
AUDIO_WEIGHTS = "audio_model.safetensors"
FORMAT = 1


class AudioTextModel(Protocol):
    """What ``audio_text_score`` and retrieval need of a model."""

    @property
    def sample_rate(self) -> int:
        """The rate, in Hz, of the waveforms that ``embed_audio`` takes."""
        ...

    @property
    def max_duration_s(self) -> float:
        """What is heard of a recording: the first so many seconds of it."""
        ...

    def embed_audio(self, waveforms: Sequence[Samples]) -> torch.Tensor:
        """Return unit vectors, float32 (B, D), of mono waveforms (N,) at ``sample_rate``."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Return unit vectors, float32 (B, D)."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioDocument:
    """What ``audio_model.json`` says. image_text: the name of the model that goes with the tower
    and the digest of its content; {} where it lies beside it."""

    tower: AudioTowerConfig
    image_text: Mapping[str, Any]
    pairs: tuple[str, ...]
    modalities: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerFiles:
    """A model trained here. image_text: the open_clip model that goes with it; of its modalities
    those in ``modalities`` mean something (a tower that nothing trained is random)."""

    name: str
    folder: Path
    tower: AudioTowerConfig
    image_text: ModelFiles
    pairs: tuple[str, ...]
    modalities: tuple[str, ...]

    @property
    def width(self) -> int:
        """D, of the embeddings."""
        return int(self.image_text.config["embed_dim"])

    def digest(self) -> str:
        """Return 32 hex digits over the tower and the content of the image-text model."""
        digest = hashlib.blake2b(self.image_text.digest().encode(), digest_size=16)
        described = [dataclasses.asdict(self.tower), self.pairs, self.modalities]
        digest.update(json.dumps(described, sort_keys=True).encode())
        digest.update(named_digest([("weights", self.folder / AUDIO_WEIGHTS)]))
        return digest.hexdigest()


AudioTextFiles = TowerFiles | ClapFiles
"""A model that was found: its name, the width of its embeddings, the digest of its content."""


class TowerModel:
    """An audio tower and an open_clip model in one space, for inference.

    scales, biases: pair ("audio_text") -> inverse temperature, and SigLIP's bias.
    """

    def __init__(
        self,
        tower: AudioTower,
        image_text: ContrastiveModel,
        *,
        scales: Mapping[str, float],
        biases: Mapping[str, float],
    ) -> None:
        self.tower, self.image_text = tower.to(image_text.device).eval(), image_text
        self.scales, self.biases = scales, biases

    @property
    def sample_rate(self) -> int:
        """The rate of the tower's log-mel, in Hz."""
        return self.tower.config.log_mel.sample_rate

    @property
    def max_duration_s(self) -> float:
        """The length of the tower's clips."""
        return self.tower.config.duration_s

    def embed_audio(self, waveforms: Sequence[Samples]) -> torch.Tensor:
        """Return unit vectors, float32 (B, D) on the model's device; see ``AudioTextModel``."""
        return self.embed_frames([self.tower.config.frames(wave) for wave in waveforms])

    @torch.inference_mode()
    def embed_frames(self, clips: Sequence[Frames]) -> torch.Tensor:
        """Return the same of log-mels that ``AudioTowerConfig.frames`` made."""
        mel_BMT, frames_B = stacked(clips, self.tower.config)
        device = self.image_text.device
        features_BD = self.tower(mel_BMT.to(device), frames_B.to(device))
        return nn.functional.normalize(features_BD.float(), dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Return unit vectors, float32 (B, D) on the model's device."""
        return self.image_text.embed_texts(texts)


def find_audio_text_model(name: str) -> AudioTextFiles:
    """Return the files of a model.

    Fails: RecipeError for a name that means nothing; SetupError where files are missing, or the
    image-text model is not the one that the tower was trained with.
    """
    folder = user_path(name)
    if not (folder / AUDIO_CONFIG).is_file():
        return find_clap(name)
    document = read_document(folder)
    if not (folder / AUDIO_WEIGHTS).is_file():
        msg = f"{folder} has no {AUDIO_WEIGHTS}; the audio model is not whole"
        raise SetupError(msg)
    return TowerFiles(
        name=name,
        folder=folder,
        tower=document.tower,
        image_text=_referenced(folder, document.image_text),
        pairs=document.pairs,
        modalities=document.modalities,
    )


def read_document(folder: Path) -> AudioDocument:
    """Return what a folder's ``audio_model.json`` says.

    Fails: SetupError for one that cannot be read, or of another format.
    """
    path = folder / AUDIO_CONFIG
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        version = int(document["format"])
        if version != FORMAT:
            msg = f"{path} has format {version}; this version of Winnow reads {FORMAT}"
            raise SetupError(msg)
        return AudioDocument(
            tower=AudioTowerConfig(**document["tower"]),
            image_text=dict(document["image_text"]),
            pairs=tuple(document["pairs"]),
            modalities=tuple(document["modalities"]),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError, RecipeError) as error:
        msg = f"{path} cannot be read as an audio model: {error!r}"
        raise SetupError(msg) from error


def _referenced(folder: Path, reference: Mapping[str, Any]) -> ModelFiles:
    name = str(reference.get("name", ""))
    if not name:
        return find_tower(f"{folder.resolve()}/")
    files = find_tower(name)
    if files.digest() != reference.get("digest"):
        msg = (
            f"{folder / AUDIO_CONFIG} was trained with another {name} than the one that is here; "
            "train it again, or bring that model back"
        )
        raise SetupError(msg)
    return files


def load_audio_text_model(
    files: AudioTextFiles, *, device: str = "auto", precision: Precision = "fp32"
) -> AudioTextModel:
    """Load a model that was found, without unpickling.

    Fails: SetupError where the weights do not fit the configuration or the image-text model, for
    a tower in another precision than fp32, and as ``load_clap``.
    """
    if isinstance(files, ClapFiles):
        return load_clap(files, device=device, precision=precision)
    if precision != "fp32":
        msg = f"precision={precision} is for CLAP; leave it out for {files.name}"
        raise SetupError(msg)
    return load_tower_model(files, device=device)


def load_tower_model(files: TowerFiles, *, device: str = "auto") -> TowerModel:
    """Load a model that was trained here, images included; fails as ``load_audio_text_model``."""
    tower, log_scales, biases = read_weights(files.folder, files.tower)
    if tower.projection.out_features != files.width:
        msg = (
            f"{files.folder}: the audio tower's embeddings are {tower.projection.out_features} "
            f"wide, those of {files.image_text.name} {files.width}; they were not trained together"
        )
        raise SetupError(msg)
    return TowerModel(
        tower,
        load_model(files.image_text, device=device),
        scales={name: math.exp(value) for name, value in log_scales.items()},
        biases=biases,
    )


def read_weights(
    folder: Path, config: AudioTowerConfig
) -> tuple[AudioTower, dict[str, float], dict[str, float]]:
    """Return the tower in a folder, and by pair its logarithmic scale and its bias.

    Fails: SetupError where the weights do not fit.
    """
    path = folder / AUDIO_WEIGHTS
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        msg = f"the weights {path} cannot be read: {error}"
        raise SetupError(msg) from error
    parts: dict[str, dict[str, torch.Tensor]] = {"tower": {}, "log_scale": {}, "bias": {}}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        parts.setdefault(kind, {})[rest] = tensor
    projection = parts["tower"].get("projection.weight", torch.zeros(()))
    tower = AudioTower(config, len(projection) if projection.ndim else 1)
    try:
        tower.load_state_dict(parts["tower"])
        scales, biases = (
            {name: float(value) for name, value in parts[kind].items()}
            for kind in ("log_scale", "bias")
        )
    except (RuntimeError, ValueError) as error:
        msg = f"the weights {path} do not fit {AUDIO_CONFIG}: {error}"
        raise SetupError(msg) from error
    return tower, scales, biases


def save_tower_model(
    folder: Path,
    tower: AudioTower,
    *,
    temperatures: Mapping[str, torch.Tensor],
    modalities: Sequence[str],
    image_text: ModelFiles | None,
) -> None:
    """Write the audio side. image_text: the model to name; None where it lies in ``folder``.

    temperatures: "log_scale.<pair>" and "bias.<pair>" -> a number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pairs = sorted(n.partition(".")[2] for n in temperatures if n.startswith("log_scale."))
    reference = {} if image_text is None else {
        "name": image_text.name, "digest": image_text.digest()
    }  # fmt: skip
    document = {
        "format": FORMAT,
        "tower": dataclasses.asdict(tower.config),
        "image_text": reference,
        "pairs": pairs,
        "modalities": sorted(modalities),
    }
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    (folder / AUDIO_CONFIG).write_text(text, encoding="utf-8")
    tensors = {f"tower.{name}": value for name, value in tower.state_dict().items()}
    tensors |= dict(temperatures)
    kept = {name: value.detach().cpu().float().contiguous() for name, value in tensors.items()}
    save_file(kept, folder / AUDIO_WEIGHTS)
    (folder / AUDIO_WEIGHTS).chmod(0o644)  # safetensors leaves it readable by its owner only


def is_named(files: ModelFiles) -> bool:
    """Whether a name is enough to find a model again: packaged, on a hub, or a catalogue's."""
    if files.name in PACKAGED or files.name.startswith(HUB_PREFIX):
        return True
    return not is_path(files.name) and files.weights != Path(files.name.partition(" ")[2])


def copy_image_text(folder: Path, model: ContrastiveModel, files: ModelFiles) -> None:
    """Write an open_clip model that was loaded, with its tokenizer, into ``folder``."""
    merges = model.tokenizer.merges if files.tokenizer is not None else None
    save_model(
        folder,
        model.network,
        config=files.config,
        preprocess=files.preprocess,
        merges=merges,
        tokenizer=files.tokenizer,
    )
