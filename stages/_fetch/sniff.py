"""Which media format some bytes begin as: signatures, because content types lie."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

Modality = Literal["image", "audio"]

SNIFF_BYTES = 32
"""Bytes that are enough to decide."""

_DIB_SIZES = frozenset({12, 16, 40, 52, 56, 64, 108, 124})
_HEIF_BRANDS = frozenset(
    {b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
)
_PNM = re.compile(rb"P[1-7][\s#]")


def _riff(kind: bytes) -> Callable[[bytes], bool]:
    heads = (b"RIFF", b"RF64", b"BW64")
    return lambda head: head[:4] in heads and head[8:12] == kind


def _is_bmp(head: bytes) -> bool:
    # "BM" alone begins many a text; the size of the second header is one of a few numbers.
    return head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _DIB_SIZES


def _is_heif(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS


def _is_mp4(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] not in _HEIF_BRANDS


def _is_mpeg_audio(head: bytes) -> bool:
    """An ID3 tag, or a frame header (ISO/IEC 11172-3, 2.4.1.3) without a reserved value."""
    if head[:3] == b"ID3":
        return True
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return False
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    bitrate, sampling = head[2] >> 4, head[2] >> 2 & 3
    return version != 1 and layer != 0 and bitrate != 15 and sampling != 3


def _is_adts(head: bytes) -> bool:
    """AAC in ADTS frames (ISO/IEC 13818-7): 12 sync bits, layer 0, a sampling index below 13."""
    return len(head) >= 3 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0 and head[2] >> 2 & 15 < 13


def _starts(*prefixes: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(prefixes)


_SIGNATURES: dict[Modality, dict[str, Callable[[bytes], bool]]] = {
    "image": {
        "jpeg": _starts(b"\xff\xd8\xff"),
        "png": _starts(b"\x89PNG\r\n\x1a\n"),
        "gif": _starts(b"GIF87a", b"GIF89a"),
        "webp": _riff(b"WEBP"),
        "bmp": _is_bmp,
        "tiff": _starts(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
        "heif": _is_heif,
        "ico": _starts(b"\0\0\1\0", b"\0\0\2\0"),
        "jpeg2000": _starts(b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
        "jpegxl": _starts(b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"),
        "psd": _starts(b"8BPS"),
        "pnm": lambda head: _PNM.match(head) is not None,
    },
    "audio": {
        "wav": _riff(b"WAVE"),
        "flac": _starts(b"fLaC"),
        "ogg": _starts(b"OggS"),
        "adts": _is_adts,
        "mpeg": _is_mpeg_audio,
        "mp4": _is_mp4,
        "aiff": lambda head: head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"),
        "asf": _starts(bytes.fromhex("3026b2758e66cf11")),
        "matroska": _starts(b"\x1a\x45\xdf\xa3"),
        "amr": _starts(b"#!AMR"),
        "caf": _starts(b"caff"),
        "au": _starts(b".snd"),
    },
}


def media_format(head: bytes, media: Modality) -> str | None:
    """Return the format that the first SNIFF_BYTES bytes announce, None where it is no such media.

    Sources: the formats' own specifications; WHATWG MIME Sniffing for the web's image types.
    """
    for name, matches in _SIGNATURES[media].items():
        if matches(head):
            return name
    return None
