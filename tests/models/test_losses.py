"""Losses against naive loops in float64."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn.functional import normalize

from winnow.models.losses import Outputs, contrastive_loss, image_separation

Floats = npt.NDArray[np.float64]
BATCH, WIDTH, SCALE, BIAS = 5, 7, 6.5, -3.0


def _unit(rows: int, seed: int, width: int = WIDTH) -> torch.Tensor:
    chance = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, width, generator=chance, dtype=torch.float64)
    return normalize(values, dim=-1).requires_grad_()


def _outputs(**extras: Any) -> Outputs:
    return Outputs(
        images=_unit(BATCH, 1), texts=_unit(BATCH, 2),
        scale=torch.tensor(SCALE, dtype=torch.float64),
        bias=torch.tensor(BIAS, dtype=torch.float64), **extras,
    )  # fmt: skip


def _numpy(value: torch.Tensor | None) -> Floats:
    assert value is not None
    return value.detach().numpy()


def _cross_entropy(logits: list[float], right: int) -> float:
    return math.log(sum(math.exp(value) for value in logits)) - logits[right]


def _naive(outputs: Outputs, kind: str, present: list[bool]) -> float:
    images, texts = _numpy(outputs.images), _numpy(outputs.texts)
    wrong = [] if outputs.negatives is None else list(_numpy(outputs.negatives)[present])
    total = 0.0
    for i in range(BATCH):
        if kind == "clip":
            columns = [*texts, *wrong]
            total += _cross_entropy([SCALE * float(images[i] @ c) for c in columns], i) / 2
            total += _cross_entropy([SCALE * float(texts[i] @ c) for c in images], i) / 2
            continue
        for j, text in enumerate([*texts, *wrong]):
            label = 1.0 if i == j else -1.0
            logit = SCALE * float(images[i] @ text) + BIAS
            total += math.log(1 + math.exp(-label * logit))
    return total / BATCH


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_without_negatives(kind: Literal["clip", "siglip"]) -> None:
    outputs = _outputs()
    assert float(contrastive_loss(outputs, kind=kind).detach()) == pytest.approx(
        _naive(outputs, kind, [])
    )


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("present", [[True] * 10, [True, False] * 5, [False] * 10])
def test_hard_negatives_are_wrong_texts_for_every_image(
    kind: Literal["clip", "siglip"], present: list[bool]
) -> None:
    outputs = _outputs(negatives=_unit(10, 3), has_negative=torch.tensor(present))
    loss = contrastive_loss(outputs, kind=kind)
    assert float(loss.detach()) == pytest.approx(_naive(outputs, kind, present))
    loss.backward()  # type: ignore[no-untyped-call]
    assert outputs.negatives is not None
    moved = (outputs.negatives.grad.abs().sum(1) > 0).tolist()  # type: ignore[union-attr]
    assert moved == present
    assert torch.isfinite(outputs.images.grad).all()  # type: ignore[arg-type]
    if not any(present):
        plain = contrastive_loss(_outputs(), kind=kind)
        assert float(loss.detach()) == pytest.approx(float(plain.detach()))


def test_all_negatives_count_without_a_mask() -> None:
    outputs = _outputs(negatives=_unit(5, 3))
    assert float(contrastive_loss(outputs).detach()) == pytest.approx(
        _naive(outputs, "clip", [True] * 5)
    )


def test_image_separation_is_the_papers_sum() -> None:
    meanings = _unit(BATCH, 4, width=3).detach().abs()
    meanings = torch.stack([*meanings[:4], meanings[0]])  # captions 0 and 4 mean the same
    outputs = _outputs(meanings=meanings)
    images, texts, vectors = (_numpy(v) for v in (outputs.images, outputs.texts, meanings))
    naive = 0.0
    for i in range(BATCH):
        logits = []
        for j in range(BATCH):
            if i == j:
                logits.append(SCALE * float(images[i] @ texts[i]))
            else:
                distance = 1 - float(vectors[i] @ vectors[j])
                logits.append(SCALE * distance * float(images[i] @ images[j]))
        naive += _cross_entropy(logits, i) / BATCH
    assert float(image_separation(outputs).detach()) == pytest.approx(naive)
    plain = float(contrastive_loss(outputs).detach())
    assert float(contrastive_loss(outputs, separation_weight=0.5).detach()) == pytest.approx(
        plain + 0.5 * naive
    )


def test_separation_moves_apart_only_images_whose_captions_differ() -> None:
    """Two images at the same place: their cosine falls if the captions differ, else it does not."""
    for same in (False, True):
        images = torch.tensor([[1.0, 0.2, 0.0], [1.0, -0.2, 0.0]], dtype=torch.float64)
        images.requires_grad_()
        meanings = torch.eye(2, dtype=torch.float64)
        meanings = meanings[[0, 0]] if same else meanings
        unit = normalize(images, dim=-1)
        outputs = Outputs(
            images=unit, texts=unit.detach(), scale=torch.tensor(1.0, dtype=torch.float64),
            meanings=meanings,
        )  # fmt: skip
        image_separation(outputs).backward()  # type: ignore[no-untyped-call]
        assert images.grad is not None
        after = normalize(images.detach() - 0.01 * images.grad, dim=-1)
        change = float(after[0] @ after[1]) - float((unit[0] @ unit[1]).detach())
        assert change == pytest.approx(0, abs=1e-9) if same else change < -1e-4


def test_separation_needs_the_captions() -> None:
    with pytest.raises(ValueError, match="frozen text encoder"):
        contrastive_loss(_outputs(), separation_weight=1.0)
