"""Whispers and CLAPs of a few thousand random weights, saved as transformers saves them.

Weights are large enough that a recording changes what is said about it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from winnow.contracts.media import Samples

CODES = ("en", "zh", "de", "es", "ru", "ko", "fr", "ja", "pt", "tr")
NUM_STAMPS = 1501
MAX_TARGET = 448
REAL_TEXT_TOKENS = 50257
"""A model of CTranslate2 is multilingual if its vocabulary is as large as Whisper's."""


def tone(seed: int, seconds: float, rate: int = 16_000) -> Samples:
    """A few partials that come and go, over a little noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    sound = 0.01 * rng.standard_normal(len(time))
    for _ in range(4):
        hertz, beat = rng.uniform(100, 4000), rng.uniform(0.5, 5)
        sound += 0.1 * np.sin(2 * np.pi * hertz * time) * np.sin(2 * np.pi * beat * time)
    return sound.astype(np.float32)


def whisper(folder: Path, *, multilingual: bool = False, seed: int = 0) -> str:
    """Write a Whisper for transformers; return its folder."""
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
    )

    names = _names(multilingual)
    places = {name: place for place, name in enumerate(names)}
    end, start = places["<|endoftext|>"], places["<|startoftranscript|>"]
    config = WhisperConfig(
        vocab_size=len(names), d_model=32, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, max_target_positions=MAX_TARGET, num_mel_bins=80,
        pad_token_id=end, bos_token_id=end, eos_token_id=end, decoder_start_token_id=start,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    torch.manual_seed(seed)
    network = WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim > 1 and "embed_positions" not in name:
                weight.normal_(0, 0.35)
    settings: dict[str, Any] = {
        "no_timestamps_token_id": places["<|notimestamps|>"], "max_initial_timestamp_index": 50,
        "is_multilingual": multilingual, "eos_token_id": end, "pad_token_id": end,
        "decoder_start_token_id": start, "suppress_tokens": [2, start],
        "begin_suppress_tokens": [4, end], "max_length": MAX_TARGET, "return_timestamps": False,
    }  # fmt: skip
    if multilingual:
        settings["lang_to_id"] = {f"<|{code}|>": places[f"<|{code}|>"] for code in CODES}
        settings["task_to_id"] = {
            task: places[f"<|{task}|>"] for task in ("translate", "transcribe")
        }
    network.generation_config = GenerationConfig(**settings)
    network.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    _tokenizer(names[:-NUM_STAMPS], end).save_pretrained(folder)
    return str(folder)


def converted(source: str, folder: Path) -> str:
    """Convert a saved Whisper to CTranslate2's format, in float32; return the new folder."""
    from ctranslate2.converters import TransformersConverter

    files = ["tokenizer.json", "preprocessor_config.json"]
    TransformersConverter(source, copy_files=files).convert(str(folder))
    return str(folder)


def clap(folder: Path, *, fusion: bool = False, seed: int = 0) -> str:
    """Write a CLAP for transformers; return its folder."""
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerFast

    text = {
        "vocab_size": 262, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 90, "projection_dim": 24,
        "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
    }  # fmt: skip
    audio = {
        "spec_size": 256, "num_mel_bins": 64, "window_size": 2, "patch_size": 16,
        "patch_stride": [16, 16], "patch_embeds_hidden_size": 8, "depths": [1, 1],
        "num_attention_heads": [1, 2], "hidden_size": 16, "projection_dim": 24,
        "enable_fusion": fusion, "num_classes": 4, "aff_block_r": 2,
    }  # fmt: skip
    torch.manual_seed(seed)
    network = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=24)).eval()
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.3)
    network.save_pretrained(folder)
    kind = "fusion" if fusion else "rand_trunc"
    ClapFeatureExtractor(truncation=kind, frequency_min=50).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=_byte_tokenizer(["<s>", "<pad>", "</s>"], [], wrap=True),
        bos_token="<s>", pad_token="<pad>", eos_token="</s>", model_max_length=88,
    ).save_pretrained(folder)  # fmt: skip
    return str(folder)


def _names(multilingual: bool) -> list[str]:
    letters = _byte_letters()
    if multilingual:
        letters += [f"unused{n}" for n in range(REAL_TEXT_TOKENS - len(letters))]
    codes = [f"<|{code}|>" for code in CODES] if multilingual else []
    if multilingual:
        codes += [f"<|x{n}|>" for n in range(99 - len(codes))]
    return [
        *letters, "<|endoftext|>", "<|startoftranscript|>", *codes, "<|translate|>",
        "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>",
        *(f"<|{n * 0.02:.2f}|>" for n in range(NUM_STAMPS)),
    ]  # fmt: skip


def _byte_letters() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _byte_tokenizer(first: list[str], last: list[str], *, wrap: bool = False) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    names = [*first, *_byte_letters(), *last]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*first, *(name for name in last if name.startswith("<|"))])
    if wrap:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
    return tokenizer


def _tokenizer(names: list[str], end: int) -> Any:
    from transformers import PreTrainedTokenizerFast

    letters = len(_byte_letters())
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_tokenizer([], names[letters:]),
        eos_token=names[end], bos_token=names[end], unk_token=names[end],
    )  # fmt: skip
