"""Ranges of rows as files, and shares of noise, against plain counting."""

from __future__ import annotations

from collections import Counter

import pytest

from winnow.contracts.errors import RecipeError
from winnow.stages.sources._virtual import (
    batches_of,
    checked_shares,
    earlier_row,
    kind_at,
    range_files,
)


@pytest.mark.parametrize(("num_rows", "per_file", "batch"), [(1, 1, 1), (10, 3, 2), (9, 3, 5)])
def test_files_hold_every_row_once(num_rows: int, per_file: int, batch: int) -> None:
    files = range_files("web", num_rows, per_file)
    rows = [[row for part in batches_of(file, batch) for row in part] for file in files]
    assert [row for part in rows for row in part] == list(range(num_rows))
    assert max(map(len, rows)) <= per_file
    assert [file.name for file in files] == sorted(file.name for file in files)
    assert all(len(part) <= batch for file in files for part in batches_of(file, batch))


def test_more_rows_leave_whole_files_as_they_were() -> None:
    assert range_files("web", 9, 3) == range_files("web", 20, 3)[:3]


def test_kinds_come_by_their_shares() -> None:
    shares = checked_shares("web", {"b": 0.25, "a": 0.5}, ("a", "b", "c"), ())
    assert shares == (("a", 0.5), ("b", 0.25))
    found = Counter(kind_at(shares, place / 1000, "clean") for place in range(1000))
    assert found == {"a": 500, "b": 250, "clean": 250}


@pytest.mark.parametrize(
    ("given", "told"),
    [({"x": 0.1}, "no noise 'x'"), ({"a": 1.5}, "not a share"), ({"a": 0.6, "b": 0.6}, "add up"),
     ({"a": 0.5, "copy": 0.48}, "nothing to copy")],
)  # fmt: skip
def test_shares_that_cannot_be_meant(given: dict[str, float], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        checked_shares("web", given, ("a", "b", "copy"), {"copy"})


def test_an_earlier_row_fits_or_there_is_none() -> None:
    assert earlier_row("copy", 0, 0, lambda row: True) is None
    assert earlier_row("copy", 0, 50, lambda row: False) is None
    for index in range(1, 60):
        row = earlier_row("copy", 0, index, lambda row: row % 2 == 0)
        assert row is not None
        assert row < index
        assert row % 2 == 0
