"""audio_text_score against transformers' own CLAP; padding, codes, towers, parameters."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests import speech_models
from tests.scored import annotate
from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.media import MediaCaps
from winnow.contracts.parameters import result_parameters, validate
from winnow.contracts.registry import STAGES
from winnow.contracts.stage import WorkerOptions
from winnow.models.clap import find_clap, load_clap
from winnow.stages._audio_encode import encode_audio
from winnow.stages.audio_text_score import AudioTextScore

RATE = 48_000
CAPTIONS = ["a dog barks", "rain on a tin roof", "caf\u00e9 \u2014 \u72ac", "x " * 200]


def _wav(seed: int, seconds: float) -> bytes:
    return encode_audio(speech_models.tone(seed, seconds, RATE)[None], RATE, "wav")


def _batch(audio: list[bytes | None], texts: list[str | None]) -> pa.RecordBatch:
    uids = pa.array([bytes([i]) * 16 for i in range(len(audio))], pa.binary(16))
    columns = {"audio": pa.array(audio, pa.large_binary()), "text": pa.array(texts, pa.string())}
    return pa.RecordBatch.from_pydict({"uid": uids, **columns})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return speech_models.clap(tmp_path_factory.mktemp("clap"))


@pytest.fixture(scope="module")
def sounds() -> pa.RecordBatch:
    return _batch([_wav(i, 1 + i) for i in range(4)], list(CAPTIONS))


@pytest.mark.parametrize("fusion", [False, True])
def test_vectors_equal_transformers_own(fusion: bool, tmp_path: Any) -> None:
    from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

    path = speech_models.clap(tmp_path / "clap", fusion=fusion)
    model = load_clap(find_clap(path), device="cpu")
    network = ClapModel.from_pretrained(path).eval()
    extractor = ClapFeatureExtractor.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    waves = [speech_models.tone(i, s, RATE) for i, s in enumerate((0.3, 4, 10))]
    features = extractor(waves, sampling_rate=RATE, return_tensors="pt")
    features["is_longer"] = torch.zeros((3, 1), dtype=torch.bool)
    texts = CAPTIONS[:3]
    with torch.no_grad():
        tokens = tokenizer(texts, padding=True, return_tensors="pt")
        tokens.pop("token_type_ids", None)
        expected = [network.get_audio_features(**features), network.get_text_features(**tokens)]
    for found, plain in zip(
        (model.embed_audio(waves), model.embed_texts(texts)), expected, strict=True
    ):
        vectors = plain if isinstance(plain, torch.Tensor) else plain.pooler_output
        np.testing.assert_allclose(found, torch.nn.functional.normalize(vectors), atol=1e-4)
        assert (found @ found.T)[0, 1] < 0.999  # the weights tell them apart
    long = np.concatenate([waves[2], waves[1]])
    torch.testing.assert_close(model.embed_audio([long]), model.embed_audio([waves[2]]))


def test_scores_are_cosines_of_the_vectors(folder: str, sounds: pa.RecordBatch) -> None:
    stage = AudioTextScore(model=folder, batch_size=4, write_embeddings=True)
    state = stage.setup(WorkerOptions())
    out = annotate(stage, state, sounds)
    assert out.column("audio_text_score_error").null_count == 4
    assert out.schema.field("audio_embedding").type == pa.list_(pa.float16(), 24)
    from winnow.stages._audio import decode_audio

    waves = [decode_audio(d, MediaCaps()).samples[0] for d in sounds.column("audio").to_pylist()]
    with torch.inference_mode():
        expected = (state.embed_audio(waves) * state.embed_texts(CAPTIONS)).sum(1).numpy()
    np.testing.assert_allclose(out.column("audio_text_score").to_numpy(), expected, atol=1e-5)
    audio, text = (
        np.array(out.column(f"audio_{name}").to_pylist(), np.float32)
        for name in ("embedding", "text_embedding")
    )
    np.testing.assert_allclose((audio * text).sum(1), expected, atol=5e-3)


def test_neighbours_and_padding_do_not_change_a_bit(folder: str, sounds: pa.RecordBatch) -> None:
    stage = AudioTextScore(model=folder, batch_size=4, write_embeddings=True)
    state = stage.setup(WorkerOptions())
    whole = annotate(stage, state, sounds)
    audio = sounds.column("audio").to_pylist()
    for row in (0, 3):
        lonely = _batch([a if i == row else None for i, a in enumerate(audio)], list(CAPTIONS))
        assert annotate(stage, state, lonely).slice(row, 1).equals(whole.slice(row, 1))
    assert annotate(stage, state, sounds.slice(0, 2)).equals(whole.slice(0, 2))


def test_rows_that_cannot_be_scored_get_a_code(folder: str) -> None:
    good = _wav(1, 1)
    stage = AudioTextScore(model=folder, batch_size=8, write_embeddings=True)
    state = stage.setup(WorkerOptions())
    batch = _batch(
        [good, None, b"<html>", good, good, _wav(2, 4), None],
        ["a", "a", "a", None, " \t", "a", None],
    )
    out = annotate(stage, state, batch, MediaCaps(max_duration_s=3))
    codes = [None, "missing", "undecodable", "empty_text", "empty_text", "too_long", "missing"]
    assert out.column("audio_text_score_error").to_pylist() == codes
    for name in out.schema.names[:-1]:
        assert [not v.is_valid for v in out.column(name)] == [c is not None for c in codes]
    none = annotate(stage, state, _batch([None], ["a"]))
    assert none.column("audio_embedding").to_pylist() == [None]
    assert annotate(stage, state, _batch([], [])).num_rows == 0
    with torch.no_grad():
        state.network.audio_projection.linear2.bias.fill_(float("inf"))
    out = annotate(stage, state, _batch([good], ["a"]))
    assert out.column("audio_text_score_error").to_pylist() == ["not_finite"]


def test_parameters_and_columns(folder: str) -> None:
    stage = AudioTextScore(model=folder, column="second", num_gpus=0.5)
    assert STAGES["audio_text_score"] is AudioTextScore
    assert stage.writes.names == ["second", "second_error"]
    assert pickle.loads(pickle.dumps(stage)) == stage
    assert stage.batch_rows == 32
    assert result_parameters(stage) == {
        "batch_size": 32, "precision": "fp32", "audio_column": "audio", "text_column": "text",
        "write_embeddings": False, "num_threads": 1, "column": "second",
    }  # fmt: skip
    for values, message in (
        ({"model": ""}, "model=''"),
        ({"model": "x", "batch_size": 0}, "batch_size=0"),
        ({"model": "x", "column": "text"}, "column='text' cannot be written"),
    ):
        with pytest.raises(RecipeError, match=message):
            AudioTextScore(**validate(AudioTextScore, values))


def test_models_that_are_no_clap(folder: str, tmp_path: Any) -> None:
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    stage = AudioTextScore(model=str(copy))
    assert stage.model_digest() == AudioTextScore(model=folder).model_digest()
    config = (copy / "config.json").read_text()
    (copy / "config.json").write_text(config.replace('"model_type": "clap",', '"model_type": "x",'))
    with pytest.raises(SetupError, match="is 'x', and no CLAP"):
        stage.model_digest()
    (copy / "config.json").write_text("[")
    with pytest.raises(SetupError, match="cannot be read"):
        stage.model_digest()
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(SetupError, match="preprocessor_config.json is missing"):
        stage.model_digest()
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(SetupError, match="no weights in .* as safetensors"):
        stage.model_digest()


def test_a_tower_trained_here_scores_too(tmp_path: Any) -> None:
    """Its folder names the packaged image-text model for the captions."""
    from tests.models.projector_audio_parts import CONFIG, chord
    from winnow.models.audio_text import (
        find_audio_text_model,
        load_audio_text_model,
        save_tower_model,
    )
    from winnow.models.audio_tower import build_tower
    from winnow.models.checkpoint import find_model
    from winnow.models.contrastive import load_model

    tiny = find_model("tiny")
    captions = load_model(tiny, device="cpu").embed_texts(list(CAPTIONS))
    save_tower_model(
        tmp_path / "model",
        build_tower(CONFIG, captions.shape[1], seed=1),
        temperatures={"log_scale.image_audio": torch.tensor(2.0)},
        modalities=["audio", "image", "text"],
        image_text=tiny,
    )
    waves = [chord(i, seed=i) for i in range(4)]
    batch = _batch([encode_audio(w[None], 16_000, "wav") for w in waves], list(CAPTIONS))
    stage = AudioTextScore(model=str(tmp_path / "model"), batch_size=4)
    found = annotate(stage, stage.setup(WorkerOptions()), batch)
    model = load_audio_text_model(find_audio_text_model(str(tmp_path / "model")), device="cpu")
    stored = [np.rint(w * 32768).astype(np.float32) / 32768 for w in waves]
    expected = (model.embed_audio(stored) * captions).sum(dim=1)
    np.testing.assert_allclose(found.column("audio_text_score").to_pylist(), expected, atol=1e-5)
    assert np.ptp(expected.numpy()) > 1e-3
