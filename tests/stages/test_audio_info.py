"""What the stage says about files whose properties are known."""

from __future__ import annotations

import hashlib

import pyarrow as pa
import pytest

from tests.sounds import encoded, hour_header, mp3_with_cover, not_finite, video
from winnow.contracts.media import MediaCaps
from winnow.stages._media import BatchMedia, MediaCache
from winnow.stages.audio_info import AudioInfo


def run(*data: bytes | None, caps: MediaCaps | None = None) -> list[dict]:
    stage = AudioInfo()
    batch = pa.record_batch({"audio": pa.array(data, pa.large_binary())})
    with MediaCache(1 << 26, 2) as cache:
        media = BatchMedia(batch, caps=caps or MediaCaps(), cache=cache, first_row=0)
        out = stage.annotate(batch, None, media)
    out.validate(full=True)
    assert out.schema == stage.writes
    return out.to_pylist()


def test_a_plain_recording() -> None:
    data = encoded("wav", 1.5, 22_050, 2)
    assert run(data) == [
        {
            "audio_duration_s": 1.5,
            "audio_header_duration_s": 1.5,
            "audio_sample_rate": 22_050,
            "audio_channels": 2,
            "audio_codec": "pcm_s16le",
            "audio_container": "wav",
            "audio_bit_rate": 22_050 * 2 * 16,
            "audio_size_bytes": len(data),
            "audio_truncated": False,
            "audio_digest": hashlib.blake2b(data, digest_size=16).digest(),
            "audio_info_error": None,
        }
    ]


@pytest.mark.parametrize(
    ("kind", "codec", "container"),
    [
        ("flac", "flac", "flac"),
        ("mp3", "mp3", "mp3"),
        ("opus", "opus", "ogg"),
        ("ogg", "vorbis", "ogg"),
        ("m4a", "aac", "mp4"),
        ("aac", "aac", "aac"),
        ("webm", "opus", "matroska"),
        ("wma", "wmav2", "asf"),
    ],
)
def test_codecs_and_containers(kind: str, codec: str, container: str) -> None:
    (row,) = run(encoded(kind))
    assert (row["audio_codec"], row["audio_container"]) == (codec, container)


@pytest.mark.parametrize("kind", ["flac", "opus", "aac"])
def test_a_bit_rate_that_no_header_has_is_that_of_the_file(kind: str) -> None:
    data = encoded(kind)
    (row,) = run(data)
    assert row["audio_bit_rate"] == round(8 * len(data) / row["audio_duration_s"])


def test_a_cut_file_is_truncated_and_keeps_what_its_header_says() -> None:
    data = encoded("flac", 2.0)
    (row,) = run(data[: len(data) // 2])
    assert row["audio_truncated"]
    assert row["audio_header_duration_s"] == 2.0
    assert 0.5 < row["audio_duration_s"] < 1.2


def test_a_stream_without_a_length_has_no_header_duration() -> None:
    (row,) = run(encoded("aac"))
    assert (row["audio_header_duration_s"], row["audio_truncated"]) == (None, False)


def test_a_cover_is_fine() -> None:
    (row,) = run(mp3_with_cover())
    assert (row["audio_codec"], row["audio_info_error"]) == ("mp3", None)


def test_rows_that_fail_keep_their_bytes_columns() -> None:
    data = [None, b"<html>", b"", hour_header("wav"), video(), not_finite(), encoded("wav", 3.0)]
    rows = run(*data, caps=MediaCaps(max_duration_s=2.0))
    assert [row["audio_info_error"] for row in rows] == [
        "missing", "undecodable", "undecodable", "too_long", "is_video", "not_finite", "too_long",
    ]  # fmt: skip
    for row, encoded_bytes in zip(rows, data, strict=True):
        known = {name for name, value in row.items() if value is not None}
        size = {"audio_size_bytes", "audio_digest"} if encoded_bytes is not None else set()
        assert known == {"audio_info_error"} | size
        assert row["audio_size_bytes"] == (None if encoded_bytes is None else len(encoded_bytes))
