"""The matching head of a Q-Former's first stage as a scorer: P(the caption describes the image).

It is kept beside a projector model, in two files that stand alone: ``matching.json`` (which tower
and tokenizer, by name and digest, and the Q-Former's sizes) and ``matching.safetensors``.

Tensor suffixes: B batch, N tiles of all images, K tiles of an image, H/W pixels, P patches (of all
tiles of an image), V vision width, T text tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from winnow.contracts.errors import SetupError
from winnow.models.devices import Precision, choose_device
from winnow.models.file_digest import files_digest
from winnow.models.language_files import INSTALL, find_language_model
from winnow.models.matching_files import (
    CONFIG_NAME,
    FORMAT,
    WEIGHTS_NAME,
    MatchingFiles,
    lasting_name,
)
from winnow.models.qformer import QFormer, QFormerConfig
from winnow.models.qformer_losses import FirstStage
from winnow.models.vision_tower import VisionTower

_TILES_TOGETHER = 16  # always as many, because the last bits depend on the shape


@dataclass(frozen=True, kw_only=True, slots=True)
class MatchingSource:
    """What a matching head needs from elsewhere.

    tower, tower_digest, max_tiles: as the projector names and reads its vision tower.
    language_model: whose tokenizer reads the captions; its weights are not needed.
    """

    tower: str
    tower_digest: str
    language_model: str
    max_tiles: int = 0


class MatchingModel:
    """A tower, a Q-Former and its matching head, for inference."""

    def __init__(self, tower: VisionTower, first_stage: FirstStage, tokenizer: Any) -> None:
        self.tower, self.first_stage, self.tokenizer = tower, first_stage.eval(), tokenizer
        self.most_tiles = 1 + tower.max_tiles  # the overview and its tiles
        self.device = next(first_stage.parameters()).device

    @torch.inference_mode()
    def features(self, tiles: Sequence[npt.NDArray[np.uint8]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return float32 (B, P, V) and bool (B, P), False where an image has fewer tiles.

        tiles: of each image, (K, H, W, 3), as ``tower.pixels`` gives them. P is that of the most
        tiles that an image may have, so that a score does not depend on the other images.
        """
        pixels_NHWC = np.concatenate(tiles)
        num_tiles = len(pixels_NHWC)
        patches = []
        for start in range(0, num_tiles, _TILES_TOGETHER):
            part = pixels_NHWC[start : start + _TILES_TOGETHER]
            fill = np.zeros((_TILES_TOGETHER - len(part), *part.shape[1:]), np.uint8)
            given = torch.from_numpy(np.concatenate([part, fill])).to(self.device)
            patches.append(self.tower.forward(given)[: len(part)].float())
        found = torch.cat(patches)
        shape = (len(tiles), self.most_tiles, *found.shape[1:])
        features = torch.zeros(shape, device=self.device)
        mask = torch.zeros(shape[:3], dtype=torch.bool, device=self.device)
        for row, part in enumerate(found.split([len(t) for t in tiles])):
            features[row, : len(part)] = part
            mask[row, : len(part)] = True
        return features.flatten(1, 2), mask.flatten(1, 2)

    @torch.inference_mode()
    def probability(
        self,
        features_BPV: torch.Tensor,
        mask_BP: torch.Tensor | None,
        texts: Sequence[str],
        *,
        num_tokens: int | None = None,
    ) -> npt.NDArray[np.float32]:
        """Return float32 (B,), P(match) of each image and its text, in [0, 1]; nan on overflow.

        num_tokens: every text is cut or padded to so many tokens, which fixes the last bits of the
        result; None = those of the longest text.
        """
        tokens_BT, mask_BT = caption_tokens(
            self.tokenizer, texts, most=num_tokens or self.first_stage.qformer.config.max_tokens - 1
        )
        if num_tokens is not None:
            missing = (0, num_tokens - tokens_BT.shape[1])
            tokens_BT = torch.nn.functional.pad(tokens_BT, missing)
            mask_BT = torch.nn.functional.pad(mask_BT, missing)
        logits_B2 = self.first_stage.matching_logits(
            features_BPV, mask_BP, tokens_BT.to(self.device), mask_BT.to(self.device)
        )
        probability: npt.NDArray[np.float32] = logits_B2.float().softmax(dim=1)[:, 1].cpu().numpy()
        return probability


def caption_tokens(
    tokenizer: Any, texts: Sequence[str], *, most: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids, int64 (B, T), 0 where padded, and bool (B, T), False there.

    For ``FirstStage`` and ``MatchingModel``: no start and end tokens, padded at the right, cut at
    ``most`` tokens. A text that spells a special token is read as plain characters.
    """
    rows = [
        tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)[
            "input_ids"
        ][:most]
        for text in texts
    ]
    length = max([1, *map(len, rows)])
    tokens_BT = torch.zeros(len(rows), length, dtype=torch.long)
    mask_BT = torch.zeros(len(rows), length, dtype=torch.bool)
    for index, row in enumerate(rows):
        tokens_BT[index, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask_BT[index, : len(row)] = True
    return tokens_BT, mask_BT


def save_matching(folder: Path, first_stage: FirstStage, source: MatchingSource) -> None:
    """Write a matching head into a projector's folder; what else is there stays."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {
        "tower": lasting_name(source.tower),
        "language_model": lasting_name(source.language_model),
    }
    document = {
        "format": FORMAT,
        **asdict(source),
        **names,
        "tokenizer_digest": _tokenizer_digest(source.language_model),
        "embedding_width": first_stage.text_projection.out_features,
        "qformer": asdict(first_stage.qformer.config),
    }
    text = json.dumps(document, indent=2) + "\n"
    (folder / CONFIG_NAME).write_text(text, encoding="utf-8")
    tensors = {k: v.detach().cpu().contiguous() for k, v in first_stage.state_dict().items()}
    save_file(tensors, folder / WEIGHTS_NAME)
    (folder / WEIGHTS_NAME).chmod(0o644)  # safetensors leaves it readable by its owner only


def load_matching(
    files: MatchingFiles, *, device: str = "auto", precision: Precision = "fp32"
) -> MatchingModel:
    """Load a matching head with its tower and tokenizer. ``precision`` is the tower's; the Q-Former
    computes in float32.

    Fails: SetupError where tower or tokenizer are not those of the training, where weights are
    damaged.
    """
    config, where = files.config, choose_device(device)
    try:
        qformer = QFormer(QFormerConfig(**config["qformer"]))
        first_stage = FirstStage(qformer, embedding_width=int(config["embedding_width"]))
        first_stage.load_state_dict(load_file(files.folder / WEIGHTS_NAME))
    except (SafetensorError, RuntimeError, OSError, KeyError, TypeError) as error:
        msg = f"the matching head in {files.folder} cannot be loaded: {error}"
        raise SetupError(msg) from error
    tower = VisionTower.load(
        files.part("tower"),
        device=device,
        precision=precision,
        max_tiles=int(config["max_tiles"]),
    )
    _same("vision tower", config["tower"], tower.digest(), config["tower_digest"])
    name = files.part("language_model")
    _same("tokenizer", name, _tokenizer_digest(name), config["tokenizer_digest"])
    first_stage.requires_grad_(False)
    return MatchingModel(tower, first_stage.to(where), _tokenizer(name))


def _same(what: str, name: str, found: str, expected: str) -> None:
    if found != expected:
        msg = (
            f"the {what} {name} is not the one that the matching head was trained with (its digest "
            f"is {found}, then it was {expected}); put the old files back, or train again"
        )
        raise SetupError(msg)


def _tokenizer_digest(language_model: str) -> str:
    return files_digest(find_language_model(language_model, allow_random=True).tokenizer)


def _tokenizer(language_model: str) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        msg = f"the matching head reads captions with transformers: {INSTALL}"
        raise SetupError(msg) from error
    folder = find_language_model(language_model, allow_random=True).folder
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        msg = f"the tokenizer of {language_model} cannot be loaded from {folder}: {error}"
        raise SetupError(msg) from error
