"""A run: read the source, annotate, select, export; only what is missing is computed."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from winnow.contracts.errors import SetupError
from winnow.contracts.exporter import ExportContext
from winnow.contracts.stage import Resources
from winnow.pipeline.columns import SOURCE
from winnow.pipeline.executor import Drive, Failure
from winnow.pipeline.export_plan import ExportPlan, plan_export
from winnow.pipeline.export_unit import FinishUnit, manifest_schema
from winnow.pipeline.fingerprint import digest
from winnow.pipeline.pass_unit import PassUnit
from winnow.pipeline.placement import Placement, fetches, keys_of
from winnow.pipeline.plan import Pass, Plan, check_models, make_plan
from winnow.pipeline.preflight import preflight_units
from winnow.pipeline.progress import Progress
from winnow.pipeline.recipe import ExportEntry, Recipe
from winnow.pipeline.selection import SUMMARY, select_unit
from winnow.pipeline.shards import IngestUnit, index_name, list_shards
from winnow.pipeline.storage import Storage
from winnow.pipeline.units import Unit, UnitResult, hides_interrupt
from winnow.pipeline.work import State

log = logging.getLogger(__name__)

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
    latest: bool = True
    """Whether ``winnow ledger``, ``explain`` and ``report`` are to show this run."""


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
        self._placement = Placement(plan, storage, options, stack)

    def execute(self) -> RunReport:
        recipe = self.plan.recipe
        files = recipe.source.files()
        self._placement.reserve()
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
            keys = [k for step in segment for k in keys_of(step)]
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
        first = [u for s in state.contents if (u := state.next_unit(s, passes)) is not None]
        rows = sum(state.missing_pass(p) for p in passes)
        rows = max(rows, sum(u.shard.num_rows for u in first if isinstance(u, PassUnit)))
        if first:
            if any(fetches(p.entries) for p in passes):
                self._placement.serve()
            self._preflight(state, passes, rows)
        for key in keys:
            state.write_record(key)
        if first:
            self._drive_passes(state, passes, first, rows)

    def _preflight(self, state: State, passes: list[Pass], rows: int) -> None:
        """Ask stages whether they can work at all; what they answer ends the run."""
        units = list(preflight_units(state, passes))
        if units:
            executor = self._placement.executor(rows, [p.resources for p in passes])
            for failure in Drive(executor=executor).run(units):
                if not failure.error.retryable:
                    raise SetupError(failure.error.message)

    def _drive_passes(self, state: State, passes: list[Pass], first: list[Unit], rows: int) -> None:

        def follow(unit: Unit, result: UnitResult) -> Iterator[Unit]:
            assert isinstance(unit, PassUnit)
            state.done(unit, result)
            following = state.next_unit(unit.shard, passes)
            if following is not None:
                yield following

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
        if not self._write_rows(step, plan, rows):
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
        done = self._drive(f"{step}: manifest", [unit], 0, rows=0)
        if done and plan.exchange is not None:
            plan.exchange.clear()

    def _write_rows(self, step: str, plan: ExportPlan, rows: int) -> bool:
        """Write an export's data files; False where some unit failed."""
        if plan.exchange is None:
            keyed = self._drive(f"{step}: keys", [plan.repeats], 0, rows=0)
            return keyed and self._drive(step, plan.buckets, rows, rows=rows)
        if not self._drive(f"{step}: exchange", plan.exchange.groups, rows, rows=rows):
            return False
        try:
            merges = plan.exchange.merges()
        except FileNotFoundError:
            if plan.done:  # by another run, which has removed the files of pass 1
                return True
            raise
        return self._drive(step, merges, rows, rows=rows)

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
        executor = self._placement.executor(rows, shapes or [u.resources for u in units])
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

    def _finished(self) -> RunReport:
        name = digest(self.plan.recipe.to_yaml())
        latest = {
            "recipe": name,
            "selection": self.report.selection,
            "exports": self.report.exports,
            "failures": [str(f) for f in self.report.failures],
        }
        if self.options.latest and (self.report.selection or self.report.failures):
            self.storage.replace(LATEST, json.dumps(latest, indent=1).encode())
        state = self.report.state
        if self.report.selection and not self.report.failures and state is not None:
            made = {
                "selection": self.report.selection,
                "exports": self.report.exports,
                "columns": {k: s.folder for k, s in state.sets.items() if k != SOURCE},
            }
            self.storage.replace(made_name(name), json.dumps(made, indent=1).encode())
        return self.report


def made_name(recipe: str) -> str:
    """Return the name of the file that says what a recipe's latest whole run made, for gc."""
    return f"runs/{recipe}.json"


def _segments(plan: Plan) -> list[list[Any]]:
    """Group the plan's steps: consecutive passes overlap; a global stage stands alone."""
    segments: list[list[Any]] = []
    for step in plan.steps:
        if isinstance(step, Pass) and segments and isinstance(segments[-1][0], Pass):
            segments[-1].append(step)
        else:
            segments.append([step])
    return segments


@contextmanager
def quiet_interrupt() -> Iterator[None]:
    """Let Ctrl-C end a run without a traceback: what is committed stays."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if not hides_interrupt(error):
            raise
        log.warning("stopped; what was done is kept: run the same command again to go on")
        raise SystemExit(130) from None
