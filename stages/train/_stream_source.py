"""Batches for the training loop from a stream of shards: what ``on_shards`` takes from memory."""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from winnow.contracts.errors import SetupError
from winnow.stages.sources._files import printable
from winnow.stages.train._captions import check_found, texts_of
from winnow.stages.train._config import Batch, Extras
from winnow.stages.train._members import Pixels
from winnow.stages.train._shard_reader import KEY
from winnow.stages.train.distributed import current_workers
from winnow.stages.train.shards import json_values, read_samples
from winnow.stages.train.streaming import ShardStream, StreamConfig

if TYPE_CHECKING:
    from winnow.models.tokenizer import Tokenizer


REASONS = ("cut off", "no caption", "no image", "too_large", "undecodable")
UNREADABLE = ("cut off", "too_large", "undecodable")


class StreamSource:
    """Batches of a stream; see ``ShardStream`` for their order.

    Where several workers train, each reads and decodes its own rows only. Its batches have the
    whole size, as the loop wants them; the other workers' rows are zeros that nobody looks at (and
    that take no memory, as the system gives pages when they are written).

    shards: path or URL -> number of samples.  tokenizer: with a vocabulary that is known before any
    caption is read (CLIP's, or that of the model to start from).  config.columns: at most one, a
    text per sample that is wrong for its picture; of a list the first text counts.
    skip_unreadable: count pictures that cannot be read, instead of raising SetupError at the batch
    where the first one has its turn.
    """

    def __init__(
        self,
        shards: Mapping[str, int],
        resize: Callable[[Any], Pixels],
        tokenizer: Tokenizer,
        config: StreamConfig,
        *,
        skip_unreadable: bool = True,
    ) -> None:
        self._workers = workers = current_workers()
        self._skip_unreadable = skip_unreadable
        self._tokenizer, self._config, self._shards = tokenizer, config, shards
        self.stream = ShardStream(
            shards,
            resize,
            config,
            tokenize=self._tokens,
            rank=workers.rank,
            world_size=workers.world_size,
        )

    def digest(self, content: str = "") -> str:
        """Return 32 hex digits over the names and sizes of the shards and what sets their order.

        Not over their bytes, which no one has read yet; ``content`` may stand for them.
        """
        config = self._config
        order: list[Any] = [
            config.num_lanes,
            config.buffer_samples,
            config.captions,
            config.columns,
        ]
        named = [[posixpath.basename(path), size] for path, size in self._shards.items()]
        order += [] if config.caption_choices is None else [{"choices": config.caption_choices}]
        text = json.dumps([content, order, named])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def batches(self, step: int) -> Iterator[Batch]:
        """Yield batches from a step on; all workers know what any of them skipped."""
        import torch

        for batch in self.stream.batches(step):
            assert batch.tokens is not None
            skipped = self._skipped(batch.skipped)
            pixels, tokens = self._whole(batch.pixels), torch.from_numpy(self._whole(batch.tokens))
            if not self._config.columns:
                yield pixels, tokens, Extras(skipped=skipped)
                continue
            wrong = [_first_text(value) for value in batch.columns[self._config.columns[0]]]
            mine = torch.tensor([bool(text) for text in wrong])
            extras = Extras(
                negatives=torch.from_numpy(self._whole(self._tokens(wrong))),
                has_negative=self._workers.gather(mine),
                skipped=skipped,
            )
            yield pixels, tokens, extras

    def _skipped(self, here: Mapping[str, int]) -> dict[str, int]:
        """Add up what all workers skipped, so that each of them refuses or goes on alike."""
        import torch

        mine = torch.tensor([[here.get(reason, 0) for reason in REASONS]])
        counts = self._workers.gather(mine).sum(0).tolist()
        skipped = {why: count for why, count in zip(REASONS, counts, strict=True) if count}
        found = ", ".join(f"{skipped[why]} {why}" for why in UNREADABLE if why in skipped)
        if found and not self._skip_unreadable:
            msg = (
                f"the shards hold pictures that cannot be read: {found} in one batch; filter them "
                "out and export again, or set skip_unreadable: true to leave them out"
            )
            raise SetupError(msg)
        return skipped

    def _whole(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return an array of the whole batch that holds this worker's rows in their place."""
        if self._workers.world_size == 1:
            return rows
        whole = np.zeros((self._config.batch_size, *rows.shape[1:]), rows.dtype)
        whole[self._workers.rows(len(whole))] = rows
        return whole

    def _tokens(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        tokens: npt.NDArray[np.int64] = self._tokenizer(texts).numpy()
        return tokens


def check_has_choices(paths: Sequence[str], column: str) -> None:
    """Raise SetupError where no sample has captions in a .json column; reads up to the first."""
    lists = (
        texts_of(*json_values(sample, (column,)), column=column, key=printable(sample[KEY]))
        for sample in read_samples(paths, "json".__eq__)
    )
    check_found(lists, column)


def check_has_text(paths: Sequence[str], column: str) -> None:
    """Raise SetupError where no sample has a text in a .json column; reads up to the first one."""
    for sample in read_samples(paths, "json".__eq__):
        (value,) = json_values(sample, (column,))
        if _first_text(value):
            return
    msg = f"hard_negatives: no sample has a text in the column {column} of its .json member"
    raise SetupError(msg)


def _first_text(value: Any) -> str:
    """Return a hard negative, "" for none."""
    found = next(iter(value), "") if isinstance(value, list) else value
    if found is None:
        return ""
    if not isinstance(found, str):
        msg = f"hard_negatives: {found!r} is no text and no list of texts"
        raise SetupError(msg)
    return found.strip()
