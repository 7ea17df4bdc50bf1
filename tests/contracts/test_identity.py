"""Identity: uids against the documented layout, hashes against each other and against chance."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from winnow.contracts.identity import (
    UID_TYPE,
    content_digest,
    row_uid,
    stable_hash64,
    stable_hashes64,
    uid_array,
)

TEXTS = st.text(st.characters(exclude_categories=[]), max_size=12)
FIELDS = st.none() | TEXTS | st.binary(max_size=12) | st.integers() | st.booleans() | st.floats()


def naive_uid(*fields: Any) -> bytes:
    """Tag, 8-byte little-endian length, raw bytes; one field after the other."""
    said = b""
    for field in fields:
        match field:
            case None:
                tag, raw = b"n", b""
            case bool():
                tag, raw = b"t", b"1" if field else b"0"
            case str():
                tag, raw = b"s", field.encode("utf-8", "surrogatepass")
            case bytes():
                tag, raw = b"b", field
            case int():
                tag, raw = b"i", str(field).encode()
            case _:
                tag, raw = b"f", struct.pack("<d", field)
        said += tag + len(raw).to_bytes(8, "little") + raw
    return hashlib.blake2b(said, digest_size=16).digest()


@settings(deadline=None, max_examples=40)
@given(st.lists(FIELDS, max_size=4))
def test_a_uid_is_the_digest_of_tags_lengths_and_raw_bytes(fields: list[Any]) -> None:
    assert row_uid(*fields) == naive_uid(*fields)


def test_the_uid_that_the_docstring_shows() -> None:
    assert row_uid("http://a/b.jpg", "a cat").hex() == "16fe3d4f75b8d6cae05a3294e1406c98"


def test_fields_that_look_alike_are_other_rows() -> None:
    """Type, cut between fields, normalisation and sign count; none of them may be lost."""
    alike: list[tuple[Any, ...]] = [
        (), (None,), ("",), (b"",), (None, None), ("", ""),
        ("1",), (b"1",), (1,), (1.0,), (True,), (-1,), ("True",), ("None",),
        ("ab", "c"), ("a", "bc"), ("abc",), ("a", "b", "c"),
        ("\u00e9",), ("e\u0301",), ("\ud83d",), ("\U0001f600",), ("\ud83d\ude00",),
        (0,), (False,), (0.0,), (-0.0,), (float("inf"),), ("a\0",), ("a",),
    ]  # fmt: skip
    uids = {row_uid(*fields) for fields in alike}
    # Two surrogates of one character are six bytes, the character is four.
    assert len(uids) == len(alike)
    assert {len(uid) for uid in uids} == {16}


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3).flatmap(lambda k: st.lists(st.tuples(*[FIELDS] * k), max_size=6)))
def test_an_array_of_uids_has_one_per_row(rows: list[tuple[Any, ...]]) -> None:
    columns = [list(column) for column in zip(*rows, strict=True)] or [[]]
    found = uid_array(columns)
    assert found.type == UID_TYPE
    assert found.to_pylist() == [row_uid(*row) for row in rows]
    assert found.null_count == 0


def test_columns_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter|longer"):
        uid_array([["a", "b"], ["c"]])


@settings(deadline=None, max_examples=40)
@given(st.binary(max_size=300))
def test_a_content_digest_is_blake2b_of_the_bytes(data: bytes) -> None:
    expected = hashlib.blake2b(data, digest_size=16).digest()
    assert content_digest(data) == expected
    assert content_digest(memoryview(data)) == expected
    assert pa.array([content_digest(data)], UID_TYPE)[0].as_py() == expected


@settings(deadline=None, max_examples=40)
@given(st.lists(FIELDS, max_size=3), st.lists(st.binary(max_size=20), max_size=5))
def test_many_hashes_are_the_single_ones(fields: list[Any], lasts: list[bytes]) -> None:
    found = stable_hashes64(fields, lasts)
    assert found.dtype == np.uint64
    assert found.tolist() == [stable_hash64(*fields, last) for last in lasts]
    assert stable_hashes64(fields, iter(lasts)).tolist() == found.tolist()


@settings(deadline=None, max_examples=40)
@given(st.lists(FIELDS, max_size=4))
def test_a_hash_is_the_first_half_of_the_uid(fields: list[Any]) -> None:
    assert stable_hash64(*fields) == struct.unpack("<Q", naive_uid(*fields)[:8])[0]


def test_hashes_fill_64_bits_evenly() -> None:
    found = np.array([stable_hash64(3, n) for n in range(4096)], np.uint64)
    for shift in range(0, 64, 8):
        counts = np.bincount(((found >> np.uint64(shift)) & np.uint64(255)).astype(int))
        assert len(counts) == 256
        assert chisquare(counts).pvalue > 1e-6
    assert len(np.unique(found)) == 4096
    other = np.array([stable_hash64(4, n) for n in range(4096)], np.uint64)
    order = np.corrcoef(np.argsort(found), np.argsort(other))[0, 1]
    assert abs(order) < 0.08
