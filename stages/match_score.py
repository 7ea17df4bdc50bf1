"""Match score: how probable it is that a caption describes its image, by a matching head."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from winnow.contracts.errors import RecipeError
from winnow.contracts.media import Media
from winnow.contracts.parameters import effort, result
from winnow.contracts.registry import register_stage
from winnow.contracts.stage import Resources, Stage, WorkerOptions
from winnow.stages import _clip_batch
from winnow.stages._clip_batch import Device, Floats, Precision, Resized

if TYPE_CHECKING:
    import torch

    from winnow.models.matching import MatchingModel

NAME = "match_score"
Texts = list[str | None]


@dataclass(frozen=True, slots=True)
class MatchWorker:
    """A loaded model and the threads that resize images beside it."""

    model: MatchingModel
    threads: ThreadPoolExecutor


@register_stage(NAME, version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class MatchScore(Stage):
    """Score captions with the matching head of a Q-Former's first stage (BLIP-2, section 3.1).

    Reads:   <image_column>: large_binary, encoded bytes.  <text_column>: string; with ``many``
             list<string>, any number of captions of the image.
    Writes:  <column> (match_score): float32, the probability in [0, 1] that the caption describes
             the image: softmax of the head's two logits, which are averaged over the queries. With
             ``many`` list<float32>, one value per caption in their order, null where a caption is
             null or white space. Null exactly when <column>_error is set.
             <column>_error: string (match_score_error); null, or "missing" | "too_large" |
             "undecodable" (the image), "empty_text" (null or white space; with ``many``: no caption
             has a word), "not_finite" (a model that overflows in fp16, for any of the captions).
    Cost:    one pass of the vision tower per image and one of the Q-Former per caption. A pass of
             the Q-Former is always ``batch_size`` pairs of ``num_tokens`` tokens, padding among
             them, because a score's last bits depend on the shape of the batch.
    Fails:   a bad row never raises. SetupError where the folder holds no matching head, or where
             its tower or tokenizer changed; ShardError where the GPU's memory does not hold a
             batch.

    model: the folder of a projector whose connector is a Q-Former and that was trained with its
    first stage; the *content* of head, tower and tokenizer enters the fingerprint.
    num_tokens: a caption is cut after so many tokens of the language model's tokenizer.
    precision: of the vision tower; the Q-Former computes in float32.
    The other parameters are those of ``clip_score``.
    """

    model: str = effort()
    many: bool = result(False)
    num_tokens: int = result(64)
    batch_size: int = result(64)
    precision: Precision = result("fp32")
    image_column: str = result("image")
    text_column: str = result("text")
    device: Device = effort("auto")
    num_gpus: float | None = effort(None)
    num_threads: int = result(1)
    column: str = result(NAME)

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        _clip_batch.check_options(
            NAME,
            batch_size=self.batch_size,
            num_threads=self.num_threads,
            num_gpus=self.num_gpus,
            device=self.device,
        )
        _clip_batch.check_column(NAME, self.column, (self.image_column, self.text_column))
        if not self.model:
            msg = f"{NAME}: model=''; give the folder of a projector with a trained matching head"
            raise RecipeError(msg)
        if not 1 <= self.num_tokens <= 4096:
            msg = f"{NAME}: num_tokens={self.num_tokens}; use 1 to 4096, such as 64"
            raise RecipeError(msg)

    @property
    def reads(self) -> pa.Schema:
        """The image's bytes and the captions."""
        text = pa.list_(pa.string()) if self.many else pa.string()
        return pa.schema({self.image_column: pa.large_binary(), self.text_column: text})

    @property
    def writes(self) -> pa.Schema:
        """The score and the error."""
        score = pa.list_(pa.float32()) if self.many else pa.float32()
        return pa.schema({self.column: score, f"{self.column}_error": pa.string()})

    @property
    def resources(self) -> Resources:
        """A whole GPU for device=cuda unless num_gpus says otherwise; none for auto and cpu."""
        return _clip_batch.resources(
            num_threads=self.num_threads, num_gpus=self.num_gpus, device=self.device
        )

    @property
    def batch_rows(self) -> int:
        """A score's last bits depend on the shape of its batch."""
        return self.batch_size

    def model_digest(self) -> str:
        """Digest of head, Q-Former, tower and tokenizer."""
        from winnow.models.matching_files import find_matching

        return find_matching(self.model).digest()

    def setup(self, options: WorkerOptions) -> MatchWorker:
        """Load the model; chooses cuDNN's bit-stable kernels for this process."""
        from winnow.models.matching import load_matching
        from winnow.models.matching_files import find_matching

        _clip_batch.choose_stable_kernels()
        files = find_matching(self.model)
        model = load_matching(files, device=self.device, precision=self.precision)
        return MatchWorker(model, _clip_batch.resize_threads(options))

    def annotate(self, batch: pa.RecordBatch, state: MatchWorker, media: Media) -> pa.RecordBatch:
        """Score one batch of up to ``batch_size`` rows; safe to call from several threads."""
        _clip_batch.check_rows(NAME, batch.num_rows, self.batch_size)
        values = batch.column(self.text_column).to_pylist()
        texts: list[Texts] = [v or [] for v in values] if self.many else [[v] for v in values]
        images = [
            _clip_batch.resized(item, state.model.tower, state.threads)
            for item in media.images(self.image_column)
        ]
        codes = [
            _clip_batch.row_code(image, _clip_batch.first_there(row))
            for image, row in zip(images, texts, strict=True)
        ]
        tiles = _tiles(images, codes)
        scores = self._scores(state.model, tiles, texts, codes)
        return self._columns(scores, texts, codes)

    def _scores(
        self,
        model: MatchingModel,
        tiles: list[_clip_batch.Pixels | None],
        texts: list[Texts],
        codes: list[str | None],
    ) -> dict[tuple[int, int], float]:
        """Return the score of each row's n-th caption; sets the code "not_finite"."""
        import torch

        rows = [row for row, code in enumerate(codes) if code is None]
        pairs = [
            (row, n)
            for row in rows
            for n, text in enumerate(texts[row])
            if _clip_batch.is_there(text)
        ]
        if not pairs:
            return {}
        places = {row: place for place, row in enumerate(rows)}
        scores: dict[tuple[int, int], float] = {}
        with _clip_batch.forward_pass(
            NAME, batch_size=self.batch_size, num_threads=self.num_threads
        ):
            features, mask = model.features([t for t in tiles if t is not None])
            for start in range(0, len(pairs), self.batch_size):
                part = pairs[start : start + self.batch_size]
                where = torch.tensor([places[row] for row, _ in part], device=features.device)
                captions = [str(texts[row][n]) for row, n in part]
                values = self._one_pass(model, features[where], mask[where], captions)
                scores |= zip(part, values.tolist(), strict=True)
        for (row, _), value in scores.items():
            if not np.isfinite(value):
                codes[row] = "not_finite"
        return scores

    def _one_pass(
        self,
        model: MatchingModel,
        features_BPV: torch.Tensor,
        mask_BP: torch.Tensor,
        captions: Sequence[str],
    ) -> Floats:
        """Score up to ``batch_size`` pairs in a pass of exactly that many; the rest is padding."""
        from torch.nn.functional import pad

        count = len(captions)
        missing = self.batch_size - count
        found = model.probability(
            pad(features_BPV, (0, 0, 0, 0, 0, missing)),
            pad(mask_BP, (0, 0, 0, missing), value=True),
            [*captions, *[""] * missing],
            num_tokens=self.num_tokens,
        )
        return found[:count]

    def _columns(
        self,
        scores: dict[tuple[int, int], float],
        texts: list[Texts],
        codes: list[str | None],
    ) -> pa.RecordBatch:
        rows: list[list[float | None] | float | None] = []
        for row, code in enumerate(codes):
            found = [scores.get((row, n)) for n in range(len(texts[row]))]
            if code is not None:
                rows.append(None)
            else:
                rows.append(found if self.many else found[0])
        return pa.record_batch(
            [pa.array(rows, self.writes.field(0).type), pa.array(codes, pa.string())],
            schema=self.writes,
        )


def _tiles(images: list[Resized], codes: list[str | None]) -> list[_clip_batch.Pixels | None]:
    """Return the pixels of the rows without a code; sets the code "undecodable"."""
    found: list[_clip_batch.Pixels | None] = []
    for row, image in enumerate(images):
        pixels = image.result() if codes[row] is None and isinstance(image, Future) else None
        if pixels is None:
            codes[row] = codes[row] or "undecodable"
        found.append(pixels)
    return found
