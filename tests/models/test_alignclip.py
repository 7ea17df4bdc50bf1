"""AlignCLIP's shared network: one set of blocks, an ordinary open_clip model on disk."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file

from winnow.contracts.errors import RecipeError, SetupError
from winnow.models.alignclip import build_shared_network, shared_config
from winnow.models.checkpoint import ModelFiles, architecture, find_model
from winnow.models.contrastive import build_network, load_model, load_weights, save_model
from winnow.models.tokenizer import trimmed_merges

CONFIG: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 32, "patch_size": 8, "width": 48, "layers": 2, "head_width": 16,
        "pool_type": "avg", "mlp_ratio": 2.0,
    },
    "text_cfg": {"context_length": 12, "vocab_size": 600, "width": 32, "heads": 2, "layers": 1},
}  # fmt: skip
CAPTIONS = ["a red cat", "two blue dogs", "x"]


def _inputs() -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 500, (4, 12), generator=chance)
    tokens[:, 7] = 599
    return torch.randn(4, 3, 32, 32, generator=chance), tokens


def test_widths_become_equal_and_only_the_ends_stay_apart() -> None:
    config = shared_config(CONFIG)
    assert config["text_cfg"] | {"width": 48, "heads": 3, "layers": 2} == config["text_cfg"]
    assert CONFIG["text_cfg"]["width"] == 32
    network: Any = build_shared_network(config, seed=0)
    names = [name for name, _ in network.named_parameters()]
    of_text = sorted(n for n in names if not n.startswith("visual."))
    assert of_text == [
        "logit_scale", "positional_embedding", "text_projection", "token_embedding.weight",
    ]  # fmt: skip
    assert network.text_projection is network.visual.proj
    of_image = {n for n in names if n.startswith("visual.") and "resblocks" not in n}
    assert of_image == {
        "visual.class_embedding", "visual.conv1.weight", "visual.ln_pre.weight",
        "visual.ln_pre.bias", "visual.positional_embedding", "visual.ln_post.weight",
        "visual.ln_post.bias",
    }  # fmt: skip
    separate = build_network(config, seed=0)
    block = sum(p.numel() for p in network.visual.transformer.parameters())
    count = {n: sum(p.numel() for p in n.parameters()) for n in (network, separate)}
    assert count[separate] - count[network] == block + 2 * 48 + 48 * 24


def test_both_modalities_train_the_same_weights() -> None:
    images, tokens = _inputs()
    network: Any = build_shared_network(shared_config(CONFIG), seed=0)
    weight = network.visual.transformer.resblocks[0].mlp.c_fc.weight
    gradients = []
    for features in (network.encode_image(images), network.encode_text(tokens)):
        network.zero_grad()
        features.square().sum().backward()
        gradients.append(weight.grad.clone())
    assert all(float(g.abs().sum()) > 0 for g in gradients)
    assert not torch.allclose(gradients[0], gradients[1])


def test_every_loader_reads_the_saved_model(tmp_path: Path) -> None:
    images, tokens = _inputs()
    config = shared_config(CONFIG)
    network: Any = build_shared_network(config, seed=0).eval()
    merges = trimmed_merges(CAPTIONS, 600)
    save_model(tmp_path, network, config=config, preprocess={"size": [32, 32]}, merges=merges)
    saved = load_file(tmp_path / "model.safetensors")
    one, other = "transformer.resblocks.1.mlp.c_fc.weight", "ln_final.weight"
    assert torch.equal(saved[one], saved[f"visual.{one}"])
    assert torch.equal(saved[other], saved["visual.ln_post.weight"])
    ours = load_model(find_model(str(tmp_path)), device="cpu").network
    theirs = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    with torch.no_grad():
        for loaded in (ours, theirs):
            for name, value in (("encode_image", images), ("encode_text", tokens)):
                expected, found = getattr(network, name)(value), getattr(loaded, name)(value)
                assert (found - expected).abs().max() < 1e-5
    again = build_shared_network(config, seed=9)
    load_weights(again, find_model(str(tmp_path)))
    with torch.no_grad():
        assert torch.equal(again.eval().encode_image(images), network.encode_image(images))  # type: ignore[operator]


def test_two_transformers_do_not_fit_into_one(tmp_path: Path) -> None:
    config = shared_config(CONFIG)
    separate = build_network(config, seed=1)
    merges = trimmed_merges(CAPTIONS, 600)
    save_model(tmp_path, separate, config=config, preprocess={}, merges=merges)
    with pytest.raises(SetupError, match="two transformers, but shared_transformer wants one"):
        load_weights(build_shared_network(config, seed=1), find_model(str(tmp_path)))


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    save_model(tmp_path, build_network(CONFIG, seed=1), config=CONFIG, preprocess={})
    files: ModelFiles = find_model(str(tmp_path))
    wider = copy.deepcopy(CONFIG)
    wider["vision_cfg"]["width"] = 64
    message = r"class_embedding is 48 there and 64 in the model to train"
    with pytest.raises(SetupError, match=message):
        load_weights(build_network(wider, seed=1), files)
    deeper = copy.deepcopy(CONFIG)
    deeper["text_cfg"]["layers"] = 2
    with pytest.raises(SetupError, match=r"resblocks.1.* is absent there and 32 in the model"):
        load_weights(build_network(deeper, seed=1), files)
    with_bias = build_network({**CONFIG, "init_logit_bias": -10.0}, seed=2)
    load_weights(with_bias, files)
    assert float(with_bias.logit_bias) == -10.0  # type: ignore[arg-type]
    (tmp_path / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(SetupError, match="cannot be read"):
        load_weights(with_bias, files)


@pytest.mark.parametrize("name", ["tiny", "small", "nano", "ViT-B-32"])
def test_packaged_and_plain_architectures_can_share(name: str) -> None:
    model = shared_config(architecture(name)["model_cfg"])
    vision, text = model["vision_cfg"], model["text_cfg"]
    assert (text["width"], text["layers"]) == (vision["width"], vision["layers"])


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("RN50", "layers"),
        ("roberta-ViT-B-32", "hf_model_name"),
        ("vit_medium_patch16_gap_256", "timm"),
    ],
)
def test_other_towers_cannot(name: str, named: str) -> None:
    with pytest.raises(RecipeError, match=f"shared_transformer: the architecture sets .*{named}"):
        shared_config(architecture(name)["model_cfg"])
