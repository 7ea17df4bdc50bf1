"""url_table against pandas, pyarrow and json, on real files of every format."""

from __future__ import annotations

import bz2
import csv
import datetime as dt
import decimal
import gzip
import io
import json
import lzma
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from winnow.contracts.errors import RecipeError, SetupError, ShardError
from winnow.contracts.identity import row_uid
from winnow.contracts.parameters import result_parameters, validate
from winnow.contracts.registry import SOURCES
from winnow.stages.sources.url_table import UrlTable

URLS = [f"http://example.com/{i}.jpg" for i in range(5)]
TEXTS = ["a cat", 'he said "no", then\nleft', "größe 猫 🐈", None, " padded "]
COMPRESS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def rows(source: UrlTable) -> pa.Table:
    batches = [batch for file in source.files() for batch in source.read(file)]
    table = pa.Table.from_batches(batches, pa.schema([("uid", pa.binary(16)), *source.schema()]))
    table.validate(full=True)
    urls, texts = table["url"].to_pylist(), table["text"].to_pylist()
    assert table["uid"].to_pylist() == [row_uid(u, t) for u, t in zip(urls, texts, strict=True)]
    return table


def csv_bytes(columns: dict[str, list[str | None]], **kwargs: object) -> bytes:
    return pd.DataFrame(columns).to_csv(index=False, **kwargs).encode()


def zst(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


def as_bytes(form: str) -> bytes:
    frame = pd.DataFrame({"url": URLS, "text": TEXTS, "note": list("abcde")})
    if form == "parquet":
        out = io.BytesIO()
        frame.to_parquet(out)
        return out.getvalue()
    if form == "jsonl":
        return frame.to_json(orient="records", lines=True).encode()
    return frame.to_csv(index=False, sep="\t" if form == "tsv" else ",").encode()


@pytest.mark.parametrize("compression", [*COMPRESS, ".zst"])
@pytest.mark.parametrize("form", ["parquet", "csv", "tsv", "jsonl"])
def test_every_format_and_compression_gives_the_same_rows(
    tmp_path: Path, form: str, compression: str
) -> None:
    compress = {**COMPRESS, ".zst": zst}[compression]
    (tmp_path / f"t.{form}{compression}").write_bytes(compress(as_bytes(form)))
    table = rows(UrlTable(path=str(tmp_path)))
    assert table["url"].to_pylist() == URLS
    assert table["text"].to_pylist() == TEXTS
    assert table["note"].to_pylist() == list("abcde")


@pytest.mark.parametrize("compression", list(COMPRESS))
def test_txt_has_one_url_per_line(tmp_path: Path, compression: str) -> None:
    data = COMPRESS[compression](b"\xef\xbb\xbfhttp://a/1\r\n\n  http://b/2  \nhttp://c/3")
    (tmp_path / f"t.txt{compression}").write_bytes(data)
    table = rows(UrlTable(path=str(tmp_path)))
    assert table["url"].to_pylist() == ["http://a/1", "http://b/2", "http://c/3"]
    assert table["text"].to_pylist() == [None] * 3
    assert table.column_names == ["uid", "url", "text"]


def test_any_parquet_type_survives(tmp_path: Path) -> None:
    utc = dt.UTC
    values: dict[str, tuple[pa.DataType, list[object]]] = {
        "date": (pa.date32(), [dt.date(2020, 2, 29), None]),
        "stamp": (pa.timestamp("us", "UTC"), [dt.datetime(2020, 1, 1, tzinfo=utc), None]),
        "naive": (pa.timestamp("ms"), [dt.datetime(1969, 1, 1), None]),
        "time": (pa.time64("us"), [dt.time(1, 2, 3), None]),
        "duration": (pa.duration("ms"), [dt.timedelta(seconds=3), None]),
        "money": (pa.decimal128(20, 3), [decimal.Decimal("12.345"), None]),
        "half": (pa.float16(), [0.5, None]),
        "big": (pa.uint64(), [2**64 - 1, None]),
        "raw": (pa.binary(), [b"\xff\x00", None]),
        "fixed": (pa.binary(4), [b"abcd", None]),
        "tags": (pa.list_(pa.string()), [["a", None], None]),
        "vector": (pa.list_(pa.float32(), 2), [[1.0, 2.0], None]),
        "deep": (
            pa.struct([("a", pa.list_(pa.struct([("b", pa.int8())])))]),
            [{"a": [{"b": 1}]}, None],
        ),
        "map": (pa.map_(pa.string(), pa.int32()), [[("k", 1)], None]),
    }
    schema = pa.schema([("url", pa.string()), ("text", pa.string())])
    columns = [pa.array(URLS[:2]), pa.array(["x", "y"])]
    for name, (kind, data) in values.items():
        schema = schema.append(pa.field(name, kind))
        columns.append(pa.array(data, kind))
    pq.write_table(pa.table(columns, schema=schema), tmp_path / "t.parquet")
    table = rows(UrlTable(path=str(tmp_path / "t.parquet")))
    for name, (kind, data) in values.items():
        assert table.schema.field(name).type == kind
        assert table[name].to_pylist() == data


def test_strings_of_every_kind_become_string(tmp_path: Path) -> None:
    text = pa.array(["x", "y", "x"])
    table = pa.table(
        {
            "url": pa.array(URLS[:3], pa.large_string()),
            "text": text.dictionary_encode(),
            "old": pa.array([b"x", b"y", b"z"], pa.binary()),
            "view": text.cast(pa.string_view()),
            "many": pa.array([["a"], [], None], pa.large_list(pa.large_string())),
            "in": pa.array([{"s": "a"}] * 3, pa.struct([("s", pa.large_string())])),
            "none": pa.nulls(3),
            "words": pa.array([["a"], ["b"], []], pa.list_(pa.string())),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    got = rows(UrlTable(path=str(tmp_path / "t.parquet")))
    types = dict(zip(got.schema.names, got.schema.types, strict=True))
    assert {types[n] for n in ("url", "text", "view", "none")} == {pa.string()}
    assert types["many"] == pa.list_(pa.string())
    assert types["in"] == pa.struct([("s", pa.string())])
    assert types["old"] == pa.binary()
    for name in table.column_names:
        assert got[name].to_pylist() == table[name].to_pylist()


def test_extension_types_become_their_storage(tmp_path: Path) -> None:
    ids = pa.array([b"0123456789abcdef"] * 2, pa.binary(16))
    table = pa.table({"url": URLS[:2], "text": ["a", "b"], "id": ids.cast(pa.uuid())})
    pq.write_table(table, tmp_path / "t.parquet")
    got = rows(UrlTable(path=str(tmp_path / "t.parquet")))
    assert got["id"].type == pa.binary(16)
    assert got["id"].to_pylist() == ids.to_pylist()


def test_urls_stored_as_binary_are_text_and_checked(tmp_path: Path) -> None:
    good = pa.table({"url": pa.array([b"http://a", None]), "text": ["x", None]})
    pq.write_table(good, tmp_path / "good.parquet")
    assert rows(UrlTable(path=str(tmp_path / "good.parquet")))["url"].to_pylist() == [
        "http://a",
        None,
    ]
    bad = pa.table({"url": pa.array([b"http://a", b"\xe9"]), "text": ["x", "y"]})
    pq.write_table(bad, tmp_path / "bad.parquet")
    with pytest.raises(ShardError, match=r"bad\.parquet: row 2, column 'url'"):
        rows(UrlTable(path=str(tmp_path / "bad.parquet")))
    lenient = UrlTable(path=str(tmp_path / "bad.parquet"), bad_rows="null")
    assert rows(lenient)["url"].to_pylist() == ["http://a", None]


def test_parquet_strings_that_are_not_utf8_are_found(tmp_path: Path) -> None:
    offsets = pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0")
    text = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"a\xe9"))
    pq.write_table(pa.table({"url": URLS[:2], "text": text}), tmp_path / "t.parquet")
    with pytest.raises(ShardError, match="row 2, column 'text'"):
        rows(UrlTable(path=str(tmp_path)))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(st.text(min_size=1), st.text(), st.text()).map(
            lambda row: tuple(v.replace("\0", "").replace("\ud800", "") for v in row)
        ),
        max_size=12,
    ),
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
def test_any_csv_that_the_csv_module_writes_comes_back(
    tmp_path: Path, data: list[tuple[str, ...]], delimiter: str, quoting: int
) -> None:
    data = [row for row in data if all(v.isprintable() or "\n" in v or "\r" in v for v in row)]
    path = tmp_path / "t.csv"
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, delimiter=delimiter, quoting=quoting)
        writer.writerows([("url", "text", "more"), *data])
    table = rows(UrlTable(path=str(path), delimiter=delimiter))
    got = list(zip(*(table[c].to_pylist() for c in ("url", "text", "more")), strict=True))
    assert got == [tuple(v or None for v in row) for row in data]


def test_csv_agrees_with_pandas_on_a_messy_file(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(
        b'\xef\xbb\xbfurl,text,n\r\nhttp://a,"one\r\ntwo",1\r\n\r\nhttp://b,"say ""hi""",\r\n'
        b"http://c,a 'quote' mid\"word,3"
    )
    expected = pd.read_csv(path, dtype=str, encoding="utf-8-sig")
    table = rows(UrlTable(path=str(path)))
    for name in expected.columns:
        assert (
            table[name].to_pylist() == expected[name].where(expected[name].notna(), None).tolist()
        )


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "t.csv",
            b"url,text\nhttp://a,x\nhttp://b\n",
            r"t\.csv, line 3: 1 fields, the header has 2",
        ),
        ("t.csv", b'url,text\nhttp://a,"x\ny"\nhttp://b,1,2\n', r"line 4: 3 fields"),
        (
            "t.csv",
            b"url,text\nhttp://a,caf\xe9\n",
            r"line 2: 0xe9, byte 13 of line 2, is not utf-8",
        ),
        ("t.csv", b'url,text\nhttp://a,"x"y\n', r"line 2: .*set quoted: false"),
        ("t.csv", b'url,text\nhttp://a,x\nhttp://b,"y\nhttp://c,z\n', r"line 3: a quote opened"),
        ("t.csv", "url,text\n".encode("utf-16"), r"line 1: this is UTF-16"),
        ("t.tsv", b'url\ttext\nhttp://a\t"x\nhttp://b\ty"\n', r"line 2: a quoted field holds tabs"),
        ("t.jsonl", b'{"url":"a","text":"b"}\n{"url":\n', r"line 2: not JSON"),
        ("t.jsonl", b'{"url":"a","text":"b"}\n[1]\n', r"line 2: not a JSON object"),
        ("t.jsonl", b'{"url":"a","text":"b"}\n' + b"[" * 200_000, r"line 2: not JSON"),
        ("t.jsonl", b'{"url":"a","text":"b"}\n{"x":"\xe9"}\n', r"line 2: 0xe9"),
        ("t.csv.gz", gzip.compress(b"url,text\n" + b"a,b\n" * 9000)[:-20], "cut or corrupt"),
        ("t.parquet", b"PAR1 not really PAR1", "not a whole parquet file"),
    ],
)
def test_what_cannot_be_read_names_file_and_line(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises((ShardError, SetupError), match=message) as caught:
        rows(UrlTable(path=str(tmp_path / name)))
    if isinstance(caught.value, ShardError):
        assert not caught.value.retryable


def test_bad_rows_can_become_rows_of_nulls_and_no_row_is_lost(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(
        b'url,text\nhttp://a,x\nhttp://b\nhttp://c,caf\xe9\nhttp://d,"x"y\nhttp://e,z\n'
    )
    table = rows(UrlTable(path=str(tmp_path), bad_rows="null"))
    assert table["url"].to_pylist() == ["http://a", None, None, None, "http://e"]
    assert table["text"].to_pylist() == ["x", None, None, None, "z"]
    (tmp_path / "t.csv").unlink()
    (tmp_path / "t.jsonl").write_bytes(b'{"url":"a","text":"b"}\nnope\n{"url":"c"}\n')
    assert rows(UrlTable(path=str(tmp_path), bad_rows="null"))["url"].to_pylist() == [
        "a",
        None,
        "c",
    ]


def test_an_unclosed_quote_fails_even_where_bad_rows_are_null(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b'url,text\nhttp://a,"x\nhttp://b,y\n')
    with pytest.raises(ShardError, match="line 2: a quote opened in this row is never closed"):
        rows(UrlTable(path=str(tmp_path), bad_rows="null"))


def test_encoding_quoted_and_column_names(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_bytes('http://a\tun café "nu\nhttp://b\t"x\n'.encode("latin-1"))
    source = UrlTable(
        path=str(tmp_path), encoding="latin-1", quoted=False, column_names=("url", "text")
    )
    assert rows(source)["text"].to_pylist() == ['un café "nu', '"x']


def test_text_types_are_strings_unless_types_says_otherwise(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"url,text,n,d\na,b,007,2020-02-29\nc,d,,\n")
    assert rows(UrlTable(path=str(tmp_path)))["n"].to_pylist() == ["007", None]
    typed = rows(UrlTable(path=str(tmp_path), types={"n": "int64", "d": "date"}))
    assert typed["n"].to_pylist() == [7, None]
    assert typed["d"].to_pylist() == [dt.date(2020, 2, 29), None]
    (tmp_path / "t.csv").write_bytes(b"url,text,n\na,b,1\nc,d,two\n")
    with pytest.raises(ShardError, match=r"line 3: n: 'two' is not a int64"):
        rows(UrlTable(path=str(tmp_path), types={"n": "int64"}))
    lenient = rows(UrlTable(path=str(tmp_path), types={"n": "int64"}, bad_rows="null"))
    assert lenient["n"].to_pylist() == [1, None]
    assert lenient["url"].to_pylist() == ["a", "c"]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.fixed_dictionaries(
            {"url": st.text(), "text": st.none() | st.text()},
            optional={
                "x": st.recursive(
                    st.none()
                    | st.booleans()
                    | st.integers()
                    | st.floats(allow_nan=False, allow_infinity=False)
                    | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
                    max_leaves=5,
                )
            },
        ),
        min_size=1,
        max_size=10,
    )
)
def test_jsonl_keeps_every_value(tmp_path: Path, data: list[dict[str, object]]) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in data), encoding="utf-8")
    table = rows(UrlTable(path=str(path)))
    assert table["url"].to_pylist() == [row["url"] for row in data]
    assert table["text"].to_pylist() == [row["text"] for row in data]
    for row, got in zip(data, table.to_pylist(), strict=True):
        value = row.get("x")
        if value is None or isinstance(value, str):
            assert got.get("x") == value
        else:
            assert json.loads(got["x"]) == value


def test_half_a_surrogate_pair_does_not_cost_the_file(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(r'{"url":"a","text":"cut \ud83d"}' + "\n" + '{"url":"b"}')
    assert rows(UrlTable(path=str(tmp_path)))["text"].to_pylist() == ["cut \ufffd", None]


def test_a_late_json_key_fails_and_keep_is_the_fix(tmp_path: Path) -> None:
    lines = ['{"url":"a","text":"b"}'] * 1000 + ['{"url":"a","text":"b","rare":1}']
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    with pytest.raises(
        ShardError, match=r"line 1001: the key 'rare' .* list the columns in `keep`"
    ):
        rows(UrlTable(path=str(tmp_path)))
    assert rows(UrlTable(path=str(tmp_path), keep=())).num_rows == 1001


def test_columns_across_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"url,text,x\na,b,1\n")
    (tmp_path / "b.csv").write_bytes(b"x,text,url\n2,d,c\n")
    assert rows(UrlTable(path=str(tmp_path)))["x"].to_pylist() == ["1", "2"]
    (tmp_path / "c.csv").write_bytes(b"url,text\ne,f\n")
    with pytest.raises(
        ShardError, match=r"c\.csv: there is no column 'x', which the first file has"
    ):
        rows(UrlTable(path=str(tmp_path)))
    assert rows(UrlTable(path=str(tmp_path), keep=())).num_rows == 3
    (tmp_path / "c.csv").write_bytes(b"url,text,x,y\ne,f,3,4\n")
    with pytest.raises(ShardError, match=r"c\.csv: the column 'y' is not in the first file"):
        rows(UrlTable(path=str(tmp_path)))
    assert rows(UrlTable(path=str(tmp_path), keep=("x",)))["x"].to_pylist() == ["1", "2", "3"]


def test_parquet_types_follow_the_first_file(tmp_path: Path) -> None:
    def write(name: str, kind: pa.DataType, value: object) -> None:
        table = pa.table({"url": ["a"], "text": ["b"], "n": pa.array([value], kind)})
        pq.write_table(table, tmp_path / name)

    write("a.parquet", pa.int64(), 1)
    write("b.parquet", pa.int32(), 2)
    table = rows(UrlTable(path=str(tmp_path)))
    assert table["n"].type == pa.int64()
    assert table["n"].to_pylist() == [1, 2]
    write("c.parquet", pa.float64(), 2.5)
    with pytest.raises(ShardError, match=r"c\.parquet: row 1, column 'n'"):
        rows(UrlTable(path=str(tmp_path)))


def test_empty_files_have_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"")
    (tmp_path / "b.csv").write_bytes(b"url,text,x\n")
    (tmp_path / "c.csv").write_bytes(b"url,text,x\na,b,c\n")
    (tmp_path / "d.csv.gz").write_bytes(gzip.compress(b""))
    pq.write_table(pa.table({"url": pa.array([], pa.string()), "text": [], "x": []}),
                   tmp_path / "e.parquet")  # fmt: skip
    table = rows(UrlTable(path=str(tmp_path)))
    assert table["x"].to_pylist() == ["c"]
    only = UrlTable(path=str(tmp_path / "a.csv"))
    assert rows(only).num_rows == 0
    assert only.schema().names == ["url", "text"]


def test_names_rename_and_keep(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b",URL,TEXT,uid,WIDTH\n0,a,b,u1,3\n")
    chosen = {"path": str(tmp_path), "url_column": "URL", "text_column": "TEXT"}
    with pytest.raises(RecipeError, match=r"'uid'.*set rename: \{uid: original_uid\}"):
        UrlTable(**chosen).schema()
    table = rows(UrlTable(**chosen, rename={"uid": "datacomp_uid"}))
    assert table.column_names == ["uid", "url", "text", "column_1", "datacomp_uid", "WIDTH"]
    assert table["datacomp_uid"].to_pylist() == ["u1"]
    assert rows(UrlTable(**chosen, keep=("WIDTH",))).column_names == ["uid", "url", "text", "WIDTH"]
    assert rows(UrlTable(**(chosen | {"text_column": None}), keep=()))["text"].to_pylist() == [None]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"url_column": "ulr"},
            r"no column 'ulr' in t\.csv; it has url, text, Text2 \(nearest: 'url'\)",
        ),
        ({"text_column": "caption"}, r"set text_column, or null for no text"),
        ({"keep": ("tags",)}, "no column 'tags'"),
        ({"rename": {"text": "x"}}, "'text' is not one"),
        ({"rename": {"Text2": "TEXT"}}, "case does not count"),
        ({"types": {"Text2": "int"}}, "'int' is not one of string, bool"),
        ({"format": "xlsx"}, "use one of parquet, csv"),
        ({"url_column": "text"}, "both 'text'"),
        ({"delimiter": "||"}, "must be one character"),
        ({"encoding": "utf-16"}, "keeps ASCII"),
        ({"encoding": "zip"}, "keeps ASCII"),
        ({"column_names": ("a", "a")}, "names a column twice"),
        ({"path": ""}, "path is empty"),
        ({"path": "x{1..3"}, "unbalanced"),
    ],
)
def test_a_wrong_parameter_is_a_recipe_error(
    tmp_path: Path, parameters: dict[str, object], message: str
) -> None:
    (tmp_path / "t.csv").write_bytes(b"url,text,Text2\na,b,c\n")
    with pytest.raises(RecipeError, match=f"(?i){message}"):
        UrlTable(**{"path": str(tmp_path), **parameters}).schema()


def test_a_url_column_that_is_no_text_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": [1], "text": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(RecipeError, match="url_column='url' is int64"):
        UrlTable(path=str(tmp_path)).schema()


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"url,text,x,x\n")
    with pytest.raises(SetupError, match="line 1: two columns are called 'x'"):
        UrlTable(path=str(tmp_path)).schema()


def test_a_store_of_fsspec(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    for form in ("csv", "parquet", "jsonl"):
        store.pipe(f"/tables/{form}/t.{form}", as_bytes(form))
    for path in ("memory://tables", "memory://tables/*/t.*", "memory://tables/{csv,parquet,jsonl}"):
        source = UrlTable(path=path)
        assert [f.name for f in source.files()] == [
            "csv/t.csv",
            "jsonl/t.jsonl",
            "parquet/t.parquet",
        ]
        assert rows(source)["url"].to_pylist() == URLS * 3
    chained = UrlTable(path="simplecache::memory://tables/csv/t.csv")
    assert rows(chained)["text"].to_pylist() == TEXTS


def test_it_is_registered_validates_yaml_and_travels(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"url,text,x\na,b,c\n")
    factory = SOURCES["url_table"]
    source = factory(
        **validate(factory, {"path": [str(tmp_path)], "keep": ["x"], "rename": {"x": "y"}})
    )
    assert source.schema().names == ["url", "text", "y"]
    assert set(result_parameters(source)) == set(validate(factory, {"path": "x"}))
    copy = pickle.loads(pickle.dumps(source))
    assert copy == source
    assert copy.schema() == source.schema()
    [file] = copy.files()
    assert [b.to_pylist() for b in copy.read(file)] == [b.to_pylist() for b in source.read(file)]


@pytest.mark.parametrize(
    ("form", "rows_small"), [("csv", 5_000), ("jsonl", 5_000), ("parquet", 30_000), ("txt", 5_000)]
)
def test_memory_does_not_grow_with_the_file(tmp_path: Path, form: str, rows_small: int) -> None:
    def peak(count: int) -> int:
        path = tmp_path / f"{count}.{form}"
        urls = [f"http://example.com/{i:08d}.jpg" for i in range(count)]
        frame = pd.DataFrame({"url": urls, "text": [u * 4 for u in urls]})
        if form == "parquet":
            frame.to_parquet(path)  # one row group
        elif form == "jsonl":
            frame.to_json(path, orient="records", lines=True)
        else:
            frame[["url", "text"] if form == "csv" else ["url"]].to_csv(
                path, index=False, header=form == "csv"
            )
        source = UrlTable(path=str(path))
        [file] = source.files()
        source.schema()
        del frame, urls
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        most = seen = 0
        for batch in source.read(file):
            seen += batch.num_rows
            most = max(most, pa.total_allocated_bytes() - before)
        assert seen == count
        python = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most + python

    small, large = peak(rows_small), peak(rows_small * 4)
    assert large < small * 1.3 + 500_000


def test_reading_is_lazy(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"url,text\n" + b"a,b\n" * 10_000 + b"broken\n")
    source = UrlTable(path=str(tmp_path))
    stream = source.read(source.files()[0])
    assert next(stream).num_rows == 4096
    assert next(stream).num_rows == 4096
    with pytest.raises(ShardError, match="line 10002: 1 fields"):
        next(stream)


@pytest.mark.parametrize("extension", ["csv", "tsv", "jsonl", "txt"])
def test_text_tables_are_read_from_an_object_store(s3_bucket: str, extension: str) -> None:
    import fsspec

    rows = {
        "csv": 'url,text\nhttp://a/1,"one, two"\nhttp://a/2,three\n',
        "tsv": "url\ttext\nhttp://a/1\tone, two\nhttp://a/2\tthree\n",
        "jsonl": '{"url": "http://a/1", "text": "one, two"}\n{"url": "http://a/2"}\n',
        "txt": "http://a/1\nhttp://a/2\n",
    }
    path = f"{s3_bucket}/tables/t.{extension}"
    with fsspec.open(path, "w") as file:
        file.write(rows[extension])
    text = None if extension == "txt" else "text"
    source = UrlTable(path=path, text_column=text)
    (found,) = source.files()
    urls = [u for batch in source.read(found) for u in batch.column("url").to_pylist()]
    assert urls == ["http://a/1", "http://a/2"]


@pytest.mark.parametrize(("extension", "pack"), [(".bz2", bz2.compress), (".xz", lzma.compress)])
def test_streams_behind_the_first_are_read_or_an_error(
    tmp_path: Path, extension: str, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"t.csv{extension}"
    streams = [pack(b"url,text\na,1\n"), pack(b"b,2\n" * 5_000), pack(b"c,3\n")]
    path.write_bytes(streams[0] + bytes(8) + streams[1] + streams[2] + bytes(512))
    assert rows(UrlTable(path=str(path))).num_rows == 5_002
    path.write_bytes(streams[0] + b"XX" + streams[1][2:] + streams[2])
    with pytest.raises(ShardError, match=r"line 3: the compressed data are cut or corrupt") as at:
        rows(UrlTable(path=str(path)))
    assert not at.value.retryable
    path.write_bytes(streams[0] + streams[1][:-1])
    with pytest.raises(ShardError, match="cut or corrupt: it ends within a stream"):
        rows(UrlTable(path=str(path)))


@pytest.mark.parametrize(
    ("kind", "value"),
    [("date", "0000-01-01"), ("timestamp", "0000-01-01 00:00:00"),
     ("timestamp_utc", "9999-12-31 23:59:59-05:00")],
)  # fmt: skip
def test_times_that_python_has_not_stand_beside_bad_ones(
    tmp_path: Path, kind: str, value: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"url,text,when\na,b,{value}\na,b,never\n")
    table = rows(UrlTable(path=str(path), types={"when": kind}, bad_rows="null"))
    whole = pa.array([value, None]).cast(table.schema.field("when").type)
    assert table["when"].combine_chunks().equals(whole)
    with pytest.raises(ShardError, match="line 3: when: 'never' is not a"):
        rows(UrlTable(path=str(path), types={"when": kind}))
