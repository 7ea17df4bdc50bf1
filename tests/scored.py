"""Pictures and batches for the stages that score them: made here, annotated as a pass does."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from winnow.contracts.media import MediaCaps
from winnow.contracts.stage import Stage
from winnow.stages._media import BatchMedia, MediaCache


def picture(seed: int) -> Image.Image:
    """A few large patches of colour."""
    rng = np.random.default_rng(seed)
    size = tuple(int(v) for v in rng.integers(20, 90, 2))
    return Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize(size)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def annotate(
    stage: Stage, state: Any, batch: pa.RecordBatch, caps: MediaCaps | None = None
) -> pa.RecordBatch:
    """One batch of a pass, with its images decoded beside the stage."""
    with MediaCache(1 << 24, 2) as cache:
        media = BatchMedia(batch, caps=caps or MediaCaps(), cache=cache, first_row=0)
        out = stage.annotate(batch, state, media)
    assert out.schema == stage.writes
    assert out.num_rows == batch.num_rows
    return out
