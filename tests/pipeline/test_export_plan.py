"""The division of an export among files: every kept row once, and a name for all of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from winnow_exports import pictures, recipe

from winnow.contracts.registry import EXPORTERS
from winnow.pipeline.export_plan import ExportPlan, is_global, plan_export
from winnow.pipeline.recipe import ExportEntry, parse_recipe
from winnow.pipeline.run import RunOptions, RunReport, run_recipe


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> RunReport:
    """35 of 40 rows are kept; the first shard of 4 has none of them."""
    folder = tmp_path_factory.mktemp("plan")
    pictures(folder / "t.parquet")
    options = RunOptions(workspace=str(folder / "ws"), executor="inprocess")
    found = run_recipe(parse_recipe(recipe(folder / "t.parquet")), options)
    assert found.exit_code == 0
    return found


def planned(report: RunReport, *, seed: int = 0, **changes: Any) -> ExportPlan:
    """The plan of the run's export with other parameters."""
    assert report.state is not None
    (entry,) = report.state.plan.recipe.exports
    exporter = replace(entry.exporter, **changes)  # type: ignore[type-var]
    return plan_export(
        report.state, ExportEntry(key="train", exporter=exporter, seed=seed), report.summary
    )


def kept(report: RunReport) -> dict[str, int]:
    return dict(zip(report.summary["shards"], report.summary["kept_per_shard"], strict=True))


@settings(deadline=None, max_examples=30)
@given(rows_per_file=st.integers(1, 50), seed=st.integers(0, 9))
def test_every_shard_with_kept_rows_is_in_one_bucket(
    report: RunReport, rows_per_file: int, seed: int
) -> None:
    plan = planned(report, rows_per_file=rows_per_file, seed=seed)
    counts = kept(report)
    assert sum(counts.values()) == 35
    shards = Counter(shard.id for bucket in plan.buckets for shard in bucket.shards)
    assert shards == Counter(shard for shard, rows in counts.items() if rows)
    for bucket in plan.buckets:
        rows = sum(counts[shard.id] for shard in bucket.shards)
        assert sum(bucket.cuts) == rows
        assert 0 < min(bucket.cuts) <= max(bucket.cuts) <= rows_per_file
        assert set(bucket.patches) == {shard.id for shard in bucket.shards}
    full = [sum(counts[s.id] for s in bucket.shards) >= rows_per_file for bucket in plan.buckets]
    assert all(full[:-1])
    files = [len(bucket.cuts) for bucket in plan.buckets]
    assert [bucket.first for bucket in plan.buckets] == [0, *accumulate(files)][:-1]
    assert plan.names == tuple(plan.job.exporter.file_name(i) for i in range(sum(files)))
    assert len(set(plan.names)) == len(plan.names)
    assert plan.exchange is None


@settings(deadline=None, max_examples=30)
@given(rows_per_file=st.integers(1, 50), seed=st.integers(0, 9))
def test_a_global_order_is_cut_as_one(report: RunReport, rows_per_file: int, seed: int) -> None:
    plan = planned(report, shuffle="global", rows_per_file=rows_per_file, seed=seed)
    exchange = plan.exchange
    assert exchange is not None and plan.buckets == ()
    assert sum(exchange.cuts) == 35 and max(exchange.cuts) <= rows_per_file
    assert max(exchange.cuts) - min(exchange.cuts) <= 1
    assert len(exchange.cuts) == -(-35 // rows_per_file)
    assert plan.names == exchange.names
    assert len(plan.names) == len(set(plan.names)) == len(exchange.cuts)
    assert report.state is not None
    order = [shard.id for shard in report.state.shards]
    numbers = [n for group in exchange.groups for n in group.numbers]
    assert numbers == [n for n, shard in enumerate(order) if kept(report)[shard]]
    assert [s.id for group in exchange.groups for s in group.shards] == [order[n] for n in numbers]


def test_a_seed_shuffles_the_buckets(report: RunReport) -> None:
    orders = {
        tuple(s.id for b in planned(report, seed=seed).buckets for s in b.shards)
        for seed in range(5)
    }
    assert len(orders) == 5
    again = planned(report, seed=1)
    assert again.buckets == planned(report, seed=1).buckets


def test_a_name_is_of_what_decides_the_files(report: RunReport) -> None:
    base = planned(report, rows_per_file=12)
    assert base.job.folder == report.exports["train"]
    others = [
        planned(report, rows_per_file=12, seed=1),
        planned(report, rows_per_file=11),
        planned(report, rows_per_file=12, shuffle="global"),
    ]
    assert len({plan.job.folder for plan in [base, *others]}) == 4
    assert base.done
    assert not any(plan.done for plan in others)


def test_another_selection_is_another_export(report: RunReport) -> None:
    assert report.state is not None
    (entry,) = report.state.plan.recipe.exports
    other = plan_export(report.state, entry, {**report.summary, "selection": "0" * 12})
    assert other.job.selection == "0" * 12
    assert other.job.folder != report.exports["train"]
    assert not other.done


def test_a_job_has_all_columns_once(report: RunReport) -> None:
    job = planned(report).job
    assert job.payloads == ("image",)
    assert job.annotations.names == ["url", "text", "n", "num_letters", "toy_length_error"]


def test_nothing_kept_is_no_bucket(report: RunReport) -> None:
    assert report.state is not None
    (entry,) = report.state.plan.recipe.exports
    none = {**report.summary, "kept_per_shard": [0] * len(report.summary["shards"])}
    plan = plan_export(report.state, entry, none)
    assert (plan.buckets, plan.names) == ((), ())
    whole = replace(entry, exporter=replace(entry.exporter, shuffle="global"))  # type: ignore[type-var, call-arg]
    exchange = plan_export(report.state, whole, none).exchange
    assert exchange is not None
    assert (exchange.groups, exchange.names, exchange.cuts) == ((), (), ())


def test_one_order_over_all_files_is_asked_for() -> None:
    webdataset = EXPORTERS.find("webdataset")
    assert not is_global(webdataset())
    assert is_global(webdataset(shuffle="global"))  # type: ignore[call-arg]
    for factory in EXPORTERS.values():
        if "shuffle" not in factory.__dataclass_fields__:  # type: ignore[attr-defined]
            assert not is_global(factory())
