"""Byte-pair vocabularies: CLIP's own list of merges, cut to what a small model can learn.

A CLIP vocabulary is a ranked list of merges (Sennrich et al. 2016; OpenAI's list of 48,894 ships
with open_clip). Every token but the 512 single bytes is made by exactly one merge, so the merges
behind a token are a tree, and a list that holds the whole tree of a token still produces it.
"""

from __future__ import annotations

import gzip
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from winnow.contracts.errors import SetupError

if TYPE_CHECKING:
    import torch

MERGES_NAME = "bpe_merges.txt.gz"
NUM_FIXED_TOKENS = 2 * 256 + 2
"""Bytes, bytes that end a word, start of text, end of text."""
CLIP_VOCABULARY = 49_408
"""Tokens of OpenAI's list: the 48,894 merges and the fixed ones."""
_CACHED_WORDS = 200_000
_CHARACTERS_PER_TOKEN = 16


def trimmed_merges(captions: Iterable[str], vocabulary: int) -> list[str]:
    """Return the merges of a vocabulary of that size which suits ``captions``, in CLIP's order.

    The tokens that the captions use come first, most frequent first, each with its whole tree of
    merges; what is left goes to the merges that CLIP ranks first. So a word keeps its full-list
    tokens or falls apart into smaller ones; nothing is ever out of vocabulary.
    """
    from open_clip.tokenizer import SimpleTokenizer

    if vocabulary < NUM_FIXED_TOKENS:
        msg = f"a byte-pair vocabulary has at least {NUM_FIXED_TOKENS} tokens, not {vocabulary}"
        raise ValueError(msg)
    full = SimpleTokenizer()
    rank = {"".join(pair): index for pair, index in full.bpe_ranks.items()}
    pairs = list(full.bpe_ranks)
    used: Counter[str] = Counter()
    for caption, times in Counter(captions).items():
        for token in full.encode(caption):
            used[full.decoder[token]] += times
    wanted = sorted(used, key=lambda token: (-used[token], token))
    budget = vocabulary - NUM_FIXED_TOKENS
    kept: set[int] = set()
    for token in [*wanted, *("".join(pair) for pair in pairs)]:
        if len(kept) == budget:
            break
        tree = _tree(token, rank, pairs) - kept
        if len(kept) + len(tree) <= budget:
            kept |= tree
    return [" ".join(pairs[index]) for index in sorted(kept)]


def _tree(token: str, rank: dict[str, int], pairs: list[tuple[str, str]]) -> set[int]:
    found: set[int] = set()
    todo = [token]
    while todo:
        index = rank.get(todo.pop())
        if index is not None and index not in found:
            found.add(index)
            todo.extend(pairs[index])
    return found


def write_merges(merges: Sequence[str], path: Path) -> None:
    """Write merges as open_clip's SimpleTokenizer reads them: gzip, a first line that it skips."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as file:
        file.write("\n".join(["#version: 0.2", *merges]).encode())
    path.write_bytes(buffer.getvalue())


class Tokenizer:
    """open_clip's tokenizer of a model, with memory and time bounded for captions from the web.

    Captions are cut at 16 characters per token of context before they are tokenised (a token of
    CLIP's list is under 5 characters on average), because byte-pair encoding of one endless
    "word" is quadratic; white space is collapsed first where that would cut something off.
    ``num_tokens``: rows of the text tower's table, where a tokenizer could go past them.
    """

    def __init__(self, inner: Any, context_length: int, *, num_tokens: int | None = None) -> None:
        self._inner, self.context_length, self.num_tokens = inner, context_length, num_tokens
        self._max_characters = _CHARACTERS_PER_TOKEN * context_length
        self._cache = getattr(inner, "cache", None)
        self._always_cached = dict(self._cache) if isinstance(self._cache, dict) else {}

    def bounded(self, network: Any) -> Tokenizer:
        """Return itself, with the table of a network whose text tower is a hub's transformer."""
        if hasattr(getattr(network, "text", None), "config"):
            self.num_tokens = int(network.vocab_size) or None
        return self

    @property
    def merges(self) -> list[str] | None:
        """The merges in order; None where this is not a byte-pair tokenizer of open_clip's."""
        ranks = getattr(self._inner, "bpe_ranks", None)
        return None if ranks is None else [" ".join(pair) for pair in ranks]

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Return token ids, int64, (len(texts), context_length), cut at the context length.

        Fails: SetupError for a token that the text tower has no vector for.
        """
        if isinstance(self._cache, dict) and len(self._cache) > _CACHED_WORDS:
            # open_clip remembers every word for ever: gigabytes after a day of web captions.
            self._cache.clear()
            self._cache.update(self._always_cached)
        cut = [self._cut(text) for text in texts]
        tokens = cast("torch.Tensor", self._inner(cut, context_length=self.context_length))
        size = self.num_tokens
        if size is not None and len(texts) and int(tokens.max()) >= size:
            msg = (
                f"the tokenizer gives token {int(tokens.max())}, but the text tower has vectors "
                f"for {size:,}: give it the tokenizer that belongs to it, or set vocab_size in "
                "text_cfg to the tokenizer's size"
            )
            raise SetupError(msg)
        return tokens

    def _cut(self, text: str) -> str:
        if len(text) <= self._max_characters:
            return text
        return " ".join(text.split())[: self._max_characters]
