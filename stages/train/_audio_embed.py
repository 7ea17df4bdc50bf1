"""A trained audio model's view of an evaluation set: one vector per picture, caption, recording."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from winnow.contracts.trial import Embeddings
from winnow.stages.train._audio_samples import AudioReading, decoded
from winnow.stages.train._embed import CAPTIONS, View, embed_texts, embedded, image_view, text_view
from winnow.stages.train._shard_reader import Sample

if TYPE_CHECKING:
    from winnow.models.audio_text import TowerModel

_TEXTS = 64


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
        modalities=("text", *modalities),
        pairs=(),
        captions=CAPTIONS,
    )

    def parts(sample: Sample) -> dict[str, Any]:
        found = decoded(sample, reading)
        return {"image": found.image, "text": found.text, "audio": found.audio}

    views = {
        "image": image_view(model.image_text),
        "text": text_view(model),
        "audio": _audio_view(model),
    }
    vectors, rows = embedded(
        shards,
        reading.wanted,
        parts,
        {name: views[name] for name in modalities},
        columns=columns,
        num_threads=num_threads,
    )
    pair = "audio_text" if "audio_text" in model.scales else min(model.scales)
    return Embeddings(
        vectors=vectors,
        rows=rows,
        logit_scale=model.scales[pair],
        logit_bias=model.biases.get(pair),
        embed_texts=lambda asked: embed_texts(model, asked, together=_TEXTS),
    )


def _audio_view(model: TowerModel) -> View:
    """Of log-mels."""
    nothing = np.zeros((model.tower.config.log_mel.num_bins, 1), np.float16)
    return View(embed=model.embed_frames, nothing=nothing)
