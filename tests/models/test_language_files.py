"""Language models: found by name, and told apart by their content."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from winnow.contracts.errors import SetupError
from winnow.models.language_files import PACKAGED, find_language_model, is_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The packaged model, in a folder of the user's."""
    shutil.copytree(find_language_model(PACKAGED).folder, tmp_path / "own")
    return tmp_path / "own"


def test_weights_in_pieces_are_all_found(folder: Path) -> None:
    files = find_language_model(str(folder))
    assert (files.safe, [path.name for path in files.weights]) == (True, ["model.safetensors"])
    for name in ("pytorch_model.bin.index.json", "pytorch_model-2.bin", "pytorch_model-1.bin"):
        (folder / name).write_bytes(name.encode())
    assert files.safe
    (folder / "model.safetensors").unlink()
    assert not files.safe
    names = ["pytorch_model.bin.index.json", "pytorch_model-1.bin", "pytorch_model-2.bin"]
    assert [path.name for path in files.weights] == names


def test_digest_covers_content_and_not_the_path(folder: Path, tmp_path: Path) -> None:
    before = find_language_model(str(folder)).digest()
    assert len(before) == 32
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy)
    (copy / "notes.txt").write_text("nothing that matters")
    assert find_language_model(str(copy)).digest() == before
    seen = {before}
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        data = (copy / name).read_bytes()
        (copy / name).write_bytes(data + b" ")
        seen.add(find_language_model(str(copy)).digest())
        (copy / name).write_bytes(data)
    assert len(seen) == 5
    assert find_language_model(str(copy)).digest() == before


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("./lm", True),
        ("../lm", True),
        ("~/lm", True),
        ("/models/lm", True),
        ("runs/trials/lm", True),
        ("org/name", False),
        ("gpt2", False),
        ("hf-hub:org/name@main", False),
    ],
)
def test_the_name_alone_says_what_it_means(name: str, path: bool) -> None:
    assert is_path(name) is path


def test_missing_things_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"config\.json is missing"):
        find_language_model(str(tmp_path))
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(folder / "config.json", bare)
    with pytest.raises(SetupError, match="there is no tokenizer"):
        find_language_model(str(bare))
    (copy := tmp_path / "whole").mkdir()
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(folder / name, copy)
    with pytest.raises(SetupError, match="randomly initialised and know no language"):
        find_language_model(str(copy))
    assert find_language_model(str(copy), allow_random=True).weights == []
    with pytest.raises(SetupError, match="neither tiny-lm nor a folder"):
        find_language_model("no-such-organisation/no-such-model")
