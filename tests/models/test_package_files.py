"""Folders of installed packages, found without importing them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from winnow.models.package_files import package_folder


def test_the_folder_is_that_of_the_package_and_nothing_is_imported() -> None:
    code = (
        "import sys\n"
        "from winnow.models.package_files import package_folder\n"
        "print(package_folder('open_clip'))\n"
        "assert not {'open_clip', 'torch'} & set(sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    folder = Path(run.stdout.strip())
    assert folder.name == "open_clip"
    assert (folder / "model_configs").is_dir()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "__main__", "sys", "os", "no_such_package", "json.decoder", "a b", "/"]
)
def test_what_is_no_package_has_no_folder(name: str) -> None:
    assert package_folder(name) is None
