"""CLIP scores of rows that trained a scorer, each by a model that did not see the row."""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from winnow.contracts.errors import RecipeError
from winnow.contracts.media import Media
from winnow.contracts.parameters import effort, result
from winnow.contracts.registry import register_stage
from winnow.contracts.stage import Resources, Stage, WorkerOptions
from winnow.models.checkpoint import check_name, find_model
from winnow.stages import _clip_batch
from winnow.stages._clip_batch import Device, PaddedPass, Precision, Resized
from winnow.stages._folds import UNKNOWN_FOLD, model_of_fold

if TYPE_CHECKING:
    from winnow.models.contrastive import ContrastiveModel

NAME = "cross_fit_clip_score"
MAX_BATCH_ROWS = 4096
_MAX_RESIZING = 64


@dataclass(frozen=True, slots=True)
class CrossFitWorker:
    """The loaded models and the threads that resize images beside them."""

    models: tuple[ContrastiveModel, ...]
    threads: ThreadPoolExecutor


@dataclass(slots=True)
class _Queue:
    """Rows that wait for one model."""

    rows: list[int] = field(default_factory=list)
    images: list[Resized] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


@register_stage(NAME, version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class CrossFitClipScore(Stage):
    """Score each image-text pair with the model that was trained without the pair's fold.

    A scorer that is trained on noisy pairs and then scores them has seen their noise. Cut the
    pairs into K folds by component (the stage ``split``), train model k on all folds but k, and
    give the K models here in order: fold "k" is scored by model k. Scores of different models are
    compared as they are, so train all K with the same recipe.

    Reads:   <image_column>: large_binary, encoded bytes.  <text_column>: string.
             <fold>: string, "0" to "K-1"; null = the row trained no model (another part, or none):
             scored by model hash(uid) mod K, so that no single model decides.
    Writes:  <column> (cross_fit_clip_score): float32, the cosine of the two embeddings, in [-1, 1],
             as ``clip_score`` with that model and batch size gives it, bit for bit; null exactly
             when <column>_error is set.
             <column>_error: string (cross_fit_clip_score_error); null, or "missing" | "too_large"
             | "undecodable" (the image), "empty_text" (null or white space), "not_finite" (a model
             that overflows in fp16), "unknown_fold" (no model for that fold).
    Cost:    as ``clip_score``: each row passes one model, in batches of ``batch_size`` rows of its
             model. The last batch of each model in a call is padded; a call has up to 4096 rows,
             which costs an eighth more passes with 5 models of equal folds and a batch_size up to
             256, and a quarter more at 1024. Memory for K models.
    Fails:   a bad row never raises. RecipeError for fewer than two models and for a model that
             cannot be meant; SetupError where files are missing; ShardError where the GPU's memory
             does not hold a batch.

    models: as ``clip_score``'s ``model``; their *content*, in order, enters the fingerprint.
    The other parameters are those of ``clip_score``.
    """

    models: tuple[str, ...] = effort()
    fold: str = result("fold")
    column: str = result(NAME)
    batch_size: int = result(64)
    precision: Precision = result("fp32")
    image_column: str = result("image")
    text_column: str = result("text")
    device: Device = effort("auto")
    num_gpus: float | None = effort(None)
    num_threads: int = result(1)

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        if len(self.models) < 2:
            msg = f"{NAME}: models={list(self.models)}; give one model per fold, at least two"
            raise RecipeError(msg)
        if not self.fold or self.fold in (self.image_column, self.text_column):
            msg = f"{NAME}: fold={self.fold!r}; use the name of a string column, such as 'fold'"
            raise RecipeError(msg)
        _clip_batch.check_options(
            NAME,
            batch_size=self.batch_size,
            num_threads=self.num_threads,
            num_gpus=self.num_gpus,
            device=self.device,
        )
        _clip_batch.check_column(
            NAME, self.column, (self.image_column, self.text_column, self.fold)
        )
        for model in self.models:
            check_name(model, None)

    @property
    def reads(self) -> pa.Schema:
        """The image's bytes, the caption, the fold."""
        text = pa.string()
        return pa.schema(
            {self.image_column: pa.large_binary(), self.text_column: text, self.fold: text}
        )

    @property
    def writes(self) -> pa.Schema:
        """The score and the error."""
        return pa.schema({self.column: pa.float32(), f"{self.column}_error": pa.string()})

    @property
    def resources(self) -> Resources:
        """A whole GPU for device=cuda unless num_gpus says otherwise; none for auto and cpu."""
        return _clip_batch.resources(
            num_threads=self.num_threads, num_gpus=self.num_gpus, device=self.device
        )

    @property
    def batch_rows(self) -> int:
        """About four batches per model, so that little is padded."""
        most = max(1, MAX_BATCH_ROWS // self.batch_size)
        return self.batch_size * min(4 * len(self.models), most)

    def model_digest(self) -> str:
        """Digest of all models: weights, architecture, preprocessing and tokenizer, in order."""
        found = [find_model(model).digest() for model in self.models]
        return hashlib.blake2b("\n".join(found).encode(), digest_size=16).hexdigest()

    def setup(self, options: WorkerOptions) -> CrossFitWorker:
        """Load all models; chooses cuDNN's bit-stable kernels for this process."""
        models = tuple(
            _clip_batch.load(find_model(name), device=self.device, precision=self.precision)
            for name in self.models
        )
        return CrossFitWorker(models, _clip_batch.resize_threads(options))

    def annotate(
        self, batch: pa.RecordBatch, state: CrossFitWorker, media: Media
    ) -> pa.RecordBatch:
        """Score a batch of any size; safe to call from several threads."""
        texts = batch.column(self.text_column).to_pylist()
        uids, folds = batch.column("uid").to_pylist(), batch.column(self.fold).to_pylist()
        chosen = list(model_of_fold(NAME, uids, folds, len(self.models)))
        codes: list[str | None] = [None] * batch.num_rows
        scores = np.zeros(batch.num_rows, np.float32)
        queues = [_Queue() for _ in self.models]
        resizing: deque[Future[_clip_batch.Pixels | None]] = deque()
        for row, item in enumerate(media.images(self.image_column)):
            place = chosen[row]
            codes[row] = _clip_batch.row_code(item, texts[row])
            if place is None:
                codes[row] = codes[row] or UNKNOWN_FOLD
            elif codes[row] is None:
                queue, model = queues[place], state.models[place]
                image = _clip_batch.resized(item, model.preprocess, state.threads)
                if isinstance(image, Future):
                    resizing.append(image)
                if len(resizing) > _MAX_RESIZING:  # each holds a decoded image until it is done
                    wait([resizing.popleft()])
                queue.rows.append(row)
                queue.images.append(image)
                queue.texts.append(texts[row])
                if len(queue.rows) == self.batch_size:
                    self._score(model, queue, scores, codes)
                    queues[place] = _Queue()
        for model, queue in zip(state.models, queues, strict=True):
            if queue.rows:
                self._score(model, queue, scores, codes)
        failed = np.array([code is not None for code in codes], bool)
        arrays = [pa.array(scores, pa.float32(), mask=failed), pa.array(codes, pa.string())]
        return pa.record_batch(arrays, schema=self.writes)

    def _score(
        self,
        model: ContrastiveModel,
        queue: _Queue,
        scores: np.ndarray,
        codes: list[str | None],
    ) -> None:
        one_pass = PaddedPass(
            stage=NAME, model=model, batch_size=self.batch_size, num_threads=self.num_threads
        )
        found: list[str | None] = [None] * len(queue.rows)
        _, cosines = one_pass.embed(queue.images, queue.texts, found)
        scores[queue.rows] = cosines
        for row, code in zip(queue.rows, found, strict=True):
            codes[row] = code
