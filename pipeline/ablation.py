"""Running a study: freeze the evaluation sets, train the scorers, select, train, measure.

Every step is cached under what decides it, so the same command again does only what is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from winnow.contracts.errors import SetupError, ShardError
from winnow.contracts.stage import WorkerOptions
from winnow.contracts.trial import Dataset, Trainer
from winnow.pipeline.arms import EXPORT, Recipes
from winnow.pipeline.executor import Drive, Executor, Failure
from winnow.pipeline.executor_group import GroupExecutor
from winnow.pipeline.placement import AUTO_RAY_ROWS, in_process, on_ray
from winnow.pipeline.progress import Progress
from winnow.pipeline.recipe import Recipe
from winnow.pipeline.run import RunOptions, run_recipe
from winnow.pipeline.storage import Storage
from winnow.pipeline.study import ArmEntry, Study
from winnow.pipeline.study_checks import check_apart, check_judged, check_sets
from winnow.pipeline.study_describe import check_described, describe
from winnow.pipeline.study_models import named_models
from winnow.pipeline.study_plan import choose_arms, plan_study
from winnow.pipeline.study_record import Record, record_design
from winnow.pipeline.study_settings import Learned, Scorer
from winnow.pipeline.trial import Exported, TrialSpec, exported
from winnow.pipeline.trial_unit import TrialUnit

if TYPE_CHECKING:
    from winnow.pipeline.executor_ray import RayExecutor

SETS = ("validation", "test")
TRIAL_DEADLINE_S = 7 * 24 * 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialEntry:
    """One trial of the grid. kind: "arm", "random" (the control of ``arm``) or "oracle"."""

    arm: ArmEntry
    kind: str
    budget: int
    spec: TrialSpec

    @property
    def name(self) -> str:
        """What a message calls it."""
        what = f"random as many as {self.arm.name}" if self.kind == "random" else self.arm.name
        return f"{what}, budget {self.budget}, seed {self.spec.seed}"


@dataclass(kw_only=True, slots=True)
class Prepared:
    """Everything that is needed before the first trial: frozen sets, arms, controls."""

    sets: tuple[Exported, ...]
    arms: dict[str, Exported]
    randoms: dict[tuple[str, int], Exported]
    pool_rows: int
    warnings: tuple[str, ...] = ()
    described: dict[str, dict[str, float | None]] = field(default_factory=dict)


@dataclass(kw_only=True, slots=True)
class Outcome:
    """A study that was run. ``failures`` by fingerprint."""

    prepared: Prepared
    trials: list[TrialEntry]
    record: Record = Record()
    failures: dict[str, str] = field(default_factory=dict)


def run_study(
    study: Study,
    options: RunOptions,
    progress: Progress | None = None,
    *,
    arms: Sequence[str] = (),
    seeds: Sequence[int] = (),
    budgets: Sequence[int] = (),
    controls: bool = True,
    train: bool = True,
) -> Outcome:
    """Run a study, or the named part of it. Failed trials are in the outcome.

    train: False leaves out the trials that are not there yet.

    Fails: RecipeError and SetupError before any training; ShardError where a selection or a
    scorer cannot be made.
    """
    with ExitStack() as stack:
        run = _Run(study, options, progress or Progress(), stack, may_train=train)
        seeds, budgets = seeds or study.settings.seeds, budgets or study.settings.budgets
        prepared = run.prepare(arms, seeds, controls)
        trials = run.grid(prepared, seeds, budgets)
        record = record_design(run.storage, study)
        if not train:
            trials = [t for t in trials if run.is_done(t, prepared.sets)]
        names = {t.spec.fingerprint(): t.name for t in trials}
        failures = run.train([t.spec for t in trials], prepared.sets, names)
    return Outcome(prepared=prepared, trials=trials, record=record, failures=failures)


class _Run:
    def __init__(
        self,
        study: Study,
        options: RunOptions,
        progress: Progress,
        stack: ExitStack,
        *,
        may_train: bool,
    ) -> None:
        self.study, self.options, self.progress = study, options, progress
        self.storage = Storage(options.workspace)
        self.recipes = Recipes(study)
        self._stack = stack
        self._own: list[tuple[str, Exported]] = []
        """What models of a recipe of their own learned from; stages use them on the pool."""
        self.may_train = may_train

    def prepare(self, arms: Sequence[str], seeds: Sequence[int], controls: bool) -> Prepared:
        """Make every selection; nothing trains before all of them can be trained on."""
        chosen = choose_arms(self.study, arms)
        plan = plan_study(self.study, chosen)
        sets = tuple(
            self._export(self.recipes.evaluation(name), name)
            for name in SETS
            if name in self.study.settings.evaluation
        )
        check_sets(self.storage, self.study, sets)
        manifests = [self.storage.url(f"{s.folder}/manifest.parquet") for s in sets]
        self.recipes = Recipes(self.study, manifests=manifests)
        self._train_models(sets)
        pool_rows = self._annotate()
        if pool_rows >= AUTO_RAY_ROWS and self.options.executor == "auto":
            self._hold_ray()
        self._train_scorers(sets)
        self._annotate_scores()
        step = "selections"
        self.progress.start(step, len(chosen), "selections")
        made, randoms = {}, {}
        recipes = {arm.name: self.recipes.arm(arm) for arm in chosen}
        for arm in chosen:
            made[arm.name] = self._export(recipes[arm.name], arm.name, quiet=True)
            count = made[arm.name].num_rows
            if controls and arm.rows.random and not arm.is_oracle and count < pool_rows:
                for seed in seeds:
                    recipe = self.recipes.random(arm, count, seed)
                    randoms[arm.name, seed] = self._export(recipe, recipe.name, quiet=True)
            self.progress.advance(step, 1)
        self.progress.finish(step)
        check_apart(self.storage, sets, [*made.values(), *randoms.values()])
        check_judged(self.storage, self._own, made.values())
        # All arms have the same columns.
        check_described(self.storage, self.study.settings.describe, next(iter(made.values())))
        prepared = Prepared(sets=sets, arms=made, randoms=randoms, pool_rows=pool_rows)
        prepared.warnings = plan.warnings
        prepared.described = {
            arm.name: describe(
                self.storage,
                made[arm.name],
                recipes[arm.name],
                self.study.settings.describe,
                getattr(self.study.changed_trainer(arm.rows), "caption_choices", None),
            )
            for arm in chosen
        }
        return prepared

    def grid(
        self, prepared: Prepared, seeds: Iterable[int], budgets: Iterable[int]
    ) -> list[TrialEntry]:
        """Return every trial, cheap budgets first, and check that each can train."""
        by_name = {a.name: a for a in self.study.arms}
        trials = []
        for budget in sorted(budgets):
            for seed in seeds:
                for name, data in prepared.arms.items():
                    arm = by_name[name]
                    kind = "oracle" if arm.is_oracle else "arm"
                    trials.append(self._entry(arm, kind, data, budget, seed))
                    control = prepared.randoms.get((name, seed))
                    if control is not None:
                        trials.append(self._entry(arm, "random", control, budget, seed))
        for trial in trials:
            self._check(trial)
        return trials

    def train(
        self, specs: Sequence[TrialSpec], sets: tuple[Exported, ...], names: dict[str, str]
    ) -> dict[str, str]:
        """Train and measure what is missing; return fingerprint -> error of what failed."""
        units: dict[str, TrialUnit] = {}
        for spec in specs:
            key = spec.fingerprint()
            unit = self._unit(spec, sets, names.get(key, ""))
            if not unit.is_done():
                units.setdefault(key, unit)
        if not units:
            return {}
        step = f"{len(units)} trials" if len(units) > 1 else "1 trial"
        num_samples = sum(unit.spec.num_samples for unit in units.values())
        self.progress.start(step, num_samples, "samples")
        together = [u for u in units.values() if u.group_size > 1]
        alone = [u for u in units.values() if u not in together]
        failures = self._drive(together, step) + self._drive(alone, step)
        self.progress.finish(step)
        return {_key(failure): str(failure.error) for failure in failures}

    def is_done(self, trial: TrialEntry, sets: tuple[Exported, ...]) -> bool:
        """Whether a trial is trained and measured."""
        return self._unit(trial.spec, sets).is_done()

    def _unit(self, spec: TrialSpec, sets: tuple[Exported, ...], name: str = "") -> TrialUnit:
        evaluations = self.study.evaluations if sets else {}
        return TrialUnit(
            storage=self.storage, spec=spec, evaluations=evaluations, sets=sets, name=name
        )

    def _drive(self, units: list[TrialUnit], step: str) -> list[Failure]:
        """Run units that are all of one worker, or all of several."""
        if not units:
            return []
        # Closed at once: idle workers would hold the machine against whatever comes next.
        with closing(self._executor(units)) as executor:
            drive = Drive(
                executor=executor,
                progress=lambda unit, samples: self.progress.advance(step, samples),
            )
            return drive.run(units)

    def _train_models(self, sets: tuple[Exported, ...]) -> None:
        """Train the study's own models, each after the stages that come before its first use."""
        learned: dict[str, str | list[str]] = {}
        for name in self.study.models:
            self._require_local(f"the model {name}")
            model = self.study.settings.models[name]
            if model.recipe is None:
                self._annotate()
            folds = range(model.folds) if model.folds else (None,)
            trainer = self.study.model_trainer(name, learned)
            specs = [self._spec(self.recipes.model(name, f), model, trainer) for f in folds]
            check_apart(self.storage, sets, [spec.train for spec in specs])
            if model.recipe is not None and name in set(named_models(self.study.settings.stages)):
                self._own += [(name, spec.train) for spec in specs]
            labels = [
                f"the model {name}{'' if f is None else f', without fold {f}'}" for f in folds
            ]
            self._train_first(dict(zip(labels, specs, strict=True)))
            folders = [self.storage.path(spec.checkpoint) for spec in specs]
            learned[name] = folders if model.folds else folders[0]
            self.recipes = Recipes(
                self.study, manifests=self.recipes.manifests, learned=dict(learned)
            )

    def _spec(self, recipe: Recipe, learner: Learned | Scorer, trainer: Trainer) -> TrialSpec:
        """Return the training of something that the arms need; its selection is made here."""
        return TrialSpec(
            trainer=trainer,
            train=self._export(recipe, recipe.name, quiet=learner.recipe is None),
            num_samples=learner.samples_seen,
            seed=learner.seed,
        )

    def _train_first(self, specs: Mapping[str, TrialSpec]) -> None:
        """Train what the arms need, by name; the study ends where one cannot be had."""
        for spec in specs.values():
            spec.trainer.check(_sizes(spec.train), spec.num_samples)
        untrained = [n for n, spec in specs.items() if not spec.is_trained(self.storage)]
        if untrained and not self.may_train:
            msg = f"{untrained[0]}: not trained yet, nothing to report"
            raise SetupError(msg)
        names = {spec.fingerprint(): name for name, spec in specs.items()}
        failed = self.train(list(specs.values()), (), names)
        if failed:
            key, error = next(iter(failed.items()))
            msg = f"{names[key]} failed: {error}"
            raise ShardError(msg, retryable=False)

    def _require_local(self, what: str) -> None:
        if not self.storage.is_local:
            msg = (
                f"{what} is trained here and read by path, which an object store "
                "does not give; use a local or shared workspace"
            )
            raise SetupError(msg)

    def _train_scorers(self, sets: tuple[Exported, ...]) -> None:
        """Train one model per fold of every scorer that has folds."""
        folders: dict[str, list[str]] = {}
        specs: dict[str, TrialSpec] = {}
        for key, scorer in self.study.settings.scorers.items():
            if not scorer.folds:
                continue
            self._require_local(f"the scorer {key}")
            trainer = self.study.changed_trainer(scorer)
            for fold in range(scorer.folds):
                spec = self._spec(self.recipes.fold(key, scorer, fold), scorer, trainer)
                specs[f"scorer {key}, without fold {fold}"] = spec
                folders.setdefault(key, []).append(self.storage.path(spec.checkpoint))
        check_apart(self.storage, sets, [spec.train for spec in specs.values()])
        self._train_first(specs)
        self.recipes = Recipes(self.study, folders, self.recipes.manifests, self.recipes.learned)

    def _entry(
        self, arm: ArmEntry, kind: str, data: Exported, budget: int, seed: int
    ) -> TrialEntry:
        study = self.study
        is_control = kind == "random"
        spec = TrialSpec(
            trainer=(study.control_trainer if is_control else study.changed_trainer)(arm.rows),
            train=data,
            num_samples=study.settings.samples_seen * budget,
            seed=seed,
        )
        return TrialEntry(arm=arm, kind=kind, budget=budget, spec=spec)

    def _check(self, trial: TrialEntry) -> None:
        try:
            trial.spec.trainer.check(_sizes(trial.spec.train), trial.spec.num_samples)
        except SetupError as error:
            msg = f"{trial.name}: {error}"
            raise SetupError(msg) from None

    def _annotate(self) -> int:
        """Annotate the pool; return its rows."""
        options = replace(self.options, latest=False)
        report = run_recipe(_without_export(self.recipes.base()), options, self.progress)
        _refuse_failures(report.failures, "the pool")
        return int(report.summary["kept"])

    def _annotate_scores(self) -> None:
        """Let the scorers that were trained here score the pool, with progress."""
        if self.recipes.models:
            self._annotate()

    def _export(self, recipe: Recipe, name: str, *, quiet: bool = False) -> Exported:
        """Run a recipe. ``quiet``: its annotations are there, its steps are not worth a line."""
        # `winnow ledger` then tells of the arm that the study is about.
        primary = self.study.primary.arm if self.study.primary else self.study.arms[0].name
        options = replace(self.options, latest=name == primary)
        report = run_recipe(recipe, options, Progress() if quiet else self.progress)
        _refuse_failures(report.failures, recipe.name)
        if not report.summary["kept"]:
            msg = f"{name}: the selection is empty; `winnow ledger` shows which filter refused what"
            raise SetupError(msg)
        return exported(self.storage, report.exports[EXPORT], name)

    def _executor(self, units: list[TrialUnit]) -> Executor:
        if units[0].group_size > 1:
            return GroupExecutor(self.options.address)
        kind = self.options.executor
        shapes = {u.resources for u in units}
        if kind == "auto":
            alone = len(units) == 1 and not any(s.num_gpus for s in shapes)
            kind = "inprocess" if alone and not self.options.address else "ray"
        if kind == "inprocess":
            return in_process(WorkerOptions(), self.storage)
        executor = self._new_ray()
        executor.prepare(shapes)
        return executor

    def _hold_ray(self) -> None:
        """Start Ray once for all selections of a large pool, not once for each."""
        self._stack.callback(self._new_ray().close)

    def _new_ray(self) -> RayExecutor:
        return on_ray(WorkerOptions(), replace(self.options, deadline_s=TRIAL_DEADLINE_S))


def _key(failure: Failure) -> str:
    assert isinstance(failure.unit, TrialUnit)
    return failure.unit.spec.fingerprint()


def _sizes(data: Exported) -> Dataset:
    return Dataset(name=data.name, shards=data.tars, digest=data.digest, num_rows=data.num_rows)


def _refuse_failures(failures: Sequence[Failure], name: str) -> None:
    if failures:
        msg = f"{name}: {len(failures)} units failed, the first: {failures[0]}; run again"
        raise ShardError(msg, retryable=False)


def _without_export(recipe: Recipe) -> Recipe:
    resolved = {k: v for k, v in recipe.resolved.items() if k != "export"}
    return replace(recipe, exports=(), resolved=resolved)
