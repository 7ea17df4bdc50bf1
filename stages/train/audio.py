"""The trainer "audio": an audio tower beside an image-text model, trained on pairs of modalities.

Tensor code is in ``_audio_network.py``, ``_audio_loop.py`` and ``winnow.models``; this file is what
a trial sees of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from winnow.contracts.errors import RecipeError
from winnow.contracts.parameters import effort, result
from winnow.contracts.registry import register_trainer
from winnow.contracts.stage import Resources
from winnow.contracts.trial import Dataset, Embeddings, Trainer
from winnow.models.checkpoint import find_tower
from winnow.stages.train import _common
from winnow.stages.train._audio_config import AudioTrainConfig, check_numbers, checked_pairs
from winnow.stages.train._network import architecture_parts

if TYPE_CHECKING:
    from winnow.models.audio_tower import AudioTowerConfig
    from winnow.models.checkpoint import ModelFiles


@register_trainer("audio", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class AudioTrainer(Trainer):
    """Train an audio tower against images, texts or both: CLAP's way, or ImageBind's.

    Every pair of modalities has a weight and a learned temperature of its own; the loss is the sum
    of weight times contrastive loss. A row without one side of a pair is no part of that pair's
    loss, not even as a wrong answer.
    CLAP (Wu et al. 2023): ``pairs: {audio_text: 1}``. ImageBind (Girdhar et al. 2023):
    ``pairs: {image_audio: 1}, init: tiny, freeze: [image, text]``: audio meets images only, and
    finds texts because the frozen towers put them beside the images.

    Reads:   <key>.<wav, flac, mp3, ogg, opus, m4a>, <key>.<image> and <key>.<captions>, as far as
             the pairs need them. Samples without one whole pair are left out and counted.
    Writes:  audio_model.json, audio_model.safetensors, and beside them the image-text model (as
             "contrastive" writes it) where it was trained or ``init`` is a folder; else its name
             and digest. training.json. The folder is a model for ``audio_text_score``, and with the
             image-text model in it for ``clip_score``. While it trains, training_state.pt.
    Cost:    samples seen times a forward and backward pass of what is trained. Before: one decoding
             of each recording and picture, one forward pass of frozen towers; log-mels (float16)
             and pixels lie in scratch files in the trial's folder.
    Fails:   RecipeError and SetupError before training: a pair that nothing learns from, an empty
             selection, fewer rows than a batch, members that cannot be decoded, a state of another
             run. ShardError, not retryable, with the step of a loss that is not finite.

    The same selection, parameters, seed and threads give the same weights on one kind of CPU,
    however often the trial was killed.

    pairs: audio_text, image_audio, image_text -> weight; null = {audio_text: 1}.
    init: an image-text model to start from: "tiny", a folder, "hf-hub:org/name", or an open_clip
        architecture and its tag with a space; null = fresh towers of the architecture ``model``,
        with ``vocabulary`` byte-pair tokens chosen for the captions.
    freeze: towers of ``init`` that stay as they are. Frozen pictures are not augmented.
    tower: "nano" or "tiny", see ``winnow.models.audio_tower``. kind, mel, duration_s: in place of
        the preset's: "vit" or "conformer"; the spectrogram; seconds of a clip.
    loss: "clip" (Radford et al. 2021) or "siglip" (Zhai et al. 2023; biases start at -10).
    warmup: share of the samples seen at a rising learning rate; a cosine to 0 follows.
    mask_share: SpecAugment (Park et al. 2019): one band of up to this share of the mel bins, and
        one stretch of up to this share of the clip, are masked. 0 = nothing.
    augment_scale, brightness: of pictures that are trained on, as in "contrastive".
    shuffle_pairs: a control: the recordings change places with each other, by the seed, so that
        they say nothing about the picture and caption that they stand by.
    skip_unreadable: take members that cannot be decoded as missing instead of refusing to train.
    """

    subject: ClassVar[str] = "embeddings"
    data_parameters: ClassVar[frozenset[str]] = frozenset({"captions"})

    pairs: dict[str, float] | None = dataclasses.field(
        default=None, hash=False, metadata={"role": "result"}
    )
    init: str | None = effort(None)
    freeze: tuple[Literal["image", "text"], ...] = result(())
    model: str = effort("tiny")
    vocabulary: int | None = result(None)
    tower: str = effort("tiny")
    kind: Literal["vit", "conformer"] | None = effort(None)
    mel: Literal["whisper_80", "whisper_128", "clap_64"] | None = effort(None)
    duration_s: float | None = effort(None)
    loss: Literal["clip", "siglip"] = result("clip")
    batch_size: int = result(128)
    learning_rate: float = result(1e-3)
    weight_decay: float = result(0.1)
    warmup: float = result(0.1)
    mask_share: float = result(0.0)
    augment_scale: float = result(0.85)
    brightness: float = result(0.15)
    captions: str = result("txt")
    shuffle_pairs: bool = result(False)
    skip_unreadable: bool = result(False)
    num_threads: int = result(1)
    device: Literal["auto", "cpu", "cuda"] = effort("auto")
    num_cpus: float | None = effort(None)
    num_gpus: float | None = effort(None)
    checkpoint_samples: int = effort(25_600)

    def __post_init__(self) -> None:
        """Refuse what cannot train; reads no weights."""
        if self.num_threads < 1:
            msg = f"audio: num_threads={self.num_threads}; use at least 1"
            raise RecipeError(msg)
        if self.init is not None and self.vocabulary is not None:
            msg = f"audio: vocabulary={self.vocabulary} with init: that model has its own; "
            raise RecipeError(msg + "leave vocabulary out")
        _common.check_resources(
            "audio", num_cpus=self.num_cpus, num_gpus=self.num_gpus, device=self.device
        )
        check_numbers(self._config(num_samples=1, seed=0))

    @property
    def resources(self) -> Resources:
        """A core per thread; one GPU for device=cuda, if num_gpus is null."""
        return _common.resources(
            num_threads=self.num_threads,
            num_cpus=self.num_cpus,
            num_gpus=self.num_gpus,
            device=self.device,
        )

    def model_digest(self) -> str:
        """Digest of the audio tower's configuration and of the image-text model."""
        init = self._init()
        start = architecture_parts(self.model) if init is None else [init.digest()]
        text = json.dumps([dataclasses.asdict(self._tower()), *start], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def check(self, data: Dataset, num_samples: int) -> None:
        """Refuse what cannot train, from the number of rows and the parameters alone."""
        from winnow.stages.train._audio_run import check_setup

        _common.check_rows(data, self.batch_size)
        self._tower()
        check_setup(self._setup(num_samples=num_samples, seed=0))

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
        """Train, or go on from the state in ``folder``; see the class."""
        from winnow.stages.train._audio_run import train_audio_on_shards

        self.check(data, num_samples)
        setup = self._setup(num_samples=num_samples, seed=seed)
        return train_audio_on_shards(data.shards, folder, setup, report=progress, saved=saved)

    def load(self, folder: Path, data: Dataset, columns: Sequence[str]) -> Embeddings:
        """Embed an evaluation set with the model in ``folder``, in float32.

        ``vectors`` has image, text and audio; without those that no pair of a model from scratch
        trained. Captions are the .txt members, whichever ones it was trained on.
        """
        import torch

        from winnow.models.audio_text import TowerFiles, find_audio_text_model, load_tower_model
        from winnow.stages.train._audio_embed import embed_audio_shards

        torch.set_num_threads(self.num_threads)
        files = find_audio_text_model(str(Path(folder).resolve()))
        assert isinstance(files, TowerFiles)
        return embed_audio_shards(
            load_tower_model(files, device=self.device),
            data.shards,
            modalities=files.modalities,
            columns=columns,
            num_threads=self.num_threads,
        )

    def _init(self) -> ModelFiles | None:
        return None if self.init is None else find_tower(self.init)

    def _tower(self) -> AudioTowerConfig:
        from winnow.models.audio_tower import tower_config

        own = {"kind": self.kind, "mel": self.mel, "duration_s": self.duration_s}
        return tower_config(self.tower, **{k: v for k, v in own.items() if v is not None})

    def _config(self, *, num_samples: int, seed: int) -> AudioTrainConfig:
        pairs = checked_pairs(self.pairs, self.freeze, from_weights=self.init is not None)
        names = {f.name for f in dataclasses.fields(AudioTrainConfig)}
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name in names}
        changed = {"pairs": pairs, "frozen": self.freeze, "num_samples": num_samples, "seed": seed}
        return AudioTrainConfig(**{**own, **changed})

    def _setup(self, *, num_samples: int, seed: int) -> Any:
        from winnow.stages.train._audio_run import AudioSetup

        return AudioSetup(
            config=self._config(num_samples=num_samples, seed=seed),
            tower=self._tower(),
            init=self._init(),
            model=self.model,
            vocabulary=self.vocabulary,
            captions=self.captions,
            skip_unreadable=self.skip_unreadable,
            num_threads=self.num_threads,
            device=self.device,
        )
