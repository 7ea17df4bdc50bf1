"""Embeddings to measure: random, perfect, collapsed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from winnow.contracts.trial import Embeddings, Score

Vectors = npt.NDArray[np.float32]
DIM = 12


def unit(values: Any) -> Vectors:
    """Rows made unit vectors."""
    array = np.asarray(values, np.float64)
    return (array / np.linalg.norm(array, axis=-1, keepdims=True)).astype(np.float32)


def random_unit(rows: int, seed: int = 0, dim: int = DIM) -> Vectors:
    """Random unit vectors."""
    return unit(np.random.default_rng(seed).normal(size=(rows, dim)))


def vector_of(text: str, dim: int = DIM) -> Vectors:
    """A unit vector that depends on the text alone."""
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
    return unit(np.random.default_rng(seed).normal(size=dim))


def embed_by_hash(texts: Sequence[str]) -> Vectors:
    """One random vector per text."""
    return np.stack([vector_of(text) for text in texts])


def embeddings(
    image: Any,
    text: Any,
    *,
    captions: Sequence[str | None] | None = None,
    keys: Sequence[str] | None = None,
    embed_texts: Callable[[Sequence[str]], Vectors] = embed_by_hash,
    logit_scale: float = 20.0,
    logit_bias: float | None = None,
    **columns: Sequence[Any],
) -> Embeddings:
    """A subject of images and texts; keys rise with the row unless given."""
    size = len(image)
    table = {
        "key": pa.array(list(keys or (f"k{i:05d}" for i in range(size))), pa.string()),
        "caption": pa.array(list(captions or (f"caption {i}" for i in range(size))), pa.string()),
        **{name: pa.array(values) for name, values in columns.items()},
    }
    vectors = {"image": np.asarray(image, np.float32), "text": np.asarray(text, np.float32)}
    return Embeddings(
        vectors=vectors,
        rows=pa.table(table),
        logit_scale=logit_scale,
        logit_bias=logit_bias,
        embed_texts=embed_texts,
    )


def values(scores: Sequence[Score]) -> dict[tuple[str, str], float | None]:
    """(metric, slice) -> value."""
    return {(score.metric, score.slice): score.value for score in scores}


def overall(scores: Sequence[Score]) -> dict[str, float | None]:
    """Metric -> value over all rows."""
    return {score.metric: score.value for score in scores if not score.slice}
