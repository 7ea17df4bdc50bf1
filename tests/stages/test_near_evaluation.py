"""near_evaluation against pair-by-pair loops, against near_duplicates, and on real pictures."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.parameters import result_parameters, validate
from winnow.contracts.stage import WorkerOptions
from winnow.stages._evaluation_index import choose_chunks
from winnow.stages.near_evaluation import NearEvaluation

Row = dict[str, Any]
TYPES = {
    "uid": pa.binary(16),
    "phash": pa.uint64(),
    "thumbnail": pa.binary(192),
    "image_detail": pa.float32(),
}
SCHEMA = pa.schema(TYPES)


def uid(number: int) -> bytes:
    return (number * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "big") + number.to_bytes(8, "big")


def row(
    number: int, phash: int | None, thumbnail: bytes | None = None, detail: float | None = 9.0
) -> Row:
    thumbnail = bytes([100]) * 192 if thumbnail is None else thumbnail
    return {"uid": uid(number), "phash": phash, "thumbnail": thumbnail, "image_detail": detail}


def write(path: Path, rows: list[Row], names: list[str] | None = None) -> str:
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    pq.write_table(table.select(names or table.column_names), path)
    return str(path)


def annotate(stage: NearEvaluation, rows: list[Row]) -> list[Row]:
    batch = pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
    out = stage.annotate(batch, stage.setup(WorkerOptions()), None)  # type: ignore[arg-type]
    assert out.schema == stage.writes
    out.validate(full=True)
    return out.to_pylist()


def alike(stage: NearEvaluation, ours: Row, theirs: Row) -> bool:
    """The docstring's words for two rows with thumbnails."""
    if bin(ours["phash"] ^ theirs["phash"]).count("1") > stage.distance:
        return False
    low = any(
        r["image_detail"] is None or r["image_detail"] < stage.min_detail for r in (ours, theirs)
    )
    a, b = sorted(([*r["thumbnail"]] for r in (ours, theirs)), key=sum)
    limit = stage.flat_thumbnail_distance if low else stage.thumbnail_distance
    if not low:
        gain = min(sum(b) / max(sum(a), 1), stage.max_gain)
        a = [min(round(v * gain), 255) for v in a]
    return sum(abs(x - y) for x, y in zip(a, b, strict=True)) / 192 <= limit


def naive(stage: NearEvaluation, pool: list[Row], evaluation: list[Row]) -> list[bytes | None]:
    """The uid of the nearest alike evaluation row."""
    found = []
    for ours in pool:
        near = [
            (bin(ours["phash"] ^ theirs["phash"]).count("1"), theirs["uid"])
            for theirs in evaluation
            if theirs["phash"] is not None and alike(stage, ours, theirs)
        ]
        found.append(min(near)[1] if near else None)
    return found


HASHES = st.sampled_from([0, 0xFFFF, 1 << 63, (1 << 64) - 1]).flatmap(
    lambda base: st.lists(st.integers(0, 63), max_size=6).map(
        lambda bits: base ^ sum(1 << b for b in set(bits))
    )
)
THUMBNAILS = st.builds(
    lambda level, other, cut: bytes([level]) * cut + bytes([other]) * (192 - cut),
    st.sampled_from([0, 90, 100, 103, 130, 255]),
    st.sampled_from([90, 100, 102, 140]),
    st.sampled_from([0, 96, 180]),
)
DETAILS = st.sampled_from([None, 0.0, 0.1, 0.2, 5.0])


def pictures(first: int) -> Any:
    values = st.lists(st.tuples(HASHES, THUMBNAILS, DETAILS), min_size=1, max_size=12)
    return values.map(lambda found: [row(first + i, *v) for i, v in enumerate(found)])


@given(pictures(0), pictures(100), st.sampled_from([0, 3, 8, 12]))
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_it_is_the_plain_definition(
    tmp_path: Path, pool: list[Row], evaluation: list[Row], distance: int
) -> None:
    path = write(tmp_path / "e.parquet", evaluation)
    stage = NearEvaluation(evaluation=(path,), distance=distance)
    out = annotate(stage, pool)
    expected = naive(stage, pool, evaluation)
    assert [r["near_evaluation_uid"] for r in out] == expected
    assert [r["near_evaluation"] for r in out] == [uid is not None for uid in expected]
    assert all(r["near_evaluation_error"] is None for r in out)


@pytest.mark.parametrize("distance", [2, 8])
def test_a_large_set_is_searched_by_chunks_and_nothing_is_missed(
    tmp_path: Path, distance: int
) -> None:
    rng = np.random.default_rng(1)
    hashes = rng.integers(0, 2**64, 60_000, np.uint64)
    assert choose_chunks(len(hashes), distance)
    pq.write_table(pa.table({"phash": hashes}), tmp_path / "e.parquet")
    queries = hashes[rng.integers(0, len(hashes), 300)]
    for i in range(300):
        for bit in rng.choice(64, i % 12, replace=False).tolist():
            queries[i] ^= np.uint64(1 << bit)
    stage = NearEvaluation(evaluation=(str(tmp_path / "e.parquet"),), distance=distance)
    out = annotate(stage, [row(i, int(q)) for i, q in enumerate(queries)])
    least = np.array([np.bitwise_count(hashes ^ q).min() for q in queries])
    assert [r["near_evaluation"] for r in out] == (least <= distance).tolist()
    assert 0 < (least <= distance).sum() < 300
    assert {r["near_evaluation_uid"] for r in out} == {None}


def test_chunks_cover_every_difference() -> None:
    assert choose_chunks(100, 8) == ()
    for size in (10**5, 10**6, 10**7):
        for distance in (4, 8, 12):
            chunks = choose_chunks(size, distance)
            assert sum(c.radius + 1 for c in chunks) >= distance + 1
            assert sum(c.width for c in chunks) == 64


def test_it_agrees_with_near_duplicates(tmp_path: Path) -> None:
    """One definition of "alike": the pool's rows that list an evaluation row are those marked."""
    from winnow.contracts.stage import GlobalInputs, GlobalOutputs, ShardRef
    from winnow.stages.dedupe.near_duplicates import NearDuplicates

    rng = np.random.default_rng(5)
    rows = []
    for i in range(400):
        bits = sum(1 << int(b) for b in rng.integers(0, 64, 5))
        thumbnail = rng.integers(96, 96 + [3, 40][i % 2], 192, np.uint8).tobytes()
        rows.append(row(i, bits ^ int(rng.integers(0, 4)) * 977, thumbnail, [0.1, 4.0][i % 3 > 0]))
    pool, evaluation = rows[:300], rows[300:]
    stage = NearEvaluation(evaluation=(write(tmp_path / "e.parquet", evaluation),))
    marked = {
        p["uid"] for p, r in zip(pool, annotate(stage, pool), strict=True) if r["near_evaluation"]
    }
    table = pa.Table.from_pylist(rows, schema=SCHEMA)

    class Inputs(GlobalInputs):
        shards = (ShardRef(id="s", num_rows=400),)
        scratch = tmp_path

        def table(self, shard: ShardRef) -> pa.Table:
            return table

    class Outputs(GlobalOutputs):
        found: list[Row] = []

        def write(self, shard: ShardRef, columns: pa.Table) -> None:
            self.found += columns.to_pylist()

    NearDuplicates().compute(Inputs(), Outputs())
    of_evaluation = {r["uid"] for r in evaluation}
    listed = {
        p["uid"]
        for p, r in zip(pool, Outputs.found[:300], strict=True)
        if of_evaluation & {*r["near_duplicates"]}
    }
    assert marked == listed
    assert 20 < len(marked) < 280


def test_flat_pictures_need_equal_thumbnails(tmp_path: Path) -> None:
    white, grey, nearly = bytes([255]) * 192, bytes([128]) * 192, bytes([254]) * 192
    path = write(tmp_path / "e.parquet", [row(0, 0, white, 0.0)])
    pool = [row(1, 0, white, 0.0), row(2, 0, grey, 0.0), row(3, 0, nearly, 0.0)]
    found = [r["near_evaluation"] for r in annotate(NearEvaluation(evaluation=(path,)), pool)]
    assert found == [True, False, True]
    hash_only = write(tmp_path / "h.parquet", [row(0, 0, white, 0.0)], ["uid", "phash"])
    pool.append(row(4, 1, grey, 3.0))
    found = [r["near_evaluation"] for r in annotate(NearEvaluation(evaluation=(hash_only,)), pool)]
    assert found == [False, False, False, True]
    known = write(tmp_path / "d.parquet", [row(0, 0, white, 0.0)], ["phash", "image_detail"])
    found = [r["near_evaluation"] for r in annotate(NearEvaluation(evaluation=(known,)), pool)]
    assert found == [False] * 4


def test_several_files_nulls_and_equal_pictures(tmp_path: Path) -> None:
    one = write(tmp_path / "1.parquet", [row(9, 7), row(3, 7), row(4, None)])
    two = write(tmp_path / "2.parquet", [row(2, 7), row(1, 6)])
    stage = NearEvaluation(evaluation=(one, two))
    none = {**row(5, 7), "thumbnail": None}
    out = annotate(stage, [row(0, 7), row(0, None), none, row(0, 6)])
    least = min(uid(9), uid(3), uid(2))
    assert [r["near_evaluation_uid"] for r in out] == [least, None, None, uid(1)]
    assert [r["near_evaluation"] for r in out] == [True, None, None, True]
    assert [r["near_evaluation_error"] for r in out] == [None, "missing", "missing", None]
    without = write(tmp_path / "3.parquet", [row(0, 7)], ["phash", "thumbnail"])
    out = annotate(NearEvaluation(evaluation=(without, two)), [row(0, 7)])
    assert out[0]["near_evaluation_uid"] == uid(2)


def test_content_not_place_enters_the_fingerprint(tmp_path: Path) -> None:
    one = write(tmp_path / "1.parquet", [row(1, 7)])
    two = write(tmp_path / "2.parquet", [row(2, 8)])
    copy = write(tmp_path / "copy.parquet", [row(1, 7)])
    digest = NearEvaluation(evaluation=(one, two)).model_digest()
    assert NearEvaluation(evaluation=(two, copy)).model_digest() == digest
    assert NearEvaluation(evaluation=(one,)).model_digest() != digest
    assert "evaluation" not in result_parameters(NearEvaluation(evaluation=(one,)))
    write(tmp_path / "2.parquet", [row(2, 8), row(3, 9)])
    assert NearEvaluation(evaluation=(one, two)).model_digest() != digest
    stage = NearEvaluation(evaluation=(one,))
    assert pickle.loads(pickle.dumps(stage)) == stage


def test_files_that_are_no_evaluation_set(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("not parquet")
    write(tmp_path / "empty.parquet", [])
    write(tmp_path / "bare.parquet", [row(1, 1)], ["uid", "thumbnail"])
    for name, message in {
        "absent": "absent.parquet cannot be read",
        "text": "cannot be read as Parquet",
        "empty": "has no rows",
        "bare": r"no column phash: uint64 \(there are: uid: .*stage perceptual_hash",
    }.items():
        stage = NearEvaluation(evaluation=(str(tmp_path / f"{name}.parquet"),))
        for step in (stage.model_digest, lambda stage=stage: stage.setup(WorkerOptions())):
            with pytest.raises(SetupError, match=message):
                step()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"evaluation": []}, r"evaluation=\(\) is not allowed; use one or more Parquet files"),
        ({"distance": 13}, "0 to 12 bits"),
        ({"thumbnail_distance": 300.0}, "0 to 255 levels"),
        ({"flat_thumbnail_distance": 20.0}, "0 to thumbnail_distance"),
        ({"max_gain": 0.5}, "brightness counts"),
        ({"min_detail": -1.0}, "at least 0 grey levels"),
    ],
)
def test_bad_parameters(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        NearEvaluation(**validate(NearEvaluation, {"evaluation": ["e.parquet"], **values}))


RECIPE = """
name: {name}
source: {{use: folder, path: "{path}"}}
stages:
  perceptual_hash: {{algorithms: [dhash]}}
{stages}
export: {{all: {{use: parquet}}}}
"""
MARK = """
  near_evaluation: {{evaluation: ["{manifest}"], hash: dhash}}
filters:
  not_near_evaluation: {{on_null: drop}}
"""


def test_edits_of_evaluation_images_leave_the_pool(run: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "pool").mkdir()
    for i in range(6):
        image = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((160, 120))
        if i < 3:
            image.save(tmp_path / "evaluation" / f"{i}.png")
        image.resize((90, 68)).save(tmp_path / "pool" / f"{i}.jpg", quality=60)
    first = run(RECIPE.format(name="e", path=tmp_path / "evaluation", stages=""))
    manifest = tmp_path / "ws" / first.exports["all"] / "manifest.parquet"
    stages = MARK.format(manifest=manifest)
    report = run(
        RECIPE.format(name="p", path=tmp_path / "pool", stages=stages),
        workspace=f"{tmp_path}/pool_ws",
    )
    kept = pq.read_table(tmp_path / "pool_ws" / report.exports["all"] / "manifest.parquet")
    assert sorted(kept["path"].to_pylist()) == ["3.jpg", "4.jpg", "5.jpg"]
    funnel = {f["filter"]: f["dropped"] for f in report.summary["funnel"]}
    assert funnel["not_near_evaluation"] == 3
