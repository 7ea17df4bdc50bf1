"""Matching heads of random weights, saved with a small tower and tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from winnow.models.matching import MatchingSource, save_matching
from winnow.models.qformer import QFormer, QFormerConfig
from winnow.models.qformer_losses import FirstStage
from winnow.models.vision_tower import VisionTower

TEXTS = ["a red cat", "two blue dogs to the left of a house", "zyzzyva"]


def save_tower(folder: Path) -> Path:
    """A tower of 2 x 2 patches, with random weights."""
    from winnow.models.contrastive import build_network, save_model
    from winnow.models.tokenizer import trimmed_merges

    config: dict[str, Any] = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16,
        },
        "text_cfg": {"context_length": 12, "vocab_size": 560, "width": 32, "heads": 2, "layers": 1},
    }  # fmt: skip
    merges = trimmed_merges(TEXTS, 560)
    save_model(folder, build_network(config, seed=3), config=config, preprocess={}, merges=merges)
    return folder


def save_language_files(folder: Path) -> Path:
    """A byte-level tokenizer and a configuration: a matching head needs no weights of it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"]
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    whole.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    config.save_pretrained(folder)
    return folder


def first_stage() -> FirstStage:
    """Random, but far from the first values, so that scores differ."""
    torch.manual_seed(1)
    config = QFormerConfig(
        vision_width=32, language_width=16, width=16, num_queries=3, heads=2, vocab_size=300,
        max_tokens=20,
    )  # fmt: skip
    stage = FirstStage(QFormer(config), embedding_width=8)
    with torch.no_grad():
        for parameter in stage.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return stage.eval()


def save_head(folder: Path, *, max_tiles: int = 0) -> Path:
    """A folder with tower, tokenizer and matching head."""
    tower, language = folder / "vit", folder / "lm"
    if not tower.is_dir():
        save_tower(tower)
        save_language_files(language)
    digest = VisionTower.load(str(tower), max_tiles=max_tiles).digest()
    source = MatchingSource(
        tower=str(tower), tower_digest=digest, language_model=str(language), max_tiles=max_tiles
    )
    head = folder / f"head{max_tiles}"
    save_matching(head, first_stage(), source)
    return head
