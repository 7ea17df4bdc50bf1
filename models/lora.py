"""Low-rank adapters on the linear layers of a language model (Hu et al. 2021), through peft."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from winnow.contracts.errors import SetupError
from winnow.models.gated_attention import decoder_layers

_MARK = ".lora_"
_INSTALL = 'pip install "winnow-data[captions]"'


def linear_names(network: nn.Module) -> list[str]:
    """Return the names of all linear layers of attention and feed-forward, in order.

    Those inside the decoder layers: not the embeddings, not the head over the vocabulary.
    """
    inside = {id(module) for module in decoder_layers(network).modules()}
    kinds: tuple[type[nn.Module], ...] = (nn.Linear, *_transposed_linear())
    return [
        name
        for name, module in network.named_modules()
        if id(module) in inside and isinstance(module, kinds)
    ]


def add_lora(network: nn.Module, *, rank: int, alpha: float, seed: int) -> None:
    """Put adapters on all linear layers, in place. The model's answers stay what they were.

    Only the adapters are trainable afterwards. Names of other weights gain ``.base_layer``;
    ``weight_name`` takes it away.
    Fails: SetupError where peft is missing or the network has adapters already.
    """
    if lora_weights(network):
        msg = "the language model has adapters already"
        raise SetupError(msg)
    peft = _peft()
    names = linear_names(network)
    transposed = any(isinstance(network.get_submodule(n), _transposed_linear()) for n in names)
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=names, fan_in_fan_out=transposed
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(seed)
        warnings.simplefilter("ignore")  # about fan_in_fan_out, which peft corrects by itself
        peft.inject_adapter_in_model(config, network)


def lora_weights(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the adapters' parameters by name; empty where there are none."""
    return {name: weight for name, weight in network.named_parameters() if _MARK in name}


def weight_name(name: str) -> str:
    """Return the name that a weight had before the adapters came."""
    return name.replace(".base_layer.", ".")


def merge_lora(network: nn.Module) -> None:
    """Add the adapters to the weights, for faster answers: the base weights are changed by it."""
    layer = _peft().tuners.lora.LoraLayer
    for module in network.modules():
        if isinstance(module, layer):
            module.merge()  # type: ignore[operator]


def is_merged(network: nn.Module) -> bool:
    """Whether adapters were added to the weights."""
    return any(getattr(module, "merged", False) is True for module in network.modules())


def _peft() -> Any:
    try:
        import peft
        import peft.tuners.lora
    except ImportError as error:
        msg = f"adapters need peft: {_INSTALL}"
        raise SetupError(msg) from error
    return peft


def _transposed_linear() -> tuple[type[nn.Module], ...]:
    """GPT-2's linear layer, whose weights are the other way round."""
    from transformers import pytorch_utils

    kind: type[nn.Module] = pytorch_utils.Conv1D
    return (kind,)
