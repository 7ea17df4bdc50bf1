"""Cached embeddings: the gradient of the whole batch, from parts, with dropout replayed."""

from __future__ import annotations

import copy
from typing import Any, Literal

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from winnow.models.contrastive import build_network, encode_text_short
from winnow.models.gradcache import Tower, cached_backward, plain_backward
from winnow.models.losses import Outputs, contrastive_loss

BATCH = 12
CPU = torch.device("cpu")
CONFIG: dict[str, Any] = {
    "embed_dim": 16, "init_logit_bias": -10.0,
    "vision_cfg": {
        "image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16,
    },
    "text_cfg": {"context_length": 10, "vocab_size": 600, "width": 32, "heads": 2, "layers": 1},
}  # fmt: skip


def _network(*, random: bool) -> nn.Module:
    config = copy.deepcopy(CONFIG)
    if random:
        config["vision_cfg"]["patch_dropout"] = 0.5
    network = build_network(config, seed=1).train()
    if random:
        network.ln_final = nn.Sequential(network.ln_final, nn.Dropout(0.3))  # type: ignore[arg-type]
    return network


def _towers(network: Any, *, negatives: bool) -> list[Tower]:
    chance = torch.Generator().manual_seed(2)
    images = torch.randn(BATCH, 3, 32, 32, generator=chance)
    towers = [Tower(lambda a, b: normalize(network.encode_image(images[a:b]), dim=-1), BATCH)]
    for _ in range(2 if negatives else 1):
        tokens = torch.randint(1, 500, (BATCH, 10), generator=chance)
        ends = torch.randint(2, 10, (BATCH,), generator=chance)
        tokens[torch.arange(BATCH), ends] = 599

        def texts(a: int, b: int, tokens: torch.Tensor = tokens) -> torch.Tensor:
            return normalize(encode_text_short(network, tokens[a:b]), dim=-1)

        towers.append(Tower(texts, BATCH))
    return towers


def _loss_of(network: Any, kind: Literal["clip", "siglip"]) -> Any:
    present = torch.arange(BATCH) % 3 > 0
    meanings = normalize(torch.randn(BATCH, 5, generator=torch.Generator().manual_seed(8)), dim=-1)

    def loss_of(images: torch.Tensor, texts: torch.Tensor, *wrong: torch.Tensor) -> torch.Tensor:
        outputs = Outputs(
            images=images, texts=texts, scale=network.logit_scale.exp(), bias=network.logit_bias,
            negatives=wrong[0] if wrong else None, has_negative=present, meanings=meanings,
        )  # fmt: skip
        return contrastive_loss(outputs, kind=kind, separation_weight=0.3)

    return loss_of


def _gradients(network: nn.Module) -> dict[str, torch.Tensor]:
    return {k: p.grad for k, p in network.named_parameters() if p.grad is not None}


def _joined(towers: list[Tower], size: int) -> list[Tower]:
    """The same parts, one after the other, but with their graphs: what memory would not hold."""

    def whole(tower: Tower) -> Tower:
        def encode(start: int, stop: int) -> torch.Tensor:
            cuts = range(start, stop, size)
            return torch.cat([tower.encode(a, min(a + size, stop)) for a in cuts])

        return Tower(encode, tower.num_rows)

    return [whole(tower) for tower in towers]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("negatives", [False, True])
@pytest.mark.parametrize("size", [1, 5, 12, 100])
def test_parts_give_the_gradient_of_the_whole_batch(
    kind: Literal["clip", "siglip"], negatives: bool, size: int
) -> None:
    whole, parts = _network(random=False), _network(random=False)
    expected = plain_backward(_towers(whole, negatives=negatives), _loss_of(whole, kind))
    found = cached_backward(_towers(parts, negatives=negatives), _loss_of(parts, kind), size, CPU)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    _assert_equal(_gradients(parts), _gradients(whole))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("negatives", [False, True])
def test_dropout_draws_the_same_numbers_again(
    kind: Literal["clip", "siglip"], negatives: bool
) -> None:
    size = 5
    whole, parts = _network(random=True), _network(random=True)
    torch.manual_seed(3)
    joined = _joined(_towers(whole, negatives=negatives), size)
    expected = plain_backward(joined, _loss_of(whole, kind))
    after = torch.get_rng_state()
    torch.manual_seed(3)
    towers = _towers(parts, negatives=negatives)
    found = cached_backward(towers, _loss_of(parts, kind), size, CPU)
    assert torch.equal(torch.get_rng_state(), after)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    _assert_equal(_gradients(parts), _gradients(whole))
    other = _network(random=True)  # the test can fail: other numbers, other gradients
    torch.manual_seed(4)
    cached_backward(_towers(other, negatives=negatives), _loss_of(other, kind), size, CPU)
    name = "visual.conv1.weight"
    assert not torch.allclose(_gradients(other)[name], _gradients(whole)[name], rtol=1e-3)


def test_plain_accumulation_is_something_else() -> None:
    whole, parts = _network(random=False), _network(random=False)
    plain_backward(_towers(whole, negatives=False), _loss_of(whole, "clip"))
    towers = _towers(parts, negatives=False)
    for start in range(0, BATCH, 4):
        images, texts = (tower.encode(start, start + 4) for tower in towers)
        outputs = Outputs(images=images, texts=texts, scale=parts.logit_scale.exp())  # type: ignore[operator]
        (contrastive_loss(outputs) / 3).backward()  # type: ignore[no-untyped-call]
    name = "visual.conv1.weight"
    assert not torch.allclose(_gradients(parts)[name], _gradients(whole)[name], rtol=0.05)


def test_batch_norm_is_another_function_in_parts() -> None:
    """Why trainers refuse it: each part is normalised by its own rows."""
    norms = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    rows = torch.randn(BATCH, 4, generator=torch.Generator().manual_seed(5))

    def towers(norm: nn.Module) -> list[Tower]:
        return [Tower(lambda a, b: norm(rows[a:b]), BATCH)]

    def loss_of(vectors: torch.Tensor) -> torch.Tensor:
        return (vectors * rows.cos()).sum()

    plain_backward(towers(norms[0]), loss_of)
    cached_backward(towers(norms[1]), loss_of, BATCH, CPU)
    _assert_equal(_gradients(norms[1]), _gradients(norms[0]))
    norms[1].zero_grad()
    cached_backward(towers(norms[1]), loss_of, 4, CPU)
    whole, parts = (_gradients(norm)["weight"] for norm in norms)
    assert not torch.allclose(parts, whole, rtol=0.05)


def _assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        tolerance = 1e-5 * float(value.abs().max()) + 1e-8
        assert (found[name] - value).abs().max() <= tolerance * 5, name
