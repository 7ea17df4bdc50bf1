"""AlignCLIP's network: one transformer and one projection for both modalities.

Eslami and de Melo 2024, "Mitigate the Gap: Investigating Approaches for Improving Cross-Modal
Alignment in CLIP": with one set of weights, images and captions start out in the same part of the
sphere. Its second part, the separation of images, is ``losses.image_separation``.

The network is an ``open_clip.CLIP`` in which the text side holds the image side's modules:
the transformer's blocks, the layer norm behind them, and the projection. Patch embedding, class
token, layer norm in front, token embedding and both positional embeddings stay apart; captions
keep their causal mask, and each modality its own pooling. Saved, both sides are written out, so the
folder is an ordinary open_clip model that any loader reads.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import open_clip
from torch import nn

from winnow.contracts.errors import RecipeError
from winnow.models.contrastive import build_network

_VISION_ONLY = (
    "attentional_pool", "final_ln_after_pool", "block_type", "qk_norm", "scaled_cosine_attn",
    "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc", "act_kwargs", "norm_kwargs",
)  # fmt: skip
_TEXT_ONLY = ("embed_cls", "no_causal_mask", "proj_bias", "final_ln_after_pool", "norm_kwargs")


def shared_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ``model_cfg`` whose text transformer has the shape of its image transformer.

    The width, number of heads, layers, and the feed-forward ratio of the captions' side become
    those of the images' side ("equal widths").

    Fails: RecipeError where the two sides cannot be the same blocks (a ResNet, a timm or Hugging
    Face tower, special attention).
    """
    changed = copy.deepcopy(dict(config))
    vision, text = changed["vision_cfg"], changed["text_cfg"]
    odd = [key for key in _VISION_ONLY if vision.get(key)]
    odd += [key for key in _TEXT_ONLY if text.get(key)]
    odd += [key for key in ("hf_model_name", "hf_tokenizer_name") if text.get(key)]
    odd += [key for key in ("timm_model_name",) if vision.get(key)]
    odd += ["custom_text"] if changed.get("custom_text") else []
    odd += ["layers"] if not isinstance(vision.get("layers", 12), int) else []
    odd += ["proj_type"] if text.get("proj_type", "linear") != "linear" else []
    if odd:
        msg = (
            f"shared_transformer: the architecture sets {', '.join(sorted(set(odd)))}, with which "
            "images and captions cannot share a transformer; use tiny, small, nano or a plain ViT"
        )
        raise RecipeError(msg)
    width = int(vision.get("width", 768))
    text["width"], text["layers"] = width, int(vision.get("layers", 12))
    text["heads"] = width // int(vision.get("head_width", 64))
    for key in ("mlp_ratio", "ls_init_value"):
        text.pop(key, None)
        if key in vision:
            text[key] = vision[key]
    return changed


def build_shared_network(config: Mapping[str, Any], *, seed: int) -> nn.Module:
    """Return a fresh network for what ``shared_config`` returned; the seed decides it."""
    network = build_network(config, seed=seed)
    assert isinstance(network, open_clip.CLIP)
    visual: Any = network.visual
    network.transformer = visual.transformer
    network.ln_final = visual.ln_post
    network.text_projection = visual.proj
    return network
