"""Scores of a small ledger, counted by hand."""

from __future__ import annotations

import uuid
from typing import Any

import pyarrow as pa
import pytest

from winnow.contracts.registry import FILTERS
from winnow.stages.sources._scenes.noise import SHARES
from winnow.stages.sources._scenes.score import CATCHES, score

ORDER = ["has_media", "language_is", "clip_top_fraction", "drop_near_duplicates"]


def uid(number: int) -> bytes:
    return number.to_bytes(16, "big")


def table(*rows: tuple[int, str, int | None, str | None, int | None]) -> pa.Table:
    """(uid, kind, original, filter that dropped it, duplicate_of)."""
    return pa.table(
        {
            "uid": pa.array([uid(r[0]) for r in rows], pa.binary(16)),
            "truth_kind": [r[1] for r in rows],
            "truth_duplicate_of": pa.array(
                [None if r[2] is None else uid(r[2]) for r in rows], pa.binary(16)
            ),
            "outcome": ["dropped" if r[3] else "kept" for r in rows],
            "filter": pa.array([r[3] for r in rows], pa.string()),
            "duplicate_of": pa.array(
                [None if r[4] is None else uid(r[4]) for r in rows], pa.binary(16)
            ),
        }
    )


LEDGER = table(
    (1, "clean", None, None, None),
    (2, "clean", None, "clip_top_fraction", None),
    (3, "clean", None, "drop_near_duplicates", 8),  # lost to its own copy
    (4, "clean", None, None, None),
    (5, "dead_link", None, "has_media", None),
    (6, "dead_link", None, "has_media", None),
    (7, "corrupt", None, None, None),
    (8, "near_duplicate", 3, None, None),
    (9, "near_duplicate", 1, "clip_top_fraction", None),
    (10, "exact_duplicate", 4, None, None),  # missed
    (11, "foreign_caption", None, "language_is", None),
    (12, "foreign_caption", None, "has_media", None),
    (13, "foreign_caption", None, "clip_top_fraction", None),
    (14, "foreign_caption", None, None, None),
    (15, "swapped_caption", None, "clip_top_fraction", None),
    (16, "swapped_caption", None, "drop_near_duplicates", 1),  # a false neighbour
)


def by_name(order: list[str] | None) -> dict[str, dict[str, Any]]:
    return {entry["filter"]: entry for entry in score(LEDGER, order)}


def test_a_plain_filter_with_the_order_known() -> None:
    found = by_name(ORDER)
    assert list(found) == [*ORDER, "overall"]
    assert found["has_media"] == {
        "filter": "has_media",
        "kinds": ["dead_link", "slow_link", "html", "corrupt"],
        "dropped": 3,
        "right": 2,
        "precision": 2 / 3,
        "precision_any": 1.0,
        "reached": 3,
        "recall": 2 / 3,
        "total": 3,
        "caught": 2 / 3,
    }
    language = found["language_is"]
    # 12 never came so far; 13 was missed here, though a later filter caught it
    assert (language["reached"], language["right"]) == (3, 1)
    assert language["recall"] == pytest.approx(1 / 3)
    assert (language["total"], language["caught"]) == (4, 0.75)
    clip = found["clip_top_fraction"]
    assert (clip["dropped"], clip["right"], clip["reached"]) == (4, 1, 2)
    assert clip["precision"] == 0.25
    assert clip["precision_any"] == 0.75
    assert (clip["recall"], clip["caught"]) == (0.5, 1.0)


def test_without_the_order_later_catches_are_no_misses() -> None:
    found = by_name(None)
    assert (found["language_is"]["reached"], found["language_is"]["recall"]) == (2, 0.5)
    assert set(found) == {*ORDER, "overall"}


def test_duplicates_are_counted_in_pairs() -> None:
    found = by_name(ORDER)["drop_near_duplicates"]
    assert (found["dropped"], found["right"], found["precision"]) == (2, 1, 0.5)
    # (1, 9) never met here; (3, 8) caught; (4, 10) missed
    assert (found["reached"], found["recall"]) == (2, 0.5)
    assert (found["total"], found["caught"]) == (3, pytest.approx(2 / 3))


def test_overall_lets_a_copy_stand_for_its_original() -> None:
    overall = by_name(ORDER)["overall"]
    assert (overall["kept"], overall["dropped"], overall["clean"]) == (6, 10, 4)
    # kept: 1, 4 clean; 8 stands for 3; 7, 10, 14 are not
    assert overall["clean_share"] == 0.5
    assert overall["clean_kept"] == 0.75


def test_without_duplicate_of_the_set_decides() -> None:
    found = score(LEDGER.drop_columns(["duplicate_of"]), ORDER)
    entry = next(e for e in found if e["filter"] == "drop_near_duplicates")
    assert (entry["right"], entry["precision"]) == (1, 0.5)


def test_nothing_to_count_is_none() -> None:
    (entry, overall) = score(table((1, "clean", None, "max_aspect_ratio", None)))
    assert entry["filter"] == "max_aspect_ratio"
    assert (entry["precision"], entry["recall"], entry["caught"]) == (0.0, None, None)
    assert (overall["clean_share"], overall["clean_kept"]) == (None, 0.0)
    (only,) = score(LEDGER.slice(0, 0))
    assert (only["filter"], only["clean_share"]) == ("overall", None)


def test_a_filter_of_ones_own_and_uuids() -> None:
    rows = table((1, "tiny", None, "where", None)).drop_columns(["uid"])
    rows = rows.append_column("uid", pa.array([uuid.UUID(int=1)], pa.uuid()))
    entry = score(rows)[0]
    assert (entry["filter"], entry["kinds"], entry["precision"]) == ("where", [], None)
    assert entry["precision_any"] == 1.0
    assert score(rows, catches={"where": ("tiny",)})[0]["recall"] == 1.0


def test_every_kind_is_somebodys_and_every_name_a_filters() -> None:
    assert {kind for kinds in CATCHES.values() for kind in kinds} == set(SHARES)
    # "decodable" is a key of the quickstart: has_media on the decoder's error.
    assert set(CATCHES) - {"decodable"} <= set(FILTERS)
