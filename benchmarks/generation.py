"""Decoding speed: winnow.models.generation against transformers' `generate`, side by side.

    python benchmarks/generation.py --batch-size 32 --prefix-tokens 64
    python benchmarks/generation.py --model org/name --device cuda --precision bf16

One model, the same prefixes (embeddings: a scene's description and a question about it, padded on
the left), the same batch, in one run, the two in turns; the best of all rounds counts. Answers are
of varied lengths: a word, a caption, a paragraph. Greedy texts must be equal. Seconds are those of
the clock; on a CPU the processor's own are given too, which other programs disturb less.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tiny_language_corpus import HELD_OUT_SEED, MANY, describing, question_turn
from transformers.utils import logging

from winnow.models.conversation import Turn, pieces, question
from winnow.models.generation import Sampling, generate
from winnow.models.language_model import (
    LanguageModel,
    encode,
    find_language_model,
    load_language_model,
)
from winnow.stages.sources._scenes import scene
from winnow.stages.sources._scenes.draw import Draw

Texts = list[list[int]]


@dataclass
class Best:
    """The best seconds of one way of decoding, and what it wrote then."""

    wall_s: float = float("inf")
    cpu_s: float = float("inf")
    texts: Texts | None = None

    def measure(self, run: Callable[[], Texts], device: torch.device) -> None:
        """Run once more."""
        wall, cpu = time.perf_counter(), time.process_time()
        texts = run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        self.wall_s, self.cpu_s, self.texts = min(self.wall_s, wall), min(self.cpu_s, cpu), texts


def prefixes(model: LanguageModel, count: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return embeddings (B, T, L) and mask (B, T); the context's last ``length`` tokens each."""
    rows = []
    for index in range(count):
        draw = Draw("prefix", index)
        described = scene(HELD_OUT_SEED, index, MANY)
        told: list[int] = []
        while len(told) < length:
            told += [
                t for p in pieces([describing(described, draw)]) for t in encode(model, p.text)
            ]
        asked = [describing(described, draw), describing(described, draw)]
        turn: Turn = draw.pick((*asked, question_turn(described, draw)))
        rows.append(told[-length:] + encode(model, question(turn.prompt)))
    longest = max(map(len, rows))
    tokens = torch.tensor([[model.pad_id] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    with torch.no_grad():
        return model.embed(tokens), mask.to(model.device)


def with_transformers(
    model: LanguageModel, prefix_BTL: torch.Tensor, mask_BT: torch.Tensor, sampling: Sampling
) -> Texts:
    """Decode with `generate`; each row is cut after its end-of-text token."""
    drawn = {"do_sample": False}
    if sampling.top_p is not None:
        drawn = {"do_sample": True, "top_p": sampling.top_p, "top_k": 0, "temperature": 1.0}
    torch.manual_seed(0)  # the same texts in every round, as with our seeds
    with torch.no_grad():
        rows = model.network.generate(
            inputs_embeds=prefix_BTL,
            attention_mask=mask_BT,
            max_new_tokens=sampling.max_tokens,
            eos_token_id=model.eos_id,
            pad_token_id=model.pad_id,
            **drawn,
        ).tolist()
    end = model.eos_id
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="tiny-lm")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--prefix-tokens", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    model = load_language_model(
        find_language_model(options.model), device=options.device, precision=options.precision
    )
    prefix, mask = prefixes(model, options.batch_size, options.prefix_tokens)
    print(f"{options.model}, {model.device}, {options.precision}, batch {len(mask)}, prefixes of "
          f"{int(mask.sum(1).min())} to {mask.shape[1]} tokens")  # fmt: skip
    for name, sampling in (
        ("greedy", Sampling(options.max_tokens)),
        ("nucleus 0.9", Sampling(options.max_tokens, top_p=0.9)),
    ):
        compare(name, model, prefix, mask, sampling, options.rounds)


def compare(
    name: str,
    model: LanguageModel,
    prefix: torch.Tensor,
    mask: torch.Tensor,
    sampling: Sampling,
    rounds: int,
) -> None:
    """Run both in turns; print rates and their ratios."""
    seeds = range(len(mask))
    ours, theirs = Best(), Best()
    for _ in range(rounds + 1):
        if _ == 1:  # the first round warms up
            ours, theirs = Best(), Best()
        ours.measure(
            lambda: [one.tokens for one in generate(model, prefix, mask, sampling, seeds)],
            model.device,
        )
        theirs.measure(lambda: with_transformers(model, prefix, mask, sampling), model.device)
    if sampling.top_p is None:
        equal = sum(a == b for a, b in zip(ours.texts or [], theirs.texts or [], strict=True))
        print(f"greedy texts that are equal: {equal} of {len(mask)}")
    for label, best in (("winnow", ours), ("transformers", theirs)):
        lengths = [len(text) for text in best.texts or []]
        print(f"{name:12} {label:12} {len(mask) / best.wall_s:8.1f} captions/s "
              f"{sum(lengths) / best.wall_s:9.0f} tokens/s  {best.cpu_s:.3f} CPU s  "
              f"answers of {min(lengths)} to {max(lengths)} tokens")  # fmt: skip
    ours_tokens, theirs_tokens = (sum(map(len, best.texts or [])) for best in (ours, theirs))
    for unit, a, b in (("clock", ours.wall_s, theirs.wall_s), ("CPU", ours.cpu_s, theirs.cpu_s)):
        tokens = (ours_tokens / a) / (theirs_tokens / b)
        print(f"{name:12} ratios, {unit}: captions/s {b / a:.2f}, tokens/s {tokens:.2f}")


if __name__ == "__main__":
    main()
