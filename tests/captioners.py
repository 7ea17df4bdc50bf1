"""Captioners of a few thousand random weights, saved as transformers saves them.

Weights are large enough that a picture changes what is said about it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

WORDS = ("a", "an", "the", "red", "green", "blue", "cat", "dog", "house", "tree", "is", "on")
WORDS += ("near", "and", "two", "three", "small", "big")
TEMPLATE = (
    "{% for m in messages %}<s>USER:{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %} {{ c['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
SIDE = 32


def batch(images: Sequence[bytes | None], uids: Sequence[bytes] | None = None) -> pa.RecordBatch:
    """Rows of encoded images."""
    uids = uids or [bytes([i]) * 16 for i in range(len(images))]
    columns = {
        "uid": pa.array(uids, pa.binary(16)),
        "image": pa.array(images, pa.large_binary()),
    }
    return pa.RecordBatch.from_pydict(columns)


def blip(folder: Path, *, layers: int = 1, side: int = SIDE) -> str:
    """Write a BLIP captioner with a tokenizer of words; return its folder."""
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    folder.mkdir(parents=True, exist_ok=True)
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(names))
    width: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    width |= {"projection_dim": 16, "num_hidden_layers": layers}
    text = {
        "vocab_size": len(names), "max_position_embeddings": 64, "encoder_hidden_size": 32,
        "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0,
    }  # fmt: skip
    config = BlipConfig(
        text_config=width | text,
        vision_config=width | {"image_size": side, "patch_size": 16},
        projection_dim=16,
    )
    ends = {"text_decoder.cls.predictions.bias": 3}
    save_network(BlipForConditionalGeneration, config, folder, ends)
    size = {"height": side, "width": side}
    tokenizer = BertTokenizerFast(str(vocabulary))
    BlipProcessor(BlipImageProcessor(size=size), tokenizer).save_pretrained(folder)
    return str(folder)


def llava(folder: Path) -> str:
    """Write a LLaVA, a chat model with a picture's tokens among the text's; return its folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    folder.mkdir(parents=True, exist_ok=True)
    names = ["<unk>", "<s>", "</s>", "<pad>", "<image>", "USER", "ASSISTANT", ":", "."]
    names += ["Describe", "picture", *WORDS]
    inner = Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        pad_token="<pad>", extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    width: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            **width, num_hidden_layers=2, image_size=SIDE, patch_size=16, projection_dim=16
        ),
        text_config=LlamaConfig(
            **width, num_hidden_layers=1, vocab_size=len(names), max_position_embeddings=64,
            bos_token_id=1, eos_token_id=2, pad_token_id=3,
        ),
        image_token_index=4,
    )  # fmt: skip
    save_network(LlavaForConditionalGeneration, config, folder)
    size = {"height": SIDE, "width": SIDE}
    processor = LlavaProcessor(
        CLIPImageProcessor(size=size, crop_size=size),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    processor.save_pretrained(folder)
    return str(folder)


def projector(folder: Path, *, seed: int = 0) -> str:
    """Write a projector model of a small tower and a small language model; return its folder."""
    from tests.stages.train.projector_parts import language_model, tower
    from winnow.models.projector import build_projector
    from winnow.models.projector_files import ProjectorConfig, save_projector

    config = ProjectorConfig(
        tower=tower(folder / "a-tower"), language_model=language_model(folder / "a-lm")
    )
    save_projector(folder, build_projector(config, seed=seed, device="cpu"))
    return str(folder)


def save_network(
    kind: Any, config: Any, folder: Path, ends: Mapping[str, int] | None = None
) -> None:
    """Write a network whose weights are large enough that pictures matter.

    ``ends``: bias -> token that is made likely, so that some texts end and some do not."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = kind(config)
        for weights in network.parameters():
            if weights.ndim > 1:
                torch.nn.init.normal_(weights, std=0.3)
        for name, token in (ends or {}).items():
            network.get_parameter(name).data[token] += 2.5
        network.save_pretrained(folder)
