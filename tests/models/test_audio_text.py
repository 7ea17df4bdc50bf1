"""Audio-text folders: what is written is found again, and what does not fit is refused.

Scores and vectors are tested in ``tests/stages/test_audio_text_score.py``.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.projector_audio_parts import CONFIG, chord
from winnow.contracts.errors import SetupError
from winnow.models.audio_text import (
    AUDIO_CONFIG,
    AUDIO_WEIGHTS,
    find_audio_text_model,
    is_named,
    load_tower_model,
    read_document,
    read_weights,
    save_tower_model,
)
from winnow.models.audio_tower import build_tower
from winnow.models.checkpoint import PACKAGED, ModelFiles, find_model, find_tower

TEMPERATURES = {
    "log_scale.image_audio": torch.tensor(2.0),
    "log_scale.audio_text": torch.tensor(0.5),
    "bias.audio_text": torch.tensor(-3.0),
}


def save(folder: Path, width: int | None = None, image_text: ModelFiles | None = None) -> Path:
    width = find_model("tiny").config["embed_dim"] if width is None else width
    save_tower_model(
        folder, build_tower(CONFIG, width, seed=1), temperatures=TEMPERATURES,
        modalities=["text", "audio"], image_text=image_text,
    )  # fmt: skip
    return folder


def test_what_was_written_is_found_and_loaded(tmp_path: Path) -> None:
    folder = save(tmp_path / "caf\u00e9 1", image_text=find_model("tiny"))
    files = find_audio_text_model(str(folder))
    assert (files.tower, files.pairs) == (CONFIG, ("audio_text", "image_audio"))
    assert files.modalities == ("audio", "text")
    model = load_tower_model(files, device="cpu")
    assert model.scales == {"audio_text": math.exp(0.5), "image_audio": math.exp(2)}
    assert model.biases == {"audio_text": -3}
    waves = [chord(0), chord(3, duration_s=0.1)]
    vectors = model.embed_audio(waves)
    plain = build_tower(CONFIG, files.width, seed=1).eval()
    for wave, vector in zip(waves, vectors, strict=True):
        mel = CONFIG.frames(wave)
        with torch.no_grad():
            padded = torch.zeros(1, mel.shape[0], CONFIG.num_frames)
            padded[0, :, : mel.shape[1]] = torch.from_numpy(mel)
            alone = plain(padded, torch.tensor([mel.shape[1]]))[0]
        torch.testing.assert_close(vector, alone / alone.norm(), atol=1e-5, rtol=1e-4)


def test_beside_or_named_it_is_one_content_and_every_part_counts(tmp_path: Path) -> None:
    named = save(tmp_path / "named", image_text=find_model("tiny"))
    beside = save(tmp_path / "beside")
    shutil.copytree(PACKAGED["tiny"], beside, dirs_exist_ok=True)
    digest = find_audio_text_model(str(named)).digest()
    assert find_audio_text_model(str(beside)).digest() == digest
    shutil.move(beside, tmp_path / "moved away")
    moved = tmp_path / "moved away"
    assert find_audio_text_model(str(moved)).digest() == digest
    tensors = load_file(moved / AUDIO_WEIGHTS)
    tensors["bias.audio_text"] += 1
    save_file(tensors, moved / AUDIO_WEIGHTS)
    assert find_audio_text_model(str(moved)).digest() != digest


def test_another_image_text_model_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", image_text=find_model("tiny"))
    change(folder, image_text={"name": "patches", "digest": find_model("tiny").digest()})
    with pytest.raises(SetupError, match="trained with another patches"):
        find_audio_text_model(str(folder))
    narrow = save(tmp_path / "narrow", width=16, image_text=find_model("tiny"))
    with pytest.raises(SetupError, match="16 wide, those of tiny 192; they were not trained"):
        load_tower_model(find_audio_text_model(str(narrow)), device="cpu")


def change(folder: Path, **values: Any) -> None:
    path = folder / AUDIO_CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": 2, "tower": {"of": "tomorrow"}, "pairs": None}, "has format 2"),
        ({"format": None}, "cannot be read as an audio model"),
        ({"tower": {"kind": "conformer", "width": "24"}}, "cannot be read as an audio model"),
        ({"tower": None}, "cannot be read as an audio model"),
        ({"image_text": "tiny"}, "cannot be read as an audio model"),
        ({"pairs": 3}, "cannot be read as an audio model"),
    ],
)
def test_a_document_of_another_form_is_refused(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    change(save(tmp_path), **values)
    with pytest.raises(SetupError, match=message):
        read_document(tmp_path)


@pytest.mark.parametrize("text", ["", "null", "[]", "[" * 100_000, "\x00", '{"format": 1}'])
def test_a_torn_document_is_refused(tmp_path: Path, text: str) -> None:
    (save(tmp_path) / AUDIO_CONFIG).write_text(text)
    with pytest.raises(SetupError, match=AUDIO_CONFIG):
        read_document(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"tower.projection.weight": torch.tensor(1.0)},
        {"tower.projection.weight": torch.ones(3, 3)},
        {"tower.projection.weight": None},
        {"tower.unknown": torch.ones(1)},
        {"log_scale.image_audio": torch.ones(2)},
        {"bias.audio_text": torch.ones(0)},
    ],
)
def test_weights_that_do_not_fit_are_refused(
    tmp_path: Path, changes: dict[str, torch.Tensor | None]
) -> None:
    path = save(tmp_path) / AUDIO_WEIGHTS
    tensors: dict[str, Any] = {**load_file(path), **changes}
    save_file({name: value for name, value in tensors.items() if value is not None}, path)
    with pytest.raises(SetupError, match="do not fit"):
        read_weights(tmp_path, CONFIG)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(SetupError, match="cannot be read"):
        read_weights(tmp_path, CONFIG)
    path.unlink()
    with pytest.raises(SetupError, match="is not whole"):
        find_audio_text_model(str(tmp_path))


def test_a_name_is_enough_where_it_means_the_same_in_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(PACKAGED["tiny"], tmp_path / "model")
    monkeypatch.chdir(tmp_path / "model")
    weights = find_model("tiny").weights.name
    shutil.copyfile(weights, "weights.pt")
    shutil.copyfile(weights, "weights")
    assert is_named(find_model("tiny"))
    here = [".", weights, f"./{weights}", "ViT-B-32 weights.pt", "ViT-B-32 weights"]
    assert [name for name in here if is_named(find_tower(name))] == []
    tagged = {
        "config": {},
        "preprocess": {},
        "weights": tmp_path / "cache" / "x",
        "tokenizer": None,
    }
    for name in ("hf-hub:org/name@main", "ViT-B-32 openai"):
        assert is_named(ModelFiles(name=name, **tagged))
