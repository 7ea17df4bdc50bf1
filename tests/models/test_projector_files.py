"""Saved projector models: the same answers, a digest of content only, and no silent exchange."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.projector_parts import build, language_model, open_gates, pictures, tower
from winnow.contracts.errors import SetupError
from winnow.models.lora import lora_weights
from winnow.models.projector import (
    Projector,
    build_projector,
    load_projector,
    projector_digest,
    save_projector,
)
from winnow.models.projector_files import find_projector

pytest.importorskip("transformers")
pytest.importorskip("peft")

PROMPTS, ANSWERS = ["What is it?"] * 2, ["a red cat", "two dogs"]
FRESH = """
import sys
from winnow.models.projector_files import find_projector, projector_digest
print(projector_digest(sys.argv[1]))
assert not {"torch", "transformers", "numpy"} & set(sys.modules), "a plan must not pay for these"
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parts")
    tower(path / "tower")
    language_model(path / "lm")
    return path


@pytest.fixture(scope="module")
def saved(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with trained gated layers, saved without its parts."""
    projector = build(parts, "perceiver_xattn")
    open_gates(projector, 0.5)
    target = tmp_path_factory.mktemp("saved") / "model"
    save_projector(target, projector)
    return target


def stirred(projector: Projector, what: Any) -> Projector:
    """Move all that is trainable."""
    generator = torch.manual_seed(1)
    with torch.no_grad():
        for weight in projector.set_trainable(what):
            weight += torch.randn(weight.shape, generator=generator) / 20
    return projector


def logs(projector: Projector) -> np.ndarray:
    features, mask = projector.features(pictures(2))
    return np.concatenate(projector.token_log_likelihoods(features, mask, PROMPTS, ANSWERS))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("connector", "stages", "files"),
    [
        ("perceiver_xattn", ["connector"], set[str]()),
        ("qformer", ["connector", "connector+lm"], {"lm.safetensors"}),
        ("mlp", ["connector", "connector+lora"], {"lora.safetensors"}),
        (
            "mlp",
            ["connector+lm", "connector+lora", "connector"],
            {"lm.safetensors", "lora.safetensors"},
        ),
    ],
)
def test_a_loaded_model_answers_as_the_saved_one(
    parts: Path, tmp_path: Path, connector: str, stages: list[str], files: set[str]
) -> None:
    projector = build(parts, connector)
    open_gates(projector, 0.5)
    for stage in stages:
        stirred(projector, stage)
    save_projector(tmp_path / "model", projector)
    assert names(tmp_path / "model") == {"projector.json", "connector.safetensors"} | files
    loaded = load_projector(tmp_path / "model", "cpu")
    assert not loaded.training
    np.testing.assert_array_equal(logs(loaded), logs(projector.eval()))
    assert loaded.facts() == projector.facts()
    assert loaded.trains == stages[-1]
    if "lora.safetensors" in files:
        assert set(load_file(tmp_path / "model" / "lora.safetensors")) == set(
            lora_weights(projector.network)
        )
        projector.merge_lora()
        with pytest.raises(SetupError, match="adapters were merged"):
            save_projector(tmp_path / "other", projector)


def test_the_digest_is_of_content_only(saved: Path, parts: Path, tmp_path: Path) -> None:
    digest = projector_digest(saved)
    moved = shutil.copytree(saved, tmp_path / "moved")
    assert projector_digest(str(moved)) == digest
    twin = shutil.copytree(parts, tmp_path / "twin")
    document = json.loads((moved / "projector.json").read_text())
    document["language_model"]["name"] = document["config"]["language_model"] = str(twin / "lm")
    document["tower"]["name"] = document["config"]["tower"] = str(twin / "tower")
    (moved / "projector.json").write_text(json.dumps(document))
    assert projector_digest(moved) == digest
    whole = load_projector(moved, "cpu")
    save_projector(tmp_path / "copied", whole, copy=True)
    assert projector_digest(tmp_path / "copied") == digest
    # What can change an answer changes the digest.
    weights = load_file(moved / "connector.safetensors")
    first = next(iter(weights))
    save_file({**weights, first: weights[first] + 1e-3}, moved / "connector.safetensors")
    assert projector_digest(moved) != digest
    for part in ("tower", "language_model"):
        changed = {**document, part: {**document[part], "digest": "0" * 32}}
        (saved.parent / part).mkdir(exist_ok=True)
        for path in saved.iterdir():
            shutil.copy(path, saved.parent / part)
        (saved.parent / part / "projector.json").write_text(json.dumps(changed))
        assert projector_digest(saved.parent / part) != digest


def test_with_copies_a_folder_stands_alone(saved: Path, parts: Path, tmp_path: Path) -> None:
    expected = logs(load_projector(saved, "cpu"))
    own = shutil.copytree(parts, tmp_path / "own")
    (own / "tower" / "training_state.pt").write_bytes(b"not a part of the model")
    document = json.loads((saved / "projector.json").read_text())
    for part, folder in (("tower", "tower"), ("language_model", "lm")):
        document[part]["name"] = str(own / folder)
    lent = shutil.copytree(saved, tmp_path / "lent")
    (lent / "projector.json").write_text(json.dumps(document))
    projector = load_projector(lent, "cpu")
    save_projector(tmp_path / "whole", projector, copy=True)
    shutil.rmtree(own)
    with pytest.raises(SetupError, match="own"):
        load_projector(lent, "cpu")
    moved = shutil.move(tmp_path / "whole", tmp_path / "elsewhere")
    np.testing.assert_array_equal(logs(load_projector(moved, "cpu")), expected)
    everything = {path.name for path in Path(moved).rglob("*") if path.is_file()}
    assert "training_state.pt" not in everything
    assert not {name for name in everything if name.endswith((".pt", ".bin", ".pkl", ".pth"))}
    # Saved again into its own folder, it keeps its parts.
    again = load_projector(moved, "cpu")
    save_projector(moved, again)
    np.testing.assert_array_equal(logs(load_projector(moved, "cpu")), expected)


def test_other_parts_than_those_of_the_training_are_refused(
    saved: Path, parts: Path, tmp_path: Path
) -> None:
    for part, folder, match in (
        ("language_model", "lm", r"the language_model .*lm is not the one that the projector was"),
        ("tower", "tower", r"the tower .*tower is not the one that the projector was"),
    ):
        own = shutil.copytree(parts / folder, tmp_path / folder)
        weights = load_file(own / "model.safetensors")
        first = next(iter(weights))
        weights[first] = weights[first] + 1
        save_file(weights, own / "model.safetensors", {"format": "pt"})
        document = json.loads((saved / "projector.json").read_text())
        document[part]["name"] = str(own)
        model = shutil.copytree(saved, tmp_path / f"model-{part}")
        (model / "projector.json").write_text(json.dumps(document))
        with pytest.raises(SetupError, match=match):
            load_projector(model, "cpu")


def test_damaged_and_foreign_files_are_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"no projector model: .*projector\.json is missing"):
        find_projector(str(tmp_path))
    model = shutil.copytree(saved, tmp_path / "model")
    weights = load_file(model / "connector.safetensors")
    dropped = sorted(weights)[0]
    less = {name: weight for name, weight in weights.items() if name != dropped}
    save_file(less, model / "connector.safetensors")
    with pytest.raises(SetupError, match=f"of another model: {dropped} is absent there"):
        load_projector(model, "cpu")
    (model / "connector.safetensors").write_bytes(b"garbage")
    with pytest.raises(SetupError, match=r"connector\.safetensors cannot be read"):
        load_projector(model, "cpu")
    (model / "connector.safetensors").unlink()
    with pytest.raises(SetupError, match=r"no whole projector model: .*connector\.safetensors"):
        find_projector(str(model))
    for text, match in (
        ("{", "cannot be read"),
        ('{"format": 99}', "not of format 1"),
        ('{"format": 1}', "lacks what a projector model needs: 'language_model'"),
    ):
        (model / "projector.json").write_text(text)
        with pytest.raises(SetupError, match=match):
            find_projector(str(model))


def test_a_random_language_model_is_asked_for_and_kept(parts: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(parts / "lm", tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    config = replace(build(parts, "mlp").config, language_model=str(bare))
    with pytest.raises(SetupError, match="there are no weights"):
        build_projector(config, seed=3, device="cpu")
    projector = build_projector(config, seed=3, device="cpu", allow_random_lm=True)
    save_projector(tmp_path / "model", projector)
    np.testing.assert_array_equal(logs(load_projector(tmp_path / "model", "cpu")), logs(projector))
    assert projector.facts()["trained_parameters"] < projector.facts()["parameters"] / 2


def test_a_digest_costs_a_plan_no_torch(saved: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(saved)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, projector_digest(saved)), done.stderr
