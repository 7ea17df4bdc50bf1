"""The results of an ablation, found by arm, budget, seed, split and metric."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow.compute as pc

from winnow.contracts.errors import SetupError
from winnow.pipeline.statistics import ArmResult, Items, Kind, make_items


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One selection at one budget. done, failed: its seeds; errors: seed -> why it failed.

    num_rows, repeats: per seed that was run, failed ones among them, in order of the seeds.
    """

    name: str
    kind: Kind
    control_of: str
    scorer: str
    fraction: float | None
    budget: int
    num_rows: tuple[int, ...]
    repeats: tuple[float, ...]
    done: tuple[int, ...]
    failed: tuple[int, ...]
    errors: dict[int, str]
    curve: str = ""
    selection: str = ""
    trainer: str = ""

    @property
    def was_run(self) -> bool:
        """Whether a trial of it was run, well or not."""
        return bool(self.done or self.failed)


class Results:
    """An index over what the trials gave.

    Fails: SetupError where two results have the same arm, budget, seed and split, or where an
    arm's results do not agree about what the arm is.
    """

    def __init__(self, results: Sequence[ArmResult]) -> None:
        self.rows = sorted(results, key=lambda r: (r.arm, r.budget, r.seed, r.split))
        self._by_arm: dict[tuple[str, int], list[ArmResult]] = defaultdict(list)
        seen: set[tuple[str, int, int, str]] = set()
        for row in self.rows:
            key = (row.arm, row.budget, row.seed, row.split)
            if key in seen:
                msg = (
                    f"the trial {row.arm}, {row.budget}x, seed {row.seed} came twice on {row.split}"
                )
                raise SetupError(msg)
            seen.add(key)
            self._by_arm[row.arm, row.budget].append(row)
        self._arms = {key: _make_arm(rows) for key, rows in self._by_arm.items()}
        self._values: dict[tuple[str, int, str], dict[tuple[str, str], dict[int, float]]] = {}
        self._items: dict[tuple[str, int, str], dict[int, Items]] = {}

    @cached_property
    def arms(self) -> list[Arm]:
        """All arms: those of the design, then random, then oracle; curves by rising fraction."""
        order = {"arm": 0, "random": 1, "oracle": 2}
        return sorted(
            self._arms.values(),
            key=lambda a: (
                order[a.kind],
                a.fraction is not None,
                a.scorer,
                a.fraction or 0.0,
                a.name,
                a.budget,
            ),
        )

    def arms_of(self, budget: int) -> list[Arm]:
        """Return the arms of one budget."""
        return [arm for arm in self.arms if arm.budget == budget]

    def arm(self, name: str, budget: int) -> Arm | None:
        """Return an arm, None where it was not planned."""
        return self._arms.get((name, budget))

    def control(self, arm: Arm) -> Arm | None:
        """Return the random arm of an arm's size, drawn for it and trained as it was."""
        for other in self.arms_of(arm.budget):
            if other.control_of == arm.name and other.trainer == arm.trainer:
                return other
        return None

    def same_rows(self, arm: Arm, trainer: str) -> Arm | None:
        """Return the arm that another trainer made of the same rows."""
        for other in self.arms_of(arm.budget):
            same = arm.selection and other.selection == arm.selection
            if same and other.kind == "arm" and other.trainer == trainer != arm.trainer:
                return other
        return None

    @cached_property
    def directions(self) -> dict[str, bool | None]:
        """Metric -> whether higher is better; None where it only describes. Sorted by name."""
        found: dict[str, bool | None] = {}
        for row in self.rows:
            if row.metrics.num_rows:
                names = row.metrics.column("metric").to_pylist()
                found.update(
                    zip(names, row.metrics.column("higher_is_better").to_pylist(), strict=True)
                )
        return dict(sorted(found.items()))

    def direction(self, metric: str) -> bool | None:
        """Return whether higher is better in a metric; None where it only describes."""
        return self.directions.get(metric)

    def values(
        self, arm: Arm, metric: str, *, slice_: str = "", split: str = "test"
    ) -> dict[int, float]:
        """Return seed -> value, without the seeds that have none."""
        key = (arm.name, arm.budget, split)
        if key not in self._values:
            table: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
            for row in self._done(key):
                for entry in row.metrics.to_pylist():
                    if entry["value"] is not None and np.isfinite(entry["value"]):
                        table[entry["metric"], entry["slice"]][row.seed] = entry["value"]
            self._values[key] = table
        return self._values[key].get((metric, slice_), {})

    def items(self, arm: Arm, metric: str) -> dict[int, Items]:
        """Return seed -> items of a metric on test, without the seeds that have none."""
        key = (arm.name, arm.budget, metric)
        if key not in self._items:
            found = {}
            for row in self._done((arm.name, arm.budget, "test")):
                names = row.items.column("metric")
                mine = row.items.filter(pc.equal(names, metric))
                if mine.num_rows:
                    values = mine.column("value").to_numpy()
                    found[row.seed] = make_items(mine.column("item").to_pylist(), values)
            self._items[key] = found
        return self._items[key]

    def slices(self, metric: str) -> list[str]:
        """Return the names of a metric's slices on test."""
        found: set[str] = set()
        for row in self.rows:
            if row.split == "test":
                same = row.metrics.filter(pc.equal(row.metrics.column("metric"), metric))
                found.update(same.column("slice").to_pylist())
        return sorted(found - {""})

    def failures(self) -> list[tuple[str, int, int, str]]:
        """Return arm, budget, seed and error of every trial that failed."""
        return [
            (arm.name, arm.budget, seed, arm.errors[seed])
            for arm in self.arms
            for seed in arm.failed
        ]

    def missing(self, seeds: Iterable[int]) -> list[tuple[str, int, int]]:
        """Return arm, budget and seed of every trial that was planned and has no result."""
        wanted = list(seeds)
        return [
            (arm.name, arm.budget, seed)
            for arm in self.arms
            for seed in wanted
            if seed not in arm.done and seed not in arm.failed
        ]

    def _done(self, key: tuple[str, int, str]) -> list[ArmResult]:
        rows = self._by_arm.get(key[:2], [])
        return [row for row in rows if row.split == key[2] and row.status == "done"]


def _make_arm(rows: Sequence[ArmResult]) -> Arm:
    first = rows[0]
    about = {
        (r.kind, r.control_of, r.scorer, r.fraction, r.curve, r.selection, r.trainer) for r in rows
    }
    if len(about) > 1:
        msg = f"the results of the arm {first.arm} do not agree about what it is"
        raise SetupError(msg)
    failed = {r.seed: r.error for r in rows if r.status == "failed"}
    by_seed = {r.seed: r for r in rows if r.num_rows}
    return Arm(
        name=first.arm,
        kind=first.kind,
        control_of=first.control_of,
        scorer=first.scorer,
        fraction=first.fraction,
        budget=first.budget,
        num_rows=tuple(by_seed[seed].num_rows for seed in sorted(by_seed)),
        repeats=tuple(by_seed[seed].repeats for seed in sorted(by_seed)),
        done=tuple(sorted({r.seed for r in rows if r.status == "done"} - failed.keys())),
        failed=tuple(sorted(failed)),
        errors=failed,
        curve=first.curve,
        selection=first.selection,
        trainer=first.trainer,
    )
