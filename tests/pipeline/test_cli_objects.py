"""``winnow objects``: the same counts from tars and Parquet, and its mistakes."""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from winnow.pipeline.cli import main

ROWS = [["dog", "dog", "cat"], None, ["cat", "bus"], [], ["cat", "dog"]]
EXPECTED = {
    "num_rows": 4,
    "objects": {"bus": 1, "cat": 3, "dog": 2},
    "pairs": {"bus": {"cat": 1}, "cat": {"dog": 2}},
}


def invoke(export: Path, output: Path, column: str = "names") -> Result:
    arguments = ["objects", str(export), "--column", column, "--output", str(output)]
    return CliRunner().invoke(main, arguments)


def write_tar(path: Path, rows: list[object]) -> None:
    with tarfile.open(path, "w") as tar:
        for index, names in enumerate(rows):
            data = json.dumps({"names": names}).encode()
            for extension, content in (("jpg", b"no picture"), ("json", data)):
                info = tarfile.TarInfo(f"{index:03d}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def test_tars_and_parquet_give_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    write_tar(tmp_path / "tars" / "0.tar", ROWS[:2])
    write_tar(tmp_path / "tars" / "1.tar", ROWS[2:])
    (tmp_path / "parquet").mkdir()
    table = pa.table({"names": pa.array(ROWS, pa.list_(pa.string()))})
    pq.write_table(table, tmp_path / "parquet" / "0.parquet")
    pq.write_table(pa.table({"uid": [1]}), tmp_path / "parquet" / "manifest.parquet")
    sources = (tmp_path / "tars", tmp_path / "parquet", tmp_path / "parquet" / "0.parquet")
    texts = set()
    for number, source in enumerate(sources):
        output = tmp_path / f"{number}.json"
        outcome = invoke(source, output)
        assert outcome.exit_code == 0, outcome.output
        assert "3 objects and 2 pairs in 4 annotated rows" in outcome.output
        texts.add(output.read_text())
    assert len(texts) == 1
    assert json.loads(texts.pop()) == EXPECTED


@pytest.mark.parametrize(
    ("rows", "column", "message"),
    [
        ([["a"]], "name", "no row of .* has a value in column 'name'"),
        (["a"], "names", "holds 'a'; use one with lists of names"),
        ([[1]], "names", r"holds \[1\]; use one with lists of names"),
    ],
)
def test_mistakes_in_tars(tmp_path: Path, rows: list[object], column: str, message: str) -> None:
    write_tar(tmp_path / "0.tar", rows)
    outcome = invoke(tmp_path, tmp_path / "out.json", column)
    assert outcome.exit_code == 2
    assert not (tmp_path / "out.json").exists()
    assert re.search(message, outcome.output)


def test_mistakes_in_names(tmp_path: Path) -> None:
    pq.write_table(pa.table({"names": [["a"]]}), tmp_path / "0.parquet")
    outcome = invoke(tmp_path, tmp_path / "out.json", "name")
    assert (outcome.exit_code, "did you mean 'names'?" in outcome.output) == (2, True)
    outcome = invoke(tmp_path / "none", tmp_path / "out.json")
    assert (outcome.exit_code, "there is no shard at" in outcome.output) == (2, True)
    outcome = invoke(tmp_path, tmp_path / "no folder" / "out.json")
    assert (outcome.exit_code, "cannot be written" in outcome.output) == (2, True)
