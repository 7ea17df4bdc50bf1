"""A trained model's view of an evaluation set: one vector per picture, caption, recording."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from winnow.contracts.trial import Embeddings
from winnow.stages.train._fixed_batches import fixed_batches
from winnow.stages.train._members import (
    IMAGE_MEMBERS,
    decoded_picture,
    image_member,
    text_member,
)
from winnow.stages.train._shard_reader import KEY, Sample
from winnow.stages.train.shards import decoded_samples, json_values

if TYPE_CHECKING:
    import torch

    from winnow.models.contrastive import ContrastiveModel

Floats = npt.NDArray[np.float32]
CAPTIONS = "txt"
_BATCH = 64
_MAX_TEXTS = 256


class _TextModel(Protocol):
    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Return unit vectors, float32 (B, D)."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """How a modality is embedded: a list of B parts -> unit vectors (B, D).

    nothing: what stands for a part that is missing.
    """

    embed: Callable[[list[Any]], torch.Tensor]
    nothing: Any

    def all(self, parts: Any) -> torch.Tensor:
        """Return the vectors of any number of parts, on the CPU."""
        return fixed_batches(self.embed, parts, nothing=self.nothing, size=_BATCH)

    def known(self, parts: Sequence[Any]) -> Floats:
        """Return the same with NaN for each part that is None."""
        filled = [self.nothing if part is None else part for part in parts]
        vectors: Floats = self.all(filled).numpy()
        vectors[[part is None for part in parts]] = np.nan
        return vectors


def image_view(model: ContrastiveModel) -> View:
    """Of pictures that are as large as the model takes them, uint8 (H, W, 3)."""
    import torch

    def embed(pictures: list[Any]) -> torch.Tensor:
        return model.embed_images(torch.from_numpy(np.stack(pictures)))

    shape = (model.preprocess.height, model.preprocess.width, 3)
    return View(embed=embed, nothing=np.zeros(shape, np.uint8))


def text_view(model: _TextModel) -> View:
    """Of texts."""
    return View(embed=model.embed_texts, nothing="")


def embed_shards(
    model: ContrastiveModel,
    shards: Sequence[str],
    *,
    columns: Sequence[str] = (),
    num_threads: int = 2,
) -> Embeddings:
    """Embed all pictures and captions with the inference transform, in the order of the shards.

    A sample without a picture that can be decoded, or without a caption, has NaN there.

    Fails: SetupError for a tar that cannot be read.
    """

    def parts(sample: Sample) -> dict[str, Any]:
        pixels = decoded_picture(image_member(sample), model.preprocess.pixels)
        image = None if isinstance(pixels, str) else pixels
        return {"image": image, "text": text_member(sample, CAPTIONS) or None}

    vectors, rows = embedded(
        shards,
        {*IMAGE_MEMBERS, CAPTIONS}.__contains__,
        parts,
        {"image": image_view(model), "text": text_view(model)},
        columns=columns,
        num_threads=num_threads,
    )
    network: Any = model.network
    return Embeddings(
        vectors=vectors,
        rows=rows,
        logit_scale=float(network.logit_scale.detach().exp()),
        logit_bias=None if network.logit_bias is None else float(network.logit_bias.detach()),
        embed_texts=lambda asked: embed_texts(model, asked, together=_MAX_TEXTS),
    )


def embedded(
    shards: Sequence[str],
    wanted: Callable[[str], bool],
    parts: Callable[[Sample], Mapping[str, Any]],
    views: Mapping[str, View],
    *,
    columns: Sequence[str],
    num_threads: int,
) -> tuple[dict[str, Floats], pa.Table]:
    """Return the vectors of all samples by modality, NaN for what is missing, and their rows.

    wanted: whether ``parts`` needs a member with this extension. parts: a sample -> modality ->
    what its view takes, or None; ``text`` is its caption.
    """
    vectors: dict[str, list[Floats]] = {name: [] for name in views}
    keys: list[str] = []
    captions: list[str | None] = []
    values: list[list[Any]] = []
    stream = decoded_samples(
        shards,
        lambda extension: wanted(extension) or (extension == "json" and bool(columns)),
        parts,
        num_threads=num_threads,
    )
    while batch := list(islice(stream, _BATCH)):
        for name, view in views.items():
            vectors[name].append(view.known([found[name] for _, found in batch]))
        for sample, found in batch:
            keys.append(str(sample[KEY]).removeprefix("./"))
            captions.append(found["text"])
            values.append(json_values(sample, columns))
    joined = {n: np.concatenate(vectors[n] or [view.known([])]) for n, view in views.items()}
    return joined, rows_table(keys, captions, columns, values)


def embed_texts(model: _TextModel, texts: Sequence[str], *, together: int) -> Floats:
    """Return the vectors of texts that an evaluation asks for, (N, D); N may be 0."""
    parts = [
        model.embed_texts(texts[start : start + together]).cpu().numpy()
        for start in range(0, max(1, len(texts)), together)
    ]
    return np.concatenate(parts)


def rows_table(
    keys: Sequence[str],
    captions: Sequence[str | None],
    columns: Sequence[str],
    values: Sequence[Sequence[Any]],
) -> pa.Table:
    """Return the rows that evaluations read: key, caption, then the columns.

    values: for each row its value of each column. A column takes the narrowest Arrow type that
    holds its values; mixed ones become JSON texts.
    """
    table: dict[str, Any] = {
        "key": pa.array(keys, pa.string()),
        "caption": pa.array(captions, pa.string()),
    }
    for index, name in enumerate(columns):
        table.setdefault(name, _column([row[index] for row in values]))
    return pa.table(table)


def _column(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        texts = [None if v is None else v if isinstance(v, str) else json.dumps(v) for v in values]
        return pa.array(texts, pa.string())
