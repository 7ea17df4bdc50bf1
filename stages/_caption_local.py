"""Captions by a model in this process: batches of one shape, which fit the memory there is."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from winnow.contracts.errors import ShardError
from winnow.contracts.identity import stable_hash64
from winnow.contracts.media import DecodedImage, MediaFailure
from winnow.contracts.trial import Generated
from winnow.stages._caption_rows import Candidate, CaptionRow, caption_row, failed

if TYPE_CHECKING:
    from PIL import Image

    from winnow.models.generation import Sampling

BatchSize = int | Literal["auto"]
MOST_ON_GPU, MOST_ON_CPU = 128, 16
"""Pictures in a batch of "auto" where memory does not limit it: powers of two."""
_SHARE = 4
"""On the CPU one worker's batch may take this part of the free memory: there are other workers."""
HELD_BYTES = 1 << 30
"""Pixels that wait for a batch to be full; a batch of huge pictures goes early, padded."""
_ORDINARY_SIDE = 256
_REFUSALS = (OSError, ValueError, TypeError, ArithmeticError, LookupError, RuntimeError)
"""What processors raise on a picture that they cannot take (one pixel high, for example)."""
_NO_MEMORY = ("allocate memory", "not enough memory", "out of memory", "_status_alloc_failed")
"""What says so, in lower case, of errors that torch raises as RuntimeError: its own allocators',
CUDA's, cuBLAS's, cuDNN's."""


class Captioner(Protocol):
    """A loaded model that describes pictures."""

    @property
    def prompt(self) -> str:
        """What it is asked."""
        ...

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on a GPU."""
        ...

    def prepare(self, images: Sequence[Image.Image]) -> Any:
        """Return what the network reads about RGB images, as small as it is there."""
        ...

    def generate(
        self, inputs: Any, sampling: Sampling, seeds: Sequence[int] | None, *, candidates: int
    ) -> list[Generated]:
        """Return ``candidates`` texts per image, those of one image side by side.

        seeds: one per text, for sampling.
        """
        ...

    def row_bytes(self, max_tokens: int) -> int:
        """Return roughly what one row of a batch needs in memory."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalOptions:
    """What a worker obeys; the caption stage's docstring defines each value."""

    batch_size: BatchSize
    num_candidates: int
    sampling: Sampling
    seed: int
    keep_cut: bool
    num_threads: int


@dataclass(kw_only=True, slots=True)
class _Group:
    """Rows of one batch: their places, uids and RGB images."""

    rows: list[int] = field(default_factory=list)
    uids: list[bytes] = field(default_factory=list)
    images: list[Image.Image] = field(default_factory=list)
    num_bytes: int = 0

    def add(self, row: int, uid: bytes, image: Image.Image) -> None:
        self.rows.append(row)
        self.uids.append(uid)
        self.images.append(image)
        self.num_bytes += rgb_bytes(image)

    def take(self, places: Sequence[int]) -> _Group:
        found = _Group()
        for place in places:
            found.add(self.rows[place], self.uids[place], self.images[place])
        return found


class _Prepared(NamedTuple):
    """What the network reads about one batch, and of how many pictures it is, padding included."""

    inputs: Any
    size: int


class _TooLarge(NamedTuple):
    """Memory ended while so many pictures were prepared."""

    size: int
    problem: str


class LocalWorker:
    """Captions rows batch by batch; the next batch is prepared while the last one is written.

    ``size`` pictures make a batch. With "auto" it halves, for the rest of the worker's life, when
    memory does not hold a batch, prepared or written; the rows of that batch are done again.
    """

    def __init__(self, captioner: Captioner, options: LocalOptions, *, digest: str) -> None:
        self.captioner, self.options, self._digest = captioner, options, digest
        self.size = _first_size(captioner, options)
        self._threads = ThreadPoolExecutor(1, "caption-prepare")
        self._lock = threading.Lock()

    def caption(
        self, uids: Sequence[bytes], items: Iterable[DecodedImage | MediaFailure]
    ) -> list[CaptionRow]:
        """Return one outcome per row, in order."""
        import torch

        # Here, not in setup: the count belongs to the calling thread, and other stages set theirs.
        torch.set_num_threads(self.options.num_threads)
        rows: list[CaptionRow] = [failed("undecodable")] * len(uids)
        ahead: tuple[_Group, Future[_Prepared | _TooLarge | None]] | None = None
        for group in self._groups(uids, items, rows):
            future = self._threads.submit(self._prepare, group.images, self.size)
            if ahead is not None:
                self._write(ahead[0], ahead[1].result(), rows)
            ahead = group, future
        if ahead is not None:
            self._write(ahead[0], ahead[1].result(), rows)
        return rows

    def close(self) -> None:
        """End the thread that prepares batches."""
        self._threads.shutdown(cancel_futures=True)

    def _groups(
        self,
        uids: Sequence[bytes],
        items: Iterable[DecodedImage | MediaFailure],
        rows: list[CaptionRow],
    ) -> Iterator[_Group]:
        """Yield batches of images; rows without one get their code."""
        from winnow.models.contrastive import to_rgb

        group = _Group()
        for row, (uid, item) in enumerate(zip(uids, items, strict=True)):
            if not isinstance(item, DecodedImage):
                rows[row] = failed(item)
                continue
            try:
                group.add(row, uid, to_rgb(item.pixels))
            except (OSError, ValueError, MemoryError):
                continue  # it is "undecodable" until something else is known
            if len(group.rows) >= self.size or group.num_bytes > HELD_BYTES:
                yield group
                group = _Group()
        if group.rows:
            yield group

    def _prepare(self, images: Sequence[Image.Image], size: int) -> _Prepared | _TooLarge | None:
        """Return the network's inputs for exactly ``size`` images; None where one is refused."""
        import torch

        torch.set_num_threads(self.options.num_threads)
        try:
            padded = [*images, *[images[0]] * (size - len(images))]
            return _Prepared(self.captioner.prepare(padded), size)
        except (MemoryError, *_REFUSALS) as error:
            if not _is_out_of_memory(error):
                return None
            return _TooLarge(size, _first_line(error))

    def _write(
        self, group: _Group, prepared: _Prepared | _TooLarge | None, rows: list[CaptionRow]
    ) -> None:
        """Caption one group, in smaller ones where it does not fit or holds what is refused."""
        most = len(group.rows)
        if prepared is None:
            group, most = self._accepted(group)
        elif isinstance(prepared, _TooLarge):
            group = self._fitting(group, prepared)
        elif prepared.size <= self.size and self._wrote(group, prepared, rows):
            return
        start = 0
        while start < len(group.rows):  # the size may shrink at each turn
            part = group.take(range(start, min(start + min(most, self.size), len(group.rows))))
            self._write(part, self._prepare(part.images, self.size), rows)
            start += len(part.rows)

    def _accepted(self, group: _Group) -> tuple[_Group, int]:
        """Return the rows whose images are taken one by one, and how many to try together."""
        taken = [p for p, image in enumerate(group.images) if self._prepare([image], 1) is not None]
        if len(taken) < len(group.rows):
            return group.take(taken), len(taken)
        if len(taken) == 1:  # alone it is taken, in a batch it is not
            return group.take([]), 1
        return group, -(-len(taken) // 2)

    def _fitting(self, group: _Group, large: _TooLarge) -> _Group:
        """Return the rows to try again: at a smaller size, unless a picture is to blame.

        Such a one does not fit alone, where an ordinary one does: a strip, say, whose short side
        the processor enlarges to its own.
        """
        if large.size > self.size:  # it has shrunk since
            return group
        ordinary = _ordinary_image()
        taken = [
            place
            for place, image in enumerate(group.images)
            if self._fits_alone(image) or not self._fits_alone(ordinary)
        ]
        if len(taken) == len(group.rows):
            self._shrink(*large)
        return group.take(taken)

    def _fits_alone(self, image: Image.Image) -> bool:
        # On the thread: after the next batch, which is prepared there, not beside it.
        alone = self._threads.submit(self._prepare, [image], 1).result()
        return not isinstance(alone, _TooLarge)

    def _wrote(self, group: _Group, prepared: _Prepared, rows: list[CaptionRow]) -> bool:
        """Caption a group that is prepared; False where memory did not hold it."""
        try:
            with self._lock:
                found = self._texts(group, prepared)
        except (MemoryError, RuntimeError) as error:  # torch's OutOfMemoryError is a RuntimeError
            if not _is_out_of_memory(error):
                raise
            problem = _first_line(error)
        else:
            for row, candidates in zip(group.rows, found, strict=True):
                rows[row] = caption_row(
                    candidates, model=self._digest, keep_cut=self.options.keep_cut
                )
            return True
        self._shrink(prepared.size, problem)  # out of the handler, which holds the batch's tensors
        return False

    def _texts(self, group: _Group, prepared: _Prepared) -> list[list[Candidate]]:
        """Return the candidates of each row. A seed is the row's and the candidate's own."""
        options, count = self.options, self.options.num_candidates
        seeds = None
        if options.sampling.top_p is not None:
            numbers = range(count)
            seeds = [stable_hash64(options.seed, uid, n) for uid in group.uids for n in numbers]
            seeds += [0] * (prepared.size * count - len(seeds))
        made = self.captioner.generate(prepared.inputs, options.sampling, seeds, candidates=count)
        texts = [
            Candidate(
                text=one.text,
                log_likelihood=one.log_likelihood,
                num_tokens=one.num_tokens,
                finished=one.finished,
            )
            for one in made
        ]
        return [texts[row * count : (row + 1) * count] for row in range(len(group.rows))]

    def _shrink(self, size: int, problem: str) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self.options.batch_size != "auto" or size == 1:
            msg = f"memory does not hold a batch of {size}; lower batch_size ({problem})"
            raise ShardError(msg, stage="caption", retryable=False)
        self.size = min(self.size, size // 2)


def _ordinary_image() -> Image.Image:
    from PIL import Image

    return Image.new("RGB", (_ORDINARY_SIDE, _ORDINARY_SIDE))


def rgb_bytes(image: Image.Image) -> int:
    """Return what an image's pixels count towards ``HELD_BYTES``."""
    return 3 * image.width * image.height


def power_of_two_below(value: float, most: int) -> int:
    """Return the largest power of two that is at most ``value`` and ``most``; at least 1."""
    return 1 << max(0, min(int(value), most).bit_length() - 1)


def free_bytes() -> int:
    """Return the memory that this process may still take, as far as Linux tells."""
    found = []
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) << 10)
    group = Path("/sys/fs/cgroup")
    limit, used = _lines(group / "memory.max"), _lines(group / "memory.current")
    if limit and used and limit[0] != "max":
        found.append(int(limit[0]) - int(used[0]))
    if not found:
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    return max(0, min(found))


def _first_size(captioner: Captioner, options: LocalOptions) -> int:
    if options.batch_size != "auto":
        return options.batch_size
    if captioner.on_gpu:
        return MOST_ON_GPU
    room = free_bytes() / _SHARE / max(1, captioner.row_bytes(options.sampling.max_tokens))
    return power_of_two_below(room, MOST_ON_CPU)


def _is_out_of_memory(error: BaseException) -> bool:
    import torch

    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    said = str(error).lower()
    return any(words in said for words in _NO_MEMORY)


def _first_line(error: BaseException) -> str:
    return str(error).split("\n")[0] or type(error).__name__


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().split("\n")
    except OSError:
        return []
