"""A small run of the fuzzer: children that decode hurt files of every container."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from winnow.stages._audio_container import container_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def audio_fuzz() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module("audio_fuzz")
    finally:
        sys.path.pop(0)


def test_300_hurt_files_cost_only_themselves(audio_fuzz: ModuleType) -> None:
    report = audio_fuzz.fuzz(300, seed=3)
    assert (report.crashes, report.hangs, report.raised) == ([], [], [])
    assert report.outcomes.total() == 300
    assert min(report.outcomes[k] for k in ("decoded", "decoded, damaged", "undecodable")) > 30


def test_the_corpus_has_every_container(audio_fuzz: ModuleType) -> None:
    names = {found[0] for data in audio_fuzz.corpus() if (found := container_of(data))}
    assert names == {
        "wav", "flac", "ogg", "aac", "mp3", "mp4", "aiff", "asf", "matroska", "amr", "caf", "au",
    }  # fmt: skip


def test_a_file_is_the_same_again(audio_fuzz: ModuleType) -> None:
    assert audio_fuzz.mutated(5, 17) == audio_fuzz.mutated(5, 17) != audio_fuzz.mutated(6, 17)


@pytest.mark.parametrize(
    ("death", "found"), [("os.abort()", "crashes"), ("time.sleep(60)", "hangs")]
)
def test_a_crash_or_hang_is_found_and_passed(
    audio_fuzz: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    death: str,
    found: str,
) -> None:
    """A child that dies, or stops, at file 1 of 3."""
    script = tmp_path / "child.py"
    script.write_text(
        "import json, os, sys, time\n"
        "for i in range(int(sys.argv[2]), int(sys.argv[3])):\n"
        "    print(json.dumps({'index': i}), flush=True)\n"
        f"    if i == 1: {death}\n"
        "    line = {'index': i, 'outcome': 'decoded', 'seconds': 0.1, 'memory_mb': 1.0}\n"
        "    print(json.dumps(line), flush=True)\n"
    )
    monkeypatch.setattr(audio_fuzz, "__file__", str(script))
    report = audio_fuzz.fuzz(3, seed=0, hang_s=0.5)
    assert report.outcomes == {"decoded": 2}
    assert [f if isinstance(f, int) else f[0] for f in getattr(report, found)] == [1]


def test_a_child_that_cannot_begin_is_an_error(
    audio_fuzz: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "child.py").write_text("raise SystemExit(3)\n")
    monkeypatch.setattr(audio_fuzz, "__file__", str(tmp_path / "child.py"))
    with pytest.raises(RuntimeError, match="before its first file"):
        audio_fuzz.fuzz(3, seed=0)
