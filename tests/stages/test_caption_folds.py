"""Captions by a model per fold: how many pictures wait, and that nothing else depends on it."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import pytest

from tests.captioners import blip
from tests.scored import picture
from winnow.contracts.media import DecodedImage, MediaFailure
from winnow.models.generation import Sampling
from winnow.models.hf_captioner import HfCaptioner, load_captioner
from winnow.models.hf_captioner_files import find_captioner
from winnow.stages import _caption_folds, _caption_local
from winnow.stages._caption_folds import FoldedWorker
from winnow.stages._caption_local import LocalOptions, LocalWorker
from winnow.stages._caption_rows import CaptionRow

SIDE = 50
IN_HAND = 3
"""Pictures that no list holds: just decoded, the one before it, just prepared on a thread."""
PICTURE_BYTES = 3 * SIDE * SIDE
NUM_ROWS = 30
UIDS = [bytes([row]) * 16 for row in range(NUM_ROWS)]


class Counting:
    """Pictures that are decoded as they are asked for; counts those that somebody still holds."""

    def __init__(self) -> None:
        self.alive = self.most = 0

    def images(self, broken: int = -1) -> Iterator[DecodedImage | MediaFailure]:
        for row in range(NUM_ROWS):
            yield "undecodable" if row == broken else self._decoded(row)

    def _decoded(self, row: int) -> DecodedImage:
        pixels = picture(row).resize((SIDE, SIDE))
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(pixels, self._gone)
        return DecodedImage(pixels=pixels, format="PNG")

    def _gone(self) -> None:
        self.alive -= 1


class Recording(LocalWorker):
    """Notes how many rows it is given at a time."""

    sizes: ClassVar[list[int]] = []

    def caption(
        self, uids: Sequence[bytes], items: Iterable[DecodedImage | MediaFailure]
    ) -> list[CaptionRow]:
        self.sizes.append(len(uids))
        return super().caption(uids, items)


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> HfCaptioner:
    return load_captioner(find_captioner(blip(tmp_path_factory.mktemp("blip"))), device="cpu")


def workers(captioner: HfCaptioner, count: int) -> list[LocalWorker]:
    options = LocalOptions(
        batch_size=16,
        num_candidates=1,
        sampling=Sampling(max_tokens=4),
        seed=0,
        keep_cut=True,
        num_threads=1,
    )
    return [Recording(captioner, options, digest=str(number)) for number in range(count)]


def texts(rows: Sequence[CaptionRow]) -> list[tuple[str, ...] | str | None]:
    return [row.error or row.texts for row in rows]


def bound(monkeypatch: pytest.MonkeyPatch, num_pictures: int) -> None:
    for module in (_caption_local, _caption_folds):
        monkeypatch.setattr(module, "HELD_BYTES", num_pictures * PICTURE_BYTES)


@pytest.mark.parametrize("num_models", [2, 5])
def test_pictures_that_wait_for_a_model_are_bounded(
    captioner: HfCaptioner, monkeypatch: pytest.MonkeyPatch, num_models: int
) -> None:
    """Batches go early; each row still has the caption of its own model, in its own place."""
    folds = [str(row * row % num_models) for row in range(NUM_ROWS)]
    free, held = Counting(), Counting()
    expected = FoldedWorker(workers(captioner, num_models)).caption(UIDS, free.images(7), folds)
    assert free.most > 16, "without a bound they wait for full batches"
    bound(monkeypatch, 6)
    found = FoldedWorker(workers(captioner, num_models)).caption(UIDS, held.images(7), folds)
    assert held.most <= 7 + IN_HAND, "seven are more than the bound"
    assert texts(found) == texts(expected)
    assert len(set(texts(found))) > 4
    assert [row.model for row in found if not row.error] == [
        fold for fold, row in zip(folds, found, strict=True) if not row.error
    ]


def test_a_model_alone_holds_as_many_as_the_folds_together(
    captioner: HfCaptioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch is as large as memory allows: the fold of most pictures goes, not each in turn."""
    bound(monkeypatch, 6)
    state = FoldedWorker(workers(captioner, 2))
    folds = ["1" if row % 10 == 9 else "0" for row in range(NUM_ROWS)]
    Recording.sizes = []
    state.caption(UIDS, Counting().images(), folds)
    assert Recording.sizes == [7, 6, 5, 5, 4, 3]  # worked out by hand: seven wait, and the most go


def test_a_picture_larger_than_the_bound_goes_alone(
    captioner: HfCaptioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound(monkeypatch, 0)
    counting = Counting()
    folds = list(itertools.islice(itertools.cycle("01"), NUM_ROWS))
    found = FoldedWorker(workers(captioner, 2)).caption(UIDS, counting.images(), folds)
    assert counting.most <= 1 + IN_HAND
    assert all(row.error in (None, "empty_caption") for row in found)
