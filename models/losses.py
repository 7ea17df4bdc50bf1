"""Contrastive losses: CLIP's and SigLIP's, extra text negatives, separation of images.

Tensor suffixes: B batch, D embedding, N extra negatives, S width of the frozen caption vectors.
All embeddings are unit vectors. Tensors that are not part of a loss's mean are masked, never cut
out, so shapes depend on the batch size alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch.nn.functional import cross_entropy, logsigmoid

LossName = Literal["clip", "siglip"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outputs:
    """What the networks said about one batch.

    images, texts: (B, D).  scale: temperature's inverse, already exponentiated.  bias: SigLIP's,
    or None.  negatives (N, D), has_negative (N,): texts that describe no image of the batch, and
    which of them count; None for none.  meanings (B, S): the captions in a frozen text encoder,
    unit vectors; needed for separation only.
    """

    images: torch.Tensor
    texts: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None = None
    negatives: torch.Tensor | None = None
    has_negative: torch.Tensor | None = None
    meanings: torch.Tensor | None = None


def contrastive_loss(
    outputs: Outputs, *, kind: LossName = "clip", separation_weight: float = 0.0
) -> torch.Tensor:
    """Return the loss of one batch: a scalar, float32 or wider.

    kind: "clip" (Radford et al. 2021) or "siglip" (Zhai et al. 2023), by open_clip's classes where
    there are no extra negatives.  separation_weight: times ``image_separation`` is added to it.
    """
    if kind == "siglip":
        loss = _siglip(outputs)
    elif outputs.negatives is None:
        loss = ClipLoss()(outputs.images, outputs.texts, outputs.scale)
    else:
        loss = _clip_with_negatives(outputs)
    if separation_weight:
        loss = loss + separation_weight * image_separation(outputs)
    return loss


def image_separation(outputs: Outputs) -> torch.Tensor:
    """Return AlignCLIP's intra-modality separation of the images (Eslami and de Melo 2024).

    With V_ij the cosine of images i and j, and D_ij = 1 - cosine of their captions in a frozen
    text encoder (so D_ii = 0): the cross-entropy of row i of ``scale * (V * D + diag(P))`` against
    class i, averaged over rows, where P_i is the cosine of image i and its own caption. Images
    whose captions mean the same are not pushed apart.
    """
    meaning_BS = outputs.meanings
    if meaning_BS is None:
        msg = "image_separation needs the captions' vectors of a frozen text encoder"
        raise ValueError(msg)
    image_BD = outputs.images
    distance_BB = (1 - meaning_BS @ meaning_BS.T).fill_diagonal_(0)
    paired_B = (image_BD * outputs.texts).sum(dim=1)
    logits_BB = (image_BD @ image_BD.T) * distance_BB + torch.diag(paired_B)
    return cross_entropy(outputs.scale * logits_BB, _classes(image_BD))


def _clip_with_negatives(outputs: Outputs) -> torch.Tensor:
    """NegCLIP's loss (Yuksekgonul et al. 2023): every image also has all negatives of the batch as
    wrong texts; the other direction stays as it is, because a negative has no image."""
    negative_ND, has_negative_N = _negatives(outputs)
    classes_B = _classes(outputs.images)
    image_BB = outputs.scale * outputs.images @ outputs.texts.T
    extra_BN = outputs.scale * outputs.images @ negative_ND.T
    extra_BN = extra_BN.masked_fill(~has_negative_N, -torch.inf)
    rows = cross_entropy(torch.cat([image_BB, extra_BN], dim=1), classes_B)
    return (rows + cross_entropy(image_BB.T, classes_B)) / 2


def _siglip(outputs: Outputs) -> torch.Tensor:
    """SigLIP's loss; an extra negative is one more pair with label -1 for every image."""
    loss: torch.Tensor = SigLipLoss()(outputs.images, outputs.texts, outputs.scale, outputs.bias)
    if outputs.negatives is None:
        return loss
    negative_ND, has_negative_N = _negatives(outputs)
    logits_BN = outputs.scale * outputs.images @ negative_ND.T
    if outputs.bias is not None:
        logits_BN = logits_BN + outputs.bias
    extra_BN = logsigmoid(-logits_BN).masked_fill(~has_negative_N, 0.0)
    return loss - extra_BN.sum() / len(outputs.images)


def _negatives(outputs: Outputs) -> tuple[torch.Tensor, torch.Tensor]:
    negative_ND, has_negative_N = outputs.negatives, outputs.has_negative
    assert negative_ND is not None
    if has_negative_N is None:
        has_negative_N = torch.ones(len(negative_ND), dtype=torch.bool, device=negative_ND.device)
    return negative_ND, has_negative_N


def _classes(features_BD: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(features_BD), device=features_BD.device)
