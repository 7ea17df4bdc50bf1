"""Where a run's units run. Ray itself is tested with its executor; here it is only asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from winnow_shards import write_jsonl

from winnow.contracts.errors import SetupError
from winnow.contracts.stage import Resources, WorkerOptions
from winnow.pipeline import placement
from winnow.pipeline.executor import Executor, Outcome
from winnow.pipeline.executor_inprocess import InProcessExecutor
from winnow.pipeline.placement import AUTO_RAY_ROWS, Placement, fetches, in_process, keys_of
from winnow.pipeline.plan import Plan, make_plan
from winnow.pipeline.recipe import parse_recipe
from winnow.pipeline.run import RunOptions
from winnow.pipeline.storage import Storage
from winnow.pipeline.units import Unit, UnitResult, WorkerContext

SMALL, GPU = Resources(), Resources(num_gpus=1)
STAGES = "{toy_length: , toy_rank: , repeated_rows: , toy_first: , toy_double: }"


class Cluster(Executor):
    """Stands in for Ray: notes what it was asked for, refuses what has more CPUs than 64."""

    def __init__(self, options: WorkerOptions) -> None:
        self.options, self.closed = options, 0
        self.prepared: list[tuple[list[Resources], list[Resources], dict[Resources, str]]] = []

    def prepare(
        self,
        shapes: Iterable[Resources],
        later: Iterable[Resources] = (),
        names: Mapping[Resources, str] | None = None,
    ) -> None:
        self.prepared.append((list(shapes), list(later), dict(names or {})))
        for shape in [*self.prepared[-1][0], *self.prepared[-1][1]]:
            if shape.num_cpus > 64:
                msg = f"no node has {shape.num_cpus} CPUs"
                raise SetupError(msg)

    def room(self, resources: Resources) -> int:
        return 0

    def submit(self, unit: Unit, progress: Callable[[int], None]) -> None:
        raise AssertionError

    def wait(self, timeout_s: float) -> list[tuple[Unit, Outcome]]:
        return []

    def close(self) -> None:
        self.closed += 1


@dataclass(frozen=True)
class Looking(Unit):
    """Counts the breadcrumbs that a crash at this moment would leave in the workspace."""

    storage: Storage

    @property
    def label(self) -> str:
        return "looking"

    def run(self, context: WorkerContext) -> UnitResult:
        assert context.breadcrumb is not None
        context.breadcrumb.set("stage", 0, 1)
        return UnitResult(rows=len(self.storage.names("attempts")))


@pytest.fixture
def clusters(monkeypatch: pytest.MonkeyPatch) -> list[Cluster]:
    """Every cluster that was asked for."""
    found: list[Cluster] = []

    def on_ray(worker: WorkerOptions, options: RunOptions) -> Cluster:
        found.append(Cluster(worker))
        return found[-1]

    monkeypatch.setattr(placement, "on_ray", on_ray)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    return found


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


def plan_of(tmp_path: Path, stages: str = "{toy_length: }") -> Plan:
    if not (tmp_path / "in").exists():
        write_jsonl(tmp_path / "in" / "a.jsonl", ["one", "two", "three"])
    return make_plan(parse_recipe(text_of(tmp_path, stages)))


def text_of(tmp_path: Path, stages: str) -> str:
    source = f"{{use: url_table, path: '{tmp_path / 'in'}'}}"
    return f"name: p\nsource: {source}\nstages: {stages}\n"


def place(tmp_path: Path, stack: ExitStack, plan: Plan | None = None, **options: Any) -> Placement:
    workspace = str(tmp_path / "ws")
    found = RunOptions(workspace=workspace, **options)
    return Placement(plan or plan_of(tmp_path), Storage(workspace), found, stack)


@pytest.mark.parametrize(
    ("options", "rows", "shape", "ray"),
    [
        ({}, AUTO_RAY_ROWS - 1, SMALL, False),
        ({}, AUTO_RAY_ROWS, SMALL, True),
        ({}, 1, GPU, True),
        ({}, AUTO_RAY_ROWS, Resources(num_cpus=5), False),
        ({}, AUTO_RAY_ROWS, Resources(num_cpus=4), True),
        ({"num_cpus": 1}, AUTO_RAY_ROWS, SMALL, False),
        ({"num_cpus": 8}, AUTO_RAY_ROWS, Resources(num_cpus=8), True),
        ({"address": "ray://h:1"}, 0, SMALL, True),
        ({"executor": "ray"}, 0, SMALL, True),
        ({"executor": "inprocess"}, 10 * AUTO_RAY_ROWS, GPU, False),
        ({"executor": "inprocess", "address": "ray://h:1"}, AUTO_RAY_ROWS, SMALL, False),
    ],
)
def test_ray_is_started_where_it_is_worth_it(
    tmp_path: Path, clusters: list[Cluster], stack: ExitStack, options: Any, rows: int,
    shape: Resources, ray: bool,
) -> None:  # fmt: skip
    executor = place(tmp_path, stack, **options).executor(rows, [shape])
    assert type(executor) is (Cluster if ray else InProcessExecutor)
    assert len(clusters) == ray


def test_an_executor_is_kept_and_ends_with_the_run(tmp_path: Path, clusters: list[Cluster]) -> None:
    with ExitStack() as stack:
        where = place(tmp_path, stack)
        small = where.executor(3, [SMALL])
        assert where.executor(5, [SMALL]) is small
        large = where.executor(AUTO_RAY_ROWS, [SMALL])
        assert large is not small
        assert where.executor(1, [SMALL]) is large
        assert where.executor(AUTO_RAY_ROWS, [GPU]) is large
        assert [c.closed for c in clusters] == [0]
    assert [c.closed for c in clusters] == [1]


@pytest.mark.parametrize(
    ("options", "stages", "ray"),
    [
        ({}, "{toy_length: }", False),
        ({}, "{toy_gpu: }", True),
        ({}, "{toy_length: , toy_rank: , toy_gpu: }", True),
        ({"executor": "inprocess"}, "{toy_gpu: }", False),
        ({"executor": "ray"}, "{toy_length: }", True),
        ({"executor": "ray"}, "{}", False),
        ({"address": "ray://h:1"}, "{toy_length: }", True),
    ],
)
def test_workers_are_reserved_where_ray_is_sure_to_be_needed(
    tmp_path: Path, clusters: list[Cluster], stack: ExitStack, options: Any, stages: str, ray: bool
) -> None:
    place(tmp_path, stack, plan_of(tmp_path, stages), **options).reserve()
    assert len(clusters) == ray
    assert not (tmp_path / "ws").exists()


def test_nothing_is_reserved_for_what_is_done(
    tmp_path: Path, clusters: list[Cluster], stack: ExitStack, run: Any
) -> None:
    plan = plan_of(tmp_path, "{toy_gpu: }")
    run(text_of(tmp_path, "{toy_gpu: }"))
    place(tmp_path, stack, plan).reserve()
    place(tmp_path, stack, plan, executor="ray").reserve()
    assert clusters == []
    # What --retry-failed finds to do is not known before.
    place(tmp_path, stack, plan, retry_failed=True).reserve()
    assert len(clusters) == 1
    write_jsonl(tmp_path / "in" / "b.jsonl", ["more"])
    place(tmp_path, stack, plan).reserve()
    assert len(clusters) == 2


def test_only_the_steps_that_are_left_get_workers(
    tmp_path: Path, clusters: list[Cluster], stack: ExitStack, run: Any
) -> None:
    plan_of(tmp_path)
    run(text_of(tmp_path, "{toy_length: }"))
    plan = plan_of(tmp_path, "{toy_length: , toy_gpu: }")
    place(tmp_path, stack, plan).reserve()
    ((now, later, _),) = clusters[0].prepared
    assert now == [GPU] and set(later) == {GPU}


def test_all_steps_are_named_by_what_they_need(
    tmp_path: Path, clusters: list[Cluster], stack: ExitStack
) -> None:
    plan = plan_of(tmp_path, "{toy_length: , toy_rank: , toy_gpu: }")
    place(tmp_path, stack, plan).reserve()
    ((now, later, names),) = clusters[0].prepared
    assert set(now) == {SMALL, GPU} and set(later) == {SMALL, GPU}
    assert {shape: set(who.split(", ")) for shape, who in names.items()} == {
        SMALL: {"toy_length", "toy_rank"},
        GPU: {"toy_gpu"},
    }


def test_what_the_cluster_cannot_hold_is_refused_before_anything_is_written(
    tmp_path: Path, clusters: list[Cluster], stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tmp_path, "{toy_gpu: }")
    wide = property(lambda self: Resources(num_cpus=65, num_gpus=1))
    monkeypatch.setattr(type(plan.entry("toy_gpu").stage), "resources", wide)
    plan = plan_of(tmp_path, "{toy_gpu: }")
    with pytest.raises(SetupError, match="no node has 65 CPUs"):
        place(tmp_path, stack, plan).reserve()
    assert not (tmp_path / "ws").exists()


@pytest.mark.parametrize("stages", ["{toy_length: }", "{toy_fetch: {folder: x}}"])
@pytest.mark.parametrize("executor", ["ray", "inprocess"])
def test_a_source_is_served_once_before_it_is_fetched_from(
    tmp_path: Path, clusters: list[Cluster], monkeypatch: pytest.MonkeyPatch, stages: str,
    executor: Any,
) -> None:  # fmt: skip
    plan = plan_of(tmp_path, stages)
    events: list[str] = []

    @contextmanager
    def serve(self: Any) -> Iterator[dict[str, str]]:
        events.append("up")
        yield {"scenes.test": "127.0.0.1:1", "mine.test": "127.0.0.1:2"}
        events.append("down")

    monkeypatch.setattr(type(plan.recipe.source), "serve", serve, raising=False)
    mine = {"mine.test": "10.0.0.1:3"}
    with ExitStack() as stack:
        where = place(tmp_path, stack, plan, executor=executor, resolve=mine)
        found: Any = where.executor(1, [SMALL])
        served = executor == "ray" and "fetch" in stages
        assert events == ["up"] * served
        where.serve()
        where.serve()
        assert events == ["up"]
        assert dict(where._worker_options().resolve) == {"scenes.test": "127.0.0.1:1", **mine}
        if served:
            assert found.options.resolve["scenes.test"] == "127.0.0.1:1"
    assert events == ["up", "down"]
    assert mine == {"mine.test": "10.0.0.1:3"}


def test_a_source_without_a_server_is_left_alone(tmp_path: Path, stack: ExitStack) -> None:
    where = place(tmp_path, stack, resolve={"a.test": "127.0.0.1:1"})
    where.serve()
    assert dict(where._worker_options().resolve) == {"a.test": "127.0.0.1:1"}


def test_fetching_and_keys_are_read_off_the_plan(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, STAGES)
    assert not fetches(plan.recipe.stages)
    assert [key for step in plan.steps for key in keys_of(step)] == [
        entry.key for entry in plan.recipe.stages
    ]
    assert ("toy_rank",) in [keys_of(step) for step in plan.steps]
    other = plan_of(tmp_path, "{toy_length: , toy_rank: , toy_fetch: {folder: x}}")
    assert fetches(other.recipe.stages)
    assert not fetches(e for e in other.recipe.stages if e.key != "toy_fetch")
    assert not fetches([])


@pytest.mark.parametrize(("root", "crumbs"), [("", 1), ("memory://placement", 0)])
def test_breadcrumbs_outlive_the_process_on_a_local_disk(
    tmp_path: Path, root: str, crumbs: int
) -> None:
    storage = Storage(root or str(tmp_path / "ws"))
    with closing(in_process(WorkerOptions(), storage)) as executor:
        executor.submit(Looking(storage), lambda rows: None)
        ((_, outcome),) = executor.wait(0.0)
    assert isinstance(outcome, UnitResult) and outcome.rows == crumbs
    assert storage.names("attempts") == []
