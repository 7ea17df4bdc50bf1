"""What the patch tower knows: names of things and patches, and what a linear probe finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from patch_scenes import COLORS, CROWDS, EQUALS, FEW, GROUND, KNOWN, UNSURE, Drawn, draw, names
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize
from torch.optim import AdamW

from winnow.models.checkpoint import architecture, find_model
from winnow.models.contrastive import build_network, load_model
from winnow.models.vision_tower import VisionTower
from winnow.stages.sources._scenes import SceneOptions

HELD_OUT_SEED = 91_001
ROWS, EPOCHS = 50, 12


def area_under_curve(score_BN: torch.Tensor, there_BN: torch.Tensor) -> float:
    """Return how often a picture with a thing scores above one without it, mean over things."""
    positives, count = there_BN.sum(dim=0).double(), len(there_BN)
    ranks = score_BN.argsort(dim=0).argsort(dim=0).double()
    known = (positives > 0) & (positives < count)
    wins = (ranks * there_BN).sum(dim=0) - positives * (positives - 1) / 2
    return (wins / (positives * (count - positives)))[known].mean().item()


@dataclass(frozen=True, slots=True)
class Fit:
    """Of a head's answers: the area under the curve of "is this thing in the picture" (by a thing's
    greatest logit), and the shares of patches that show a thing, or a painted one, named right."""

    area: float
    thing: float
    color: float

    def __str__(self) -> str:
        return f"AUC {self.area:.3f}  thing {self.thing:.3f}  color {self.color:.3f}"


def fit_of(thing_BPN: torch.Tensor, color_BPC: torch.Tensor, drawn: Drawn) -> Fit:
    """Return the fit of logits of names (and the ground), and of colors."""
    shows = (drawn.things != GROUND) & (drawn.things != UNSURE)
    painted = drawn.colors > 0
    thing_BPN = thing_BPN[..., :GROUND]
    return Fit(
        area=area_under_curve(thing_BPN.amax(dim=1), drawn.there),
        thing=(thing_BPN.argmax(2) == drawn.things)[shows].float().mean().item(),
        color=(color_BPC.argmax(2) == drawn.colors)[painted].float().mean().item(),
    )


def zero_shot(folder: Path, per_concept: int = 8) -> dict[str, float]:
    """Return how often the name of a picture's only thing is the nearest of all it knows."""
    model = load_model(find_model(str(folder.resolve())), device="cpu")
    forms = [model.embed_texts(names(form)[:GROUND]) for form in range(3)]
    name_ND = normalize(torch.stack(forms).mean(dim=0), dim=-1)
    hits = []
    for index, name in enumerate(KNOWN):
        world = replace(FEW, max_objects=1, num_concepts=None, concepts=(name,))
        drawn = draw(HELD_OUT_SEED, index, per_concept, (world,))
        similar = model.embed_images(drawn.pixels) @ name_ND.T
        hits.append((similar.topk(5).indices == index).float())
    rank = torch.cat(hits)
    return {
        "zero_shot_top_1": rank[:, 0].mean().item(),
        "zero_shot_top_5": rank.sum(1).mean().item(),
    }


@dataclass(frozen=True, slots=True)
class Seen:
    """Scenes as a tower sees them: tokens (N, P, V), standardised by the training set; bool (N,
    names), which things are in them; per patch what it shows, as ``patch_scenes.Drawn``."""

    tokens: torch.Tensor
    there: torch.Tensor
    things: torch.Tensor
    colors: torch.Tensor


def look(tower: VisionTower, count: int, seed: int, *worlds: SceneOptions) -> Seen:
    """Return ``count`` scenes of a seed, of the worlds in turn, as a tower sees them."""
    drawn = [draw(seed, step, ROWS, worlds) for step in range(count // ROWS)]
    return Seen(
        tokens=torch.cat([tower(part.pixels) for part in drawn]),
        there=torch.cat([part.there for part in drawn]),
        things=torch.cat([part.things for part in drawn]),
        colors=torch.cat([part.colors for part in drawn]),
    )


def fitted(
    train: Seen, outputs: int, loss_of: Callable[[nn.Linear, torch.Tensor], torch.Tensor]
) -> nn.Linear:
    """Return a linear layer after a dozen epochs of ``loss_of`` (layer, rows)."""
    torch.manual_seed(0)
    layer = nn.Linear(train.tokens.shape[-1], outputs)
    optimizer = AdamW(layer.parameters(), lr=1e-2, weight_decay=1e-3)
    for epoch in range(EPOCHS):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - epoch / EPOCHS)
        for rows in torch.randperm(len(train.tokens)).split(ROWS):
            loss = loss_of(layer, rows)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return layer.requires_grad_(False)


def picture_probe(train: Seen, tests: dict[str, Seen]) -> dict[str, float]:
    """Return how well a linear layer knows what is in a picture; its logit: the patches' greatest.

    auc: mean over things. recall: share of things among the first k logits, k being how many
    there are.
    """
    layer = fitted(
        train,
        GROUND,
        lambda layer, rows: binary_cross_entropy_with_logits(
            layer(train.tokens[rows]).amax(dim=1), train.there[rows].float()
        ),
    )
    found = {}
    for name, test in tests.items():
        score_BN = torch.cat([layer(part).amax(dim=1) for part in test.tokens.split(ROWS)])
        order = score_BN.argsort(dim=1, descending=True).argsort(dim=1)
        first = order < test.there.sum(dim=1, keepdim=True)
        found[f"{name}_auc"] = area_under_curve(score_BN, test.there)
        found[f"{name}_recall"] = ((first & test.there).sum() / test.there.sum()).item()
    return found


def patch_probe(
    train: Seen, tests: dict[str, Seen], outputs: int, labels_of: Callable[[Seen], torch.Tensor]
) -> dict[str, float]:
    """Return how often a linear layer names what a patch shows; labels below 0 are left out."""

    def loss_of(layer: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
        labels = labels_of(train)[rows]
        return cross_entropy(layer(train.tokens[rows][labels >= 0]), labels[labels >= 0])

    layer = fitted(train, outputs, loss_of)
    found = {}
    for name, test in tests.items():
        labels = labels_of(test)
        right = layer(test.tokens[labels >= 0]).argmax(dim=1) == labels[labels >= 0]
        found[name] = right.float().mean().item()
    return found


def probes(tower: VisionTower, num_train: int = 3000, num_test: int = 1000) -> dict[str, float]:
    """Return what the probes, fitted to crowds of both kinds, find in the penultimate layer's
    tokens of the recipe's and of pictures of one to four things."""
    train = look(tower, num_train, HELD_OUT_SEED + 1, CROWDS, EQUALS)
    tests = {
        "crowds": look(tower, num_test, HELD_OUT_SEED + 2, CROWDS),
        "few": look(tower, num_test, HELD_OUT_SEED + 3, FEW),
    }
    mean, std = train.tokens.mean((0, 1)), train.tokens.std((0, 1))
    for seen in (train, *tests.values()):
        seen.tokens.sub_(mean).div_(std)
    things = patch_probe(train, tests, GROUND, lambda s: s.things.where(s.things < GROUND, UNSURE))
    painted = patch_probe(train, tests, len(COLORS), lambda s: s.colors.where(s.colors > 0, UNSURE))
    return {
        **picture_probe(train, tests),
        **{f"{name}_thing_of_patch": value for name, value in things.items()},
        **{f"{name}_paint_of_patch": value for name, value in painted.items()},
    }


def evaluate(folder: Path) -> dict[str, float]:
    """Print and return what the tower knows, beside an untrained one of the same shape."""
    tower = VisionTower.load(str(folder.resolve()), device="cpu")
    found = {**zero_shot(folder), **probes(tower)}
    untrained = build_network(architecture(str(folder.resolve()))["model_cfg"], seed=1).visual
    bare = VisionTower("untrained", untrained, tower.preprocess, content="", max_tiles=0)
    found |= {f"untrained_{name}": value for name, value in probes(bare).items()}
    for name, value in found.items():
        print(f"{name:>32}  {value:.3f}")
    print(f"{'flops':>32}  {tower.flops():,}")
    return found
