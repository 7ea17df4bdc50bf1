"""Counts of objects: the file that holds them, and files that hold something else."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from winnow.contracts.errors import SetupError
from winnow.stages._object_statistics import count_objects, files_digest, read_statistics

NAMES = st.sampled_from(["a", "b", "a|b", "hot dog", 'quote"', "\u00e9", "\U0001f408", "\n", ""])


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.none() | st.lists(NAMES, max_size=5), max_size=8))
def test_counts_survive_their_file_in_any_order(
    tmp_path: Path, lists: list[list[str] | None]
) -> None:
    found = count_objects(lists)
    sets = [set(names) for names in lists if names is not None]
    names = sorted(set().union(*sets))
    together = {
        (a, b): sum(a in s and b in s for s in sets) for a, b in combinations(names, 2)
    }  # fmt: skip
    assert found.num_rows == len(sets)
    assert found.objects == {name: sum(name in s for s in sets) for name in names}
    assert found.pairs == {pair: count for pair, count in together.items() if count}
    assert found.by_frequency() == sorted(names, key=lambda n: (-found.objects[n], n))
    for name, others in found.companions().items():
        both = {n: sum(name in s and n in s for s in sets) for n in names if n != name}
        assert others == sorted((n for n in both if both[n]), key=lambda n: (-both[n], n))
    assert found.to_json() == count_objects(lists[::-1]).to_json()
    path = tmp_path / "objects.json"
    path.write_text(found.to_json(), encoding="utf-8")
    assert read_statistics("me", str(path)) == found


def test_a_pair_in_the_other_order_is_the_same_pair(tmp_path: Path) -> None:
    path = tmp_path / "objects.json"
    path.write_text('{"num_rows": 1, "objects": {"a": 1, "b": 1}, "pairs": {"b": {"a": 1}}}')
    assert read_statistics("me", str(path)) == count_objects([["a", "b"]])


GOOD = {"num_rows": 2, "objects": {"a": 2, "b": 1}, "pairs": {"a": {"b": 1}}}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        json.dumps(GOOD | {"num_rows": None}),
        json.dumps(GOOD | {"num_rows": float("nan")}),
        json.dumps(GOOD | {"num_rows": -1}),
        json.dumps(GOOD | {"objects": ["a"]}),
        json.dumps(GOOD | {"objects": {"a": 2, "b": -1}}),
        json.dumps(GOOD | {"objects": {"a": 2}}),
        json.dumps(GOOD | {"pairs": {"a": 1}}),
        json.dumps(GOOD | {"pairs": {"a": {"b": -1}}}),
        "[" * 100_000,
        '{"num_rows": 1' + "0" * 5000 + "}",
        "\ufeff{}",
    ],
)
def test_a_file_that_holds_something_else(tmp_path: Path, text: str) -> None:
    path = tmp_path / "objects.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SetupError, match=r"me: statistics .*objects\.json cannot be read"):
        read_statistics("me", str(path))


def test_the_digest_is_of_contents_in_their_places(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"a")
    two.write_bytes(b"b")
    paths = [(str(one),), (str(one), None), (None, str(one)), (str(one), str(two))]
    paths += [(str(two), str(one)), (str(one), str(one))]
    assert len({files_digest(*some) for some in paths}) == len(paths)
    before = files_digest(str(one))
    assert files_digest(str(one.rename(tmp_path / "three"))) == before
    assert files_digest() == files_digest(None, None) == ""
    for bad in (str(tmp_path), str(tmp_path / "none")):
        with pytest.raises(SetupError, match="cannot be read"):
            files_digest(bad)
