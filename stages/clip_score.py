"""CLIP score: how well an image and its caption agree, by any open_clip model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from winnow.contracts.media import Media
from winnow.contracts.parameters import effort, result
from winnow.contracts.registry import register_stage
from winnow.contracts.stage import Resources, Stage, WorkerOptions
from winnow.models.checkpoint import check_name, embedding_width, find_model
from winnow.stages import _clip_batch
from winnow.stages._clip_batch import Device, PaddedPass, Precision

if TYPE_CHECKING:
    from winnow.models.contrastive import ContrastiveModel


@dataclass(frozen=True, slots=True)
class ClipWorker:
    """A loaded model and the threads that resize images beside it."""

    model: ContrastiveModel
    threads: ThreadPoolExecutor


@register_stage("clip_score", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class ClipScore(Stage):
    """Score each image-text pair with a contrastive model.

    Reads:   <image_column>: large_binary, encoded bytes.  <text_column>: string.
    Writes:  <column> (clip_score): float32, the cosine of the two embeddings, in [-1, 1]
             (CLIPScore's cosine, Hessel et al. 2021, without its factor 2.5 and its clipping at
             0); null exactly when <column>_error is set.
             image_embedding, text_embedding: fixed_size_list<float16>[width], unit vectors; only
             with write_embeddings, under these names whatever ``column`` is; null where the
             score is.
             <column>_error: string (clip_score_error); null, or "missing" | "too_large" |
             "undecodable" (the image), "empty_text" (null or white space), "not_finite" (a model
             that overflows in fp16).
    Cost:    one forward pass of both towers; the model's own share of a GPU where num_gpus says so.
             A batch is always ``batch_size`` rows: rows that fail, and those that a short batch
             lacks, are padding, because a score's last bits depend on the shape of the batch (and
             on nothing else in it).
    Fails:   a bad row never raises. RecipeError for a model that cannot be meant; SetupError where
             its files are missing; ShardError where the GPU's memory does not hold a batch.

    Preprocessing and tokenizer are open_clip's own for the model; transparent pixels are shown on
    white first. A caption longer than the model's context is cut there.

    model, pretrained: see ``winnow.models.checkpoint``; the *content* they name enters the
    fingerprint, so the same weights under another path are not scored again.
    device: "auto" takes a GPU that the worker sees, else the CPU; like the kind of CPU it may
    change a score's last bits and is outside the fingerprint (precision is inside).
    num_threads: torch's threads on the CPU. It is inside the fingerprint, because the way a sum is
    split over threads changes its last bits; many workers of one thread are faster anyway.
    column: another name makes room for a second model in the same recipe.
    """

    model: str = effort("tiny")
    pretrained: str | None = effort(None)
    batch_size: int = result(64)
    precision: Precision = result("fp32")
    image_column: str = result("image")
    text_column: str = result("text")
    write_embeddings: bool = result(False)
    device: Device = effort("auto")
    num_gpus: float | None = effort(None)
    num_threads: int = result(1)
    column: str = result("clip_score")

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        _clip_batch.check_options(
            "clip_score",
            batch_size=self.batch_size,
            num_threads=self.num_threads,
            num_gpus=self.num_gpus,
            device=self.device,
        )
        _clip_batch.check_column("clip_score", self.column, (self.image_column, self.text_column))
        check_name(self.model, self.pretrained)

    @property
    def reads(self) -> pa.Schema:
        """The image's bytes and the caption."""
        return pa.schema({self.image_column: pa.large_binary(), self.text_column: pa.string()})

    @property
    def writes(self) -> pa.Schema:
        """The score, the embeddings where asked for, the error."""
        columns: dict[str, pa.DataType] = {self.column: pa.float32()}
        if self.write_embeddings:
            vector = pa.list_(pa.float16(), embedding_width(self.model, self.pretrained))
            columns |= {"image_embedding": vector, "text_embedding": vector}
        return pa.schema({**columns, f"{self.column}_error": pa.string()})

    @property
    def resources(self) -> Resources:
        """A whole GPU for device=cuda unless num_gpus says otherwise; none for auto and cpu."""
        return _clip_batch.resources(
            num_threads=self.num_threads, num_gpus=self.num_gpus, device=self.device
        )

    @property
    def batch_rows(self) -> int:
        """A score's last bits depend on the shape of its batch."""
        return self.batch_size

    def model_digest(self) -> str:
        """Digest of weights, architecture, preprocessing and tokenizer."""
        return find_model(self.model, self.pretrained).digest()

    def setup(self, options: WorkerOptions) -> ClipWorker:
        """Load the model; chooses cuDNN's bit-stable kernels for this process."""
        files = find_model(self.model, self.pretrained)
        model = _clip_batch.load(files, device=self.device, precision=self.precision)
        return ClipWorker(model, _clip_batch.resize_threads(options))

    def annotate(self, batch: pa.RecordBatch, state: ClipWorker, media: Media) -> pa.RecordBatch:
        """Score one batch of up to ``batch_size`` rows; safe to call from several threads."""
        _clip_batch.check_rows("clip_score", batch.num_rows, self.batch_size)
        texts = batch.column(self.text_column).to_pylist()
        images = [
            _clip_batch.resized(item, state.model.preprocess, state.threads)
            for item in media.images(self.image_column)
        ]
        codes = [_clip_batch.row_code(i, text) for i, text in zip(images, texts, strict=True)]
        found = None
        if any(code is None for code in codes):
            one_pass = PaddedPass(
                stage="clip_score",
                model=state.model,
                batch_size=self.batch_size,
                num_threads=self.num_threads,
            )
            found = one_pass.embed(images, texts, codes)
        return _clip_batch.scored(self.writes, found, codes)
