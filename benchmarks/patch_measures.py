"""What the patch tower knows: names of things and patches, and what a linear probe finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from patch_scenes import GROUND, UNSURE, WORLDS, draw, names
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, normalize
from torch.optim import AdamW

from winnow.models.checkpoint import architecture, find_model
from winnow.models.contrastive import build_network, load_model
from winnow.models.vision_tower import VisionTower
from winnow.stages.sources._scenes import CONCEPTS, SceneOptions, scene

HELD_OUT_SEED = 91_001


def layers(network: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the projected patch tokens of the penultimate and of the last layer, (B, P, D)."""
    visual = network.visual
    tokens = visual._embeds(images)
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        tokens = block(tokens)
    return tuple(visual.ln_post(t[:, 1:]) @ visual.proj for t in (tokens, last(tokens)))


def zero_shot(folder: Path, per_concept: int = 2) -> dict[str, float]:
    """Return how often the name of a picture's only thing is the nearest of all names."""
    model = load_model(find_model(str(folder.resolve())), device="cpu")
    forms = [model.embed_texts(names(form)[:GROUND]) for form in range(3)]
    name_ND = normalize(torch.stack(forms).mean(dim=0), dim=-1)
    hits = []
    for index, name in enumerate(CONCEPTS):
        world = (SceneOptions(max_objects=1, concepts=(name,), aspects=(1.0, 1.0)),)
        drawn = draw(HELD_OUT_SEED, index, per_concept, world)
        similar = model.embed_images(torch.from_numpy(drawn.pixels)) @ name_ND.T
        hits.append((similar.topk(5).indices == index).float())
    rank = torch.cat(hits)
    return {
        "zero_shot_top_1": rank[:, 0].mean().item(),
        "zero_shot_top_5": rank.sum(1).mean().item(),
    }


def present(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pixels of scenes of 5 to 10 objects, and which things are in them, bool (N, names)."""
    drawn = [draw(seed, step, 50, WORLDS[1:2]) for step in range(count // 50)]
    there = torch.zeros(count, GROUND, dtype=torch.bool)
    for index in range(count):
        for thing in scene(seed, index, WORLDS[1]).objects:
            there[index, CONCEPTS.index(thing.concept)] = True
    return torch.from_numpy(np.concatenate([d.pixels for d in drawn])), there


def probe(tower: VisionTower, num_train: int = 3000, num_test: int = 1000) -> dict[str, float]:
    """Return how well a linear layer on patch tokens knows what is in a picture.

    A picture's logit for a thing is the greatest of its patches'. auc: mean over things. recall:
    share of things among the first k logits, k being how many there are.
    """
    sets = [present(n, HELD_OUT_SEED + k) for k, n in ((1, num_train), (2, num_test))]
    tokens = [torch.cat([tower(part).half() for part in pixels.split(50)]) for pixels, _ in sets]
    mean, std = tokens[0].float().mean((0, 1)), tokens[0].float().std((0, 1))
    torch.manual_seed(0)
    layer = nn.Linear(tower.width, GROUND)
    nn.init.constant_(layer.bias, -4.0)
    epochs, rows = 12, 50
    optimizer = AdamW(layer.parameters(), lr=1e-2, weight_decay=1e-3)

    def logits(tokens_BPV: torch.Tensor) -> torch.Tensor:
        return layer((tokens_BPV.float() - mean) / std).amax(dim=1)

    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - epoch / epochs)
        for chosen in torch.randperm(num_train).split(rows):
            loss = binary_cross_entropy_with_logits(
                logits(tokens[0][chosen]), sets[0][1][chosen].float()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        found = torch.cat([logits(part) for part in tokens[1].split(rows)])
    there = sets[1][1]
    ranks = found.argsort(dim=0).argsort(dim=0).double()
    positives = there.sum(dim=0).double()
    known = (positives > 0) & (positives < num_test)
    wins = (ranks * there).sum(dim=0) - positives * (positives - 1) / 2
    auc = (wins / (positives * (num_test - positives)))[known].mean().item()
    order = found.argsort(dim=1, descending=True).argsort(dim=1)
    first = order < there.sum(dim=1, keepdim=True)
    return {"probe_auc": auc, "probe_recall": ((first & there).sum() / there.sum()).item()}


@torch.no_grad()
def patches_named(folder: Path, count: int = 200) -> dict[str, float]:
    """Return the share of things' patches whose nearest name is theirs, by layer."""
    model = load_model(find_model(str(folder.resolve())), device="cpu")
    drawn = draw(HELD_OUT_SEED + 3, 0, count, WORLDS[1:2])
    labels = torch.from_numpy(drawn.labels)
    thing = (labels != GROUND) & (labels != UNSURE)
    name_ND = model.embed_texts(names(1)[:GROUND])
    found = layers(model.network, model.preprocess.normalize(torch.from_numpy(drawn.pixels)))
    right = [((t @ name_ND.T).argmax(-1) == labels)[thing].float().mean().item() for t in found]
    return {"patches_named_penultimate": right[0], "patches_named_last": right[1]}


def evaluate(folder: Path) -> dict[str, float]:
    """Print and return what the tower knows, beside an untrained one of the same shape."""
    tower = VisionTower.load(str(folder.resolve()), device="cpu")
    found = {**zero_shot(folder), **patches_named(folder), **probe(tower)}
    config = architecture("patches")
    untrained = build_network(config["model_cfg"], seed=1).visual
    bare = VisionTower("untrained", untrained, tower.preprocess, content="", max_tiles=0)
    found |= {f"untrained_{name}": value for name, value in probe(bare).items()}
    for name, value in found.items():
        print(f"{name:>26}  {value:.3f}")
    print(f"{'flops':>26}  {tower.flops():,}")
    return found
