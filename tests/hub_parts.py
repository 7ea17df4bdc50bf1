"""A Hugging Face cache on disk with small tokenizers and text transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from winnow.models.language_files import hub_snapshot

COMMIT = "0" * 40


def save_tokenizer(folder: Path, texts: Iterable[str], *, vocabulary: int = 400) -> Path:
    """Train a byte-level tokenizer on texts and save it as transformers does; ids 0 to 3 are its
    padding, start, end and separator."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<sep>"]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet
        ),
    )
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "sep_token": "<sep>"}
    PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(folder)
    return folder


def save_transformer(folder: Path, kind: str) -> Path:
    """Save a text transformer of a few thousand weights: roberta, xlm-roberta, mt5 or m2m_100."""
    import torch
    from transformers import (
        AutoModel,
        M2M100Config,
        MT5Config,
        PretrainedConfig,
        RobertaConfig,
        XLMRobertaConfig,
    )

    both = {"vocab_size": 400, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    bert = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 96, **both,
    }  # fmt: skip
    config: PretrainedConfig
    if kind == "mt5":
        config = MT5Config(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, **both)
    elif kind == "m2m_100":
        config = M2M100Config(
            d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
            max_position_embeddings=96, **both,
        )  # fmt: skip
    else:
        config = {"roberta": RobertaConfig, "xlm-roberta": XLMRobertaConfig}[kind](**bert)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        AutoModel.from_config(config).save_pretrained(folder)
    return folder


@contextmanager
def hub_cache(home: Path, repositories: dict[str, list[Path]]) -> Iterator[None]:
    """Let the hub's client find repositories (name -> folders whose files it holds), offline."""
    for name, folders in repositories.items():
        base = home / f"models--{name.replace('/', '--')}"
        (base / "refs").mkdir(parents=True)
        (base / "refs" / "main").write_text(COMMIT)
        for folder in folders:
            shutil.copytree(folder, base / "snapshots" / COMMIT, dirs_exist_ok=True)
    hub_snapshot.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(home))
        yield
    hub_snapshot.cache_clear()


def texts_of(folder: Path) -> str:
    """Return all JSON in a folder as one text."""
    return "\n".join(json.dumps(json.loads(p.read_text())) for p in sorted(folder.rglob("*.json")))
