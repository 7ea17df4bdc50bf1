"""Vision towers against a forward pass block by block, and against open_clip's own pooling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from winnow.contracts.errors import RecipeError, SetupError
from winnow.models.checkpoint import CONFIG_NAME
from winnow.models.contrastive import Preprocess, build_network, save_model
from winnow.models.tiling import choose_grid
from winnow.models.tokenizer import trimmed_merges
from winnow.models.vision_tower import VisionTower

TEXT = {"context_length": 12, "vocab_size": 600, "width": 32, "heads": 2, "layers": 1}
VISION: dict[str, Any] = {
    "image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "head_width": 16,
}  # fmt: skip
PREPROCESS = {"size": [32, 32], "mean": [0.5, 0.4, 0.3], "std": [0.3, 0.2, 0.1]}
KINDS = {
    "tok": {"pool_type": "tok"},
    "avg": {"pool_type": "avg"},
    "after": {"pool_type": "tok", "final_ln_after_pool": True},
    "bare": {"pool_type": "avg", "no_ln_pre": True, "pos_embed_type": "sin_cos_2d"},
    "dropout": {"pool_type": "avg", "patch_dropout": 0.5},
    "scaled": {"pool_type": "tok", "ls_init_value": 0.1},
    "oblong": {"pool_type": "avg", "image_size": [32, 48]},
}


def saved(folder: Path, vision: dict[str, Any], preprocess: dict[str, Any]) -> Path:
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT}
    network = build_network(config, seed=3)
    merges = trimmed_merges(["a red cat"], 600)
    save_model(folder, network, config=config, preprocess=preprocess, merges=merges)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with mean pooling, saved."""
    vision = {**VISION, "pool_type": "avg"}
    return saved(tmp_path_factory.mktemp("tower"), vision, PREPROCESS)


def load(folder: Path, **options: Any) -> VisionTower:
    return VisionTower.load(str(folder), device="cpu", **options)


def tiles(count: int, height: int = 32, width: int = 32) -> torch.Tensor:
    rng = np.random.default_rng(count)
    return torch.from_numpy(rng.integers(0, 256, (count, height, width, 3), np.uint8))


@torch.no_grad()
def naive(tower: VisionTower, pixels_NHWC: torch.Tensor) -> torch.Tensor:
    """Block by block, from the weights: patches of the block before last, class token cut off."""
    v: Any = tower.visual
    x = (pixels_NHWC.float() / 255 - torch.tensor(PREPROCESS["mean"])) / torch.tensor(
        PREPROCESS["std"]
    )
    x = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), v.conv1.weight, stride=8)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([v.class_embedding.expand(len(x), 1, -1), x], dim=1) + v.positional_embedding
    x = v.ln_pre(x)
    for block in list(v.transformer.resblocks)[:-1]:
        a = block.ln_1(x)
        q, k, w = (a @ block.attn.in_proj_weight.T + block.attn.in_proj_bias).chunk(3, dim=-1)
        heads = [t.unflatten(-1, (2, 16)).transpose(1, 2) for t in (q, k, w)]
        mixed = (heads[0] @ heads[1].mT / 4).softmax(dim=-1) @ heads[2]
        x = x + block.ls_1(block.attn.out_proj(mixed.transpose(1, 2).flatten(2)))
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
    return x[:, 1:]


@pytest.mark.parametrize("kind", KINDS)
def test_patches_of_the_layer_before_last(kind: str, tmp_path: Path) -> None:
    vision = {**VISION, **KINDS[kind]}
    height, width = (32, 48) if kind == "oblong" else (32, 32)
    tower = load(saved(tmp_path, vision, {**PREPROCESS, "size": [height, width]}))
    pixels = tiles(3, height, width)
    seen: list[torch.Tensor] = []
    blocks = tower.visual.transformer.resblocks  # type: ignore[union-attr]
    hook = blocks[-1].register_forward_pre_hook(lambda module, given: seen.append(given[0]))  # type: ignore[operator, union-attr]
    with torch.no_grad():
        pooled = tower.visual(tower.preprocess.normalize(pixels))
    hook.remove()
    found = tower(pixels)
    patches = height * width // 64
    assert found.shape == (3, patches, 32)
    assert (tower.patches_per_tile, tower.width) == (patches, 32)
    assert tower.grid == (height // 8, width // 8)
    assert torch.equal(found, seen[0][:, 1:])
    assert torch.allclose(found, naive(tower, pixels), atol=1e-5)
    assert pooled.shape == (3, 24)


def test_half_precision_has_nearly_the_same_patches(folder: Path) -> None:
    pixels = tiles(3)
    exact, rounded = load(folder)(pixels), load(folder, precision="bf16")(pixels)
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    assert torch.allclose(exact, rounded, atol=0.05 * float(exact.abs().max()))


def test_patches_are_in_raster_order(folder: Path) -> None:
    """A change in one corner moves that corner's token most."""
    tower = load(folder)
    plain = torch.full((1, 32, 32, 3), 128, dtype=torch.uint8)
    for row, column in ((0, 0), (0, 3), (2, 1)):
        spotted = plain.clone()
        spotted[0, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 255
        moved = (tower(spotted) - tower(plain)).norm(dim=-1)[0]
        assert int(moved.argmax()) == 4 * row + column


def test_it_is_frozen_and_stays_in_eval_mode(tmp_path: Path) -> None:
    tower = load(saved(tmp_path, {**VISION, "patch_dropout": 0.5}, PREPROCESS))
    pixels = tiles(2)
    before = tower(pixels)
    parent = torch.nn.Sequential(tower).train()
    assert not any(module.training for module in tower.modules())
    assert not any(parameter.requires_grad for parameter in parent.parameters())
    found = tower(pixels)
    assert torch.equal(found, before)
    assert not found.requires_grad
    torch.nn.Linear(32, 2)(found).sum().backward()  # no inference tensor: gradients flow behind it


def test_a_tile_does_not_depend_on_its_neighbours(folder: Path) -> None:
    tower = load(folder)
    pixels = tiles(4)
    alone = torch.cat([tower(pixels[i : i + 1]) for i in range(4)])
    assert torch.allclose(tower(pixels), alone, atol=1e-5)
    assert tower(tiles(0)).shape == (0, 16, 32)


def test_pixels_without_tiling_are_the_models_own(folder: Path) -> None:
    tower = load(folder)
    image = Image.effect_mandelbrot((120, 50), (-2, -1.5, 1, 1.5), 40).convert("LA")
    found = tower.pixels(image)
    assert found.shape == (1, 32, 32, 3)
    assert np.array_equal(found[0], Preprocess(PREPROCESS).pixels(image))


@pytest.mark.parametrize(
    ("size", "count"),
    [((20, 20), 1), ((32, 32), 1), ((64, 64), 5), ((200, 60), 5), ((30, 300), 5), ((64, 32), 3)],
)
def test_pixels_with_tiling(folder: Path, size: tuple[int, int], count: int) -> None:
    tower = load(folder, max_tiles=4)
    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 4), np.uint8), "RGBA")
    found = tower.pixels(image)
    assert found.shape == (count, 32, 32, 3)
    assert found.dtype == np.uint8
    grid = choose_grid(size, (32, 32), 4)
    assert count == (1 + grid.num_tiles if grid.num_tiles > 1 else 1)
    if size == (64, 64):  # no resizing: the tiles are the picture, its ground is white
        page = Image.new("RGBA", size, "white")
        page.alpha_composite(image)
        whole = np.asarray(page.convert("RGB"))
        assert np.array_equal(found[1], whole[:32, :32])
        assert np.array_equal(found[2], whole[:32, 32:])
        assert np.array_equal(found[4], whole[32:, 32:])


def test_of_a_long_strip_the_middle_is_tiled(folder: Path) -> None:
    tower = load(folder, max_tiles=4)
    strip = Image.new("RGB", (40, 4000), "red")
    strip.paste((0, 0, 255), (0, 1680, 40, 2320))
    assert np.array_equal(tower.pixels(strip), tower.pixels(Image.new("RGB", (40, 640), "blue")))


def test_the_digest_is_of_content_and_tiling(folder: Path, tmp_path: Path) -> None:
    digest = load(folder).digest()
    same = saved(tmp_path / "same", {**VISION, "pool_type": "avg"}, PREPROCESS)
    other = saved(tmp_path / "other", {**VISION, "pool_type": "tok"}, PREPROCESS)
    assert len(digest) == 32
    assert load(same).digest() == digest
    assert load(folder, max_tiles=2).digest() != digest
    assert load(other).digest() != digest


def test_operations_are_counted(folder: Path) -> None:
    tokens, width = 17, 32
    block = 2 * tokens * 12 * width * width + 4 * tokens * tokens * width
    stem = 2 * 16 * (3 * 64) * width
    tower = load(folder)
    assert tower.flops() == stem + 2 * block
    assert tower.flops(5) == 5 * tower.flops()


def resnet() -> torch.nn.Module:
    from open_clip.modified_resnet import ModifiedResNet

    torch.manual_seed(0)
    return ModifiedResNet([1, 1, 1, 1], output_dim=16, heads=2, image_size=64, width=8).eval()


def test_resnet_patches_are_what_its_pooling_reads() -> None:
    visual = resnet()
    tower = VisionTower("rn", visual, Preprocess({"size": [64, 64]}), content="", max_tiles=0)
    pixels = tiles(2, 64, 64)
    seen: list[torch.Tensor] = []
    visual.attnpool.register_forward_pre_hook(lambda module, given: seen.append(given[0]))  # type: ignore[operator, union-attr]
    with torch.no_grad():
        visual(tower.preprocess.normalize(pixels))
    assert tower.grid == (2, 2)
    assert tower.width == 256
    found = tower(pixels)
    for row in range(2):
        for column in range(2):
            assert torch.equal(found[:, 2 * row + column], seen[0][:, :, row, column])


def test_timm_towers() -> None:
    from open_clip.timm_model import TimmModel

    torch.manual_seed(0)
    preprocess = Preprocess({"size": [64, 64]})
    pixels = tiles(2, 64, 64)
    vit = TimmModel("test_vit", 16, image_size=64, pool="avg").eval()
    vit.set_input_size(64)
    tower = VisionTower("vit", vit, preprocess, content="", max_tiles=0)
    seen: list[torch.Tensor] = []
    vit.trunk.blocks[-1].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad():
        vit(preprocess.normalize(pixels))
    cut = seen[0].shape[1] - tower.patches_per_tile
    assert cut == vit.trunk.num_prefix_tokens
    assert torch.allclose(tower(pixels), seen[0][:, cut:], atol=1e-5)
    pyramid = TimmModel("test_convnext", 16, image_size=64, pool="avg").eval()
    maps = VisionTower("cnn", pyramid, preprocess, content="", max_tiles=0)
    with torch.no_grad():
        features = pyramid.trunk.stages(pyramid.trunk.stem(preprocess.normalize(pixels)))
    assert maps.grid == tuple(features.shape[2:])
    assert torch.allclose(maps(pixels), features.flatten(2).mT, atol=1e-5)


def test_what_has_no_patches(folder: Path, tmp_path: Path) -> None:
    shallow = saved(tmp_path, {**VISION, "layers": 1}, PREPROCESS)
    with pytest.raises(SetupError, match=r"has one layer: there is none before the last one"):
        load(shallow)
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 8))
    with pytest.raises(SetupError, match=r"the image tower of mlp \(Sequential\) gives no grid"):
        VisionTower("mlp", flat, Preprocess({"size": [8, 8]}), content="", max_tiles=0)
    with pytest.raises(RecipeError, match=r"max_tiles=-1: use 0"):
        load(folder, max_tiles=-1)
    with pytest.raises(RecipeError, match=r"'tinny' is no model; did you mean tiny"):
        VisionTower.load("tinny")


def test_an_architecture_and_its_tag() -> None:
    with pytest.raises(RecipeError, match=r"'nonsense' is neither a file nor a tag of ViT-B-32"):
        VisionTower.load("ViT-B-32 nonsense")
    with pytest.raises(RecipeError, match=r"'ViT-B-32' is an architecture without weights"):
        VisionTower.load("ViT-B-32")


def test_the_packaged_tower_has_patches_enough() -> None:
    tower = VisionTower.load("patches", device="cpu")
    assert (tower.grid, tower.patches_per_tile, tower.width) == ((14, 14), 196, 128)
    folder = Path(__file__).parents[2] / "models" / "checkpoints" / "patches"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 3_000_000
    config = json.loads((folder / CONFIG_NAME).read_text())
    packaged = Path(__file__).parents[2] / "models" / "architectures" / "patches.json"
    trained = json.loads(packaged.read_text())["model_cfg"]
    assert config["model_cfg"]["vision_cfg"] == trained["vision_cfg"]
