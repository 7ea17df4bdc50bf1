"""Ray: pools by resource shape, lost workers and nodes, a workspace on S3, a foreign models/."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import winnow_units
from winnow_exports import exported, pictures
from winnow_exports import recipe as exporting
from winnow_shards import snapshot

from winnow.contracts.errors import SetupError
from winnow.contracts.stage import Resources, WorkerOptions
from winnow.pipeline import export_exchange
from winnow.pipeline.executor import Drive
from winnow.pipeline.executor_ray import RayExecutor
from winnow.pipeline.recipe import parse_recipe
from winnow.pipeline.run import RunOptions, run_recipe
from winnow.pipeline.storage import Storage

pytestmark = pytest.mark.ray


@pytest.fixture
def executor(ray_cluster: None) -> Iterator[RayExecutor]:
    made = RayExecutor(WorkerOptions())
    yield made
    made.close()


def test_all_units_run_and_guilty_rows_are_found(executor: RayExecutor) -> None:
    results: list[Any] = []
    units = [winnow_units.Rows(count=n + 1, guilty=(2,) if n == 4 else ()) for n in range(8)]
    drive = Drive(
        executor=executor, follow=lambda unit, result: results.append((unit.count, result)) or ()
    )
    assert drive.run(units) == []
    assert sorted(count for count, _ in results) == list(range(1, 9))
    assert {c: r.extra["poisoned"] for c, r in results if r.extra["poisoned"]} == {5: [2]}


def test_a_unit_that_always_fails_is_reported_after_three_attempts(executor: RayExecutor) -> None:
    failures = Drive(executor=executor).run(
        [winnow_units.Rows(count=0), winnow_units.Rows(count=3)]
    )
    assert [(f.unit.count, f.attempts) for f in failures] == [(0, 3)]
    assert "ZeroDivisionError" in str(failures[0])


def test_a_killed_actor_is_replaced_and_its_unit_tried_again(executor: RayExecutor) -> None:
    killed = threading.Event()

    def kill_one() -> None:
        while not killed.is_set():
            for actor, _ in executor.workers():
                os.kill(actor, signal.SIGKILL)
                killed.set()
                return
            time.sleep(0.05)

    units = [winnow_units.Rows(count=4, pause_s=0.3) for _ in range(4)]
    drive = Drive(executor=executor)
    executor.room(units[0].resources)
    while executor.room(units[0].resources) == 0:
        executor.wait(0.1)
    thread = threading.Thread(target=kill_one)
    thread.start()
    failures = drive.run(units)
    killed.set()
    thread.join()
    assert failures == []


def test_closing_in_the_middle_of_a_unit_leaves_no_file(ray_cluster: None, tmp_path: Path) -> None:
    temporary, scratch = tmp_path / "temporary", tmp_path / "scratch"
    scratch.mkdir()

    def interrupt() -> None:
        while not temporary.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with (
        pytest.raises(KeyboardInterrupt),
        closing(RayExecutor(WorkerOptions(scratch=scratch))) as executor,
    ):
        Drive(executor=executor).run([winnow_units.Writing(path=str(temporary))])
    for _ in range(200):
        if not temporary.exists() and not list(scratch.iterdir()):
            return
        time.sleep(0.1)
    pytest.fail("files remain")


def test_a_shape_that_never_fits_is_refused(executor: RayExecutor) -> None:
    with pytest.raises(SetupError, match="needs 64 CPUs and 0 GPUs"):
        executor.prepare([Resources(num_cpus=64)])


@pytest.mark.parametrize("kind", ["ray", "auto"])
def test_a_stage_that_never_fits_is_refused_before_anything_is_written(
    ray_cluster: None, tmp_path: Path, kind: Any
) -> None:
    write_texts(tmp_path / "in.jsonl", 3)
    recipe = parse_recipe(RECIPE.format(data=tmp_path / "in.jsonl", pause=0))
    options = RunOptions(workspace=str(tmp_path / "ws"), executor=kind)
    message = "^toy_gpu needs 1 CPUs and 1 GPUs on one machine; the cluster has machines with 2 "
    with pytest.raises(SetupError, match=message):
        run_recipe(recipe, options)
    assert not (tmp_path / "ws").exists()


def test_a_global_shuffle_has_the_same_bytes_on_ray(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_exchange, "GROUP_ROWS", 5)
    pictures(tmp_path / "t.parquet", repeat={11: 8, 20: 9})
    recipe = parse_recipe(exporting(tmp_path / "t.parquet", "rows_per_file: 9, shuffle: global"))
    found = []
    for kind in ("inprocess", "ray"):
        options: Any = {"workspace": str(tmp_path / kind), "executor": kind}
        folder = exported(run_recipe(recipe, RunOptions(**options)), tmp_path, kind)
        found.append(snapshot(folder))
    assert sum(name.endswith(".tar") for name in found[0]) == 4
    assert found[0] == found[1]


def test_a_unit_that_hangs_costs_its_deadline(ray_cluster: None) -> None:
    executor = RayExecutor(WorkerOptions(), deadline_s=2.0)
    failures = Drive(executor=executor).run([winnow_units.Rows(count=1, pause_s=60.0)])
    executor.close()
    assert len(failures) == 1
    assert "not done after 2 s" in str(failures[0])


RECIPE = """
name: cluster
rows_per_shard: 5
source: {{use: url_table, path: {data}}}
stages:
  toy_length: {{pause_s: {pause}}}
  toy_gpu: {{}}
  toy_rank: {{}}
filters:
  long: {{use: where, expression: "rank > 3 and device is not None", on_null: drop}}
"""


def write_texts(path: Path, count: int) -> None:
    lines = [json.dumps({"url": f"http://h/{i}", "text": "x" * (i % 13)}) for i in range(count)]
    path.write_text("\n".join(lines))


SCRIPT = """
import json, sys, threading, time
import ray, winnow_toy
from ray.cluster_utils import Cluster
from winnow.pipeline.recipe import load_recipe
from winnow.pipeline.run import RunOptions, run_recipe
recipe, workspace, lose = sys.argv[1:]
fast = dict(health_check_initial_delay_ms=0, health_check_period_ms=500,
            health_check_failure_threshold=2, health_check_timeout_ms=500)
cluster = Cluster(initialize_head=True, connect=False, head_node_args=dict(
    num_cpus=0, object_store_memory=100 << 20, include_dashboard=False, _system_config=fast))
nodes = [cluster.add_node(num_cpus=2, num_gpus=1, object_store_memory=100 << 20) for _ in range(2)]
cluster.wait_for_nodes()
if lose == "lose":
    threading.Timer(4.0, lambda: cluster.remove_node(nodes[0], allow_graceful=False)).start()
report = run_recipe(load_recipe(recipe), RunOptions(
    workspace=workspace, executor="ray", address=cluster.address))
from winnow.contracts.errors import SetupError
from winnow.contracts.stage import Resources
from winnow.pipeline.executor_ray import check_fits
ray.init(address=cluster.address, log_to_driver=False)
check_fits(Resources(num_cpus=2, num_gpus=1), "this")
try:
    check_fits(Resources(num_cpus=3), "that")
except SetupError as error:
    print(error, file=sys.stderr)
print(json.dumps([report.exit_code, dict(report.summary), [str(f) for f in report.failures]]))
ray.shutdown(); cluster.shutdown()
"""


@pytest.mark.parametrize("lose", ["keep", "lose"])
def test_two_nodes_with_logical_gpus_and_a_workspace_on_s3(
    s3_bucket: str, tmp_path: Path, lose: str
) -> None:
    """The same recipe on two nodes; one is lost in mid-run; the columns come out the same."""
    write_texts(tmp_path / "in.jsonl", 60)
    recipe_file = tmp_path / "r.yaml"
    pause = 0.5 if lose == "lose" else 0.0
    recipe_file.write_text(RECIPE.format(data=tmp_path / "in.jsonl", pause=pause))
    workspace = f"{s3_bucket}/cluster-{lose}"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(recipe_file), workspace, lose],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # Four CPUs in all, but two a machine.
    assert "that needs 3 CPUs and 0 GPUs on one machine; the cluster has" in done.stderr
    code, summary, failures = json.loads(done.stdout.strip().splitlines()[-1])
    assert (code, failures) == (0, [])
    assert summary["rows"] == 60
    lengths = [i % 13 for i in range(60)]
    expected = sum(sum(0 < m < n for m in lengths) > 3 for n in lengths)
    assert summary["kept"] == expected
    storage = Storage(workspace)
    folders = Counter(name.rsplit("-", 1)[0] for name in storage.names("columns"))
    assert folders == {"toy_length": 1, "toy_gpu": 1, "toy_rank": 1}


def test_address_with_a_local_workspace_is_refused(tmp_path: Path) -> None:
    write_texts(tmp_path / "in.jsonl", 3)
    recipe = parse_recipe(RECIPE.format(data=tmp_path / "in.jsonl", pause=0))
    options = RunOptions(workspace=str(tmp_path / "ws"), address="10.0.0.1:6379")
    with pytest.raises(SetupError, match="object store URL, or say --shared-filesystem"):
        run_recipe(recipe, options)
    assert not (tmp_path / "ws").exists()


def test_a_foreign_models_folder_in_the_working_directory_is_harmless(tmp_path: Path) -> None:
    for room in ("models", "stages", "filters", "pipeline", "contracts"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text("raise RuntimeError('a foreign package')")
    write_texts(tmp_path / "in.jsonl", 20)
    text = RECIPE.format(data=tmp_path / "in.jsonl", pause=0).replace("  toy_gpu: {}\n", "")
    (tmp_path / "r.yaml").write_text(text.replace(" and device is not None", ""))
    command = "import winnow_toy; from winnow.pipeline.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", command, "run", "r.yaml", "--executor", "ray", "--no-report"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 read" in done.stdout
