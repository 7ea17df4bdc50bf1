"""A vision tower and a language model of a few thousand weights, saved and found by path."""

from __future__ import annotations

from pathlib import Path

import torch

from winnow.models.contrastive import build_network, save_model

WORDS = """
a an the card is of this what colour color yes no it red green blue yellow black white pink brown
two next to USER ASSISTANT Describe picture Is there in on
"""


def tower(folder: Path) -> str:
    """Write an untrained tower of 4 patches, 16 wide; return its path."""
    vision = {"image_size": 32, "patch_size": 16, "width": 16, "layers": 2, "head_width": 8}
    text = {"context_length": 8, "vocab_size": 520, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    folder.mkdir(parents=True, exist_ok=True)
    size = {"size": (32, 32), "resize_mode": "squash"}
    save_model(folder, build_network(config, seed=0), config=config, preprocess=size, merges=None)
    return str(folder)


def language_model(folder: Path, *, width: int = 32, weights: bool = True) -> str:
    """Write an untrained Llama of two layers whose tokens are words; return its path.

    Its weights are large enough that what stands before a word changes what follows.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    names = ["<unk>", "<s>", "</s>", "<pad>", ".", ":", "?", *WORDS.split()]
    inner = Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        pad_token="<pad>",
    )  # fmt: skip
    config = LlamaConfig(
        vocab_size=len(names), hidden_size=width, intermediate_size=2 * width,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=128,
        bos_token_id=1, eos_token_id=2, pad_token_id=3, initializer_range=0.2,
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    if not weights:
        config.save_pretrained(folder)
        return str(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)
