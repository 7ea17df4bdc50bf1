"""The trainer "contrastive": CLIP, SigLIP and AlignCLIP, trained afresh on an exported selection.

Tensor code is in ``loop.py`` and ``winnow.models``; this file is what a trial sees of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.parameters import effort, later, result
from winnow.contracts.registry import register_trainer
from winnow.contracts.stage import Resources
from winnow.contracts.trial import Dataset, Embeddings, Trainer
from winnow.models.checkpoint import find_model
from winnow.stages.train import _common
from winnow.stages.train._augment import augment
from winnow.stages.train._captions import check_choices
from winnow.stages.train._config import Progress, TrainConfig, increments
from winnow.stages.train._network import (
    BUFFER_SAMPLES,
    NUM_LANES,
    Setup,
    architecture_parts,
    network_plan,
    stream_config,
)
from winnow.stages.train.distributed import current_workers
from winnow.stages.train.loop import train_contrastive

__all__ = ["ContrastiveTrainer", "Progress", "TrainConfig", "augment", "train_contrastive"]


@register_trainer("contrastive", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class ContrastiveTrainer(Trainer):
    """Train a contrastive image-text model on shards with captions for each picture.

    Reads:   <key>.<image>, <key>.<captions>, and the columns ``hard_negatives`` and
             ``caption_choices`` of <key>.json.
             Samples without a picture or a caption are left out and counted.
    Writes:  open_clip_config.json, model.safetensors, bpe_merges.txt.gz (where the vocabulary is
             smaller than CLIP's) or the files of a Hugging Face tokenizer, and training.json;
             the folder is a model for the clip_score stage and for open_clip. While it trains,
             training_state.pt.
    Cost:    samples seen times one forward and backward pass of both towers (one more forward pass
             with micro_batch_size); decoded pictures in a scratch file in the trial's folder, or
             with stream every picture decoded again each time it is seen.
    Fails:   RecipeError and SetupError before training: an architecture that is not known, an
             empty selection, fewer rows than a batch, pictures that cannot be read, weights or a
             state of another network; with stream a picture that cannot be read is found when it
             has its turn. ShardError, not retryable, with the step, where the loss is not finite or
             weights that are not finite would be written.

    The same selection, parameters, seed and threads give the same weights on one kind of CPU,
    however often the trial was killed.

    model: an architecture: "tiny", "nano", "small", an open_clip name, or a configuration file. One
        that names a Hugging Face tokenizer (SigLIP, CLIPA, worldwide ...) takes it from beside the
        configuration file, or from the hub or its cache, as it is, and writes it beside the
        weights. One whose text tower is a transformer of the hub (roberta, mt5, nllb) starts that
        tower from the weights there, as open_clip does (hf_model_pretrained: false: afresh).
        coca_* are trained without their captioning decoder.
    init: a model to start from (weights and vocabulary), null for fresh weights.
    loss: "clip" (Radford et al. 2021) or "siglip" (Zhai et al. 2023; bias starts at -10).
    warmup: share of the samples seen at a rising learning rate; a cosine to 0 follows.
    augment_scale: least side of the random crop, as a share of the picture's side.
    brightness: greatest relative change of light.
    captions: the member that holds the caption. vocabulary: number of byte-pair tokens.
    hard_negatives: a .json column with a text (or list of texts) that is wrong for the picture;
        each is a wrong text for every picture of the batch (NegCLIP, Yuksekgonul et al. 2023).
    micro_batch_size: rows embedded at a time, 0 for all; the gradient is the whole batch's
        (GradCache, Gao et al. 2021). Refused for architectures with BatchNorm (RN*, MobileCLIP*
        but L-14), which normalise by the rows that are embedded together.
    shared_transformer, separation_weight, separation_encoder: AlignCLIP (Eslami and de Melo 2024):
        one transformer for both sides; the weight of the image separation, relative to the mean of
        the two directions of the contrastive loss; the frozen text encoder, where "hashed_words"
        is a SUBSTITUTE without a model, see ``winnow.models.caption_vectors``.
    skip_unreadable: leave pictures that cannot be decoded out instead of refusing to train.
    precision: "bf16" runs the towers under autocast, weights stay float32.
    cache_folder: a local folder where decoded pictures are kept for other trials; null: in a study
        one of the machine's, see ``winnow.pipeline.trial_cache``; "": nowhere.
    stream: hold ``buffer_samples`` encoded samples at most, for selections that fit no scratch
        file: see ``winnow.stages.train.streaming``. Their order is another one, a little less
        shuffled; the vocabulary is all of CLIP's, or that of ``init`` or of the tokenizer that
        the architecture names; of several hard negatives the first one counts;
        separation_weight cannot be used.
    num_lanes: shards that a stream reads at once; it divides batch_size.
    num_workers: processes on Ray that train one model, each with ``num_threads`` and ``num_gpus``.
        The batch is that of all together. It is a ``result``: sums differ in their last bits, and
        BatchNorm normalises by the rows of its own process.
    caption_choices: a .json column with a list of captions. Each epoch draws one of them for the
        sample, by hash(seed, epoch, key): see ``winnow.stages.train._captions``. Where the list is
        null or empty it is the member ``captions``, which every sample has to have all the same.
    """

    subject: ClassVar[str] = "embeddings"
    data_parameters: ClassVar[frozenset[str]] = frozenset({"captions", "caption_choices"})

    model: str = effort("tiny")
    init: str | None = effort(None)
    loss: Literal["clip", "siglip"] = result("clip")
    batch_size: int = result(128)
    learning_rate: float = result(1e-3)
    weight_decay: float = result(0.1)
    warmup: float = result(0.1)
    augment_scale: float = result(0.85)
    brightness: float = result(0.15)
    captions: str = result("txt")
    vocabulary: int | None = result(None)
    hard_negatives: str | None = result(None)
    micro_batch_size: int = result(0)
    shared_transformer: bool = result(False)
    separation_weight: float = result(0.0)
    separation_encoder: str = effort("hashed_words")
    skip_unreadable: bool = result(False)
    precision: Literal["fp32", "bf16"] = result("fp32")
    num_threads: int = result(1)
    device: Literal["auto", "cpu", "cuda"] = effort("auto")
    num_cpus: float | None = effort(None)
    num_gpus: float | None = effort(None)
    checkpoint_samples: int = effort(25_600)
    cache_folder: str | None = effort(None)
    stream: bool = later(False)
    num_lanes: int = later(NUM_LANES)
    buffer_samples: int = later(BUFFER_SAMPLES)
    num_workers: int = later(1)
    caption_choices: str | None = later(None)

    def __post_init__(self) -> None:
        """Refuse what cannot train; reads configurations, never weights."""
        if not 0 <= self.warmup < 1:
            msg = f"contrastive: warmup={self.warmup}; use a share of the samples in [0, 1)"
            raise RecipeError(msg)
        if self.num_threads < 1:
            msg = f"contrastive: num_threads={self.num_threads}; use at least 1"
            raise RecipeError(msg)
        _common.check_resources(
            "contrastive", num_cpus=self.num_cpus, num_gpus=self.num_gpus, device=self.device
        )
        config = self._config(num_samples=1, seed=0)
        check_choices(self.caption_choices, self.hard_negatives, self.separation_weight)
        if self.stream:
            stream_config(self._setup(), config)
        elif (self.num_lanes, self.buffer_samples) != (NUM_LANES, BUFFER_SAMPLES):
            msg = "contrastive: num_lanes and buffer_samples are a stream's; set stream: true"
            raise RecipeError(msg)
        self._check_workers()

    def _check_workers(self) -> None:
        if self.num_workers < 1:
            msg = f"contrastive: num_workers={self.num_workers}; use at least 1"
            raise RecipeError(msg)
        divided = {"batch_size": self.batch_size}
        divided |= {"num_lanes": self.num_lanes} if self.stream else {}
        for name, value in divided.items():
            if value % self.num_workers:
                msg = (
                    f"contrastive: {name}={value}: use a multiple of num_workers={self.num_workers}"
                )
                raise RecipeError(msg)

    @property
    def resources(self) -> Resources:
        """Of each worker: a core per thread; one GPU for device=cuda, if num_gpus is null."""
        return _common.resources(
            num_threads=self.num_threads,
            num_cpus=self.num_cpus,
            num_gpus=self.num_gpus,
            device=self.device,
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of hard negatives and of several captions, where they are asked for."""
        named = dict.fromkeys((self.hard_negatives, self.caption_choices))
        return tuple(name for name in named if name is not None)

    def model_digest(self) -> str:
        """Digest of the architecture, the weights it starts from and the frozen text encoder."""
        init = None if self.init is None else find_model(self.init)
        described, *hub = architecture_parts(self.model, init)
        parts: list[Any] = [described, "" if init is None else init.digest(), *hub]
        if self.separation_weight:
            from winnow.models.caption_vectors import describe

            encoder = describe(self.separation_encoder)
            parts.append([encoder["what"], encoder["digest"]])
        text = json.dumps(parts, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def check(self, data: Dataset, num_samples: int) -> None:
        """Refuse what cannot train, from the number of rows and the parameters alone."""
        _common.check_rows(data, self.batch_size)
        if self.stream and len(data.shards) < self.num_lanes:
            msg = (
                f"{data.name} has {len(data.shards)} shards, fewer than num_lanes="
                f"{self.num_lanes}; use fewer lanes, or export with fewer rows a shard"
            )
            raise SetupError(msg)
        network_plan(self._setup(), self._config(num_samples=num_samples, seed=0))

    def train(
        self,
        data: Dataset,
        folder: Path,
        *,
        num_samples: int,
        seed: int,
        progress: Callable[[int], None] = lambda samples: None,
        saved: Callable[[], None] = lambda: None,
    ) -> Mapping[str, Any]:
        """Train, or go on from the state in ``folder``; see the class.

        Each of several workers calls this, with a folder of its own or the same one; the first one
        writes.
        """
        from winnow.stages.train.on_shards import train_setup

        self.check(data, num_samples)
        found = current_workers().world_size
        if found != self.num_workers:
            msg = f"contrastive: num_workers={self.num_workers}, but {found} were started"
            raise SetupError(msg)
        return train_setup(
            data.shards,
            folder,
            self._config(num_samples=num_samples, seed=seed),
            self._setup(data.digest),
            report=increments(progress),
            saved=saved,
        )

    def load(self, folder: Path, data: Dataset, columns: Sequence[str]) -> Embeddings:
        """Embed an evaluation set with the model in ``folder``: any that clip_score can load.

        Captions are the .txt members, whichever ones it was trained on. Always in float32.
        """
        import torch

        from winnow.models.contrastive import load_model
        from winnow.stages.train._embed import embed_shards

        torch.set_num_threads(self.num_threads)
        model = load_model(find_model(str(Path(folder).resolve())), device=self.device)
        return embed_shards(model, data.shards, columns=columns, num_threads=self.num_threads)

    def _config(self, *, num_samples: int, seed: int) -> TrainConfig:
        return TrainConfig(
            num_samples=num_samples,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            warmup_samples=round(self.warmup * num_samples),
            loss=self.loss,
            seed=seed,
            device=self.device,
            precision=self.precision,
            augment_scale=self.augment_scale,
            brightness=self.brightness,
            micro_batch_size=self.micro_batch_size,
            separation_weight=self.separation_weight,
            checkpoint_samples=self.checkpoint_samples,
        )

    def _setup(self, data_digest: str = "") -> Setup:
        return Setup(
            model=self.model,
            init=self.init,
            vocabulary=self.vocabulary,
            captions=self.captions,
            hard_negatives=self.hard_negatives,
            caption_choices=self.caption_choices,
            shared_transformer=self.shared_transformer,
            separation_encoder=self.separation_encoder,
            skip_unreadable=self.skip_unreadable,
            num_threads=self.num_threads,
            cache_folder=self.cache_folder or None,
            stream=self.stream,
            num_lanes=self.num_lanes,
            buffer_samples=self.buffer_samples,
            data_digest=data_digest,
        )
