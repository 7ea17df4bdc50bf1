"""Captions of rows that trained a captioner, each by a model that did not see the row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from winnow.contracts.media import DecodedImage, MediaFailure
from winnow.stages._caption_local import HELD_BYTES, LocalWorker, rgb_bytes
from winnow.stages._caption_rows import CaptionRow, failed
from winnow.stages._folds import UNKNOWN_FOLD, model_of_fold


@dataclass(slots=True)
class _Waiting:
    """Rows that wait for one model."""

    rows: list[int] = field(default_factory=list)
    uids: list[bytes] = field(default_factory=list)
    items: list[DecodedImage | MediaFailure] = field(default_factory=list)
    num_bytes: int = 0

    def add(self, row: int, uid: bytes, item: DecodedImage | MediaFailure) -> None:
        self.rows.append(row)
        self.uids.append(uid)
        self.items.append(item)
        if isinstance(item, DecodedImage):
            self.num_bytes += rgb_bytes(item.pixels)


class FoldedWorker:
    """One worker per fold: model k captions the rows of fold "k", whose model it is not."""

    def __init__(self, workers: Sequence[LocalWorker]) -> None:
        self.workers = tuple(workers)

    @property
    def prompt(self) -> str:
        """What the models are asked."""
        return self.workers[0].captioner.prompt

    def caption(
        self,
        uids: Sequence[bytes],
        items: Iterable[DecodedImage | MediaFailure],
        folds: Sequence[str | None],
    ) -> list[CaptionRow]:
        """Return one outcome per row, in order; images wait until their model has a batch.

        Where those of all models are more than ``HELD_BYTES``, the model with the most goes early.
        """
        rows = [failed(UNKNOWN_FOLD)] * len(uids)
        waiting = [_Waiting() for _ in self.workers]
        chosen = model_of_fold("caption", uids, folds, len(self.workers))
        for row, (uid, item, model) in enumerate(zip(uids, items, chosen, strict=True)):
            if model is None:
                continue
            waiting[model].add(row, uid, item)
            if len(waiting[model].rows) >= self.workers[model].size:
                self._finish(model, waiting, rows)
            elif sum(mine.num_bytes for mine in waiting) > HELD_BYTES:
                most = max(range(len(waiting)), key=lambda place: waiting[place].num_bytes)
                self._finish(most, waiting, rows)
        for model in range(len(waiting)):
            self._finish(model, waiting, rows)
        return rows

    def close(self) -> None:
        """End the threads that prepare batches."""
        for worker in self.workers:
            worker.close()

    def _finish(self, model: int, waiting: list[_Waiting], rows: list[CaptionRow]) -> None:
        mine, waiting[model] = waiting[model], _Waiting()
        if mine.rows:
            found = self.workers[model].caption(mine.uids, mine.items)
            for row, outcome in zip(mine.rows, found, strict=True):
                rows[row] = outcome
