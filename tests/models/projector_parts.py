"""A vision tower and language models of a few thousand weights, saved and found by path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from winnow.models.contrastive import build_network, save_model
from winnow.models.projector import Projector, ProjectorConfig, build_projector

CONNECTORS = ("linear", "mlp", "qformer", "instruct_qformer", "perceiver_prefix", "perceiver_xattn")
WIDTH = 32
_TEXTS = [
    "USER: Describe the picture. ASSISTANT: a red cat beside two blue dogs",
    "USER: How many dogs are there? ASSISTANT: two",
    "Is there a bird in the picture? no, there is none",
]


def tower(folder: Path) -> Path:
    """Write an untrained tower of 16 patches, 16 wide."""
    vision = {"image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8}
    text = {"context_length": 8, "vocab_size": 520, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    preprocess = {"size": [32, 32], "resize_mode": "squash"}
    save_model(folder, build_network(config, seed=0), config=config, preprocess=preprocess)
    return folder


def language_model(folder: Path, kind: str = "llama", *, bos: bool = True, layers: int = 2) -> Path:
    """Write an untrained model with a byte-level tokenizer; weights large enough to differ."""
    import transformers

    tokenizer = _tokenizer(bos)
    network = _network(kind, len(tokenizer), layers)
    with torch.no_grad():
        for weight in network.parameters():
            weight *= 4 if weight.ndim > 1 else 1
    transformers.utils.logging.set_verbosity_error()
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _network(kind: str, vocabulary: int, layers: int) -> Any:
    import transformers

    common = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    if kind == "gpt2":
        config = transformers.GPT2Config(
            n_embd=WIDTH, n_layer=layers, n_head=2, n_positions=160, **common
        )
    else:
        sizes = {"num_hidden_layers": layers, "num_attention_heads": 4, "hidden_size": WIDTH}
        sizes["max_position_embeddings"] = 160
        if kind == "opt":
            config = transformers.OPTConfig(ffn_dim=48, word_embed_proj_dim=16, **sizes, **common)
        else:
            config = transformers.LlamaConfig(
                intermediate_size=48, num_key_value_heads=2, tie_word_embeddings=True,
                **sizes, **common,
            )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return transformers.AutoModelForCausalLM.from_config(config).eval()


def _tokenizer(bos: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(
        _TEXTS,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<s>", "</s>", "<pad>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    start = {"bos_token": "<s>"} if bos else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="</s>", pad_token="<pad>", **start
    )


def build(folder: Path, connector: str, *, seed: int = 0, **sizes: Any) -> Projector:
    """Return a projector of the tower and the language model in ``folder``."""
    sizes = {"num_queries": 4, "depth": 1, "heads": 2, **sizes}
    config = ProjectorConfig(
        tower=str(folder / "tower"), language_model=str(folder / "lm"), connector=connector, **sizes
    )
    return build_projector(config, seed=seed, device="cpu")


def open_gates(projector: Projector, by: float = 1.0) -> None:
    """Let gated layers act, which they do not at first."""
    if projector.gated is not None:
        for block in projector.gated.blocks:
            torch.nn.init.constant_(block.attention_gate, by)
            torch.nn.init.constant_(block.forward_gate, by)


def pictures(count: int, tiles: int = 1, seed: int = 0) -> list[npt.NDArray[np.uint8]]:
    """Return pictures of noise as ``tower.pixels`` gives them, (tiles, 32, 32, 3)."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (tiles, 32, 32, 3), np.uint8) for _ in range(count)]
