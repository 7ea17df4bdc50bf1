"""near_duplicates on recordings: its definition pair by pair, real speech, images as before."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.media import MediaCaps
from winnow.contracts.parameters import result_parameters
from winnow.filters.drop_near_duplicates import drop_near_duplicates
from winnow.pipeline.cover import PriorityCoverState
from winnow.stages._audio_encode import encode_audio
from winnow.stages._media import BatchMedia
from winnow.stages._media_cache import MediaCache
from winnow.stages.audio_fingerprint import AudioFingerprint
from winnow.stages.dedupe._verify_audio import audio_difference, spectrum_difference
from winnow.stages.dedupe.near_duplicates import NearDuplicates
from winnow.stages.sources._speech.voice import synthesise

SCHEMA = pa.schema(
    {
        "uid": pa.binary(16),
        "audio_hash": pa.uint64(),
        "audio_thumbnail": pa.binary(572),
        "audio_detail": pa.float32(),
    }
)
WRITTEN = ("near_duplicate_audio", "near_duplicate_audio_distances", "near_duplicate_audio_group")
Row = dict[str, Any]


def uid(number: int) -> bytes:
    return (number * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "big") + number.to_bytes(8, "big")


def naive(stage: NearDuplicates, rows: list[Row]) -> tuple[list[Any], list[Any]]:
    """Lists and groups by the words of the docstring, all pairs."""
    first: dict[bytes, Row] = {}
    for row in rows:
        if row["audio_hash"] is not None and row["audio_thumbnail"] is not None:
            first.setdefault(row["uid"], row)

    def low(row: Row) -> bool:
        return row["audio_detail"] is None or row["audio_detail"] < stage.min_detail

    def signature(row: Row) -> tuple[Any, ...]:
        return (row["audio_hash"], row["audio_thumbnail"], low(row))

    def close(a: Row, b: Row) -> bool:
        x, y = (np.frombuffer(r["audio_thumbnail"], np.uint8)[None] for r in (a, b))
        flat = low(a) or low(b)
        share = stage.flat_thumbnail_distance / stage.thumbnail_distance if flat else 1.0
        if spectrum_difference(x, y)[0] > stage.spectrum_distance * share + 1e-5:
            return False
        worst = audio_difference(x, y, stage.max_trim)[0]
        return bool(worst <= stage.thumbnail_distance * share + 1e-5)

    least: dict[tuple[Any, ...], bytes] = {}
    sizes: dict[tuple[Any, ...], int] = {}
    for name in sorted(first):
        least.setdefault(signature(first[name]), name)
        sizes[signature(first[name])] = sizes.get(signature(first[name]), 0) + 1
    near: dict[bytes, set[tuple[bytes, int]]] = {name: set() for name in first}
    for a, b in itertools.combinations(first.values(), 2):
        bits = (a["audio_hash"] ^ b["audio_hash"]).bit_count()
        if signature(a) == signature(b):
            if least[signature(a)] in (a["uid"], b["uid"]):
                near[a["uid"]].add((b["uid"], 0))
                near[b["uid"]].add((a["uid"], 0))
        elif bits <= stage.distance and close(a, b):
            near[a["uid"]].add((least[signature(b)], bits))
            near[b["uid"]].add((least[signature(a)], bits))
    lists, groups = [], []
    for row in rows:
        known = row["audio_hash"] is not None and row["audio_thumbnail"] is not None
        lists.append(sorted(near[row["uid"]]) if known else None)
        shared = known and sizes[signature(first[row["uid"]])] > 1
        groups.append(least[signature(first[row["uid"]])] if shared else None)
    return lists, groups


@st.composite
def pools(draw: st.DrawFn) -> list[Row]:
    """Rows around two recordings, with nulls, repeats, copies of other lengths and steady tones."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    hashes = [int(h) for h in rng.integers(0, 2**63, 2)]
    bodies = rng.integers(0, 256, (2, 568), dtype=np.uint8)
    rows: list[Row] = []
    for number in range(draw(st.integers(2, 12))):
        value = hashes[rng.integers(2)]
        for bit in rng.integers(0, 64, rng.choice([0, 0, 3, 9])):
            value ^= 1 << int(bit)
        body = bodies[rng.integers(2)].copy()
        touched = rng.choice(568, rng.choice([0, 0, 3, 200]), replace=False)
        body[touched] ^= 16
        seconds = np.float32(rng.choice([2.0, 2.0, 2.0, 1.9, 1.5]))
        chance, detail = rng.random(), float(rng.choice([0.0, 0.004, 0.3]))
        thumbnail = seconds.tobytes() + body.tobytes()
        rows.append(
            {
                "uid": uid(number if chance > 0.1 else number // 2),
                "audio_hash": None if 0.1 < chance < 0.2 else value,
                "audio_thumbnail": None if 0.2 < chance < 0.25 else thumbnail,
                "audio_detail": None if 0.25 < chance < 0.3 else detail,
            }
        )
    return rows


@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.generate],
)
@given(rows=pools(), cuts=st.lists(st.integers(0, 12), max_size=2))
def test_equals_the_definition_for_any_sharding(
    run_global: Any, rows: list[Row], cuts: list[int]
) -> None:
    stage = NearDuplicates(hash="audio_hash", num_threads=1)
    bounds = [0, *sorted(min(c, len(rows)) for c in cuts), len(rows)]
    shards = [pa.Table.from_pylist(rows[a:b], SCHEMA) for a, b in itertools.pairwise(bounds)]
    found, counters = run_global(stage, shards)
    lists, groups = naive(stage, rows)
    lines = [line for shard in found for line in shard.to_pylist()]
    assert tuple(stage.writes.names) == WRITTEN
    for line, expected in zip(lines, lists, strict=True):
        names, distances = line[WRITTEN[0]], line[WRITTEN[1]]
        assert (None if names is None else list(zip(names, distances, strict=True))) == expected
    assert [line[WRITTEN[2]] for line in lines] == groups
    assert counters["rows_without_hash"] == lists.count(None)


@pytest.fixture(scope="module")
def speech() -> tuple[pa.Table, list[int]]:
    """Fingerprints of recordings and copies, and which recording each row is made of."""
    texts = ("the captain sold the piano", "the captain sold the kettle", "nine")
    files, made_of = [], []
    for number, (text, voice) in enumerate(itertools.product(texts, ("f1", "m3"))):
        sound, rate = synthesise(text, variant=voice)
        cut = sound[len(sound) // 20 :]
        copies = (
            encode_audio(sound, rate, "wav"),
            encode_audio(sound, rate, "mp3", bit_rate=64_000),
            encode_audio(cut, rate, "opus", bit_rate=48_000),
            encode_audio(sound * np.float32(0.1), rate, "wav"),
        )
        files += copies
        made_of += [number] * len(copies)
    files += [None, encode_audio(np.zeros(8000, np.float32), 8000, "wav")]
    batch = pa.record_batch({"audio": pa.array(files, pa.large_binary())})
    with MediaCache(1 << 26, 0) as cache:
        media = BatchMedia(batch, caps=MediaCaps(), cache=cache, first_row=0)
        found = AudioFingerprint().annotate(batch, None, media)
    table = pa.Table.from_batches([found]).select(SCHEMA.names[1:])
    uids = pa.array([uid(i) for i in range(len(files))], pa.binary(16))
    return table.add_column(0, "uid", uids), made_of


def test_copies_of_speech_are_found_and_nothing_else(
    run_global: Any, speech: tuple[pa.Table, list[int]]
) -> None:
    table, made_of = speech
    (found,), counters = run_global(NearDuplicates(hash="audio_hash"), [table])
    lists, _ = naive(NearDuplicates(hash="audio_hash"), table.to_pylist())
    number = {uid(i): i for i in range(table.num_rows)}
    near = [None if n is None else {number[u] for u in n} for n in found[WRITTEN[0]].to_pylist()]
    assert near == [None if n is None else {number[u] for u, _ in n} for n in lists]
    assert near[-2:] == [None, None]
    pairs = [(i, j) for i, names in enumerate(near) for j in names or ()]
    assert all(made_of[i] == made_of[j] for i, j in pairs)
    originals = range(0, len(made_of), 4)
    assert sum(len(near[i] or ()) for i in originals) >= 0.95 * 3 * len(originals)
    assert counters["recordings"] == len(made_of)


def test_the_cover_keeps_the_preferred_copy(
    run_global: Any, speech: tuple[pa.Table, list[int]], tmp_path: Path
) -> None:
    table, made_of = speech
    (found,), _ = run_global(NearDuplicates(hash="audio_hash"), [table])
    rate = pa.array([[1, 9, 5, 9][i % 4] for i in range(table.num_rows)], pa.int64())
    pool = found.append_column("uid", table["uid"]).append_column("audio_bit_rate", rate)
    rule = drop_near_duplicates(media="audio", prefer=("largest audio_bit_rate",))
    cover = PriorityCoverState(rule, tmp_path)
    cover.accumulate(0, pool, np.ones(table.num_rows, bool))
    rows, kept = cover.result(0)
    alive = sorted(set(range(table.num_rows)) - set(rows.tolist()))
    for recording in range(6):
        own = [i for i in alive if i < len(made_of) and made_of[i] == recording]
        assert own
        assert rate[own[0]].as_py() == 9
    number = {uid(i): i for i in range(table.num_rows)}
    assert all(made_of[row] == made_of[number[name]] for row, name in zip(rows, kept, strict=True))
    assert alive[-2:] == [len(made_of), len(made_of) + 1]


def test_parameters_of_images_are_as_they_were() -> None:
    """They enter the fingerprints of what has been computed."""
    assert result_parameters(NearDuplicates()) == {
        "hash": "phash",
        "distance": 8,
        "thumbnail_distance": 12.0,
        "flat_thumbnail_distance": 2.0,
        "max_gain": 1.35,
        "min_detail": 0.2,
    }
    assert result_parameters(NearDuplicates(hash="pdq", distance=20))["distance"] == 20
    assert NearDuplicates().writes.names == [
        "near_duplicates",
        "near_duplicate_distances",
        "near_duplicate_group",
    ]
    audio = result_parameters(NearDuplicates(hash="audio_hash", distance=9))
    assert (audio["distance"], audio["thumbnail_distance"]) == (9, 1.8)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"distance": 13}, "distance=13 is not allowed; use 0 to 12 bits for audio_hash"),
        ({"thumbnail_distance": 40.0}, "0 to 30 dB for audio_hash"),
        ({"flat_thumbnail_distance": 2.5}, "0 to thumbnail_distance dB"),
        ({"spectrum_distance": -1.0}, "spectrum_distance=-1.0 is not allowed; use 0 to 30 dB"),
        ({"max_trim": 0.5}, "max_trim=0.5 is not allowed; use 0 to 0.4"),
        ({"max_gain": 2.0}, "max_gain=2.0 is not allowed; use it with images only"),
        ({"min_detail": -1.0}, "at least 0 dB"),
        ({"hash": "phash", "max_trim": 0.1}, "use it with hash: audio_hash only"),
        ({"hash": "dhash", "spectrum_distance": 1.0}, "use it with hash: audio_hash only"),
    ],
)
def test_bad_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        NearDuplicates(**{"hash": "audio_hash", **parameters})


def test_alignments_count_for_what_they_cost(
    run_global: Any, speech: tuple[pa.Table, list[int]]
) -> None:
    with pytest.raises(SetupError, match="recordings with close or equal hashes need"):
        run_global(NearDuplicates(hash="audio_hash", max_comparisons=20_000), [speech[0]])
