"""Gated layers: the plain model at first, the latest picture only, and a naive loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from winnow.contracts.errors import SetupError
from winnow.models.gated_attention import (
    GatedBlock,
    GatedBlocks,
    Media,
    decoder_layers,
    hidden_width,
    latest_image,
)

transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
START = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
NUM_TOKENS, NUM_IMAGES, NUM_QUERIES = 7, 2, 3


def network(kind: str, seed: int = 0) -> Any:
    config: Any
    if kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=3, n_head=2, **START)
    elif kind == "opt":
        config = transformers.OPTConfig(ffn_dim=24, word_embed_proj_dim=8, **SIZES, **START)
    else:
        config = transformers.LlamaConfig(intermediate_size=24, **SIZES, **START)
    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def gated(model: Any, *, every: int = 1, open_by: float = 0.0) -> GatedBlocks:
    blocks = GatedBlocks(model, heads=2, every=every, seed=3)
    for name, parameter in blocks.named_parameters():
        if name.endswith("gate"):
            torch.nn.init.constant_(parameter, open_by)
    return blocks


def tokens(seed: int = 1) -> torch.Tensor:
    return torch.randint(3, 40, (2, NUM_TOKENS), generator=torch.Generator().manual_seed(seed))


def images(seed: int = 2) -> torch.Tensor:
    shape = (2, NUM_IMAGES, NUM_QUERIES, 16)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def media(blocks: GatedBlocks, pictures: torch.Tensor, positions: list[int]) -> Media:
    valid = torch.ones(pictures.shape[:3], dtype=torch.bool)
    latest = torch.tensor([latest_image(positions, NUM_TOKENS)] * 2)
    return blocks.media(pictures, valid, latest)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
@torch.no_grad()
def test_at_first_the_logits_are_those_of_the_plain_model(kind: str, every: int) -> None:
    model, ids = network(kind), tokens()

    def cached() -> torch.Tensor:
        output = model(input_ids=ids[:, :5], use_cache=True)
        rest = model(input_ids=ids[:, 5:], past_key_values=output.past_key_values, use_cache=True)
        return torch.cat([output.logits, rest.logits], dim=1)

    plain, plain_cached = model(input_ids=ids).logits, cached()
    blocks = gated(model, every=every)
    with blocks.looking_at(media(blocks, images(), [2, 4])):
        assert torch.equal(model(input_ids=ids).logits, plain)
        assert torch.equal(cached(), plain_cached)
    assert len(blocks.blocks) == 3 // every
    for block in blocks.blocks:
        block.attention_gate.fill_(1.0)
    with blocks.looking_at(media(blocks, images(), [2, 4])):
        assert not torch.equal(model(input_ids=ids).logits, plain)


@torch.no_grad()
def test_a_block_is_the_published_formula_token_by_token() -> None:
    torch.manual_seed(0)
    block = GatedBlock(16, heads=2)
    block.attention_gate.fill_(0.7)
    block.forward_gate.fill_(-0.4)
    blocks = gated(network("llama"), open_by=0.0)
    blocks.blocks[0] = block
    hidden, pictures = torch.randn(2, NUM_TOKENS, 16), images()
    positions = [1, 4]
    valid = torch.ones(2, NUM_IMAGES, NUM_QUERIES, dtype=torch.bool)
    valid[1, 1, 2] = False
    latest = torch.tensor([latest_image(positions, NUM_TOKENS)] * 2)
    with blocks.looking_at(blocks.media(pictures, valid, latest)), blocks.ratios() as ratios:
        found = blocks.update(0, hidden)

    for row in range(2):
        for place in range(NUM_TOKENS):
            x = hidden[row, place]
            seen = [i for i, position in enumerate(positions) if position <= place]
            update = torch.zeros(16)
            if seen:
                keys = pictures[row, seen[-1]][valid[row, seen[-1]]]
                query = block.to_queries(block.attention_norm(x))
                parts = []
                for head in range(2):
                    cut = slice(8 * head, 8 * head + 8)
                    scores = (block.to_keys(keys)[:, cut] @ query[cut]) / 8**0.5
                    parts.append(scores.softmax(dim=0) @ block.to_values(keys)[:, cut])
                update = torch.tanh(torch.tensor(0.7)) * block.to_out(torch.cat(parts))
            y = x + update
            inner = torch.relu(block.widen(block.forward_norm(y))) ** 2
            expected = y + torch.tanh(torch.tensor(-0.4)) * block.narrow(inner)
            torch.testing.assert_close(found[row, place], expected)
            torch.testing.assert_close(ratios[0][row, place], update.norm() / x.norm())


@torch.no_grad()
def test_a_token_looks_at_the_latest_picture_only() -> None:
    blocks = gated(network("llama"), open_by=1.0)
    hidden, pictures = torch.randn(2, NUM_TOKENS, 16), images()

    def seen(changed: int | None) -> torch.Tensor:
        other = pictures.clone()
        if changed is not None:
            other[:, changed] += 1
        with blocks.looking_at(media(blocks, other, [2, 4])):
            return blocks.update(1, hidden)

    before, first, second = seen(None), seen(0), seen(1)
    assert torch.equal(first[:, :2], before[:, :2])
    assert not torch.isclose(first[:, 2:4], before[:, 2:4]).all(dim=-1).any()
    assert torch.equal(first[:, 4:], before[:, 4:])
    assert torch.equal(second[:, :4], before[:, :4])
    assert not torch.isclose(second[:, 4:], before[:, 4:]).all(dim=-1).any()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@torch.no_grad()
def test_influence_in_the_whole_model(kind: str) -> None:
    """Words between two pictures carry the first one on, by self-attention; nothing else does."""
    model, ids = network(kind), tokens()
    blocks = gated(model, open_by=1.0)

    def logits(pictures: torch.Tensor, positions: list[int]) -> torch.Tensor:
        with blocks.looking_at(media(blocks, pictures, positions)):
            return model(input_ids=ids).logits

    pictures = images()
    first, second = pictures.clone(), pictures.clone()
    first[:, 0] += 1
    second[:, 1] += 1
    apart = logits(pictures, [2, 4])
    assert torch.equal(logits(first, [2, 4])[:, :2], apart[:, :2])
    assert not torch.isclose(logits(first, [2, 4])[:, 2:], apart[:, 2:]).all(dim=-1).any()
    assert torch.equal(logits(second, [2, 4])[:, :4], apart[:, :4])
    assert not torch.isclose(logits(second, [2, 4])[:, 4:], apart[:, 4:]).all(dim=-1).any()
    # Without words between them nobody sees the first picture.
    together = logits(pictures, [3, 3])
    assert torch.equal(logits(first, [3, 3]), together)
    assert not torch.equal(logits(second, [3, 3]), together)


@torch.no_grad()
def test_steps_and_rows_that_leave_see_what_they_saw() -> None:
    model, ids = network("llama"), tokens()
    blocks = gated(model, open_by=1.0)
    with blocks.looking_at(media(blocks, images(), [2, 4])):
        whole = model(input_ids=ids).logits
    looked_at = media(blocks, images(), [2, 4])
    looked_at.latest = looked_at.latest[:, :5]
    with blocks.looking_at(looked_at):
        cache = model(input_ids=ids[:, :5], use_cache=True).past_key_values
        step = model(input_ids=ids[:, 5:6], past_key_values=cache, use_cache=True)
        torch.testing.assert_close(step.logits[:, 0], whole[:, 5])
        rows = torch.tensor([1])
        looked_at.keep(rows)
        cache.batch_select_indices(rows)
        step = model(input_ids=ids[1:, 6:], past_key_values=cache, use_cache=True)
        torch.testing.assert_close(step.logits[:, 0], whole[1:, 6])


@torch.no_grad()
def test_without_pictures_only_the_feed_forward_acts() -> None:
    model = network("llama")
    blocks = gated(model, open_by=1.0)
    hidden = torch.randn(2, 3, 16)
    with blocks.ratios() as ratios:
        found = blocks.update(0, hidden)
    block: Any = blocks.blocks[0]
    torch.testing.assert_close(found, hidden + block.feed_forward(hidden))
    assert torch.equal(ratios[0], torch.zeros(2, 3))
    blind = media(blocks, images(), [])
    with blocks.looking_at(blind):
        assert torch.equal(blocks.update(0, hidden), found)


def test_only_the_gates_move_first_and_the_language_model_gets_no_new_weights() -> None:
    model = network("llama")
    names = list(model.state_dict())
    blocks = gated(model)
    assert list(model.state_dict()) == names
    with blocks.looking_at(media(blocks, images(), [0, 3])):
        model.requires_grad_(False)(input_ids=tokens()).logits.square().mean().backward()
    moved = {n for n, p in blocks.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {n for n, _ in blocks.named_parameters() if n.endswith("gate")}


def test_layers_are_found_or_refused() -> None:
    for kind in ("llama", "gpt2", "opt"):
        layers = decoder_layers(network(kind))
        assert len(layers) == 3
        assert hidden_width(network(kind)) == 16
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(d_model=16, d_ff=16, num_layers=2, num_heads=2, d_kv=8, vocab_size=9)
    )
    with pytest.raises(SetupError, match=r"layers cannot be told.*found decoder\.block, enc"):
        decoder_layers(t5)
    with pytest.raises(SetupError, match="cross_every=4, but the language model has 3 layers"):
        GatedBlocks(network("llama"), heads=2, every=4, seed=0)
    with pytest.raises(SetupError, match="heads=3 does not divide the language model's width 16"):
        GatedBlocks(network("llama"), heads=3, every=1, seed=0)


def test_the_latest_picture_of_each_token() -> None:
    assert latest_image([], 3) == [-1, -1, -1]
    assert latest_image([0], 3) == [0, 0, 0]
    assert latest_image([1, 3], 5) == [-1, 0, 0, 1, 1]
    assert latest_image([2, 2], 4) == [-1, -1, 1, 1]
    assert latest_image([3, 9], 3) == [-1, -1, -1]
