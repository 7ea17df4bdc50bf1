"""Where a Whisper's files are: by the name alone, inside the package or folder that it says.

What the files hold is tested with the stage, in ``tests/stages/test_transcript.py``.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from winnow.contracts.errors import SetupError
from winnow.models.whisper_files import find_whisper

NEEDED = ("model.bin", "config.json", "tokenizer.json")


def converted(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in NEEDED:
        (folder / name).write_text(name)
    return folder


def test_a_package_a_folder_and_a_copy_hold_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = converted(tmp_path / "site" / "a_package_of_speech" / "my model")
    (inside.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    elsewhere = tmp_path / "caf\u00e9 1"
    shutil.copytree(inside, elsewhere)
    packaged = find_whisper("package:a_package_of_speech/my model", "faster_whisper")
    assert packaged.folder == inside
    assert packaged.digest() == find_whisper(str(elsewhere), "faster_whisper").digest()
    assert "a_package_of_speech" not in sys.modules
    (elsewhere / "vocabulary.txt").write_text("")
    assert packaged.digest() != find_whisper(str(elsewhere), "faster_whisper").digest()


@pytest.mark.parametrize("rest", ["/{folder}", "../{folder}", "x/../../{folder}"])
def test_a_name_cannot_leave_its_package(tmp_path: Path, rest: str) -> None:
    outside = converted(tmp_path / "outside")
    with pytest.raises(SetupError, match="a folder inside an installed Python package"):
        find_whisper(f"package:numpy/{rest.format(folder=outside)}", "faster_whisper")


@pytest.mark.parametrize(
    "name", ["package:", "package:/x", "package:no_such/x", "package:sys/x", "package:__main__/x"]
)
def test_what_is_no_package_is_refused(name: str) -> None:
    with pytest.raises(SetupError, match="no package"):
        find_whisper(name, "faster_whisper")


@pytest.mark.parametrize("missing", NEEDED)
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    folder = converted(tmp_path / "a b")
    (folder / missing).unlink()
    (folder / missing).mkdir()
    with pytest.raises(SetupError, match=f"{missing} is missing"):
        find_whisper(str(folder), "faster_whisper")
    with pytest.raises(SetupError, match="is missing"):
        find_whisper("~no-such-user-7/model", "faster_whisper")
