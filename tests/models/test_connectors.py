"""Connectors: values of the simple ones, shapes and names of all, and what they cost."""

from __future__ import annotations

import pytest
import torch

from winnow.contracts.errors import RecipeError
from winnow.models.connectors import CONNECTORS, Connector, build_connector, connector_flops

VISION, LANGUAGE, PATCHES = 24, 20, 9


def build(name: str, **options: int) -> Connector:
    given = {"num_queries": 5, "depth": 2, "heads": 4, "vocab_size": 30, **options}
    return build_connector(name, vision_width=VISION, language_width=LANGUAGE, **given).eval()


@pytest.fixture(scope="module")
def features() -> torch.Tensor:
    return torch.randn(2, PATCHES, VISION, generator=torch.Generator().manual_seed(3))


def test_linear_and_mlp_are_plain_arithmetic(features: torch.Tensor) -> None:
    linear, mlp = build("linear"), build("mlp")
    (weight, bias) = linear.parameters()
    found = linear(features)
    for row in range(2):
        for patch in range(PATCHES):
            expected = weight @ features[row, patch] + bias
            assert torch.allclose(found[row, patch], expected, atol=1e-6)
    first, first_bias, second, second_bias = mlp.parameters()
    inner = features @ first.T + first_bias
    inner = 0.5 * inner * (1 + torch.erf(inner / 2**0.5))
    assert torch.allclose(mlp(features), inner @ second.T + second_bias, atol=1e-6)


@pytest.mark.parametrize("name", CONNECTORS)
def test_every_connector(name: str, features: torch.Tensor) -> None:
    connector = build(name)
    words = torch.tensor([[4, 5, 6], [7, 8, 0]])
    there = torch.tensor([[True, True, True], [True, True, False]])
    asked = (words, there) if connector.takes_instruction else (None, None)
    mask = torch.ones(2, PATCHES, dtype=torch.bool)
    mask[1, 6:] = False
    found = connector(features, mask, *asked)
    assert connector.name == name
    assert connector.is_prefix == (name != "perceiver_xattn")
    assert connector.takes_instruction == (name == "instruct_qformer")
    assert found.shape == (2, connector.num_tokens(PATCHES), LANGUAGE)
    # Padded patches change nothing that counts, and a picture does not depend on its neighbours.
    other = features.clone()
    other[1, 6:] = 1e3
    counts = connector.token_mask(mask)
    counts = torch.ones(found.shape[:2], dtype=torch.bool) if counts is None else counts
    assert torch.equal(connector(other, mask, *asked)[counts], found[counts])
    part = tuple(None if a is None else a[1:, :2] for a in asked)
    alone = connector(features[1:, :6], None, *part)[0]
    assert torch.allclose(alone, found[1][counts[1]], atol=1e-5)
    # Everything learns.
    connector(features, mask, *asked)[counts].square().sum().backward()
    unused = [n for n, p in connector.named_parameters() if p.grad is None]
    assert [n for n in unused if "for_text" not in n] in ([], ["token_embedding.weight",
        "position_embedding.weight"])  # fmt: skip


@pytest.mark.parametrize("name", CONNECTORS)
def test_the_seed_decides_and_nothing_else_is_touched(name: str) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, same, other = (build(name, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, same[key]) for key, value in one.items())
    assert any(not torch.equal(value, other[key]) for key, value in one.items())


def test_the_number_of_tokens() -> None:
    assert [build(name).num_tokens(196) for name in ("linear", "mlp")] == [196, 196]
    queries = [name for name in CONNECTORS if name not in ("linear", "mlp")]
    assert {build(name, num_queries=7).num_tokens(196) for name in queries} == {7}


def test_operations() -> None:
    patches = 50
    assert connector_flops(build("linear"), patches) == 2 * patches * VISION * LANGUAGE
    both = 2 * patches * (VISION * LANGUAGE + LANGUAGE * LANGUAGE)
    assert connector_flops(build("mlp"), patches) == both
    queries, keys = 5, patches + 5
    layer = 2 * (
        queries * VISION * VISION  # query
        + 2 * keys * VISION * VISION  # key and value
        + 2 * queries * keys * VISION  # scores and mixing
        + queries * VISION * VISION  # output
        + 2 * queries * VISION * 4 * VISION  # feed-forward
    )
    expected = 2 * layer + 2 * queries * VISION * LANGUAGE
    assert connector_flops(build("perceiver_prefix"), patches) == expected
    assert connector_flops(build("perceiver_xattn"), patches) == expected
    asked = [connector_flops(build("instruct_qformer"), patches, num_words=n) for n in (4, 8)]
    assert connector_flops(build("qformer"), patches) < asked[0] < asked[1]


def test_what_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"'qfromer' is no connector; did you mean qformer\?"):
        build("qfromer")
    with pytest.raises(RecipeError, match=r"num_queries=0; use at least 1"):
        build("perceiver_prefix", num_queries=0)
