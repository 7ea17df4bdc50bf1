"""Caption scores: how well an image and each of its several captions agree, by any CLIP."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from winnow.contracts.media import Media
from winnow.contracts.parameters import effort, result
from winnow.contracts.registry import register_stage
from winnow.contracts.stage import Resources, Stage, WorkerOptions
from winnow.models.checkpoint import check_name, find_model
from winnow.stages import _clip_batch
from winnow.stages._clip_batch import Device, PaddedPass, Precision, Resized

if TYPE_CHECKING:
    from winnow.models.contrastive import ContrastiveModel

NAME = "caption_scores"
Scores = list[float | None]


@dataclass(frozen=True, slots=True)
class ScoreWorker:
    """A loaded model and the threads that resize images beside it."""

    model: ContrastiveModel
    threads: ThreadPoolExecutor


@register_stage(NAME, version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionScores(Stage):
    """Score each of an image's captions with a contrastive model.

    Reads:   <image_column>: large_binary, encoded bytes.
             <text_column> (synthetic_captions): list<string>.
    Writes:  <column> (caption_scores): list<float32>, one cosine in [-1, 1] per caption, in order,
             as ``clip_score`` with that model and batch size gives it; null in the place of a
             caption that is null or white space, or whose score is not finite. The list is null
             exactly when <column>_error is set.
             <column>_error: string (caption_scores_error); null, or "missing" | "too_large" |
             "undecodable" (the image), "empty_text" (a null list, or none of its captions is
             there), "not_finite" (no score is finite: a model that overflows in fp16).
    Cost:    each image once through the image tower, each caption once through the text tower, in
             batches of ``batch_size``; the last batch of captions of a call is padded.
    Fails:   a bad row never raises. RecipeError for a model that cannot be meant; SetupError where
             its files are missing; ShardError where the GPU's memory does not hold a batch.

    The other parameters are those of ``clip_score``. Score the raw captions with that stage and the
    same model, so that one threshold can serve both.
    """

    model: str = effort("tiny")
    pretrained: str | None = effort(None)
    batch_size: int = result(64)
    precision: Precision = result("fp32")
    image_column: str = result("image")
    text_column: str = result("synthetic_captions")
    device: Device = effort("auto")
    num_gpus: float | None = effort(None)
    num_threads: int = result(1)
    column: str = result(NAME)

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        _clip_batch.check_options(
            NAME,
            batch_size=self.batch_size,
            num_threads=self.num_threads,
            num_gpus=self.num_gpus,
            device=self.device,
        )
        _clip_batch.check_column(NAME, self.column, (self.image_column, self.text_column))
        check_name(self.model, self.pretrained)

    @property
    def reads(self) -> pa.Schema:
        """The image's bytes and the captions."""
        texts = pa.list_(pa.string())
        return pa.schema({self.image_column: pa.large_binary(), self.text_column: texts})

    @property
    def writes(self) -> pa.Schema:
        """The scores and the error."""
        scores = pa.list_(pa.float32())
        return pa.schema({self.column: scores, f"{self.column}_error": pa.string()})

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

    def setup(self, options: WorkerOptions) -> ScoreWorker:
        """Load the model; chooses cuDNN's bit-stable kernels for this process."""
        files = find_model(self.model, self.pretrained)
        model = _clip_batch.load(files, device=self.device, precision=self.precision)
        return ScoreWorker(model, _clip_batch.resize_threads(options))

    def annotate(self, batch: pa.RecordBatch, state: ScoreWorker, media: Media) -> pa.RecordBatch:
        """Score one batch of up to ``batch_size`` rows; safe to call from several threads."""
        _clip_batch.check_rows(NAME, batch.num_rows, self.batch_size)
        texts = [row or [] for row in batch.column(self.text_column).to_pylist()]
        images = [
            _clip_batch.resized(item, state.model.preprocess, state.threads)
            for item in media.images(self.image_column)
        ]
        codes = [
            _clip_batch.row_code(image, _clip_batch.first_there(row))
            for image, row in zip(images, texts, strict=True)
        ]
        scores: list[Scores | None] = [None] * batch.num_rows
        if any(code is None for code in codes):
            self._score(state.model, images, texts, codes, scores)
        arrays = [pa.array(scores, pa.list_(pa.float32())), pa.array(codes, pa.string())]
        return pa.record_batch(arrays, schema=self.writes)

    def _score(
        self,
        model: ContrastiveModel,
        images: list[Resized],
        texts: list[list[str | None]],
        codes: list[str | None],
        scores: list[Scores | None],
    ) -> None:
        """Fill in the scores of rows without a code; sets the codes that are found here."""
        one_pass = PaddedPass(
            stage=NAME, model=model, batch_size=self.batch_size, num_threads=self.num_threads
        )
        vectors_RD = one_pass.embed_images(images, codes)
        flat = [
            (row, place, text)
            for row, row_texts in enumerate(texts)
            for place, text in enumerate(row_texts)
            if codes[row] is None and text is not None and _clip_batch.is_there(text)
        ]
        found: dict[int, Scores] = {row: [None] * len(texts[row]) for row, _, _ in flat}
        for start in range(0, len(flat), self.batch_size):
            part = flat[start : start + self.batch_size]
            text_TD = one_pass.embed_texts([text for _, _, text in part])[: len(part)]
            image_TD = vectors_RD[[row for row, _, _ in part]]
            cosines = (image_TD * text_TD).sum(dim=1).cpu().numpy()
            for (row, place, _), cosine in zip(part, cosines.tolist(), strict=True):
                found[row][place] = cosine if np.isfinite(cosine) else None
        for row, values in found.items():
            if any(value is not None for value in values):
                scores[row] = values
            else:
                codes[row] = "not_finite"
