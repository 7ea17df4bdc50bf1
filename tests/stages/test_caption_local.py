"""Batches of the caption stage's own models where memory ends while they are prepared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.captioners import blip
from tests.scored import picture
from winnow.contracts.errors import ShardError
from winnow.contracts.media import DecodedImage
from winnow.models.generation import Sampling
from winnow.models.hf_captioner import HfCaptioner, load_captioner
from winnow.models.hf_captioner_files import find_captioner
from winnow.stages._caption_local import BatchSize, LocalOptions, LocalWorker
from winnow.stages._caption_rows import CaptionRow

NUM_ROWS = 22
Outcome = tuple[tuple[str, ...], str | None]
PICTURES = [picture(seed) for seed in range(NUM_ROWS)]
ALLOCATORS: dict[str, Callable[[], object]] = {
    "torch": lambda: torch.empty(1 << 60, dtype=torch.uint8),  # a RuntimeError
    "numpy": lambda: np.empty(1 << 60, np.uint8),  # a MemoryError
}


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> HfCaptioner:
    folder = blip(tmp_path_factory.mktemp("blip"))
    return load_captioner(find_captioner(folder), device="cpu")


@dataclass
class Hungry:
    """A real captioner on a machine of little memory.

    most, widest: pictures at once, and pixels in a row, that it can prepare. most_written: pictures
    at once for which it can write; for more it raises RuntimeError(said).
    """

    inner: Any
    most: int = 1 << 30
    widest: int = 1 << 30
    allocator: str = "torch"
    most_written: int = 1 << 30
    said: str = ""
    prepared: list[int] = field(default_factory=list)
    on_gpu: bool = True

    @property
    def prompt(self) -> str:
        return self.inner.prompt

    def prepare(self, images: Sequence[Image.Image]) -> Any:
        self.prepared.append(len(images))
        if len(images) > self.most or any(image.width > self.widest for image in images):
            ALLOCATORS[self.allocator]()
        return self.inner.prepare(images)

    def generate(self, inputs: Any, *args: Any, **options: Any) -> Any:
        if len(inputs["pixel_values"]) > self.most_written:
            raise RuntimeError(self.said)
        return self.inner.generate(inputs, *args, **options)

    def row_bytes(self, max_tokens: int) -> int:
        return self.inner.row_bytes(max_tokens)


def outcomes(rows: Sequence[CaptionRow]) -> list[Outcome]:
    return [(row.texts, row.error) for row in rows]


def worker(captioner: Any, batch_size: BatchSize = "auto") -> LocalWorker:
    options = LocalOptions(
        batch_size=batch_size,
        num_candidates=1,
        sampling=Sampling(max_tokens=4),
        seed=0,
        keep_cut=True,
        num_threads=1,
    )
    return LocalWorker(captioner, options, digest="d")


def caption(state: LocalWorker, images: Sequence[Image.Image] = PICTURES) -> list[CaptionRow]:
    uids = [bytes([row]) * 16 for row in range(len(images))]
    return state.caption(uids, [DecodedImage(pixels=one, format="PNG") for one in images])


@pytest.fixture(scope="module")
def expected(captioner: HfCaptioner) -> list[Outcome]:
    """One by one, by the model itself."""
    found = [
        captioner.generate(captioner.prepare([one]), Sampling(max_tokens=4))[0] for one in PICTURES
    ]
    assert len({one.text for one in found}) > 4
    return [((one.text,), None) if one.text else ((), "empty_caption") for one in found]


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_a_batch_that_cannot_be_prepared_is_halved(
    captioner: HfCaptioner, expected: list[Outcome], allocator: str
) -> None:
    hungry = Hungry(captioner, most=4, allocator=allocator)
    state = worker(hungry)
    assert outcomes(caption(state)) == expected
    assert state.size == 4
    hungry.prepared.clear()
    assert outcomes(caption(state)) == expected
    assert hungry.prepared == [4] * 6, "the next batches are of the size that fits"


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_memory_that_holds_no_batch_ends_the_shard(captioner: HfCaptioner, allocator: str) -> None:
    state = worker(Hungry(captioner, most=2, allocator=allocator), batch_size=4)
    with pytest.raises(ShardError, match="memory does not hold a batch of 4; lower batch_size"):
        caption(state)
    state = worker(Hungry(captioner, most=0, allocator=allocator))
    with pytest.raises(ShardError, match="memory does not hold a batch of 1") as caught:
        caption(state)
    assert not caught.value.retryable


@pytest.mark.parametrize("batch_size", ["auto", 4, 1])
def test_a_picture_that_alone_is_too_large_costs_its_row(
    captioner: HfCaptioner, expected: list[Outcome], batch_size: BatchSize
) -> None:
    """Nobody's batches get smaller for a strip that one user's crawl brought along."""
    images, wanted = list(PICTURES), list(expected)
    for row in (0, 9, 21):
        images[row], wanted[row] = Image.new("RGB", (9000, 1)), ((), "undecodable")
    state = worker(Hungry(captioner, widest=8999), batch_size)
    size = state.size
    assert outcomes(caption(state, images)) == wanted
    assert state.size == size


@pytest.mark.parametrize(
    "said",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "CUDA error: out of memory\nCUDA kernel errors might be reported at another call",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_what_torch_says_where_memory_ends(
    captioner: HfCaptioner, expected: list[Outcome], said: str
) -> None:
    state = worker(Hungry(captioner, most_written=8, said=said))
    assert outcomes(caption(state)) == expected
    assert state.size == 8


def test_another_error_of_cuda_is_not_taken_for_memory(captioner: HfCaptioner) -> None:
    failing = Hungry(captioner, most_written=0, said="CUDA error: CUBLAS_STATUS_EXECUTION_FAILED")
    with pytest.raises(RuntimeError, match="EXECUTION_FAILED"):
        caption(worker(failing))
