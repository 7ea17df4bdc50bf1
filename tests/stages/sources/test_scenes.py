"""The source: rows, identity, files that only ever grow."""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import io
import itertools
import pickle
import re
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image

from winnow.contracts.errors import RecipeError
from winnow.contracts.identity import row_uid
from winnow.contracts.parameters import result_parameters, validate
from winnow.contracts.registry import SOURCES
from winnow.stages.sources._scenes import CONCEPTS, LANGUAGES, render
from winnow.stages.sources._scenes.holdout import pair_part
from winnow.stages.sources._scenes.model import BACKGROUND_COLORS, PATTERNS
from winnow.stages.sources._scenes.sprites import CONCEPT, PAINTS
from winnow.stages.sources.scenes import FACTS, SCHEMA, SceneSource

PARTS = ("train", "validation", "test")
FALSE = [f"truth_{n}" for n in ("swap_attribute", "swap_relation", "swap_count", "hard_negative")]


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
    here = hashlib.sha256(repr(TABLE.slice(0, 200).to_pylist()).encode()).hexdigest()
    assert run.stdout.strip() == here


def test_a_web_without_parts_is_what_it_was_before_there_were_parts() -> None:
    """Bump the source's version when this changes: uids change with it."""
    names = ["uid", "url", "text", "truth_kind", "truth_scene", "truth_duplicate_of"]
    names += ["truth_caption", "truth_language", "truth_objects"]
    flat = repr(TABLE.select(names).to_pylist()).encode()
    assert hashlib.sha256(flat).hexdigest() == (
        "5d283828a12ff75b48e92ff8371efe113d506f0db3aa310ab7c9f67e3fae3636"
    )


def test_the_truth_about_pictures_and_captions() -> None:
    kinds = set()
    for row in TABLE.to_pylist():
        concepts = set(row["truth_objects"])
        assert row["truth_num_objects"] == len(row["truth_objects"])
        assert row["truth_class"] == (concepts.pop() if len(concepts) == 1 else None)
        pattern, _, color = row["truth_background"].partition(":")
        assert pattern in PATTERNS
        assert color in BACKGROUND_COLORS
        false = [row[name] for name in FALSE if row[name] is not None]
        if row["truth_kind"] == "clean":
            assert row["truth_hard_negative"]
            assert row["truth_caption"] not in false
        else:
            assert not false
        kinds.update(name for name in FALSE if row[name])
    assert kinds == set(FALSE)


def test_parts_are_other_webs_of_the_same_kind() -> None:
    tables = {part: read(SceneSource(num_rows=1200, part=part)) for part in PARTS}
    for a, b in itertools.combinations([TABLE, *tables.values()], 2):
        assert set(a["uid"].to_pylist()).isdisjoint(b["uid"].to_pylist())
    for table in tables.values():
        assert table.schema == TABLE.schema
        assert table["truth_kind"].equals(TABLE["truth_kind"])  # noise knows no part
        languages = set(table["truth_language"].to_pylist())
        assert len(languages & set(LANGUAGES)) == len(languages) >= 15
        for number in (1, 2, 3, 4):
            share = pc.mean(pc.equal(table["truth_num_objects"], number)).as_py()
            assert share == pytest.approx(0.25, abs=0.05)


def test_wrong_captions_hold_out_what_true_ones_do() -> None:
    forms = {CONCEPT[c].name: c for c in CONCEPTS} | {CONCEPT[c].plural: c for c in CONCEPTS}
    nouns = re.compile(rf"\b({'|'.join(sorted(map(re.escape, forms), key=len, reverse=True))})\b")
    for part in PARTS:
        table = read(SceneSource(num_rows=800, part=part, noise={"swapped_caption": 0.5}))
        pairs = 0
        for row in table.filter(pc.equal(table["truth_kind"], "swapped_caption")).to_pylist():
            named = {forms[noun] for noun in nouns.findall(row["text"])}
            assert named.isdisjoint(row["truth_objects"])
            for pair in itertools.combinations(named, 2):
                assert pair_part(*pair) == part
                pairs += 1
        assert pairs > 300


def test_a_part_is_served_as_it_is_described() -> None:
    source = SceneSource(num_rows=3, part="test", noise={}, sizes=(96, 96), aspects=(1.0, 1.0))
    row = read(source).to_pylist()[2]
    with source.serve() as resolve:
        connection = http.client.HTTPConnection(resolve["scenes.test"], timeout=20)
        connection.request("GET", row["url"].removeprefix("http://scenes.test"))
        picture = Image.open(io.BytesIO(connection.getresponse().read())).convert("RGB")
        connection.close()
    world = source.world()
    expected = render(world.scene(world.row(2)), 96, 96)
    difference = np.abs(np.asarray(picture, np.float32) - np.asarray(expected, np.float32))
    assert difference.mean() < 8  # what JPEG loses


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


CROWDS = SceneSource(
    num_rows=60, objects=(6, 10), weights="zipf", co_occurrence=0.5, captions="paragraph",
    num_concepts=80, sizes=(128, 128), aspects=(1.0, 1.0), noise={"foreign_caption": 0.1},
)  # fmt: skip


def test_paragraphs_come_with_their_facts() -> None:
    table = read(CROWDS)
    assert table.schema == pa.schema([pa.field("uid", pa.binary(16)), *CROWDS.schema()])
    assert CROWDS.schema().names == [*SCHEMA.names, *FACTS.names]
    world = CROWDS.world()
    for index, row in enumerate(table.to_pylist()):
        drawn = world.scene(world.row(index))
        groups = row["truth_groups"]
        assert [g["name"] for g in groups for _ in range(g["count"])] == sorted(
            row["truth_objects"], key=[g["name"] for g in groups].index
        )
        assert {g["color"] for g in groups} <= {None, *PAINTS}
        stated = {(r["subject"], r["predicate"], r["object"]) for r in row["truth_relations"]}
        true = {(r.subject, r.predicate, r.object) for r in drawn.relations}
        assert stated == {r for r in true if r[1] in ("left of", "above", "on")}
        assert row["truth_caption"].count(".") >= len(groups)
        assert (row["text"] == row["truth_caption"]) == (row["truth_kind"] == "clean")
        assert not any(row[name] for name in FALSE)
    urls = table["url"].to_pylist()
    for changes in ({"captions": "short"}, {"co_occurrence": 0.4}):
        other = dataclasses.replace(CROWDS, **changes)
        assert set(urls).isdisjoint(read(other)["url"].to_pylist())


def test_webs_without_paragraphs_have_the_columns_and_parameters_that_they_had() -> None:
    assert SceneSource().schema() == SCHEMA
    assert {"captions", "co_occurrence"}.isdisjoint(result_parameters(SceneSource()))
