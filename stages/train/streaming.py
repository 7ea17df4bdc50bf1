"""Exported shards as a stream of training data: never more than a buffer of samples is held.

For sets that do not fit a scratch file (``shards.py``), DataComp's for example. Tars are read
forward, once an epoch, from local paths and fsspec URLs; pictures are decoded ahead of the reader.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from winnow.contracts.errors import RecipeError, SetupError, ShardError
from winnow.stages.sources._files import printable
from winnow.stages.train._captions import caption_number, texts_of
from winnow.stages.train._lane_reader import MISSING, LaneReader, Slot, ahead
from winnow.stages.train._lanes import Lane
from winnow.stages.train._members import Pixels, text_member
from winnow.stages.train._shard_reader import KEY, Sample
from winnow.stages.train.shards import Reading, json_values, small_picture

_DECODED_TOGETHER = 16
_BATCHES_AHEAD = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamConfig:
    """How shards become batches. The order depends on the first five, and on the shards' sizes.

    batch_size: rows of a batch over all workers.  num_lanes: shards that are read at once; each
    lane gives an equal part of every batch. It divides batch_size, and the number of workers
    divides it: with equal lanes, one worker and eight see the same batches.  buffer_samples:
    encoded samples in the shuffle buffers of all lanes together.  captions: the member that holds
    the caption.  columns: values of the .json member to give.  caption_choices: a column with a
    list of captions; each epoch draws one of them (``_captions``).  num_threads: that decode, in
    each process.  num_processes: that read and decode; 0 does it in this one. Must divide a
    worker's lanes.
    """

    batch_size: int
    seed: int = 0
    num_lanes: int = 1
    buffer_samples: int = 4096
    captions: str = "txt"
    columns: tuple[str, ...] = ()
    caption_choices: str | None = None
    num_threads: int = 2
    num_processes: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that do not divide each other."""
        for name in ("batch_size", "num_lanes", "buffer_samples", "num_threads"):
            if getattr(self, name) < 1:
                msg = f"{name}={getattr(self, name)}: use at least 1"
                raise RecipeError(msg)
        if self.batch_size % self.num_lanes:
            msg = f"num_lanes={self.num_lanes}: use a divisor of batch_size={self.batch_size}"
            raise RecipeError(msg)
        if self.num_processes < 0:
            msg = f"num_processes={self.num_processes}: use 0 or more"
            raise RecipeError(msg)


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamBatch:
    """One worker's part of a batch.

    pixels: uint8 (B, H, W, 3).  texts: B captions.  columns: name -> B values, None where a sample
    has none.  tokens: int64 (B, T), where the stream was given a tokenizer.  skipped: samples that
    could not be used, by reason, and were replaced; each is counted in the first epoch only.
    """

    pixels: Pixels
    texts: list[str]
    columns: Mapping[str, list[Any]]
    tokens: npt.NDArray[np.int64] | None
    skipped: Mapping[str, int]


class Row(NamedTuple):
    """One sample, decoded."""

    pixels: Pixels
    text: str
    values: list[Any]
    tokens: npt.NDArray[np.int64] | None


Tokenize = Callable[[Sequence[str]], npt.NDArray[np.int64]]


class ShardStream:
    """Batches of all shards, epoch after epoch, the same for one seed, from any step on.

    In an epoch of a lane every sample is shown once. A lane with fewer samples than the others
    starts its next epoch earlier: nothing is padded or left out, but the first N rows of the whole
    stream are exactly its N samples only where the lanes are equally long. A sample that cannot be
    used (no picture, no caption, undecodable, cut off) keeps its place in the order: one that waits
    in the shuffle buffer is shown there, and again when its turn comes.

    shards: path or URL -> number of samples (``_shard_reader.shard_sizes``).
    resize: a decoded picture -> uint8 (H, W, 3) of one size.  tokenize: captions -> int64 (B, T);
    called where pictures are decoded.

    Memory: the buffer and up to five batches encoded, three batches decoded.
    Fails: SetupError for fewer shards than lanes, no samples, or a shard that cannot be opened;
    RecipeError for lanes that cannot be divided; ShardError where nothing in a lane's part of a
    batch can be used.
    """

    def __init__(
        self,
        shards: Mapping[str, int],
        resize: Callable[[Any], Pixels],
        config: StreamConfig,
        *,
        tokenize: Tokenize | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._paths, self._sizes = list(shards), list(shards.values())
        self._resize, self._tokenize, self.config = resize, tokenize, config
        if len(self._paths) < config.num_lanes or not sum(self._sizes):
            msg = (
                f"{len(self._paths)} shards with {sum(self._sizes)} samples cannot be dealt to "
                f"num_lanes={config.num_lanes}; use fewer lanes, or export with fewer rows a shard"
            )
            raise SetupError(msg)
        parts = world_size * max(1, config.num_processes)
        if config.num_lanes % parts:
            msg = (
                f"num_lanes={config.num_lanes}: use a multiple of workers x processes, "
                f"{world_size} x {max(1, config.num_processes)}"
            )
            raise RecipeError(msg)
        each = config.num_lanes // world_size
        self._lanes = range(rank * each, (rank + 1) * each)
        self.skipped: Counter[str] = Counter()
        """What could not be used so far, by reason; each sample is counted once."""

    def batches(self, step: int) -> Iterator[StreamBatch]:
        """Yield this worker's part of the batches from ``step`` on, for ever."""
        inner = self._in_processes(step) if self.config.num_processes else self.decoded(step)
        for batch in inner:
            self.skipped.update(batch.skipped)
            yield batch

    def decoded(self, step: int, lanes: Sequence[int] | None = None) -> Iterator[StreamBatch]:
        """Yield the rows of some lanes, this worker's by default, decoded by threads."""
        numbers = self._lanes if lanes is None else lanes
        with ExitStack() as stack:
            pool = ThreadPoolExecutor(self.config.num_threads, "decode")
            stack.callback(pool.shutdown, wait=True, cancel_futures=True)
            sources = [stack.enter_context(ahead(self._slots(n, step))) for n in numbers]
            epochs = [self._lane(n).epochs(step * self._rows) for n in numbers]
            pending: deque[list[list[Future[_Part]]]] = deque()
            while True:
                while len(pending) <= _BATCHES_AHEAD:
                    pending.append(
                        [
                            self._submit(pool, next(source), list(islice(epoch, self._rows)))
                            for source, epoch in zip(sources, epochs, strict=True)
                        ]
                    )
                yield self._joined([_complete([f.result() for f in p]) for p in pending.popleft()])

    def _slots(self, number: int, step: int) -> Iterator[list[Slot]]:
        """Yield a lane's part of each batch from ``step`` on, still encoded."""
        choices = self.config.caption_choices
        columns = self.config.columns if choices is None else (*self.config.columns, choices)
        reading = Reading(captions=self.config.captions, columns=columns)
        lane = LaneReader(self._paths, self._lane(number), reading.wanted)
        slots = lane.slots(step * self._rows)
        while True:
            yield list(islice(slots, self._rows))

    @property
    def _rows(self) -> int:
        """A lane's rows of a batch."""
        return self.config.batch_size // self.config.num_lanes

    def _lane(self, number: int) -> Lane:
        config = self.config
        return Lane(
            sizes=self._sizes,
            seed=config.seed,
            number=number,
            num_lanes=config.num_lanes,
            waiting=max(1, config.buffer_samples // config.num_lanes),
        )

    def _submit(
        self, pool: ThreadPoolExecutor, part: list[Slot], epochs: list[int]
    ) -> list[Future[_Part]]:
        """Decode a part in pieces; ``epochs`` are those of its samples."""
        cuts = [slice(i, i + _DECODED_TOGETHER) for i in range(0, len(part), _DECODED_TOGETHER)]
        return [pool.submit(self._decode, part[cut], epochs[cut]) for cut in cuts]

    def _decode(self, slots: list[Slot], epochs: list[int]) -> _Part:
        rows: list[Row | None] = []
        skipped: Counter[str] = Counter()
        for slot, epoch in zip(slots, epochs, strict=True):
            row: Row | None = None
            for place, sample in enumerate(slot):
                pixels = self._picture(sample)
                if not isinstance(pixels, str):
                    text = self._caption(sample, epoch)
                    tokens = None if self._tokenize is None else self._tokenize([text])[0]
                    row = Row(pixels, text, json_values(sample, self.config.columns), tokens)
                    break
                if place == 0 and epoch == 0:  # a spare is counted when its own turn comes
                    skipped[pixels] += 1
            rows.append(row)
        return rows, skipped

    def _picture(self, sample: Sample) -> Pixels | str:
        if sample is MISSING:
            return "cut off"
        return small_picture(sample, self.config.captions, self._resize)

    def _caption(self, sample: Sample, epoch: int) -> str:
        text = text_member(sample, self.config.captions)
        column = self.config.caption_choices
        if column is None:
            return text
        (value,) = json_values(sample, (column,))
        key = printable(sample[KEY])
        choices = texts_of(value, column=column, key=key) or [text]
        return choices[caption_number(self.config.seed, epoch, key, len(choices))]

    def _joined(self, parts: list[tuple[list[Row], Counter[str]]]) -> StreamBatch:
        rows = [row for part, _ in parts for row in part]
        names = self.config.columns
        tokens = [row.tokens for row in rows if row.tokens is not None]
        return StreamBatch(
            pixels=np.stack([row.pixels for row in rows]),
            texts=[row.text for row in rows],
            columns={name: [row.values[i] for row in rows] for i, name in enumerate(names)},
            tokens=np.stack(tokens) if tokens else None,
            skipped=sum((skipped for _, skipped in parts), Counter()),
        )

    def _in_processes(self, step: int) -> Iterator[StreamBatch]:
        from winnow.stages.train._stream_workers import in_processes

        return in_processes(self, self._lanes, step)


_Part = tuple[list[Row | None], Counter[str]]


def _complete(parts: list[_Part]) -> tuple[list[Row], Counter[str]]:
    """Join the decoded pieces of a lane's part; copies of other rows stand where nothing could."""
    rows = [row for part, _ in parts for row in part]
    skipped: Counter[str] = sum((skipped for _, skipped in parts), Counter())
    usable = [row for row in rows if row is not None]
    if not usable:
        msg = f"none of {len(rows)} samples in a row can be used: {dict(skipped)}"
        raise ShardError(msg, stage="train", retryable=False)
    return [usable[i % len(usable)] if row is None else row for i, row in enumerate(rows)], skipped
