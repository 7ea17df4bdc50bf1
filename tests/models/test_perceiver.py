"""The resampler against a naive loop over queries and heads, and what must not matter to it."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import layer_norm

from winnow.contracts.errors import SetupError
from winnow.models.connectors import ConnectorConfig
from winnow.models.perceiver import PerceiverConnector

WIDTH, LANGUAGE, QUERIES, PATCHES, HEADS = 12, 10, 3, 7, 4


def resampler(*, width: int = WIDTH, max_tiles: int = 0) -> PerceiverConnector:
    config = ConnectorConfig(
        vision_width=width,
        language_width=LANGUAGE,
        num_queries=QUERIES,
        heads=HEADS,
        max_tiles=max_tiles,
        patches_per_tile=PATCHES,
    )
    torch.manual_seed(5)
    connector = PerceiverConnector(config, is_prefix=True).eval()
    for parameter in connector.parameters():  # no gain of one and no bias of nought hides an error
        torch.nn.init.normal_(parameter, std=0.4)
    return connector.double()


@pytest.fixture(scope="module")
def features() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, PATCHES, WIDTH, generator=generator, dtype=torch.float64)


def normed(vector: torch.Tensor, norm: torch.nn.LayerNorm) -> torch.Tensor:
    centred = vector - vector.mean()
    return centred / (centred.square().mean() + norm.eps).sqrt() * norm.weight + norm.bias


@torch.no_grad()
def naive(connector: PerceiverConnector, patches: list[torch.Tensor]) -> torch.Tensor:
    """Flamingo's figure 5, one query and one head at a time, with lists of vectors."""
    latents = list(connector.latents)
    for attention, feed in zip(connector.attentions, connector.feed_forwards, strict=True):
        asking = [normed(x, attention.norm_latents) for x in latents]
        known = [normed(x, attention.norm_features) for x in patches] + asking
        size = attention.query.out_features // HEADS
        added = []
        for query in asking:
            mixed = []
            for head in range(HEADS):
                rows = slice(head * size, (head + 1) * size)
                q = attention.query.weight[rows] @ query
                keys = [attention.key.weight[rows] @ x for x in known]
                scores = [math.exp(float(q @ k) / math.sqrt(size)) for k in keys]
                values = [attention.value.weight[rows] @ x for x in known]
                total = sum(s * v for s, v in zip(scores, values, strict=True))
                mixed.append(total / sum(scores))
            added.append(attention.output.weight @ torch.cat(mixed))
        latents = [x + y for x, y in zip(latents, added, strict=True)]
        for place, x in enumerate(latents):
            inner = (feed.inner.weight @ normed(x, feed.norm)).clamp(min=0) ** 2
            latents[place] = x + feed.outer.weight @ inner
    last = [normed(x, connector.norm) for x in latents]
    return (
        torch.stack([connector.to_language.weight @ x for x in last]) + connector.to_language.bias
    )


@pytest.mark.parametrize("width", [WIDTH, 14])  # 14: the heads are 3 wide and leave 2 over
def test_a_naive_loop_agrees(width: int) -> None:
    connector = resampler(width=width)
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(2, PATCHES, width, generator=generator, dtype=torch.float64)
    found = connector(features)
    assert found.shape == (2, QUERIES, LANGUAGE)
    for row in range(2):
        assert torch.allclose(found[row], naive(connector, list(features[row])), atol=1e-9)


def test_masked_patches_are_as_if_they_were_not_there(features: torch.Tensor) -> None:
    connector = resampler()
    mask = torch.tensor([[True] * PATCHES, [True, False, True, True, False, False, True]])
    changed = features.clone()
    changed[~mask] = 1e6
    found = connector(changed, mask)
    assert torch.equal(found, connector(features, mask))
    assert torch.allclose(found[1], naive(connector, list(features[1][mask[1]])), atol=1e-9)
    changed.requires_grad_()
    connector(changed, mask).sum().backward()
    assert changed.grad is not None
    assert not changed.grad[~mask].any()
    assert changed.grad[mask].abs().min() > 0


def test_without_tiles_the_patches_are_a_set(features: torch.Tensor) -> None:
    connector = resampler()
    order = torch.tensor([4, 0, 6, 2, 1, 5, 3])
    assert torch.allclose(connector(features[:, order]), connector(features), atol=1e-9)


def test_tiles_are_told_apart(features: torch.Tensor) -> None:
    connector = resampler(max_tiles=1)
    second = features.roll(1, dims=-1)
    tiles = torch.cat([features, second], dim=1)
    within = torch.arange(2 * PATCHES)
    within[:2] = torch.tensor([1, 0])
    swapped = torch.cat([second, features], dim=1)
    assert torch.allclose(connector(tiles[:, within]), connector(tiles), atol=1e-9)
    assert not torch.allclose(connector(swapped), connector(tiles), atol=1e-3)
    place = torch.arange(2 * PATCHES) // PATCHES
    assert connector.tile_embedding is not None
    moved = tiles[0] + connector.tile_embedding[place]
    assert torch.allclose(connector(tiles)[0], naive(connector, list(moved)), atol=1e-9)
    with pytest.raises(SetupError, match=r"21 patches are more than 2 tiles of 7"):
        connector(torch.cat([tiles, features], dim=1))


def test_what_cannot_be_built() -> None:
    sizes = {"vision_width": 2, "language_width": 4}
    with pytest.raises(SetupError, match=r"heads=4 is more than the tower's width 2"):
        PerceiverConnector(ConnectorConfig(**sizes), is_prefix=True)
    with pytest.raises(SetupError, match=r"max_tiles needs patches_per_tile"):
        PerceiverConnector(ConnectorConfig(**sizes, heads=1, max_tiles=3), is_prefix=True)


def test_the_norm_of_the_naive_loop_is_torchs() -> None:
    norm = torch.nn.LayerNorm(6)
    torch.nn.init.normal_(norm.weight)
    vector = torch.randn(6)
    assert torch.allclose(normed(vector, norm), layer_norm(vector, (6,), norm.weight, norm.bias))
