"""Train the packaged model "patches", whose 196 patch tokens say which objects are where.

    python benchmarks/patch_tower.py               # write models/checkpoints/patches
    python benchmarks/patch_tower.py --evaluate    # measure what is there

Clean scenes of 96 concepts (recipes/scenes-crowds.yaml's, and others), drawn on the fly as squares
of 112 pixels. First the blocks up to the penultimate one: boxes tell which thing each patch shows,
and its color, by a linear head on each of their outputs, which are thrown away. Then, over the last
tenth, the last block and the projection alone: CLIP's loss between pictures and captions (Radford
et al. 2021), against a text tower that has learned random codes of what its texts say and stays as
it is (LiT, Zhai et al. 2022). Killed, it goes on where it was. The rates fall over the last third
of either part only, so that a run may be ended early with a smaller --samples.
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
from patch_measures import Fit, evaluate, fit_of
from patch_scenes import (
    COLORS,
    CROWDS,
    GROUND,
    TEXT_SEED,
    UNSURE,
    WORLDS,
    Codes,
    Drawn,
    draw,
    names,
)
from patch_start import BETAS, Optimizers, give_sense_of_place, scale_tokens, whiten
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from torch.optim import AdamW

from winnow.models.checkpoint import architecture, find_model
from winnow.models.contrastive import (
    Preprocess,
    build_network,
    encode_text_short,
    load_tokenizer,
    save_model,
)
from winnow.models.tokenizer import Tokenizer
from winnow.stages.sources._scenes import num_variants, scene
from winnow.stages.sources._scenes.captions import state
from winnow.stages.train import _state

TRAIN_SEED, PROBE_SEED = 30_001, 30_003
TEXT_RATE, TEXT_EPOCHS = 3e-3, 6
COLOR_SHARE, EARLIER_SHARE, GROUND_STRIDE, MAX_LOGIT_SCALE = 0.3, 0.3, 5, 4.6052


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What decides the weights. num_pairs: the last of the samples, whose captions are read."""

    num_samples: int
    num_pairs: int
    batch_size: int
    learning_rate: float
    muon_rate: float
    warmup_steps: int
    seed: int

    @property
    def num_steps(self) -> int:
        return self.num_samples // self.batch_size

    @property
    def first_pairs(self) -> int:
        """The step from which captions are read."""
        return (self.num_samples - self.num_pairs) // self.batch_size

    def share(self, step: int) -> float:
        """Of the rates: rise, stay, and fall to nothing over the last third of either part."""
        first, end = 0, self.first_pairs
        if step >= self.first_pairs:
            first, end = self.first_pairs, self.num_steps
        rising = (step - first + 1) / self.warmup_steps
        return min(1.0, rising, 3 * (end - step) / (end - first))


class Training:
    """A network with the heads that its patches are taught by."""

    def __init__(self, config: dict[str, Any], seed: int) -> None:
        self.network: Any = build_network(config["model_cfg"], seed=seed)
        self.visual: Any = self.network.visual
        self.prepare = Preprocess(config["preprocess_cfg"])
        self.tokenizer: Tokenizer = load_tokenizer(find_model("tiny"))
        torch.manual_seed(seed)
        give_sense_of_place(self.visual)
        whiten(self.visual, self.prepare.normalize(draw(TRAIN_SEED - 1, 0, 64).pixels))
        width = self.visual.transformer.width
        outputs = GROUND + 1 + len(COLORS)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, outputs))
            for _ in self.visual.transformer.resblocks[:-1]
        )
        self.both = nn.ModuleDict({"network": self.network, "heads": self.heads})
        own = [self.network.logit_scale, *self.heads.parameters()]
        self.optimizer = Optimizers(self.visual, own)

    def tokens(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Return the tokens (B, 1 + P, V) of every layer up to the penultimate one."""
        token_BTVs = [self.visual._embeds(self.prepare.normalize(pixels))]
        for block in self.visual.transformer.resblocks[:-1]:
            token_BTVs.append(block(token_BTVs[-1]))
        return token_BTVs[1:]

    def patch_loss(self, drawn: Drawn) -> torch.Tensor:
        """Return the cross-entropies of what patches show and of its color; of the ground, some."""
        things, colors = drawn.things.reshape(-1), drawn.colors.reshape(-1)
        ground = (things == GROUND).nonzero().reshape(-1)[::GROUND_STRIDE]
        shown = ((things != GROUND) & (things != UNSURE)).nonzero().reshape(-1)
        chosen = torch.cat([shown, ground])
        total = torch.zeros(())
        for head, token_BTV in zip(self.heads, self.tokens(drawn.pixels), strict=True):
            logits_SN = head(token_BTV[:, 1:].flatten(0, 1)[chosen])
            thing_SN, color_SN = logits_SN[:, : GROUND + 1], logits_SN[:, GROUND + 1 :]
            color = cross_entropy(color_SN, colors[chosen], ignore_index=UNSURE)
            loss = cross_entropy(thing_SN, things[chosen]) + COLOR_SHARE * color
            total = total + (1.0 if head is self.heads[-1] else EARLIER_SHARE) * loss
        return total

    def pair_loss(self, drawn: Drawn) -> torch.Tensor:
        """Return CLIP's loss; nothing before the last block gets a gradient."""
        with torch.no_grad():
            token_BTV = self.tokens(drawn.pixels)[-1]
            texts = self.tokenizer(drawn.texts(TRAIN_SEED))
            text_BD = normalize(encode_text_short(self.network, texts), dim=-1)
        last_BTV = self.visual.ln_post(self.visual.transformer.resblocks[-1](token_BTV))
        image_BD = normalize(last_BTV[:, 1:].mean(dim=1) @ self.visual.proj, dim=-1)
        loss: torch.Tensor = ClipLoss()(image_BD, text_BD, self.network.logit_scale.exp())
        return loss

    @torch.no_grad()
    def fit(self, drawn: Drawn, rows: int = 50) -> Fit:
        """Return what the last head knows of scenes."""
        parts = drawn.pixels.split(rows)
        logits = torch.cat([self.heads[-1](self.tokens(part)[-1][:, 1:]) for part in parts])
        return fit_of(logits[..., : GROUND + 1], logits[..., GROUND + 1 :], drawn)


def teach_text(network: Any, tokenizer: Tokenizer, seed: int) -> float:
    """Fit the text tower to ``Codes``, half a minute; return the last loss (1 - cosine)."""
    codes = Codes(network.text_projection.shape[1])
    ground = codes(("ground", 1.0))
    meant = [*(codes((f"thing {name}", 1.0)) for name in names(0)[:GROUND]), ground] * 3
    texts = [name for form in range(3) for name in names(form)]
    for index in range(10_000):
        described = scene(TEXT_SEED, index, WORLDS[index % len(WORLDS)])
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


def train(folder: Path, shape: str, options: Options, every: int = 250) -> None:
    """Train and write the checkpoint."""
    config = architecture(shape)
    run = Training(config, options.seed)
    unseen = draw(PROBE_SEED, 0, 500, (CROWDS,))
    identity = f"{replace(options, num_samples=0, num_pairs=0)} {TRAIN_SEED} {WORLDS} {config}"
    done = _state.resume(folder, run.both, run.optimizer, identity)
    start, first = time.process_time(), done.steps
    while done.steps < options.num_steps:
        if done.steps == options.first_pairs:
            cosine = teach_text(run.network, run.tokenizer, options.seed)
            print(f"text tower: 1 - cosine {cosine:.4f}", flush=True)
        drawn = draw(TRAIN_SEED, done.steps, options.batch_size)
        pairs = done.steps >= options.first_pairs
        loss = run.pair_loss(drawn) if pairs else run.patch_loss(drawn)
        loss.backward()
        nn.utils.clip_grad_norm_(run.both.parameters(), 1.0, foreach=True)
        share = options.share(done.steps)
        run.optimizer.step(share * options.learning_rate, share * options.muon_rate)
        with torch.no_grad():
            run.network.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        done.steps += 1
        done.curve.append(round(loss.item(), 4))
        if done.steps % every == 0 or done.steps == options.first_pairs:
            _state.save(folder, run.both, run.optimizer, identity, done)
            seconds = time.process_time() - start
            rate = (done.steps - first) * options.batch_size / seconds
            print(
                f"{done.steps * options.batch_size:>8,} samples  loss "
                f"{np.mean(done.curve[-every:]):.3f}  {seconds:.0f} CPU s  {rate:.0f}/s  "
                f"{'' if pairs else run.fit(unseen)}",
                flush=True,
            )
    scale_tokens(run.visual, run.tokens(unseen.pixels[:50])[-1])
    save_model(
        folder,
        run.network,
        config=config["model_cfg"],
        preprocess=config["preprocess_cfg"],
        merges=run.tokenizer.merges,
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
    parser.add_argument("--shape", default="patches", help="an architecture or its file (.json)")
    parser.add_argument("--samples", type=int, default=80_000)
    parser.add_argument("--pairs", type=int, default=10_000, help="how many of them with captions")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--muon-rate", type=float, default=0.02)
    parser.add_argument("--warmup-steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--evaluate", action="store_true", help="measure, do not train")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if not given.evaluate:
        options = Options(
            num_samples=given.samples,
            num_pairs=given.pairs,
            batch_size=given.batch_size,
            learning_rate=given.learning_rate,
            muon_rate=given.muon_rate,
            warmup_steps=given.warmup_steps,
            seed=given.seed,
        )
        train(given.out, given.shape, options)
    print(f"model.safetensors: {(given.out / 'model.safetensors').stat().st_size / 1e6:.2f} MB")
    evaluate(given.out)


if __name__ == "__main__":
    main()
