"""A trained audio model's view of an evaluation set: one vector per picture, caption, recording."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from winnow.contracts.trial import Embeddings
from winnow.stages.train._audio_samples import AudioReading, Decoded, decoded
from winnow.stages.train._embed import rows_table
from winnow.stages.train._shard_reader import KEY
from winnow.stages.train.shards import json_values, read_samples

if TYPE_CHECKING:
    from winnow.models.audio_text import TowerModel
    from winnow.models.audio_tower import Frames

Floats = npt.NDArray[np.float32]
_BATCH = 64


def embed_audio_shards(
    model: TowerModel,
    shards: Sequence[str],
    *,
    modalities: Sequence[str],
    columns: Sequence[str] = (),
    num_threads: int = 2,
) -> Embeddings:
    """Embed all samples with the inference transforms, in the order of the shards.

    A modality that a sample lacks, or whose member cannot be decoded, has NaN there. Captions are
    the .txt members. The temperature is that of audio and text, else that of the first pair.

    Fails: SetupError for a tar that cannot be read.
    """
    reading = AudioReading(
        tower=model.tower.config,
        resize=model.image_text.preprocess.pixels,
        modalities=("image", "text", "audio"),
        pairs=(),
        num_threads=num_threads,
    )
    found: dict[str, list[Floats]] = {"image": [], "text": [], "audio": []}
    keys: list[str] = []
    written: list[str | None] = []
    values: list[list[Any]] = []
    stream = read_samples(shards, lambda e: reading.wanted(e) or (e == "json" and bool(columns)))
    with ThreadPoolExecutor(num_threads, "decode") as pool:
        while batch := list(islice(stream, _BATCH)):
            parts = list(pool.map(lambda s: decoded(s, reading), batch))
            found["image"].append(_image_vectors(model, parts))
            found["text"].append(_text_vectors(model, parts))
            found["audio"].append(_audio_vectors(model, parts))
            keys += [str(sample[KEY]).removeprefix("./") for sample in batch]
            written += [part.text for part in parts]
            values += [json_values(sample, columns) for sample in batch]
    width = model.embed_texts([""]).shape[1]
    empty = np.empty((0, width), np.float32)
    pair = "audio_text" if "audio_text" in model.scales else min(model.scales)
    return Embeddings(
        vectors={name: np.concatenate([*found[name], empty]) for name in modalities},
        rows=rows_table(keys, written, columns, values),
        logit_scale=model.scales[pair],
        logit_bias=model.biases.get(pair),
        embed_texts=lambda asked: _embed_texts(model, asked),
    )


def _image_vectors(model: TowerModel, parts: Sequence[Decoded]) -> Floats:
    """Always the same batch shape, here and below, because a vector's last bits depend on it."""
    import torch

    preprocess = model.image_text.preprocess
    pixels = np.zeros((_BATCH, preprocess.height, preprocess.width, 3), np.uint8)
    for row, part in enumerate(parts):
        if part.image is not None:
            pixels[row] = part.image
    vectors = model.image_text.embed_images(torch.from_numpy(pixels)).cpu().numpy()
    return _nulled(vectors, [part.image is None for part in parts])


def _text_vectors(model: TowerModel, parts: Sequence[Decoded]) -> Floats:
    texts = [*(part.text or "" for part in parts), *[""] * (_BATCH - len(parts))]
    vectors = model.embed_texts(texts).cpu().numpy()
    return _nulled(vectors, [part.text is None for part in parts])


def _audio_vectors(model: TowerModel, parts: Sequence[Decoded]) -> Floats:
    nothing: Frames = np.zeros((model.tower.config.log_mel.num_bins, 1), np.float16)
    clips = [nothing if part.audio is None else part.audio for part in parts]
    vectors = model.embed_frames([*clips, *[nothing] * (_BATCH - len(parts))]).cpu().numpy()
    return _nulled(vectors, [part.audio is None for part in parts])


def _nulled(vectors: Floats, missing: Sequence[bool]) -> Floats:
    kept = vectors[: len(missing)].copy()
    kept[np.array(missing, bool)] = np.nan
    return kept


def _embed_texts(model: TowerModel, texts: Sequence[str]) -> Floats:
    parts = [
        model.embed_texts(texts[start : start + _BATCH]).cpu().numpy()
        for start in range(0, max(1, len(texts)), _BATCH)
    ]
    return np.concatenate(parts)
