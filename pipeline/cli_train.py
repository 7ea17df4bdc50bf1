"""``winnow train``: reference models trained on what was exported."""

from __future__ import annotations

from pathlib import Path

import click

from winnow.stages.train.contrastive import Progress, TrainConfig
from winnow.stages.train.on_shards import train_on_shards


@click.group()
def train() -> None:
    """Train a reference model on exported shards."""


@train.command()
@click.argument("shards", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--model", default="tiny", show_default=True, help="tiny, open_clip name, or .json.")
@click.option("--samples", default=100_000, show_default=True, help="Pairs seen, repeats included.")
@click.option("--batch-size", default=128, show_default=True)
@click.option("--lr", default=1e-3, show_default=True, help="Peak learning rate.")
@click.option("--loss", type=click.Choice(["clip", "siglip"]), default="clip", show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--captions", default="txt", show_default=True, help="Member with the caption.")
@click.option("--vocabulary", type=int, help="Tokens, chosen for the captions. [default: model's]")
@click.option("--threads", default=2, show_default=True)
@click.option("--checkpoint-every", default=25_600, show_default=True, help="Pairs; 0: never.")
def contrastive(
    shards: tuple[str, ...],
    out: Path,
    model: str,
    samples: int,
    batch_size: int,
    lr: float,
    loss: str,
    seed: int,
    device: str,
    captions: str,
    vocabulary: int | None,
    threads: int,
    checkpoint_every: int,
) -> None:
    """Train a CLIP or SigLIP on SHARDS (an export's folder, tars, a glob).

    The folder OUT can be given to the clip_score stage as its model. The same command again after
    an interruption goes on from the last checkpoint.
    """
    config = TrainConfig(
        num_samples=samples,
        batch_size=batch_size,
        learning_rate=lr,
        warmup_samples=min(12_800, samples // 10),
        loss=loss,  # type: ignore[arg-type]
        seed=seed,
        device=device,  # type: ignore[arg-type]
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

    document = train_on_shards(
        shards,
        out,
        config,
        model=model,
        vocabulary=vocabulary,
        captions=captions,
        num_threads=threads,
        report=report,
    )
    data = document["data"]
    skipped = ", ".join(f"{n} {why}" for why, n in data["skipped"].items()) or "none"
    click.echo(f"trained on {data['num_samples']:,} pairs (left out: {skipped}); model: {out}")
