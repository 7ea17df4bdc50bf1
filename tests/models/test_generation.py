"""Decoding: transformers' own greedy text, exact sampling, rows that do not know of one another."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import scipy.stats
import torch

from winnow.contracts.errors import RecipeError, SetupError
from winnow.models.generation import (
    Generation,
    Sampling,
    choose_tokens,
    generate,
    left_padded,
    nucleus,
    seeded_draws,
)
from winnow.models.language_model import LanguageModel

transformers = pytest.importorskip("transformers")

WIDTH, VOCABULARY, END = 32, 40, 3


def _model(kind: str, vocabulary: int = VOCABULARY, seed: int = 4) -> LanguageModel:
    """A small model from a configuration; larger weights than usual, so that texts differ."""
    if kind == "llama":
        config = transformers.LlamaConfig(
            hidden_size=WIDTH,
            intermediate_size=48,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_hidden_layers=2,
            vocab_size=vocabulary,
            max_position_embeddings=64,
            tie_word_embeddings=True,
        )
    elif kind == "sliding":
        config = transformers.MistralConfig(
            hidden_size=WIDTH,
            intermediate_size=48,
            num_attention_heads=4,
            num_key_value_heads=4,
            num_hidden_layers=2,
            vocab_size=vocabulary,
            max_position_embeddings=64,
            sliding_window=6,
        )
    else:
        config = transformers.GPT2Config(
            n_embd=WIDTH,
            n_layer=2,
            n_head=2,
            vocab_size=vocabulary,
            n_positions=64,
            bos_token_id=1,
            eos_token_id=END,
        )
    torch.manual_seed(seed)
    network = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight *= 6 if weight.ndim > 1 else 1
    return LanguageModel(
        network=network, tokenizer=None, width=WIDTH, eos_id=END, pad_id=0, bos_id=None
    )


def _prefixes(count: int = 12, length: int = 9, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, length + 1, (count,), generator=generator)
    return torch.randn(count, length, WIDTH, generator=generator), lengths


@pytest.fixture(scope="module")
def llama() -> LanguageModel:
    return _model("llama")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "sliding"])
@pytest.mark.parametrize("padded", [True, False])
def test_greedy_is_that_of_transformers_token_for_token(kind: str, padded: bool) -> None:
    model = _model(kind)
    prefix, lengths = _prefixes()
    lengths = lengths if padded else torch.full_like(lengths, 9)
    mask = left_padded(lengths, 12, 9)
    expected = model.network.generate(  # type: ignore[operator]
        inputs_embeds=prefix,
        attention_mask=mask,
        max_new_tokens=24,
        do_sample=False,
        eos_token_id=END,
        pad_token_id=0,
    ).tolist()
    found = generate(model, prefix, mask, Sampling(24))
    cut = [row[: row.index(END) + 1] if END in row else row[:24] for row in expected]
    assert [one.tokens for one in found] == cut
    assert [one.finished for one in found] == [END in row for row in cut]
    lengths_found = {len(one.tokens) for one in found}
    assert len(lengths_found) > 2  # rows left the batch at different steps
    assert generate(model, prefix, lengths, Sampling(24)) == found


@pytest.mark.parametrize("sampling", [Sampling(20), Sampling(20, top_p=0.8, temperature=1.5)])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_log_likelihoods_are_the_models_own(kind: str, sampling: Sampling) -> None:
    """Against one pass over prefix and answer without a cache, row by row and without padding."""
    model = _model(kind)
    prefix, lengths = _prefixes()
    for row, answer in enumerate(generate(model, prefix, lengths, sampling, range(12))):
        own = prefix[row, 9 - int(lengths[row]) :][None]
        tokens = torch.tensor([answer.tokens])
        with torch.no_grad():
            inputs = torch.cat([own, model.embed(tokens)], dim=1)
            logits = model.network(inputs_embeds=inputs).logits[0]
        logs = torch.log_softmax(logits[own.shape[1] - 1 : -1], dim=1)
        expected = logs.gather(1, tokens[0, :, None])[:, 0]
        np.testing.assert_allclose(answer.log_likelihoods, expected, atol=2e-5)


def test_sampled_texts_have_the_models_distribution() -> None:
    """All texts of two tokens over five words: 4,000 draws against their exact probabilities."""
    model = _model("llama", vocabulary=5)
    with torch.no_grad():
        for weight in model.network.parameters():
            weight *= 0.5 if weight.ndim > 1 else 1
    prefix = _prefixes(1, 3)[0]
    sampling = Sampling(2, top_p=0.9, temperature=1.3)
    found = generate(model, prefix, torch.tensor([3]), sampling, range(4000), candidates=4000)
    exact = _exact_texts(model, prefix, sampling)
    counts = dict.fromkeys(exact, 0)
    for one in found:
        counts[tuple(one.tokens)] += 1
    expected = np.array(list(exact.values())) * len(found)
    assert expected.min() > 4
    assert len(exact) > 8
    assert scipy.stats.chisquare(list(counts.values()), expected).pvalue > 1e-3


def _exact_texts(
    model: LanguageModel, prefix: torch.Tensor, sampling: Sampling
) -> dict[tuple[int, ...], float]:
    exact = {}
    first = _probabilities(model, prefix, (), sampling)
    for a, p in first.items():
        if a == END:
            exact[(a,)] = p
            continue
        for b, q in _probabilities(model, prefix, (a,), sampling).items():
            exact[(a, b)] = p * q
    assert math.isclose(sum(exact.values()), 1, rel_tol=1e-5)
    return exact


def _probabilities(
    model: LanguageModel, prefix: torch.Tensor, text: tuple[int, ...], sampling: Sampling
) -> dict[int, float]:
    """The nucleus by the paper's words: the smallest set of the likeliest whose sum reaches p."""
    embedded = model.embed(torch.tensor([text], dtype=torch.long))
    with torch.no_grad():
        logits = model.network(inputs_embeds=torch.cat([prefix, embedded], 1)).logits[0, -1]
    weights = np.exp(logits.double().numpy() / sampling.temperature)
    weights /= weights.sum()
    kept: dict[int, float] = {}
    for token in np.argsort(-weights):
        if sum(kept.values()) < (sampling.top_p or 1):
            kept[int(token)] = float(weights[token])
    return {token: weight / sum(kept.values()) for token, weight in kept.items()}


def test_a_row_does_not_know_of_its_batch(llama: LanguageModel) -> None:
    prefix, lengths = _prefixes(16)
    seeds = [7, 7, 2**63, -5, *range(100, 112)]
    sampling = Sampling(20, top_p=0.95, temperature=1.2)
    whole = generate(llama, prefix, lengths, sampling, seeds)
    order = np.random.default_rng(3).permutation(16)
    mixed = generate(llama, prefix[order], lengths[order], sampling, [seeds[i] for i in order])
    alone = [
        generate(llama, prefix[i : i + 1], lengths[i : i + 1], sampling, [seeds[i]])[0]
        for i in range(16)
    ]
    assert [whole[i].tokens for i in order] == [one.tokens for one in mixed]
    assert [one.tokens for one in whole] == [one.tokens for one in alone]
    assert len({tuple(one.tokens) for one in whole}) == 16
    short = generate(llama, prefix, lengths, Sampling(4, top_p=0.95, temperature=1.2), seeds)
    assert [one.tokens for one in short] == [one.tokens[:4] for one in whole]


def test_draws_depend_on_seed_and_step_only() -> None:
    long, short = (
        seeded_draws(Sampling(50, top_p=1), [5, 9], 2),
        seeded_draws(Sampling(3, top_p=1), [9], 1),
    )
    assert long is not None
    assert short is not None
    assert long[1, :3].tolist() == short[0].tolist()
    assert len(np.unique(long)) == 100
    many = seeded_draws(Sampling(20, top_p=1), range(500), 500)
    assert many is not None
    assert scipy.stats.kstest(many.ravel(), "uniform").pvalue > 1e-3
    assert scipy.stats.kstest(many[:, 0], "uniform").pvalue > 1e-3  # seeds in a row


def test_candidates_are_the_answers_of_repeated_prefixes(llama: LanguageModel) -> None:
    prefix, lengths = _prefixes(5)
    sampling = Sampling(16, top_p=0.9, temperature=1.2)
    found = generate(llama, prefix, lengths, sampling, range(15), candidates=3)
    rows = torch.arange(5).repeat_interleave(3)
    expected = generate(llama, prefix[rows], lengths[rows], sampling, range(15))
    assert [one.tokens for one in found] == [one.tokens for one in expected]


@pytest.mark.parametrize("candidates", [1, 3])
def test_a_hook_knows_which_rows_are_left(llama: LanguageModel, candidates: int) -> None:
    """A number per prefix, added to a layer's input, is that of the right row in every pass."""
    prefix, lengths = _prefixes(8)
    sampling = Sampling(12, top_p=0.95, temperature=2.0)
    shifts = torch.linspace(-4, 4, 8)
    seeds = list(range(8 * candidates))

    def answers(model: LanguageModel, rows: slice, first: int, last: int) -> list[Generation]:
        state = {"shift": shifts[rows]}

        def look(_: object, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return (args[0] + state["shift"][:, None, None], *args[1:])

        def keep(places: torch.Tensor) -> None:
            state["shift"] = state["shift"][places]

        own, count = seeds[first:last], (last - first) // len(shifts[rows])
        layer = model.network.model.layers[1]  # type: ignore[union-attr]
        handle = layer.register_forward_pre_hook(look)
        try:
            return generate(
                model, prefix[rows], lengths[rows], sampling, own, candidates=count, step_hook=keep
            )
        finally:
            handle.remove()

    model = _ending_often(llama, answers(_endless(llama), slice(8), 0, len(seeds)))
    found = answers(model, slice(8), 0, len(seeds))
    assert len({len(one.tokens) for one in found}) > 2  # they left at different steps
    alone = [
        answers(model, slice(at // candidates, at // candidates + 1), at, at + 1)[0]
        for at in range(len(seeds))
    ]
    assert [one.tokens for one in found] == [one.tokens for one in alone]
    plain = generate(model, prefix, lengths, sampling, seeds, candidates=candidates)
    assert [one.tokens for one in plain] != [one.tokens for one in found]


def _endless(model: LanguageModel) -> LanguageModel:
    return dataclasses.replace(model, eos_id=-1)


def _ending_often(model: LanguageModel, answers: list[Generation]) -> LanguageModel:
    """The same model, ended by the token that would end these answers at the most various steps."""
    steps: dict[int, set[int]] = {}
    for one in answers:
        for token in set(one.tokens):
            steps.setdefault(token, set()).add(one.tokens.index(token))
    return dataclasses.replace(model, eos_id=max(steps, key=lambda token: len(steps[token])))


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.93, 1.0])
def test_nucleus_beyond_the_first_look(top_p: float) -> None:
    """A vocabulary larger than what is looked at first, flat and peaked rows together."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(6, 700, generator=generator) * torch.tensor(
        [[0], [0.1], [1], [2], [4], [9]]
    )
    weights = torch.softmax(logits.double(), dim=1)
    found = nucleus(weights, top_p)
    for row, kept in zip(weights, found, strict=True):
        mass = row[kept > 0].sum()
        assert torch.equal(kept[kept > 0], row[kept > 0])
        assert mass >= top_p - 1e-9
        assert mass - kept[kept > 0].min() < top_p  # without the least of them it is too little
        if (kept == 0).any():
            assert kept[kept > 0].min() >= row[kept == 0].max()


def test_a_draw_never_takes_what_is_impossible() -> None:
    logits = torch.full((2, 5), -math.inf)
    logits[:, 1:4] = 0.0
    for draw in (0.0, np.nextafter(1.0, 0.0)):
        tokens, logs = choose_tokens(logits, Sampling(1, top_p=1.0), np.array([draw, draw]))
        assert set(tokens.tolist()) <= {1, 2, 3}
        assert logs.tolist() == pytest.approx([-math.log(3)] * 2)


def test_no_rows_are_no_answers(llama: LanguageModel) -> None:
    assert generate(llama, torch.zeros(0, 4, WIDTH), torch.zeros(0, 4), Sampling(3)) == []


def test_one_token_is_cut_or_finished(llama: LanguageModel) -> None:
    prefix, lengths = _prefixes(12)
    found = generate(llama, prefix, lengths, Sampling(1))
    assert all(
        one == Generation(one.tokens, one.log_likelihoods, one.tokens == [END]) for one in found
    )
    assert {len(one.tokens) for one in found} == {1}


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([[1, 1, 0]], "pad on the left"),
        ([[0, 0, 0]], "needs a token"),
        ([[1, 0, 1]], "has a gap"),
        ([[1, 1]], r"\(1, 2\)"),
        ([0], "needs a token"),
    ],
)
def test_other_masks_are_refused(llama: LanguageModel, mask: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(llama, torch.zeros(1, 3, WIDTH), torch.tensor(mask), Sampling(3))


def test_mistakes(llama: LanguageModel) -> None:
    prefix, lengths = _prefixes(2)
    with pytest.raises(ValueError, match="2 answers, seeds: none"):
        generate(llama, prefix, lengths, Sampling(3, top_p=0.9))
    with pytest.raises(ValueError, match="4 answers, seeds: 2"):
        generate(llama, prefix, lengths, Sampling(3, top_p=0.9), [1, 2], candidates=2)
    with pytest.raises(SetupError, match="need 65 positions and the language model has 64"):
        generate(llama, prefix, lengths, Sampling(57))
    assert len(generate(llama, prefix, lengths, Sampling(56))) == 2
    with pytest.raises(RecipeError, match="top_p=0"):
        Sampling(3, top_p=0)
    with pytest.raises(RecipeError, match="max_tokens=0"):
        Sampling(0)
    with pytest.raises(RecipeError, match="temperature=0"):
        Sampling(3, top_p=0.5, temperature=0)
