"""The file extension of media bytes, from their first bytes."""

from __future__ import annotations

from winnow.stages.sources._media_refs import MEDIA_EXTENSIONS

HEAD_BYTES = 64

_PREFIXES: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"MM\0+", "tiff"),
    (b"fLaC", "flac"),
    (b"ID3", "mp3"),
    (b"caff", "caf"),
    (b".snd", "au"),
    (b"#!AMR", "amr"),
    (bytes.fromhex("3026b2758e66cf11"), "wma"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "jxl"),
    (b"\xff\x0a", "jxl"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "jp2"),
)
_RIFF = {b"WEBP": "webp", b"WAVE": "wav"}
_BRANDS = {
    b"avif": "avif",
    b"avis": "avif",
    b"heic": "heic",
    b"heix": "heic",
    b"heim": "heic",
    b"heis": "heic",
    b"hevc": "heic",
    b"hevx": "heic",
    b"mif1": "heic",
    b"msf1": "heic",
    b"M4A ": "m4a",
    b"M4B ": "m4a",
}
IMAGE_EXTENSIONS = frozenset(
    {"jpg", "jpeg", "png", "gif", "webp", "avif", "heic", "tiff", "tif", "bmp", "jxl", "jp2"}
)
AUDIO_EXTENSIONS = frozenset(
    {"wav", "flac", "mp3", "ogg", "m4a", "aac", "opus", "aiff", "caf", "au", "amr", "mka", "webm"}
    | {"wma"}
)
MEDIA_TYPES = {
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "tif": "image/tiff",
    "mp3": "audio/mpeg",
    "m4a": "audio/mp4",
    "aiff": "audio/x-aiff",
    "au": "audio/basic",
    "caf": "audio/x-caf",
    "mka": "audio/x-matroska",
    "wma": "audio/x-ms-wma",
    "bin": "application/octet-stream",
    "mp4": "video/mp4",
}
"""Media types that are not simply ``image/<extension>`` or ``audio/<extension>``."""


def media_extension(head: bytes) -> str:
    """Return jpg, png, webp, gif, avif, tiff, bmp, wav, flac, mp3, ogg, opus, m4a ..., or "bin".

    Ogg is "opus" where its first page holds RFC 7845's identification header; Matroska is "webm"
    by its DocType, else "mka" (RFC 9559); a container of sound and moving pictures is not told
    from one of sound alone.

    ``head``: at least the first HEAD_BYTES bytes of the media, or all of a shorter one.
    """
    for prefix, extension in _PREFIXES:
        if head.startswith(prefix):
            return extension
    if head[:4] == b"OggS":
        return "opus" if head[28:36] == b"OpusHead" else "ogg"
    if head[:4] in (b"RIFF", b"RF64", b"BW64"):
        return _RIFF.get(head[8:12], "bin")
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "webm" if b"\x42\x82\x84webm" in head else "mka"
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "mp4")
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0":
        return "bmp"
    return _mpeg_audio(head)


def payload_extension(wanted: str, data: memoryview) -> str:
    """Return the extension that is wanted; of "auto" the one that the first bytes say."""
    return media_extension(bytes(data[:HEAD_BYTES])) if wanted == "auto" else wanted


def preferred_to(extension: str) -> frozenset[str]:
    """Return the extensions of the same medium that readers (Winnow's own source; open_clip, whose
    order is jpg, png, jpeg, webp) look for before this one: a sidecar of such a name would be taken
    for the payload. None for an extension of no known medium.
    """
    for order in MEDIA_EXTENSIONS.values():
        if extension in order:
            return frozenset(order[: order.index(extension)])
    return frozenset()


def last_extension(suffix: str) -> str:
    """Return "wav" of "wav" and of "audio_2.wav": how a member of a tar may end."""
    return suffix.rpartition(".")[2]


def _mpeg_audio(head: bytes) -> str:
    """MPEG audio frames start with eleven set bits; layer 0 with version 2 or 4 is ADTS (aac)."""
    if len(head) < 2 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return "bin"
    layer = head[1] >> 1 & 3
    return "aac" if layer == 0 else "mp3"


def media_type(extension: str) -> str:
    """Return the media type (MIME) of an extension."""
    if extension in MEDIA_TYPES:
        return MEDIA_TYPES[extension]
    if extension in IMAGE_EXTENSIONS:
        return f"image/{extension}"
    return f"audio/{extension}" if extension in AUDIO_EXTENSIONS else "application/octet-stream"
