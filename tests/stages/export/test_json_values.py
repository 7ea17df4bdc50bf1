"""Column-wise conversion against a naive loop over Python values."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import uuid
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from winnow.stages.export._json_values import json_feature, json_values

UTC = datetime.UTC
BERLIN = datetime.timezone(datetime.timedelta(hours=1))
NOON_IN_BERLIN = datetime.datetime(2026, 1, 2, 12, tzinfo=BERLIN)


def naive(value: Any) -> Any:
    """What one value should become, one value at a time."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):
        return [naive(v) for v in value]
    if isinstance(value, dict):
        return {k: naive(v) for k, v in value.items()}
    return value


SCALARS = st.sampled_from(
    [
        (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
        (pa.bool_(), st.booleans()),
        (pa.float64(), st.floats()),
        (pa.string(), st.text()),
        (pa.large_string(), st.text()),
        (pa.binary(), st.binary(max_size=20)),
        (pa.binary(3), st.binary(min_size=3, max_size=3)),
    ]
)


@st.composite
def columns(draw: st.DrawFn) -> tuple[pa.DataType, list[Any]]:
    kind, values = draw(SCALARS)
    for _ in range(draw(st.integers(0, 2))):
        if draw(st.booleans()):
            kind, values = pa.list_(kind), st.lists(st.none() | values, max_size=3)
        else:
            kind, values = (
                pa.struct([("a", kind)]),
                st.fixed_dictionaries({"a": st.none() | values}),
            )
    return kind, draw(st.lists(st.none() | values, max_size=6))


@given(columns(), st.integers(0, 3))
def test_any_nesting_equals_the_naive_loop(
    column: tuple[pa.DataType, list[Any]], skip: int
) -> None:
    kind, values = column
    array = pa.array(values, kind).slice(skip)
    assert json_values(array) == [naive(v) for v in values[skip:]]


@given(st.lists(st.none() | st.floats(width=32)))
def test_float32_is_short_and_comes_back_exactly(values: list[float | None]) -> None:
    back = json.loads(json.dumps(json_values(pa.array(values, pa.float32())), allow_nan=False))
    for value, read in zip(values, back, strict=True):
        if value is None or not math.isfinite(value):
            assert read is None
        else:
            assert np.float32(read) == np.float32(value)
            assert repr(read) in (repr(float(str(np.float32(value)))), repr(float(value)))


def test_every_float16_comes_back_exactly() -> None:
    values = np.arange(2**16, dtype=np.uint16).view(np.float16)
    read = json_values(pa.array(values))
    expected = [float(v) if np.isfinite(v) else None for v in values]
    assert [None if r is None else float(np.float16(r)) for r in read] == expected


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([0.28, 0.1], pa.float32()), [0.28, 0.1]),
        (pa.array([2**64 - 1, None], pa.uint64()), ["18446744073709551615", None]),
        (pa.array([decimal.Decimal("1.20"), None], pa.decimal128(5, 2)), ["1.20", None]),
        (pa.array([decimal.Decimal("12000")], pa.decimal128(5, -3)), ["12000"]),
        (pa.array([datetime.date(2026, 1, 2), None]), ["2026-01-02", None]),
        (pa.array([datetime.date(2026, 1, 2)], pa.date64()), ["2026-01-02"]),
        (pa.array([datetime.time(1, 2, 3, 4)]), ["01:02:03.000004"]),
        (pa.array([datetime.timedelta(seconds=2)], pa.duration("ms")), [2000]),
        (
            pa.array([datetime.datetime(2026, 1, 2, 3, 4, 5)], pa.timestamp("s")),
            ["2026-01-02T03:04:05"],
        ),
        (
            pa.array([NOON_IN_BERLIN], pa.timestamp("ms", "Europe/Berlin")),
            ["2026-01-02T11:00:00.000Z"],
        ),
        (pa.array([1], pa.timestamp("ns", "UTC")), ["1970-01-01T00:00:00.000000001Z"]),
        (pa.array([2**50, 0], pa.timestamp("ms")), [None, "1970-01-01T00:00:00.000"]),
        (pa.array([2**31 - 1, 0], pa.date32()), [None, "1970-01-01"]),
        (pa.array(["a", None, "a"]).dictionary_encode(), ["a", None, "a"]),
        (
            pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int8())),
            [[{"key": "a", "value": 1}], None],
        ),
        (pa.nulls(2), [None, None]),
        (pa.array([{}, None], pa.struct([])), [{}, None]),
        (
            pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(16)], pa.binary(16))),
            ["0" * 32],
        ),
        (
            pa.FixedSizeListArray.from_arrays(
                pa.array([1.5, 2.5, 3.5, 4.5], pa.float16()), 2, mask=pa.array([False, True])
            ),
            [[1.5, 2.5], None],
        ),
        (pa.array([[b"\x01"], None, []], pa.list_view(pa.binary())), [["01"], None, []]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)  # fmt: skip
def test_types(array: pa.Array, expected: list[Any]) -> None:
    assert json_values(array) == expected
    json.dumps(json_values(array), allow_nan=False)


def test_uuids_equal_pythons_hex() -> None:
    ids = [uuid.UUID(int=7), uuid.UUID(int=2**127)]
    array = pa.array([u.bytes for u in ids], pa.binary(16))
    assert json_values(array) == [u.hex for u in ids]


@pytest.mark.parametrize(
    ("kind", "feature"),
    [
        (pa.int32(), {"dtype": "int32"}),
        (pa.uint64(), {"dtype": "string"}),
        (pa.float16(), {"dtype": "float32"}),
        (pa.timestamp("us"), {"dtype": "string"}),
        (pa.duration("s"), {"dtype": "int64"}),
        (pa.dictionary(pa.int32(), pa.string()), {"dtype": "string"}),
        (pa.list_(pa.binary(16)), {"list": "string"}),
        (pa.list_(pa.list_(pa.int8())), {"list": {"list": "int8"}}),
        (pa.struct([("a", pa.int8())]), {"struct": [{"name": "a", "dtype": "int8"}]}),
        (pa.list_(pa.struct([("a", pa.int8())])), {"list": [{"name": "a", "dtype": "int8"}]}),
    ],
    ids=str,
)
def test_features_are_spelled_as_datasets_spells_them(kind: pa.DataType, feature: Any) -> None:
    datasets = pytest.importorskip("datasets")
    assert json_feature(kind) == feature
    features = datasets.Features._from_yaml_list([{"name": "x", **feature}])
    assert features._to_yaml_list() == [{"name": "x", **feature}]
