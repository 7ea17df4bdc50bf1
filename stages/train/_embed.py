"""A trained model's view of an evaluation set: one vector per picture and per caption."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from winnow.contracts.media import MediaCaps
from winnow.contracts.trial import Embeddings
from winnow.stages._media import decode_image
from winnow.stages.train.shards import IMAGE_MEMBERS, image_member, json_values, read_samples

if TYPE_CHECKING:
    from winnow.models.contrastive import ContrastiveModel, Preprocess

Floats = npt.NDArray[np.float32]
_BATCH = 64
_MAX_TEXTS = 256


def embed_shards(
    model: ContrastiveModel,
    shards: Sequence[str],
    *,
    columns: Sequence[str] = (),
    captions: str = "txt",
    num_threads: int = 2,
) -> Embeddings:
    """Embed all pictures and captions with the inference transform, in the order of the shards.

    A sample without a picture that can be decoded, or without a caption, has NaN there.

    Fails: SetupError for a tar that cannot be read.
    """
    images: list[Floats] = []
    texts: list[Floats] = []
    keys: list[str] = []
    written: list[str | None] = []
    values: list[list[Any]] = []
    wanted = {*IMAGE_MEMBERS, captions, *(["json"] if columns else [])}
    stream = read_samples(shards, wanted.__contains__)
    with ThreadPoolExecutor(num_threads, "decode") as pool:
        while batch := list(islice(stream, _BATCH)):
            pictures = list(pool.map(lambda s: _pixels(s, model.preprocess), batch))
            found = [_text(sample.get(captions)) for sample in batch]
            images.append(_image_vectors(model, pictures))
            texts.append(_text_vectors(model, found))
            keys += [str(sample["__key__"]).removeprefix("./") for sample in batch]
            written += found
            values += [json_values(sample, columns) for sample in batch]
    network: Any = model.network
    width = model.embed_texts([""]).shape[1]
    empty = np.empty((0, width), np.float32)
    return Embeddings(
        vectors={
            "image": np.concatenate([*images, empty]),
            "text": np.concatenate([*texts, empty]),
        },
        rows=rows_table(keys, written, columns, values),
        logit_scale=float(network.logit_scale.detach().exp()),
        logit_bias=None if network.logit_bias is None else float(network.logit_bias.detach()),
        embed_texts=lambda asked: _embed_texts(model, asked),
    )


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


def _embed_texts(model: ContrastiveModel, texts: Sequence[str]) -> Floats:
    parts = [
        model.embed_texts(texts[start : start + _MAX_TEXTS]).cpu().numpy()
        for start in range(0, max(1, len(texts)), _MAX_TEXTS)
    ]
    return np.concatenate(parts)


def _text(member: object) -> str | None:
    text = member.decode("utf-8", "replace").strip() if isinstance(member, bytes) else ""
    return text or None


def _pixels(sample: dict[str, Any], preprocess: Preprocess) -> npt.NDArray[np.uint8] | None:
    decoded = decode_image(image_member(sample), MediaCaps())
    return None if isinstance(decoded, str) else preprocess.pixels(decoded.pixels)


def _image_vectors(
    model: ContrastiveModel, pictures: Sequence[npt.NDArray[np.uint8] | None]
) -> Floats:
    """Always the same batch shape, because a vector's last bits depend on it."""
    import torch

    shape = (_BATCH, model.preprocess.height, model.preprocess.width, 3)
    pixels = np.zeros(shape, np.uint8)
    for row, picture in enumerate(pictures):
        if picture is not None:
            pixels[row] = picture
    vectors: Floats = model.embed_images(torch.from_numpy(pixels))[: len(pictures)].cpu().numpy()
    vectors[[picture is None for picture in pictures]] = np.nan
    return vectors


def _text_vectors(model: ContrastiveModel, texts: Sequence[str | None]) -> Floats:
    padded = [*(text or "" for text in texts), *[""] * (_BATCH - len(texts))]
    vectors: Floats = model.embed_texts(padded)[: len(texts)].cpu().numpy()
    vectors[[text is None for text in texts]] = np.nan
    return vectors


def _column(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        texts = [None if v is None else v if isinstance(v, str) else json.dumps(v) for v in values]
        return pa.array(texts, pa.string())
