"""CLIP score: how well an image and its caption agree, by any open_clip model."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from winnow.contracts.errors import RecipeError, ShardError
from winnow.contracts.media import DecodedImage, Media
from winnow.contracts.parameters import effort, result
from winnow.contracts.registry import register_stage
from winnow.contracts.stage import Resources, Stage, WorkerOptions
from winnow.models.checkpoint import check_name, embedding_width, find_model

if TYPE_CHECKING:
    from PIL import Image

    from winnow.models.contrastive import ContrastiveModel, Preprocess

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


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
    Writes:  clip_score: float32, the cosine of the two embeddings, in [-1, 1] (CLIPScore's cosine,
             Hessel et al. 2021, without its factor 2.5 and its clipping at 0); null exactly when
             clip_score_error is set.
             image_embedding, text_embedding: fixed_size_list<float16>[width], unit vectors; only
             with write_embeddings; null where clip_score is.
             clip_score_error: string; null, or "missing" | "too_large" | "undecodable" (the
             image), "empty_text" (null or white space), "not_finite" (a model that overflows in
             fp16).
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
    """

    model: str = effort("tiny")
    pretrained: str | None = effort(None)
    batch_size: int = result(64)
    precision: Literal["fp32", "bf16", "fp16"] = result("fp32")
    image_column: str = result("image")
    text_column: str = result("text")
    write_embeddings: bool = result(False)
    device: Literal["auto", "cpu", "cuda"] = effort("auto")
    num_gpus: float | None = effort(None)
    num_threads: int = result(1)

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        if not 1 <= self.batch_size <= 65_536:
            msg = f"clip_score: batch_size={self.batch_size}; use 1 to 65536, such as 64"
            raise RecipeError(msg)
        if self.num_threads < 1:
            msg = f"clip_score: num_threads={self.num_threads}; use at least 1"
            raise RecipeError(msg)
        if self.num_gpus is not None and not 0 <= self.num_gpus <= 64:
            msg = f"clip_score: num_gpus={self.num_gpus}; use a share of a GPU, such as 0.5 or 1"
            raise RecipeError(msg)
        if self.device == "cpu" and self.num_gpus:
            msg = f"clip_score: device=cpu with num_gpus={self.num_gpus}; leave one of them out"
            raise RecipeError(msg)
        check_name(self.model, self.pretrained)

    @property
    def reads(self) -> pa.Schema:
        """The image's bytes and the caption."""
        return pa.schema({self.image_column: pa.large_binary(), self.text_column: pa.string()})

    @property
    def writes(self) -> pa.Schema:
        """The score, the embeddings where asked for, the error."""
        columns: dict[str, pa.DataType] = {"clip_score": pa.float32()}
        if self.write_embeddings:
            vector = pa.list_(pa.float16(), embedding_width(self.model, self.pretrained))
            columns |= {"image_embedding": vector, "text_embedding": vector}
        return pa.schema({**columns, "clip_score_error": pa.string()})

    @property
    def resources(self) -> Resources:
        """A whole GPU for device=cuda unless num_gpus says otherwise; none for auto and cpu."""
        default = 1.0 if self.device == "cuda" else 0.0
        num_gpus = default if self.num_gpus is None else self.num_gpus
        return Resources(num_cpus=self.num_threads, num_gpus=num_gpus)

    @property
    def batch_rows(self) -> int:
        """A score's last bits depend on the shape of its batch."""
        return self.batch_size

    def model_digest(self) -> str:
        """Digest of weights, architecture, preprocessing and tokenizer."""
        return find_model(self.model, self.pretrained).digest()

    def setup(self, options: WorkerOptions) -> ClipWorker:
        """Load the model; chooses cuDNN's bit-stable kernels for this process."""
        import torch

        from winnow.models.contrastive import load_model

        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.allow_tf32 = False
        model = load_model(
            find_model(self.model, self.pretrained), device=self.device, precision=self.precision
        )
        num_threads = max(1, min(options.decode_threads, os.cpu_count() or 1))
        return ClipWorker(model, ThreadPoolExecutor(num_threads, "clip-preprocess"))

    def annotate(self, batch: pa.RecordBatch, state: ClipWorker, media: Media) -> pa.RecordBatch:
        """Score one batch of up to ``batch_size`` rows; safe to call from several threads."""
        if batch.num_rows > self.batch_size:
            msg = f"clip_score: {batch.num_rows} rows in a batch of {self.batch_size}"
            raise ValueError(msg)
        texts = batch.column(self.text_column).to_pylist()
        resized = [
            state.threads.submit(_pixels, state.model.preprocess, item.pixels)
            if isinstance(item, DecodedImage)
            else str(item)
            for item in media.images(self.image_column)
        ]
        codes = [
            item if isinstance(item, str) else None if text and text.strip() else "empty_text"
            for item, text in zip(resized, texts, strict=True)
        ]
        width = embedding_width(self.model, self.pretrained)
        vectors = np.zeros((2, batch.num_rows, width), np.float32)
        scores = np.zeros(batch.num_rows, np.float32)
        if any(code is None for code in codes):
            padded = [text if code is None else "" for text, code in zip(texts, codes, strict=True)]
            vectors, scores = self._embed(state.model, resized, padded, codes)
        return self._columns(vectors, scores, codes)

    def _embed(
        self,
        model: ContrastiveModel,
        resized: list[Future[Pixels | None] | str],
        texts: list[str],
        codes: list[str | None],
    ) -> tuple[Floats, Floats]:
        """Return embeddings (2, rows, width) and cosines; sets the codes that are found here."""
        import torch

        # Here, not in setup: the count belongs to the calling thread, and other stages set theirs.
        torch.set_num_threads(self.num_threads)
        num_rows = len(texts)
        shape = (self.batch_size, model.preprocess.height, model.preprocess.width, 3)
        pixels = torch.zeros(shape, dtype=torch.uint8, pin_memory=model.device.type == "cuda")
        try:
            # The text tower first: on a GPU it runs while the last images are being resized.
            text = model.embed_texts([*texts, *[""] * (self.batch_size - num_rows)])
            for row, (item, code) in enumerate(zip(resized, codes, strict=True)):
                if code is None and isinstance(item, Future):
                    image = item.result()
                    if image is None:
                        codes[row] = "undecodable"
                    else:
                        pixels.numpy()[row] = image
            image_vectors = model.embed_images(pixels)
        except torch.cuda.OutOfMemoryError as error:
            msg = f"the GPU's memory does not hold a batch of {self.batch_size}; lower batch_size"
            raise ShardError(msg, stage="clip_score", retryable=False) from error
        cosines = (image_vectors * text).sum(dim=1)[:num_rows].cpu().numpy()
        for index in np.flatnonzero(~np.isfinite(cosines)).tolist():
            codes[index] = codes[index] or "not_finite"
        vectors = torch.stack([image_vectors, text])[:, :num_rows]
        return vectors.cpu().numpy(), cosines

    def _columns(self, vectors: Floats, scores: Floats, codes: list[str | None]) -> pa.RecordBatch:
        failed = np.array([code is not None for code in codes], bool)
        arrays: list[pa.Array] = [pa.array(scores, pa.float32(), mask=failed)]
        if self.write_embeddings:
            arrays += [_vectors(values, failed) for values in vectors]
        return pa.record_batch([*arrays, pa.array(codes, pa.string())], schema=self.writes)


def _pixels(preprocess: Preprocess, image: Image.Image) -> Pixels | None:
    """The model's pixels of one image; None where Pillow cannot convert what it decoded."""
    try:
        return preprocess.pixels(image)
    except (OSError, ValueError, MemoryError):
        return None


def _vectors(values: Floats, failed: npt.NDArray[np.bool_]) -> pa.Array:
    flat: Any = pa.array(values.astype(np.float16).ravel(), pa.float16())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1], mask=pa.array(failed))
