"""Home folders in users' paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from winnow.contracts.paths import user_path


def test_a_home_folder_is_put_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/x") == tmp_path / "x" == Path("~/x").expanduser()
    assert user_path(Path("a/~/x")) == Path("a/~/x")


def test_the_home_of_nobody_is_a_path_that_is_not_there() -> None:
    assert user_path("~no_such_user/x") == Path("~no_such_user/x")
    with pytest.raises(RuntimeError):
        Path("~no_such_user/x").expanduser()
