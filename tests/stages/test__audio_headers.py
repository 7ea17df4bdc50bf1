"""Headers of sound files, laid out by hand from the published formats."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.stages._audio_headers import (
    id3_end,
    mp4_counts_are_possible,
    mpeg_duration,
    ogg_is_whole,
    opus_pre_skip,
    wav_duration,
)


def chunk(name: bytes, body: bytes, size: int | None = None) -> bytes:
    """A chunk of RIFF: an odd body has a byte behind it that its size does not count."""
    return (
        name
        + struct.pack("<I", len(body) if size is None else size)
        + body
        + b"\0" * (len(body) % 2)
    )


def fmt(
    tag: int = 1, channels: int = 2, rate: int = 8000, bits: int = 16, block: int | None = None
) -> bytes:
    block = channels * bits // 8 if block is None else block
    return chunk(b"fmt ", struct.pack("<HHIIHH", tag, channels, rate, rate * block, block, bits))


def riff(*chunks: bytes, name: bytes = b"RIFF") -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return name + struct.pack("<I", len(body)) + body


def ds64(data_size: int, num_samples: int = 0) -> bytes:
    """EBU Tech 3306: sizes of the file and its data, number of samples, no table."""
    return chunk(b"ds64", struct.pack("<QQQI", data_size + 80, data_size, num_samples, 0))


SOUND = b"\0" * 16_000


@pytest.mark.parametrize(
    ("data", "seconds"),
    [
        (riff(fmt(), chunk(b"data", SOUND)), 0.5),
        (riff(chunk(b"LIST", b"odd"), fmt(), chunk(b"junk", b""), chunk(b"data", SOUND)), 0.5),
        (riff(fmt(channels=1, bits=24), chunk(b"data", SOUND)), 5_333 / 8_000),
        (riff(fmt(tag=3, channels=1, bits=32), chunk(b"data", SOUND)), 0.5),
        (riff(fmt(tag=6, channels=1, bits=8), chunk(b"data", SOUND)), 2.0),
        (riff(fmt(), chunk(b"data", b"", 3_200_000_000)), 100_000.0),
        (
            riff(ds64(1 << 40), fmt(), chunk(b"data", b"", 0xFFFFFFFF), name=b"RF64"),
            2.0**40 / 32_000,
        ),
        # IMA ADPCM: samples per block are not in the first 16 bytes; "fact" says how many all are.
        (
            riff(
                fmt(17, 1, 8000, 4, 256),
                chunk(b"fact", struct.pack("<I", 12_000)),
                chunk(b"data", b"\0" * 6_000),
            ),
            1.5,
        ),
        (riff(fmt()), None),
        (riff(chunk(b"data", SOUND)), None),
        (riff(fmt(rate=0), chunk(b"data", SOUND)), None),
        (riff(fmt(channels=0), chunk(b"data", SOUND)), None),
        (riff(fmt(block=0), chunk(b"data", SOUND)), None),
        (b"RIFF", None),
        (b"", None),
    ],
)
def test_the_length_of_a_wav(data: bytes, seconds: float | None) -> None:
    assert wav_duration(data) == (None if seconds is None else pytest.approx(seconds))


def synchsafe(size: int) -> bytes:
    return bytes((size >> shift) & 0x7F for shift in (21, 14, 7, 0))


def id3(size: int, *, flags: int = 0, version: int = 4) -> bytes:
    footer = b"3DI" + bytes([version, 0, flags]) + synchsafe(size) if flags & 0x10 else b""
    return b"ID3" + bytes([version, 0, flags]) + synchsafe(size) + b"\0" * size + footer


@pytest.mark.parametrize(
    "tags", [[], [id3(0)], [id3(300)], [id3(5, flags=0x10)], [id3(200), id3(1000, version=3)]]
)
def test_where_id3_tags_end(tags: list[bytes]) -> None:
    data = b"".join(tags)
    assert id3_end(data + b"\xff\xfb\x90\x00") == len(data)


def test_a_tag_longer_than_its_file() -> None:
    assert mpeg_duration(id3(1000)[:200]) is None
    assert id3_end(b"ID3") == 0


MPEG = {1: 3, 2: 2, 2.5: 0}
RATES = {1: (44100, 48000, 32000), 2: (22050, 24000, 16000), 2.5: (11025, 12000, 8000)}


def frame(version: float, rate: int, mono: bool, tag: bytes, at: int | None = None) -> bytes:
    """A frame of layer III with a tag behind its side information (ISO 11172-3, 2.4.1)."""
    side = {(True, False): 32, (True, True): 17, (False, False): 17, (False, True): 9}[
        version == 1, mono
    ]
    header = bytes([0xFF, 0xE0 | MPEG[version] << 3 | 1 << 1 | 1,
                    9 << 4 | RATES[version].index(rate) << 2, 0xC0 if mono else 0])  # fmt: skip
    return header + b"\0" * (side if at is None else at) + tag + b"\0" * 300


def xing(frames: int | None, name: bytes = b"Xing", lame: tuple[int, int] | None = None) -> bytes:
    tag = name + struct.pack(">I", 0 if frames is None else 1)
    tag += b"" if frames is None else struct.pack(">I", frames)
    if lame:  # delay and padding stand 21 bytes into LAME's part, 12 bits each
        tag += b"LAME3.100" + b"\0" * 12 + ((lame[0] << 12) | lame[1]).to_bytes(3, "big")
    return tag


@pytest.mark.parametrize(("version", "rate"), [(v, r) for v, rates in RATES.items() for r in rates])
@pytest.mark.parametrize("mono", [False, True])
def test_the_length_of_an_mp3_by_its_tag(version: float, rate: int, mono: bool) -> None:
    per_frame = 1152 if version == 1 else 576
    for name in (b"Xing", b"Info"):
        data = id3(40) + frame(version, rate, mono, xing(250, name))
        assert mpeg_duration(data) == pytest.approx(250 * per_frame / rate)
    vbri = b"VBRI" + struct.pack(">HHHII", 1, 0, 75, 99_999, 250)
    assert mpeg_duration(frame(version, rate, mono, vbri, 32)) == pytest.approx(
        250 * per_frame / rate
    )
    played = frame(version, rate, mono, xing(250, lame=(576, 1000)))
    assert mpeg_duration(played) == pytest.approx((250 * per_frame - 1576) / rate)


@pytest.mark.parametrize(
    ("tag", "seconds"),
    [
        (b"", None),
        (xing(None), None),
        (b"XING", None),
        (xing(0), 0),
        (xing(1, lame=(4095, 4095)), 0),
    ],
)
def test_an_mp3_that_does_not_say_its_length(tag: bytes, seconds: float | None) -> None:
    assert mpeg_duration(frame(1, 44100, False, tag)) == seconds


def page(body: bytes, *, lacing: bytes | None = None) -> bytes:
    """A page of Ogg (RFC 3533, 6); the checksum is nobody's business here."""
    if lacing is None:
        lacing = b"\xff" * (len(body) // 255) + bytes([len(body) % 255])
    return b"OggS" + bytes(22) + bytes([len(lacing)]) + lacing + body


def test_an_ogg_file_is_whole_at_the_end_of_its_last_page() -> None:
    data = page(b"a" * 600) + page(b"OggS is a word of this packet") + page(b"b" * 510)
    last = len(page(b"b" * 510))
    assert ogg_is_whole(data)
    assert [cut for cut in range(1, last - 3) if ogg_is_whole(data[:-cut])] == []
    assert ogg_is_whole(data[:-last])
    assert not ogg_is_whole(b"")


def test_pre_skip() -> None:
    head = b"OpusHead" + struct.pack("<BBHIhB", 1, 2, 312, 44_100, 0, 0)
    assert opus_pre_skip(page(head) + page(b"OpusTags")) == pytest.approx(312 / 48_000)
    assert opus_pre_skip(page(b"\x01vorbis")) == 0
    assert opus_pre_skip(b"OggS") == 0
    assert opus_pre_skip(page(head)[:-12]) == 0


def box(name: bytes, body: bytes, *, large: bool = False) -> bytes:
    if large:
        return struct.pack(">I4sQ", 1, name, len(body) + 16) + body
    return struct.pack(">I4s", len(body) + 8, name) + body


def stsz(size: int, count: int) -> bytes:
    return box(b"stsz", struct.pack(">III", 0, size, count))


def within(table: bytes, *names: bytes, large: bool = False) -> bytes:
    """A movie with a table at the end of a chain of boxes."""
    for name in reversed((b"moov", b"trak", b"mdia", b"minf", b"stbl", *names)):
        table = box(name, b"\0" * 8 * (name == b"stsd") + table, large=large)
    return box(b"ftyp", b"M4A \0\0\0\0") + table


@pytest.mark.parametrize("large", [False, True])
def test_tables_of_samples_fit_into_their_file(large: bool) -> None:
    assert mp4_counts_are_possible(within(stsz(1, 100), large=large))
    assert not mp4_counts_are_possible(within(stsz(1, 50_000_000), large=large))
    stz2 = box(b"stz2", struct.pack(">III", 0, 4, 0xFFFFFFFF))
    assert not mp4_counts_are_possible(within(stz2, large=large))
    trun = box(b"trun", struct.pack(">II", 0, 0xFFFFFFFF))
    assert not mp4_counts_are_possible(box(b"moof", box(b"traf", trun, large=large), large=large))
    assert mp4_counts_are_possible(b"")


HANDLER = b"\0" * 4 + box(b"hdlr", bytes(24))
ENTRY = struct.pack(">I4s", 36, b"mp4a") + bytes(28)


@pytest.mark.parametrize("name", [b"dinf", b"ilst", b"schi", b"sinf", b"tref", b"wave"])
@pytest.mark.parametrize("count", [10, 50_000_000])
def test_tables_in_boxes_where_ffmpeg_finds_them_though_they_have_no_place_there(
    name: bytes, count: int
) -> None:
    """FFmpeg 8 read the table in each of these, and made its index: 100 MB for a file of 11 kB."""
    assert mp4_counts_are_possible(within(stsz(1, count), name)) == (count == 10)


@pytest.mark.parametrize("count", [10, 50_000_000])
def test_tables_behind_a_handler_and_behind_a_codec(count: int) -> None:
    for before, name in ((HANDLER, b"meta"), (ENTRY, b"stsd")):
        data = within(before + stsz(1, count), name)
        assert mp4_counts_are_possible(data) == (count == 10)


def compressed(movie: bytes) -> bytes:
    """QuickTime File Format, "Compressed Movie Resources"."""
    body = struct.pack(">I", len(movie)) + zlib.compress(movie)
    return box(b"moov", box(b"cmov", box(b"dcom", b"zlib") + box(b"cmvd", body)))


def test_tables_in_a_compressed_header() -> None:
    assert mp4_counts_are_possible(compressed(within(stsz(1, 10))))
    assert not mp4_counts_are_possible(compressed(within(stsz(1, 50_000_000))))
    assert not mp4_counts_are_possible(compressed(compressed(within(stsz(1, 10)))))
    assert not mp4_counts_are_possible(compressed(bytes(65 << 20)))
    assert not mp4_counts_are_possible(compressed(within(stsz(1, 10)))[:-5])


WHOLE = [
    riff(
        ds64(1 << 40),
        fmt(),
        chunk(b"fact", b"\0\0\0\1"),
        chunk(b"data", b"", 0xFFFFFFFF),
        name=b"RF64",
    ),
    id3(20) + frame(1, 44100, False, xing(250, lame=(576, 1000))),
    frame(2, 16000, True, b"VBRI" + struct.pack(">HHHII", 1, 0, 75, 99_999, 250), 32),
    page(b"OpusHead" + struct.pack("<BBHIhB", 1, 2, 312, 44_100, 0, 0)) + page(b"x" * 300),
    within(stsz(0, 3)) + box(b"moof", box(b"traf", box(b"trun", b"\0" * 8))),
    within(HANDLER + stsz(0, 3), b"meta") + within(ENTRY + stsz(0, 3), b"stsd"),
    compressed(within(stsz(0, 3))),
]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(WHOLE),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
    st.integers(0, 500),
)
def test_damage_never_raises(data: bytes, edits: list[tuple[int, int]], cut: int) -> None:
    damaged = bytearray(data)
    for at, value in edits:
        damaged[at % len(damaged)] = value
    got = bytes(damaged)[:cut]
    for seconds in (wav_duration(got), mpeg_duration(got)):
        assert seconds is None or seconds >= 0
    assert id3_end(got) >= 0
    assert opus_pre_skip(got) >= 0
    assert ogg_is_whole(got) in (True, False)
    assert mp4_counts_are_possible(got) in (True, False)
