"""What the headers of audio files say of their length, where FFmpeg guesses or says otherwise.

FFmpeg cuts a WAV's length to the bytes that are there, and guesses that of an MP3 without a count
of frames. Nothing here raises for the content of ``data``: what makes no sense is None.
"""

from __future__ import annotations

import re
import struct
import zlib

_MAX_CHUNKS, _MAX_TAGS = 1000, 16
_MAX_BOXES = 100_000
_MAX_MOVIE_BYTES = 64 << 20
_MP4_FOLDERS = frozenset(
    b"moov trak mdia minf stbl moof traf edts udta mvex dinf ilst schi sinf tref wave".split()
)
"""Boxes in which FFmpeg looks for others; so it does in "stsd", and behind a "hdlr" in "meta"."""
_MP4_COUNTS = {b"stsz": 8, b"stz2": 8, b"trun": 4}
"""Table of samples -> where in its body their number stands."""
MP4_COUNTING = _MP4_FOLDERS | {b"meta", b"stsd", b"cmov", *_MP4_COUNTS}
"""Boxes in which there may be a number of samples."""
_MP4_ANY_COUNT = re.compile(b"cmov|" + b"|".join(_MP4_COUNTS))
_PCM_TAGS = frozenset({1, 3, 6, 7, 0xFFFE})

# ISO/IEC 11172-3, 2.4.2.3 and ISO/IEC 13818-3: index 3 is reserved. Versions: 2.5, -, 2, 1.
_MPEG_RATES = {0: (11_025, 12_000, 8_000), 2: (22_050, 24_000, 16_000), 3: (44_100, 48_000, 32_000)}


def wav_duration(data: bytes) -> float | None:
    """Return seconds by the chunks "fmt ", "fact" and "data" ("ds64") of a RIFF or RF64 file.

    None where the data chunk is missing, or of a size that streaming writers put there.
    """
    at, long_size, num_fact, wave = 12, None, None, None
    for _ in range(_MAX_CHUNKS):
        if at + 8 > len(data):
            return None
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        body = data[at + 8 : at + 8 + min(size, 64)]
        if name == b"ds64" and len(body) >= 16:
            long_size = int.from_bytes(body[8:16], "little")
        elif name == b"fmt " and len(body) >= 16:
            wave = struct.unpack("<HHIIHH", body[:16])
        elif name == b"fact" and len(body) >= 4:
            num_fact = int.from_bytes(body[:4], "little")
        elif name == b"data":
            if size == 0xFFFFFFFF and long_size:
                return _wave_seconds(wave, long_size, num_fact)
            return None if _is_streamed(size) else _wave_seconds(wave, size, num_fact)
        at += 8 + size + size % 2
    return None


def _is_streamed(size: int) -> bool:
    """Return whether it is what FFmpeg, SoX and others write into a pipe, not knowing the end."""
    return size in (0, 0xFFFFFFFF) or 0x7FFFF000 <= size <= 0x7FFFFFFF


def _wave_seconds(wave: tuple[int, ...] | None, size: int, num_fact: int | None) -> float | None:
    if wave is None:
        return None
    tag, _, rate, byte_rate, block, _ = wave
    if tag in _PCM_TAGS:
        return size // block / rate if block and rate else None
    if num_fact and rate:
        return num_fact / rate
    return size / byte_rate if byte_rate else None


def id3_end(data: bytes) -> int:
    """Return where the ID3v2 tags at the beginning end (id3.org, ID3v2.4, 3.1)."""
    at = 0
    for _ in range(_MAX_TAGS):
        if data[at : at + 3] != b"ID3" or at + 10 > len(data):
            break
        size = 0
        for byte in data[at + 6 : at + 10]:
            size = size << 7 | byte & 127
        at += 10 + size + 10 * (data[at + 5] >> 4 & 1)
    return at


def mpeg_duration(data: bytes) -> float | None:
    """Return seconds by the frame count of a "Xing", "Info" or "VBRI" tag in the first frame.

    The encoder's delay and padding, where a LAME tag says them, are not counted. None without a
    tag: the bit rate of one frame tells nothing of a file with changing ones.
    """
    at = id3_end(data)
    head = data[at : at + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer, index = head[1] >> 3 & 3, head[1] >> 1 & 3, head[2] >> 2 & 3
    if version == 1 or layer != 1 or index == 3:
        return None
    rate, samples = _MPEG_RATES[version][index], 1152 if version == 3 else 576
    if data[at + 36 : at + 40] == b"VBRI":
        return int.from_bytes(data[at + 50 : at + 54], "big") * samples / rate
    mono = head[3] >> 6 == 3
    side = (17 if mono else 32) if version == 3 else (9 if mono else 17)
    tag = at + 4 + side
    if data[tag : tag + 4] not in (b"Xing", b"Info") or not data[tag + 7 : tag + 8]:
        return None
    flags = data[tag + 7]
    if not flags & 1:
        return None
    frames = int.from_bytes(data[tag + 8 : tag + 12], "big")
    lame = tag + 8 + 4 * (flags & 1) + 4 * (flags >> 1 & 1) + 100 * (flags >> 2 & 1)
    lame += 4 * (flags >> 3 & 1)
    unheard = _lame_delay_and_padding(data[lame : lame + 24])
    return max(frames * samples - unheard, 0) / rate


def _lame_delay_and_padding(tag: bytes) -> int:
    """Return samples by the LAME info tag, 0 without one (LAME's documentation, "Mp3 info tag")."""
    if len(tag) < 24 or tag[:4] not in (b"LAME", b"Lavf", b"Lavc"):
        return 0
    both = int.from_bytes(tag[21:24], "big")
    return (both >> 12) + (both & 0xFFF)


def opus_pre_skip(data: bytes) -> float:
    """Return the seconds that RFC 7845 drops at the beginning of an Ogg Opus stream."""
    at = data.find(b"OpusHead", 0, 4096)
    return int.from_bytes(data[at + 10 : at + 12], "little") / 48_000 if at >= 0 else 0.0


def ogg_is_whole(data: bytes) -> bool:
    """Return whether the last page is there to its end (RFC 3533, 6).

    That a page is not marked as the last says nothing: some encoders never mark it, and one in six
    recordings of a Debian package is such a file.
    """
    at = len(data)
    for _ in range(16):
        at = data.rfind(b"OggS", 0, at)
        if at < 0:
            return False
        if at + 27 > len(data):
            return False
        if data[at + 4] == 0:
            table = data[at + 27 : at + 27 + data[at + 26]]
            return len(table) == data[at + 26] and at + 27 + len(table) + sum(table) <= len(data)
    return False


def mp4_counts_are_possible(data: bytes, length: int | None = None) -> bool:
    """Return whether no table of samples (stsz, stz2, trun) is longer than the file could hold.

    data: the file, or some of its boxes; then ``length`` is the file's, in bytes.

    FFmpeg makes an entry in memory for each, though the table need not list them: a few bytes
    could make it take gigabytes. Formats with less than half a byte per sample are none of ours.
    A compressed header ("cmov") is unpacked, up to 64 MiB.
    """
    return _counts_are_possible(data, 2 * (len(data) if length is None else length), unpack=True)


def mp4_box(head: bytes, left: int) -> tuple[bytes, int, int]:
    """Return a box's name, and how many bytes its header and the whole box take.

    head: its first 16 bytes (ISO/IEC 14496-12, 4.2). left: bytes to the end of what it is in.
    """
    size, header = int.from_bytes(head[:4], "big"), 8
    if size == 1:
        size, header = int.from_bytes(head[8:16], "big"), 16
    return head[4:8], header, max(size, 8) if size else left


def _counts_are_possible(data: bytes, most: int, *, unpack: bool) -> bool:
    waiting = [(0, len(data))]
    for _ in range(_MAX_BOXES):
        if not waiting:
            return True
        at, end = waiting.pop()
        if at + 8 > end:
            continue
        name, header, size = mp4_box(data[at : at + 16], end - at)
        body, stop = at + header, min(end, at + size)
        waiting.append((stop, end))
        if name in _MP4_FOLDERS:
            waiting.append((body, stop))
        elif name == b"meta" and (handler := data.find(b"hdlr", body, stop)) >= 0:
            waiting.append((handler - 4, stop))
        elif name == b"stsd":  # its entries differ in length by codec and version
            found = _MP4_ANY_COUNT.finditer(data, body, stop)
            waiting.extend((match.start() - 4, stop) for match in found)
        elif name in _MP4_COUNTS:
            where = body + _MP4_COUNTS[name]
            if int.from_bytes(data[where : where + 4], "big") > most:
                return False
        elif name == b"cmov":
            movie = _unpacked(data[body:stop]) if unpack else None
            if movie is None or not _counts_are_possible(movie, most, unpack=False):
                return False
    return False


def _unpacked(body: bytes) -> bytes | None:
    """Return the header that a "cmov" holds (QuickTime File Format, "Compressed Movie Resources").

    None where it is damaged, or longer than _MAX_MOVIE_BYTES.
    """
    inflate = zlib.decompressobj()
    try:
        movie = inflate.decompress(body[24:], _MAX_MOVIE_BYTES)
    except zlib.error:
        return None
    return movie if inflate.eof else None
