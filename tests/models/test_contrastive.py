"""Models: found, digested, loaded without pickle, and equal to plain open_clip."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from winnow.contracts.errors import RecipeError, SetupError
from winnow.models import checkpoint
from winnow.models.checkpoint import architecture, embedding_width, find_model
from winnow.models.contrastive import (
    Preprocess,
    build_network,
    encode_text_short,
    load_model,
    save_model,
    to_rgb,
)
from winnow.models.tokenizer import trimmed_merges

CAPTIONS = ["a red cat", "two blue dogs to the left of a house", "unheard-of zyzzyva 7", "x"]
CONFIG: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16,
    },
    "text_cfg": {"context_length": 12, "vocab_size": 600, "width": 32, "heads": 2, "layers": 2},
}  # fmt: skip
PREPROCESS = {"size": [32, 32], "mean": [0.5, 0.4, 0.3], "std": [0.3, 0.2, 0.1]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model made from a configuration, saved."""
    path = tmp_path_factory.mktemp("model")
    network = build_network(CONFIG, seed=3)
    save_model(
        path, network, config=CONFIG, preprocess=PREPROCESS, merges=trimmed_merges(CAPTIONS, 600)
    )
    return path


def _picture(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng([seed, width, height])
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def test_embeddings_equal_plain_open_clip(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)  # open_clip reads the vocabulary's path relative to here
    name = f"local-dir:{folder}"
    network, _, transform = open_clip.create_model_and_transforms(name)
    tokenizer = open_clip.get_tokenizer(name)
    network.eval()
    images = [_picture(40, 33), _picture(200, 90), _picture(31, 64)]
    with torch.no_grad():
        expected_images = [network.encode_image(transform(i)[None], normalize=True) for i in images]
        expected_texts = network.encode_text(tokenizer(CAPTIONS), normalize=True)
    model = load_model(find_model(str(folder)), device="cpu")
    pixels = torch.from_numpy(np.stack([model.preprocess.pixels(i) for i in images]))
    assert (model.embed_images(pixels) - torch.cat(expected_images)).abs().max() < 1e-5
    assert (model.embed_texts(CAPTIONS) - expected_texts).abs().max() < 1e-5


@settings(max_examples=25, deadline=None)
@given(
    width=st.integers(2, 150),
    height=st.integers(2, 150),
    mode=st.sampled_from(["shortest", "longest", "squash"]),
)
def test_preprocessing_is_open_clips_bit_for_bit(width: int, height: int, mode: str) -> None:
    if max(width, height) > 16 * min(width, height):
        return  # strips are cut first, see below
    preprocess = Preprocess({**PREPROCESS, "size": (32, 32), "resize_mode": mode})
    image = _picture(width, height)
    ours = preprocess.normalize(torch.from_numpy(preprocess.pixels(image)[None].copy()))[0]
    assert torch.equal(ours, preprocess.whole(image))


@pytest.mark.parametrize("size", [(1, 300_000), (300_000, 1), (7, 90_000)])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_a_strip_does_not_become_gigabytes(size: tuple[int, int], mode: str) -> None:
    preprocess = Preprocess({**PREPROCESS, "size": (32, 32), "resize_mode": mode})
    image = Image.new("RGB", size, (10, 200, 30))
    pixels = preprocess.pixels(image)
    assert pixels.shape == (32, 32, 3)
    assert pixels[16, 16].tolist() == [10, 200, 30]


def test_transparent_pixels_are_white() -> None:
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    half = Image.new("LA", (4, 4), (0, 128))
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([255, 0, 0, 0, 0, 0])
    palette.info["transparency"] = 1
    keyed = Image.new("RGB", (4, 4), (9, 9, 9))
    keyed.info["transparency"] = (9, 9, 9)
    for image, value in ((clear, 255), (half, 127), (palette, 255), (keyed, 255)):
        rgb = to_rgb(image)
        assert rgb.mode == "RGB"
        assert abs(rgb.getpixel((0, 0))[0] - value) <= 1  # type: ignore[index]


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("L", 7, (7, 7, 7)),
        ("1", 1, (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("I;16", 0x80FF, (128, 128, 128)),
        ("RGB", (1, 2, 3), (1, 2, 3)),
    ],
)
def test_every_mode_becomes_rgb(mode: str, color: Any, expected: tuple[int, int, int]) -> None:
    assert to_rgb(Image.new(mode, (3, 2), color)).getpixel((1, 1)) == expected


def test_short_captions_are_encoded_as_long_ones() -> None:
    network = build_network(CONFIG, seed=1)
    tokens = torch.zeros(33, 12, dtype=torch.long)
    for row in range(33):
        end = 1 + row % 11
        tokens[row, 0] = 598
        tokens[row, 1:end] = torch.arange(1, end) * 7 + row
        tokens[row, end] = 599
    short, full = encode_text_short(network, tokens), network.encode_text(tokens)
    assert (short - full).abs().max() < 1e-5
    short.square().sum().backward()
    ours = network.token_embedding.weight.grad.clone()
    network.zero_grad()
    network.encode_text(tokens).square().sum().backward()
    torch.testing.assert_close(ours, network.token_embedding.weight.grad, rtol=1e-4, atol=1e-2)


def test_the_seed_decides_a_fresh_model() -> None:
    states = [build_network(CONFIG, seed=s).state_dict() for s in (5, 5, 6)]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not torch.equal(states[0]["visual.conv1.weight"], states[2]["visual.conv1.weight"])


def test_the_digest_is_of_the_content(folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "elsewhere"
    shutil.copytree(folder, copied)
    digest = find_model(str(folder)).digest()
    assert len(digest) == 32
    assert find_model(str(copied)).digest() == digest
    assert find_model(str(copied / "model.safetensors")).digest() == digest
    for name, old, new in (
        ("open_clip_config.json", b"0.4", b"0.5"),
        ("bpe_merges.txt.gz", None, None),
        ("model.safetensors", None, None),
    ):
        path = copied / name
        data = path.read_bytes()
        path.write_bytes(data.replace(old, new) if old else data[:-1] + bytes([data[-1] ^ 1]))
        assert find_model(str(copied)).digest() != digest, name
        path.write_bytes(data)
    assert find_model(str(copied)).digest() == digest


def test_finding_and_digesting_load_neither_torch_nor_the_model(folder: Path) -> None:
    code = (
        "import sys; from winnow.stages.clip_score import ClipScore;"
        f"stage = ClipScore(model={str(folder)!r}, write_embeddings=True);"
        "stage.model_digest(); stage.writes; ClipScore().model_digest();"
        "assert not {'torch', 'open_clip', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_weights_alone_are_found_by_their_neighbours(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "model.safetensors", tmp_path / "mine.safetensors")
    with pytest.raises(SetupError, match="open_clip_config.json is missing"):
        find_model(str(tmp_path / "mine.safetensors"))
    shutil.copy(folder / "open_clip_config.json", tmp_path / "mine.json")
    shutil.copy(folder / "bpe_merges.txt.gz", tmp_path)
    found = find_model(str(tmp_path / "mine.safetensors"))
    assert found.digest() == find_model(str(folder)).digest()


def test_a_torch_checkpoint_equals_its_safetensors(folder: Path, tmp_path: Path) -> None:
    model = load_model(find_model(str(folder)), device="cpu")
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    state = {f"module.{k}": v for k, v in model.network.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "epoch_1.pt")
    again = load_model(find_model(str(tmp_path / "epoch_1.pt")), device="cpu")
    assert torch.equal(again.embed_texts(CAPTIONS), model.embed_texts(CAPTIONS))


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_a_checkpoint_cannot_run_code(folder: Path, tmp_path: Path, suffix: str) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    fired = tmp_path / "fired"
    path = tmp_path / f"pytorch_model{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": _Bomb(fired)}, path)
    else:
        path.write_bytes(pickle.dumps({"state_dict": _Bomb(fired)}))
    with pytest.raises(SetupError, match="cannot be loaded"):
        load_model(find_model(str(path)), device="cpu")
    assert not fired.exists()


def test_weights_of_another_architecture_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["model_cfg"]["embed_dim"] = 32
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(SetupError, match="size mismatch"):
        load_model(find_model(str(tmp_path)), device="cpu")


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        ("tinny", None, "did you mean tiny"),
        ("VIT-B-32", "openai", "did you mean ViT-B-32"),
        ("ViT-B-32", None, "an architecture without weights"),
        ("ViT-B-32", "laion9b", "its tags: .*laion2b_s34b_b79k"),
        ("ViT-B-32", "openai", "use model=ViT-B-32-quickgelu"),
        ("ViT-B-16-quickgelu", "laion2b_s34b_b88k", "neither a file nor a tag"),
        ("tiny", "openai", "brings its own weights"),
    ],
)
def test_names_that_mean_nothing(model: str, pretrained: str | None, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        find_model(model, pretrained)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"nowhere/open_clip_config.json is missing"):
        find_model(str(tmp_path / "nowhere"))
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    with pytest.raises(SetupError, match="there are no weights in"):
        find_model(str(tmp_path))
    (tmp_path / "open_clip_config.json").write_text("{")
    with pytest.raises(SetupError, match="is not JSON"):
        find_model(str(tmp_path))
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 3}}')
    with pytest.raises(SetupError, match="model_cfg needs embed_dim, text_cfg, vision_cfg"):
        find_model(str(tmp_path))


def test_an_architecture_with_a_weights_file(folder: Path, tmp_path: Path) -> None:
    network = build_network(architecture("ViT-S-32-alt")["model_cfg"], seed=0)
    torch.save(network.state_dict(), tmp_path / "w.pt")
    files = find_model("ViT-S-32-alt", str(tmp_path / "w.pt"))
    assert files.tokenizer is None
    assert embedding_width("ViT-S-32-alt", str(tmp_path / "w.pt")) == 256
    model = load_model(files, device="cpu")
    tokens = open_clip.get_tokenizer("ViT-S-32-alt")(CAPTIONS)
    with torch.no_grad():
        expected = network.eval().encode_text(tokens, normalize=True)
    assert (model.embed_texts(CAPTIONS) - expected).abs().max() < 1e-5


def test_a_model_in_the_hubs_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0" * 40
    home = tmp_path / "models--org--name"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    shutil.copytree(folder, home / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    checkpoint._hub_file.cache_clear()
    assert find_model("hf-hub:org/name").digest() == find_model(str(folder)).digest()
    assert find_model(f"hf-hub:org/name@{commit}").digest() == find_model(str(folder)).digest()
    with pytest.raises(SetupError, match="cannot be had from the Hugging Face hub"):
        find_model("hf-hub:org/other")
    checkpoint._hub_file.cache_clear()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_close(folder: Path, precision: Any) -> None:
    exact = load_model(find_model(str(folder)), device="cpu")
    half = load_model(find_model(str(folder)), device="cpu", precision=precision)
    pixels = torch.from_numpy(np.stack([exact.preprocess.pixels(_picture(50, 50))]))
    for a, b in (
        (exact.embed_texts(CAPTIONS), half.embed_texts(CAPTIONS)),
        (exact.embed_images(pixels), half.embed_images(pixels)),
    ):
        assert b.dtype == torch.float32
        assert (a * b).sum(1).min() > 0.999


def test_a_custom_text_tower_is_built() -> None:
    config = copy.deepcopy(CONFIG) | {"custom_text": True, "init_logit_bias": -10.0}
    network = build_network(config, seed=0)
    assert isinstance(network, open_clip.CustomTextCLIP)
    assert float(network.logit_bias.detach()) == -10.0
