"""What stages that score with contrastive models share: loading, resizing, one padded pass."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from winnow.contracts.errors import RecipeError, ShardError
from winnow.contracts.media import DecodedImage, MediaFailure
from winnow.contracts.stage import Resources, WorkerOptions

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from winnow.models.checkpoint import ModelFiles
    from winnow.models.contrastive import ContrastiveModel

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "bf16", "fp16"]
Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Resized = Future[Pixels | None] | str
"""An image that is being resized (None: Pillow cannot convert it), or why there is none."""


class Resizes(Protocol):
    """What makes a model's pixels of an image: a model's preprocessing, or a vision tower."""

    def pixels(self, image: Image.Image) -> npt.NDArray[Any]:
        """Return uint8 (..., H, W, 3)."""
        ...


def check_options(
    stage: str, *, batch_size: int, num_threads: int, num_gpus: float | None, device: Device
) -> None:
    """Raise RecipeError for options that cannot run."""
    if not 1 <= batch_size <= 65_536:
        msg = f"{stage}: batch_size={batch_size}; use 1 to 65536, such as 64"
        raise RecipeError(msg)
    if num_threads < 1:
        msg = f"{stage}: num_threads={num_threads}; use at least 1"
        raise RecipeError(msg)
    if num_gpus is not None and not 0 <= num_gpus <= 64:
        msg = f"{stage}: num_gpus={num_gpus}; use a share of a GPU, such as 0.5 or 1"
        raise RecipeError(msg)
    if device == "cpu" and num_gpus:
        msg = f"{stage}: device=cpu with num_gpus={num_gpus}; leave one of them out"
        raise RecipeError(msg)


def check_column(stage: str, column: str, others: tuple[str, ...]) -> None:
    """Raise RecipeError where ``column`` cannot be written beside ``others``, which are read."""
    if not column or column in ("uid", *others):
        msg = f"{stage}: column={column!r} cannot be written; use a new name, such as {stage!r}"
        raise RecipeError(msg)


def resources(*, num_threads: int, num_gpus: float | None, device: Device) -> Resources:
    """Return a whole GPU for device=cuda unless num_gpus says otherwise; none for auto and cpu."""
    default = 1.0 if device == "cuda" else 0.0
    return Resources(num_cpus=num_threads, num_gpus=default if num_gpus is None else num_gpus)


def check_rows(stage: str, num_rows: int, batch_size: int) -> None:
    """Raise ValueError for a batch that the executor should have cut."""
    if num_rows > batch_size:
        msg = f"{stage}: {num_rows} rows in a batch of {batch_size}"
        raise ValueError(msg)


def choose_stable_kernels() -> None:
    """Choose cuDNN's bit-stable kernels for this process."""
    import torch

    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False


def load(files: ModelFiles, *, device: Device, precision: Precision) -> ContrastiveModel:
    """Load a model; chooses cuDNN's bit-stable kernels for this process."""
    from winnow.models.contrastive import load_model

    choose_stable_kernels()
    return load_model(files, device=device, precision=precision)


def resize_threads(options: WorkerOptions) -> ThreadPoolExecutor:
    """Return the threads that resize images beside the model."""
    num_threads = max(1, min(options.decode_threads, os.cpu_count() or 1))
    return ThreadPoolExecutor(num_threads, "clip-preprocess")


def resized(
    item: DecodedImage | MediaFailure, preprocess: Resizes, threads: ThreadPoolExecutor
) -> Resized:
    """Start to resize an image for a model."""
    if not isinstance(item, DecodedImage):
        return item
    return threads.submit(_pixels, preprocess, item.pixels)


def _pixels(preprocess: Resizes, image: Image.Image) -> Pixels | None:
    """The model's pixels of one image; None where Pillow cannot convert what it decoded."""
    try:
        return preprocess.pixels(image)
    except (OSError, ValueError, MemoryError):
        return None


def row_code(image: object, text: str | None) -> str | None:
    """Return why a row cannot be scored, as far as that is known before the model runs."""
    if isinstance(image, str):
        return image
    return None if is_there(text) else "empty_text"


def is_there(text: str | None) -> bool:
    """Whether a text has anything but white space."""
    return bool(text and text.strip())


def first_there(texts: Sequence[str | None]) -> str | None:
    """Return the first of a row's texts that has words, for ``row_code``."""
    return next(filter(is_there, texts), None)


@contextmanager
def forward_pass(stage: str, *, batch_size: int, num_threads: int) -> Iterator[None]:
    """Run a model inside: ``num_threads`` of torch's, and a clear error for a full GPU.

    Fails: ShardError where the GPU's memory does not hold the batch.
    """
    import torch

    # Here, not in setup: the count belongs to the calling thread, and other stages set theirs.
    torch.set_num_threads(num_threads)
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        msg = f"the GPU's memory does not hold a batch of {batch_size}; lower batch_size"
        raise ShardError(msg, stage=stage, retryable=False) from error


def compared(first: Tensor, text: Tensor, codes: list[str | None]) -> tuple[Floats, Floats]:
    """Return two towers' unit vectors (2, rows, width) and their cosines (rows), without padding.

    A row has a code or None; sets the code "not_finite".
    """
    import torch

    num_rows = len(codes)
    # The padding goes after the sum, whose last bits may depend on the shape too.
    cosines = (first * text).sum(dim=1)[:num_rows].cpu().numpy()
    for row in np.flatnonzero(~np.isfinite(cosines)).tolist():
        codes[row] = codes[row] or "not_finite"
    return torch.stack([first, text])[:, :num_rows].cpu().numpy(), cosines


def scored(
    schema: pa.Schema, found: tuple[Floats, Floats] | None, codes: Sequence[str | None]
) -> pa.RecordBatch:
    """Return the score of each row, both embeddings where the schema has them, and the code.

    found: as ``compared`` gives it; None where no row was embedded. Null where there is a code.
    """
    score, *embeddings, _ = schema
    if found is None:
        arrays = [pa.nulls(len(codes), field.type) for field in (score, *embeddings)]
    else:
        vectors, cosines = found
        failed = np.array([code is not None for code in codes], bool)
        arrays = [pa.array(cosines, score.type, mask=failed)]
        arrays += [_halves(v, failed) for _, v in zip(embeddings, vectors, strict=False)]
    return pa.record_batch([*arrays, pa.array(codes, pa.string())], schema=schema)


def _halves(vectors: Floats, failed: npt.NDArray[np.bool_]) -> pa.Array:
    flat: Any = pa.array(vectors.astype(np.float16).ravel(), pa.float16())
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1], mask=pa.array(failed))


@dataclass(frozen=True, kw_only=True, slots=True)
class PaddedPass:
    """One forward pass of both towers over exactly ``batch_size`` rows, whatever is given.

    A score's last bits depend on the shape of the batch and on nothing else in it.
    """

    stage: str
    model: ContrastiveModel
    batch_size: int
    num_threads: int

    def embed(
        self, images: list[Resized], texts: list[str], codes: list[str | None]
    ) -> tuple[Floats, Floats]:
        """Return unit vectors (2, rows, width), image then text, and their cosines (rows).

        Rows with a code are padding. Sets the codes that are found here: "undecodable",
        "not_finite". Fails: ShardError where the GPU's memory does not hold the batch.
        """
        padded = [text if code is None else "" for text, code in zip(texts, codes, strict=True)]
        # The text tower first: on a GPU it runs while the last images are being resized.
        text = self.embed_texts(padded)
        return compared(self.embed_images(images, codes), text, codes)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return unit vectors (batch_size, width) of up to ``batch_size`` texts, and of padding."""
        with self._forward():
            return self.model.embed_texts([*texts, *[""] * (self.batch_size - len(texts))])

    def embed_images(self, images: Sequence[Resized], codes: list[str | None]) -> Tensor:
        """Return unit vectors (batch_size, width); sets the codes "undecodable" found here."""
        import torch

        size, on_gpu = self.model.preprocess, self.model.device.type == "cuda"
        shape = (self.batch_size, size.height, size.width, 3)
        with self._forward():
            pixels = torch.zeros(shape, dtype=torch.uint8, pin_memory=on_gpu)
            for row, (item, code) in enumerate(zip(images, codes, strict=True)):
                if code is None and isinstance(item, Future):
                    image = item.result()
                    if image is None:
                        codes[row] = "undecodable"
                    else:
                        pixels.numpy()[row] = image
            return self.model.embed_images(pixels)

    def _forward(self) -> AbstractContextManager[None]:
        return forward_pass(self.stage, batch_size=self.batch_size, num_threads=self.num_threads)
