"""Names of models and hostile configurations; loading is tested in ``test_contrastive.py``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from winnow.contracts.errors import RecipeError, SetupError
from winnow.models import checkpoint
from winnow.models.checkpoint import (
    CONFIG_NAME,
    PACKAGED,
    ModelFiles,
    architecture,
    embedding_width,
    find_model,
    find_tower,
    read_config,
)
from winnow.models.package_files import package_folder

BARE = {"embed_dim": 8, "vision_cfg": {"image_size": 8}, "text_cfg": {"width": 8}}


def write_model(folder: Path, config: Any = None, weights: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": BARE} if config is None else config
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / CONFIG_NAME).write_text(text, encoding="utf-8")
    (folder / weights).write_bytes(b"weights")
    return folder


@pytest.mark.parametrize("find", [find_model, find_tower])
@pytest.mark.parametrize(
    "name",
    [
        "{folder}", "{folder}/", "{folder}/model.safetensors", "my models/caf\u00e9",
        "./my models/caf\u00e9", "my models/caf\u00e9/model.safetensors", "~/my models/caf\u00e9",
    ],
)  # fmt: skip
def test_a_path_with_spaces_means_one_model_for_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, find: Any, name: str
) -> None:
    folder = tmp_path / "my models" / "caf\u00e9"
    shutil.copytree(PACKAGED["tiny"], folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find(name.format(folder=folder)).digest() == find_model("tiny").digest()


def test_the_working_directory_is_a_folder_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_model(tmp_path / "model"))
    expected = find_model(str(tmp_path / "model")).digest()
    assert find_model(".").digest() == find_model("model.safetensors").digest() == expected
    (tmp_path / "model" / "deeper").mkdir()
    monkeypatch.chdir("deeper")
    assert find_model("..").digest() == expected


def test_weights_named_alone_take_the_configuration_of_their_name(tmp_path: Path) -> None:
    write_model(tmp_path, weights="other.pt")
    assert embedding_width(str(tmp_path / "other.pt")) == 8
    (tmp_path / "other.json").write_text(json.dumps({**BARE, "embed_dim": 6}))
    assert embedding_width(str(tmp_path / "other.pt")) == 6
    assert find_model(str(tmp_path / "other.pt")).config["embed_dim"] == 6


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("~no-such-user-7/model", SetupError, "open_clip_config.json is missing"),
        ("/", SetupError, "open_clip_config.json is missing"),
        ("trained:scorer", RecipeError, "stands for a model that a study trains"),
        ("ViT-B-99 openai", RecipeError, "did you mean"),
        ("", RecipeError, "is no model"),
    ],
)
def test_names_that_mean_nothing_are_refused(
    name: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        find_tower(name)


@pytest.mark.parametrize(
    "config",
    [
        "", "null", "[]", "{}", "\x00", "[" * 100_000, '{"model_cfg": [',
        {"model_cfg": None}, {"model_cfg": {"embed_dim": 8}},
        {"model_cfg": {**BARE, "embed_dim": "8"}}, {"model_cfg": {**BARE, "embed_dim": None}},
        {"model_cfg": {**BARE, "text_cfg": None}}, {"model_cfg": {**BARE, "text_cfg": []}},
        {"model_cfg": {**BARE, "vision_cfg": 3}}, {"model_cfg": BARE, "preprocess_cfg": None},
        {**BARE, "text_cfg": "roberta"},
    ],
)  # fmt: skip
def test_a_configuration_that_is_none_is_refused_before_anything_loads(
    tmp_path: Path, config: Any
) -> None:
    folder = write_model(tmp_path / "a model", config)
    for find in (find_model, embedding_width, architecture):
        with pytest.raises(SetupError, match=CONFIG_NAME):
            find(str(folder))


def test_every_architecture_of_open_clip_is_read() -> None:
    folder = package_folder("open_clip")
    assert folder is not None
    paths = sorted((folder / "model_configs").glob("*.json"))
    assert len(paths) > 100
    for path in paths:
        stored = json.loads(path.read_text())
        assert architecture(path.stem) == {"preprocess_cfg": {}, "model_cfg": stored}


def test_what_a_caller_does_to_a_configuration_is_its_own(tmp_path: Path) -> None:
    folder = str(write_model(tmp_path / "model"))
    for found in (architecture(folder)["model_cfg"], find_model(folder).config):
        found["text_cfg"]["width"] = 99
    assert architecture(folder)["model_cfg"] == find_model(folder).config == BARE


def test_a_configuration_that_changes_is_read_again(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    before = find_model(str(folder)).digest()
    (folder / CONFIG_NAME).write_text(json.dumps({**BARE, "embed_dim": 16}))
    assert embedding_width(str(folder)) == 16
    assert find_model(str(folder)).digest() != before
    assert read_config(folder / CONFIG_NAME) == {"model_cfg": {**BARE, "embed_dim": 16}}


def test_each_of_the_four_parts_is_in_the_digest(tmp_path: Path) -> None:
    def digest(**changes: Any) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        write_model(folder, {"model_cfg": BARE, **changes.get("config", {})})
        (folder / "model.safetensors").write_bytes(changes.get("weights", b"weights"))
        if "merges" in changes:
            (folder / checkpoint.MERGES_NAME).write_bytes(changes["merges"])
        return find_model(str(folder)).digest()

    found = [
        digest(), digest(weights=b"other"), digest(config={"preprocess_cfg": {"size": 9}}),
        digest(config={"model_cfg": {**BARE, "embed_dim": 9}}), digest(merges=b"1"),
        digest(merges=b"2"),
    ]  # fmt: skip
    assert len(set(found)) == len(found)
    assert digest() == found[0]
    assert isinstance(find_model("patches"), ModelFiles)
