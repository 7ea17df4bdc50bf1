"""What the patch tower knows: names of things and patches, and what a linear probe finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from patch_scenes import GROUND, UNSURE, WORLDS, draw, names
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize
from torch.optim import AdamW

from winnow.models.checkpoint import architecture, find_model
from winnow.models.contrastive import build_network, load_model
from winnow.models.vision_tower import VisionTower
from winnow.stages.sources._scenes import CONCEPTS, SceneOptions, scene

HELD_OUT_SEED = 91_001
ROWS, EPOCHS = 50, 12


def layers(visual: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the normalised patch tokens of the penultimate and of the last layer, (B, P, V)."""
    tokens = visual._embeds(images)
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        tokens = block(tokens)
    return visual.ln_post(tokens[:, 1:]), visual.ln_post(last(tokens)[:, 1:])


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


@dataclass(frozen=True, slots=True)
class Seen:
    """Pictures of 5 to 10 objects: tokens (N, P, V), standardised by the training set; bool (N,
    names), which things are in them; per patch what it shows, as ``patch_scenes.Drawn``."""

    tokens: torch.Tensor
    there: torch.Tensor
    labels: torch.Tensor


def look(tower: VisionTower, count: int, seed: int) -> Seen:
    """Return ``count`` scenes of a seed as a tower sees them."""
    tokens, labels = [], []
    for step in range(count // ROWS):
        drawn = draw(seed, step, ROWS, WORLDS[1:2])
        tokens.append(tower(torch.from_numpy(drawn.pixels)))
        labels.append(torch.from_numpy(drawn.labels))
    there = torch.zeros(count, GROUND, dtype=torch.bool)
    for index in range(count):
        for thing in scene(seed, index, WORLDS[1]).objects:
            there[index, CONCEPTS.index(thing.concept)] = True
    return Seen(torch.cat(tokens), there, torch.cat(labels))


def fitted(train: Seen, loss_of: Callable[[nn.Linear, torch.Tensor], torch.Tensor]) -> nn.Linear:
    """Return a linear layer after a dozen epochs of ``loss_of`` (layer, rows)."""
    torch.manual_seed(0)
    layer = nn.Linear(train.tokens.shape[-1], GROUND)
    optimizer = AdamW(layer.parameters(), lr=1e-2, weight_decay=1e-3)
    for epoch in range(EPOCHS):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - epoch / EPOCHS)
        for rows in torch.randperm(len(train.tokens)).split(ROWS):
            loss = loss_of(layer, rows)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return layer.requires_grad_(False)


def picture_probe(train: Seen, test: Seen) -> dict[str, float]:
    """Return how well a linear layer knows what is in a picture; its logit: the patches' greatest.

    auc: mean over things. recall: share of things among the first k logits, k being how many
    there are.
    """
    layer = fitted(
        train,
        lambda layer, rows: binary_cross_entropy_with_logits(
            layer(train.tokens[rows]).amax(dim=1), train.there[rows].float()
        ),
    )
    found = torch.cat([layer(part).amax(dim=1) for part in test.tokens.split(ROWS)])
    positives, count = test.there.sum(dim=0).double(), len(test.there)
    ranks = found.argsort(dim=0).argsort(dim=0).double()
    known = (positives > 0) & (positives < count)
    wins = (ranks * test.there).sum(dim=0) - positives * (positives - 1) / 2
    order = found.argsort(dim=1, descending=True).argsort(dim=1)
    first = order < test.there.sum(dim=1, keepdim=True)
    return {
        "probe_auc": (wins / (positives * (count - positives)))[known].mean().item(),
        "probe_recall": ((first & test.there).sum() / test.there.sum()).item(),
    }


def patch_probe(train: Seen, test: Seen) -> dict[str, float]:
    """Return how often a linear layer names the thing that a patch shows."""

    def things(seen: Seen, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        labels = seen.labels[rows]
        shows = (labels != GROUND) & (labels != UNSURE)
        return seen.tokens[rows][shows], labels[shows]

    def loss_of(layer: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
        tokens, labels = things(train, rows)
        return cross_entropy(layer(tokens), labels)

    layer = fitted(train, loss_of)
    tokens, labels = things(test, torch.arange(len(test.tokens)))
    return {"patch_probe": (layer(tokens).argmax(dim=1) == labels).float().mean().item()}


def probes(tower: VisionTower, num_train: int = 3000, num_test: int = 1000) -> dict[str, float]:
    """Return what both probes find in the penultimate layer's tokens of new scenes."""
    train, test = (look(tower, n, HELD_OUT_SEED + k) for k, n in ((1, num_train), (2, num_test)))
    mean, std = train.tokens.mean((0, 1)), train.tokens.std((0, 1))
    for seen in (train, test):
        seen.tokens.sub_(mean).div_(std)
    return {**picture_probe(train, test), **patch_probe(train, test)}


def evaluate(folder: Path) -> dict[str, float]:
    """Print and return what the tower knows, beside an untrained one of the same shape."""
    tower = VisionTower.load(str(folder.resolve()), device="cpu")
    found = {**zero_shot(folder), **probes(tower)}
    untrained = build_network(architecture("patches")["model_cfg"], seed=1).visual
    bare = VisionTower("untrained", untrained, tower.preprocess, content="", max_tiles=0)
    found |= {f"untrained_{name}": value for name, value in probes(bare).items()}
    for name, value in found.items():
        print(f"{name:>26}  {value:.3f}")
    print(f"{'flops':>26}  {tower.flops():,}")
    return found
