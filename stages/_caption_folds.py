"""Captions of rows that trained a captioner, each by a model that did not see the row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from winnow.contracts.identity import stable_hash64
from winnow.contracts.media import DecodedImage, MediaFailure
from winnow.stages._caption_local import LocalWorker
from winnow.stages._caption_rows import CaptionRow, failed

UNKNOWN_FOLD = "unknown_fold"


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
        chosen = choose(uids, folds, len(self.workers))
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


def choose(
    uids: Sequence[bytes], folds: Sequence[str | None], num_models: int
) -> Iterator[int | None]:
    """Yield the model of each row: its fold's; a hash of the uid where it is in none; else None."""
    known = {str(index): index for index in range(num_models)}
    for uid, fold in zip(uids, folds, strict=True):
        if fold is None:
            yield stable_hash64("caption", uid) % num_models
        else:
            yield known.get(fold)
