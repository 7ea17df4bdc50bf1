"""Train the packaged model "patches", whose 196 patch tokens say which objects are where.

    python benchmarks/patch_tower.py               # write models/checkpoints/patches
    python benchmarks/patch_tower.py --evaluate    # measure what is there

Clean scenes of 1 to 10 objects, all parts' objects, drawn on the fly as squares of 112 pixels. Two
losses of equal weight: CLIP's between pictures and captions (Radford et al. 2021), and the
cross-entropy of the thing in each patch by a linear head on the penultimate and one on the last
layer, which are thrown away. The text tower first learns random codes of what its texts say and
then stays as it is (LiT, Zhai et al. 2022): trained along, it pulls all names together at first.
Killed, it goes on where it was. The rate falls over the last third only, so that a run may be ended
early with a smaller --samples.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.loss import ClipLoss
from open_clip.pos_embed import get_2d_sincos_pos_embed
from patch_measures import evaluate, layers
from patch_scenes import GRID, GROUND, TEXT_SEED, WORLDS, Codes, Drawn, draw, names
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from torch.optim import AdamW, Optimizer

from winnow.models.checkpoint import architecture, find_model
from winnow.models.contrastive import (
    Preprocess,
    build_network,
    encode_text_short,
    load_tokenizer,
    save_model,
)
from winnow.models.tokenizer import Tokenizer
from winnow.stages.sources._scenes import CONCEPTS, num_variants, scene
from winnow.stages.sources._scenes.captions import state
from winnow.stages.train import _state

TRAIN_SEED = 30_001
TEXT_RATE, TEXT_EPOCHS = 3e-3, 6
BETAS, MAX_LOGIT_SCALE = (0.9, 0.98), 4.6052


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What decides the weights."""

    num_samples: int
    batch_size: int
    learning_rate: float
    muon_rate: float
    warmup_steps: int
    seed: int

    @property
    def num_steps(self) -> int:
        return self.num_samples // self.batch_size

    def share(self, step: int) -> float:
        """Of the rates: rise, stay, and fall to nothing over the last third."""
        rising = (step + 1) / self.warmup_steps
        falling = 3 * (self.num_steps - step) / self.num_steps
        return min(1.0, rising, falling)


def losses(
    network: Any, heads: nn.ModuleList, drawn: Drawn, text_BD: torch.Tensor, prepare: Preprocess
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return CLIP's loss, the patches' loss, and the share of things' patches named right."""
    token_BPVs = layers(network.visual, prepare.normalize(torch.from_numpy(drawn.pixels)))
    image_BD = normalize(token_BPVs[-1].mean(dim=1) @ network.visual.proj, dim=-1)
    labels = torch.from_numpy(drawn.labels).reshape(-1)
    ground = (labels == GROUND).nonzero().reshape(-1)
    chosen = torch.cat([((labels >= 0) & (labels != GROUND)).nonzero().reshape(-1), ground[::5]])
    labels_S = labels[chosen]
    total, right = torch.zeros(()), 0.0
    for head, token_BPV in zip(heads, token_BPVs, strict=True):
        logits_SN = head(token_BPV.flatten(0, 1)[chosen])
        total = total + 0.5 * cross_entropy(logits_SN, labels_S)
        thing = labels_S != GROUND
        right = float((logits_SN[thing].argmax(1) == labels_S[thing]).float().mean())
    return ClipLoss()(image_BD, text_BD, network.logit_scale.exp()), total, right


def teach_text(network: Any, tokenizer: Tokenizer, seed: int) -> float:
    """Fit the text tower to ``Codes``, half a minute; return the last loss (1 - cosine)."""
    codes = Codes(network.text_projection.shape[1])
    ground = codes(("ground", 1.0))
    meant = [*(codes((f"thing {name}", 1.0)) for name in CONCEPTS), ground] * 3
    texts = [name for form in range(3) for name in names(form)]
    for index in range(10_000):
        described = scene(TEXT_SEED, index, WORLDS[0])
        statement = state(described, index % num_variants())
        texts.append(statement.text)
        meant.append(codes.of(statement))
    tokens = torch.cat([tokenizer(texts[i : i + 500]) for i in range(0, len(texts), 500)])
    wanted = torch.stack(meant)
    own = [p for name, p in network.named_parameters() if not name.startswith("visual")]
    optimizer = AdamW(own, lr=TEXT_RATE, betas=BETAS, weight_decay=0.01)
    shuffle = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(len(texts), generator=shuffle) for _ in range(TEXT_EPOCHS)])
    steps = order.split(128)
    for step, rows in enumerate(steps):
        optimizer.param_groups[0]["lr"] = TEXT_RATE * min((step + 1) / 50, 1 - step / len(steps))
        given = normalize(encode_text_short(network, tokens[rows]), dim=-1)
        loss = (1 - (given * wanted[rows]).sum(dim=1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


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


class Muon(Optimizer):
    """Momentum whose matrices are made orthogonal (Jordan et al. 2024), in float32: torch's own
    works in bfloat16, which is slow on a CPU."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__(parameters, {"lr": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        group = self.param_groups[0]
        for parameter in group["params"]:
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


def train(folder: Path, options: Options, every: int = 200) -> None:
    """Train and write the checkpoint."""
    config = architecture("patches")
    network = build_network(config["model_cfg"], seed=options.seed)
    torch.manual_seed(options.seed)
    give_sense_of_place(network.visual)
    tokenizer = load_tokenizer(find_model("tiny"))
    prepare = Preprocess(config["preprocess_cfg"])
    heads = nn.ModuleList(nn.Linear(network.visual.transformer.width, GROUND + 1) for _ in "pl")
    both = nn.ModuleDict({"network": network, "heads": heads})
    optimizer = Optimizers(network.visual, [network.logit_scale, *heads.parameters()])
    identity = f"{replace(options, num_samples=0)} {TRAIN_SEED} {WORLDS}"
    done = _state.resume(folder, both, optimizer, identity)
    if not done.steps:
        print(f"text tower: 1 - cosine {teach_text(network, tokenizer, options.seed):.4f}")
    start, first = time.process_time(), done.steps
    while done.steps < options.num_steps:
        drawn = draw(TRAIN_SEED, done.steps, options.batch_size)
        with torch.no_grad():
            text_BD = normalize(encode_text_short(network, tokenizer(drawn.texts)), dim=-1)
        pair, patch, right = losses(network, heads, drawn, text_BD, prepare)
        (pair + patch).backward()
        nn.utils.clip_grad_norm_(both.parameters(), 1.0, foreach=True)
        share = options.share(done.steps)
        optimizer.step(share * options.learning_rate, share * options.muon_rate)
        with torch.no_grad():
            network.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        done.steps += 1
        done.curve.append(round((pair + patch).item(), 4))
        if done.steps % every == 0:
            _state.save(folder, both, optimizer, identity, done)
            seconds = time.process_time() - start
            print(
                f"{done.steps * options.batch_size:>8,} samples  pairs {pair.item():.3f}  "
                f"patches {patch.item():.3f}  right {right:.3f}  {seconds:.0f} CPU s  "
                f"{(done.steps - first) * options.batch_size / seconds:.0f}/s",
                flush=True,
            )
    save_model(
        folder,
        network,
        config=config["model_cfg"],
        preprocess=config["preprocess_cfg"],
        merges=tokenizer.merges,
        dtype=torch.float16,
    )
    document = {
        "options": asdict(options),
        "data": hashlib.blake2b(identity.encode(), digest_size=16).hexdigest(),
        "samples_seen": done.steps * options.batch_size,
        "loss_curve": [round(float(np.mean(part)), 4) for part in np.array_split(done.curve, 100)],
    }
    (folder / "training.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    _state.forget(folder)


def main() -> None:
    """Train, or evaluate what is there."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("models/checkpoints/patches"))
    parser.add_argument("--samples", type=int, default=48_000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--muon-rate", type=float, default=0.02)
    parser.add_argument("--warmup-steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--evaluate", action="store_true", help="measure, do not train")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if not given.evaluate:
        options = Options(
            num_samples=given.samples,
            batch_size=given.batch_size,
            learning_rate=given.learning_rate,
            muon_rate=given.muon_rate,
            warmup_steps=given.warmup_steps,
            seed=given.seed,
        )
        train(given.out, options)
    print(f"model.safetensors: {(given.out / 'model.safetensors').stat().st_size / 1e6:.2f} MB")
    evaluate(given.out)


if __name__ == "__main__":
    main()
