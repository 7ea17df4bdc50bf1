"""The whole stage against its definition, on synthetic columns and on real pictures."""

from __future__ import annotations

import io
import itertools
from typing import Any

import imagehash
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from winnow.contracts.errors import RecipeError, SetupError
from winnow.stages.dedupe.near_duplicates import NearDuplicates

SCHEMA = pa.schema(
    {
        "uid": pa.binary(16),
        "phash": pa.uint64(),
        "dhash": pa.uint64(),
        "pdq": pa.binary(32),
        "thumbnail": pa.binary(192),
        "image_detail": pa.float32(),
    }
)
FLAT = bytes([200]) * 192


def uid(number: int) -> bytes:
    # High bytes too: the order of uids is that of unsigned bytes.
    return (number * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "big") + number.to_bytes(8, "big")


def row(
    number: int, phash: int | None, thumbnail: bytes | None = FLAT, detail: float | None = 50.0
) -> dict[str, Any]:
    pdq = None if phash is None else phash.to_bytes(8, "big") * 4
    return {
        "uid": uid(number),
        "phash": phash,
        "dhash": phash,
        "pdq": pdq,
        "thumbnail": thumbnail,
        "image_detail": detail,
    }


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def lists(tables: list[pa.Table]) -> list[list[tuple[bytes, int]] | None]:
    """Return (uid, distance) per row."""
    found: list[list[tuple[bytes, int]] | None] = []
    for shard in tables:
        for line in shard.to_pylist():
            names, distances = line["near_duplicates"], line["near_duplicate_distances"]
            found.append(None if names is None else list(zip(names, distances, strict=True)))
            assert names is not None or distances is None
    return found


def naive(stage: NearDuplicates, rows: list[dict[str, Any]]) -> tuple[list[Any], list[Any]]:
    """Lists and groups by the words of the docstring, pair by pair."""
    first: dict[bytes, dict[str, Any]] = {}
    for r in rows:
        if r[stage.hash] is not None and r["thumbnail"] is not None:
            first.setdefault(r["uid"], r)

    def low(r: dict[str, Any]) -> bool:
        return r["image_detail"] is None or r["image_detail"] < stage.min_detail

    def signature(r: dict[str, Any]) -> tuple[Any, ...]:
        return (r[stage.hash], r["thumbnail"], low(r))

    def bits(a: Any, b: Any) -> int:
        if isinstance(a, bytes):
            a, b = int.from_bytes(a, "big"), int.from_bytes(b, "big")
        return (a ^ b).bit_count()

    def close(a: dict[str, Any], b: dict[str, Any]) -> bool:
        flat = low(a) or low(b)
        dark, bright = sorted((a["thumbnail"], b["thumbnail"]), key=sum)
        gain = 1.0 if flat else min(sum(bright) / max(sum(dark), 1), stage.max_gain)
        total = sum(abs(min(round(x * gain), 255) - y) for x, y in zip(dark, bright, strict=True))
        return total / 192 <= (stage.flat_thumbnail_distance if flat else stage.thumbnail_distance)

    least: dict[tuple[Any, ...], bytes] = {}
    sizes: dict[tuple[Any, ...], int] = {}
    for name in sorted(first):
        least.setdefault(signature(first[name]), name)
        sizes[signature(first[name])] = sizes.get(signature(first[name]), 0) + 1
    near: dict[bytes, set[tuple[bytes, int]]] = {name: set() for name in first}
    for a, b in itertools.permutations(first.values(), 2):
        distance = bits(a[stage.hash], b[stage.hash])
        own = least[signature(a)]
        if signature(a) == signature(b):
            if own in (a["uid"], b["uid"]):
                near[a["uid"]].add((b["uid"], 0))
        elif distance <= stage.distance and close(a, b):
            near[a["uid"]].add((least[signature(b)], distance))
    expected, groups = [], []
    for r in rows:
        known = r[stage.hash] is not None and r["thumbnail"] is not None
        mine = first.get(r["uid"])
        expected.append(sorted(near[r["uid"]]) if known else None)
        shared = known and mine is not None and sizes[signature(mine)] > 1
        groups.append(least[signature(mine)] if shared and mine is not None else None)
    return expected, groups


@st.composite
def pools(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows around a few hashes and thumbnails, with nulls, repeats and flat images."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    hashes = [int(h) for h in rng.integers(0, 2**63, 3)]
    pictures = rng.integers(0, 200, (3, 192))
    rows = []
    for number in range(draw(st.integers(0, 25))):
        value: int | None = hashes[rng.integers(3)]
        for bit in rng.integers(0, 64, rng.choice([0, 0, 2, 5])):
            value = value ^ (1 << int(bit)) if value is not None else None
        pixels = pictures[rng.integers(3)] * rng.choice([1, 1, 1.25, 1.5])
        pixels = pixels + rng.normal(0, 1, 192) * rng.choice([0, 0, 2, 14])
        thumbnail = pixels.clip(0, 255).astype(np.uint8).tobytes()
        detail = float(rng.choice([0.0, 0.1999, 0.25, 60.0]))
        chance = rng.random()
        rows.append(
            row(
                number if chance > 0.1 else number // 2,
                None if 0.1 < chance < 0.2 else value,
                None if 0.2 < chance < 0.25 else thumbnail,
                None if 0.25 < chance < 0.3 else detail,
            )
        )
    return rows


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=pools(), cuts=st.lists(st.integers(0, 25), max_size=3), which=st.integers(0, 2))
def test_equals_the_definition_for_any_sharding(
    run_global: Any, rows: list[dict[str, Any]], cuts: list[int], which: int
) -> None:
    name = ("phash", "dhash", "pdq")[which]
    stage = NearDuplicates(hash=name, distance=24 if name == "pdq" else 6, num_threads=1)
    bounds = [0, *sorted(min(c, len(rows)) for c in cuts), len(rows)]
    shards = [table(rows[a:b]) for a, b in itertools.pairwise(bounds)]
    found, counters = run_global(stage, shards)
    expected, groups = naive(stage, rows)
    assert lists(found) == expected
    assert [g for t in found for g in t["near_duplicate_group"].to_pylist()] == groups
    assert counters["rows"] == len(rows)
    assert counters["rows_without_hash"] == expected.count(None)


def test_sliced_and_chunked_columns_read_as_they_are(run_global: Any) -> None:
    rows = [row(i, (i % 5) << 3, bytes([i % 7]) * 192) for i in range(40)]
    whole = table(rows)
    chunked = pa.concat_tables([whole.slice(3, 10), whole.slice(13, 1), whole.slice(14, 17)])
    stage = NearDuplicates(num_threads=1)
    found, _ = run_global(stage, [chunked, whole.slice(31)])
    assert lists(found) == naive(stage, rows[3:])[0]


def test_a_large_group_has_lists_of_linear_size(run_global: Any) -> None:
    """One placeholder under 20,000 URLs, another version of it under 3."""
    other = bytes([201]) * 192
    rows = [row(i, 77) for i in range(20_000)] + [row(20_000 + i, 76, other) for i in range(3)]
    found, counters = run_global(NearDuplicates(), [table(rows)])
    first = min(r["uid"] for r in rows[:20_000])
    second = min(r["uid"] for r in rows[20_000:])
    for line, names in zip(rows, lists(found), strict=True):
        assert names is not None
        if line["uid"] == first:
            assert len(names) == 20_000
        elif line["uid"] == second:
            assert len(names) == 3
        elif line["phash"] == 77:
            assert sorted(names) == sorted([(first, 0), (second, 1)])
        else:
            assert sorted(names) == sorted([(second, 0), (first, 1)])
    assert counters["groups"] == 2
    assert counters["pairs"] == 1


def test_many_flat_images_with_one_hash_do_not_cost_their_square(run_global: Any) -> None:
    """12,000 solid colours share a hash; only colours within 2 levels are neighbours."""
    rng = np.random.default_rng(0)
    colours = np.unique(rng.integers(0, 256, (12_000, 3)), axis=0)
    rows = [row(i, 1, bytes(c.tolist()) * 64, 0.0) for i, c in enumerate(colours.astype(int))]
    stage = NearDuplicates(max_comparisons=12_000 * 12_000 // 20)
    found, counters = run_global(stage, [table(rows)])
    names = lists(found)
    index = {r["uid"]: i for i, r in enumerate(rows)}
    for i in range(0, len(rows), 600):
        near = np.abs(colours - colours[i]).sum(axis=1) * 64 <= 2 * 192
        near[i] = False
        assert {index[u] for u, _ in names[i] or []} == set(np.flatnonzero(near).tolist())
    assert counters["distinct_hashes"] == 1


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_comparisons": 10}, r"30 distinct hashes need 435 comparisons .* lower distance"),
        ({"max_pairs": 434}, r"at least 435 neighbours, and max_pairs is 434"),
        ({"max_pairs": 869}, r"at least 870 neighbours, and max_pairs is 869"),
    ],
)
def test_what_costs_too_much_is_refused(
    run_global: Any, limits: dict[str, int], message: str
) -> None:
    rows = [row(i, i) for i in range(30)]
    with pytest.raises(SetupError, match=message):
        run_global(NearDuplicates(**limits), [table(rows)])
    found, _ = run_global(NearDuplicates(max_pairs=870, max_comparisons=435), [table(rows)])
    assert [len(names or []) for names in lists(found)] == [29] * 30


def test_equal_hashes_of_too_many_flat_images_are_refused(run_global: Any) -> None:
    rows = [row(i, 5, bytes([100 + i % 2, i // 2 % 3, 0]) * 64, 0.0) for i in range(6)]
    with pytest.raises(SetupError, match="6 images with close or equal hashes need 15 comparisons"):
        run_global(NearDuplicates(max_comparisons=14), [table(rows)])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"hash": "md5"}, "hash='md5' is not allowed; use one of phash, dhash, pdq"),
        ({"distance": 13}, "distance=13 is not allowed; use 0 to 12 bits for phash"),
        ({"hash": "pdq", "distance": 32}, "use 0 to 31 bits for pdq"),
        ({"distance": -1}, "distance=-1"),
        ({"thumbnail_distance": 300.0}, "thumbnail_distance=300.0"),
        ({"flat_thumbnail_distance": 13.0}, "use 0 to thumbnail_distance"),
        ({"max_gain": 0.5}, "max_gain=0.5"),
        ({"min_detail": float("nan")}, "min_detail=nan"),
        ({"max_pairs": 0}, "max_pairs=0 is not allowed; use at least 1"),
    ],
)
def test_bad_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message.replace("(", r"\(")):
        NearDuplicates(**parameters)


def test_no_rows(run_global: Any) -> None:
    found, counters = run_global(NearDuplicates(), [table([]), table([row(1, None)])])
    assert lists(found) == [None]
    assert counters["images"] == 0
    assert run_global(NearDuplicates(), [])[0] == []


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return Image.open(io.BytesIO(data.getvalue())).convert("RGB")


def picture(seed: int) -> Image.Image:
    """A landscape of smooth coloured noise: nothing in it is symmetric or flat."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (7, 9, 3)).astype(np.uint8)
    fine = rng.integers(0, 256, (24, 32, 3)).astype(np.uint8)
    size, bicubic = (256, 192), Image.Resampling.BICUBIC
    layers = (Image.fromarray(a).resize(size, bicubic) for a in (coarse, fine))
    return Image.blend(*layers, 0.25)


def test_edited_pictures_are_found_and_different_ones_are_not(run_global: Any) -> None:
    rows = []
    for seed in range(40):
        image = picture(seed)
        small = image.resize((120, 90), Image.Resampling.LANCZOS)
        bright = ImageEnhance.Brightness(image).enhance(0.85)
        for edit in (image, jpeg(image, 40), small, jpeg(bright, 85)):
            gray = np.asarray(edit.convert("L"), float)
            thumbnail = np.asarray(edit.resize((8, 8), Image.Resampling.BOX)).tobytes()
            bits = imagehash.phash(edit).hash.flatten()
            number = int("".join("1" if b else "0" for b in bits), 2)
            rows.append(row(len(rows), number, thumbnail, float(gray.std())))
    found, _ = run_global(NearDuplicates(), [table(rows[:77]), table(rows[77:])])
    index = {r["uid"]: i for i, r in enumerate(rows)}
    right = wrong = 0
    for i, names in enumerate(lists(found)):
        for name, _ in names or []:
            right += index[name] // 4 == i // 4
            wrong += index[name] // 4 != i // 4
    assert wrong == 0
    assert right >= 0.97 * 40 * 4 * 3
