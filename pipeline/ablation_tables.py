"""The tables that an ablation leaves behind: every value, and every contrast."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from statistics import fmean, stdev
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from winnow.pipeline.ablation_contrasts import Analysis
from winnow.pipeline.ablation_results import Results

METRICS_FILE = pa.schema(
    [
        pa.field("arm", pa.string()),
        pa.field("kind", pa.string()),
        pa.field("control_of", pa.string()),
        pa.field("scorer", pa.string()),
        pa.field("fraction", pa.float64()),
        pa.field("budget", pa.int64()),
        pa.field("seed", pa.int64()),
        pa.field("num_rows", pa.int64()),
        pa.field("samples_seen", pa.int64()),
        pa.field("repeats", pa.float64()),
        pa.field("status", pa.string()),
        pa.field("error", pa.string()),
        pa.field("split", pa.string()),
        pa.field("metric", pa.string()),
        pa.field("slice", pa.string()),
        pa.field("value", pa.float64()),
        pa.field("num_items", pa.int64()),
        pa.field("higher_is_better", pa.bool_()),
    ]
)
"""A row per trial, split, metric and slice; a failed trial has one row whose metric is null."""

CONTRASTS_FILE = pa.schema(
    [
        pa.field("family", pa.string()),
        pa.field("role", pa.string()),
        pa.field("metric", pa.string()),
        pa.field("slice", pa.string()),
        pa.field("budget", pa.int64()),
        pa.field("arm", pa.string()),
        pa.field("other", pa.string()),
        pa.field("difference", pa.float64()),
        pa.field("standard_error", pa.float64()),
        pa.field("num_seeds", pa.int64()),
        pa.field("num_items", pa.int64()),
        pa.field("share_of_alpha", pa.float64()),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("p", pa.float64()),
        pa.field("p_corrected", pa.float64()),
        pa.field("exploratory", pa.bool_()),
        pa.field("verdict", pa.string()),
        pa.field("note", pa.string()),
    ]
)
"""family: "table", or "slices", differences without a verdict. Null: it could not be measured."""


MEANS = ("metric", "budget", "arm", "kind", "num_seeds", "mean", "sd")
"""Columns of means.csv."""


def to_parquet(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> bytes:
    """Return rows as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), buffer, compression="zstd")
    return buffer.getvalue()


def metric_rows(results: Results) -> Iterator[dict[str, Any]]:
    """Yield the rows of METRICS_FILE, by arm, budget, seed and split."""
    empty = {"metric": None, "slice": None, "value": None, "num_items": None}
    for row in results.rows:
        about = {f.name: getattr(row, f.name) for f in METRICS_FILE if hasattr(row, f.name)}
        for entry in row.metrics.to_pylist() or [{**empty, "higher_is_better": None}]:
            yield {**about, **entry}


def means_csv(rows: Sequence[dict[str, Any]]) -> bytes:
    """Return every metric's mean on the test set over the seeds of each arm and budget, as CSV.

    rows: of METRICS_FILE. sd: standard deviation between seeds, empty for one. Whole metrics only,
    not their slices; arms are not compared.
    """
    values: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        if row["split"] == "test" and row["slice"] == "" and row["value"] is not None:
            about = tuple(row[name] for name in MEANS[:4])
            values.setdefault(about, []).append(row["value"])
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(MEANS)
    for about, found in sorted(values.items()):
        spread = f"{stdev(found):.6g}" if len(found) > 1 else ""
        writer.writerow([*about, len(found), f"{fmean(found):.6g}", spread])
    return out.getvalue().encode()


def contrast_rows(analysis: Analysis) -> Iterator[dict[str, Any]]:
    """Yield the rows of CONTRASTS_FILE, in the order in which they were named."""
    families = (("table", analysis.contrasts), ("slices", analysis.slices))
    for family, contrasts in families:
        for contrast in contrasts:
            pair, estimate = contrast.pair, contrast.estimate
            measured = estimate.p is not None
            yield {
                "family": family,
                "role": pair.role,
                "metric": pair.metric,
                "slice": pair.slice,
                "budget": pair.budget,
                "arm": pair.arm,
                "other": pair.other,
                "difference": estimate.difference if estimate.num_seeds else None,
                "standard_error": estimate.standard_error if measured else None,
                "num_seeds": estimate.num_seeds,
                "num_items": estimate.num_items,
                "share_of_alpha": contrast.share,
                "low": contrast.low,
                "high": contrast.high,
                "p": estimate.p,
                "p_corrected": contrast.p_corrected if measured else None,
                "exploratory": contrast.exploratory,
                "verdict": contrast.verdict,
                "note": estimate.note,
            }
