"""Language models: loaded without pickle or foreign code, measured as a naive loop measures."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from winnow.contracts.errors import SetupError
from winnow.models.conversation import answered, question
from winnow.models.language_model import (
    PACKAGED,
    LanguageModel,
    as_language_model,
    choose_device,
    decode,
    encode,
    find_language_model,
    forward_accepts,
    load_language_model,
    perplexity,
    token_offsets,
)

transformers = pytest.importorskip("transformers")

TEXTS = [
    "a red cat to the left of two dogs",
    "USER: Is there a cat in the picture? ASSISTANT: yes",
    "unheard-of zyzzyva \u00fc\u4e2d\U0001f600",
    "dogs",
]


@pytest.fixture(scope="module")
def tiny() -> LanguageModel:
    return load_language_model(find_language_model(PACKAGED), device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GPT-2 with the packaged tokenizer, made from a configuration and saved."""
    path = tmp_path_factory.mktemp("lm") / "gpt2"
    source = find_language_model(PACKAGED)
    vocabulary = json.loads(source.config.read_text())["vocab_size"]
    config = transformers.GPT2Config(
        n_embd=16, n_layer=1, n_head=2, vocab_size=vocabulary, n_positions=48
    )
    torch.manual_seed(1)
    transformers.GPT2LMHeadModel(config).save_pretrained(path)
    for file in source.tokenizer:
        shutil.copy(file, path)
    return path


def _copy(folder: Path, target: Path, *, without: str = "") -> Path:
    shutil.copytree(folder, target)
    if without:
        (target / without).unlink()
    return target


def test_the_packaged_model_is_small_and_speaks_of_scenes(tiny: LanguageModel) -> None:
    files = find_language_model(PACKAGED)
    assert sum(path.stat().st_size for path in files.folder.iterdir()) < 8 * 2**20
    assert (tiny.width, tiny.context, tiny.dtype) == (160, 512, torch.float32)
    assert len({tiny.eos_id, tiny.pad_id}) == 2
    assert tiny.bos_id == tiny.eos_id
    told = [
        "a picture of a red car and two dogs",
        "The picture shows a cat. A dog is to the left of it.",
        f"{question('How many cars are there?')}{answered('two')}",
    ]
    shuffled = [" ".join(np.random.default_rng(0).permutation(text.split())) for text in told]
    assert perplexity(tiny, told).value < 30
    assert perplexity(tiny, told).value < perplexity(tiny, shuffled).value / 5


@pytest.mark.parametrize("bos", [True, False])
def test_perplexity_is_that_of_a_naive_loop(tiny: LanguageModel, bos: bool) -> None:
    model = tiny if bos else dataclasses.replace(tiny, bos_id=None)
    total, count = 0.0, 0
    for text in TEXTS:
        tokens = ([tiny.bos_id] if bos else []) + encode(model, text)
        for place in range(1, len(tokens)):
            with torch.no_grad():
                logits = model.network(input_ids=torch.tensor([tokens[:place]])).logits[0, -1]
            total -= float(torch.log_softmax(logits.double(), 0)[tokens[place]])
            count += 1
    for batch_size in (1, 2, 16):
        found = perplexity(model, [*TEXTS, ""], batch_size=batch_size)
        assert found.num_tokens == count
        assert found.value == pytest.approx(math.exp(total / count), rel=1e-5)
        assert found.num_cut == 0


def test_a_text_beyond_the_context_is_cut_and_counted(tiny: LanguageModel) -> None:
    found = perplexity(tiny, ["a cat and a dog " * 300, "a cat"])
    assert (found.num_tokens, found.num_cut) == (511 + 2, 1)
    assert math.isnan(perplexity(tiny, []).value)


@pytest.mark.parametrize("text", [*TEXTS, "", " yes", "a  b\n\tc", "</s> <|endoftext|>"])
def test_text_comes_back_from_its_tokens(tiny: LanguageModel, text: str) -> None:
    tokens = encode(tiny, text)
    assert decode(tiny, tokens) == text.strip()
    assert decode(tiny, [tiny.pad_id, *tokens, tiny.eos_id]) == text.strip()
    assert not {tiny.eos_id, tiny.pad_id} & set(tokens)  # a caption cannot end an answer
    offsets = token_offsets(tiny, text)
    assert len(offsets) == len(tokens)
    assert "".join(text[a:b] for a, b in offsets).split() == text.split() or not text.isascii()


def test_pieces_of_a_conversation_are_tokens_apart(tiny: LanguageModel) -> None:
    """Prompt and answer are encoded apart; for this tokenizer that is how they are together."""
    prompt, answer = question("What color is the car?"), answered("red")
    assert encode(tiny, prompt) + encode(tiny, answer) == encode(tiny, prompt + answer)


def test_loaded_weights_are_transformers_own(folder: Path) -> None:
    model = load_language_model(find_language_model(str(folder)), device="cpu")
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder)
    own = plain.state_dict()
    assert model.network.state_dict().keys() == own.keys()
    assert all(torch.equal(v, own[k]) for k, v in model.network.state_dict().items())
    assert (model.width, model.context) == (16, 48)
    assert not any(weight.requires_grad for weight in model.network.parameters())
    assert not model.network.training
    tokens = torch.tensor([encode(model, "a cat")])
    assert torch.equal(model.embed(tokens), plain.get_input_embeddings()(tokens))
    half = load_language_model(find_language_model(str(folder)), device="cpu", precision="bf16")
    assert half.dtype == torch.bfloat16


def test_pytorch_bin_is_read_without_unpickling(folder: Path, tmp_path: Path) -> None:
    path = _copy(folder, tmp_path / "bin", without="model.safetensors")
    weights = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    torch.save(weights, path / "pytorch_model.bin")
    model = load_language_model(find_language_model(str(path)), device="cpu")
    assert all(torch.equal(v, weights[k]) for k, v in model.network.state_dict().items())
    marker = tmp_path / "marker"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (marker,))

    (path / "pytorch_model.bin").write_bytes(pickle.dumps({"w": Evil()}))
    with pytest.raises(SetupError, match="cannot be loaded"):
        load_language_model(find_language_model(str(path)), device="cpu")
    assert not marker.exists()


def test_code_in_the_folder_does_not_run(folder: Path, tmp_path: Path) -> None:
    path, marker = _copy(folder, tmp_path / "code"), tmp_path / "marker"
    config = json.loads((path / "config.json").read_text())
    config |= {
        "model_type": "foreign",
        "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"},
    }
    (path / "config.json").write_text(json.dumps(config))
    (path / "own.py").write_text(f"open({str(marker)!r}, 'w')\nclass Own: pass\n")
    with pytest.raises(SetupError, match="cannot be loaded"):
        load_language_model(find_language_model(str(path)), device="cpu")
    assert not marker.exists()


def test_random_weights_are_refused_unless_meant(folder: Path, tmp_path: Path) -> None:
    path = _copy(folder, tmp_path / "bare", without="model.safetensors")
    with pytest.raises(SetupError, match="randomly initialised"):
        find_language_model(str(path))
    files = find_language_model(str(path), allow_random=True)
    with pytest.raises(SetupError, match="randomly initialised"):
        load_language_model(files, device="cpu")
    before = torch.random.get_rng_state()
    first, again, other = (
        load_language_model(files, device="cpu", allow_random=True, seed=seed).network.state_dict()
        for seed in (4, 4, 5)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["transformer.wte.weight"], other["transformer.wte.weight"])


def test_weights_that_are_half_there_are_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = _copy(folder, tmp_path / "half")
    weights = load_file(path / "model.safetensors")
    name = next(name for name in weights if name.endswith("mlp.c_fc.weight"))
    save_file(
        {k: v for k, v in weights.items() if k != name},
        path / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(SetupError, match=r"mlp\.c_fc\.weight is missing"):
        load_language_model(find_language_model(str(path)), device="cpu")
    (path / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(SetupError, match="cannot be loaded"):
        load_language_model(find_language_model(str(path)), device="cpu")


def test_a_damaged_configuration_is_refused(folder: Path, tmp_path: Path) -> None:
    path = _copy(folder, tmp_path / "damaged")
    (path / "config.json").write_text("{")
    with pytest.raises(SetupError, match="cannot be loaded"):
        load_language_model(find_language_model(str(path)), device="cpu")


def test_a_tokenizer_that_does_not_fit_is_refused(tiny: LanguageModel, folder: Path) -> None:
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=100)
    small = transformers.GPT2LMHeadModel(config)
    with pytest.raises(SetupError, match="they do not belong together"):
        as_language_model(small, tiny.tokenizer, name="small")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = None
    with pytest.raises(SetupError, match="no end-of-text token"):
        as_language_model(small, tokenizer, name="small")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu() -> None:
    with pytest.raises(SetupError, match="torch sees no GPU"):
        choose_device("cuda")


def test_forward_arguments_are_seen_through_peft(tiny: LanguageModel) -> None:
    peft = pytest.importorskip("peft")
    network = transformers.AutoModelForCausalLM.from_config(
        transformers.LlamaConfig(
            hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1,
            vocab_size=20,
        )
    )  # fmt: skip
    wrapped = peft.get_peft_model(network, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    assert forward_accepts(wrapped, "logits_to_keep")
    assert not forward_accepts(wrapped, "pixel_values")


def test_nothing_but_torch_is_imported() -> None:
    """The two files load where transformers, ray, open_clip and webdataset are missing."""
    code = (
        "import sys\n"
        "for name in ('transformers', 'ray', 'open_clip', 'webdataset', 'peft'):\n"
        "    sys.modules[name] = None\n"
        "import winnow.models.generation\n"
        "from winnow.models.language_model import find_language_model, load_language_model\n"
        "try:\n"
        "    load_language_model(find_language_model('tiny-lm'), device='cpu')\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == (
        'SetupError language models need transformers: pip install "winnow-data[captions]"'
    )
