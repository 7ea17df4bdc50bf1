"""The audio side of a projector model: image tokens, then audio tokens, stand before the text.

A frozen audio tower (trained by the trainer "audio") gives a recording's tokens before pooling, a
second connector brings them to the language model's width. A row that lacks one of the two has a
learned null embedding in its place, so every row has a prefix of both.

Tensor suffixes: B rows, N tokens of a clip, A width of the audio tower, Q image or audio tokens, L
language-model width.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.paths import user_path
from winnow.models.audio_text import AUDIO_CONFIG, AUDIO_WEIGHTS, read_document
from winnow.models.audio_text import read_weights as read_audio_weights
from winnow.models.audio_tower import AudioTower, AudioTowerConfig, Frames, stacked
from winnow.models.connectors import Connector, build_connector, connector_flops
from winnow.models.file_digest import named_digest
from winnow.models.flops import count_flops
from winnow.models.projector_images import ImageTokens, Instruct, connect

if TYPE_CHECKING:
    from winnow.models.projector_network import Projector

PREFIXES = ("linear", "mlp", "perceiver_prefix", "qformer", "instruct_qformer")
"""Connectors whose tokens can stand before a text, beside those of another one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioTowerFiles:
    """The audio tower of a model folder; the image-text model beside it is not looked at."""

    folder: Path
    config: AudioTowerConfig

    def digest(self) -> str:
        """Return 32 hex digits over the tower's sizes and weights."""
        sizes = json.dumps(dataclasses.asdict(self.config), sort_keys=True)
        digest = hashlib.blake2b(sizes.encode(), digest_size=16)
        digest.update(named_digest([("weights", self.folder / AUDIO_WEIGHTS)]))
        return digest.hexdigest()

    def copy(self, folder: Path) -> None:
        """Copy the tower, and nothing else that lies there."""
        for name in (AUDIO_CONFIG, AUDIO_WEIGHTS):
            shutil.copyfile(self.folder / name, folder / name)


def find_audio_tower(name: str) -> AudioTowerFiles:
    """Return the files of an audio tower, from the folder that the trainer "audio" wrote.

    Fails: SetupError where there is none, one of another format, or one without weights.
    """
    folder = user_path(name)
    if not all((folder / part).is_file() for part in (AUDIO_CONFIG, AUDIO_WEIGHTS)):
        msg = (
            f"audio_tower={name!r} has no {AUDIO_CONFIG} and {AUDIO_WEIGHTS}; give the folder of a "
            'model that the trainer "audio" made'
        )
        raise SetupError(msg)
    return AudioTowerFiles(folder=folder, config=read_document(folder).tower)


class FrozenAudioTower(nn.Module):
    """An audio tower that returns tokens; float32, always in eval mode, never any gradient.

    width: A. num_tokens: N of a clip that is as long as the tower hears.
    """

    def __init__(self, tower: AudioTower, *, digest: str) -> None:
        super().__init__()
        self.tower, self._digest = tower.requires_grad_(False), digest
        self.eval()
        config = tower.config
        self.config, self.width = config, config.width
        rows = config.log_mel.num_bins // config.patch_bins
        self.num_tokens = rows * (config.num_frames // config.patch_frames)

    @classmethod
    def load(cls, name: str) -> FrozenAudioTower:
        """Load a tower on the CPU; fails as ``find_audio_tower``, and where weights do not fit."""
        files = find_audio_tower(name)
        tower, _, _ = read_audio_weights(files.folder, files.config)
        return cls(tower, digest=files.digest())

    def frames(self, samples_N: npt.NDArray[np.float32]) -> Frames:
        """Return the log-mel of a mono waveform at the tower's rate, float16 (M, T)."""
        return self.config.frames(samples_N)

    @torch.no_grad()
    def forward(self, clips: Sequence[Frames]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens of log-mels, (B, N, A), and which of them are real, bool (B, N)."""
        mel_BMT, frames_B = stacked(clips, self.config)
        device = self.tower.mean.device
        return self.tower.tokens(mel_BMT.to(device), frames_B.to(device))

    def train(self, mode: bool = True) -> FrozenAudioTower:
        """Stay in eval mode."""
        return super().train(False)

    def digest(self) -> str:
        """Return 32 hex digits over the tower's sizes and weights."""
        return self._digest

    def flops(self) -> int:
        """Return the operations for a whole clip; a multiply-add counts two."""
        config = self.config
        clip = np.zeros((config.log_mel.num_bins, config.num_frames), np.float16)
        return count_flops(lambda: self([clip]))


class AudioSide(nn.Module):
    """Audio tower, second connector and the two null embeddings of a projector model.

    null_image_embedding: (Q, L) with the Q of a picture of one tile. null_audio_embedding: (Q, L)
    with the Q of a whole clip.
    """

    def __init__(
        self, tower: FrozenAudioTower, connector: Connector, *, image_tokens: int, width: int
    ) -> None:
        super().__init__()
        self.tower, self.connector = tower, connector
        self.num_tokens = connector.num_tokens(tower.num_tokens)
        # "embed": the loop decays no embedding.
        self.null_image_embedding = nn.Parameter(torch.randn(image_tokens, width) * 0.02)
        self.null_audio_embedding = nn.Parameter(torch.randn(self.num_tokens, width) * 0.02)
        self._heard: tuple[torch.Tensor, torch.Tensor] | None = None

    def learned(self) -> list[nn.Parameter]:
        """Return all parameters but the tower's."""
        return [p for name, p in self.named_parameters() if not name.startswith("tower.")]

    def learned_state(self) -> dict[str, torch.Tensor]:
        """Return all weights but the tower's, by name; not copies."""
        return {n: t for n, t in self.state_dict().items() if not n.startswith("tower.")}

    @contextlib.contextmanager
    def hearing(self, heard: tuple[torch.Tensor, torch.Tensor] | None) -> Iterator[None]:
        """Let the rows of each batch inside hear this: tokens (B, N, A) and a bool mask (B, N).

        A mask row without any True: that row has no sound. None: no row has.
        """
        before, self._heard = self._heard, heard
        try:
            yield
        finally:
            self._heard = before

    def beside(self, images: ImageTokens, instruct: Instruct | None) -> ImageTokens:
        """Return image tokens and audio tokens as one prefix per row, nulls for what is missing.

        Fails: SetupError where what is heard is of another number of rows.
        """
        num_rows = len(images.row_of)
        sounds = ImageTokens.none(num_rows, self.null_audio_embedding.device)
        if self._heard is not None:
            features_BNA, mask_BN = self._heard
            if len(features_BNA) != num_rows:
                msg = f"{num_rows} rows, but sound for {len(features_BNA)}"
                raise SetupError(msg)
            sounds = connect(self.connector, features_BNA, mask_BN, instruct)
        seen_BQL, seen_BQ = _filled(images, self.null_image_embedding)
        heard_BQL, heard_BQ = _filled(sounds, self.null_audio_embedding)
        tokens_BQL = torch.cat([seen_BQL, heard_BQL], dim=1)
        return ImageTokens(tokens_BQL, torch.cat([seen_BQ, heard_BQ], dim=1), list(range(num_rows)))

    def flops(self) -> int:
        """Return the operations of tower and connector for a whole clip."""
        return self.tower.flops() + connector_flops(self.connector, self.tower.num_tokens)


def build_audio_side(projector: Projector, *, seed: int) -> AudioSide:
    """Return a fresh audio side as the projector's configuration names it; ``seed`` decides it.

    Fails: RecipeError for connectors that are no prefix; else as ``find_audio_tower``.
    """
    config, language = projector.config, projector.language
    assert config.audio_tower is not None
    check_prefixes(config.connector, config.audio_connector)
    tower = FrozenAudioTower.load(config.audio_tower)
    connector = build_connector(
        config.audio_connector,
        vision_width=tower.width,
        language_width=language.width,
        num_queries=config.audio_queries,
        depth=config.depth,
        heads=config.heads,
        vocab_size=len(language.tokenizer),
        seed=seed,
    )
    image_tokens = projector.connector.num_tokens(projector.tower.patches_per_tile)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        side = AudioSide(tower, connector, image_tokens=image_tokens, width=language.width)
    return side.to(language.device)


def check_prefixes(connector: str, audio_connector: str) -> None:
    """Raise RecipeError for connectors that cannot stand beside each other before a text."""
    for name, value in (("connector", connector), ("audio_connector", audio_connector)):
        if value not in PREFIXES:
            msg = f"projector: {name}={value!r} with audio_tower; use one of {', '.join(PREFIXES)}"
            raise RecipeError(msg)


def _filled(found: ImageTokens, null_QL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens (B, Q, L) and which count, bool (B, Q), with the null where there are none."""
    num_rows, width = len(found.row_of), max(found.tokens.shape[1], len(null_QL))
    tokens_BQL = null_QL.new_zeros(num_rows, width, null_QL.shape[1])
    valid_BQ = torch.zeros(num_rows, width, dtype=torch.bool, device=null_QL.device)
    there = [(row, place) for row, place in enumerate(found.row_of) if place is not None]
    missing = [row for row, place in enumerate(found.row_of) if place is None]
    if there:
        rows, places = (list(numbers) for numbers in zip(*there, strict=True))
        tokens_BQL[rows, : found.tokens.shape[1]] = found.tokens[places].to(null_QL.dtype)
        valid_BQ[rows, : found.tokens.shape[1]] = found.valid[places]
    if missing:  # untouched otherwise: no gradient, not even zeros
        tokens_BQL[missing, : len(null_QL)] = null_QL
        valid_BQ[missing, : len(null_QL)] = True
    return tokens_BQL, valid_BQ
