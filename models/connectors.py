"""Connectors: from a vision tower's patch tokens to tokens of a language model's width, by name.

    linear            one linear layer per patch (LLaVA, Liu et al. 2023)
    mlp               two layers with GELU per patch (LLaVA-1.5, Liu et al. 2024)
    qformer           learned queries with self- and cross-attention (BLIP-2, Li et al. 2023)
    instruct_qformer  the same, the instruction beside the queries (InstructBLIP, Dai et al. 2023)
    perceiver_prefix  a resampler's latents (Flamingo, Alayrac et al. 2022), as a prefix of the text
    perceiver_xattn   the same latents, for gated cross-attention inside the language model

Tensor suffixes: B batch, P patches, V vision width, Q image tokens, L language-model width, T
instruction tokens.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import nn

from winnow.contracts.errors import RecipeError
from winnow.models.flops import count_flops


class Connector(nn.Module):
    """Base of every connector.

    config: its sizes, ``vision_width`` among them.
    takes_instruction: whether ``forward`` reads the instruction (the language model's token ids).
    is_prefix: whether its tokens stand before the text; False: gated layers attend to them.
    """

    name: str = ""
    takes_instruction: bool = False
    is_prefix: bool = True

    def num_tokens(self, num_patches: int) -> int:
        """Return Q for a picture of so many patches."""
        raise NotImplementedError

    def forward(
        self,
        features_BPV: torch.Tensor,
        mask_BP: torch.Tensor | None = None,
        instruction_BT: torch.Tensor | None = None,
        instruction_mask_BT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return (B, Q, L). Masks are bool, False = padding; None = no padding.

        What is in padded patches changes no token that counts: see ``token_mask``.
        """
        raise NotImplementedError

    def token_mask(self, mask_BP: torch.Tensor | None) -> torch.Tensor | None:
        """Return which tokens count, bool (B, Q); None = all."""
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectorConfig:
    """What decides a connector's shape.

    num_queries, depth, heads: of the connectors that have queries.  vocab_size: of the language
    model's tokenizer, for connectors that read text.  patches_per_tile: with max_tiles > 0, the
    perceivers learn an embedding per tile (Flamingo's time embedding), tile by tile in that length.
    """

    vision_width: int
    language_width: int
    num_queries: int = 32
    depth: int = 2
    heads: int = 4
    vocab_size: int = 0
    patches_per_tile: int = 0
    max_tiles: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        for field in ("vision_width", "language_width", "num_queries", "depth", "heads"):
            if getattr(self, field) < 1:
                msg = f"connector: {field}={getattr(self, field)}; use at least 1"
                raise RecipeError(msg)


class PatchConnector(Connector):
    """A network that is applied to each patch: one token per patch."""

    def __init__(self, config: ConnectorConfig, network: nn.Module) -> None:
        super().__init__()
        self.config, self.network = config, network

    def num_tokens(self, num_patches: int) -> int:
        """One per patch."""
        return num_patches

    def forward(
        self,
        features_BPV: torch.Tensor,
        mask_BP: torch.Tensor | None = None,
        instruction_BT: torch.Tensor | None = None,
        instruction_mask_BT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return (B, P, L)."""
        tokens_BPL: torch.Tensor = self.network(features_BPV)
        return tokens_BPL

    def token_mask(self, mask_BP: torch.Tensor | None) -> torch.Tensor | None:
        """The patches' own."""
        return mask_BP


class LinearConnector(PatchConnector):
    """LLaVA's."""

    name = "linear"

    def __init__(self, config: ConnectorConfig) -> None:
        super().__init__(config, nn.Linear(config.vision_width, config.language_width))


class MlpConnector(PatchConnector):
    """LLaVA-1.5's (mlp2x_gelu)."""

    name = "mlp"

    def __init__(self, config: ConnectorConfig) -> None:
        inner = config.language_width
        first, second = nn.Linear(config.vision_width, inner), nn.Linear(inner, inner)
        super().__init__(config, nn.Sequential(first, nn.GELU(), second))


def _perceiver(*, is_prefix: bool) -> Callable[[ConnectorConfig], Connector]:
    def build(config: ConnectorConfig) -> Connector:
        from winnow.models.perceiver import PerceiverConnector

        return PerceiverConnector(config, is_prefix=is_prefix)

    return build


def _qformer(*, instructed: bool) -> Callable[[ConnectorConfig], Connector]:
    def build(config: ConnectorConfig) -> Connector:
        from winnow.models.qformer import InstructQFormer, QFormer, QFormerConfig

        kind = InstructQFormer if instructed else QFormer
        return kind(
            QFormerConfig(
                vision_width=config.vision_width,
                language_width=config.language_width,
                num_queries=config.num_queries,
                depth=config.depth,
                heads=config.heads,
                vocab_size=config.vocab_size,
            )
        )

    return build


CONNECTORS: Mapping[str, Callable[[ConnectorConfig], Connector]] = MappingProxyType(
    {
        "linear": LinearConnector,
        "mlp": MlpConnector,
        "qformer": _qformer(instructed=False),
        "instruct_qformer": _qformer(instructed=True),
        "perceiver_prefix": _perceiver(is_prefix=True),
        "perceiver_xattn": _perceiver(is_prefix=False),
    }
)
"""Name -> what builds it."""


def build_connector(
    name: str,
    *,
    vision_width: int,
    language_width: int,
    num_queries: int = 32,
    depth: int = 2,
    heads: int = 4,
    vocab_size: int = 0,
    patches_per_tile: int = 0,
    max_tiles: int = 0,
    seed: int = 0,
) -> Connector:
    """Return a fresh connector; the seed decides its weights. See ``ConnectorConfig``.

    Fails: RecipeError for an unknown name or a size below 1; SetupError where sizes do not fit.
    """
    if name not in CONNECTORS:
        near = difflib.get_close_matches(name, CONNECTORS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        msg = f"connector={name!r} is no connector; {hint}Allowed: {', '.join(CONNECTORS)}"
        raise RecipeError(msg)
    config = ConnectorConfig(
        vision_width=vision_width,
        language_width=language_width,
        num_queries=num_queries,
        depth=depth,
        heads=heads,
        vocab_size=vocab_size,
        patches_per_tile=patches_per_tile,
        max_tiles=max_tiles,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CONNECTORS[name](config)


def connector_flops(connector: Connector, num_patches: int, *, num_words: int = 16) -> int:
    """Return the operations for one picture; a multiply-add counts two.

    num_words: tokens of the instruction, where the connector reads one.
    """
    weight = next(connector.parameters())
    features = weight.new_zeros(1, num_patches, cast(Any, connector).config.vision_width)
    words = None
    if connector.takes_instruction:
        words = torch.zeros(1, num_words, dtype=torch.int64, device=weight.device)
    return count_flops(lambda: connector(features, None, words, None))
