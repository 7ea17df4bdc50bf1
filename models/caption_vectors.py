"""Captions in a frozen text encoder: how far apart two captions are, for ``image_separation``.

Three encoders, by name:

    hashed_words     a SUBSTITUTE that needs no model: words only, no meaning
    path/to/folder   the text tower of any contrastive model that Winnow loads, or a sentence
                     encoder in Hugging Face's format (needs: pip install transformers)
    tiny             the packaged model's text tower

AlignCLIP (Eslami and de Melo 2024) uses a pretrained sentence encoder. ``describe`` says which of
these was used and whether it stands in for one; it is recorded with every training run.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.identity import stable_hash64
from winnow.contracts.paths import user_path
from winnow.models.checkpoint import CONFIG_NAME, PACKAGED, find_model
from winnow.models.file_digest import files_digest

HASHED_WORDS = "hashed_words"
_WIDTH = 512
_WORD = re.compile(r"\w+")
_BATCH = 256
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionVectors:
    """Vectors of N captions; equal captions share one row.

    vectors: float16 (U, S), unit vectors, zero for a caption without any word.  rows: int64 (N,).
    """

    vectors: npt.NDArray[np.float16]
    rows: npt.NDArray[np.int64]

    def take(self, indices: npt.NDArray[np.int64]) -> Vectors:
        """Return the vectors of some captions, float32 (len(indices), S)."""
        return self.vectors[self.rows[indices]].astype(np.float32)


def describe(encoder: str) -> dict[str, Any]:
    """Return what an encoder is: name, digest of its files, and whether it is a substitute.

    Fails: RecipeError for a name that means nothing; SetupError where files are missing.
    """
    if encoder == HASHED_WORDS:
        what = f"TF-IDF of words, hashed to {_WIDTH} numbers; substitute for a sentence encoder"
        return {"encoder": encoder, "substitute": True, "digest": "", "what": what}
    if _is_sentence_encoder(encoder):
        what = "sentence encoder, mean of the last layer over tokens"
        digest = _folder_digest(user_path(encoder))
    else:
        what = "text tower of a contrastive model"
        if "/" not in encoder and encoder not in PACKAGED:
            msg = (
                f"separation_encoder={encoder!r}; allowed: {HASHED_WORDS}, {', '.join(PACKAGED)}, "
                "or the folder of a model (with a slash)"
            )
            raise RecipeError(msg)
        digest = find_model(encoder).digest()
    return {"encoder": encoder, "substitute": False, "digest": digest, "what": what}


def caption_vectors(
    texts: Sequence[str], encoder: str = HASHED_WORDS, *, device: str = "auto"
) -> CaptionVectors:
    """Encode all captions once.

    Cost: memory of 2 * S bytes per different caption, one forward pass each with a real encoder.
    """
    numbers: dict[str, int] = {}
    rows = np.array([numbers.setdefault(text, len(numbers)) for text in texts], np.int64)
    unique = list(numbers)
    encode = _encoder(encoder, unique, device)
    found = [encode(unique[i : i + _BATCH]) for i in range(0, len(unique), _BATCH)]
    return CaptionVectors(vectors=np.concatenate(found).astype(np.float16), rows=rows)


def hashed_words(documents: Iterable[str]) -> Callable[[Sequence[str]], Vectors]:
    """Return a deterministic encoder, fitted to the document frequencies of ``documents``.

    Each lower-case word w adds ``tf(w) * idf(w)`` with a sign to one of 512 numbers, place and sign
    by a hash (Weinberger et al. 2009); ``idf = 1 + ln((1 + n) / (1 + df))`` (as scikit-learn's
    smoothed one); the sum is made a unit vector. Captions without a common word are at distance 1,
    up to collisions, however close their meanings are.
    """
    frequency: Counter[str] = Counter()
    num_documents = 0
    for document in documents:
        frequency.update(set(_WORD.findall(document.lower())))
        num_documents += 1
    places: dict[str, tuple[int, float]] = {}
    for word, times in frequency.items():
        value = stable_hash64("caption word", word)
        weight = 1 + math.log((1 + num_documents) / (1 + times))
        places[word] = (value % _WIDTH, weight if value >> 63 else -weight)

    def encode(texts: Sequence[str]) -> Vectors:
        vectors = np.zeros((len(texts), _WIDTH), np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            for word in _WORD.findall(text.lower()):
                place, weight = places.get(word, (0, 0.0))
                vector[place] += weight
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float32)

    return encode


def _encoder(
    encoder: str, documents: Sequence[str], device: str
) -> Callable[[Sequence[str]], Vectors]:
    if encoder == HASHED_WORDS:
        return hashed_words(documents)
    if _is_sentence_encoder(encoder):
        return _sentence_encoder(user_path(encoder), device)
    from winnow.models.contrastive import load_model

    model = load_model(find_model(encoder), device=device)
    return lambda texts: model.embed_texts(texts).cpu().numpy()


def _is_sentence_encoder(encoder: str) -> bool:
    folder = user_path(encoder)
    there = "/" in encoder and (folder / "config.json").is_file()
    return there and not (folder / CONFIG_NAME).is_file()


def _sentence_encoder(folder: Path, device: str) -> Callable[[Sequence[str]], Vectors]:
    """Mean of the last layer over the tokens of a text (Reimers and Gurevych 2019)."""
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        msg = f"separation_encoder={folder} needs: pip install transformers ({error})"
        raise SetupError(msg) from error
    import torch

    from winnow.models.devices import choose_device

    where = choose_device(device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        network = AutoModel.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        msg = f"separation_encoder={folder} cannot be loaded: {error}"
        raise SetupError(msg) from error
    network = network.to(where).eval()

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> Vectors:
        tokens = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        tokens = tokens.to(where)
        hidden_BTS = network(**tokens).last_hidden_state.float()
        mask_BT1 = tokens["attention_mask"][..., None]
        mean_BS = (hidden_BTS * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1)
        vectors: Vectors = torch.nn.functional.normalize(mean_BS, dim=-1).cpu().numpy()
        return vectors

    return encode


def _folder_digest(folder: Path) -> str:
    return files_digest(sorted(p for p in folder.iterdir() if p.is_file()))
