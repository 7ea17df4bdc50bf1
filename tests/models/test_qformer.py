"""The Q-Former against transformers' two, its masks by influence, and its place as a connector."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from winnow.contracts.errors import SetupError
from winnow.models.qformer import InstructQFormer, QFormer, QFormerConfig, Sight, sight_mask

Q, T, P, VOCAB = 3, 5, 7, 23
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def built(kind: type[QFormer] = QFormer, **changes: Any) -> QFormer:
    """A small Q-Former with no parameter at its initial zero or one."""
    sizes = {
        "vision_width": 12, "language_width": 20, "width": 16, "num_queries": Q, "depth": 3,
        "heads": 2, "cross_every": 2, "vocab_size": VOCAB, "max_tokens": 10,
    }  # fmt: skip
    torch.manual_seed(0)
    model = kind(QFormerConfig(**(sizes | changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def features(rows: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, P, 12, generator=torch.Generator().manual_seed(seed))


def tokens(rows: int = 2) -> torch.Tensor:
    return torch.randint(0, VOCAB, (rows, T), generator=torch.Generator().manual_seed(2))


def hf_sizes() -> dict[str, Any]:
    return {
        "vocab_size": VOCAB + 2, "hidden_size": 16, "num_hidden_layers": 3,
        "num_attention_heads": 2, "intermediate_size": 64, "encoder_hidden_size": 12,
        "cross_attention_frequency": 2, "max_position_embeddings": 10, "pad_token_id": None,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip


def copied(model: QFormer, prefix: str = "encoder.layer") -> dict[str, torch.Tensor]:
    """The blocks' weights under transformers' names."""
    parts = {
        "attention": ("attention", ("query", "key", "value")),
        "look": ("crossattention", ("query", "key", "value")),
    }
    found = {}
    for index, block in enumerate(model.blocks):
        own = block.state_dict()
        names = {}
        for ours, (theirs, heads) in parts.items():
            for head in heads:
                names[f"{ours}.{head}"] = f"{theirs}.attention.{head}"
            names[f"{ours}.output"] = f"{theirs}.output.dense"
            names[f"{ours}.norm"] = f"{theirs}.output.LayerNorm"
        for ours, theirs in (("for_text", ""), ("for_queries", "_query")):
            names[f"{ours}.inner"] = f"intermediate{theirs}.dense"
            names[f"{ours}.outer"] = f"output{theirs}.dense"
            names[f"{ours}.norm"] = f"output{theirs}.LayerNorm"
        for name, value in own.items():
            ours, _, kind = name.rpartition(".")
            found[f"{prefix}.{index}.{names[ours]}.{kind}"] = value
    return found


def loaded(reference: torch.nn.Module, weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    reference.load_state_dict(weights)
    return reference.eval()


@pytest.fixture(scope="module")
def blip2() -> tuple[QFormer, Any]:
    from transformers import Blip2QFormerConfig, Blip2QFormerModel

    model = built()
    config = Blip2QFormerConfig(**hf_sizes(), use_qformer_text_input=True)
    config._attn_implementation = "eager"
    weights = copied(model)
    weights["layernorm.weight"] = model.norm_inputs.weight
    weights["layernorm.bias"] = model.norm_inputs.bias
    return model, loaded(Blip2QFormerModel(config), weights)


def test_queries_alone_equal_transformers_blip2(blip2: tuple[QFormer, Any]) -> None:
    model, reference = blip2
    mask_BP = torch.ones(2, P, dtype=torch.bool)
    mask_BP[1, 4:] = False
    with torch.no_grad():
        expected = reference(
            query_embeds=model.queries.expand(2, -1, -1),
            encoder_hidden_states=model.norm_features(features()),
            encoder_attention_mask=mask_BP.long(),
        ).last_hidden_state
        found, text = model.encode(features(), mask_BP)
        torch.testing.assert_close(found, expected, **TOLERANCE)
        assert text.shape == (2, 0, 16)
        projected = expected @ model.to_language.weight.T + model.to_language.bias
        torch.testing.assert_close(model(features(), mask_BP), projected, **TOLERANCE)


@pytest.mark.parametrize("sight", ["both", "causal", "apart"])
def test_blocks_under_each_mask_equal_transformers_blip2(
    blip2: tuple[QFormer, Any], sight: Sight
) -> None:
    """transformers' encoder takes the additive mask; which positions it hides is tested below."""
    model, reference = blip2
    mask_BT = torch.tensor([[1] * T, [1, 1, 1, 0, 0]], dtype=torch.bool)
    start = torch.full((2, 1), VOCAB)
    words = model.token_embedding(torch.cat([start, tokens()], dim=1))
    real_BT = torch.cat([torch.ones(2, 1, dtype=torch.bool), mask_BT], dim=1)
    seen = sight_mask(sight, Q, real_BT)
    with torch.no_grad():
        text = words + model.position_embedding.weight[: T + 1]
        inputs = torch.cat([model.queries.expand(2, -1, -1), text], dim=1)
        expected = reference.encoder(
            reference.layernorm(inputs),
            attention_mask=torch.zeros(seen.shape).masked_fill(~seen, -1e9),
            encoder_hidden_states=model.norm_features(features()),
            query_length=Q,
        ).last_hidden_state
        queries, found = model.encode(features(), None, tokens(), mask_BT, sight=sight)
    torch.testing.assert_close(queries, expected[:, :Q], **TOLERANCE)
    whole = torch.cat([queries, found], dim=1)
    real_BS = torch.cat([torch.ones(2, Q, dtype=torch.bool), real_BT], dim=1)
    torch.testing.assert_close(whole[real_BS], expected[real_BS], **TOLERANCE)


def test_the_instruction_enters_as_in_transformers_instructblip() -> None:
    from transformers import InstructBlipQFormerConfig, InstructBlipQFormerModel

    model = built(InstructQFormer)
    weights = copied(model)
    for name in ("token", "position"):
        theirs = "word" if name == "token" else name
        table = getattr(model, f"{name}_embedding").weight
        weights[f"embeddings.{theirs}_embeddings.weight"] = table
    weights["embeddings.layernorm.weight"] = model.norm_inputs.weight
    weights["embeddings.layernorm.bias"] = model.norm_inputs.bias
    reference = loaded(InstructBlipQFormerModel(InstructBlipQFormerConfig(**hf_sizes())), weights)
    mask_BT = torch.tensor([[1] * T, [1, 1, 0, 0, 0]])
    ids = torch.cat([torch.full((2, 1), VOCAB), tokens()], dim=1)
    with torch.no_grad():
        expected = reference(
            input_ids=ids,
            attention_mask=torch.cat([torch.ones(2, Q + 1), mask_BT], dim=1).long(),
            query_embeds=model.queries.expand(2, -1, -1),
            encoder_hidden_states=model.norm_features(features()),
        ).last_hidden_state[:, :Q]
        expected = model.to_language(expected)
        found = model(features(), None, tokens(), mask_BT)
    torch.testing.assert_close(found, expected, **TOLERANCE)


SEES: dict[Sight, dict[str, str]] = {
    # Which positions change with the third word: queries, [CLS], words before, it, words after.
    "both": {"queries": "yes", "start": "yes", "before": "yes", "after": "yes"},
    "causal": {"queries": "no", "start": "no", "before": "no", "after": "yes"},
    "apart": {"queries": "no", "start": "yes", "before": "yes", "after": "yes"},
}


@pytest.mark.parametrize("sight", SEES)
def test_who_sees_a_text_token(sight: Sight) -> None:
    model, other = built(), tokens()
    other[:, 2] = (other[:, 2] + 1) % VOCAB
    with torch.no_grad():
        queries, text = model.encode(features(), None, tokens(), sight=sight)
        new_queries, new_text = model.encode(features(), None, other, sight=sight)
    changed_BQ = ((queries - new_queries).abs() > 1e-6).any(dim=-1)
    changed_BT = ((text - new_text).abs() > 1e-6).any(dim=-1)
    found = {
        "queries": changed_BQ, "start": changed_BT[:, :1], "before": changed_BT[:, 1:3],
        "after": changed_BT[:, 3:],
    }  # fmt: skip
    assert {k: {True: "yes", False: "no"}[bool(v.all())] for k, v in found.items()} == SEES[sight]
    assert all(bool(v.any()) == bool(v.all()) for v in found.values())


@pytest.mark.parametrize(("sight", "reaches"), [("both", True), ("causal", True), ("apart", False)])
def test_whether_the_image_reaches_the_text(sight: Sight, reaches: bool) -> None:
    model = built()
    with torch.no_grad():
        queries, text = model.encode(features(), None, tokens(), sight=sight)
        other_queries, other_text = model.encode(features(seed=9), None, tokens(), sight=sight)
    assert ((queries - other_queries).abs() > 1e-4).any(dim=-1).all()
    changed = ((text - other_text).abs() > 1e-6).any(dim=-1)
    assert bool(changed.all()) == bool(changed.any()) == reaches


@pytest.mark.parametrize("sight", SEES)
def test_the_mask_equals_a_plain_loop(sight: Sight) -> None:
    real = [True, True, False, True]
    mask = sight_mask(sight, 2, torch.tensor([real]))
    assert mask.shape == (1, 1, 6, 6)
    for row, column in itertools.product(range(6), range(6)):
        row_text, column_text = row >= 2, column >= 2
        if sight == "both":
            sees = True
        elif sight == "apart":
            sees = row_text == column_text
        else:
            sees = not column_text or (row_text and column <= row)
        sees = sees and (not column_text or real[column - 2])
        assert bool(mask[0, 0, row, column]) == sees, (row, column)


@pytest.mark.parametrize("sight", SEES)
def test_padding_changes_nothing(sight: Sight) -> None:
    model = built()
    mask_BT = torch.tensor([[1, 1, 1, 0, 0]] * 2)
    mask_BP = torch.tensor([[1] * 5 + [0] * 2] * 2)
    spoiled = features()
    spoiled[:, 5:] = 100.0
    with torch.no_grad():
        short = model.encode(features()[:, :5], None, tokens()[:, :3], sight=sight)
        long = model.encode(spoiled, mask_BP, tokens(), mask_BT, sight=sight)
        left_tokens, left_mask = tokens().roll(2, dims=1), mask_BT.roll(2, dims=1)
        left = model.encode(spoiled, mask_BP, left_tokens, left_mask, sight=sight)
    torch.testing.assert_close(long[0], short[0], **TOLERANCE)
    torch.testing.assert_close(long[1][:, :4], short[1], **TOLERANCE)
    torch.testing.assert_close(left[0], short[0], **TOLERANCE)
    torch.testing.assert_close(left[1][:, 3:], short[1][:, 1:], **TOLERANCE)


def test_only_every_nth_block_looks_at_the_image() -> None:
    assert [b.look is not None for b in built().blocks] == [True, False, True]
    assert [b.look is not None for b in built(cross_every=1).blocks] == [True, True, True]
    assert [b.look is not None for b in built(cross_every=3).blocks] == [True, False, False]


def test_the_start_token_makes_a_difference() -> None:
    model = built()
    with torch.no_grad():
        a, _ = model.encode(features(), None, tokens(), start="class")
        b, _ = model.encode(features(), None, tokens(), start="decode")
    assert (a - b).abs().max() > 1e-3


def test_a_long_text_is_cut() -> None:
    model = built()
    long = tokens().repeat(1, 4)
    with torch.no_grad():
        _, text = model.encode(features(), None, long)
        _, cut = model.encode(features(), None, long[:, :9])
    assert text.shape == (2, 10, 16)
    torch.testing.assert_close(text, cut)


def test_only_instructblip_reads_the_instruction() -> None:
    plain, asked = built(), built(InstructQFormer)
    other = (tokens() + 1) % VOCAB
    with torch.no_grad():
        assert torch.equal(plain(features(), None, tokens()), plain(features(), None, other))
        first, second = asked(features(), None, tokens()), asked(features(), None, other)
    assert first.shape == (2, Q, 20)
    assert ((first - second).abs() > 1e-4).any(dim=-1).all()
    assert (plain.takes_instruction, asked.takes_instruction) == (False, True)
    assert (plain.is_prefix, asked.is_prefix) == (True, True)
    assert (plain.name, asked.name) == ("qformer", "instruct_qformer")
    assert plain.num_tokens(196) == asked.num_tokens(49) == Q


def test_the_width_follows_the_language_model_and_the_heads() -> None:
    config = QFormerConfig(vision_width=8, language_width=18, heads=4)
    assert config.hidden == 20
    assert QFormer(config)(torch.zeros(1, 4, 8)).shape == (1, 32, 18)


def test_what_cannot_be_built() -> None:
    with pytest.raises(SetupError, match="width=15 is not a multiple of heads=2"):
        built(width=15)
    with pytest.raises(SetupError, match="give the tokenizer's vocab_size"):
        built(InstructQFormer, vocab_size=0)
    with pytest.raises(SetupError, match="this Q-Former has no text"):
        built(vocab_size=0).encode(features(), None, tokens())


@pytest.mark.parametrize("name", ["qformer", "instruct_qformer"])
def test_it_is_built_by_name_and_seed(name: str) -> None:
    from winnow.models.connectors import build_connector, connector_flops

    sizes = {
        "vision_width": 12, "language_width": 20, "num_queries": Q, "depth": 2, "heads": 4,
        "vocab_size": VOCAB,
    }  # fmt: skip
    first, again, other = (build_connector(name, **sizes, seed=s) for s in (1, 1, 2))
    assert first.name == name
    with torch.no_grad():
        found = [c(features(), None, tokens()) for c in (first, again, other)]
    assert found[0].shape == (2, Q, 20)
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])
    # Each block's self- and cross-attention, and the patches' keys and values, at the very least.
    assert connector_flops(first, P) > 2 * 2 * 2 * P * 12 * 20


def test_it_computes_in_half_precision() -> None:
    model = built(InstructQFormer)
    with torch.no_grad():
        whole = model(features(), None, tokens())
        half = model.to(torch.bfloat16)(features().bfloat16(), None, tokens())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), whole, atol=0.1, rtol=0.1)
