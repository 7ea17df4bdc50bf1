"""The index of results: which arms there are, who controls whom, what is missing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.ablation_simulation import Plan, simulate
from winnow.contracts.errors import SetupError
from winnow.pipeline.ablation_results import Arm, Results

PLANS = [
    Plan(arm="curated", truth={"m": 0.5}, num_rows=100, slices={"language=de": 0.0}),
    Plan(arm="r1", truth={"m": 0.4}, kind="random", control_of="curated", num_rows=100),
    Plan(arm="same size", truth={"m": 0.4}, num_rows=100),
    Plan(arm="alone", truth={"m": 0.4}, num_rows=70),
    Plan(arm="raw", truth={"m": 0.4}, num_rows=200),
]


def _arm(results: Results, name: str, budget: int = 1) -> Arm:
    found = results.arm(name, budget)
    assert found is not None
    return found


def test_values_and_items_are_those_of_the_tables() -> None:
    rows = simulate(PLANS, seeds=(3, 1), num_items=7)
    results = Results(rows)
    curated = _arm(results, "curated")
    for split in ("validation", "test"):
        found = results.values(curated, "m", split=split)
        expected = {
            r.seed: e["value"]
            for r in rows
            if (r.arm, r.split) == ("curated", split)
            for e in r.metrics.to_pylist()
            if e["slice"] == ""
        }
        assert found == expected and set(found) == {1, 3}
    one = next(r for r in rows if (r.arm, r.seed, r.split) == ("curated", 3, "test"))
    items = results.items(curated, "m")[3]
    assert dict(zip(items.keys.tolist(), items.values.tolist(), strict=True)) == {
        e["item"]: e["value"] for e in one.items.to_pylist()
    }
    assert results.slices("m") == ["language=de"]
    assert results.values(curated, "m", slice_="language=de").keys() == {1, 3}
    assert results.values(curated, "no such metric") == {}


def test_a_control_is_the_one_that_was_drawn_for_the_arm() -> None:
    results = Results(simulate(PLANS, seeds=(0,), num_items=3))
    own, by_size = (results.control(_arm(results, name)) for name in ("curated", "same size"))
    assert own is not None and own.name == "r1"
    assert by_size is None, "another arm's rows are not this one's control, however many"
    assert results.control(_arm(results, "alone")) is None


def test_failed_and_missing_trials() -> None:
    rows = simulate(PLANS, seeds=(0, 1), num_items=3, failed={("curated", 1, 1): "loss is nan"})
    rows = [r for r in rows if (r.arm, r.seed) != ("raw", 0)]
    results = Results(rows)
    curated = _arm(results, "curated")
    assert (curated.done, curated.failed) == ((0,), (1,))
    assert results.values(curated, "m").keys() == {0}
    assert results.failures() == [("curated", 1, 1, "loss is nan")]
    assert results.missing((0, 1)) == [("raw", 1, 0)]


def test_a_metric_without_a_value_has_no_seed() -> None:
    rows = simulate(PLANS[:1], seeds=(0, 1), num_items=3)
    broken = rows[1].metrics.slice(0, 0)
    rows[1] = replace(rows[1], metrics=broken)
    results = Results(rows)
    assert results.values(_arm(results, "curated"), "m").keys() == {1}


def test_results_that_contradict_each_other() -> None:
    rows = simulate(PLANS, seeds=(0, 1), num_items=3)
    with pytest.raises(SetupError, match=r"curated, 1x, seed 0 came twice on test"):
        Results([*rows, next(r for r in rows if r.split == "test")])
    rows[0] = replace(rows[0], scorer="another")
    with pytest.raises(SetupError, match="curated do not agree about what it is"):
        Results(rows)
