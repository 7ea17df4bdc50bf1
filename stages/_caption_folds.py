"""Captions of rows that trained a captioner, each by a model that did not see the row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from winnow.contracts.media import DecodedImage, MediaFailure
from winnow.stages._caption_local import LocalWorker
from winnow.stages._caption_rows import CaptionRow, failed
from winnow.stages._folds import UNKNOWN_FOLD, model_of_fold


@dataclass(slots=True)
class _Waiting:
    """Rows that wait for one model."""

    rows: list[int] = field(default_factory=list)
    uids: list[bytes] = field(default_factory=list)
    items: list[DecodedImage | MediaFailure] = field(default_factory=list)


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
        """Return one outcome per row, in order; images wait until their model has a batch."""
        rows = [failed(UNKNOWN_FOLD)] * len(uids)
        waiting = [_Waiting() for _ in self.workers]
        chosen = model_of_fold("caption", uids, folds, len(self.workers))
        for row, (uid, item, model) in enumerate(zip(uids, items, chosen, strict=True)):
            if model is None:
                continue
            mine = waiting[model]
            mine.rows.append(row)
            mine.uids.append(uid)
            mine.items.append(item)
            if len(mine.rows) == self.workers[model].size:
                self._finish(model, mine, rows)
                waiting[model] = _Waiting()
        for model, mine in enumerate(waiting):
            self._finish(model, mine, rows)
        return rows

    def close(self) -> None:
        """End the threads that prepare batches."""
        for worker in self.workers:
            worker.close()

    def _finish(self, model: int, mine: _Waiting, rows: list[CaptionRow]) -> None:
        if mine.rows:
            found = self.workers[model].caption(mine.uids, mine.items)
            for row, outcome in zip(mine.rows, found, strict=True):
                rows[row] = outcome
