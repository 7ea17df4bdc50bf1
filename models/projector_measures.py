"""What a projector model takes from a picture, and what a picture costs it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from winnow.contracts.errors import SetupError
from winnow.contracts.trial import Floats
from winnow.models.conversation import answered
from winnow.models.flops import count_flops
from winnow.models.lora import lora_weights
from winnow.models.projector_batch import Layout, Packed, pack_prompt

if TYPE_CHECKING:
    from winnow.models.projector_network import Prepared, Projector

TEXT_TOKENS = 64
"""Of text before the token whose operations are counted."""


@torch.no_grad()
def token_log_likelihoods(
    projector: Projector,
    features_BPV: torch.Tensor | None,
    mask_BP: torch.Tensor | None,
    prompts: Sequence[str],
    answers: Sequence[str],
) -> list[Floats]:
    """See ``Projector.token_log_likelihoods``."""
    if not prompts:
        return []
    prepared, lengths = _answers(projector, features_BPV, mask_BP, prompts, answers)
    logits, targets = projector.targets(prepared)
    logs = torch.log_softmax(logits.float(), dim=-1).gather(1, targets[:, None])[:, 0]
    return _per_answer(logs, prepared.layout, lengths)


@torch.no_grad()
def use_of_image(
    projector: Projector,
    features_BPV: torch.Tensor | None,
    mask_BP: torch.Tensor | None,
    prompts: Sequence[str],
    answers: Sequence[str],
) -> list[Floats]:
    """Return per answer how much the layers take from the picture where each token is predicted.

    "attention_mass" for prefix connectors: the share of attention on the prefix (image tokens, and
    audio tokens or nulls where there is an audio tower), mean over layers and heads; comparable
    between prefixes of equal length only. "gate_ratio" for gated
    layers: the norm of the gated cross-attention's update over that of the residual, mean over the
    blocks. float64, aligned with ``Projector.tokens``; nan behind the language model's context.
    Cost: as ``token_log_likelihoods``; attention mass holds all attention weights of the batch.
    Fails: SetupError for a language model that gives no attention weights.
    """
    if not prompts:
        return []
    prepared, lengths = _answers(projector, features_BPV, mask_BP, prompts, answers)
    measure = _attention_mass if projector.gated is None else _gate_ratio
    used_BT = measure(projector, prepared)
    # A token is predicted where the one before it is read.
    values = used_BT[:, :-1][prepared.layout.counts[:, 1:]]
    return _per_answer(values, prepared.layout, lengths)


def _answers(
    projector: Projector,
    features_BPV: torch.Tensor | None,
    mask_BP: torch.Tensor | None,
    prompts: Sequence[str],
    answers: Sequence[str],
) -> tuple[Prepared, list[int]]:
    """Lay out prompts with their answers; only answers' tokens count. Return their numbers too."""
    images = projector.image_tokens(
        features_BPV, mask_BP, num_rows=len(prompts), instructions=prompts
    )
    rows, lengths, bos = [], [], projector.language.bos_id
    for prompt, answer, image in zip(prompts, answers, images.row_of, strict=True):
        asked = pack_prompt(prompt, projector.encode, bos=bos, has_image=image is not None)
        said = projector.encode(answered(answer))
        lengths.append(len(said))
        counts = (*asked.counts, *[True] * len(said))
        rows.append(Packed(tokens=(*asked.tokens, *said), counts=counts, images=asked.images))
    return projector.prepare(rows, [[i] for i in range(len(rows))], images, left=False), lengths


def _per_answer(values: torch.Tensor, layout: Layout, lengths: Sequence[int]) -> list[Floats]:
    """Cut the values of all tokens that count into rows; nan for tokens that were cut off."""
    kept = layout.counts.sum(dim=1).tolist()
    found = []
    for part, length in zip(values.double().cpu().split(kept), lengths, strict=True):
        row = np.full(length, np.nan)
        row[: len(part)] = part.numpy()
        found.append(row)
    return found


def facts(projector: Projector) -> dict[str, float]:
    """Return what tables print of a model beside its scores.

    parameters: of tower, connector and language model. trained_parameters: those that were ever
    trained. image_tokens: of a picture with the most tiles. flops_per_image: of tower, connector,
    and language model on the image tokens (for gated layers, their keys and values), multiply-adds
    counted as two; what text costs is not in it. flops_per_text_token: of the language model on one
    more token of an answer, behind a picture with the most tiles and TEXT_TOKENS others (fewer
    where its context ends) whose keys and values are kept: with its output layer, what attending to
    image tokens costs, and all that gated layers do for a token. With an audio tower also
    audio_tokens, of a whole clip, and flops_per_recording, of audio tower and connector on it; both
    sides' parameters are counted, and the language model's operations are on the whole prefix.
    """
    adapters = lora_weights(projector.network)
    sizes = {
        "connector": _size(projector.connector) + _size(projector.gated),
        "lora": sum(p.numel() for p in adapters.values()),
    }
    sizes["lm"] = _size(projector.network) - sizes["lora"]
    whole = sum(sizes.values()) + _size(projector.tower)
    audio, heard = projector.audio, dict[str, float]()
    if audio is not None:
        learned = sum(p.numel() for p in audio.learned())
        sizes["connector"] += learned
        whole += _size(audio)
        heard["audio_tokens"] = float(audio.num_tokens)
        heard["flops_per_recording"] = float(audio.flops())
    return {
        "parameters": float(whole),
        "trained_parameters": float(sum(sizes[part] for part in projector.trained)),
        "image_tokens": float(num_image_tokens(projector)),
        "flops_per_image": float(flops_per_image(projector)),
        "flops_per_text_token": float(flops_per_text_token(projector)),
        **heard,
    }


def num_image_tokens(projector: Projector) -> int:
    """Return the image tokens of a picture with the most tiles."""
    return projector.connector.num_tokens(most_tiles(projector) * projector.tower.patches_per_tile)


def most_tiles(projector: Projector) -> int:
    """Return the most tiles of a picture: the overview and its parts."""
    return 1 + projector.config.max_tiles if projector.config.max_tiles > 1 else 1


@torch.no_grad()
def flops_per_image(projector: Projector) -> int:
    """Count the operations of one picture with the most tiles; see ``facts``."""
    tokens_1QL = _largest_prefix(projector)
    flops = projector.tower.flops(most_tiles(projector))
    flops += count_flops(lambda: _largest_prefix(projector))
    gated = projector.gated
    if gated is not None:
        return flops + count_flops(lambda: gated.keys_values(tokens_1QL))
    body: Any = projector.network.base_model
    given = tokens_1QL.to(projector.language.dtype)
    return flops + count_flops(lambda: body(inputs_embeds=given, use_cache=False))


@torch.no_grad()
def flops_per_text_token(projector: Projector) -> int:
    """Count the operations of one text token behind a picture and other text; see ``facts``."""
    language, gated, network = projector.language, projector.gated, projector.network
    prefix_1QL = _largest_prefix(projector)
    text = torch.full((1, TEXT_TOKENS + 1), language.eos_id, device=language.device)
    row_1TL, media = language.embed(text), None
    if gated is None:
        row_1TL = torch.cat([prefix_1QL.to(row_1TL.dtype), row_1TL], dim=1)
    row_1TL = row_1TL[:, : language.context]
    if gated is not None:
        seen_11Q = torch.ones(1, 1, prefix_1QL.shape[1], dtype=torch.bool, device=language.device)
        media = gated.media(prefix_1QL[:, None], seen_11Q, torch.zeros_like(text[:, 1:]))
    with contextlib.nullcontext() if gated is None else gated.looking_at(media):
        past = network(inputs_embeds=row_1TL[:, :-1], use_cache=True).past_key_values
        return count_flops(
            lambda: network(inputs_embeds=row_1TL[:, -1:], past_key_values=past, use_cache=True)
        )


def _largest_prefix(projector: Projector) -> torch.Tensor:
    """Return the image tokens (1, Q, L) of a picture with the most tiles, and those of no sound."""
    tower, words = projector.tower, [projector.config.prompt]
    features = torch.zeros(1, most_tiles(projector) * tower.patches_per_tile, tower.width)
    return projector.image_tokens(features, None, num_rows=1, instructions=words).tokens


def _attention_mass(projector: Projector, prepared: Prepared) -> torch.Tensor:
    """Return (B, T): the share of each position's attention that is on image tokens."""
    is_image_BT = prepared.layout.slots < 0
    with _eager_attention(projector.network):
        output = projector.forward_prepared(prepared, output_attentions=True)
    attentions = [a for a in output.attentions or () if a is not None]
    if not attentions:
        msg = f"{type(projector.network).__name__} gives no attention weights to measure"
        raise SetupError(msg)
    weights = is_image_BT[:, None, :, None].float()
    masses = [(a.float() @ weights)[..., 0].mean(dim=1) for a in attentions]
    return torch.stack(masses).mean(dim=0)


def _gate_ratio(projector: Projector, prepared: Prepared) -> torch.Tensor:
    assert projector.gated is not None
    with projector.gated.ratios() as ratios:
        projector.forward_prepared(prepared)
    return torch.stack(ratios).mean(dim=0)


@contextlib.contextmanager
def _eager_attention(network: Any) -> Iterator[None]:
    """Fused attention returns no weights; what was set before comes back."""
    before = network.config._attn_implementation
    network.set_attn_implementation("eager")
    try:
        yield
    finally:
        network.set_attn_implementation(before)


def _size(module: nn.Module | None) -> int:
    """Count parameters, each once."""
    return 0 if module is None else sum(p.numel() for p in module.parameters())
