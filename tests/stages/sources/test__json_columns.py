"""Typed columns of .json members: values of the type stay, others are null where they stand."""

from __future__ import annotations

import datetime as dt
import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stages.sources.test_webdataset import rows, write
from winnow.contracts.errors import RecipeError
from winnow.contracts.parameters import result_parameters
from winnow.stages.sources._json_columns import SCALARS, JsonColumns, JsonReader, json_type
from winnow.stages.sources.webdataset import WebDataset

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "string": st.text(st.characters(exclude_categories=["Cs"])),
    "bool": st.booleans(),
    "int8": st.integers(-(2**7), 2**7 - 1),
    "int16": st.integers(-(2**15), 2**15 - 1),
    "int32": st.integers(-(2**31), 2**31 - 1),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "float32": st.floats(allow_nan=False, allow_infinity=False, width=32),
    "float64": st.floats(allow_nan=False, allow_infinity=False),
    "date": st.dates(),
    "timestamp": st.datetimes(),
    "timestamp_utc": st.datetimes(timezones=st.just(dt.UTC)),
}
ROW = "list<struct<text: string, image: int32>>"


@st.composite
def typed(draw: st.DrawFn, depth: int = 3) -> tuple[str, pa.DataType, st.SearchStrategy[Any]]:
    """The text of a type, the type, and values of it, null among them."""
    made = draw(st.sampled_from(["scalar", "list", "struct"])) if depth else "scalar"
    if made == "scalar":
        name = draw(st.sampled_from(sorted(SCALARS)))
        return name, SCALARS[name], st.none() | VALUES[name]
    if made == "list":
        text, kind, values = draw(typed(depth - 1))
        return f"list<{text}>", pa.list_(kind), st.none() | st.lists(values, max_size=3)
    parts = {name: draw(typed(depth - 1)) for name in ("a", "b c")}
    text = ", ".join(f"{name}: {part[0]}" for name, part in parts.items())
    kind = pa.struct([(name, part[1]) for name, part in parts.items()])
    values = st.fixed_dictionaries({name: part[2] for name, part in parts.items()})
    return f"struct<{text}>", kind, st.none() | values


def columns(text: str, **names: str) -> JsonColumns:
    return JsonColumns.of("webdataset", {"x": text}, names, ["uid", "text"])


def read(text: str, *documents: str | None) -> tuple[list[Any], int]:
    """The values of the column x, and how many were lost."""
    reader = JsonReader(columns(text))
    (array,) = reader.arrays(documents)
    array.validate(full=True)
    return array.to_pylist(), reader.wrong["x"]


@settings(deadline=None)
@given(st.data())
def test_values_of_the_type_are_those_of_arrow(data: st.DataObject) -> None:
    text, kind, strategy = data.draw(typed())
    values = data.draw(st.lists(strategy, min_size=1, max_size=4))
    assert json_type(text) == kind
    reader = JsonReader(columns(text))
    documents = [json.dumps({"x": value}, default=lambda v: v.isoformat()) for value in values]
    (array,) = reader.arrays(documents)
    array.validate(full=True)
    assert array.type == kind
    assert array.to_pylist() == pa.array(values, kind).to_pylist()
    assert reader.wrong["x"] == 0


@pytest.mark.parametrize(
    ("text", "values", "expected", "lost"),
    [
        ("string", ["a", 3, True, ["a"], {}, "", None], ["a", *[None] * 4, "", None], 4),
        ("bool", [True, False, 1, 0, "true"], [True, False, None, None, None], 3),
        ("int8", [127, -128, 3.0, 128, -129, 3.5, True, "3"], [127, -128, 3, *[None] * 5], 5),
        ("int64", [2**63 - 1, 2**63, 1e300, float("nan"), float("inf")],
         [2**63 - 1, *[None] * 4], 4),
        ("float32", [1, 0.5, 1e39, True, "1"], [1.0, 0.5, None, None, None], 3),
        ("float64", [1e308, 10**400, float("-inf"), float("nan")], [1e308, *[None] * 3], 3),
        ("date", ["2024-02-29", "2023-02-29", 3], [dt.date(2024, 2, 29), None, None], 2),
        ("timestamp_utc", ["2024-02-29T01:02:03Z", "2024-02-29T01:02:03", "now"],
         [dt.datetime(2024, 2, 29, 1, 2, 3, tzinfo=dt.UTC), None, None], 2),
        ("list<string>", [["a", 1, None], [], "a", {"a": 1}],
         [["a", None, None], [], None, None], 3),
        ("struct<a: int32, b: bool>", [{"a": 1}, {"b": 2, "c": 3}, {}, [1]],
         [{"a": 1, "b": None}, {"a": None, "b": None}, {"a": None, "b": None}, None], 2),
        ("list<list<int32>>", [[[1], None, ["1", 2], 3]], [[[1], None, [None, 2], None]], 2),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_null_where_it_stands(
    text: str, values: list[Any], expected: list[Any], lost: int
) -> None:
    found, wrong = read(text, *(json.dumps({"x": value}) for value in values))
    assert found == expected
    assert [type(value) for value in found] == [type(value) for value in expected]
    assert wrong == lost


def test_documents_that_are_none_and_keys_that_are_not_there() -> None:
    documents = [
        None, "", "null", "[1]", '"x"', '{"x": ', "[" * 100_000, '{"X": 1, "y": {"x": 1}}',
        '{"x": null}', '\ufeff{"x": 1}', '{"x": 1, "x": 2}', '{"x": ' + "9" * 5000 + "}",
    ]  # fmt: skip
    assert read("int32", *documents) == ([None] * 9 + [1, 2, None], 0)
    half = ['{"x": "cat \\ud83d"}', '{"x": "\\ud83d\\ude00"}']
    assert read("string", *half) == (["cat \ufffd", "\U0001f600"], 0)


def test_what_is_lost_is_counted_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    reader = JsonReader(JsonColumns.of("webdataset", {"said": ROW, "width": "int32"}, {}, []))
    reader.arrays(['{"said": [{"text": 3}, {"image": "1"}, {"text": "a"}]}', None])
    reader.arrays(['{"said": "a"}'])
    with caplog.at_level(logging.WARNING):
        reader.warn("0.tar")
    assert [record.getMessage() for record in caplog.records] == [
        "0.tar: json_columns: 3 values in 'said' are not of "
        "list<item: struct<text: string, image: int32>>, and null",
        "0.tar: no .json has a value of 'width'",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "", "int", "String", "list", "list<>", "struct<>", "list<string>>", "list<string",
        "string>", "map<string, int32>", "struct<a string>", "struct<a: int32, a: bool>",
        "struct<: int32>", "struct<a: int32,>", "list<int32>, list<int32>", "list<int32, int32>",
        "binary",
    ],
)  # fmt: skip
def test_what_names_no_type_is_refused(text: str) -> None:
    with pytest.raises(
        RecipeError, match=r"json_columns: x: .* is not a type; use one of string, "
    ):
        columns(text)


def test_names_that_are_taken_and_new_names() -> None:
    assert columns("int32", x="Width").fields == pa.schema([("Width", pa.int32())])
    for name in ("uid", "TEXT", ""):
        with pytest.raises(RecipeError, match=r"set rename: \{x: original_x\}"):
            columns("int32", x=name)
    with pytest.raises(RecipeError, match="'y' would be 'X', but another column has that name"):
        JsonColumns.of("webdataset", {"x": "int32", "y": "int32"}, {"y": "X"}, [])
    with pytest.raises(RecipeError, match="rename is for json_columns, and 'z' is not one"):
        columns("int32", z="y")


def test_json_columns_are_beside_the_metadata_as_it_is(tmp_path: Path) -> None:
    said = '{"n": 3, "text": "json", "x": [1, "2"],  "tags": ["a"]}'
    entries = [
        ("a.jpg", b"a"), ("a.json", said.encode()),
        ("b.jpg", b"b"), ("b.json", b'\xff{"n": 4}'),
        ("c.jpg", b"c"),
    ]  # fmt: skip
    path = write(tmp_path / "t.tar", entries)
    plain = WebDataset(path=path)
    types = {"n": "int32", "x": "list<int64>", "text": "string"}
    typed = WebDataset(path=path, json_columns=types, rename={"text": "caption"})
    assert typed.schema() == pa.schema(
        [*plain.schema(), ("n", pa.int32()), ("x", pa.list_(pa.int64())), ("caption", pa.string())]
    )
    nothing = {"n": None, "x": None, "caption": None}
    expected = [{"n": 3, "x": [1, None], "caption": "json"}, nothing, nothing]
    before = rows(plain)
    assert before[0]["metadata"] == said
    assert rows(typed) == [row | new for row, new in zip(before, expected, strict=True)]
    # What was read before the parameter came keeps its name.
    assert {"json_columns", "rename"}.isdisjoint(result_parameters(plain))
    assert result_parameters(typed)["json_columns"] == types
    for name in ("metadata", "image_ref", "image", "key"):
        with pytest.raises(RecipeError, match=f"{name!r} would be {name!r}, but another column"):
            WebDataset(path=path, json_columns={name: "string"})
    with pytest.raises(RecipeError, match="webdataset: json_columns: n: 'int' is not a type"):
        WebDataset(path=path, json_columns={"n": "int"})


def test_json_columns_of_more_rows_than_a_batch(tmp_path: Path) -> None:
    entries = [(f"{i:05d}.json", b'{"n": %d}' % i) for i in range(2500)]
    source = WebDataset(path=write(tmp_path / "t.tar", entries), json_columns={"n": "int64"})
    assert [row["n"] for row in rows(source)] == list(range(2500))
