"""The values in a ledger are those of json.dumps, row by row."""

from __future__ import annotations

import datetime
import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from winnow.pipeline.ledger_values import json_objects

COLUMNS: dict[str, pa.Array] = {
    "number": pa.array([3, None, 3, -(2**62), 0], pa.int64()),
    "score": pa.array([0.1234567891, math.nan, None, math.inf, -math.inf], pa.float32()),
    "flag": pa.array([True, None, False, True, True]),
    'te"xt': pa.array(["a", 'say "hi" \\ \n', None, "\u00fc \U0001f600", "a"]),
    "digest": pa.array([b"\x00\xff", None, b"", b"ab", b"\x00\xff"], pa.binary()),
    "uid": pa.array([b"0123456789abcdef", None, b"\xff" * 16, b"\x00" * 16, None], pa.binary(16)),
    "when": pa.array([datetime.date(2020, 1, 2), None, None, None, datetime.date(1970, 1, 1)]),
    "list": pa.array([[1, 2], None, [], [None], [3]], pa.list_(pa.int32())),
    "struct": pa.array([{"x": 0.12345678, "y": b"a"}, None, {"x": None, "y": b""}, None, None]),
    "nothing": pa.nulls(5),
}


def naive(value: Any) -> Any:
    if isinstance(value, float):
        if math.isinf(value):
            return "inf" if value > 0 else "-inf"
        return None if math.isnan(value) else round(value, 6)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {k: naive(v) for k, v in value.items()}
    return str(value) if isinstance(value, list | datetime.date) else value


@pytest.mark.parametrize("at", [[0, 1, 2, 3, 4], [1, 4], [3], []])
@pytest.mark.parametrize("names", [[], *([n] for n in COLUMNS), list(COLUMNS)])
def test_each_row_is_what_json_makes_of_it(names: list[str], at: list[int]) -> None:
    whole = pa.table(COLUMNS)
    table = pa.concat_tables([whole.slice(0, 2), whole.slice(2)])
    found = json_objects(table, names, np.array(at, np.int64))
    rows = [whole.slice(i, 1).select(names).to_pylist()[0] if names else {} for i in at]
    assert found.type == pa.string()
    assert found.to_pylist() == [json.dumps({k: naive(v) for k, v in r.items()}) for r in rows]


def test_a_dictionary_is_its_values() -> None:
    chunks = [pa.array(["a", None]).dictionary_encode(), pa.array(["b", "a"]).dictionary_encode()]
    nulls = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 0], pa.int8()), ["x", None])
    table = pa.table({"word": pa.chunked_array(chunks), "other": nulls})
    found = json_objects(table, ["word", "other"], np.arange(4))
    assert [json.loads(text) for text in found.to_pylist()] == [
        {"word": "a", "other": "x"},
        {"word": None, "other": None},
        {"word": "b", "other": None},
        {"word": "a", "other": "x"},
    ]


def test_a_time_that_python_cannot_hold_is_said_all_the_same() -> None:
    table = pa.table({"when": pa.array([2**62, None, 3], pa.timestamp("s"))})
    far, nothing, near = map(json.loads, json_objects(table, ["when"], np.arange(3)).to_pylist())
    assert str(2**62) in far["when"]
    assert (nothing, near) == ({"when": None}, {"when": "1970-01-01 00:00:03"})
