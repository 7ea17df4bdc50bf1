"""text_table: every format against what was written, identity, hostile documents, mistakes."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from winnow.contracts.errors import RecipeError, SetupError, ShardError
from winnow.contracts.identity import row_uid
from winnow.contracts.media import MEDIA_REF
from winnow.contracts.parameters import result_parameters, validate
from winnow.contracts.registry import SOURCES
from winnow.pipeline.recipe import parse_recipe
from winnow.pipeline.run import RunOptions, run_recipe
from winnow.stages.sources.text_table import TextTable
from winnow.stages.sources.url_table import UrlTable

TEXTS = [
    "One document.\nTwo lines, of it.",
    'quo"ted',
    "gr\u00f6\u00dfe \u732b \U0001f408",
    None,
    " padded ",
]
HOSTILE = [
    "nul \x00 inside",
    "\u202eright to left \u0645\u0631\u062d\u0628\u0627",
    "\U0001f408" * 1000,
    "x" * 10_000_000,
    "line\u2028separator\x85\x0b",
    "",
    None,
]


def rows(source: TextTable) -> pa.Table:
    batches = [batch for file in source.files() for batch in source.read(file)]
    table = pa.Table.from_batches(batches, pa.schema([("uid", pa.binary(16)), *source.schema()]))
    table.validate(full=True)
    return table


def write(folder: Path, form: str) -> Path:
    frame = pd.DataFrame({"text": TEXTS, "number": [1, 2, 3, 4, 5]})
    path = folder / f"docs.{form}"
    match form.removesuffix(".gz"):
        case "parquet":
            frame.to_parquet(path)
        case "jsonl":
            frame.to_json(path, orient="records", lines=True)
        case "csv":
            frame.to_csv(path, index=False)
        case "tsv":
            frame.to_csv(path, index=False, sep="\t")
    return path


@pytest.mark.parametrize("form", ["parquet", "jsonl", "jsonl.gz", "csv", "csv.gz", "tsv"])
def test_every_format_gives_the_same_documents(tmp_path: Path, form: str) -> None:
    write(tmp_path, form)
    source = TextTable(path=str(tmp_path), quoted=True if form == "tsv" else None)
    found = rows(source)
    assert found["text"].to_pylist() == TEXTS
    assert [str(n) for n in found["number"].to_pylist()] == list("12345")
    assert found["uid"].to_pylist() == [row_uid(text) for text in TEXTS]
    assert found.column_names == ["uid", "text", "number"]


def test_lines_of_txt_are_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfone\r\n\n  two  \n"))
    (tmp_path / "b.txt").write_text("one\nthree", "utf-8")
    found = rows(TextTable(path=str(tmp_path)))
    assert found["text"].to_pylist() == ["one", "two", "one", "three"]
    assert found["uid"][0] == found["uid"][2], "equal documents are one row that repeats"


def test_an_identifier_is_part_of_the_identity(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [{"doc": "x1", "body": "same"}, {"doc": "x2", "body": "same"}, {"doc": 3, "body": "b"}]
    path.write_text("\n".join(map(json.dumps, lines)))
    found = rows(TextTable(path=str(path), text_column="body", id="doc"))
    assert found.column_names == ["uid", "text", "id"]
    assert found["id"].to_pylist() == ["x1", "x2", "3"]
    expected = [row_uid("same", "x1"), row_uid("same", "x2"), row_uid("b", "3")]
    assert found["uid"].to_pylist() == expected
    plain = rows(TextTable(path=str(path), text_column="body", keep=()))
    assert plain.column_names == ["uid", "text"]
    assert plain["uid"].to_pylist()[:2] == [row_uid("same")] * 2


def test_a_whole_number_can_be_the_identifier(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b"], "n": [7, None]}), tmp_path / "a.parquet")
    found = rows(TextTable(path=str(tmp_path), id="n"))
    assert found["id"].to_pylist() == ["7", None]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_hostile_documents_come_as_they_are(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"a.{form}"
    if form == "jsonl":
        path.write_text("\n".join(json.dumps({"text": text}) for text in HOSTILE))
    else:
        pq.write_table(pa.table({"text": pa.array(HOSTILE, pa.large_string())}), path)
    assert rows(TextTable(path=str(path)))["text"].to_pylist() == HOSTILE


def test_half_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "cut \\ud83d"}\n{"text": "\\ud83d\\udc08"}')
    found = rows(TextTable(path=str(tmp_path)))
    assert found["text"].to_pylist() == ["cut \ufffd", "\U0001f408"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": ', "line 2: not JSON"),
        (b'{"text": "a"}\n[1]', "line 2: not a JSON object"),
        (b'{"text": "\xff"}', "0xff, byte 11 of line 1"),
    ],
)
def test_bad_rows_have_their_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises((ShardError, SetupError), match=message):
        rows(TextTable(path=str(path), keep=()))
    assert rows(TextTable(path=str(path), keep=(), bad_rows="null"))["text"].null_count == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text_column": "txet"}, r"no column 'txet' in a.jsonl.*nearest: 'text'.*set text_column"),
        ({"id": "text"}, "must name two columns"),
        ({"text_column": ""}, "must name two columns"),
        ({"keep": ("nothing",)}, "no column 'nothing'"),
        ({"format": "json"}, "use one of parquet, csv, tsv, jsonl, txt"),
        ({"encoding": "utf-16"}, "keeps ASCII"),
        ({"rename": {"number": "uid"}}, "Winnow's own column has that name"),
        ({"rename": {"number": "TEXT"}}, "Winnow's own column has that name"),
    ],
)
def test_mistakes(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "number": 1}')
    with pytest.raises(RecipeError, match=message):
        TextTable(path=str(tmp_path), **values).schema()


def test_numbers_are_not_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(RecipeError, match="text_column='text' is int64 in a.parquet, not text"):
        TextTable(path=str(tmp_path)).schema()


def test_declarations() -> None:
    assert SOURCES["text_table"] is TextTable
    source = TextTable(path="x", types={"a": "int64"}, keep=("a",))
    assert pickle.loads(pickle.dumps(source)) == source
    assert validate(TextTable, {"path": "x", "keep": ["a"]})["keep"] == ("a",)
    assert "_layout" not in result_parameters(source)


def test_the_parameters_of_url_table_are_what_they_were() -> None:
    """Its fingerprints name rows of workspaces that exist."""
    assert list(result_parameters(UrlTable(path="x"))) == [
        "path", "format", "url_column", "text_column", "keep", "rename", "types", "bad_rows",
        "column_names", "delimiter", "quoted", "encoding",
    ]  # fmt: skip


RECIPE = """
name: words
source: {{use: text_table, path: "{path}"}}
stages:
  repeated_rows: {{}}
  text_quality: {{}}
  pii: {{}}
  near_duplicate_texts: {{ngram: 3}}
filters:
  drop_repeated_rows: {{on_null: drop}}
  long_enough: {{use: text_rules, rules: [], bounds: {{min_num_text_words: 5}}, on_null: drop}}
  max_pii: {{on_null: drop}}
  drop_near_duplicates: {{media: text, prefer: ["largest num_text_words"], on_null: keep}}
export:
  kept: {{use: parquet}}
"""


def test_a_run_over_text_alone(tmp_path: Path) -> None:
    base = " ".join(f"word{i}" for i in range(40))
    texts = [
        base,
        f"{base} more",
        base,
        "too short",
        f"write to me@example.com {base}",
        None,
        "a b c d e",
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    recipe = parse_recipe(RECIPE.format(path=tmp_path / "in.jsonl"))
    report = run_recipe(recipe, RunOptions(workspace=str(tmp_path / "ws"), executor="inprocess"))
    assert report.exit_code == 0
    dropped = {entry["filter"]: entry["dropped"] for entry in report.summary["funnel"]}
    assert dropped == {
        "drop_repeated_rows": 1, "long_enough": 2, "max_pii": 1, "drop_near_duplicates": 1,
    }  # fmt: skip
    table = pq.read_table(tmp_path / "ws" / report.exports["kept"] / "00000.parquet")
    assert sorted(table["text"].to_pylist()) == ["a b c d e", f"{base} more"]


@pytest.mark.parametrize("source", [TextTable, UrlTable])
def test_a_table_cannot_have_files_opened(tmp_path: Path, source: Any) -> None:
    """A column of this type would be read as the medium ``image``: any file, any address."""
    reference = {"path": "/etc/hostname", "offset": 0, "length": 1, "digest": bytes(16)}
    columns = {"text": ["a"], "url": ["http://a/b"], "Image_ref": pa.array([reference], MEDIA_REF)}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    path = str(tmp_path / "a.parquet")
    with pytest.raises(RecipeError, match="references to media.*rename: {Image_ref: Image_refer"):
        source(path=path).schema()
    assert "Image_ref" not in source(path=path, keep=()).schema().names
    renamed = source(path=path, rename={"Image_ref": "where"}).schema()
    assert renamed.field("where").type == MEDIA_REF
    with pytest.raises(RecipeError, match="references to media"):
        source(path=path, rename={"Image_ref": "image_ref"}).schema()
