"""``winnow train``: reference models trained on what was exported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from winnow.contracts.paths import user_path
from winnow.contracts.stage import Resources
from winnow.stages.train._config import Progress, TrainConfig, increments
from winnow.stages.train._network import Setup
from winnow.stages.train.on_shards import train_setup
from winnow.stages.train.shards import shard_paths


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """One training run, for this process or for workers on Ray."""

    shards: tuple[str, ...]
    out: Path
    config: TrainConfig
    setup: Setup

    def alone(self, report: Callable[[Progress], None]) -> dict[str, Any]:
        return train_setup(self.shards, self.out, self.config, self.setup, report=report)

    def on_ray(self, workers: int) -> dict[str, Any]:
        from winnow.pipeline.ray_training import train_on_ray

        # The workers' current directory is another one.
        here = replace(
            self,
            shards=tuple(str(Path(p).resolve()) for p in shard_paths(self.shards)),
            out=self.out.resolve(),
            setup=replace(self.setup, model=_resolved(self.setup.model)),
        )
        num_gpus = 1.0 if self.config.device == "cuda" else 0.0
        each = Resources(num_cpus=float(self.setup.num_threads), num_gpus=num_gpus)
        return train_on_ray(here, workers, each)

    def __call__(self, progress: Callable[[int], None]) -> dict[str, Any]:
        """What each worker runs."""
        return self.alone(increments(progress))


def _resolved(model: str) -> str:
    path = user_path(model)
    return str(path.resolve()) if path.exists() and ("/" in model or path.suffix) else model


@click.group()
def train() -> None:
    """Train a reference model on exported shards."""


@train.command()
@click.argument("shards", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option(
    "--model",
    default="tiny",
    show_default=True,
    help="tiny, small, nano, an open_clip name, or .json.",
)
@click.option("--init", help="Model to start from (weights, vocabulary). [default: fresh]")
@click.option("--samples", default=100_000, show_default=True, help="Pairs seen, repeats included.")
@click.option("--batch-size", default=128, show_default=True)
@click.option("--lr", default=1e-3, show_default=True, help="Peak learning rate.")
@click.option("--loss", type=click.Choice(["clip", "siglip"]), default="clip", show_default=True)
@click.option("--hard-negatives", help="Column of the .json members with wrong captions.")
@click.option("--shared-transformer", is_flag=True, help="One transformer for both (AlignCLIP).")
@click.option("--separation-weight", default=0.0, show_default=True, help="AlignCLIP's, of images.")
@click.option(
    "--separation-encoder",
    default="hashed_words",
    show_default=True,
    help="Frozen text encoder: hashed_words (a substitute), or a model's folder.",
)
@click.option("--micro-batch-size", default=0, show_default=True, help="Rows at a time; 0: all.")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--captions", default="txt", show_default=True, help="Member with the caption.")
@click.option("--vocabulary", type=int, help="Tokens, chosen for the captions. [default: model's]")
@click.option("--stream", is_flag=True, help="Read shards as they are needed: for large sets.")
@click.option("--workers", default=1, show_default=True, help="Processes that train, on Ray.")
@click.option("--threads", default=2, show_default=True)
@click.option("--checkpoint-every", default=25_600, show_default=True, help="Pairs; 0: never.")
def contrastive(
    shards: tuple[str, ...],
    out: Path,
    model: str,
    init: str | None,
    samples: int,
    batch_size: int,
    lr: float,
    loss: str,
    hard_negatives: str | None,
    shared_transformer: bool,
    separation_weight: float,
    separation_encoder: str,
    micro_batch_size: int,
    precision: str,
    seed: int,
    device: str,
    captions: str,
    vocabulary: int | None,
    stream: bool,
    workers: int,
    threads: int,
    checkpoint_every: int,
) -> None:
    """Train a CLIP or SigLIP on SHARDS (an export's folder, tars, a glob).

    The folder OUT can be given to the clip_score stage as its model. The same command again after
    an interruption goes on from the last checkpoint. With several workers the batch size is that of
    all of them together, and every node has to reach SHARDS and OUT.
    """
    config = TrainConfig(
        num_samples=samples,
        batch_size=batch_size,
        learning_rate=lr,
        warmup_samples=min(12_800, samples // 10),
        loss=loss,  # type: ignore[arg-type]
        seed=seed,
        device=device,  # type: ignore[arg-type]
        precision=precision,  # type: ignore[arg-type]
        micro_batch_size=micro_batch_size,
        separation_weight=separation_weight,
        checkpoint_samples=checkpoint_every,
    )
    step = max(1, samples // 20)
    total = config.num_steps * batch_size

    def report(progress: Progress) -> None:
        seen = progress.samples_seen
        if seen // step > (seen - batch_size) // step or seen >= total:
            left = (total - seen) / max(1e-9, progress.samples_per_s)
            click.echo(
                f"{seen:>9,} of {total:,} pairs   loss {progress.loss:.3f}   "
                f"{progress.samples_per_s:,.0f} pairs/s   {left:,.0f} s left"
            )

    setup = Setup(
        model=model,
        init=init,
        vocabulary=vocabulary,
        captions=captions,
        hard_negatives=hard_negatives,
        shared_transformer=shared_transformer,
        separation_encoder=separation_encoder,
        num_threads=threads,
        stream=stream,
    )
    job = _Job(shards=tuple(shards), out=out, config=config, setup=setup)
    document = job.alone(report) if workers == 1 else job.on_ray(workers)
    data = document["data"]
    skipped = ", ".join(f"{n} {why}" for why, n in data["skipped"].items()) or "none"
    click.echo(f"trained on {data['num_samples']:,} pairs (left out: {skipped}); model: {out}")
