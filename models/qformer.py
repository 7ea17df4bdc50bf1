"""Q-Former: learned queries that read an image, beside a text that they may or may not see.

BLIP-2 (Li et al. 2023, section 3.1) and InstructBLIP (Dai et al. 2023, section 2.3). A block is
BERT's (Devlin et al. 2019: normalisation after each residual, GELU, a feed-forward layer of four
widths): self-attention shared by queries and text; in every n-th block cross-attention to the
image, for the queries only; separate feed-forward layers for queries and text. What differs from
the published models: no dropout, and a vocabulary that is the language model's.

Tensor suffixes: B batch, P patches, V vision width, Q queries, T text tokens, S queries and text
(Q + T), D width of the Q-Former, H heads, L language-model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from winnow.contracts.errors import SetupError
from winnow.models.connectors import Connector

Sight = Literal["both", "causal", "apart"]
"""What queries and text see of each other. "both": everything (image-text matching). "causal":
queries see queries, text sees queries and earlier text (image-grounded generation). "apart":
queries see queries, text sees text (image-text contrast)."""
Start = Literal["class", "decode"]
"""The token before a text: BERT's [CLS], or BLIP-2's [DEC] for generation."""

_NUM_SPECIAL = 2
_SPECIAL: dict[Start, int] = {"class": 0, "decode": 1}
_INITIAL_STD = 0.02
_EPSILON = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True)
class QFormerConfig:
    """Sizes of a Q-Former.

    width: of its own layers; None = language_width, or the next multiple of ``heads``.
    cross_every: every n-th block, the first among them, looks at the image (BLIP-2: 2).
    vocab_size: of the language model's tokenizer; 0 = no text (then no first training stage).
    max_tokens: longest text, its start token among them; longer ones are cut there.
    """

    vision_width: int
    language_width: int
    num_queries: int = 32
    depth: int = 2
    heads: int = 4
    width: int | None = None
    cross_every: int = 1
    vocab_size: int = 0
    max_tokens: int = 256

    @property
    def hidden(self) -> int:
        """Width of the layers."""
        return self.width or -(-self.language_width // self.heads) * self.heads


def sight_mask(sight: Sight, num_queries: int, text_mask_BT: torch.Tensor) -> torch.Tensor:
    """Return bool (B, 1, S, S): whether the position of a row sees that of a column.

    The three masks of BLIP-2's figure 2. text_mask_BT: bool, False = padding, which nobody sees;
    its own rows are as any text's, so that no row is empty as long as the first token is real.
    """
    batch, length = text_mask_BT.shape
    total = num_queries + length
    where = torch.arange(total, device=text_mask_BT.device)
    is_text_S = where >= num_queries
    row_is_text, column_is_text = is_text_S[:, None], is_text_S[None, :]
    if sight == "both":
        seen_SS = torch.ones(total, total, dtype=torch.bool, device=where.device)
    elif sight == "causal":
        seen_SS = ~column_is_text | (row_is_text & (where[None, :] <= where[:, None]))
    else:
        seen_SS = row_is_text == column_is_text
    real_BS = torch.cat([text_mask_BT.new_ones(batch, num_queries), text_mask_BT], dim=1)
    return (seen_SS & real_BS[:, None, :])[:, None]


class Attention(nn.Module):
    """BERT's attention sublayer: heads, output projection, residual, normalisation."""

    def __init__(self, width: int, heads: int, memory_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(memory_width, width)
        self.value = nn.Linear(memory_width, width)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=_EPSILON)

    def forward(
        self, states_BSD: torch.Tensor, memory: torch.Tensor, seen: torch.Tensor | None
    ) -> torch.Tensor:
        """``memory``: what is looked at; ``seen``: bool, broadcast to (B, H, S, memory)."""
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in (
                (self.query, states_BSD), (self.key, memory), (self.value, memory)
            )
        )  # fmt: skip
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        return self.norm(self.output(mixed.transpose(1, 2).flatten(2)) + states_BSD)


class FeedForward(nn.Module):
    """BERT's feed-forward sublayer, with its residual and normalisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, 4 * width)
        self.outer = nn.Linear(4 * width, width)
        self.norm = nn.LayerNorm(width, eps=_EPSILON)

    def forward(self, states_BSD: torch.Tensor) -> torch.Tensor:
        inner = nn.functional.gelu(self.inner(states_BSD))
        return self.norm(self.outer(inner) + states_BSD)


class Block(nn.Module):
    """One Q-Former block; queries come first in the sequence, then the text."""

    def __init__(self, config: QFormerConfig, *, looks: bool) -> None:
        super().__init__()
        width = config.hidden
        self.attention = Attention(width, config.heads, width)
        self.look = Attention(width, config.heads, config.vision_width) if looks else None
        self.for_queries = FeedForward(width)
        self.for_text = FeedForward(width) if config.vocab_size else None

    def forward(
        self,
        states_BSD: torch.Tensor,
        num_queries: int,
        features_BPV: torch.Tensor,
        seen: torch.Tensor | None,
        features_seen: torch.Tensor | None,
    ) -> torch.Tensor:
        states_BSD = self.attention(states_BSD, states_BSD, seen)
        queries_BQD, text_BTD = states_BSD[:, :num_queries], states_BSD[:, num_queries:]
        if self.look is not None:
            queries_BQD = self.look(queries_BQD, features_BPV, features_seen)
        queries_BQD = self.for_queries(queries_BQD)
        if self.for_text is None or not text_BTD.shape[1]:
            return queries_BQD
        return torch.cat([queries_BQD, self.for_text(text_BTD)], dim=1)


class QFormer(Connector):
    """BLIP-2's connector: (B, Q, L) tokens from the queries alone; the prompt stays outside.

    A text enters through ``encode``, in the first training stage (``models/qformer_losses.py``).
    Its parameters depend on torch's global generator at construction.
    """

    name = "qformer"
    takes_instruction = False
    is_prefix = True

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden
        if width % config.heads:
            msg = f"Q-Former: width={width} is not a multiple of heads={config.heads}"
            raise SetupError(msg)
        self.queries = nn.Parameter(torch.empty(config.num_queries, width))
        self.norm_features = nn.LayerNorm(config.vision_width)
        self.norm_inputs = nn.LayerNorm(width, eps=_EPSILON)
        if config.vocab_size:
            self.token_embedding = nn.Embedding(config.vocab_size + _NUM_SPECIAL, width)
            self.position_embedding = nn.Embedding(config.max_tokens, width)
        self.blocks = nn.ModuleList(
            Block(config, looks=index % config.cross_every == 0) for index in range(config.depth)
        )
        self.apply(_initialise)
        nn.init.normal_(self.queries, std=_INITIAL_STD)
        self.to_language = nn.Linear(width, config.language_width)

    def num_tokens(self, num_patches: int) -> int:
        """The number of queries, however many patches."""
        return self.config.num_queries

    def forward(
        self,
        features_BPV: torch.Tensor,
        mask_BP: torch.Tensor | None = None,
        instruction_BT: torch.Tensor | None = None,
        instruction_mask_BT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return (B, Q, L). ``mask_BP``: bool, False = no patch there. No instruction is read."""
        queries_BQD, _ = self.encode(features_BPV, mask_BP)
        return self.to_language(queries_BQD)

    def encode(
        self,
        features_BPV: torch.Tensor,
        mask_BP: torch.Tensor | None = None,
        tokens_BT: torch.Tensor | None = None,
        tokens_mask_BT: torch.Tensor | None = None,
        *,
        sight: Sight = "both",
        start: Start = "class",
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the states of the queries (B, Q, D) and of the text (B, 1 + T, D).

        The text's first state is that of its start token; without ``tokens_BT`` there is no text
        at all (B, 0, D). ``tokens_mask_BT``: bool, False = padding, at either end; None = no
        padding. A text of more than ``max_tokens - 1`` tokens is cut there.
        """
        config = self.config
        states_BSD = self.queries.expand(len(features_BPV), -1, -1)
        seen: torch.Tensor | None = None
        if tokens_BT is not None:
            if tokens_mask_BT is None:
                tokens_mask_BT = torch.ones_like(tokens_BT, dtype=torch.bool)
            text_BTD, text_mask_BT = self._embedded(tokens_BT, tokens_mask_BT.bool(), start)
            states_BSD = torch.cat([states_BSD, text_BTD], dim=1)
            seen = sight_mask(sight, config.num_queries, text_mask_BT)
        states_BSD = self.norm_inputs(states_BSD)
        features_BPV = self.norm_features(features_BPV.to(states_BSD.dtype))
        features_seen = None if mask_BP is None else mask_BP.bool()[:, None, None, :]
        for block in self.blocks:
            states_BSD = block(states_BSD, config.num_queries, features_BPV, seen, features_seen)
        return states_BSD[:, : config.num_queries], states_BSD[:, config.num_queries :]

    def _embedded(
        self, tokens_BT: torch.Tensor, mask_BT: torch.Tensor, start: Start
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the embedded text after its start token, and its mask."""
        config = self.config
        if not config.vocab_size:
            msg = "this Q-Former has no text: build it with the tokenizer's vocab_size"
            raise SetupError(msg)
        first_B1 = tokens_BT.new_full((len(tokens_BT), 1), config.vocab_size + _SPECIAL[start])
        tokens_BT = torch.cat([first_B1, tokens_BT], dim=1)[:, : config.max_tokens]
        mask_BT = torch.cat([mask_BT.new_ones(len(mask_BT), 1), mask_BT], dim=1)
        mask_BT = mask_BT[:, : config.max_tokens]
        places_BT = (mask_BT.cumsum(dim=1) - 1).clamp(min=0)
        return self.token_embedding(tokens_BT) + self.position_embedding(places_BT), mask_BT


class InstructQFormer(QFormer):
    """InstructBLIP's connector: the instruction's tokens stand beside the queries in the
    self-attention, and both see each other, so that the queries read what was asked for.

    ``instruction_BT``: the language model's token ids; None = no instruction.
    """

    name = "instruct_qformer"
    takes_instruction = True

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__(config)
        if not config.vocab_size:
            msg = "instruct_qformer reads the instruction: give the tokenizer's vocab_size"
            raise SetupError(msg)

    def forward(
        self,
        features_BPV: torch.Tensor,
        mask_BP: torch.Tensor | None = None,
        instruction_BT: torch.Tensor | None = None,
        instruction_mask_BT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return (B, Q, L) of the image, as the instruction asks."""
        queries_BQD, _ = self.encode(features_BPV, mask_BP, instruction_BT, instruction_mask_BT)
        return self.to_language(queries_BQD)


def _initialise(module: nn.Module) -> None:
    """BERT's initialisation."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=_INITIAL_STD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
