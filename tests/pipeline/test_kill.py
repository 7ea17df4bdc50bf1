"""kill -9 at any moment, then the same command again: nothing redone, the same bytes."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MAIN = "import winnow_toy; from winnow.pipeline.cli import main; main()"
NUM_IMAGES = 60


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with captions; every third is a re-encoded copy of the one before it."""
    folder = tmp_path_factory.mktemp("pictures")
    random_ = np.random.default_rng(5)
    previous: Image.Image | None = None
    for number in range(NUM_IMAGES):
        if number % 3 == 2 and previous is not None:
            previous.save(folder / f"{number:03d}.jpg", quality=70)
        else:
            small = random_.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            previous = Image.fromarray(small).resize((160, 120), Image.Resampling.BICUBIC)
            previous.save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(f"picture number {number}")
    return folder


def recipe(pictures: Path) -> str:
    return f"""
name: killed
rows_per_shard: 6
source: {{use: folder, path: "{pictures}"}}
stages:
  toy_length: {{}}
  image_info: {{}}
  perceptual_hash: {{}}
  near_duplicates: {{}}
  toy_double: {{}}
filters:
  long: {{use: where, expression: "doubled >= 30", on_null: drop}}
  drop_near_duplicates: {{prefer: ["largest width", "smallest image_size_bytes"], on_null: keep}}
export:
  train: {{use: webdataset, rows_per_file: 10}}
  mixed: {{use: webdataset, rows_per_file: 10, shuffle: global}}
"""


def start(
    recipe_file: Path, workspace: Path, executor: str, pause_s: float = 0.0
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", MAIN, "run", str(recipe_file), "-w", str(workspace)]
    command += ["--executor", executor, "--num-cpus", "2", "--no-report"]
    return subprocess.Popen(
        command,
        cwd=recipe_file.parent,
        start_new_session=True,
        env={**os.environ, "TOY_PAUSE_S": str(pause_s)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen[bytes]) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output.decode()
    return output.decode()


def digests(workspace: Path) -> dict[str, str]:
    """Relative name -> sha256 of everything that was exported."""
    exports = workspace / "export"
    assert len(list(exports.iterdir())) == 2
    return {
        str(p.relative_to(exports)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(exports.rglob("*"))
        if p.is_file() and p.name.endswith((".tar", ".json", ".parquet", ".md"))
    }


def committed(workspace: Path) -> dict[str, tuple[int, int]]:
    """Files of finished work with inode and time: a file that is written again changes both."""
    found = {}
    for part in ("rows", "columns", "ledger"):
        for path in (workspace / part).rglob("*"):
            if path.is_file() and not path.name.startswith(".tmp-"):
                stat = path.stat()
                found[str(path.relative_to(workspace))] = (stat.st_ino, stat.st_mtime_ns)
    return found


@pytest.fixture(scope="module")
def reference(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a run that was never killed exports."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "r.yaml").write_text(recipe(pictures))
    output = finish(start(folder / "r.yaml", folder / "ws", "inprocess"))
    assert f"{NUM_IMAGES} read" in output
    found = digests(folder / "ws")
    assert sum(name.endswith(".tar") for name in found) >= 3
    return found


def descendants(pid: int) -> list[int]:
    """Process ids below a process, by /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        for child in children.get(queue.pop(), []):
            found.append(child)
            queue.append(child)
    return found


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


@pytest.mark.kill
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_driver_killed_at_random_moments(
    pictures: Path, reference: dict[str, str], tmp_path: Path, seed: int
) -> None:
    """In-process: the driver is the worker; four kills spread over the run, then to the end."""
    moments = random.Random(seed)
    (tmp_path / "r.yaml").write_text(recipe(pictures))
    for _ in range(4):
        process = start(tmp_path / "r.yaml", tmp_path / "ws", "inprocess", 0.05)
        time.sleep(moments.uniform(1.0, 4.5))
        before = committed(tmp_path / "ws")
        kill(process.pid)
        process.communicate()
        after = committed(tmp_path / "ws")
        assert {k: after[k] for k in before} == before
    before = committed(tmp_path / "ws")
    finish(start(tmp_path / "r.yaml", tmp_path / "ws", "inprocess"))
    after = committed(tmp_path / "ws")
    assert {k: after[k] for k in before} == before
    assert digests(tmp_path / "ws") == reference


@pytest.mark.kill
@pytest.mark.ray
@pytest.mark.parametrize("target", ["driver", "workers", "everything"])
def test_processes_of_a_ray_run_killed(
    pictures: Path, reference: dict[str, str], tmp_path: Path, target: str
) -> None:
    """On Ray: the driver, or the workers under it (and it goes on), or all of them."""
    (tmp_path / "r.yaml").write_text(recipe(pictures))
    process = start(tmp_path / "r.yaml", tmp_path / "ws", "ray", 0.3)
    columns = tmp_path / "ws" / "columns"
    deadline = time.monotonic() + 120
    while not list(columns.glob("toy_length-*/[0-9a-f]*.parquet")):
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.02)
    before = committed(tmp_path / "ws")
    below = descendants(process.pid)
    if target == "workers":
        for pid in below:
            if is_worker(pid):
                kill(pid)
    else:
        kill(process.pid)
        for pid in below if target == "everything" else []:
            kill(pid)
    output, _ = process.communicate(timeout=240)
    if target == "workers":
        assert process.returncode == 0, output.decode()
    else:
        finish(start(tmp_path / "r.yaml", tmp_path / "ws", "ray"))
    after = committed(tmp_path / "ws")
    assert {k: after[k] for k in before} == before
    assert digests(tmp_path / "ws") == reference


def is_worker(pid: int) -> bool:
    try:
        return b"winnow.pipeline.child" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@pytest.mark.kill
def test_two_runs_on_one_workspace_at_once(
    pictures: Path, reference: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "r.yaml").write_text(recipe(pictures))
    runs = [start(tmp_path / "r.yaml", tmp_path / "ws", "inprocess", 0.05) for _ in range(2)]
    for process in runs:
        finish(process)
    assert digests(tmp_path / "ws") == reference
