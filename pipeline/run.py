"""A run: read the source, annotate, select, export; only what is missing is computed."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from winnow.contracts.errors import SetupError
from winnow.contracts.exporter import ExportContext
from winnow.contracts.stage import Resources, Stage, WorkerOptions
from winnow.pipeline.executor import Drive, Executor, Failure
from winnow.pipeline.executor_inprocess import InProcessExecutor
from winnow.pipeline.export_plan import plan_export
from winnow.pipeline.export_unit import FinishUnit, manifest_schema
from winnow.pipeline.fingerprint import digest
from winnow.pipeline.pass_unit import PassUnit
from winnow.pipeline.plan import Pass, Plan, check_models, make_plan
from winnow.pipeline.progress import Progress
from winnow.pipeline.recipe import ExportEntry, Recipe, StageEntry
from winnow.pipeline.selection import SUMMARY, select_unit
from winnow.pipeline.shards import IngestUnit, Shard, index_name, list_shards
from winnow.pipeline.storage import Storage
from winnow.pipeline.units import Unit, UnitResult
from winnow.pipeline.work import State

log = logging.getLogger(__name__)

AUTO_RAY_ROWS = 20_000
"""With ``executor="auto"``, work on fewer rows than this stays in the driver's process."""
LATEST = "runs/_latest.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """How and where to run; nothing here can change an output."""

    workspace: str
    executor: Literal["auto", "ray", "inprocess"] = "auto"
    address: str | None = None
    shared_filesystem: bool = False
    num_cpus: int | None = None
    workers: int | None = None
    retry_failed: bool = False
    deadline_s: float = 3600.0
    resolve: Mapping[str, str] = field(default_factory=dict)


@dataclass(kw_only=True, slots=True)
class RunReport:
    """What a run did. ``exit_code`` is 0, or 1 where some units failed."""

    selection: str = ""
    summary: Mapping[str, Any] = field(default_factory=dict)
    exports: dict[str, str] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    counters: dict[str, Counter[str]] = field(default_factory=dict)
    computed_rows: int = 0
    state: State | None = None

    @property
    def exit_code(self) -> int:
        """0 done, 1 some shards failed."""
        return 1 if self.failures else 0


def run_recipe(recipe: Recipe, options: RunOptions, progress: Progress | None = None) -> RunReport:
    """Run a recipe. Raises RunError before any work; failures of units are in the report."""
    storage = Storage(options.workspace)
    if options.address and storage.is_local and not options.shared_filesystem:
        msg = (
            f"--address with the local workspace {options.workspace!r}: workers on other machines "
            "cannot see it; use an object store URL, or say --shared-filesystem"
        )
        raise SetupError(msg)
    plan = make_plan(recipe)
    check_models(plan)
    storage.check_writable()
    with ExitStack() as stack:
        return _Run(plan, storage, options, progress or Progress(), stack).execute()


class _Run:
    def __init__(
        self,
        plan: Plan,
        storage: Storage,
        options: RunOptions,
        progress: Progress,
        stack: ExitStack,
    ) -> None:
        self.plan, self.storage, self.options, self.progress = plan, storage, options, progress
        self.report = RunReport()
        self._stack = stack
        self._executor: Executor | None = None
        self._resolve: dict[str, str] = dict(options.resolve)
        self._serving = False

    def execute(self) -> RunReport:
        recipe = self.plan.recipe
        files = recipe.source.files()
        text = recipe.to_yaml()
        self.storage.put(f"runs/{digest(text)}.yaml", text.encode())
        names = self._ingest(files)
        if self.report.failures:
            return self._finished()
        shards = tuple(list_shards(self.storage, names))
        state = State(
            plan=self.plan,
            storage=self.storage,
            shards=shards,
            retry_failed=self.options.retry_failed,
        )
        self.report.state = state
        if not self._annotate(state):
            return self._finished()
        summary = self._select(state)
        if summary is not None:
            for entry in recipe.exports:
                self._export(state, entry, summary)
        return self._finished()

    def _ingest(self, files: Iterable[Any]) -> list[str]:
        recipe, units, names = self.plan.recipe, [], []
        for file in files:
            name = index_name(recipe.source, file, recipe.rows_per_shard)
            names.append(name)
            if not self.storage.exists(name):
                unit = IngestUnit(
                    storage=self.storage,
                    source=recipe.source,
                    file=file,
                    rows_per_shard=recipe.rows_per_shard,
                    index_name=name,
                )
                units.append(unit)
        self._drive("read", units, 0, rows=0)
        return names

    def _annotate(self, state: State) -> bool:
        """Run all steps; False where a failure left a global stage without its input."""
        for segment in _segments(self.plan):
            keys = [k for step in segment for k in _keys(step)]
            for key in keys:
                state.enter(key)
            if isinstance(segment[0], Pass):
                self._run_passes(state, [s for s in segment if isinstance(s, Pass)], keys)
            elif keys[0] not in state.committed:
                rows = sum(s.num_rows for s in state.shards)
                self._drive(keys[0], [state.global_unit(keys[0])], rows, rows=rows)
            if self.report.failures:
                return False
        return True

    def _run_passes(self, state: State, passes: list[Pass], keys: list[str]) -> None:
        for key in keys:
            state.write_record(key)
        first = [u for s in state.contents if (u := state.next_unit(s, passes)) is not None]
        if not first:
            return
        rows = sum(state.missing_pass(p) for p in passes)
        rows = max(rows, sum(u.shard.num_rows for u in first if isinstance(u, PassUnit)))
        self._drive_passes(state, passes, first, rows)

    def _drive_passes(self, state: State, passes: list[Pass], first: list[Unit], rows: int) -> None:

        def follow(unit: Unit, result: UnitResult) -> Iterator[Unit]:
            assert isinstance(unit, PassUnit)
            state.done(unit, result)
            following = state.next_unit(unit.shard, passes)
            if following is not None:
                yield following

        if any(_fetches(p.entries) for p in passes):
            self._serve()
        step = " > ".join(k for p in passes for k in p.keys)
        self._drive(
            step, first, rows, rows=rows, follow=follow, shapes=[p.resources for p in passes]
        )

    def _select(self, state: State) -> Mapping[str, Any] | None:
        unit = select_unit(state)
        name = f"ledger/{unit.selection}/{SUMMARY}"
        if not self.storage.exists(name):
            self._drive("select", [unit], sum(s.num_rows for s in state.shards), rows=0)
        if self.report.failures:
            return None
        summary: Mapping[str, Any] = json.loads(self.storage.read(name))
        self.report.selection, self.report.summary = unit.selection, summary
        return summary

    def _export(self, state: State, entry: ExportEntry, summary: Mapping[str, Any]) -> None:
        plan = plan_export(state, entry, summary)
        self.report.exports[entry.key] = plan.job.folder
        if plan.done:
            return
        rows = int(summary["kept"])
        step = f"export {entry.key}"
        if not self._drive(f"{step}: keys", [plan.repeats], 0, rows=0):
            return
        if not self._drive(step, plan.buckets, rows, rows=rows):
            return
        recipe = self.plan.recipe
        context = ExportContext(
            name=entry.key,
            recipe_name=recipe.name,
            recipe_yaml=recipe.to_yaml(),
            selection=self.report.selection,
            schema=manifest_schema(plan.job.annotations),
            funnel=tuple({**f, "description": f["rule"]} for f in summary["funnel"]),
            rows_read=int(summary["rows"]),
            rows_kept=rows,
            license=recipe.license,
            description=recipe.description,
        )
        unit = FinishUnit(job=plan.job, names=plan.names, context=context)
        self._drive(f"{step}: manifest", [unit], 0, rows=0)

    def _drive(
        self,
        step: str,
        units: Iterable[Unit],
        total: int,
        *,
        rows: int,
        follow: Any = lambda unit, result: (),
        shapes: list[Resources] | None = None,
    ) -> bool:
        """Run units; ``rows`` is the work that decides whether Ray is worth its start."""
        units = list(units)
        if not units:
            return True
        executor = self._get_executor(rows, shapes or [u.resources for u in units])
        self.progress.start(step, total)

        def followed(unit: Unit, result: UnitResult) -> Iterable[Unit]:
            self._count(result)
            return list(follow(unit, result))

        drive = Drive(
            executor=executor,
            follow=followed,
            progress=lambda unit, rows: self.progress.advance(step, rows),
        )
        failures = drive.run(units)
        self.report.failures += failures
        self.progress.finish(step)
        return not failures

    def _count(self, result: UnitResult) -> None:
        for key, counters in result.counters.items():
            tally = self.report.counters.setdefault(key, Counter())
            for name, value in counters.items():
                tally[name] += value  # type: ignore[assignment]
            self.report.computed_rows += int(counters.get("rows", 0))

    def _get_executor(self, rows: int, shapes: list[Resources]) -> Executor:
        kind = self.options.executor
        wants_gpu = any(s.num_gpus for s in shapes)
        if kind == "auto":
            big = rows >= AUTO_RAY_ROWS and (os.cpu_count() or 1) > 1
            kind = "ray" if big or self.options.address or wants_gpu else "inprocess"
        if isinstance(self._executor, InProcessExecutor) and kind == "ray":
            self._executor.close()
            self._executor = None
        if self._executor is None:
            self._executor = self._new_executor(kind, shapes)
            self._stack.callback(self._executor.close)
        return self._executor

    def _new_executor(self, kind: str, shapes: list[Resources]) -> Executor:
        if kind == "ray" and _fetches(self.plan.recipe.stages):
            self._serve()
        options = self._worker_options()
        if kind == "inprocess":
            crumbs = Path(self.storage.path("attempts")) if self.storage.is_local else None
            return InProcessExecutor(options, crumbs)
        from winnow.pipeline.executor_ray import RayExecutor

        executor = RayExecutor(
            options,
            address=self.options.address,
            num_cpus=self.options.num_cpus,
            workers=self.options.workers,
            deadline_s=self.options.deadline_s,
        )
        steps = self.plan.steps
        passes = {s.resources for s in steps if isinstance(s, Pass)}
        later = [s.stage.resources for s in steps if not isinstance(s, Pass)]
        executor.prepare(passes or shapes, [*shapes, *later])
        return executor

    def _worker_options(self) -> WorkerOptions:
        return WorkerOptions(resolve=self._resolve, caps=self.plan.recipe.media)

    def _serve(self) -> None:
        """Start the source's own server, if it has one, before anything is fetched from it."""
        serve = getattr(self.plan.recipe.source, "serve", None)
        if serve is not None and not self._serving:
            self._serving = True
            served = self._stack.enter_context(serve())
            self._resolve.update({k: v for k, v in served.items() if k not in self._resolve})

    def _finished(self) -> RunReport:
        latest = {
            "recipe": digest(self.plan.recipe.to_yaml()),
            "selection": self.report.selection,
            "exports": self.report.exports,
            "failures": [str(f) for f in self.report.failures],
        }
        if self.report.selection or self.report.failures:
            self.storage.replace(LATEST, json.dumps(latest, indent=1).encode())
        return self.report


def _fetches(entries: Iterable[StageEntry]) -> bool:
    return any(isinstance(e.stage, Stage) and not e.stage.deterministic for e in entries)


def _segments(plan: Plan) -> list[list[Any]]:
    """Group the plan's steps: consecutive passes overlap; a global stage stands alone."""
    segments: list[list[Any]] = []
    for step in plan.steps:
        if isinstance(step, Pass) and segments and isinstance(segments[-1][0], Pass):
            segments[-1].append(step)
        else:
            segments.append([step])
    return segments


def _keys(step: Any) -> tuple[str, ...]:
    return step.keys if isinstance(step, Pass) else (step.key,)


@contextmanager
def quiet_interrupt() -> Iterator[None]:
    """Let Ctrl-C end a run without a traceback: what is committed stays."""
    try:
        yield
    except KeyboardInterrupt:
        log.warning("stopped; what was done is kept: run the same command again to go on")
        raise SystemExit(130) from None


def current_shards(plan: Plan, storage: Storage) -> tuple[Shard, ...] | None:
    """Return the shards of a source that was read before; None where some file was not."""
    recipe = plan.recipe
    names = [index_name(recipe.source, f, recipe.rows_per_shard) for f in recipe.source.files()]
    if not all(storage.exists(name) for name in names):
        return None
    return tuple(list_shards(storage, names))


def current_state(plan: Plan, storage: Storage) -> State | None:
    """Return what a workspace holds of a plan; None where some source file was not read yet."""
    shards = current_shards(plan, storage)
    if shards is None:
        return None
    state = State(plan=plan, storage=storage, shards=shards)
    for entry in plan.recipe.stages:
        state.enter(entry.key)
    return state
