"""The trainer "projector": a vision tower, a connector and a language model that learn to answer.

The networks are in ``winnow.models.projector``, the loop in ``_projector_loop.py``; this file is
what a trial sees of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from winnow.contracts.errors import RecipeError
from winnow.contracts.parameters import effort, later, result
from winnow.contracts.registry import register_trainer
from winnow.contracts.stage import Resources
from winnow.contracts.trial import Captioner, Dataset, Trainer
from winnow.models.checkpoint import find_tower
from winnow.models.conversation import CAPTION_PROMPT
from winnow.models.language_files import find_language_model
from winnow.models.projector_files import ProjectorConfig, load_projector, projector_digest
from winnow.stages.train import _common
from winnow.stages.train._projector_lessons import LessonReading, read_texts
from winnow.stages.train._projector_loop import LoopConfig
from winnow.stages.train._projector_schedule import Plan, Schedule

if TYPE_CHECKING:
    from winnow.stages.train._projector_run import ProjectorSetup

Connector = Literal[
    "linear", "mlp", "perceiver_prefix", "perceiver_xattn", "qformer", "instruct_qformer"
]
AudioConnector = Literal["linear", "mlp", "perceiver_prefix", "qformer", "instruct_qformer"]
SCHEDULES = get_args(Schedule)
CONNECTORS = get_args(Connector)
AUDIO_CONNECTORS = get_args(AudioConnector)
_QFORMERS = ("qformer", "instruct_qformer")
_ANSWERED_TOGETHER = 32
_MODALITY_DROPOUT, _MOST_DROPPED = 0.25, 0.5


@register_trainer("projector", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class ProjectorTrainer(Trainer):
    """Train a connector between frozen towers and a language model, and maybe the latter.

    Reads:   <key>.<image>, <key>.<captions>, and of <key>.json the columns ``caption_choices``
             (list<string>), ``conversations`` (list<struct<from: string, value: string>>, LLaVA's
             turns; null: the caption is used) and ``interleaved`` (list<struct<text: string,
             image: int32>>, picture 0 is the sample's own, picture n its member <n>.<extension>).
             With audio_tower also <key>.<wav, flac, mp3, ogg, opus, m4a>; then a picture or a
             recording is enough. Samples that lack what they need are left out and counted.
    Writes:  the folder of ``winnow.models.projector.save_projector`` and training.json, which holds
             for each stage its loss curve, and the perplexity of the language model on texts
             before and after it. After a first stage also the matching head of
             ``winnow.models.matching``. While it trains, training_state.pt.
    Cost:    one pass of the tower per picture, then for each sample seen one pass of connector and
             language model, backward too. The pictures' features lie in a scratch file in the
             trial's folder where they fit ``cache_bytes``, else their pixels do.
    Fails:   RecipeError and SetupError before training: an unknown connector, an empty selection,
             fewer rows than a batch, weights that are not there. ShardError, not retryable, with
             the step of a loss that is not finite.

    The same selection, parameters, seed and threads give the same weights on one kind of CPU,
    however often the trial was killed. The tower's features always have the values of float16.

    tower, max_tiles: see ``winnow.models.vision_tower``. language_model: see
        ``winnow.models.language_model``; a random one is refused unless allow_random_lm.
    connector, num_queries, depth, heads, cross_every, lora_rank, lora_alpha: see
        ``winnow.models.projector_files.ProjectorConfig``.
    prompt: what a caption answers. captions: the member that holds it. caption_choices: a .json
        column with a list of captions, one of which is drawn each epoch, as by "contrastive"; where
        it is null or empty the member is used.
    interleaved: a column, for perceiver_xattn only: then all samples are trained as such texts.
    schedule: "connector": the language model stays frozen (BLIP-2's second stage, InstructBLIP,
        Flamingo), on conversations, where there is such a column, else captions. "llava": the
        connector alone on captions for first_share of the samples, then connector and language
        model on conversations, or on captions where there are none. "llava_lora": the same with
        LoRA in place of the whole language model.
    representation_share: the share of the samples that Q-Formers spend on BLIP-2's first stage,
        on captions; null: half for qformer connectors, 0 for the others, which have none.
    learning_rate: of the connector while the language model is frozen. second_learning_rate: of
        all that is trained in LLaVA's second stage; null: 2e-5, with LoRA 2e-4, as published.
        representation_learning_rate: of the first stage. representation_batch_size: of the first
        stage, whose contrast and hard negatives come from the batch; null: batch_size.
    warmup: share of each stage at a rising learning rate; a cosine to 0 follows.
    text_share: of the batches of stages that train what texts alone pass through (the language
        model, LoRA, gated layers): plain texts without pictures. They count as samples seen. The
        texts are the samples' own words, or the lines of text_file.
    init: a projector's folder to start from. It has to be of the same parts.
    micro_batch_size: rows of a pass, 0 for all; the gradient is the whole batch's. Not for the
        first stage, whose contrast needs them all.
    precision: "bf16" runs under autocast, weights stay float32.
    audio_tower: a folder that the trainer "audio" wrote; its frozen tower's tokens follow the image
        tokens, through a second connector: audio_connector, with audio_queries queries, depth and
        heads. What a row lacks has a learned null embedding in its place. Prefix connectors only.
    modality_dropout: with an audio_tower, the share of the rows with both whose picture is taken
        away at a step, and of those whose sound is; never both. 0 to 0.5, usually 0.2 to 0.3; null:
        0.25. Nothing is dropped in a first stage, or when the model answers.
    """

    subject: ClassVar[str] = "captions"
    data_parameters: ClassVar[frozenset[str]] = frozenset(
        {"captions", "caption_choices", "conversations"}
    )

    tower: str = effort("patches")
    language_model: str = effort("tiny-lm")
    allow_random_lm: bool = effort(False)
    connector: Connector = result("mlp")
    num_queries: int = result(32)
    depth: int = result(2)
    heads: int = result(4)
    cross_every: int = result(1)
    max_tiles: int = result(0)
    lora_rank: int = result(8)
    lora_alpha: float = result(16.0)
    prompt: str = result(CAPTION_PROMPT)
    captions: str = result("txt")
    caption_choices: str | None = result(None)
    conversations: str | None = result(None)
    interleaved: str | None = result(None)
    schedule: Schedule = result("connector")
    first_share: float = result(0.5)
    representation_share: float | None = result(None)
    learning_rate: float = result(1e-3)
    second_learning_rate: float | None = result(None)
    representation_learning_rate: float = result(1e-4)
    representation_batch_size: int | None = result(None)
    warmup: float = result(0.03)
    weight_decay: float = result(0.0)
    text_share: float = result(0.0)
    text_file: str | None = effort(None)
    init: str | None = effort(None)
    batch_size: int = result(32)
    micro_batch_size: int = result(0)
    precision: Literal["fp32", "bf16"] = result("fp32")
    num_threads: int = result(1)
    device: Literal["auto", "cpu", "cuda"] = effort("auto")
    num_cpus: float | None = effort(None)
    num_gpus: float | None = effort(None)
    checkpoint_samples: int = effort(25_600)
    cache_bytes: int = effort(16 << 30)
    audio_tower: str | None = effort(None)
    audio_connector: AudioConnector = later("mlp")
    audio_queries: int = later(32)
    modality_dropout: float | None = later(None)

    def __post_init__(self) -> None:
        """Refuse what cannot train; reads no files."""
        allowed = {"connector": CONNECTORS, "schedule": SCHEDULES}
        allowed["audio_connector"] = AUDIO_CONNECTORS
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                msg = f"projector: {name}={getattr(self, name)!r}; use one of {', '.join(values)}"
                raise RecipeError(msg)
        self._check_numbers()
        self._check_shares()
        self._check_audio()
        if self.interleaved is not None and self.connector != "perceiver_xattn":
            msg = (
                f"projector: interleaved={self.interleaved!r} with connector={self.connector}: "
                "only perceiver_xattn sees which picture stands where; leave interleaved out"
            )
            raise RecipeError(msg)
        others = [n for n in ("conversations", "caption_choices") if getattr(self, n) is not None]
        if self.interleaved is not None and others:
            msg = f"projector: interleaved and {others[0]} exclude each other; leave one out"
            raise RecipeError(msg)
        _common.check_resources(
            "projector", num_cpus=self.num_cpus, num_gpus=self.num_gpus, device=self.device
        )

    def _check_numbers(self) -> None:
        positive = ("num_queries", "depth", "heads", "cross_every", "lora_rank", "batch_size")
        least = dict.fromkeys((*positive, "num_threads", "audio_queries"), 1)
        zero = ("max_tiles", "micro_batch_size", "checkpoint_samples", "cache_bytes")
        if self.representation_batch_size is not None:
            least["representation_batch_size"] = 2
        least |= dict.fromkeys((*zero, "weight_decay"), 0)
        for name, value in least.items():
            if not getattr(self, name) >= value:
                msg = f"projector: {name}={getattr(self, name)}; use at least {value}"
                raise RecipeError(msg)
        for name in ("learning_rate", "second_learning_rate", "representation_learning_rate"):
            rate = getattr(self, name)
            if rate is not None and not 0 < rate < 1:
                msg = f"projector: {name}={rate}; use a rate in (0, 1), such as 0.001"
                raise RecipeError(msg)

    def _check_shares(self) -> None:
        highest = {"text_share": 0.5}
        for name in ("warmup", "first_share", "representation_share", "text_share"):
            value, most = getattr(self, name), highest.get(name, 1.0)
            if value is not None and not 0 <= value <= most:
                msg = f"projector: {name}={value}; use a share from 0 to {most}"
                raise RecipeError(msg)
        if self.representation_share and self.connector not in _QFORMERS:
            msg = (
                f"projector: representation_share={self.representation_share} with connector="
                f"{self.connector}: only {' and '.join(_QFORMERS)} have such a stage; leave it out"
            )
            raise RecipeError(msg)
        if self.interleaved is not None and self.schedule != "connector":
            msg = f"projector: interleaved with schedule={self.schedule}: use schedule: connector"
            raise RecipeError(msg)
        reached = self.schedule != "connector" or self.connector == "perceiver_xattn"
        if self.text_share and not reached:
            msg = (
                f"projector: text_share={self.text_share} with schedule=connector: texts alone do "
                "not pass through the connector, so nothing would learn from them; use llava or "
                "llava_lora, or leave text_share out"
            )
            raise RecipeError(msg)

    def _check_audio(self) -> None:
        share = self.modality_dropout
        if share is not None and not 0 <= share <= _MOST_DROPPED:
            msg = f"projector: modality_dropout={share}; use a share from 0 to {_MOST_DROPPED}"
            raise RecipeError(msg)
        if self.audio_tower is None and share is not None:
            msg = (
                f"projector: modality_dropout={share} without audio_tower: there is one modality; "
            )
            raise RecipeError(msg + "name an audio_tower, or leave it out")
        if self.audio_tower is not None and self.connector == "perceiver_xattn":
            msg = (
                "projector: audio_tower with connector=perceiver_xattn: audio tokens stand beside "
                f"image tokens before the text; use one of {', '.join(AUDIO_CONNECTORS)}"
            )
            raise RecipeError(msg)

    @property
    def resources(self) -> Resources:
        """A core per thread; one GPU for device=cuda, if num_gpus is null."""
        return _common.resources(
            num_threads=self.num_threads,
            num_cpus=self.num_cpus,
            num_gpus=self.num_gpus,
            device=self.device,
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of several captions, conversations or interleaved texts, as asked for."""
        return self._reading().columns

    def model_digest(self) -> str:
        """Digest of the towers, the language model, the model to start from and the text file."""
        language = find_language_model(self.language_model, allow_random=self.allow_random_lm)
        parts = [
            find_tower(self.tower).digest(),
            language.digest(),
            "" if self.init is None else projector_digest(self.init),
            "" if self.text_file is None else read_texts(Path(self.text_file)),
        ]
        # What some models learn has changed since version 1; the others' trials stay as they are.
        if self.connector == "instruct_qformer":
            parts.append("the instruction is all prompts")
        if self.connector == "perceiver_xattn" and self.interleaved is not None:
            parts.append("the word behind a picture is told with it in sight")
        if self.audio_tower is not None:
            from winnow.stages.train._projector_run import audio_tower_digest

            parts.append(audio_tower_digest(self.audio_tower))
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()

    def check(self, data: Dataset, num_samples: int) -> None:
        """Refuse what cannot train, from the number of rows, the parameters and small files."""
        from winnow.stages.train._projector_run import check_parts

        _common.check_rows(data, self.batch_size)
        check_parts(self._setup(num_samples=num_samples, seed=0))

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
        from winnow.stages.train._projector_run import train_projector

        self.check(data, num_samples)
        setup = self._setup(num_samples=num_samples, seed=seed)
        return train_projector(data.shards, folder, setup, report=progress, saved=saved)

    def load(self, folder: Path, data: Dataset, columns: Sequence[str]) -> Captioner:
        """Let the model in ``folder`` answer about an evaluation set, in float32.

        Any folder that ``load_projector`` reads. Captions are the .txt members, whichever ones it
        was trained on.
        """
        import torch

        from winnow.stages.train._projector_captioner import Viewing, captioner

        torch.set_num_threads(self.num_threads)
        viewing = Viewing(
            batch_size=max(_ANSWERED_TOGETHER, self.batch_size),
            num_threads=self.num_threads,
            cache_bytes=self.cache_bytes,
            scratch=Path(folder),
        )
        projector = load_projector(Path(folder), device=self.device)
        return captioner(projector, data.shards, columns, viewing)

    def _plan(self) -> Plan:
        share = self.representation_share
        if share is None:
            share = 0.5 if self.connector in _QFORMERS else 0.0
        return Plan(
            schedule=self.schedule,
            interleaved=self.interleaved is not None,
            first_share=self.first_share,
            representation_share=share,
            learning_rate=self.learning_rate,
            second_learning_rate=self.second_learning_rate,
            representation_learning_rate=self.representation_learning_rate,
            warmup=self.warmup,
            text_share=self.text_share,
            texts_reach_connector=self.connector == "perceiver_xattn",
            batch_size=self.batch_size,
            representation_batch_size=self.representation_batch_size or self.batch_size,
        )

    def _model(self) -> ProjectorConfig:
        return ProjectorConfig(
            tower=self.tower,
            language_model=self.language_model,
            connector=self.connector,
            num_queries=self.num_queries,
            depth=self.depth,
            heads=self.heads,
            max_tiles=self.max_tiles,
            cross_every=self.cross_every,
            prompt=self.prompt,
            lora_rank=self.lora_rank,
            lora_alpha=self.lora_alpha,
            audio_tower=self.audio_tower,
            audio_connector=self.audio_connector,
            audio_queries=self.audio_queries,
        )

    def _reading(self) -> LessonReading:
        return LessonReading(
            captions=self.captions,
            caption_choices=self.caption_choices,
            conversations=self.conversations,
            interleaved=self.interleaved,
            num_threads=self.num_threads,
        )

    def _setup(self, *, num_samples: int, seed: int) -> ProjectorSetup:
        from winnow.stages.train._projector_run import ProjectorSetup

        share = _MODALITY_DROPOUT if self.modality_dropout is None else self.modality_dropout
        return ProjectorSetup(
            model=self._model(),
            reading=self._reading(),
            plan=self._plan(),
            loop=LoopConfig(
                micro_batch_size=self.micro_batch_size,
                weight_decay=self.weight_decay,
                seed=seed,
                precision=self.precision,
                checkpoint_samples=self.checkpoint_samples,
            ),
            num_samples=num_samples,
            allow_random_lm=self.allow_random_lm,
            init=self.init or "",
            text_file=self.text_file or "",
            device=self.device,
            cache_bytes=self.cache_bytes,
            modality_dropout=share,
        )
