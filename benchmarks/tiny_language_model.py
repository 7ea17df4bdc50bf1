"""Train the packaged tiny language model on text about scenes, and measure it.

    python benchmarks/tiny_language_model.py               # write models/checkpoints/tiny-lm
    python benchmarks/tiny_language_model.py --evaluate    # measure what is there

The text is that of tiny_language_documents.py: no picture is drawn. Each text is a row of its own:
facts where a captioner has its prefix, the end-of-text token, questions, and that token after each
answer. Soft facts are made louder, softer and ever more blurred, so that a connector's tokens are
read before they are clear. Held-out text is of scenes of another seed. Whether a frozen model can
be told of a scene through a connector is measured by tiny_language_reading.py.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_language_corpus import TRAIN_SEED
from tiny_language_documents import document
from tiny_language_measures import evaluate
from tiny_language_muon import Muon
from tiny_language_rows import END, PAD, Batch, batches
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from winnow.stages.sources._scenes.sprites import CONCEPT

BLUR, MOST_BLUR = 0.3, 1.5
CLEAR, BLURRED = 4_000_000, 7_000_000
"""Positions with little blur, and to the most: a model that cannot read yet learns to from clear
facts alone."""


@dataclass(frozen=True, slots=True)
class Model:
    """Shape of the network."""

    hidden: int = 160
    inner: int = 432
    layers: int = 4
    heads: int = 5
    context: int = 512
    vocabulary: int = 2048


def found_tokenizer(folder: Path) -> Tokenizer:
    """Return the one that training began with: a new one could have other numbers."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def new_tokenizer(shape: Model) -> Tokenizer:
    """Return one of the first texts and of all names."""
    documents = (document(TRAIN_SEED, index) for index in range(3000))
    texts = ("\n".join([d.facts.text if d.facts else "", *d.pieces]) for d in documents)
    return train_tokenizer(itertools.chain(texts, _words()), shape.vocabulary)


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


@dataclass(slots=True)
class Progress:
    """How far training is: positions, steps, the loss's running mean, texts that were drawn."""

    seen: int = 0
    step: int = 0
    loss: float = 0.0
    drawn: int = 0


def train(folder: Path, shape: Model, options: argparse.Namespace) -> None:
    """Train and write the checkpoint, every ``--save-every`` positions and at the end."""
    resumed = options.state is not None and options.state.exists()
    tokenizer = found_tokenizer(folder) if resumed else new_tokenizer(shape)
    torch.manual_seed(options.seed)
    network = LlamaForCausalLM(config_of(shape, tokenizer))
    noise = torch.Generator().manual_seed(options.seed)
    optimizers = optimizers_of(network, options.learning_rate)
    parts: list[Any] = [network, *optimizers]
    at = go_on(options.state, parts, noise) if resumed else Progress()
    saved = at.seen
    stream = batches(
        tokenizer, TRAIN_SEED, shape.context, options.batch_tokens, options.first, at.drawn
    )
    for at.drawn, batch in stream:
        share = rate_at(at.seen, options.tokens)
        for group in (group for one in optimizers for group in one.param_groups):
            group["lr"] = group["initial"] * share
        loss = loss_of(network, batch, noise, blur_at(at.seen))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for one in optimizers:
            one.step()
            one.zero_grad()
        at.seen, at.step = at.seen + batch.num_positions, at.step + 1
        at.loss += (float(loss.detach()) - at.loss) * max(0.02, 1 / at.step)
        if at.step % 100 == 0:
            print(f"{at.seen:>10,} positions  loss {at.loss:.3f}  "
                  f"{time.process_time():.0f} CPU seconds", flush=True)  # fmt: skip
        if at.seen >= options.tokens or at.seen - saved >= options.save_every:
            save(folder, network, tokenizer)
            saved = at.seen
            if options.state:
                kept = {"parts": [part.state_dict() for part in parts], "noise": noise.get_state()}
                torch.save(kept | {"at": asdict(at)}, options.state)
        if at.seen >= options.tokens:
            break


def go_on(path: Path, parts: Sequence[Any], noise: torch.Generator) -> Progress:
    """Set network, optimizers and noise as they were saved; training goes on with new texts."""
    kept = torch.load(path, weights_only=True)
    for part, state in zip(parts, kept["parts"], strict=True):
        part.load_state_dict(state)
    noise.set_state(kept["noise"])
    return Progress(**kept["at"])


def loss_of(
    network: LlamaForCausalLM, batch: Batch, noise: torch.Generator, blur: float
) -> torch.Tensor:
    """Return the weighted mean of the negative log-likelihood of the tokens that count."""
    embedded_BTL = batch.embedded(network.model.embed_tokens, noise, blur)
    hidden_BTL = network.model(inputs_embeds=embedded_BTL).last_hidden_state
    counted_BT = batch.weights[:, 1:] > 0
    logits = network.lm_head(hidden_BTL[:, :-1][counted_BT])
    targets, weights = batch.tokens[:, 1:][counted_BT], batch.weights[:, 1:][counted_BT]
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    return (losses * weights).sum() / weights.sum()


def optimizers_of(network: LlamaForCausalLM, rate: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the layers' matrices, AdamW for embeddings and norms."""
    layers = [p for p in network.model.layers.parameters() if p.ndim > 1]
    table = network.model.embed_tokens.weight
    norms = [p for p in network.parameters() if p.ndim < 2]
    adam = torch.optim.AdamW([table, *norms], lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    muon = Muon(layers, lr=2 * rate)
    for group in (*muon.param_groups, *adam.param_groups):
        group["initial"] = group["lr"]
    return [muon, adam]


def rate_at(seen: int, total: int) -> float:
    """Return the learning rate's share: a short rise, level, down over the last half."""
    return min(1.0, (seen + 1000) / 50_000, max(0.02, (1 - seen / total) / 0.5))


def blur_at(seen: int) -> float:
    """Return how blurred soft facts are at most: little, then more and more."""
    share = min(1.0, max(0.0, (seen - CLEAR) / (BLURRED - CLEAR)))
    return BLUR + share * (MOST_BLUR - BLUR)


def _words() -> Iterator[str]:
    """Every name as it may stand in a text, so that each of its words is a token."""
    for concept in CONCEPT.values():
        for name in (concept.name, concept.plural):
            yield from (name, f" {name} {name}", f" {name.capitalize()}")


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


def main() -> None:
    """Train, or evaluate what is there."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("models/checkpoints/tiny-lm"))
    parser.add_argument("--tokens", type=int, default=11_000_000, help="positions to train on")
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--first", type=int, default=9000, help="texts of checks, which come first")
    parser.add_argument("--save-every", type=int, default=1_500_000, help="positions")
    parser.add_argument("--state", type=Path, help="go on from this file, and write it")
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
