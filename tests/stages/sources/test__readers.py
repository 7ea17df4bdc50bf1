"""Readers of tables: types within types, files that are damaged, names that cannot be kept."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from winnow.contracts.errors import SetupError, ShardError
from winnow.stages.sources._readers import (
    TableOptions,
    batches,
    extension_format,
    header,
    plain_type,
)
from winnow.stages.sources._text_rows import TextOptions

LEAVES = [
    (pa.large_string(), "a", pa.string()),
    (pa.string_view(), "\u732b", pa.string()),
    (pa.dictionary(pa.int8(), pa.large_string()), "b", pa.string()),
    (pa.null(), None, pa.string()),
    (pa.binary_view(), b"\xff", pa.binary()),
    (pa.uuid(), uuid.UUID(int=7).bytes, pa.binary(16)),
    (pa.int16(), -3, pa.int16()),
    (pa.large_binary(), b"\0", pa.large_binary()),
    (pa.timestamp("us", "UTC"), None, pa.timestamp("us", "UTC")),
]


@st.composite
def typed_values(draw: st.DrawFn, depth: int = 3) -> tuple[pa.DataType, Any, pa.DataType]:
    """A type, a value of it, and the plain type by the docstring of ``plain_type``."""
    if depth == 0 or draw(st.booleans()):
        return draw(st.sampled_from(LEAVES))
    kind, value, plain = draw(typed_values(depth - 1))
    made = draw(st.sampled_from(["list", "large_list", "fixed", "struct", "map"]))
    if made == "struct":
        wrapped = pa.struct([("x", kind), ("y", pa.bool_())])
        return wrapped, {"x": value, "y": True}, pa.struct([("x", plain), ("y", pa.bool_())])
    if made == "map":
        return pa.map_(pa.string(), kind), [("k", value)], pa.map_(pa.string(), plain)
    if made == "fixed":
        return pa.list_(kind, 2), [value, value], pa.list_(plain, 2)
    maker = {"list": pa.list_, "large_list": pa.large_list}[made]
    return maker(kind), [value, None], pa.list_(plain)


def written(path: Path, kind: pa.DataType, values: list[Any]) -> bool:
    """Write a column; false where Arrow cannot make it, or cannot write it."""
    try:
        pq.write_table(pa.table({"x": pa.array(values, kind)}), path)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid, TypeError, AttributeError):
        return False
    return True


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(typed_values())
def test_types_within_types_become_plain_and_keep_their_values(
    tmp_path: Path, made: tuple[pa.DataType, Any, pa.DataType]
) -> None:
    kind, value, plain = made
    assert plain_type(kind) == plain
    assert plain_type(plain) == plain
    path = tmp_path / "t.parquet"
    if not written(path, kind, [value, None]):
        return
    columns = header(str(path), TableOptions())
    assert columns == pa.schema([("x", plain)])
    (batch,) = batches(str(path), TableOptions(), columns, frozenset(columns.names))
    batch.validate(full=True)
    assert batch.schema == columns
    assert batch["x"].to_pylist() == pa.array([value, None], plain).to_pylist()


def parquet() -> bytes:
    out = io.BytesIO()
    columns = {"url": ["a" * 40, "b", None], "n": [1, 2, 3], "l": [["x"], [], None]}
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


FILES = {
    "t.parquet": parquet(),
    "t.csv": 'url,text\na,"x\ny"\nb,\u732b\n'.encode(),
    "t.tsv": b'url\ttext\na\t"x"\nb\ty\n',
    "t.jsonl": b'{"url":"a","text":"\\ud83d\\ude00"}\n{"url":"b","text":[1,{"x":null}]}\n',
    "t.txt": b"http://a\n\nhttp://b\n",
}
COMPRESS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
COMPRESS[".zst"] = lambda data: pa.compress(data, codec="zstd", asbytes=True)


def read(path: Path, options: TableOptions | None = None) -> Iterator[pa.RecordBatch]:
    options = options or TableOptions()
    columns = header(str(path), options)
    if columns is not None:
        yield from batches(str(path), options, columns, frozenset(columns.names))


edits = st.lists(
    st.tuples(st.integers(0, 2000), st.sampled_from([0, 10, 13, 34, 92, 0x91, 255])), max_size=4
)


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(list(FILES)), st.sampled_from(list(COMPRESS)), edits, edits,
    st.integers(0, 300), st.sampled_from(["error", "null"]),
)  # fmt: skip
def test_damage_is_an_error_of_the_file_or_read(
    tmp_path: Path, name: str, packed: str, inner: list[Any], outer: list[Any], cut: int, bad: Any
) -> None:
    data = bytearray(FILES[name])
    for at, value in inner:
        data[at % len(data)] = value
    data = bytearray(COMPRESS[packed](bytes(data)))
    for at, value in outer:
        data[at % len(data)] = value
    path = tmp_path / f"{name}{packed}"
    path.write_bytes(bytes(data)[: len(data) - cut // 10])
    try:
        for batch in read(path, TableOptions(bad_rows=bad)):
            batch.validate(full=True)
    except (ShardError, SetupError) as error:
        assert f"{path}" in str(error)


@pytest.mark.parametrize("packed", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("name", ["t.parquet", "t.csv"])
def test_what_is_not_compressed_at_all(tmp_path: Path, name: str, packed: str) -> None:
    path = tmp_path / f"{name}{packed}"
    path.write_bytes(b"not what the name says, and long enough to have a footer")
    with pytest.raises(ShardError, match="t\\.(csv|parquet)"):
        list(read(path))


def test_a_name_in_the_schema_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(FILES["t.parquet"].replace(b"url", b"\x91\xff\xfe"))
    with pytest.raises(ShardError, match="not a whole parquet file"):
        list(read(path))


def test_a_key_that_is_half_of_a_surrogate_pair(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"url":"a","\\ud83d\\ude00":1}\n')
    (batch,) = read(path)
    assert batch.to_pylist() == [{"url": "a", "\U0001f600": "1"}]
    path.write_bytes(b'{"url":"a","\\ud83d":1}\n')
    with pytest.raises(ShardError, match=r"the key '\\ud83d' holds half of a pair of surrogates"):
        list(read(path))


def test_names_with_dots_and_without_letters_are_names(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    rows = [{"url": "u", "a.b": "top", "a": {"b": "in", "c": 1}, "": "none"}]
    pq.write_table(pa.Table.from_pylist(rows), path)
    (batch,) = read(path)
    assert batch.to_pylist() == rows
    wanted = pa.schema([("a.b", pa.string()), ("url", pa.string())])
    (some,) = batches(str(path), TableOptions(), wanted, None)
    assert some.to_pylist() == [{"a.b": "top", "url": "u"}]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'url\n\n\na\n""\n\nb', ["a", None, "b"]),
        (b"\xef\xbb\xbfurl\r\na\r\n", ["a"]),
        (b'\xef\xbb\xbf"url"\r\n"a\r\nb"\r\n', ["a\r\nb"]),
        ("url\na\x85b\u2028c\x0bd\n".encode(), ["a\x85b\u2028c\x0bd"]),
        (b"url\na\x00b\n", ["a\x00b"]),
        (b'url\n"a""b"\n', ['a"b']),
        (b"url", []),
    ],
)
def test_what_ends_a_row_of_csv(tmp_path: Path, data: bytes, expected: list[str | None]) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    assert [value for batch in read(path) for value in batch["url"].to_pylist()] == expected


@pytest.mark.parametrize("rows", [0, 1, 4095, 4096, 4097, 8192])
def test_batches_at_their_limit(tmp_path: Path, rows: int) -> None:
    urls = [str(i) for i in range(rows)]
    (tmp_path / "t.txt").write_text("\n".join(urls))
    pq.write_table(pa.table({"url": pa.array(urls, pa.string())}), tmp_path / "t.parquet")
    for name in ("t.txt", "t.parquet"):
        found = list(read(tmp_path / name, TableOptions(text=TextOptions(line_column="url"))))
        assert [v for batch in found for v in batch["url"].to_pylist()] == urls
        assert all(0 < batch.num_rows <= 4096 for batch in found)


@pytest.mark.parametrize(
    ("path", "form"),
    [("a.CSV.GZ", "csv"), ("a.csv.gz.gz", None), (".csv", "csv"), ("csv", None), ("gz", None),
     ("a.gz", None), ("s3://b/x.y/t.tab.zst", "tsv"), ("a.parquet.zst", "parquet"), ("", None)],
)  # fmt: skip
def test_formats_by_extension(path: str, form: str | None) -> None:
    assert extension_format(path) == form
