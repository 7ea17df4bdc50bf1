"""The first stage's losses against plain loops, and that they teach what they are for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from winnow.contracts.errors import SetupError
from winnow.models.qformer import QFormer, QFormerConfig
from winnow.models.qformer_losses import (
    FirstStage,
    contrast_loss,
    draw_negatives,
    equal_texts,
    similarities,
)

VOCAB, P, V = 11, 4, 8


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are slower on several, and much slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def built(**changes: Any) -> FirstStage:
    sizes = {
        "vision_width": V, "language_width": 12, "width": 16, "num_queries": 3, "depth": 2,
        "heads": 2, "vocab_size": VOCAB, "max_tokens": 8,
    }  # fmt: skip
    torch.manual_seed(0)
    stage = FirstStage(QFormer(QFormerConfig(**(sizes | changes))), embedding_width=6).eval()
    with torch.no_grad():
        for parameter in stage.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return stage


def pairs(captions: list[list[int]]) -> tuple[torch.Tensor, None, torch.Tensor, torch.Tensor]:
    """Random images, and captions padded at the right."""
    rows = len(captions)
    images = torch.randn(rows, P, V, generator=torch.Generator().manual_seed(5))
    tokens = torch.zeros(rows, max(map(len, captions)), dtype=torch.long)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    for row, words in enumerate(captions):
        tokens[row, : len(words)] = torch.tensor(words)
        mask[row, : len(words)] = True
    return images, None, tokens, mask


FOUR = [[1, 2, 3], [4, 5], [1, 2, 3], [6, 0]]


def test_equal_texts() -> None:
    _, _, tokens, mask = pairs([*FOUR, [6]])
    expected = torch.eye(5, dtype=torch.bool)
    expected[0, 2] = expected[2, 0] = True
    assert torch.equal(equal_texts(tokens, mask), expected)  # [6, 0] is not [6] and its padding


@torch.no_grad()
def test_similarity_is_that_of_the_best_query_of_each_image_alone() -> None:
    stage, (images, _, tokens, mask) = built(), pairs(FOUR)
    found = stage.similarity(images, None, tokens, mask)
    for i, image in enumerate(images):
        for j, words in enumerate(FOUR):
            queries, text = stage.qformer.encode(
                image[None], None, torch.tensor([words]), sight="apart"
            )
            word = stage.text_projection(text[0, 0])
            cosines = [
                float(torch.dot(v, word) / (v.norm() * word.norm()))
                for v in stage.image_projection(queries[0])
            ]
            assert float(found[i, j]) == pytest.approx(max(cosines), abs=1e-5)


def test_contrast_equals_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(3)
    queries = torch.nn.functional.normalize(torch.randn(4, 3, 6, generator=generator), dim=-1)
    texts = torch.nn.functional.normalize(torch.randn(4, 6, generator=generator), dim=-1)
    similarity, scale = similarities(queries, texts), 7.0
    equal = torch.eye(4, dtype=torch.bool)
    equal[0, 2] = equal[2, 0] = True
    total = 0.0
    for i in range(4):
        others = [j for j in range(4) if j == i or not equal[i, j]]
        to_text = [max(float(q @ texts[j]) for q in queries[i]) * scale for j in others]
        to_image = [max(float(q @ texts[i]) for q in queries[j]) * scale for j in others]
        own = others.index(i)
        for logits in (to_text, to_image):
            total += math.log(sum(math.exp(v) for v in logits)) - logits[own]
    found = contrast_loss(similarity, torch.tensor(scale), equal)
    assert float(found) == pytest.approx(total / 8, abs=1e-5)


def test_hard_negatives_are_drawn_as_often_as_their_softmax_says() -> None:
    logits = torch.tensor([[9.0, 1.0, 0.0, 2.0], [0.0] * 4, [0.0] * 4, [0.0] * 4])
    equal = torch.eye(4, dtype=torch.bool)
    equal[1, 3] = equal[3, 1] = True
    draws = [draw_negatives(logits, equal, seed=seed).tolist() for seed in range(3000)]
    first = Counter(row[0] for row in draws)
    weights = {j: math.exp(logits[0, j]) for j in (1, 2, 3)}
    for column, weight in weights.items():
        chance = weight / sum(weights.values())
        error = 4 * math.sqrt(chance * (1 - chance) / 3000)
        assert first[column] / 3000 == pytest.approx(chance, abs=error)
    assert first[0] == 0
    assert {row[1] for row in draws} == {0, 2}
    assert {row[3] for row in draws} == {0, 2}
    assert draws[7] == draw_negatives(logits, equal, seed=7).tolist()


@torch.no_grad()
def test_there_is_no_negative_where_every_caption_is_equal() -> None:
    nothing = torch.zeros(3, 3)
    assert draw_negatives(nothing, torch.ones(3, 3, dtype=torch.bool), seed=0).tolist() == [-1] * 3
    losses = built()(*pairs([[1, 2]] * 3), seed=0)
    assert all(torch.isfinite(v) for v in losses.values())
    assert float(losses["itc"]) == 0.0


def _match_by_loop(stage: FirstStage, drawn: list[tuple[int, int]]) -> float:
    images, _, _, _ = pairs(FOUR)
    total = 0.0
    for image, text in drawn:
        queries, _ = stage.qformer.encode(images[image][None], None, torch.tensor([FOUR[text]]))
        two = torch.stack([stage.matching(q) for q in queries[0]]).mean(dim=0)
        total -= float(two.log_softmax(dim=0)[int(image == text)])
    return total / len(drawn)


@torch.no_grad()
def test_matching_equals_a_plain_loop() -> None:
    """Rows 0 and 2 have one caption; of rows 0, 1, 2 only row 1 is a negative for the others."""
    stage = built()
    images, _, tokens, mask = (v if v is None else v[:3] for v in pairs(FOUR))
    true = [(0, 0), (1, 1), (2, 2)]
    seen = set()
    for seed in range(6):
        loss = float(stage(images, None, tokens, mask, seed=seed)["itm"])
        # For text 1 the wrong image is 0 or 2, for image 1 the wrong text is 0 or 2.
        choices = {
            (i, t): _match_by_loop(stage, [*true, (1, 0), (i, 1), (1, 2), (0, 1), (1, t), (2, 1)])
            for i in (0, 2)
            for t in (0, 2)
        }
        near = [c for c, value in choices.items() if value == pytest.approx(loss, abs=1e-5)]
        assert near, (loss, choices)
        seen |= set(near)
    assert len(seen) > 1


@torch.no_grad()
def test_generation_equals_a_plain_loop() -> None:
    """Each word from a pass that holds nothing but the words before it."""
    stage, (images, _, tokens, mask) = built(), pairs(FOUR)
    found = stage.generation_loss(images, None, tokens, mask)
    total, count = 0.0, 0
    for image, words in zip(images, FOUR, strict=True):
        for place in range(len(words) + 1):
            before = torch.tensor([words[:place]], dtype=torch.long)
            _, text = stage.qformer.encode(
                image[None], None, before, sight="causal", start="decode"
            )
            state = stage.before_words(text[0, -1])
            logits = stage.qformer.token_embedding.weight[:VOCAB] @ state
            logits = torch.cat([logits, (stage.end_embedding @ state)[None]]) + stage.word_bias
            target = words[place] if place < len(words) else VOCAB
            total -= float(logits.log_softmax(dim=0)[target])
            count += 1
    assert count == 14  # of them 4 ends
    assert float(found) == pytest.approx(total / count, abs=1e-5)


@torch.no_grad()
def test_a_caption_that_is_cut_has_no_end() -> None:
    stage = built(max_tokens=4)
    images, _, tokens, mask = pairs([[1, 2, 3, 4, 5, 6]])
    found = stage.generation_loss(images, None, tokens, mask)
    _, text = stage.qformer.encode(images, None, tokens, mask, sight="causal", start="decode")
    words = torch.cat([stage.qformer.token_embedding.weight[:VOCAB], stage.end_embedding[None]])
    logs = (stage.before_words(text[0]) @ words.T + stage.word_bias).log_softmax(dim=-1)
    expected = -sum(float(logs[i, word]) for i, word in enumerate([1, 2, 3, 4])) / 4
    assert float(found) == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_captions_of_one_picture_are_no_negatives_for_each_other() -> None:
    """With pictures 0 and 1 the same, each has only row 2 as a negative."""
    stage, batch = built(), pairs([[1, 2], [3], [4, 5]])
    pictures = torch.tensor([7, 7, 8])
    values = {float(stage(*batch, seed=s, pictures_B=pictures)["itm"]) for s in range(12)}
    assert 1 < len(values) <= 4  # only row 2's own two draws are free
    similarity = stage.similarity(*batch)
    equal = torch.eye(3, dtype=torch.bool)
    equal[0, 1] = equal[1, 0] = True
    expected = contrast_loss(similarity, stage.scale(), equal)
    torch.testing.assert_close(stage(*batch, pictures_B=pictures)["itc"], expected)


@torch.no_grad()
def test_the_seed_decides_the_negatives_and_torchs_generator_where_there_is_none() -> None:
    stage, batch = built(), pairs([[i, i + 1] for i in range(8)])
    first, again, other = (float(stage(*batch, seed=s)["itm"]) for s in (1, 1, 2))
    assert first == again != other
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(float(stage(*batch)["itm"]))
    assert drawn[0] == drawn[1] != drawn[2]


def test_gradients_reach_everything_but_the_way_to_the_language_model() -> None:
    stage = built()
    sum(stage(*pairs(FOUR), seed=0).values()).backward()
    idle = {name for name, p in stage.named_parameters() if p.grad is None}
    assert idle == {"qformer.to_language.weight", "qformer.to_language.bias"}
    assert float(stage.log_scale.grad) != 0


@torch.no_grad()
def test_the_temperature_is_bounded() -> None:
    stage = built()
    with torch.no_grad():
        stage.log_scale.fill_(20.0)
    stage(*pairs(FOUR), seed=0)
    assert float(stage.scale()) == pytest.approx(100.0)


def test_two_pairs_are_learned() -> None:
    """Of two pairs each is the other's only negative, so that every wrong pair is seen."""
    torch.manual_seed(0)
    config = QFormerConfig(
        vision_width=V, language_width=12, width=32, num_queries=3, depth=2, heads=2,
        vocab_size=VOCAB, max_tokens=8,
    )  # fmt: skip
    stage, batch = FirstStage(QFormer(config), embedding_width=16), pairs([[1, 2, 3], [4, 5]])
    optimizer = torch.optim.AdamW(stage.parameters(), lr=3e-3)
    first: dict[str, float] = {}
    for step in range(120):
        losses = stage(*batch, seed=step)
        first = first or {k: v.item() for k, v in losses.items()}
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    last = {k: v.item() for k, v in losses.items()}
    assert all(last[name] < 0.3 * first[name] for name in ("itc", "itm", "itg")), (first, last)
    images, _, tokens, mask = batch
    rows, columns = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    with torch.no_grad():
        logits = stage.matching_logits(images[rows], None, tokens[columns], mask[columns])
    assert (logits.softmax(dim=1)[:, 1] > 0.5).tolist() == [True, False, False, True]


def test_a_qformer_without_text_has_no_first_stage() -> None:
    with pytest.raises(SetupError, match="build the Q-Former with vocab_size"):
        built(vocab_size=0)
