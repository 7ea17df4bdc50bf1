"""Units on Ray: one pool of supervised workers per resource shape.

With ``ray_training.py`` the only file that imports Ray.

Each actor holds a Supervisor, whose child does the work, so that a crash never takes the actor
along and its signal is known. One unit is in flight per actor, Ray retries nothing, and a unit is
given only to an actor that has answered. See docs/adr/0003 and docs/adr/0004.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
import ray  # noqa: E402
from ray.exceptions import GetTimeoutError, RayActorError, RayError  # noqa: E402

from winnow.contracts.errors import SetupError, ShardError  # noqa: E402
from winnow.contracts.stage import Resources, WorkerOptions  # noqa: E402
from winnow.pipeline.executor import Executor, Outcome  # noqa: E402
from winnow.pipeline.supervisor import GRACE_S, Supervisor  # noqa: E402
from winnow.pipeline.units import Unit, UnitResult  # noqa: E402

log = logging.getLogger(__name__)

PLACEMENT_PATIENCE_S = 8.0


class Worker:
    """The actor: a supervisor that can say how far it is."""

    def __init__(self, options: WorkerOptions) -> None:
        self._supervisor = Supervisor(options)
        self._rows = 0
        self._lock = threading.Lock()

    def ready(self) -> str:
        """Answer; the driver gives work only to a worker that has."""
        return str(ray.get_runtime_context().get_node_id())

    def run(self, unit: Unit) -> UnitResult | ShardError:
        """Run a unit; a ShardError is a value, so that Ray does not wrap it."""
        try:
            return self._supervisor.run(unit, self._count)
        except ShardError as error:
            return error

    def rows(self) -> int:
        """Return the rows done since the last call."""
        with self._lock:
            rows, self._rows = self._rows, 0
        return rows

    def pids(self) -> tuple[int, int | None]:
        """Return the process ids of the actor and of its child."""
        return os.getpid(), self._supervisor.pid

    def leave(self) -> None:
        """End the child in the middle of what it does; it removes its files."""
        self._supervisor.leave()

    def _count(self, rows: int) -> None:
        with self._lock:
            self._rows += rows


@dataclass(slots=True, eq=False)
class _Slot:
    actor: Any
    ready: Any
    answered: bool = False
    unit: Unit | None = None
    call: Any = None
    progress: Callable[[int], None] | None = None
    polled: Any = None
    began: float = 0.0
    shown: int = 0


class RayExecutor(Executor):
    """Workers on a Ray cluster.

    address: None starts Ray on this machine; otherwise the address of a running cluster.
    workers: at most this many actors of each shape; None fills the cluster.
    deadline_s: a unit that takes longer is killed with its worker and tried again.
    """

    def __init__(
        self,
        options: WorkerOptions,
        *,
        address: str | None = None,
        num_cpus: int | None = None,
        workers: int | None = None,
        deadline_s: float = 3600.0,
    ) -> None:
        self._options, self._workers, self._deadline_s = options, workers, deadline_s
        self._owns_ray = start_ray(address, num_cpus)
        self._pools: dict[Resources, list[_Slot]] = {}

    def prepare(
        self,
        shapes: Iterable[Resources],
        later: Iterable[Resources] = (),
        names: Mapping[Resources, str] | None = None,
    ) -> None:
        """Divide the cluster among the shapes, those with GPUs first.

        ``later``: shapes that are needed when the others are idle; they get workers then.
        ``names``: what a message calls a shape's user. Raises SetupError for a shape that no node
        of the cluster can hold, and closes: nobody has this executor yet who could.
        """
        try:
            for shape in {*shapes, *later}:
                check_fits(shape, (names or {}).get(shape, "a stage"))
        except SetupError:
            self.close()
            raise
        total = ray.cluster_resources()
        cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
        ordered = sorted(set(shapes), key=lambda r: (-r.num_gpus, -r.num_cpus, r.memory_bytes))
        for index, shape in enumerate(ordered):
            kept = sum(other.num_cpus for other in ordered[index + 1 :])
            count = int((cpus - kept) // shape.num_cpus) if shape.num_cpus else int(cpus)
            if shape.num_gpus:
                count = min(count, int(gpus // shape.num_gpus))
            count = max(0, min(count, self._workers or count))
            cpus, gpus = cpus - count * shape.num_cpus, gpus - count * shape.num_gpus
            self._pools[shape] = [self._new_slot(shape) for _ in range(count)]

    def room(self, resources: Resources) -> int:
        if resources not in self._pools:
            check_fits(resources, "a stage")
        slots = self._pools.setdefault(resources, [])
        if not slots:
            slots.append(self._new_slot(resources))
        for slot in list(slots):
            self._check_ready(slot, resources)
        if not any(s.answered for s in slots):
            self._make_way(resources)
        return sum(1 for s in slots if s.answered and s.unit is None)

    def submit(self, unit: Unit, progress: Callable[[int], None]) -> None:
        slot = next(s for s in self._pools[unit.resources] if s.answered and s.unit is None)
        slot.unit, slot.progress, slot.began = unit, progress, time.monotonic()
        slot.shown = 0
        slot.call = slot.actor.run.remote(unit)

    def wait(self, timeout_s: float) -> list[tuple[Unit, Outcome]]:
        busy = {s.call: (shape, s) for shape, pool in self._pools.items() for s in pool if s.unit}
        if not busy:
            starting = [s.ready for pool in self._pools.values() for s in pool if not s.answered]
            if starting:
                ray.wait(starting, num_returns=1, timeout=timeout_s)
            return []
        done, _ = ray.wait(list(busy), num_returns=1, timeout=timeout_s)
        ended = self._overdue(busy, done)
        for call in done:
            shape, slot = busy[call]
            unit, outcome = slot.unit, self._outcome(shape, slot)
            assert unit is not None
            ended.append((unit, outcome))
        self._poll_progress()
        return ended

    def close(self) -> None:
        _end([slot for pool in self._pools.values() for slot in pool])
        self._pools.clear()
        if self._owns_ray:
            ray.shutdown()

    def workers(self) -> list[tuple[int, int | None]]:
        """Return the process ids of all answered workers (actor, child)."""
        answered = [s for pool in self._pools.values() for s in pool if s.answered]
        return [ray.get(s.actor.pids.remote()) for s in answered]

    def _overdue(
        self, busy: dict[Any, tuple[Resources, _Slot]], done: list[Any]
    ) -> list[tuple[Unit, Outcome]]:
        """End workers whose unit hangs: that costs an attempt, a hang would cost the run."""
        ended: list[tuple[Unit, Outcome]] = []
        now = time.monotonic()
        for call, (shape, slot) in busy.items():
            if call in done or slot.unit is None or now - slot.began < self._deadline_s:
                continue
            _end([slot])
            self._replace(shape, slot)
            msg = f"not done after {self._deadline_s:g} s (--deadline)"
            error = ShardError(msg)
            ended.append((slot.unit, error))
        return ended

    def _outcome(self, shape: Resources, slot: _Slot) -> Outcome:
        call, slot.unit, slot.call, slot.polled = slot.call, None, None, None
        try:
            result: Outcome = ray.get(call)
            if isinstance(result, UnitResult) and slot.progress and result.rows > slot.shown:
                slot.progress(result.rows - slot.shown)
            return result
        except RayActorError as error:
            self._replace(shape, slot)
            return ShardError(f"the worker's process or node was lost: {_first_line(error)}")
        except RayError as error:
            return ShardError(f"Ray: {_first_line(error)}")

    def _poll_progress(self) -> None:
        for pool in self._pools.values():
            for slot in pool:
                if slot.unit is None or slot.progress is None:
                    continue
                if slot.polled is None:
                    slot.polled = slot.actor.rows.remote()
                    continue
                try:
                    rows = ray.get(slot.polled, timeout=0)
                except GetTimeoutError:
                    continue
                except RayError:
                    rows = 0
                slot.polled = None
                if rows:
                    slot.shown += rows
                    slot.progress(rows)

    def _check_ready(self, slot: _Slot, shape: Resources) -> None:
        if slot.answered:
            return
        try:
            ray.get(slot.ready, timeout=0)
            slot.answered = True
        except GetTimeoutError:
            pass
        except RayActorError:
            self._replace(shape, slot)

    def _make_way(self, shape: Resources) -> None:
        """End an idle worker of another shape where none of this one can be placed.

        Whole numbers add up and still do not fit: two small workers can fill the only node that
        has a GPU.
        """
        everyone = [s for pool in self._pools.values() for s in pool]
        working = any(s.unit is not None for s in everyone)
        patience = PLACEMENT_PATIENCE_S if working else PLACEMENT_PATIENCE_S / 8
        now = time.monotonic()
        if now - min(s.began for s in self._pools[shape]) < patience:
            return
        for other, pool in self._pools.items():
            idle = [s for s in pool if s.answered and s.unit is None]
            if other != shape and idle:
                _end(idle[:1])
                pool.remove(idle[0])
                for slot in self._pools[shape]:
                    slot.began = now
                return

    def _replace(self, shape: Resources, slot: _Slot) -> None:
        pool = self._pools[shape]
        pool[pool.index(slot)] = self._new_slot(shape)

    def _new_slot(self, shape: Resources) -> _Slot:
        remote: Any = ray.remote(Worker)
        actor = remote.options(
            num_cpus=shape.num_cpus,
            num_gpus=shape.num_gpus,
            memory=shape.memory_bytes or None,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=2,
        ).remote(self._options)
        return _Slot(actor=actor, ready=actor.ready.remote(), began=time.monotonic())


def _end(slots: Sequence[_Slot]) -> None:
    """End workers. Those that have begun first end their children: Ray would kill these too, and
    with them what removes their files."""
    try:
        leaving = [slot.actor.leave.remote() for slot in slots if slot.answered]
        if leaving:
            ray.wait(leaving, num_returns=len(leaving), timeout=GRACE_S + 2)
    finally:
        for slot in slots:
            ray.kill(slot.actor)


def check_fits(shape: Resources, who: str) -> None:
    """Raise SetupError for a shape that no node of the cluster can hold, however idle it is."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    needs = {"CPU": shape.num_cpus, "GPU": shape.num_gpus, "memory": float(shape.memory_bytes)}
    if any(all(node.get(k, 0.0) >= need for k, need in needs.items()) for node in nodes):
        return
    found = sorted({_sizes({k: node.get(k, 0.0) for k in needs}) for node in nodes})
    msg = (
        f"{who} needs {_sizes(needs)} on one machine; the cluster has machines with "
        f"{'; '.join(found) or 'nothing'}"
    )
    raise SetupError(msg)


def _sizes(resources: Mapping[str, float]) -> str:
    text = f"{resources['CPU']:g} CPUs and {resources['GPU']:g} GPUs"
    memory = resources["memory"]
    return f"{text} and {memory / 2**30:.1f} GiB of memory" if memory else text


def start_ray(address: str | None, num_cpus: int | None) -> bool:
    """Start Ray here, or join the cluster at ``address``; return whether it is ours to stop."""
    if ray.is_initialized():
        return False
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, **options)
        else:
            ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        msg = f"Ray did not start at {address or 'this machine'}: {_first_line(error)}"
        raise SetupError(msg) from None
    return True


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]
