"""Tokenizers and text transformers that a configuration names on the hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_parts import hub_cache, save_tokenizer, save_transformer
from winnow.contracts.errors import SetupError
from winnow.models.contrastive import text_tokenizer
from winnow.models.hub_text import (
    saved_text_config,
    text_transformer,
    tokenizer_files,
    tokenizer_folder,
)

CAPTIONS = ["a red card", "a blue card", "Two dogs, one ball!"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folders "tok" and "roberta", also on a hub as org/...; "bare" has no weights."""
    path = tmp_path_factory.mktemp("hub")
    save_tokenizer(path / "tok", CAPTIONS)
    save_transformer(path / "roberta", "roberta")
    (path / "bare").mkdir()
    shutil.copy(path / "roberta" / "config.json", path / "bare")
    repositories = {"org/tok": [path / "tok"], "org/roberta": [path / "roberta"]}
    with hub_cache(path / "cache", {**repositories, "org/bare": [path / "bare"]}):
        yield path


def test_a_tokenizer_is_the_models_own_then_a_folder_then_the_hubs(home: Path) -> None:
    assert tokenizer_folder({"vocab_size": 9}, home / "tok") is None
    own = tokenizer_folder({"hf_tokenizer_name": "org/none"}, home / "tok")
    assert own == home / "tok"
    path = tokenizer_folder({"hf_tokenizer_name": str(home / "tok")}, home)
    assert path == home / "tok"
    cached = tokenizer_folder({"hf_tokenizer_name": "org/tok"}, home)
    assert cached is not None
    assert cached.is_relative_to(home / "cache")
    names = [file.name for file in tokenizer_files(cached)]
    assert names == ["tokenizer.json", "tokenizer_config.json"]


def test_tokenizers_that_are_nowhere_are_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"org/none cannot be had from the Hugging Face hub"):
        tokenizer_folder({"hf_tokenizer_name": "org/none"}, None)
    with pytest.raises(SetupError, match=r"no-such: there is no such folder"):
        tokenizer_folder({"hf_tokenizer_name": str(tmp_path / "no-such")}, None)
    with pytest.raises(SetupError, match=r"holds none of tokenizer\.json"):
        tokenizer_folder({"hf_tokenizer_name": str(tmp_path)}, None)
    with pytest.raises(SetupError, match=r"holds none of tokenizer\.json"):
        tokenizer_folder({"hf_tokenizer_name": "org/roberta"}, None)


def test_text_transformers_need_weights_only_where_they_start_from_them(home: Path) -> None:
    assert text_transformer({"width": 8}, weights=True) is None
    found = text_transformer({"hf_model_name": "org/roberta"}, weights=True)
    assert found is not None
    assert [file.name for file in found.weights] == ["model.safetensors"]
    bare = text_transformer({"hf_model_name": "org/bare"}, weights=False)
    assert bare is not None
    assert not bare.weights
    with pytest.raises(SetupError, match=r"no weights .* hf_model_pretrained: false"):
        text_transformer({"hf_model_name": "org/bare"}, weights=True)
    with pytest.raises(SetupError, match=r"config\.json is missing"):
        text_transformer({"hf_model_name": "org/tok"}, weights=False)
    with pytest.raises(SetupError, match=r"text tower org/none cannot be had"):
        text_transformer({"hf_model_name": "org/none"}, weights=False)


def test_saved_configurations_hold_no_path_and_ask_for_no_weights() -> None:
    given = {"hf_tokenizer_name": "/data/tok", "hf_model_name": "~/models/bert", "width": 8}
    saved = saved_text_config(given)
    assert saved == {
        "hf_tokenizer_name": "tok", "hf_model_name": "bert", "hf_model_pretrained": False,
        "width": 8,
    }  # fmt: skip
    assert given["hf_tokenizer_name"] == "/data/tok"
    hub = {"hf_tokenizer_name": "timm/ViT-B-16-SigLIP", "vocab_size": 32000}
    assert saved_text_config(hub) == hub


def test_a_tokenizer_larger_than_the_text_towers_table_is_refused(home: Path) -> None:
    text = {"hf_tokenizer_name": "org/tok", "context_length": 8, "vocab_size": 100}
    tokenizer = text_tokenizer({"text_cfg": text}, home / "tok", name="model")
    with pytest.raises(SetupError, match=r"gives token \d+, .* vectors for 100: .* set vocab_size"):
        tokenizer(CAPTIONS)


def test_tokenizers_without_a_token_that_all_captions_need_are_refused(
    home: Path, tmp_path: Path
) -> None:
    text = {"hf_tokenizer_name": "org/tok", "tokenizer_kwargs": {"strip_sep_token": True}}
    given = json.loads((home / "tok" / "tokenizer_config.json").read_text())
    for token in ("pad_token", "sep_token"):
        folder = shutil.copytree(home / "tok", tmp_path / token)
        less = {key: value for key, value in given.items() if key != token}
        (folder / "tokenizer_config.json").write_text(json.dumps(less))
        with pytest.raises(SetupError, match=rf"{token}; name one in its tokenizer_config\.json"):
            text_tokenizer({"text_cfg": text}, folder, name="model")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(SetupError, match=r"the tokenizer of model cannot be loaded from"):
        text_tokenizer({"text_cfg": text}, tmp_path, name="model")
