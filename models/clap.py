"""CLAP: any audio-text model of Hugging Face's ClapModel, by folder or by its name on the hub.

Weights are safetensors; code from a model's folder never runs.

Tensor suffixes: B batch, N samples, D embedding.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from winnow.contracts.errors import SetupError
from winnow.contracts.media import Samples
from winnow.models.devices import DTYPES, Precision, choose_device
from winnow.models.hf_captioner_files import CaptionerFiles, find_captioner
from winnow.models.hf_loading import load_whole

MAX_TOKENS = 77
"""A text is cut after so many tokens, as in LAION's own training and evaluation of CLAP."""

_PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class ClapFiles:
    """A model that was found: nothing is loaded yet. width: of its embeddings."""

    name: str
    folder: Path
    width: int

    def digest(self) -> str:
        """Return 32 hex digits over configuration, weights, tokenizer and preprocessing."""
        return CaptionerFiles(name=self.name, folder=self.folder).digest()


def find_clap(name: str) -> ClapFiles:
    """Return a model's files; those on the hub are downloaded into its cache once.

    name: a folder (``./folder``, ``/folder``, ``~/folder``) or ``org/name[@revision]``.

    Fails: SetupError where files are missing, where there are only pickled weights, where it is no
    CLAP, where the hub cannot be reached.
    """
    folder = find_captioner(name).folder
    if not (folder / _PREPROCESSOR).is_file():
        msg = f"model={name!r}: {folder / _PREPROCESSOR} is missing; a CLAP needs it"
        raise SetupError(msg)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind, width = config.get("model_type"), int(config.get("projection_dim", 512))
    except (ValueError, AttributeError, TypeError) as error:
        msg = f"model={name!r}: {folder / 'config.json'} cannot be read: {error}"
        raise SetupError(msg) from error
    if kind != "clap":
        msg = f"model={name!r} is {kind!r}, and no CLAP; use one such as laion/clap-htsat-unfused"
        raise SetupError(msg)
    return ClapFiles(name=name, folder=folder, width=width)


class ClapEmbedder:
    """A loaded model; see ``winnow.models.audio_text.AudioTextModel``.

    What is heard is the first ``max_duration_s`` (10) of a recording; a shorter one is treated as
    the model's own preprocessing says ("repeatpad": repeated as often as it fits, then zeros).
    transformers takes a random crop of a longer one. A model with feature fusion gets the same 10 s
    in all four of its inputs, and is told that nothing is longer; transformers tells it that a
    random row is.
    """

    def __init__(self, network: Any, extractor: Any, tokenizer: Any, device: torch.device) -> None:
        self.network, self.extractor, self.tokenizer = network, extractor, tokenizer
        self.device = device
        text = network.config.text_config
        most = int(text.max_position_embeddings) - int(text.pad_token_id) - 1
        self.max_tokens = min(MAX_TOKENS, most)

    @property
    def sample_rate(self) -> int:
        """48000."""
        return int(self.extractor.sampling_rate)

    @property
    def max_duration_s(self) -> float:
        """10."""
        return float(self.extractor.max_length_s)

    @torch.inference_mode()
    def embed_audio(self, waveforms: Sequence[Samples]) -> torch.Tensor:
        """Return unit vectors, float32 (B, D) on the model's device; a waveform has a sample."""
        most = int(self.extractor.nb_max_samples)
        features = self.extractor(
            [wave[:most] for wave in waveforms],
            sampling_rate=self.sample_rate,
            return_tensors="np",
        )["input_features"]
        dtype = next(self.network.parameters()).dtype
        mel = torch.from_numpy(np.asarray(features, np.float32)).to(self.device, dtype)
        longer = torch.zeros((len(waveforms), 1), dtype=torch.bool, device=self.device)
        return _unit(self.network.get_audio_features(input_features=mel, is_longer=longer))

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Return unit vectors, float32 (B, D) on the model's device.

        Always padded to ``max_tokens``: the length of one text must not change another's last bits.
        """
        tokens = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        )
        return _unit(
            self.network.get_text_features(
                input_ids=tokens["input_ids"].to(self.device),
                attention_mask=tokens["attention_mask"].to(self.device),
            )
        )


def load_clap(
    files: ClapFiles, *, device: str = "auto", precision: Precision = "fp32"
) -> ClapEmbedder:
    """Load a model that was found.

    Fails: SetupError where transformers is missing, where the folder holds no whole CLAP.
    """
    where = choose_device(device)
    network, extractor, tokenizer = load_whole(
        files,
        ("ClapModel", "ClapFeatureExtractor", "AutoTokenizer"),
        dtype=DTYPES[precision],
        kind="CLAP",
        who="CLAP needs",
    )
    return ClapEmbedder(network.to(where).eval(), extractor, tokenizer, where)


def _unit(found: Any) -> torch.Tensor:
    """Return float32 unit vectors; transformers 5 wraps what 4 gave as a tensor."""
    vectors: torch.Tensor = found if isinstance(found, torch.Tensor) else found.pooler_output
    return functional.normalize(vectors.float(), dim=-1)
