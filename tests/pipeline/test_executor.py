"""The drive: what is tried again, what follows, what is reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from winnow.contracts.errors import ShardError
from winnow.contracts.stage import Resources
from winnow.pipeline.executor import MAX_ATTEMPTS, Drive, Executor, Outcome
from winnow.pipeline.units import Unit, UnitResult, WorkerContext


@dataclass(frozen=True, kw_only=True, slots=True)
class Named(Unit):
    """A unit that is only a name and a shape."""

    name: str
    gpu: float = 0.0

    @property
    def label(self) -> str:
        return self.name

    @property
    def resources(self) -> Resources:
        return Resources(num_gpus=self.gpu)

    def run(self, context: WorkerContext) -> UnitResult:
        raise NotImplementedError


class Scripted(Executor):
    """Ends units as a script says: name -> outcomes, attempt by attempt; then success."""

    def __init__(self, script: dict[str, list[Outcome]], slots: int = 1) -> None:
        self.script, self.slots = script, slots
        self.started: list[str] = []
        self.running: list[Unit] = []
        self.most = 0

    def room(self, resources: Resources) -> int:
        return self.slots - sum(u.resources == resources for u in self.running)

    def submit(self, unit: Unit, progress: Callable[[int], None]) -> None:
        assert self.room(unit.resources) > 0
        self.started.append(unit.label)
        self.running.append(unit)
        self.most = max(self.most, len(self.running))
        progress(7)

    def wait(self, timeout_s: float) -> list[tuple[Unit, Outcome]]:
        if not self.running:
            return []
        unit = self.running.pop(0)
        outcomes = self.script.get(unit.label, [])
        return [(unit, outcomes.pop(0) if outcomes else UnitResult(rows=1))]

    def close(self) -> None:
        self.running.clear()


def test_a_unit_gets_three_attempts_at_the_back_of_the_queue() -> None:
    bad = ShardError("lost", shard="s1")
    executor = Scripted({"a": [bad, bad], "b": [bad] * MAX_ATTEMPTS})
    drive = Drive(executor=executor)
    failures = drive.run([Named(name="a"), Named(name="b"), Named(name="c")])
    assert executor.started == ["a", "b", "c", "a", "b", "a", "b"]
    assert [str(f) for f in failures] == ["b: lost (shard s1) (after 3 attempts)"]


def test_what_cannot_be_healed_is_not_tried_again_and_the_others_go_on() -> None:
    executor = Scripted({"a": [ShardError("changed", retryable=False)]})
    failures = Drive(executor=executor).run([Named(name="a"), Named(name="b")])
    assert executor.started == ["a", "b"]
    assert [(f.unit.label, f.attempts) for f in failures] == [("a", 1)]


def test_units_that_follow_go_first_and_a_failed_unit_has_none() -> None:
    def follow(unit: Unit, result: UnitResult) -> Iterator[Unit]:
        if len(unit.label) < 3:
            yield Named(name=unit.label + "x")

    executor = Scripted({"bx": [ShardError("no", retryable=False)]})
    failures = Drive(executor=executor, follow=follow).run([Named(name="a"), Named(name="b")])
    assert executor.started == ["a", "ax", "axx", "b", "bx"]
    assert [f.unit.label for f in failures] == ["bx"]


def test_shapes_have_queues_of_their_own() -> None:
    executor = Scripted({}, slots=2)
    units = [Named(name=f"c{i}") for i in range(5)] + [Named(name="g", gpu=1.0)]
    Drive(executor=executor).run(units)
    assert executor.most == 3
    assert executor.started.index("g") <= 2
    assert len(executor.started) == 6


def test_progress_names_its_unit() -> None:
    seen: list[tuple[str, int]] = []
    drive = Drive(
        executor=Scripted({}), progress=lambda unit, rows: seen.append((unit.label, rows))
    )
    drive.run([Named(name="a"), Named(name="b")])
    assert seen == [("a", 7), ("b", 7)]


def test_an_error_of_the_executor_itself_is_not_swallowed() -> None:
    class Broken(Scripted):
        def wait(self, timeout_s: float) -> list[tuple[Unit, Outcome]]:
            raise RuntimeError("bug")

    with pytest.raises(RuntimeError, match="bug"):
        Drive(executor=Broken({})).run([Named(name="a")])
