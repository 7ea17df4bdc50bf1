"""Adapters: W x + (alpha / rank) B A x on every layer of the decoder, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.projector_parts import language_model
from winnow.contracts.errors import SetupError
from winnow.models.lora import (
    add_lora,
    is_merged,
    linear_names,
    lora_weights,
    merge_lora,
    weight_name,
)

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")
RANK, ALPHA = 3, 12.0
TOKENS = torch.tensor([[0, 7, 30, 9, 250]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    for kind in ("llama", "gpt2", "opt"):
        language_model(path / kind, kind)
    return path


def load(folder: Path, kind: str) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder / kind).eval()


def logits(network: Any) -> torch.Tensor:
    with torch.no_grad():
        return network(TOKENS).logits


@pytest.mark.parametrize(
    ("kind", "per_layer"), [("llama", 7), ("gpt2", 4), ("opt", 6)]
)  # llama: q, k, v, o, gate, up, down; gpt2: qkv in one, out, up, down; opt: q, k, v, out, up, down
def test_the_answers_are_those_of_weights_with_the_product_added(
    folder: Path, kind: str, per_layer: int
) -> None:
    network, plain = load(folder, kind), load(folder, kind)
    names = linear_names(network)
    assert len(names) == 2 * per_layer
    before = {name: weight.clone() for name, weight in network.named_parameters()}
    add_lora(network, rank=RANK, alpha=ALPHA, seed=4)
    assert torch.equal(logits(network), logits(plain))
    adapters = lora_weights(network)
    assert {n for n, w in network.named_parameters() if w.requires_grad} == set(adapters)
    kept = {weight_name(n): w for n, w in network.named_parameters() if n not in adapters}
    assert kept.keys() == before.keys()
    assert all(torch.equal(kept[name], weight) for name, weight in before.items())
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for weight in adapters.values():
            weight.normal_(0, 0.3)
        for name in names:
            down, up = (adapters[f"{name}.lora_{side}.default.weight"] for side in "AB")
            assert down.shape[0] == up.shape[1] == RANK
            added = ALPHA / RANK * up @ down
            layer = plain.get_submodule(name)
            layer.weight += added.T if kind == "gpt2" else added
    torch.testing.assert_close(logits(network), logits(plain), rtol=1e-4, atol=1e-4)
    assert (logits(network) - logits(load(folder, kind))).abs().max() > 0.1
    assert not is_merged(network)
    merge_lora(network)
    assert is_merged(network)
    torch.testing.assert_close(logits(network), logits(plain), rtol=1e-4, atol=1e-4)
    for name in names:
        merged = network.get_submodule(name).base_layer.weight
        torch.testing.assert_close(merged, plain.get_submodule(name).weight)


def test_the_seed_decides_the_adapters_and_leaves_the_callers_draws(folder: Path) -> None:
    def made(seed: int) -> dict[str, torch.Tensor]:
        network = load(folder, "llama")
        torch.manual_seed(11)
        add_lora(network, rank=RANK, alpha=ALPHA, seed=seed)
        assert torch.equal(torch.rand(3), expected)
        return lora_weights(network)

    with torch.random.fork_rng():
        torch.manual_seed(11)
        expected = torch.rand(3)
        one, again, other = made(1), made(1), made(2)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_adapters_twice_are_refused(folder: Path) -> None:
    network = load(folder, "llama")
    assert lora_weights(network) == {}
    add_lora(network, rank=RANK, alpha=ALPHA, seed=0)
    with pytest.raises(SetupError, match="adapters already"):
        add_lora(network, rank=RANK, alpha=ALPHA, seed=0)
