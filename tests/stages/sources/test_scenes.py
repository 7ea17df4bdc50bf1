"""The source: rows, identity, files that only ever grow."""

from __future__ import annotations

import http.client
import pickle
import subprocess
import sys

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from winnow.contracts.errors import RecipeError
from winnow.contracts.identity import row_uid
from winnow.contracts.parameters import result_parameters, validate
from winnow.contracts.registry import SOURCES
from winnow.stages.sources._scenes import CONCEPTS, LANGUAGES
from winnow.stages.sources.scenes import SceneSource


def read(source: SceneSource) -> pa.Table:
    batches = [batch for file in source.files() for batch in source.read(file)]
    return pa.Table.from_batches(batches)


TABLE = read(SceneSource(num_rows=1200, rows_per_file=500))


def test_registered_with_parameters_of_yaml() -> None:
    factory = SOURCES.find("scenes")
    assert factory is SceneSource
    values = validate(factory, {"num_rows": 10, "sizes": [64, 96], "noise": {"tiny": 0.5}})
    source = factory(**values)
    assert source.sizes == (64, 96)
    assert pickle.loads(pickle.dumps(source)) == source
    assert "num_rows" not in result_parameters(source)
    assert result_parameters(source)["noise"] == {"tiny": 0.5}


def test_rows_follow_the_schema() -> None:
    source = SceneSource(num_rows=1200, rows_per_file=500)
    assert TABLE.num_rows == 1200
    assert TABLE.schema == pa.schema([pa.field("uid", pa.binary(16)), *source.schema()])
    for name in ("url", "text", "truth_kind", "truth_scene", "truth_caption", "truth_objects"):
        assert TABLE[name].null_count == 0
    objects = set(TABLE["truth_objects"].combine_chunks().flatten().to_pylist())
    assert objects <= set(CONCEPTS)
    assert set(TABLE["truth_language"].to_pylist()) <= set(LANGUAGES)


def test_uid_is_of_url_and_text_and_names_no_port() -> None:
    for row in TABLE.slice(0, 300).to_pylist():
        assert row["uid"] == row_uid(row["url"], row["text"])
        assert row["url"].startswith("http://scenes.test/0/")


def test_duplicates_point_to_a_uid_of_the_table() -> None:
    of = TABLE["truth_duplicate_of"].drop_null()
    assert len(of) > 80
    assert pc.all(pc.is_in(of, TABLE.filter(pc.equal(TABLE["truth_kind"], "clean"))["uid"])).as_py()
    copies = pc.is_in(
        TABLE["truth_kind"], pa.array(["exact_duplicate", "near_duplicate", "repeated_row"])
    )
    assert copies.equals(pc.is_valid(TABLE["truth_duplicate_of"]))


def test_files_are_in_order_and_growing_leaves_them_as_they_are() -> None:
    source = SceneSource(num_rows=1200, rows_per_file=500)
    files = source.files()
    assert [f.name for f in files] == ["part-00000", "part-00001", "part-00002"]
    assert [sum(b.num_rows for b in source.read(f)) for f in files] == [500, 500, 200]
    more = SceneSource(num_rows=1700, rows_per_file=500)
    assert more.files()[:2] == files[:2]
    assert more.files()[2] != files[2]
    assert read(more).slice(0, 1200).equals(TABLE)


def test_reading_is_cut_anyhow() -> None:
    assert read(SceneSource(num_rows=1200, rows_per_file=7)).equals(TABLE)


def test_another_seed_or_option_is_another_web() -> None:
    urls = set(TABLE["url"].to_pylist())
    for other in (
        SceneSource(num_rows=50, seed=1),
        SceneSource(num_rows=50, objects=(1, 3)),
        SceneSource(num_rows=50, noise={"tiny": 0.1}),
        SceneSource(num_rows=50, languages=("de",)),
        SceneSource(num_rows=50, host="other.test"),
    ):
        assert urls.isdisjoint(read(other)["url"].to_pylist())


def test_the_same_in_another_process() -> None:
    program = (
        "import pyarrow as pa, hashlib\n"
        "from winnow.stages.sources.scenes import SceneSource\n"
        "s = SceneSource(num_rows=200)\n"
        "t = pa.Table.from_batches([b for f in s.files() for b in s.read(f)])\n"
        "print(hashlib.sha256(repr(t.to_pylist()).encode()).hexdigest())\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=True,
        text=True,
        env={"PYTHONHASHSEED": "7", "PATH": ""},
    )
    import hashlib

    here = hashlib.sha256(repr(TABLE.slice(0, 200).to_pylist()).encode()).hexdigest()
    assert run.stdout.strip() == here


def test_serve_answers_under_the_host_of_the_urls() -> None:
    source = SceneSource(num_rows=5, noise={}, host="pictures.test")
    url = read(source)["url"][0].as_py()
    with source.serve() as resolve:
        assert list(resolve) == ["pictures.test"]
        connection = http.client.HTTPConnection(resolve["pictures.test"], timeout=20)
        connection.request("GET", url.removeprefix("http://pictures.test"))
        response = connection.getresponse()
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("image/")
        assert len(response.read()) > 1000
        connection.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_rows": 0}, "num_rows=0; use 1 or more"),
        ({"rows_per_file": -1}, "rows_per_file=-1"),
        ({"languages": ("en",)}, r"languages=\('en',\); use some of de"),
        ({"languages": ("xx",)}, "use some of de"),
        ({"host": "a/b"}, "host='a/b' is not a host name"),
        ({"objects": (0, 2)}, r"objects=0..2"),
        ({"sizes": (512, 256)}, r"sizes=\(512, 256\)"),
    ],
)
def test_bad_parameters_say_what_is_allowed(changes: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        SceneSource(**changes)  # type: ignore[arg-type]
