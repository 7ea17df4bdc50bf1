"""Kinds of models of the hub as captioners: a batch equals transformers' own, one by one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.captioners import WORDS, save_network
from winnow.contracts.errors import SetupError
from winnow.models.conversation import CAPTION_PROMPT
from winnow.models.generation import Sampling
from winnow.models.hf_captioner import HfCaptioner, load_captioner
from winnow.models.hf_captioner_files import find_captioner

transformers = pytest.importorskip("transformers")

WIDTH = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
VISION = {**WIDTH, "num_hidden_layers": 1, "image_size": 32, "patch_size": 16}
SIZE = {"height": 32, "width": 32}
NUM_TOKENS = 6
PICTURES = [
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40 + 7 * seed, 50, 3), np.uint8))
    for seed in range(5)
]
IDEFICS_TOKENS = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
IDEFICS_TOKENS += tuple(f"<row_{row}_col_{col}>" for row in range(1, 4) for col in range(1, 4))
IDEFICS_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}:{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %} {{ c['text'] }}{% endif %}{% endfor %}"
    "<end_of_utterance>{% endfor %} ASSISTANT:"
)


def word_tokenizer(*extra: str) -> Any:
    """Tokens 1, 2, 3 and 4 are the start, the end, the padding and a picture."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = ["<unk>", "<s>", "</s>", "<pad>", "<image>", "Describe", "picture", *extra, *WORDS]
    inner = Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        pad_token="<pad>", additional_special_tokens=["<image>", *extra],
    )  # fmt: skip


def blip2(folder: Path) -> None:
    tokenizer = word_tokenizer()
    text = {
        "model_type": "opt", "vocab_size": len(tokenizer), "hidden_size": 32, "ffn_dim": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64,
        "word_embed_proj_dim": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3,
    }  # fmt: skip
    former = {"num_hidden_layers": 1, "encoder_hidden_size": 32, "vocab_size": len(tokenizer)}
    config = transformers.Blip2Config(
        vision_config=VISION, qformer_config=WIDTH | former, text_config=text,
        num_query_tokens=4, image_token_index=4,
    )  # fmt: skip
    save_network(transformers.Blip2ForConditionalGeneration, config, folder)
    pictures = transformers.BlipImageProcessor(size=SIZE)
    transformers.Blip2Processor(pictures, tokenizer, num_query_tokens=4).save_pretrained(folder)


def git(folder: Path) -> None:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(names))
    config = transformers.GitConfig(
        vision_config=VISION, vocab_size=len(names), **WIDTH, num_hidden_layers=1,
        max_position_embeddings=64, bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    save_network(transformers.GitForCausalLM, config, folder)
    pictures = transformers.CLIPImageProcessor(size=SIZE, crop_size=SIZE)
    tokenizer = transformers.BertTokenizerFast(str(vocabulary))
    transformers.GitProcessor(pictures, tokenizer).save_pretrained(folder)


def idefics3(folder: Path) -> None:
    """Larger pictures have more tiles and so more tokens."""
    _tiled(folder, "Idefics3")


def smolvlm(folder: Path) -> None:
    """As Idefics3; its processor also reads videos, and numbers as words."""
    _tiled(folder, "SmolVLM")


def _tiled(folder: Path, kind: str) -> None:
    tokenizer = word_tokenizer(*IDEFICS_TOKENS)
    tokenizer.image_token, tokenizer.chat_template = "<image>", IDEFICS_TEMPLATE
    names = ("fake_image_token", "global_image_token", "end_of_utterance_token")
    for name, token in zip(names, IDEFICS_TOKENS, strict=False):
        setattr(tokenizer, name, token)
    text = {
        "model_type": "llama", **WIDTH, "num_hidden_layers": 1, "num_key_value_heads": 2,
        "vocab_size": len(tokenizer), "max_position_embeddings": 256,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3,
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(
        vision_config=VISION | {"patch_size": 8}, text_config=text, image_token_id=4,
        scale_factor=2, pad_token_id=3,
    )  # fmt: skip
    save_network(getattr(transformers, f"{kind}ForConditionalGeneration"), config, folder)
    pictures = getattr(transformers, f"{kind}ImageProcessor")(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
    )
    videos = [transformers.SmolVLMVideoProcessor()] if kind == "SmolVLM" else []
    getattr(transformers, f"{kind}Processor")(
        pictures, tokenizer, *videos, image_seq_len=4, chat_template=IDEFICS_TEMPLATE
    ).save_pretrained(folder)


def vit_gpt2(folder: Path) -> None:
    """A folder with two parts that no processor binds together."""
    tokenizer = word_tokenizer()
    decoder = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=64,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**VISION), decoder
    )
    config.decoder_start_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 3
    save_network(transformers.VisionEncoderDecoderModel, config, folder)
    tokenizer.save_pretrained(folder)
    transformers.ViTImageProcessor(size=SIZE).save_pretrained(folder)


KINDS: dict[str, Callable[[Path], None]] = {
    "blip2": blip2, "git": git, "idefics3": idefics3, "smolvlm": smolvlm, "vit_gpt2": vit_gpt2,
}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(request.param, tmp_path_factory)


def written(kind: str, folders: pytest.TempPathFactory) -> Path:
    folder = folders.mktemp(kind)
    KINDS[kind](folder)
    return folder


@pytest.fixture(scope="module")
def captioner(folder: Path) -> HfCaptioner:
    return load_captioner(find_captioner(str(folder)), device="cpu", max_tokens=NUM_TOKENS)


@pytest.fixture(scope="module")
def vit_gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written("vit_gpt2", tmp_path_factory)


def alone(network: Any, inputs: Any, tokenizer: Any) -> tuple[str, float, int]:
    """What transformers writes by itself: the text, its log-likelihood, its number of tokens."""
    output = network.generate(
        **inputs, max_new_tokens=NUM_TOKENS, do_sample=False, num_beams=1,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    tokens = output.sequences[0, -len(output.logits) :].tolist()
    total = sum(
        float(torch.log_softmax(row[0].double(), 0)[token])
        for row, token in zip(output.logits, tokens, strict=True)
    )
    return tokenizer.decode(tokens, skip_special_tokens=True).strip(), total, len(tokens)


def read(folder: Path, image: Image.Image) -> tuple[Any, Any]:
    """What transformers makes of one picture, and the tokenizer."""
    if (folder / "processor_config.json").is_file():
        processor = transformers.AutoProcessor.from_pretrained(folder)
        if not processor.chat_template:
            return processor(images=image, return_tensors="pt"), processor.tokenizer
        content = [{"type": "image"}, {"type": "text", "text": CAPTION_PROMPT}]
        text = processor.apply_chat_template([{"role": "user", "content": content}])
        return processor(images=image, text=text, return_tensors="pt"), processor.tokenizer
    pictures = transformers.ViTImageProcessor.from_pretrained(folder)
    return pictures(image, return_tensors="pt"), word_tokenizer()


def test_a_batch_is_what_transformers_writes_one_by_one(
    folder: Path, captioner: HfCaptioner
) -> None:
    found = captioner.generate(captioner.prepare(PICTURES), Sampling(max_tokens=NUM_TOKENS))
    network = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    for image, one in zip(PICTURES, found, strict=True):
        text, total, num_tokens = alone(network, *read(folder, image))
        assert (one.text, one.num_tokens) == (text, num_tokens)
        assert one.log_likelihood == pytest.approx(total, abs=1e-4)
    assert len({one.text for one in found}) > 2, "the pictures make no difference"


def test_a_row_is_the_same_in_a_batch_and_alone(captioner: HfCaptioner) -> None:
    for sampling in (Sampling(max_tokens=NUM_TOKENS), Sampling(max_tokens=NUM_TOKENS, top_p=0.9)):
        seeds = [3, 1, 4, 1, 5]
        whole = captioner.generate(captioner.prepare(PICTURES), sampling, seeds)
        for image, seed, one in zip(PICTURES, seeds, whole, strict=True):
            (single,) = captioner.generate(captioner.prepare([image]), sampling, [seed])
            assert (single.text, single.num_tokens) == (one.text, one.num_tokens)
            assert single.log_likelihood == pytest.approx(one.log_likelihood, abs=1e-4)
    assert captioner.row_bytes(NUM_TOKENS) > 3 * 32 * 32 * 4


def test_a_prompt_is_what_a_decoder_begins_with(vit_gpt2_folder: Path) -> None:
    files = find_captioner(str(vit_gpt2_folder))
    captioner = load_captioner(files, prompt="a red cat", device="cpu")
    found = captioner.generate(captioner.prepare(PICTURES), Sampling(max_tokens=NUM_TOKENS))
    network = transformers.VisionEncoderDecoderModel.from_pretrained(vit_gpt2_folder).eval()
    words = word_tokenizer().convert_tokens_to_ids(["a", "red", "cat"])
    for image, one in zip(PICTURES, found, strict=True):
        inputs, tokenizer = read(vit_gpt2_folder, image)
        inputs["decoder_input_ids"] = torch.tensor([[1, *words]])
        text, total, _ = alone(network, inputs, tokenizer)
        assert one.text == text
        assert one.log_likelihood == pytest.approx(total, abs=1e-4)
    load_captioner(files, prompt="a red cat", device="cpu", max_tokens=60)
    with pytest.raises(SetupError, match="64 positions, of which prompt and picture take 4"):
        load_captioner(files, prompt="a red cat", device="cpu", max_tokens=61)


def test_a_folder_without_one_of_the_parts_is_refused(
    vit_gpt2_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(vit_gpt2_folder, tmp_path / "blind")
    (tmp_path / "blind" / "preprocessor_config.json").unlink()
    with pytest.raises(SetupError, match=r"how its pictures are prepared .*preprocessor_config"):
        load_captioner(find_captioner(str(tmp_path / "blind")), device="cpu")
    shutil.copytree(vit_gpt2_folder, tmp_path / "mute")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "mute" / name).unlink()
    with pytest.raises(SetupError, match="its text is written"):
        load_captioner(find_captioner(str(tmp_path / "mute")), device="cpu")
