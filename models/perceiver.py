"""Perceiver resampler: a fixed number of learned latents read any number of patches.

Alayrac et al. 2022 (Flamingo), section 3.1.1 and appendix A.1.1: in each layer the latents attend
to the features and to themselves (keys and values are both, one behind the other), then a
feed-forward layer of four widths with squared ReLU; both are normalised first and added to what
they read. Layers work in the vision tower's width; a linear layer takes the latents to the language
model's.

Tensor suffixes: B batch, P patches, V vision width, Q latents, S features and latents (P + Q), H
heads, K width of a head, L language-model width, T instruction tokens.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import relu, scaled_dot_product_attention

from winnow.contracts.errors import SetupError
from winnow.models.connectors import Connector, ConnectorConfig

_INITIAL_STD = 0.02
_EXPANSION = 4


class LatentAttention(nn.Module):
    """Latents attend to features and latents; pre-norm, without its residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        inner = width // heads * heads
        self.heads = heads
        self.norm_features, self.norm_latents = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = nn.Linear(width, inner, bias=False)
        self.key = nn.Linear(width, inner, bias=False)
        self.value = nn.Linear(width, inner, bias=False)
        self.output = nn.Linear(inner, width, bias=False)

    def forward(
        self, latents_BQV: torch.Tensor, features_BPV: torch.Tensor, seen: torch.Tensor | None
    ) -> torch.Tensor:
        """``seen``: bool (B, 1, 1, S), which keys count; None = all."""
        latents_BQV = self.norm_latents(latents_BQV)
        both_BSV = torch.cat([self.norm_features(features_BPV), latents_BQV], dim=1)
        query_BHQK, key_BHSK, value_BHSK = (
            states.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for states in (self.query(latents_BQV), self.key(both_BSV), self.value(both_BSV))
        )
        mixed_BHQK = scaled_dot_product_attention(query_BHQK, key_BHSK, value_BHSK, attn_mask=seen)
        mixed_BQV: torch.Tensor = self.output(mixed_BHQK.transpose(1, 2).flatten(2))
        return mixed_BQV


class FeedForward(nn.Module):
    """Two layers with squared ReLU; pre-norm, without its residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, _EXPANSION * width, bias=False)
        self.outer = nn.Linear(_EXPANSION * width, width, bias=False)

    def forward(self, states_BQV: torch.Tensor) -> torch.Tensor:
        """Return what is added to ``states_BQV``."""
        added_BQV: torch.Tensor = self.outer(relu(self.inner(self.norm(states_BQV))).square())
        return added_BQV


class PerceiverConnector(Connector):
    """The resampler, its last normalisation and a linear layer: (B, Q, L) for any P.

    Without tiles, the patches are a set: their order does not matter, since the tower's own
    position embedding is in them. With ``max_tiles`` every tile's patches get a learned embedding
    of the tile's place in the sequence, as Flamingo's frames get one of their time.
    """

    def __init__(self, config: ConnectorConfig, *, is_prefix: bool) -> None:
        super().__init__()
        width, heads = config.vision_width, config.heads
        if heads > width:
            msg = f"perceiver: heads={heads} is more than the tower's width {width}; use fewer"
            raise SetupError(msg)
        if config.max_tiles and not config.patches_per_tile:
            msg = "perceiver: max_tiles needs patches_per_tile, the tower's patches of one tile"
            raise SetupError(msg)
        self.config, self.is_prefix = config, is_prefix
        self.name = "perceiver_prefix" if is_prefix else "perceiver_xattn"
        self.latents = nn.Parameter(_INITIAL_STD * torch.randn(config.num_queries, width))
        self.tile_embedding: nn.Parameter | None = None
        if config.max_tiles:
            tiles = torch.randn(1 + config.max_tiles, width)
            self.tile_embedding = nn.Parameter(_INITIAL_STD * tiles)
        self.attentions = nn.ModuleList(LatentAttention(width, heads) for _ in range(config.depth))
        self.feed_forwards = nn.ModuleList(FeedForward(width) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.to_language = nn.Linear(width, config.language_width)

    def num_tokens(self, num_patches: int) -> int:
        """The number of latents, however many patches."""
        return self.config.num_queries

    def forward(
        self,
        features_BPV: torch.Tensor,
        mask_BP: torch.Tensor | None = None,
        instruction_BT: torch.Tensor | None = None,
        instruction_mask_BT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return (B, Q, L). ``mask_BP``: bool, False = no patch there."""
        batch, num_queries = len(features_BPV), self.config.num_queries
        if self.tile_embedding is not None:
            features_BPV = features_BPV + self._tiles(features_BPV.shape[1], self.tile_embedding)
        seen = None
        if mask_BP is not None:
            own = mask_BP.new_ones(batch, num_queries, dtype=torch.bool)
            seen = torch.cat([mask_BP.bool(), own], dim=1)[:, None, None, :]
        latents_BQV = self.latents.expand(batch, -1, -1)
        for attention, feed_forward in zip(self.attentions, self.feed_forwards, strict=True):
            latents_BQV = latents_BQV + attention(latents_BQV, features_BPV, seen)
            latents_BQV = latents_BQV + feed_forward(latents_BQV)
        tokens_BQL: torch.Tensor = self.to_language(self.norm(latents_BQV))
        return tokens_BQL

    def _tiles(self, num_patches: int, embedding: torch.Tensor) -> torch.Tensor:
        """Return the embedding of each patch's tile, (P, V)."""
        place = torch.arange(num_patches, device=embedding.device) // self.config.patches_per_tile
        if num_patches > len(embedding) * self.config.patches_per_tile:
            msg = (
                f"perceiver: {num_patches} patches are more than {len(embedding)} tiles of "
                f"{self.config.patches_per_tile}; use the max_tiles that it was built with"
            )
            raise SetupError(msg)
        return embedding[place]
