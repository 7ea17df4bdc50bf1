"""Captions in a frozen encoder: the substitute against its formula, real ones by path."""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from winnow.contracts.errors import RecipeError, SetupError
from winnow.models.caption_vectors import caption_vectors, describe, hashed_words
from winnow.models.checkpoint import PACKAGED, find_model
from winnow.models.contrastive import load_model

CAPTIONS = ["a red cat", "A RED CAT!", "two blue dogs", "a red dog", "a red cat", "..."]


def test_equal_words_are_at_distance_0_and_other_words_at_distance_1() -> None:
    vectors = caption_vectors(CAPTIONS)
    assert vectors.vectors.shape == (5, 512)
    assert vectors.rows.tolist() == [0, 1, 2, 3, 0, 4]
    found = vectors.take(np.arange(6))
    cosine = found @ found.T
    assert cosine[0, 1] == pytest.approx(1, abs=2e-3)
    assert cosine[0, 2] == pytest.approx(0, abs=2e-3)
    assert 0.1 < cosine[0, 3] < 0.9
    assert not found[5].any()
    assert (vectors.take(np.array([4, 2])) == found[[4, 2]]).all()


def test_the_substitute_is_tf_idf() -> None:
    """Cosines of unhashed TF-IDF vectors, summed by hand, where no two words share a place."""
    texts = ["red red cat", "cat dog", "dog bird bird", "red bird"]
    found = hashed_words(texts)(texts)
    words = sorted({w for t in texts for w in t.split()})
    idf = {w: 1 + math.log((1 + 4) / (1 + sum(w in t.split() for t in texts))) for w in words}
    rows = np.array([[t.split().count(w) * idf[w] for w in words] for t in texts])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert np.abs(found).astype(bool).any(0).sum() == len(words)
    assert found @ found.T == pytest.approx(rows @ rows.T, abs=1e-5)


def test_a_contrastive_models_text_tower(tmp_path: Path) -> None:
    texts = CAPTIONS[:4]
    vectors = caption_vectors(texts, "tiny", device="cpu")
    expected = load_model(find_model("tiny"), device="cpu").embed_texts(texts).numpy()
    assert vectors.take(np.arange(4)) == pytest.approx(expected, abs=1e-3)
    copy = tmp_path / "copy"
    shutil.copytree(PACKAGED["tiny"], copy)
    assert describe(str(copy))["digest"] == describe("tiny")["digest"] != ""


def test_what_stands_in_is_said() -> None:
    assert describe("hashed_words")["substitute"] is True
    assert "substitute for a sentence encoder" in describe("hashed_words")["what"]
    assert describe("tiny")["substitute"] is False
    with pytest.raises(
        RecipeError, match="separation_encoder='mpnet'; allowed: hashed_words, tiny"
    ):
        describe("mpnet")
    with pytest.raises(SetupError, match="is missing"):
        describe("/no/such/folder")


def test_a_sentence_encoder_without_its_library(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert describe(str(tmp_path))["what"].startswith("sentence encoder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "transformers", None)
        with pytest.raises(SetupError, match="pip install transformers"):
            caption_vectors(CAPTIONS, str(tmp_path))


def test_a_sentence_encoder_is_the_mean_over_its_tokens(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import torch

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat", "two", "blue", "dogs"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    network = transformers.BertModel(config).eval()
    tokenizer.save_pretrained(tmp_path)
    network.save_pretrained(tmp_path)
    texts = ["a red cat", "two blue dogs dogs dogs"]
    found = caption_vectors(texts, str(tmp_path), device="cpu").take(np.arange(2))
    for text, vector in zip(texts, found, strict=True):
        with torch.no_grad():
            hidden = network(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        mean = hidden.mean(0)
        assert vector == pytest.approx((mean / mean.norm()).numpy(), abs=1e-3)
