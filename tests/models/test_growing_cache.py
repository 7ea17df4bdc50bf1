"""The growing cache: the same keys and values as transformers' own."""

from __future__ import annotations

import pytest
import torch

from winnow.models.growing_cache import new_cache

transformers = pytest.importorskip("transformers")


def test_it_holds_what_transformers_own_holds() -> None:
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=16, num_attention_heads=4, num_key_value_heads=2,
        num_hidden_layers=2, vocab_size=10,
    )  # fmt: skip
    network = transformers.LlamaForCausalLM(config)
    ours, theirs = new_cache(network), transformers.DynamicCache(config=config)
    assert {type(layer) for layer in ours.layers}.isdisjoint(map(type, theirs.layers))
    generator = torch.Generator().manual_seed(0)
    for length, rows in ((40, 6), (1, 6), (1, 4), (33, 8), (1, 8)):
        if ours.get_seq_length() and rows < 6:
            for cache in (ours, theirs):
                cache.batch_select_indices(torch.tensor([0, 5, 2, 4]))
        if rows == 8 and length == 33:
            for cache in (ours, theirs):
                cache.batch_repeat_interleave(2)
        for layer in (0, 1):
            keys, values = torch.randn(2, rows, 2, length, 8, generator=generator)
            for a, b in zip(
                ours.update(keys, values, layer), theirs.update(keys, values, layer), strict=True
            ):
                assert torch.equal(a, b)
        assert ours.get_seq_length() == theirs.get_seq_length()
