"""What is read out of a rule: the values, the thresholds, the accepted categories."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.filters import expr
from winnow.filters._parse import parse_expression
from winnow.filters.rules import PriorityCover, TopFraction
from winnow.pipeline.recipe import FilterEntry
from winnow.pipeline.report_views import Category, Cut, Measure, Panel, _panels, format_number

SCHEMA = pa.schema(
    {
        "width": pa.int32(),
        "height": pa.int32(),
        "clip_score": pa.float32(),
        "text": pa.string(),
        "language": pa.string(),
        "repeated_row": pa.bool_(),
        "download_error": pa.string(),
        "image_ref": pa.struct({"path": pa.string()}),
        "near_duplicates": pa.list_(pa.binary(16)),
    }
)


def panels(rule: Any, text: str = "") -> list[Panel]:
    rule = parse_expression(rule) if isinstance(rule, str) else rule
    return _panels(FilterEntry(key="f", rule=rule, on_null="drop"), text, SCHEMA)


def cuts(rule: str) -> dict[str, list[tuple[str, float]]]:
    return {
        p.label: [(c.op, c.threshold) for c in p.cuts]
        for p in panels(rule)
        if isinstance(p, Measure)
    }


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("width >= 100", {"width": [(">=", 100)]}),
        ("100 <= width", {"width": [(">=", 100)]}),
        ("100 > width", {"width": [("<", 100)]}),
        ("not (width < 100)", {"width": [(">=", 100)]}),
        ("not (not (width < 100))", {"width": [("<", 100)]}),
        ("width >= 10 and width <= 20", {"width": [(">=", 10), ("<=", 20)]}),
        ("width >= 10 and height > 20", {"width": [(">=", 10)], "height": [(">", 20)]}),
        ("width * height <= 1e6", {"width * height": [("<=", 1e6)]}),
        ("width > height", {"width - height": [(">", 0)]}),
        ("length(text) > 3 or width == 7", {"length(text)": [(">", 3)], "width": [("==", 7)]}),
        ("language == 'en'", {}),
    ],
)
def test_thresholds(rule: str, expected: dict[str, Any]) -> None:
    assert cuts(rule) == expected


def test_a_float32_column_is_cut_at_the_nearest_float32() -> None:
    (panel,) = panels("clip_score <= 0.2")
    assert isinstance(panel, Measure)
    assert panel.cuts[0].threshold == float(np.float32(0.2))
    assert not panel.integer


@pytest.mark.parametrize(
    ("rule", "label", "accepted", "refused"),
    [
        ("language == 'en'", "language", ["en"], ["de"]),
        ("language != 'en'", "language", ["de", "fr"], ["en"]),
        ("language in ('en', 'de')", "language", ["en", "de"], ["fr"]),
        ("not (language in ('en', 'de'))", "language", ["fr"], ["en", "de"]),
        ("repeated_row", "repeated_row", ["true"], ["false"]),
        ("not repeated_row", "repeated_row", ["false"], ["true"]),
        ("repeated_row == false", "repeated_row", ["false"], ["true"]),
        ("download_error is None", "download_error", [None], ["http_404"]),
        ("image_ref is None", "image_ref", ["null"], ["present"]),
        ("not (image_ref is None)", "image_ref", ["present"], ["null"]),
        ("lower(text) == 'a'", "lower(text)", ["a"], ["b"]),
        ("width in (1, 2)", "width", ["1", "2"], ["3"]),
    ],
)
def test_categories(
    rule: str, label: str, accepted: list[str | None], refused: list[str | None]
) -> None:
    (panel,) = panels(rule)
    assert isinstance(panel, Category)
    assert panel.label == label
    assert [panel.accepts(v) for v in accepted] == [True] * len(accepted)
    assert [panel.accepts(v) for v in refused] == [False] * len(refused)


def test_null_is_neither_accepted_nor_refused_unless_asked_for() -> None:
    (panel,) = panels("language == 'en'")
    assert isinstance(panel, Category)
    assert panel.accepts(None) is None


def test_a_value_asked_for_in_two_ways_is_drawn_once() -> None:
    (panel,) = panels("language == 'en' or language == 'de'")
    assert isinstance(panel, Category)
    assert panel.accepts("en") is None


def test_top_fraction_takes_the_computed_threshold_from_the_summary() -> None:
    rule = TopFraction(column="clip_score", fraction=0.3)
    (panel,) = panels(rule, f"clip_score >= 0.25 ({rule})")
    assert isinstance(panel, Measure)
    assert [(c.op, c.threshold) for c in panel.cuts] == [(">=", 0.25)]
    (panel,) = panels(rule, f"clip_score >= None ({rule})")
    assert isinstance(panel, Measure)
    assert panel.cuts == ()


def test_a_cover_is_drawn_by_the_number_of_neighbours() -> None:
    (panel,) = panels(PriorityCover(neighbors="near_duplicates", prefer=(("width", "largest"),)))
    assert isinstance(panel, Measure)
    rows = [[], [bytes(16)] * 3, None]
    table = pa.table({"near_duplicates": pa.array(rows, pa.list_(pa.binary(16)))})
    assert np.array_equal(panel.values(table), [0, 3, np.nan], equal_nan=True)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(["<", "<=", ">", ">=", "==", "!="]),
    st.integers(-5, 5),
    st.lists(st.one_of(st.none(), st.integers(-6, 6)), min_size=1, max_size=30),
)
def test_a_cut_passes_what_the_expression_passes(
    op: str, threshold: int, values: list[int | None]
) -> None:
    table = pa.table({"width": pa.array(values, pa.int32())})
    rule = parse_expression(f"width {op} {threshold}")
    expected = expr.evaluate(rule, table).fill_null(False).to_pylist()
    (panel,) = _panels(FilterEntry(key="f", rule=rule, on_null="drop"), "", table.schema)
    assert isinstance(panel, Measure)
    assert panel.cuts[0].passes(panel.values(table)).tolist() == expected


def test_integers_are_cut_between_two_of_them() -> None:
    edges = {op: Cut(op=op, threshold=5, integer=True).edge for op in ("<", "<=", ">", ">=", "==")}  # type: ignore[arg-type]
    assert edges == {"<": 4.5, "<=": 5.5, ">": 5.5, ">=": 4.5, "==": 5}


@pytest.mark.parametrize(
    ("value", "text"),
    [(1024, "1,024"), (0.28349, "0.2835"), (12345.6, "12,346"), (float("nan"), "-"), (-3.0, "-3")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert format_number(value) == text
