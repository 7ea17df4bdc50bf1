"""Pictures on their way into the language model: features, image tokens, and where they stand.

Tensor suffixes: N pictures, B rows, P patches, V vision width, Q image tokens, I pictures of a row,
T positions, L language-model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from winnow.models.connectors import Connector
from winnow.models.gated_attention import GatedBlocks, Media
from winnow.models.projector_batch import Layout, Packed, latest_images
from winnow.models.vision_tower import VisionTower

Instruct = Callable[[Sequence[int]], tuple[torch.Tensor, torch.Tensor]]
"""Rows -> their instructions' tokens (B, T), padded on the right, and a bool mask."""


@dataclass(frozen=True, slots=True)
class ImageTokens:
    """What the connector gives for the pictures that are there.

    tokens: (N, Q, L). valid: (N, Q), False for tokens that only fill up (a picture with fewer tiles
    than another one). row_of: for each picture that was asked for its row in ``tokens``, None for
    one that is not there.
    """

    tokens: torch.Tensor
    valid: torch.Tensor
    row_of: Sequence[int | None]

    @classmethod
    def none(cls, num_rows: int, device: torch.device) -> ImageTokens:
        """No pictures at all."""
        empty = torch.zeros(0, 0, 1, device=device)
        return cls(empty, empty[..., 0].bool(), [None] * num_rows)


def picture_features(
    tower: VisionTower,
    pictures: Sequence[npt.NDArray[np.uint8] | None],
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features float32 (N, P, V) and a mask (N, P) of pictures (K, H, W, 3), K tiles each.

    P is that of the most tiles. A mask row without any True: there is no picture.
    """
    counts = [0 if picture is None else len(picture) for picture in pictures]
    patches = tower.patches_per_tile
    longest = max([1, *counts]) * patches
    features = torch.zeros(len(pictures), longest, tower.width, device=device)
    mask = torch.zeros(len(pictures), longest, dtype=torch.bool, device=device)
    tiles = [picture for picture in pictures if picture is not None]
    if not tiles:
        return features, mask
    found = tower(torch.from_numpy(np.concatenate(tiles)).to(device)).to(device)
    for row, part in enumerate(found.split(counts)):
        features[row, : len(part) * patches] = part.flatten(0, 1)
        mask[row, : len(part) * patches] = True
    return features, mask


def connect(
    connector: Connector,
    features_NPV: torch.Tensor,
    mask_NP: torch.Tensor | None,
    instruct: Instruct | None,
) -> ImageTokens:
    """Run the connector on the pictures that are there, on the connector's device.

    ``instruct``: asked by a connector that takes instructions; None = it gets none.
    """
    weight = next(connector.parameters())
    features_NPV = features_NPV.to(weight.device, weight.dtype)
    num_rows, num_patches = features_NPV.shape[:2]
    if mask_NP is None:
        mask_NP = torch.ones(num_rows, num_patches, dtype=torch.bool)
    mask_NP = mask_NP.to(weight.device)
    there = mask_NP.any(dim=1).nonzero()[:, 0].tolist()
    if not there:
        return ImageTokens.none(num_rows, weight.device)
    place = {row: index for index, row in enumerate(there)}
    if len(there) < num_rows:
        features_NPV, mask_NP = features_NPV[there], mask_NP[there]
    asked = instruct(there) if instruct is not None and connector.takes_instruction else ()
    tokens_NQL = connector(features_NPV, mask_NP, *asked)
    valid_NQ = connector.token_mask(mask_NP)
    if valid_NQ is None:
        valid_NQ = torch.ones(tokens_NQL.shape[:2], dtype=torch.bool, device=weight.device)
    return ImageTokens(tokens_NQL, valid_NQ, [place.get(row) for row in range(num_rows)])


def padded_tokens(
    rows: Sequence[Sequence[int]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids int64 (B, T), padded on the right, and a bool mask; no row may be empty."""
    tokens = [torch.tensor(row) for row in rows]
    tokens_BT = nn.utils.rnn.pad_sequence(tokens, batch_first=True)
    lengths_B = torch.tensor([len(row) for row in rows])
    mask_BT = torch.arange(tokens_BT.shape[1]) < lengths_B[:, None]
    return tokens_BT.to(device), mask_BT.to(device)


def image_slots(
    images: ImageTokens, shown: Sequence[Sequence[int | None]]
) -> list[list[list[int]]]:
    """Return for each picture of each row the numbers of its image tokens in the batch.

    shown: per row, which row of ``tokens`` each of its places holds; None = no picture there.
    """
    num_queries = images.tokens.shape[1]
    valid = images.valid.tolist()

    def numbers(picture: int | None) -> list[int]:
        if picture is None:
            return []
        return [picture * num_queries + q for q, real in enumerate(valid[picture]) if real]

    return [[numbers(picture) for picture in row] for row in shown]


def splice(embedded_BTL: torch.Tensor, layout: Layout, images: ImageTokens) -> None:
    """Put the image tokens into their slots, in place."""
    is_image_BT = layout.slots < 0
    tokens_ML = images.tokens.flatten(0, 1)[-layout.slots[is_image_BT] - 1]
    embedded_BTL[is_image_BT] = tokens_ML.to(embedded_BTL.dtype)


def row_media(
    gated: GatedBlocks,
    rows: Sequence[Packed],
    shown: Sequence[Sequence[int | None]],
    images: ImageTokens,
    layout: Layout,
) -> Media | None:
    """Return what gated layers look at: each row's pictures, and which one each token sees
    (``latest_images``)."""
    most = max(map(len, shown))
    if not len(images.tokens) or not most:
        return None
    places_BI = torch.tensor(
        [[-1 if n is None else n for n in row] + [-1] * (most - len(row)) for row in shown],
        device=layout.slots.device,
    )
    tokens_BIQL = images.tokens[places_BI.clamp_min(0)]
    valid_BIQ = images.valid[places_BI.clamp_min(0)] & (places_BI >= 0)[:, :, None]
    return gated.media(tokens_BIQL, valid_BIQ, latest_images(rows, layout))
