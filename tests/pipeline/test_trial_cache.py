"""The machine's cache of decoded pictures: private, only for those who asked for none."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from winnow.contracts.parameters import result_parameters
from winnow.pipeline import trial_cache
from winnow.pipeline.trial_cache import shared_cache, with_shared_cache
from winnow.stages.train.contrastive import ContrastiveTrainer


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of this test's own, on a disk with room."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(trial_cache, "ROOM_BYTES", 0)
    return tmp_path


def test_trials_share_a_folder_that_is_this_users_alone(temporary: Path) -> None:
    plain = ContrastiveTrainer()
    shared = with_shared_cache(plain)
    folder = temporary / f"winnow-cache-{os.getuid()}"
    assert isinstance(shared, ContrastiveTrainer)
    assert shared.cache_folder == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert with_shared_cache(plain) == shared
    assert result_parameters(shared) == result_parameters(plain)
    assert shared.model_digest() == plain.model_digest()


@pytest.mark.parametrize("folder", ["", "/somewhere"])
def test_who_names_a_folder_or_none_keeps_it(folder: str) -> None:
    trainer = ContrastiveTrainer(cache_folder=folder)
    assert with_shared_cache(trainer) is trainer


def test_a_folder_that_others_can_enter_is_not_used(temporary: Path) -> None:
    folder = temporary / f"winnow-cache-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o755)
    trainer = ContrastiveTrainer()
    assert with_shared_cache(trainer) is trainer
    folder.rmdir()
    (temporary / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(temporary / "elsewhere")
    assert with_shared_cache(trainer) is trainer
    folder.unlink()
    folder.write_text("a file")
    assert with_shared_cache(trainer) is trainer


def test_a_small_disk_has_no_cache(temporary: Path) -> None:
    assert shared_cache(temporary, room_bytes=1) is not None
    assert shared_cache(temporary, room_bytes=1 << 62) is None
