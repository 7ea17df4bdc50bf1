"""The tables of an ablation against its results, read with pandas."""

from __future__ import annotations

import io
import math
import random
from dataclasses import replace
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ablation_simulation import Plan, scenes, simulate
from winnow.contracts.trial import METRICS
from winnow.pipeline.ablation_contrasts import Analysis, analyse
from winnow.pipeline.ablation_results import Results
from winnow.pipeline.ablation_tables import (
    CONTRASTS_FILE,
    MEANS,
    METRICS_FILE,
    contrast_rows,
    means_csv,
    metric_rows,
    to_parquet,
)
from winnow.pipeline.statistics import ArmResult, Design

PLANS = [p for p in scenes() if not any(x in p.arm for x in ("20%", "50%", "75%"))]
FAILED = {("clip_noisy 10%", 1, 3): "loss is nan", ("raw", 4, 0): 'no, "really"\nnot'}
DESIGN = Design(
    name="d", metrics=("zero_shot.accuracy",), seeds=(0, 1, 2, 3), budgets=(1, 4),
    scorers={"clip_noisy": "noisy", "clip_packaged": "packaged"},
)  # fmt: skip


@pytest.fixture(scope="module")
def given_results() -> list[ArmResult]:
    return simulate(PLANS, budgets=(1, 4), seeds=range(4), num_items=12, failed=FAILED)


@pytest.fixture(scope="module")
def rows(given_results: list[ArmResult]) -> list[dict[str, Any]]:
    return list(metric_rows(Results(given_results)))


@pytest.fixture(scope="module")
def analysis(given_results: list[ArmResult]) -> Analysis:
    return analyse(DESIGN, Results(given_results))


def test_every_value_has_a_row_and_every_failure_one(
    rows: list[dict[str, Any]], given_results: list[ArmResult]
) -> None:
    known = [f.name for f in METRICS_FILE if f.name not in METRICS.names]
    expected = []
    for result in given_results:
        about = {name: getattr(result, name) for name in known}
        values = result.metrics.to_pylist() or [dict.fromkeys(METRICS.names)]
        expected += [{**about, **value} for value in values]
    key = ("arm", "budget", "seed", "split", "metric", "slice")

    def order(row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(str(row[name]) for name in key)

    assert sorted(rows, key=order) == sorted(expected, key=order)
    lost = [r for r in rows if r["status"] == "failed"]
    assert [r["metric"] for r in lost] == [None] * 4
    assert {r["error"] for r in lost} == set(FAILED.values())


def test_rows_are_by_arm_budget_seed_and_split_whatever_came_first(
    rows: list[dict[str, Any]], given_results: list[ArmResult]
) -> None:
    shuffled = random.Random(0).sample(given_results, len(given_results))
    again = list(metric_rows(Results(shuffled)))
    assert again == rows
    places = list(dict.fromkeys((r["arm"], r["budget"], r["seed"], r["split"]) for r in rows))
    assert len(places) == len(given_results)
    arms = list(dict.fromkeys(r["arm"] for r in rows))
    assert len(arms) == len(PLANS)
    assert places == sorted(places, key=lambda p: (arms.index(p[0]), *p[1:3], p[3]))


def test_a_trial_that_was_not_trained_has_a_row_that_says_so() -> None:
    (result, *_) = simulate([Plan(arm="a", truth={"m": 0.5})], seeds=[0], num_items=3)
    missing = replace(
        result, status="missing", metrics=METRICS.empty_table(), items=result.items[:0]
    )
    (row,) = metric_rows(Results([missing]))
    assert (row["arm"], row["status"], row["metric"], row["value"]) == ("a", "missing", None, None)


def test_parquet_holds_the_rows_in_the_tables_types(rows: list[dict[str, Any]]) -> None:
    found = pq.read_table(io.BytesIO(to_parquet(rows, METRICS_FILE)))
    assert found.schema.equals(METRICS_FILE)
    assert found.to_pylist() == rows
    assert to_parquet(rows, METRICS_FILE) == to_parquet(rows, METRICS_FILE)
    empty = pq.read_table(io.BytesIO(to_parquet([], CONTRASTS_FILE)))
    assert empty.num_rows == 0 and empty.schema.equals(CONTRASTS_FILE)


def test_means_are_those_of_pandas_and_the_spread_is_between_seeds(
    rows: list[dict[str, Any]],
) -> None:
    table = pd.DataFrame(rows)
    table = table[(table.split == "test") & (table["slice"] == "")]
    groups = table.groupby(["metric", "budget", "arm", "kind"])["value"]
    expected = groups.agg(num_seeds="count", mean="mean", sd="std")
    found = pd.read_csv(io.BytesIO(means_csv(rows)))
    assert tuple(found.columns) == MEANS
    assert not found.duplicated(["metric", "budget", "arm"]).any()
    found = found.set_index(["metric", "budget", "arm", "kind"]).reindex(expected.index)
    assert len(found) == len(expected)
    pd.testing.assert_frame_equal(found, expected, check_dtype=False, rtol=1e-3, atol=1e-4)
    assert expected.num_seeds.min() == 3 and expected.num_seeds.max() == 4


VALUES = st.lists(st.none() | st.floats(-1, 1), min_size=1, max_size=4)


def measured(arm: str, values: list[float | None]) -> list[dict[str, Any]]:
    about: dict[str, Any] = {f.name: None for f in METRICS_FILE}
    about |= {"arm": arm, "kind": "arm", "budget": 1, "split": "test", "metric": "m", "slice": ""}
    return [
        {**about, "status": "done", "seed": s, "value": v, "num_items": 5}
        for s, v in enumerate(values)
    ]


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(st.sampled_from(["a", 'b,"c"', "-1", "NaN"]), VALUES, min_size=1))
def test_a_value_that_is_not_there_counts_for_no_seed(arms: dict[str, list[float | None]]) -> None:
    rows = [row for arm, values in arms.items() for row in measured(arm, values)]
    text = means_csv(rows)
    found = pd.read_csv(io.BytesIO(text), dtype={"arm": str}, keep_default_na=False)
    said = {row.arm: row for row in found.itertuples()}
    for arm, values in arms.items():
        there = pd.Series([v for v in values if v is not None], dtype=float)
        if there.empty:
            assert arm not in said or said[arm].num_seeds == 0
            continue
        row = said[arm]
        assert row.num_seeds == len(there)
        assert float(row.mean) == pytest.approx(there.mean(), abs=1e-4)
        if len(there) == 1:
            assert row.sd == ""
        else:
            assert float(row.sd) == pytest.approx(there.std(), abs=1e-4)


def test_means_of_nothing_are_a_table_without_rows() -> None:
    assert means_csv([]).decode().split() == [",".join(MEANS)]


def test_contrasts_are_in_the_order_in_which_they_were_named(analysis: Analysis) -> None:
    rows = list(contrast_rows(analysis))
    table = [r for r in rows if r["family"] == "table"]
    slices = [r for r in rows if r["family"] == "slices"]
    assert rows == [*table, *slices]
    for part, contrasts in ((table, analysis.contrasts), (slices, analysis.slices)):
        assert len(part) == len(contrasts) > 0
        for row, contrast in zip(part, contrasts, strict=True):
            for name in ("role", "metric", "slice", "budget", "arm", "other"):
                assert row[name] == getattr(contrast.pair, name)
            for name in ("difference", "standard_error"):
                value = getattr(contrast.estimate, name)
                assert row[name] == (None if math.isnan(value) else value)
            for name in ("num_seeds", "num_items", "p", "note"):
                assert row[name] == getattr(contrast.estimate, name)
            assert (row["low"], row["high"]) == (contrast.low, contrast.high)
            assert (row["verdict"], row["exploratory"]) == (contrast.verdict, True)
    assert sum(r["share_of_alpha"] for r in table) == pytest.approx(1)
    assert [r["p_corrected"] for r in table] == [c.p_corrected for c in analysis.contrasts]
    assert {r["verdict"] for r in slices} == {"described"}


def test_what_could_not_be_measured_is_null_and_has_a_note() -> None:
    plans = [Plan(arm="curated", truth={"m": 0.5}), Plan(arm="raw", truth={"m": 0.4})]
    failed = {("curated", 1, s): "x" for s in range(4)}
    results = Results(simulate(plans, seeds=range(4), num_items=5, failed=failed))
    rows = list(contrast_rows(analyse(replace(DESIGN, metrics=("m",), budgets=(1,)), results)))
    assert [(r["role"], r["other"], r["verdict"]) for r in rows] == [
        ("primary", "", "not measured"),
        ("raw", "raw", "not measured"),
    ]
    for row in rows:
        nulls = ("difference", "standard_error", "low", "high", "p")
        assert [row[name] for name in nulls] == [None] * 5
        assert row["note"]
    stored = pq.read_table(io.BytesIO(to_parquet(rows, CONTRASTS_FILE)))
    assert stored.to_pylist() == rows
    assert stored.schema.field("difference").type == pa.float64()
