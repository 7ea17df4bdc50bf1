"""Projector models against naive loops without padding, for every connector."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.models.projector_parts import (
    CONNECTORS,
    build,
    language_model,
    open_gates,
    pictures,
    tower,
)
from winnow.contracts.errors import SetupError
from winnow.models.conversation import Turn
from winnow.models.generation import Sampling
from winnow.models.lora import lora_weights
from winnow.models.projector import Interleaved, Projector, ProjectorConfig, build_projector
from winnow.models.projector_batch import pack_conversation, pack_interleaved

pytest.importorskip("transformers")
pytest.importorskip("peft")

PROMPTS = ["Describe the picture.", "How many?", "Is there a bird in it?"]
ANSWERS = ["a red cat beside two blue dogs", "two", " no, none"]
CONVERSATIONS = [
    [Turn(PROMPTS[0], ANSWERS[0])],
    [Turn(PROMPTS[1], ANSWERS[1]), Turn(PROMPTS[2], ANSWERS[2])],
    [Turn(PROMPTS[2], ANSWERS[2])],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parts")
    tower(path / "tower")
    language_model(path / "lm")
    for kind in ("gpt2", "opt"):
        language_model(path / kind, kind, bos=kind == "opt")
    return path


@pytest.fixture(scope="module")
def models(folder: Path) -> dict[str, Projector]:
    """One per connector, with open gates; no test may change them."""
    found = {name: build(folder, name) for name in CONNECTORS}
    for projector in found.values():
        open_gates(projector, 0.5)
    return found


def ids(projector: Projector, text: str) -> list[int]:
    return list(projector.language.tokenizer(text, add_special_tokens=False)["input_ids"])


def logits_of(
    projector: Projector, parts: list[torch.Tensor | list[int]]
) -> tuple[torch.Tensor, list[int]]:
    """One row without padding: image tokens (Q, L) and token lists as they stand. Returns logits
    (T, V) and the position in them of each text token. With gated layers a token sees the latest
    picture before the token that it predicts."""
    language: Any = projector.language
    prefix = projector.gated is None
    embedded, latest, places, count, seen = [], [], [], 0, list[torch.Tensor]()
    for part in parts:
        if isinstance(part, torch.Tensor):
            seen.append(part)
            latest[-1:] = [len(seen) - 1] * len(latest[-1:])
            if prefix:
                embedded.append(part)
                count += len(part)
            continue
        embedded.append(language.embed(torch.tensor(part)))
        latest += [len(seen) - 1] * len(part)
        places += range(count, count + len(part))
        count += len(part)
    row = torch.cat(embedded)[None]
    if prefix or not seen:
        return projector.network(inputs_embeds=row).logits[0], places
    assert projector.gated is not None
    stacked = torch.stack(seen)[None]
    valid = torch.ones(stacked.shape[:3], dtype=torch.bool)
    with projector.gated.looking_at(projector.gated.media(stacked, valid, torch.tensor([latest]))):
        return projector.network(inputs_embeds=row).logits[0], places


def image_tokens(projector: Projector, picture: Any, prompt: str) -> torch.Tensor:
    """The connector on one picture alone."""
    features = projector.tower(torch.from_numpy(picture)).flatten(0, 1)[None]
    asked = ()
    if projector.connector.takes_instruction:
        asked = (torch.tensor([ids(projector, prompt)]),)
    return projector.connector(features, None, *asked)[0]


def naive_row(projector: Projector, picture: Any, turns: list[Turn]) -> list[torch.Tensor]:
    """Log-likelihoods of the answers' tokens and their ends, of one conversation alone."""
    language = projector.language
    parts: list[torch.Tensor | list[int]] = []
    if picture is not None:
        parts.append(image_tokens(projector, picture, " ".join(turn.prompt for turn in turns)))
    text, counted = ([] if language.bos_id is None else [language.bos_id]), list[int]()
    for turn in turns:
        text += ids(projector, f"USER: {turn.prompt.strip()} ASSISTANT:")
        answer = [*ids(projector, f" {turn.answer.strip()}"), language.eos_id]
        counted += range(len(text), len(text) + len(answer))
        text += answer
    logits, places = logits_of(projector, [*parts, text])
    logs = logits.log_softmax(dim=-1)
    return [logs[places[index] - 1, text[index]] for index in counted]


@pytest.mark.parametrize("name", CONNECTORS)
def test_loss_and_gradients_are_those_of_a_loop_over_rows(
    models: dict[str, Projector], name: str
) -> None:
    projector = models[name]
    shown = [*pictures(2), None]
    learned = projector.set_trainable("connector")
    projector.train()
    features, mask = projector.features(shown)
    loss, count = projector.loss(features, mask, CONVERSATIONS)
    gradients = torch.autograd.grad(loss, learned, allow_unused=True)
    rows = [naive_row(projector, p, t) for p, t in zip(shown, CONVERSATIONS, strict=True)]
    every = [log for row in rows for log in row]
    expected = -torch.stack(every).mean()
    expected_gradients = torch.autograd.grad(expected, learned, allow_unused=True)
    projector.eval()
    assert count == len(every)
    torch.testing.assert_close(loss, expected)
    some = False
    for got, wanted in zip(gradients, expected_gradients, strict=True):
        assert (got is None) == (wanted is None)
        if got is not None:
            torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-5)
            some = some or bool(got.abs().max() > 1e-4)
    assert some


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_other_language_models(folder: Path, kind: str) -> None:
    for name in ("mlp", "perceiver_xattn"):
        config = ProjectorConfig(
            tower=str(folder / "tower"), language_model=str(folder / kind), connector=name,
            num_queries=4, depth=1, heads=2,
        )  # fmt: skip
        projector = build_projector(config, seed=1, device="cpu")
        open_gates(projector)
        shown = [*pictures(2), None]
        with torch.no_grad():
            loss, _ = projector.loss(*projector.features(shown), CONVERSATIONS)
            rows = [naive_row(projector, p, t) for p, t in zip(shown, CONVERSATIONS, strict=True)]
            torch.testing.assert_close(loss, -torch.stack([x for row in rows for x in row]).mean())


def test_only_answers_count(models: dict[str, Projector]) -> None:
    """Other targets at the prompts, the padding and the picture: the same loss and gradients."""
    projector = models["mlp"]
    learned = projector.set_trainable("connector")
    images = projector.image_tokens(*projector.features(pictures(3)), num_rows=3)
    language = projector.language
    rows = [
        pack_conversation(
            turns, projector.encode, bos=language.bos_id, eos=language.eos_id, has_image=True
        )
        for turns in CONVERSATIONS
    ]
    prepared = projector.prepare(rows, [[0], [1], [2]], images, left=False)

    def measured() -> tuple[torch.Tensor, ...]:
        logits, targets = projector.targets(prepared)
        loss = torch.nn.functional.cross_entropy(logits, targets)
        return loss, *torch.autograd.grad(loss, learned, retain_graph=True)

    before = measured()
    prepared.layout.slots[~prepared.layout.counts] = 7
    for old, new in zip(before, measured(), strict=True):
        assert torch.equal(old, new)
    ends = prepared.layout.slots[prepared.layout.counts] == language.eos_id
    assert ends.sum() == sum(map(len, CONVERSATIONS))
    prepared.layout.slots[prepared.layout.counts] = 7
    assert measured()[0] != before[0]


@pytest.mark.parametrize("name", ["linear", "perceiver_xattn"])
def test_texts_alone_are_the_plain_language_models(folder: Path, name: str) -> None:
    """Against transformers' own loss; the gates of the gated one are shut."""
    projector = build(folder, name)
    learned = projector.set_trainable("connector")
    loss, count = projector.loss(None, None, CONVERSATIONS[2:])
    language: Any = projector.language
    asked = [language.bos_id, *ids(projector, f"USER: {PROMPTS[2]} ASSISTANT:")]
    said = [*ids(projector, " no, none"), language.eos_id]
    labels = torch.tensor([[-100] * len(asked) + said])
    expected = projector.network(input_ids=torch.tensor([asked + said]), labels=labels).loss
    torch.testing.assert_close(loss, expected)
    assert count == len(said)
    loss.backward()  # nothing of a connector took part, and yet a step can be made
    assert all(p.grad is not None for p in learned if name == "linear")
    features, mask = projector.features([None])
    torch.testing.assert_close(projector.loss(features, mask, CONVERSATIONS[2:])[0], expected)
    nothing, none = projector.loss(None, None, [[]])
    assert (float(nothing.detach()), none) == (0.0, 0)


@pytest.mark.parametrize("name", CONNECTORS)
def test_generation_is_a_greedy_loop_over_single_rows(
    models: dict[str, Projector], name: str
) -> None:
    """Rows of different lengths that end at different steps, pictures apart from rows without."""
    projector = models[name]
    shown = [*pictures(3), None]
    prompts = [*PROMPTS, PROMPTS[0]]
    language = projector.language
    steps = 5

    def greedy(picture: Any, prompt: str, end: int) -> tuple[list[int], float]:
        start = [language.bos_id, *ids(projector, f"USER: {prompt} ASSISTANT:")]
        parts = [] if picture is None else [image_tokens(projector, picture, prompt)]
        tokens, total = list[int](), 0.0
        while len(tokens) < steps and end not in tokens:
            logs = logits_of(projector, [*parts, start + tokens])[0][-1].log_softmax(dim=-1)
            tokens.append(int(logs.argmax()))
            total += float(logs.max())
        return tokens, total

    with torch.no_grad():
        first = [greedy(p, q, -1)[0] for p, q in zip(shown, prompts, strict=True)]
        end = first[1][1]  # a token that ends one row early
        expected = [greedy(p, q, end) for p, q in zip(shown, prompts, strict=True)]
    projector.language = dataclasses.replace(language, eos_id=end)
    try:
        found = projector.generate(*projector.features(shown), prompts, Sampling(max_tokens=steps))
    finally:
        projector.language = language
    for answer, (tokens, total) in zip(found, expected, strict=True):
        assert answer.num_tokens == len(tokens)
        assert answer.finished == (tokens[-1] == end)
        assert answer.text == language.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        assert answer.log_likelihood == pytest.approx(total, rel=1e-4)
    assert min(a.num_tokens for a in found) <= 2


@pytest.mark.parametrize("name", ["qformer", "perceiver_xattn"])
def test_sampled_candidates_follow_their_seeds(models: dict[str, Projector], name: str) -> None:
    projector = models[name]
    features, mask = projector.features(pictures(3))
    sampling = Sampling(max_tokens=6, top_p=0.9)
    language = projector.language
    likely = projector.generate(features, mask, PROMPTS, sampling, range(3))
    end = ids(projector, likely[0].text[-1:] or "a")[0]
    projector.language = dataclasses.replace(language, eos_id=end)
    try:
        both = projector.generate(features, mask, PROMPTS, sampling, range(6), candidates=2)
        order = [2, 0]
        some = projector.generate(
            features[order], mask[order], [PROMPTS[i] for i in order], sampling, [4, 1]
        )
    finally:
        projector.language = language
    assert len({answer.text for answer in both}) > 3
    assert [answer.text for answer in some] == [both[4].text, both[1].text]


@pytest.mark.parametrize("name", CONNECTORS)
def test_token_log_likelihoods_and_offsets(models: dict[str, Projector], name: str) -> None:
    projector = models[name]
    shown = [*pictures(2), None]
    found = projector.token_log_likelihoods(*projector.features(shown), PROMPTS, ANSWERS)
    for index, (picture, logs) in enumerate(zip(shown, found, strict=True)):
        with torch.no_grad():
            expected = naive_row(projector, picture, [Turn(PROMPTS[index], ANSWERS[index])])
        assert logs.dtype == np.float64
        np.testing.assert_allclose(logs, [float(x) for x in expected[:-1]], rtol=1e-4)
        offsets = projector.tokens(ANSWERS[index])
        assert len(offsets) == len(logs)
        assert "".join(ANSWERS[index][a:b] for a, b in offsets) == ANSWERS[index].strip()
    swapped = projector.token_log_likelihoods(
        *projector.features([shown[1], shown[0], None]), PROMPTS, ANSWERS
    )
    assert not np.allclose(swapped[0], found[0], rtol=1e-5)
    np.testing.assert_allclose(swapped[2], found[2], rtol=1e-5)


def test_only_instructed_connectors_read_the_prompt(models: dict[str, Projector]) -> None:
    for name, projector in models.items():
        features, mask = projector.features(pictures(1) * 2)
        tokens = projector.image_tokens(
            features, mask, num_rows=2, instructions=["How many dogs?", "Is there a cat?"]
        ).tokens
        assert torch.allclose(tokens[0], tokens[1], atol=1e-6) == (name != "instruct_qformer")


@pytest.mark.parametrize("name", ["mlp", "qformer", "perceiver_prefix", "perceiver_xattn"])
def test_pictures_of_several_tiles_beside_others(folder: Path, name: str) -> None:
    projector = build(folder, name, max_tiles=2)
    open_gates(projector)
    shown = [*pictures(1, tiles=3), *pictures(1, seed=5), None]
    found = projector.token_log_likelihoods(*projector.features(shown), PROMPTS, ANSWERS)
    for index, picture in enumerate(shown):
        alone = projector.token_log_likelihoods(
            *projector.features([picture]), PROMPTS[index : index + 1], ANSWERS[index : index + 1]
        )
        np.testing.assert_allclose(found[index], alone[0], rtol=1e-4)
    facts = projector.facts()
    assert facts["image_tokens"] == (3 * 16 if name == "mlp" else 4)


@pytest.mark.parametrize("name", ["mlp", "perceiver_xattn"])
def test_interleaved_loss_is_that_of_a_loop(models: dict[str, Projector], name: str) -> None:
    projector = models[name]
    rows = [
        Interleaved(parts=(0, "a red cat", 1, "two dogs", 0, "one")),
        Interleaved(parts=("a bird", 0, "none")),
        Interleaved(parts=("no picture here",)),
    ]
    shown = pictures(3)
    loss, count = projector.interleaved_loss(*projector.features(shown), rows)
    bos, eos = projector.language.bos_id, projector.language.eos_id
    first, second, third = (image_tokens(projector, picture, "") for picture in shown)
    cat, dogs, one = (ids(projector, f" {t}") + [eos] for t in ("a red cat", "two dogs", "one"))
    bird, none, alone = (
        ids(projector, f" {t}") + [eos] for t in ("a bird", "none", "no picture here")
    )
    every = list[torch.Tensor]()
    whole: list[list[torch.Tensor | list[int]]] = [
        [[bos], first, cat, second, dogs, first, one], [[bos], bird, third, none], [[bos], alone]
    ]  # fmt: skip
    for parts in whole:
        text = [token for part in parts if isinstance(part, list) for token in part]
        logits, places = logits_of(projector, parts)
        logs = logits.log_softmax(dim=-1)
        every += [logs[places[i] - 1, text[i]] for i in range(1, len(text))]
    assert count == len(every)
    torch.testing.assert_close(loss, -torch.stack(every).mean())
    with pytest.raises(SetupError, match="have 3 pictures together, but features of 2"):
        projector.interleaved_loss(*projector.features(shown[:2]), rows)


@torch.no_grad()
def test_words_behind_a_picture_are_predicted_from_it_and_from_no_other(folder: Path) -> None:
    """Self-attention is shut, so that a logit moves with the one picture its token looks at."""
    projector = build(folder, "perceiver_xattn")
    open_gates(projector)
    network: Any = projector.network
    for layer in network.model.layers:
        layer.self_attn.o_proj.weight.zero_()
    row = Interleaved(parts=(0, "a red cat", 1, "two dogs"))
    encode, language = projector.encode, projector.language
    packed = pack_interleaved(row, encode, bos=language.bos_id, eos=language.eos_id)
    shown, others = pictures(2), pictures(2, seed=9)

    def logits(first: Any, second: Any) -> torch.Tensor:
        features, mask = projector.features([first, second])
        images = projector.image_tokens(features, mask, num_rows=2)
        prepared = projector.prepare([packed], [[0, 1]], images, left=False)
        return projector.targets(prepared)[0]

    before = logits(*shown)
    by_first = (logits(others[0], shown[1]) - before).abs().amax(dim=1)
    by_second = (logits(shown[0], others[1]) - before).abs().amax(dim=1)
    cat = len(ids(projector, " a red cat")) + 1  # and its end
    assert len(before) == cat + len(ids(projector, " two dogs")) + 1
    assert by_first[:cat].min() > 1e-3
    assert by_second[cat:].min() > 1e-3
    assert by_first[cat:].max() == by_second[:cat].max() == 0


@pytest.mark.parametrize(
    ("name", "what"),
    [(name, "connector") for name in CONNECTORS]
    + [(n, w) for n in ("mlp", "perceiver_xattn") for w in ("connector+lm", "connector+lora")],
)
def test_what_learns_and_what_stays(folder: Path, name: str, what: Any) -> None:
    projector = build(folder, name)
    learned = projector.set_trainable(what)
    before = {key: value.clone() for key, value in projector.state_dict().items()}
    optimizer = torch.optim.SGD(learned, lr=1.0)
    features, mask = projector.train().features(pictures(3))
    for _ in range(2):  # gates, and one side of the adapters, have to leave 0 first
        optimizer.zero_grad()
        projector.loss(features, mask, CONVERSATIONS)[0].backward()
        optimizer.step()
    assert not projector.tower.training
    assert projector.network.training == (what != "connector")
    after = projector.state_dict()
    moved = {key for key, value in before.items() if not torch.equal(after[key], value)}
    kinds = {
        "lora" if ".lora_" in key else {"network": "lm", "gated": "connector"}.get(part, part)
        for key in moved
        for part in [key.split(".")[0]]
    }
    assert kinds == set(what.split("+"))
    answers = projector.eval().generate(features, mask, PROMPTS, Sampling(max_tokens=3))
    assert all(np.isfinite(answer.log_likelihood) for answer in answers)
    facts = projector.facts()
    assert facts["trained_parameters"] == sum(p.numel() for p in learned)
    assert facts["parameters"] == sum(p.numel() for p in projector.parameters())
    # Going on with less keeps in mind what was trained before.
    assert set(projector.set_trainable("connector")) < {*learned} or what == "connector"
    assert projector.facts() == facts
    with pytest.raises(SetupError, match=r"set_trainable\('lm'\): use one of connector, "):
        projector.set_trainable("lm")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["lm", "gpt2"])
def test_merged_adapters_answer_as_before(folder: Path, kind: str) -> None:
    config = ProjectorConfig(
        tower=str(folder / "tower"), language_model=str(folder / kind), connector="linear"
    )
    projector = build_projector(config, seed=0, device="cpu")
    features, mask = projector.features(pictures(3))

    def logs() -> np.ndarray:
        return np.concatenate(projector.token_log_likelihoods(features, mask, PROMPTS, ANSWERS))

    plain = logs()
    projector.set_trainable("connector+lora")
    np.testing.assert_array_equal(logs(), plain)
    adapters = lora_weights(projector.network)
    linear_layers = {"lm": 7, "gpt2": 4}[kind] * 2
    assert len(adapters) == 2 * linear_layers
    with torch.no_grad():
        for index, weight in enumerate(adapters.values()):
            weight.copy_(torch.randn(weight.shape, generator=torch.manual_seed(index)) / 10)
    unmerged = logs()
    assert not np.allclose(unmerged, plain, rtol=1e-2)
    projector.merge_lora()
    np.testing.assert_allclose(logs(), unmerged, rtol=1e-3, atol=1e-4)


def test_attention_mass_is_the_share_on_the_image_tokens(models: dict[str, Projector]) -> None:
    projector = models["perceiver_prefix"]
    shown = [*pictures(2), None]
    before = projector.network.config._attn_implementation
    found = projector.use_of_image(*projector.features(shown), PROMPTS, ANSWERS)
    assert projector.network.config._attn_implementation == before != "eager"
    assert projector.use_kind == "attention_mass"
    prefix = image_tokens(projector, shown[0], "")
    asked = [projector.language.bos_id, *ids(projector, f"USER: {PROMPTS[0]} ASSISTANT:")]
    said = ids(projector, f" {ANSWERS[0]}")
    row = torch.cat([prefix, projector.language.embed(torch.tensor(asked + said))])[None]
    network: Any = projector.network
    network.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = network(inputs_embeds=row, output_attentions=True).attentions
    network.set_attn_implementation(before)
    first = len(prefix) + len(asked) - 1
    expected = [
        np.mean([[float(head[t, : len(prefix)].sum()) for head in a[0]] for a in attentions])
        for t in range(first, first + len(said))
    ]
    np.testing.assert_allclose(found[0], expected, rtol=1e-4)
    assert (found[2] == 0).all()


def test_gate_ratio_grows_with_the_gates(folder: Path) -> None:
    projector = build(folder, "perceiver_xattn", cross_every=2)
    features, mask = projector.features([*pictures(2), None])
    shut = projector.use_of_image(features, mask, PROMPTS, ANSWERS)
    assert projector.use_kind == "gate_ratio"
    assert all((values == 0).all() for values in shut)
    open_gates(projector, 0.1)
    ajar = projector.use_of_image(features, mask, PROMPTS, ANSWERS)
    open_gates(projector, 0.2)
    wide = projector.use_of_image(features, mask, PROMPTS, ANSWERS)
    # One block: the ratio is exactly in proportion to tanh(gate).
    np.testing.assert_allclose(wide[0], ajar[0] * np.tanh(0.2) / np.tanh(0.1), rtol=1e-4)
    assert (ajar[0] > 0).all()
    assert (wide[2] == 0).all()
    assert [len(v) for v in wide] == [len(projector.tokens(a)) for a in ANSWERS]


def test_operations_of_a_picture_counted_by_hand(models: dict[str, Projector]) -> None:
    projector = models["linear"]
    tokens, width, inner = 16, 32, 48
    attention = 2 * tokens * width * (2 * width + 2 * width // 2) + 2 * 2 * tokens**2 * width
    layer = attention + 3 * 2 * tokens * width * inner
    connector = 2 * tokens * projector.tower.width * width
    expected = projector.tower.flops() + connector + 2 * layer
    rotary = 2 * tokens * (width // 4 // 2)  # a matrix product in some versions of transformers
    assert projector.facts()["flops_per_image"] in (expected, expected + rotary)
    gated = models["perceiver_xattn"]
    assert gated.gated is not None
    pairs = len(gated.gated.blocks) * 2 * (2 * 4 * width * width)
    perceiver = gated.facts()["flops_per_image"] - gated.tower.flops() - pairs
    prefix = models["perceiver_prefix"].facts()["flops_per_image"] - gated.tower.flops()
    assert 0 < perceiver < prefix


def test_a_text_behind_the_context_is_cut(models: dict[str, Projector], folder: Path) -> None:
    projector = models["linear"]
    features, mask = projector.features(pictures(1))
    long = "dogs " * 200
    logs = projector.token_log_likelihoods(features, mask, ["Many?"], [long])[0]
    assert len(logs) == len(projector.tokens(long))
    context = projector.language.context
    asked = 1 + len(ids(projector, "USER: Many? ASSISTANT:"))
    assert np.isfinite(logs).sum() == context - 16 - asked
    assert np.isnan(logs[context - 16 - asked :]).all()
    loss, count = projector.loss(features, mask, [[Turn("Many?", long)]])
    assert count == context - 16 - asked
    assert torch.isfinite(loss)
    short = build(folder, "linear", max_text_tokens=20)
    assert short.loss(features, mask, [[Turn("Many?", long)]])[1] == 20 - asked
    with pytest.raises(SetupError, match="a picture needs 256 tokens and .* has 160 positions"):
        build(folder, "linear", max_tiles=15)
