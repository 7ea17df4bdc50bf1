"""The patch tower's weights: what they start from, what moves them, and their last scale."""

from __future__ import annotations

import math
from typing import Any

import torch
from open_clip.pos_embed import get_2d_sincos_pos_embed
from patch_scenes import GRID
from torch import nn
from torch.nn.functional import unfold
from torch.optim import AdamW, Optimizer

BETAS = (0.9, 0.98)
_LEAST_VARIANCE = 0.02  # of a direction of patches that is worth to be seen as loud as the others


@torch.no_grad()
def give_sense_of_place(visual: Any) -> None:
    """Let near and like patches attend to one another from the start: things become wholes sooner.

    Positions start as sines and cosines (learned later), queries and keys as the same orthonormal
    projection, in the spirit of Trockman and Kolter 2023 (Mimetic initialization).
    """
    width = visual.transformer.width
    place = get_2d_sincos_pos_embed(width, GRID, cls_token=True)
    visual.positional_embedding.copy_(torch.from_numpy(place))
    for block in visual.transformer.resblocks:
        shared = nn.init.orthogonal_(torch.empty(width, width))
        block.attn.in_proj_weight[: 2 * width] = torch.cat([shared, shared])


@torch.no_grad()
def whiten(visual: Any, images_BCHW: torch.Tensor) -> None:
    """Let patches be seen by their principal directions, all about equally loud, in a random turn.

    Else edges are lost beside the light of a patch, which is most of its variance (the first layer
    of Jordan 2024, "94% on CIFAR-10 in 3.29 seconds", is whitened too).
    """
    weight_VCHW = visual.conv1.weight
    width, side = len(weight_VCHW), weight_VCHW.shape[-1]
    patches_ND = unfold(images_BCHW, side, stride=side).mT.flatten(0, 1)
    centred_ND = patches_ND - patches_ND.mean(dim=0)
    variances, directions = torch.linalg.eigh(centred_ND.mT @ centred_ND / len(centred_ND))
    loud_DV = directions[:, -width:] / (variances[-width:] + _LEAST_VARIANCE).sqrt()
    turn = nn.init.orthogonal_(torch.empty(width, width))
    weight_VCHW.copy_((turn @ loud_DV.mT).view_as(weight_VCHW))


@torch.no_grad()
def scale_tokens(visual: Any, token_BTV: torch.Tensor) -> None:
    """Make the mean square of such tokens about 1, by a power of two; the model says the same.

    Every layer reads the sum of what those before it add through a LayerNorm, so that its scale is
    arbitrary; connectors without one (linear, mlp) would have to grow small first.
    """
    factor = 2.0 ** -round(math.log2(token_BTV.square().mean().sqrt().item()))
    adding = [visual.ln_pre]
    for block in visual.transformer.resblocks:
        adding += [block.attn.out_proj, block.mlp.c_proj]
    for layer in adding:
        layer.weight.mul_(factor)
        layer.bias.mul_(factor)


class Muon(Optimizer):
    """Momentum whose matrices are made orthogonal (Jordan et al. 2024), in float32: torch's own
    works in bfloat16, which is slow on a CPU."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__(parameters, {"lr": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        group = self.param_groups[0]
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
            momentum.lerp_(parameter.grad, 0.05)
            update = orthogonal(parameter.grad.lerp(momentum, 0.95))
            size = max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
            parameter.sub_(update, alpha=group["lr"] * size)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Return about the nearest (semi-)orthogonal matrix, by five Newton-Schulz steps."""
    x = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if matrix.shape[0] > matrix.shape[1] else x


class Optimizers:
    """Muon for the blocks' matrices, AdamW for the rest; saved as one."""

    def __init__(self, visual: Any, others: list[nn.Parameter]) -> None:
        blocks = {name: p for name, p in visual.transformer.named_parameters() if p.ndim == 2}
        names = {f"transformer.{name}" for name in blocks}
        rest = [p for name, p in visual.named_parameters() if name not in names]
        self.muon = Muon(list(blocks.values()))
        self.adam = AdamW([*rest, *others], betas=BETAS, eps=1e-6, weight_decay=0.0, fused=True)

    def step(self, rate: float, muon_rate: float) -> None:
        """Take a step with these rates, and forget the gradients."""
        for optimizer, given in ((self.adam, rate), (self.muon, muon_rate)):
            optimizer.param_groups[0]["lr"] = given
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
