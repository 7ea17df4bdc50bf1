"""Documents of tiny_language_corpus.py as batches of embeddings, with what each token counts."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tiny_language_documents import Document, document
from tiny_language_facts import Slot
from tokenizers import Tokenizer
from torch import nn

from winnow.contracts.errors import SetupError
from winnow.stages.sources._scenes.draw import Draw

END, PAD = "<|endoftext|>", "<|pad|>"
PROMPT, PROSE, TAGS, NAME, VERDICT = 0.3, 0.5, 0.1, 0.02, 4.0
"""How much a token counts: of a prompt, of facts in words, of a name that is checked, and the "yes"
or "no" of an answer, where reading shows. One of an answer or a plain text counts 1."""
POOL = 1500
Bag = list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Row:
    """bags: of the soft slots, which come first. weights: per token of ``tokens``, behind them."""

    bags: tuple[Bag, ...]
    tokens: tuple[int, ...]
    weights: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.bags) + len(self.tokens)


@dataclass(frozen=True, slots=True)
class Batch:
    """Tokens and weights (B, T), padded on the right with weight 0; the soft slots in flat bags."""

    tokens: torch.Tensor
    weights: torch.Tensor
    slots: torch.Tensor
    words: torch.Tensor
    word_weights: torch.Tensor
    starts: torch.Tensor

    @property
    def num_positions(self) -> int:
        """How many positions count, or are facts; the padding is not among them."""
        return int((self.weights > 0).sum()) + len(self.starts)

    def embedded(
        self, table: nn.Embedding, noise: torch.Generator | None = None, blur: float = 0.0
    ) -> torch.Tensor:
        """Return embeddings (B, T, L); with ``noise`` a row's soft slots are louder or softer, and
        blurred by up to ``blur`` times what they are."""
        found_BTL: torch.Tensor = table(self.tokens)
        if not len(self.starts):
            return found_BTL
        soft_SL = nn.functional.embedding_bag(
            self.words,
            table.weight,
            self.starts,
            mode="sum",
            per_sample_weights=self.word_weights,
        )
        if noise is not None:
            size, rows = soft_SL.detach().pow(2).mean().sqrt(), self.slots[:, 0]
            level = torch.rand(len(self.tokens), 1, generator=noise)[rows] * blur
            louder = (torch.randn(len(self.tokens), 1, generator=noise)[rows] * 0.3).exp()
            soft_SL = soft_SL + torch.randn(soft_SL.shape, generator=noise) * size * level
            soft_SL = soft_SL * louder
        return found_BTL.index_put((self.slots[:, 0], self.slots[:, 1]), soft_SL)


def special(tokenizer: Tokenizer, text: str) -> int:
    """Return a special token."""
    found = tokenizer.token_to_id(text)
    if found is None:
        msg = f"the tokenizer has no {text}"
        raise SetupError(msg)
    return int(found)


@functools.cache
def phrase_tokens(tokenizer: Tokenizer, words: str) -> tuple[int, ...]:
    """Return the tokens of words within a text."""
    return tuple(tokenizer.encode(f" {words}").ids)


def bag_of(tokenizer: Tokenizer, slot: Slot) -> Bag:
    """Return a slot's tokens with their weights."""
    return [(t, weight) for words, weight in slot.words for t in phrase_tokens(tokenizer, words)]


def row_of(tokenizer: Tokenizer, made: Document) -> Row:
    """Return a document's row: soft facts, or the start token and facts in words; then the start
    token and the pieces, each but a prompt with the end-of-text token behind it."""
    end = special(tokenizer, END)
    bags: tuple[Bag, ...] = ()
    tokens, weights = list[int](), list[float]()
    if made.facts is not None:
        bags = tuple(bag_of(tokenizer, slot) for slot in made.facts.slots)
        if made.facts.text:
            told = tokenizer.encode(made.facts.text).ids
            tokens += [end, *told]
            weights += [0.0, *[PROSE if made.facts.prose else TAGS] * len(told)]
    tokens.append(end)
    weights.append(PROSE if len(tokens) > 1 else 0.0)
    for piece in made.pieces:
        is_prompt = piece.endswith("ASSISTANT:")
        new = tokenizer.encode(piece).ids + ([] if is_prompt else [end])
        tokens += new
        weights += [PROMPT if is_prompt else 1.0] * len(new)
        if piece.startswith((" yes", " no", " Yes", " No")):
            weights[-len(new)] = VERDICT
    for name, word in made.checks:
        asked, said = phrase_tokens(tokenizer, name + made.joint), phrase_tokens(tokenizer, word)
        tokens += [*asked, *said]
        weights += [NAME] * len(asked) + [1.0] * len(said)
    return Row(bags, tuple(tokens), tuple(weights))


def cut(row: Row, limit: int) -> Row:
    """Return the first ``limit`` positions."""
    left = max(0, limit - len(row.bags))
    return Row(row.bags[:limit], row.tokens[:left], row.weights[:left])


def batch_of(rows: Sequence[Row], pad: int) -> Batch:
    """Pad rows to one length."""
    length = max(map(len, rows))
    tokens, weights = [], []
    slots, words, word_weights, starts = [], list[int](), list[float](), []
    for number, row in enumerate(rows):
        behind = length - len(row)
        tokens.append([pad] * len(row.bags) + list(row.tokens) + [pad] * behind)
        weights.append([0.0] * len(row.bags) + list(row.weights) + [0.0] * behind)
        for place, bag in enumerate(row.bags):
            slots.append((number, place))
            starts.append(len(words))
            words += [token for token, _ in bag]
            word_weights += [weight for _, weight in bag]
    return Batch(
        torch.tensor(tokens),
        torch.tensor(weights),
        torch.tensor(slots, dtype=torch.int64).reshape(-1, 2),
        torch.tensor(words, dtype=torch.int64),
        torch.tensor(word_weights),
        torch.tensor(starts, dtype=torch.int64),
    )


def batches(
    tokenizer: Tokenizer, seed: int, context: int, batch_tokens: int, first: int, start: int = 0
) -> Iterator[tuple[int, Batch]]:
    """Yield for ever the number of documents drawn so far, and a batch of rows of about one length.

    first: see ``document``. start: the first document.
    """
    pad = special(tokenizer, PAD)
    while True:
        pool = [
            cut(row_of(tokenizer, document(seed, index, first=first)), context)
            for index in range(start, start + POOL)
        ]
        start += POOL
        groups: list[list[Row]] = [[]]
        for row in sorted(pool, key=len):
            if len(row) * (len(groups[-1]) + 1) > batch_tokens and groups[-1]:
                groups.append([])
            groups[-1].append(row)
        order = Draw("batches", seed, start)
        for group in sorted(groups, key=lambda _: order.uniform(0, 1)):
            yield start, batch_of(group, pad)
