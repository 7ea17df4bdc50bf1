"""A batch of the caption stage, asked of a server: each answer goes to the row that asked."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import pyarrow as pa

from winnow.contracts.identity import stable_hash64
from winnow.contracts.media import DecodedImage, MediaFailure
from winnow.stages._caption_endpoint import (
    EndpointWorker,
    ImageFormat,
    encoded_image,
    server_name,
)
from winnow.stages._caption_rows import Candidate, CaptionRow, caption_row, failed
from winnow.stages._fetch import FetchFailure


@dataclass(frozen=True, kw_only=True, slots=True)
class Asking:
    """How rows are sent and answers kept; the caption stage's docstring defines each value."""

    seed: int
    image_side: int
    image_format: ImageFormat
    keep_cut: bool

    def ask(
        self,
        worker: EndpointWorker,
        uids: Sequence[bytes],
        items: Iterable[DecodedImage | MediaFailure],
        prompts: Sequence[str] | None,
    ) -> list[CaptionRow]:
        """Send the rows as their images come. prompts: one per row; None = the worker's for all."""
        rows: list[CaptionRow] = [failed("undecodable")] * len(uids)
        asked: deque[tuple[int, Future[list[Candidate]]]] = deque()
        model = f"{server_name(worker.options.url)} {worker.options.model}"

        def receive() -> None:
            row, future = asked.popleft()
            try:
                rows[row] = caption_row(future.result(), model=model, keep_cut=self.keep_cut)
            except FetchFailure as failure:
                rows[row] = failed(failure.code)

        try:
            for row, (uid, item) in enumerate(zip(uids, items, strict=True)):
                image = self._encoded(item) if isinstance(item, DecodedImage) else None
                if isinstance(item, str):
                    rows[row] = failed(item)
                elif image is not None:
                    seed = stable_hash64(self.seed, uid) & 0x7FFF_FFFF
                    own = [] if prompts is None else [prompts[row]]
                    asked.append((row, worker.submit(image, self.image_format, seed, *own)))
                if len(asked) > 2 * worker.options.concurrency:  # each holds an encoded image
                    receive()
            while asked:
                receive()
        finally:
            for _, future in asked:
                future.cancel()  # Ctrl-C in this thread must end the batch in the other
        return rows

    def _encoded(self, item: DecodedImage) -> bytes | None:
        from winnow.models.contrastive import to_rgb

        try:
            return encoded_image(to_rgb(item.pixels), self.image_side, self.image_format)
        except (OSError, ValueError, MemoryError):
            return None


def with_prompts(out: pa.RecordBatch, prompts: Sequence[str], name: str) -> pa.RecordBatch:
    """Return the stage's columns with each row's own prompt in ``name``, where it has a caption."""
    place = out.schema.get_field_index(name)
    asked = [
        prompt if value is not None else None
        for prompt, value in zip(prompts, out.column(place).to_pylist(), strict=True)
    ]
    return out.set_column(place, out.schema.field(place), pa.array(asked, pa.string()))
