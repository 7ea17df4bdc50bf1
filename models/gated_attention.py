"""Flamingo's gated cross-attention: a frozen language model that looks at pictures.

Alayrac et al. 2022, section 2.2 and appendix A.1.2. Before every n-th layer of the language model
stands a block of cross-attention and feed-forward. Each is added to the text through its own
tanh(gate), and both gates start at 0: at first the model is the plain language model, bit for bit.
A text token attends to one picture and to no other: the latest before the word that it predicts.

Tensor suffixes: B batch, I pictures of a row, Q tokens of a picture, K = I * Q keys, H heads,
T text tokens, L language-model width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from winnow.contracts.errors import SetupError

FEED_FORWARD_RATIO = 4


def decoder_layers(network: nn.Module) -> nn.ModuleList:
    """Return the list of decoder layers of a Hugging Face causal language model.

    Fails: SetupError where there is not exactly one list of ``num_hidden_layers`` modules.
    """
    config: Any = network.config
    text: Any = config.get_text_config() if hasattr(config, "get_text_config") else config
    count = getattr(text, "num_hidden_layers", None)
    lists = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and _has_weights(module)
    }
    outer = [n for n in lists if not any(n.startswith(f"{o}.") for o in lists if o != n)]
    if len(outer) == 1 and not getattr(config, "is_encoder_decoder", False):
        return lists[outer[0]]
    msg = (
        f"{type(network).__name__}: its decoder layers cannot be told: {count} modules in one list "
        f"are wanted, found {', '.join(sorted(outer)) or 'none'}; use a decoder-only causal "
        "language model such as a Llama, GPT-2 or OPT"
    )
    raise SetupError(msg)


def hidden_width(network: nn.Module) -> int:
    """Return the width of the layers; an OPT may have embeddings of another width."""
    config: Any = network.config
    text: Any = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(text.hidden_size)


def _has_weights(module: nn.ModuleList) -> bool:
    return all(any(True for _ in layer.parameters()) for layer in module)


def latest_image(image_positions: list[int], num_tokens: int) -> list[int]:
    """Return for each token the latest picture at or before it, -1 where there is none yet.

    image_positions: for each picture in order, the index of the first token that sees it.
    """
    seen = [0] * (num_tokens + 1)
    for position in image_positions:
        seen[min(position, num_tokens)] += 1
    found, latest = [], -1
    for count in seen[:num_tokens]:
        latest += count
        found.append(latest)
    return found


@dataclass(slots=True)
class Media:
    """What the blocks look at in one forward pass, or one generation.

    keys, values: per block (B, H, K, L / H). image_of_key: (K,), which picture of its row a key
    belongs to. valid: (B, K), False for padding. latest: (B, T), the picture that a token sees, -1
    for none; a pass over the last tokens only (a cached step) uses the last columns.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    image_of_key: torch.Tensor
    valid: torch.Tensor
    latest: torch.Tensor

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows only, in this order (int64 indices)."""
        self.keys = [key[rows] for key in self.keys]
        self.values = [value[rows] for value in self.values]
        self.valid, self.latest = self.valid[rows], self.latest[rows]

    def allowed(self, num_tokens: int) -> torch.Tensor:
        """Return bool (B, 1, T, K): which keys the last ``num_tokens`` tokens may see."""
        latest_BT = self.latest[:, -num_tokens:]
        same_BTK = latest_BT[:, :, None] == self.image_of_key
        return (same_BTK & self.valid[:, None, :])[:, None]


class GatedBlock(nn.Module):
    """Pre-norm cross-attention and pre-norm feed-forward, each behind its own gate at 0.

    The feed-forward has four times the width and squared ReLU (Alayrac et al. 2022, table 5).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.to_queries = nn.Linear(width, width, bias=False)
        self.to_keys = nn.Linear(width, width, bias=False)
        self.to_values = nn.Linear(width, width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)
        self.attention_gate = nn.Parameter(torch.zeros(1))
        self.forward_norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, FEED_FORWARD_RATIO * width, bias=False)
        self.narrow = nn.Linear(FEED_FORWARD_RATIO * width, width, bias=False)
        self.forward_gate = nn.Parameter(torch.zeros(1))

    def keys_values(self, tokens_BKL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values (B, H, K, L / H): once per picture, not once per step."""
        return self._split(self.to_keys(tokens_BKL)), self._split(self.to_values(tokens_BKL))

    def attend(
        self,
        hidden_BTL: torch.Tensor,
        keys_BHKd: torch.Tensor,
        values_BHKd: torch.Tensor,
        allowed_B1TK: torch.Tensor,
    ) -> torch.Tensor:
        """Return the gated update by cross-attention; 0 for tokens that may see nothing."""
        queries_BHTd = self._split(self.to_queries(self.attention_norm(hidden_BTL)))
        blind_B1T1 = ~allowed_B1TK.any(dim=-1, keepdim=True)
        seen_BHTd = nn.functional.scaled_dot_product_attention(
            queries_BHTd,
            keys_BHKd.to(queries_BHTd.dtype),
            values_BHKd.to(queries_BHTd.dtype),
            # A softmax over nothing is not a number; what it gives is then set to 0.
            attn_mask=allowed_B1TK | blind_B1T1,
        ).masked_fill(blind_B1T1, 0)
        update: torch.Tensor = self.to_out(seen_BHTd.transpose(1, 2).flatten(2))
        return self.attention_gate.tanh() * update

    def feed_forward(self, hidden_BTL: torch.Tensor) -> torch.Tensor:
        """Return the gated update by the feed-forward layer."""
        widened = self.widen(self.forward_norm(hidden_BTL)).relu().square()
        update: torch.Tensor = self.narrow(widened)
        return self.forward_gate.tanh() * update

    def _split(self, x_BTL: torch.Tensor) -> torch.Tensor:
        return x_BTL.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class GatedBlocks(nn.Module):
    """The blocks of one language model, hooked in before its layers n, 2n, ... (counted from 1).

    They are hooks, not layers: names, weights and cache of the language model stay what they were.
    Not for gradient checkpointing, which runs layers again when nothing is looked at any more.
    """

    def __init__(self, network: nn.Module, *, heads: int, every: int, seed: int) -> None:
        super().__init__()
        layers, width = decoder_layers(network), hidden_width(network)
        if not 1 <= every <= len(layers):
            msg = (
                f"cross_every={every}, but the language model has {len(layers)} layers: use a "
                f"number from 1 to {len(layers)}"
            )
            raise SetupError(msg)
        if width % heads:
            msg = f"heads={heads} does not divide the language model's width {width}"
            raise SetupError(msg)
        chosen = list(layers)[every - 1 :: every]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.blocks = nn.ModuleList(GatedBlock(width, heads) for _ in chosen)
        self._media: Media | None = None
        self._ratios: list[torch.Tensor] | None = None
        for index, layer in enumerate(chosen):
            layer.register_forward_pre_hook(_Hook(self, index), with_kwargs=True)

    def media(
        self, tokens_BIQL: torch.Tensor, valid_BIQ: torch.Tensor, latest_BT: torch.Tensor
    ) -> Media:
        """Return what the blocks need of pictures: the keys and values of every block."""
        tokens_BKL = tokens_BIQL.flatten(1, 2)
        pairs = self.keys_values(tokens_BKL)
        num_images, num_tokens = tokens_BIQL.shape[1:3]
        image_I = torch.arange(num_images, device=tokens_BIQL.device)
        return Media(
            keys=[key for key, _ in pairs],
            values=[value for _, value in pairs],
            image_of_key=image_I.repeat_interleave(num_tokens),
            valid=valid_BIQ.flatten(1),
            latest=latest_BT,
        )

    def keys_values(self, tokens_BKL: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return the keys and values of each block."""
        return [cast(GatedBlock, block).keys_values(tokens_BKL) for block in self.blocks]

    @contextlib.contextmanager
    def looking_at(self, media: Media | None) -> Iterator[None]:
        """Within it the language model sees ``media``; outside, and with None, it sees nothing."""
        before, self._media = self._media, media
        try:
            yield
        finally:
            self._media = before

    @contextlib.contextmanager
    def ratios(self) -> Iterator[list[torch.Tensor]]:
        """Collect per block (B, T): norm of the cross-attention's update over the residual's."""
        found: list[torch.Tensor] = []
        self._ratios = found
        try:
            yield found
        finally:
            self._ratios = None

    def update(self, index: int, hidden_BTL: torch.Tensor) -> torch.Tensor:
        """Return the text after block ``index``, in its own precision."""
        block = cast(GatedBlock, self.blocks[index])
        x = hidden_BTL.to(block.to_queries.weight.dtype)
        if self._media is not None:
            allowed = self._media.allowed(x.shape[1])
            update = block.attend(x, self._media.keys[index], self._media.values[index], allowed)
            self._record(update, x)
            x = x + update
        elif self._ratios is not None:
            self._ratios.append(x.new_zeros(x.shape[:2], dtype=torch.float32))
        return (x + block.feed_forward(x)).to(hidden_BTL.dtype)

    def _record(self, update_BTL: torch.Tensor, residual_BTL: torch.Tensor) -> None:
        if self._ratios is None:
            return
        norms = [x.detach().float().norm(dim=-1) for x in (update_BTL, residual_BTL)]
        self._ratios.append(norms[0] / norms[1].clamp_min(1e-12))


class _Hook:
    """Runs a block on what a decoder layer is given."""

    def __init__(self, blocks: GatedBlocks, index: int) -> None:
        self.blocks, self.index = blocks, index

    def __call__(
        self, layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if given:
            return (self.blocks.update(self.index, given[0]), *given[1:]), named
        return given, named | {
            "hidden_states": self.blocks.update(self.index, named["hidden_states"])
        }
