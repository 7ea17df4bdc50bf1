"""Where a run's units run: in the driver's process or on Ray, and whether the cluster can."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from winnow.contracts.stage import Resources, Stage, WorkerOptions
from winnow.pipeline.executor import Executor
from winnow.pipeline.executor_inprocess import InProcessExecutor
from winnow.pipeline.plan import Pass, Plan, Step
from winnow.pipeline.recipe import StageEntry
from winnow.pipeline.storage import Storage
from winnow.pipeline.work import current_state

if TYPE_CHECKING:
    from winnow.pipeline.executor_ray import RayExecutor
    from winnow.pipeline.run import RunOptions

AUTO_RAY_ROWS = 20_000
"""With ``executor="auto"``, work on fewer rows than this stays in the driver's process."""


class Placement:
    """Chooses, starts and keeps a run's executor, and the server of its source.

    ``stack`` ends them with the run.
    """

    def __init__(self, plan: Plan, storage: Storage, options: RunOptions, stack: ExitStack) -> None:
        self.plan, self.storage, self.options = plan, storage, options
        self._stack = stack
        self._executor: Executor | None = None
        self._resolve: dict[str, str] = dict(options.resolve)
        self._serving = False
        self._open: list[Step] | None = None

    def reserve(self) -> None:
        """Get the workers of a run that is sure to need Ray before anything is written.

        A shape that the cluster cannot hold is refused here. Where the number of rows decides, or
        nothing is left to annotate, Ray may never start.
        """
        if self.options.executor == "inprocess":
            return
        self._open = self._open_steps()
        shapes = [_shape(step) for step in self._open]
        sure = self.options.executor == "ray" or bool(self.options.address)
        if shapes and (sure or any(s.num_gpus for s in shapes)):
            self.executor(0, shapes)
        self._open = None

    def _open_steps(self) -> list[Step]:
        """Return the steps that have work left, all of them where that is not known."""
        state = None if self.options.retry_failed else current_state(self.plan, self.storage)
        if state is None:
            return list(self.plan.steps)
        return [
            step
            for step in self.plan.steps
            if any(state.missing(k) or state.regated(k) for k in keys_of(step))
        ]

    def executor(self, rows: int, shapes: list[Resources]) -> Executor:
        """Return the executor; ``rows`` is the work that decides whether Ray is worth its start."""
        kind = self.options.executor
        wants_gpu = any(s.num_gpus for s in shapes)
        if kind == "auto":
            cpus = self.options.num_cpus or os.cpu_count() or 1
            fits = cpus > 1 and all(s.num_cpus <= cpus for s in shapes)
            big = rows >= AUTO_RAY_ROWS and fits
            kind = "ray" if big or self.options.address or wants_gpu else "inprocess"
        if isinstance(self._executor, InProcessExecutor) and kind == "ray":
            self._executor.close()
            self._executor = None
        if self._executor is None:
            self._executor = self._new_executor(kind, shapes)
            self._stack.callback(self._executor.close)
        return self._executor

    def _new_executor(self, kind: str, shapes: list[Resources]) -> Executor:
        if kind == "ray" and fetches(self.plan.recipe.stages):
            self.serve()
        options = self._worker_options()
        if kind == "inprocess":
            return in_process(options, self.storage)
        executor = on_ray(options, self.options)
        names: dict[Resources, str] = {}
        for step in self.plan.steps:
            names[_shape(step)] = ", ".join(filter(None, [names.get(_shape(step)), *keys_of(step)]))
        steps = self._open_steps() if self._open is None else self._open
        passes = [s.resources for s in steps if isinstance(s, Pass)]
        executor.prepare(passes or shapes, [*shapes, *map(_shape, steps)], names)
        return executor

    def _worker_options(self) -> WorkerOptions:
        return WorkerOptions(resolve=self._resolve, caps=self.plan.recipe.media)

    def serve(self) -> None:
        """Start the source's own server, if it has one, before anything is fetched from it."""
        serve = getattr(self.plan.recipe.source, "serve", None)
        if serve is not None and not self._serving:
            self._serving = True
            served = self._stack.enter_context(serve())
            self._resolve.update({k: v for k, v in served.items() if k not in self._resolve})


def in_process(worker: WorkerOptions, storage: Storage) -> InProcessExecutor:
    """Return an executor in this process, whose breadcrumbs outlive it where that is possible."""
    crumbs = Path(storage.path("attempts")) if storage.is_local else None
    return InProcessExecutor(worker, crumbs)


def on_ray(worker: WorkerOptions, options: RunOptions) -> RayExecutor:
    """Return an executor on Ray, which is started or joined; it has no workers yet."""
    from winnow.pipeline.executor_ray import RayExecutor

    return RayExecutor(
        worker,
        address=options.address,
        num_cpus=options.num_cpus,
        workers=options.workers,
        deadline_s=options.deadline_s,
    )


def fetches(entries: Iterable[StageEntry]) -> bool:
    """Whether a stage among these asks somebody else (it is not deterministic)."""
    return any(isinstance(e.stage, Stage) and not e.stage.deterministic for e in entries)


def keys_of(step: Step) -> tuple[str, ...]:
    """Return the keys of a step's stages."""
    return step.keys if isinstance(step, Pass) else (step.key,)


def _shape(step: Step) -> Resources:
    return step.resources if isinstance(step, Pass) else step.stage.resources
