"""One run of the trainer "audio": shards in, a folder with a model out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from winnow.contracts.errors import SetupError
from winnow.models.audio_tower import AudioTowerConfig
from winnow.models.checkpoint import ModelFiles
from winnow.stages.train import _state
from winnow.stages.train._audio_config import AudioTrainConfig
from winnow.stages.train._audio_loop import train_audio
from winnow.stages.train._audio_network import (
    ImageTextPlan,
    Towers,
    image_text_plan,
    new_network,
    save_audio_model,
    set_input_statistics,
)
from winnow.stages.train._audio_samples import AudioReading, AudioSamples, read_audio_samples
from winnow.stages.train._common import made, ran_on
from winnow.stages.train.on_shards import REPORT_NAME
from winnow.stages.train.shards import shard_paths


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioSetup:
    """A run: the trainer's parameters, with what they name found. init: None = fresh towers."""

    config: AudioTrainConfig
    tower: AudioTowerConfig
    init: ModelFiles | None
    model: str = "tiny"
    vocabulary: int | None = None
    captions: str = "txt"
    skip_unreadable: bool = False
    num_threads: int = 1
    device: str = "auto"

    def plan(self) -> ImageTextPlan:
        """Return what image-text model there will be."""
        return image_text_plan(
            self.init, model=self.model, vocabulary=self.vocabulary, device=self.device
        )

    @property
    def trained(self) -> tuple[str, ...]:
        """The modalities besides audio whose towers are trained."""
        own = (m for m in self.config.modalities if m != "audio")
        return tuple(m for m in own if m not in self.config.frozen)

    def recorded(self) -> dict[str, Any]:
        """Return what training.json says of it: nothing that depends on the machine's paths."""
        return {
            "model": self.model if self.init is None else None,
            "vocabulary": self.vocabulary,
            "captions": self.captions,
            "skip_unreadable": self.skip_unreadable,
            "num_threads": self.num_threads,
        }


def check_setup(setup: AudioSetup) -> None:
    """Check everything that needs no data.

    Fails: RecipeError for architectures and tokenizers that cannot be trained.
    """
    setup.plan()


def train_audio_on_shards(
    shards: Sequence[str],
    folder: Path,
    setup: AudioSetup,
    *,
    report: Callable[[int], None] = lambda samples: None,
    saved: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Train and write the model; return what training.json holds. See the trainer."""
    torch.set_num_threads(setup.num_threads)
    plan, config = setup.plan(), setup.config
    samples = _read(shard_paths(shards), made(folder), setup, plan)
    model, merges = plan.model(samples.texts, config.seed)
    network = new_network(setup.tower, model, config, plan)
    set_input_statistics(network.tower, samples)
    towers = Towers(network=network, model=model, samples=samples, config=config)
    towers.prepare()
    data = [samples.digest, plan.digest, dataclasses.asdict(setup.tower), setup.recorded()]
    outcome = train_audio(
        towers, config, folder=folder, data=json.dumps(data), report=report, saved=saved
    )
    save_audio_model(folder, towers, plan, merges)
    document = {
        "config": dataclasses.asdict(config),
        "tower": dataclasses.asdict(setup.tower),
        "setup": setup.recorded(),
        "data": {
            "digest": samples.digest,
            "num_samples": len(samples.keys),
            "num_pairs": {pair: int(samples.whole(pair).sum()) for pair in config.pairs},
            "skipped": samples.skipped,
            "unreadable": samples.unreadable,
        },
        "ran_on": ran_on(model.device),
        **outcome,
        "started_from": plan.digest,
    }
    text = json.dumps(document, indent=1) + "\n"
    (folder / REPORT_NAME).write_text(text, encoding="utf-8")
    _state.forget(folder)
    return document


def _read(
    paths: Sequence[str], folder: Path, setup: AudioSetup, plan: ImageTextPlan
) -> AudioSamples:
    config = setup.config
    reading = AudioReading(
        tower=setup.tower,
        resize=plan.resize(augmented="image" in setup.trained),
        modalities=config.modalities,
        pairs=tuple(config.pairs),
        captions=setup.captions,
        num_threads=setup.num_threads,
    )
    samples = read_audio_samples(paths, reading, folder)
    if samples.unreadable and not setup.skip_unreadable:
        found = ", ".join(f"{n} {why}" for why, n in samples.unreadable.items())
        msg = (
            f"the shards hold members that cannot be read: {found}; filter them out and export "
            "again, or set skip_unreadable: true to take them as missing"
        )
        raise SetupError(msg)
    if len(samples.keys) < config.batch_size:
        msg = (
            f"the shards hold {len(samples.keys)} samples with a whole pair (left out: "
            f"{samples.skipped}), fewer than a batch of {config.batch_size}; lower the batch size"
        )
        raise SetupError(msg)
    for pair in config.pairs:
        if not samples.whole(pair).any():
            msg = f"no sample has both sides of the pair {pair}; leave it out of pairs"
            raise SetupError(msg)
    return samples
