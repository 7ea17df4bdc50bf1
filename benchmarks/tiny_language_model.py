"""Train the packaged tiny language model on text about scenes, and measure it.

    python benchmarks/tiny_language_model.py               # write models/checkpoints/tiny-lm
    python benchmarks/tiny_language_model.py --evaluate    # measure what is there

The text is that of tiny_language_corpus.py: no picture is drawn. Each text is a row of its own,
the end-of-text token before it and after each answer; all its tokens count in the loss. Held-out
text is of scenes of another seed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_language_corpus import (
    FEW,
    HELD_OUT_SEED,
    MANY,
    TRAIN_SEED,
    color,
    document,
    number,
    paragraph,
    presence,
    question_turn,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from winnow.models.conversation import pieces, question
from winnow.models.generation import Sampling, generate
from winnow.models.language_model import (
    LanguageModel,
    decode,
    encode,
    find_language_model,
    load_language_model,
)
from winnow.models.language_model import perplexity as measured
from winnow.stages.sources._scenes import caption, scene
from winnow.stages.sources._scenes.draw import Draw
from winnow.stages.sources._scenes.sprites import CONCEPT

END, PAD = "<|endoftext|>", "<|pad|>"


@dataclass(frozen=True, slots=True)
class Model:
    """Shape of the network."""

    hidden: int = 160
    inner: int = 432
    layers: int = 4
    heads: int = 5
    context: int = 512
    vocabulary: int = 2048


def train_tokenizer(texts: Iterator[str], vocabulary: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer with one end-of-text and one padding token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def tokens_of(tokenizer: Tokenizer, parts: Sequence[str]) -> list[int]:
    """Return a document's tokens: the end-of-text token first, and after each answer."""
    tokens = [tokenizer.token_to_id(END)]
    for part in parts:
        tokens += tokenizer.encode(part).ids
        if not part.endswith("ASSISTANT:"):
            tokens.append(tokens[0])
    return tokens


def batches(
    tokenizer: Tokenizer, seed: int, context: int, batch_tokens: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (tokens_BT, labels_BT) for ever; rows of about one length, -100 where padded."""
    pool_size, pad = 1500, tokenizer.token_to_id(PAD)
    first = 0
    while True:
        pool = [
            tokens_of(tokenizer, document(seed, index))[: context + 1]
            for index in range(first, first + pool_size)
        ]
        first += pool_size
        groups: list[list[list[int]]] = [[]]
        for row in sorted(pool, key=len):
            if len(row) * (len(groups[-1]) + 1) > batch_tokens and groups[-1]:
                groups.append([])
            groups[-1].append(row)
        order = Draw("batches", seed, first)
        for group in sorted(groups, key=lambda _: order.uniform(0, 1)):
            length = len(group[-1])
            rows = torch.tensor([row + [pad] * (length - len(row)) for row in group])
            filled = torch.tensor([len(row) for row in group])
            labels = rows.masked_fill(torch.arange(length) >= filled[:, None], -100)
            yield rows, labels


def train(folder: Path, shape: Model, options: argparse.Namespace) -> None:
    """Train and write the checkpoint."""
    texts = ("\n".join(document(TRAIN_SEED, index)) for index in range(10_000))
    names = (name for concept in CONCEPT.values() for name in (concept.name, concept.plural))
    starts = (form for name in names for form in (name, name.capitalize()))
    tokenizer = train_tokenizer(itertools.chain(texts, starts), shape.vocabulary)
    torch.manual_seed(options.seed)
    network = LlamaForCausalLM(config_of(shape, tokenizer))
    decayed = [p for p in network.parameters() if p.ndim > 1]
    plain = [p for p in network.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.95))
    seen, step, running = 0, 0, 0.0
    for tokens_BT, labels_BT in batches(tokenizer, TRAIN_SEED, shape.context, options.batch_tokens):
        warm = min(1.0, (seen + 1) / (0.04 * options.tokens))
        falling = 0.5 * (1 + math.cos(math.pi * min(1.0, seen / options.tokens)))
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * min(warm, 0.02 + 0.98 * falling)
        loss = network(input_ids=tokens_BT, labels=labels_BT).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seen, step = seen + int((labels_BT >= 0).sum()), step + 1
        value = float(loss.detach())
        running = value if step == 1 else 0.98 * running + 0.02 * value
        if step % 100 == 0:
            print(f"{seen:>9,} tokens  loss {running:.3f}  {time.process_time():.0f} CPU seconds",
                  flush=True)  # fmt: skip
        if seen >= options.tokens:
            break
    save(folder, network, tokenizer)


def config_of(shape: Model, tokenizer: Tokenizer) -> LlamaConfig:
    """Return the architecture."""
    return LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(END),
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id(PAD),
    )


def save(folder: Path, network: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    """Write what ``find_language_model`` looks for; float16 weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**network.config.to_diff_dict(), "architectures": ["LlamaForCausalLM"]}
    config = {key: value for key, value in config.items() if key != "transformers_version"}
    config |= {"model_type": "llama", "tie_word_embeddings": True, "dtype": "float16"}
    write_json(folder / "config.json", config)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": network.config.max_position_embeddings,
    }
    write_json(folder / "tokenizer_config.json", special)
    tensors = {
        name: value.detach().half().contiguous()
        for name, value in network.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def write_json(path: Path, document: object) -> None:
    """Write indented JSON, keys in order."""
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def evaluate(folder: Path, count: int) -> None:
    """Print the held-out perplexity, that of unigrams, and what the model does with answers."""
    model = load_language_model(find_language_model(str(folder.resolve())), device="cpu")
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
    seen = Counter(
        token for i in range(5000) for token in encode(model, " ".join(document(TRAIN_SEED, i)))
    )
    total = sum(seen.values()) + model.network.config.vocab_size  # type: ignore[operator, union-attr]
    for name, texts in kinds.items():
        found = measured(model, texts)
        tokens = [token for text in texts for token in encode(model, text)]
        unigram = math.exp(-sum(math.log((seen[t] + 1) / total) for t in tokens) / len(tokens))
        print(f"{name}: perplexity {found.value:.2f} over {found.num_tokens:,} tokens; "
              f"unigrams {unigram:.1f}")  # fmt: skip
    answer_questions(model, count)


def answer_questions(model: LanguageModel, count: int) -> None:
    """Print how many held-out questions get the right answer, told of the scene and not told."""
    for name, ask in (("presence", presence), ("number", number), ("color", color)):
        asked, answers = [], []
        for index in range(count):
            described, draw = scene(HELD_OUT_SEED, index, FEW), Draw("asked", index)
            told = paragraph(described, draw)
            if turn := ask(described, draw):
                asked.append((told, question(turn.prompt)))
                answers.append(turn.answer)
        right = {}
        for label, rows in (
            ("told", [[*encode(model, a), model.eos_id, *encode(model, b)] for a, b in asked]),
            ("not told", [encode(model, b) for _, b in asked]),
        ):
            found = greedy(model, [[model.eos_id, *row] for row in rows])
            right[label] = sum(a == b for a, b in zip(found, answers, strict=True)) / len(answers)
        print(f"questions of {name}: {len(answers)}, right where told {right['told']:.2f}, "
              f"not told {right['not told']:.2f}")  # fmt: skip


def greedy(model: LanguageModel, rows: list[list[int]]) -> list[str]:
    """Return what follows each row of tokens."""
    found = []
    for first in range(0, len(rows), 64):
        batch = rows[first : first + 64]
        length = max(map(len, batch))
        tokens = torch.tensor([[model.pad_id] * (length - len(row)) + row for row in batch])
        lengths = torch.tensor([len(row) for row in batch])
        made = generate(model, model.embed(tokens), lengths, Sampling(8))
        found += [decode(model, one.tokens) for one in made]
    return found


def main() -> None:
    """Train, or evaluate what is there."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("models/checkpoints/tiny-lm"))
    parser.add_argument("--tokens", type=int, default=3_400_000)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--evaluate", action="store_true", help="measure, do not train")
    parser.add_argument("--texts", type=int, default=600, help="held-out texts to measure on")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.evaluate:
        train(options.out, Model(), options)
    evaluate(options.out, options.texts)


if __name__ == "__main__":
    main()
