"""What the packaged language model knows, and what it reads out of facts before a question."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tiny_language_corpus import (
    CROWD,
    FEW,
    HELD_OUT_SEED,
    MANY,
    NUMBERS,
    TRAIN_SEED,
    color,
    number,
    paragraph,
    presence,
    question_turn,
)
from tiny_language_documents import Document, document
from tiny_language_facts import Facts, object_slots, prose_facts, query_slots, raster, tag_text
from tiny_language_rows import batch_of, row_of
from tokenizers import Tokenizer

from winnow.models.conversation import PARAGRAPH_PROMPT, Turn, pieces, question
from winnow.models.generation import Sampling, generate
from winnow.models.language_model import (
    LanguageModel,
    decode,
    encode,
    find_language_model,
    load_language_model,
)
from winnow.models.language_model import perplexity as measured
from winnow.stages.sources._scenes import Scene, caption, scene
from winnow.stages.sources._scenes.draw import Draw
from winnow.stages.sources._scenes.sprites import CONCEPT

FORMS: dict[str, Callable[[Scene, Draw], Facts | None]] = {
    "nothing": lambda described, draw: None,
    "a paragraph": prose_facts,
    "tags": lambda described, draw: Facts(described, text=tag_text(described, draw)),
    "one soft token per object": object_slots,
    "16 or 32 soft tokens, of several things": query_slots,
    "a raster of 49 soft tokens": lambda described, draw: raster(described, draw, 7),
    "a raster of 196 soft tokens": lambda described, draw: raster(described, draw, 14),
}


def evaluate(folder: Path, count: int) -> None:
    """Print the held-out perplexities, and what the model reads in each form of facts."""
    model = load_language_model(find_language_model(str(folder.resolve())), device="cpu")
    perplexities(model, count)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for name, form in FORMS.items():
        print(f"after {name}: {reading(model, tokenizer, form, count)}", flush=True)


def perplexities(model: LanguageModel, count: int) -> None:
    """Print the held-out perplexity of texts without facts, and that of unigrams."""
    kinds = {
        "one question and its answer": [
            "".join(
                piece.text
                for piece in pieces([question_turn(scene(HELD_OUT_SEED, i, FEW), Draw("asked", i))])
            )
            for i in range(count)
        ],
        "captions": [caption(scene(HELD_OUT_SEED, i, FEW), variant=i) for i in range(count)],
        "paragraphs": [
            paragraph(scene(HELD_OUT_SEED, i, MANY), Draw("held-out", i)) for i in range(count)
        ],
    }
    documents = (document(TRAIN_SEED, i) for i in range(5000))
    seen = Counter(t for made in documents for t in encode(model, " ".join(made.pieces)))
    total = sum(seen.values()) + model.network.config.vocab_size  # type: ignore[operator, union-attr]
    for name, texts in kinds.items():
        found = measured(model, texts)
        tokens = [token for text in texts for token in encode(model, text)]
        unigram = math.exp(-sum(math.log((seen[t] + 1) / total) for t in tokens) / len(tokens))
        print(f"{name}: perplexity {found.value:.2f} over {found.num_tokens:,} tokens; "
              f"unigrams {unigram:.1f}")  # fmt: skip


def reading(
    model: LanguageModel,
    tokenizer: Tokenizer,
    form: Callable[[Scene, Draw], Facts | None],
    count: int,
) -> str:
    """Return in words how many first questions about held-out crowds are answered right."""
    asked: dict[str, list[tuple[Facts | None, Scene, Turn]]] = {}
    for index in range(count):
        described, draw = scene(HELD_OUT_SEED, index, CROWD), Draw("reading", index)
        facts = form(described, draw)
        turns = {
            "presence": presence(described, draw),
            "counts": number(described, draw),
            "colors": color(described, draw),
            "detail": Turn(PARAGRAPH_PROMPT, "") if index % 4 == 0 else None,
        }
        for kind, turn in turns.items():
            if turn:
                asked.setdefault(kind, []).append((facts, described, turn))
    said = []
    for kind, rows in asked.items():
        prompts = [(facts, turn.prompt) for facts, _, turn in rows]
        answers = greedy(model, tokenizer, prompts, 128 if kind == "detail" else 16)
        if kind == "detail":
            named = [
                _named(answer, described)
                for answer, (_, described, _) in zip(answers, rows, strict=True)
            ]
            right, wrong, whole = (sum(column) for column in zip(*named, strict=True))
            said.append(
                f"detail names {right / whole:.2f}, wrong {wrong / max(1, right + wrong):.2f}"
            )
            continue
        good = [_is_right(kind, a, turn) for a, (_, _, turn) in zip(answers, rows, strict=True)]
        said.append(f"{kind} {sum(good) / len(good):.2f} of {len(good)}")
    return ", ".join(said)


def _is_right(kind: str, answer: str, turn: Turn) -> bool:
    words = re.findall(r"[a-z]+", answer.lower())
    if kind == "presence":
        return words[:1] == [turn.answer]
    if kind == "counts":
        said = [word for word in words if word in (*NUMBERS, "no")]
        return said[:1] == [turn.answer] or (turn.answer == "none" and said[:1] == ["no"])
    return turn.answer in words


def _named(answer: str, described: Scene) -> tuple[int, int, int]:
    """Return how many things of the scene an answer names, how many others, how many there are."""
    found, text = set(), answer.lower()
    for name, concept in sorted(CONCEPT.items(), key=lambda item: -len(item[0])):
        for form in (concept.plural.lower(), name.lower()):
            changed = re.sub(rf"\b{re.escape(form)}\b", "", text)
            if changed != text:
                found.add(name)
                text = changed
    present = {group.concept for group in described.groups}
    return len(found & present), len(found - present), len(present)


@torch.inference_mode()
def greedy(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[tuple[Facts | None, str]],
    most: int,
) -> list[str]:
    """Return what the model answers to each prompt behind its facts."""
    found, table = [], model.network.get_input_embeddings()  # type: ignore[operator]
    for first in range(0, len(prompts), 64):
        rows = []
        for facts, prompt in prompts[first : first + 64]:
            row = row_of(tokenizer, Document((question(prompt),), facts))
            rows.append(batch_of([row], model.pad_id).embedded(table)[0])
        length = max(map(len, rows))
        made = torch.stack([torch.cat([r.new_zeros(length - len(r), r.shape[1]), r]) for r in rows])
        lengths = torch.tensor([len(row) for row in rows])
        answers = generate(model, made, lengths, Sampling(most))
        found += [decode(model, one.tokens) for one in answers]
    return found
