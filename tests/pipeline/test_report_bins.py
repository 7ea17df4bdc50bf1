"""Histograms: every value is counted, and no bin mixes what a threshold divides."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.pipeline.report_bins import Bins, Range, nice
from winnow.pipeline.report_views import Cut, Measure


def measure(cuts: tuple[Cut, ...], *, integer: bool) -> Measure:
    return Measure(label="x", integer=integer, cuts=cuts, read=lambda table: table.column("x"))


def bins_of(values: np.ndarray, cuts: tuple[Cut, ...], *, integer: bool, shards: int = 3) -> Bins:
    """As the scan does it: the range of all shards first, then the counts."""
    parts = np.array_split(values, shards)
    found = Range(measure(cuts, integer=integer), shards)
    for part in parts:
        found.add(part, np.arange(len(part), dtype=np.uint64))
    bins = Bins(found.axis())
    for part in parts:
        bins.add(part, np.arange(len(part)) % 3)
    return bins


NUMBERS = st.floats(-1e6, 1e6, allow_nan=False).map(lambda v: round(v, 3))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.one_of(NUMBERS, st.just(float("nan"))), max_size=80),
    st.lists(st.tuples(st.sampled_from(["<", "<=", ">", ">="]), NUMBERS), max_size=2),
    st.booleans(),
)
def test_counts_every_value_once(
    values: list[float], cuts: list[tuple[str, float]], integer: bool
) -> None:
    array = np.array(values, np.float64)
    if integer:
        array, cuts = np.round(array), [(op, round(t)) for op, t in cuts]
    made = tuple(Cut(op=op, threshold=t, integer=integer) for op, t in cuts)  # type: ignore[arg-type]
    bins = bins_of(array, made, integer=integer)
    assert bins.counts.sum() == np.count_nonzero(~np.isnan(array))
    assert bins.null.sum() == np.count_nonzero(np.isnan(array))
    if bins.axis is not None:
        edges = bins.axis.edges
        assert np.all(np.diff(edges) > 0)
        assert bins.under == np.count_nonzero(array < edges[0])
        assert bins.over == np.count_nonzero(array >= edges[-1])


@pytest.mark.parametrize("op", ["<", "<=", ">", ">="])
@pytest.mark.parametrize("threshold", [0, 7, 40, 95, 120])
def test_no_bin_of_integers_is_on_both_sides_of_the_threshold(op: str, threshold: int) -> None:
    values = np.random.default_rng(3).integers(0, 1000, 5000).astype(float)
    cut = Cut(op=op, threshold=threshold, integer=True)  # type: ignore[arg-type]
    bins = bins_of(values, (cut,), integer=True)
    assert bins.axis is not None
    place = np.searchsorted(bins.axis.edges, values, side="right") - 1
    passes = {"<": values < threshold, "<=": values <= threshold}
    passes |= {">": values > threshold, ">=": values >= threshold}
    for index in range(len(bins.counts)):
        assert len(set(passes[op][place == index].tolist())) <= 1


def test_a_float_threshold_is_an_edge_exactly() -> None:
    values = np.random.default_rng(1).normal(0.3, 0.1, 4000)
    bins = bins_of(values, (Cut(op=">=", threshold=0.283),), integer=False)
    assert bins.axis is not None
    at = int(np.flatnonzero(bins.axis.edges == 0.283)[0])
    assert bins.counts[at:].sum() == np.count_nonzero(values >= 0.283)


def test_counts_are_told_apart_by_fate() -> None:
    bins = bins_of(np.arange(12.0), (), integer=True, shards=1)
    assert bins.counts.sum(axis=0).tolist() == [4, 4, 4]
    assert [int(row.argmax()) for row in bins.counts] == [0, 1, 2] * 4


def test_outliers_do_not_squash_the_rest() -> None:
    values = np.concatenate([np.random.default_rng(0).uniform(0, 1, 10_000), [1e9]])
    bins = bins_of(values, (), integer=False)
    assert bins.axis is not None
    assert bins.axis.edges[-1] < 2
    assert bins.over == 1


def test_wide_positive_values_get_a_log_axis() -> None:
    values = 10 ** np.random.default_rng(0).uniform(2, 7, 5000)
    cut = Cut(op=">=", threshold=5000, integer=True)
    bins = bins_of(np.round(values), (cut,), integer=True)
    assert bins.axis is not None
    assert bins.axis.log
    edge = bins.axis.edges[np.argmin(np.abs(bins.axis.edges - 4999.5))]
    assert edge == pytest.approx(4999.5)
    assert bins.axis.position(bins.axis.edges[0]) == 0
    assert bins.axis.position(bins.axis.edges[-1]) == 1


def test_a_threshold_far_away_is_left_off() -> None:
    cut = Cut(op="<=", threshold=1e9, integer=True)
    bins = bins_of(np.arange(10.0), (cut,), integer=True)
    assert bins.axis is not None
    assert not bins.axis.contains(cut.edge)
    assert len(bins.counts) == 10


@pytest.mark.parametrize("value", [0.0, 5.0, -3.25, 1e12])
def test_one_value_has_a_bin(value: float) -> None:
    bins = bins_of(np.full(5, value), (), integer=False)
    assert bins.counts.sum() == 5
    assert (bins.under, bins.over) == (0, 0)


def test_without_values_there_is_no_axis() -> None:
    bins = bins_of(np.array([np.nan, np.nan]), (Cut(op="<", threshold=3),), integer=False)
    assert bins.axis is None
    assert bins.null.tolist() == [2, 0, 0]


@pytest.mark.parametrize(
    ("width", "expected"), [(0.9, 1), (1, 1), (1.1, 2), (2.2, 2.5), (3, 5), (6, 10), (0.003, 0.005)]
)
def test_nice(width: float, expected: float) -> None:
    assert nice(width) == pytest.approx(expected)


def test_measure_reads_null_as_nan() -> None:
    table = pa.table({"x": pa.array([1, None, 3], pa.int32())})
    values = measure((), integer=True).values(table)
    assert np.array_equal(values, [1, np.nan, 3], equal_nan=True)
