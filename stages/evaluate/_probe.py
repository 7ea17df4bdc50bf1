"""Measure evaluations on meaningless vectors: can this set be measured so, and by which names?"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from winnow.contracts.trial import Embeddings, Evaluation
from winnow.stages.evaluate._tables import measure_all

_WIDTH = 8
_MODALITIES = ("image", "text", "audio")


def probe(evaluations: Mapping[str, Evaluation], rows: pa.Table) -> list[str]:
    """Return the names of the metrics that a set of ``rows`` gives.

    rows: ``key``, ``caption`` and the columns that the evaluations read.
    Fails: SetupError where the set cannot be measured so.
    """
    chance = np.random.default_rng(0)
    vectors = {name: _unit(chance.normal(size=(len(rows), _WIDTH))) for name in _MODALITIES}
    subject = Embeddings(
        vectors=vectors, rows=rows, logit_scale=10.0, logit_bias=None, embed_texts=_embed
    )
    metrics, _ = measure_all(evaluations, subject)
    return list(dict.fromkeys(metrics["metric"].to_pylist()))


def _embed(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    seeds = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts]
    rows = [np.random.default_rng(int.from_bytes(seed)).normal(size=_WIDTH) for seed in seeds]
    return _unit(np.array(rows).reshape(len(texts), _WIDTH))


def _unit(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / lengths, np.float32)
