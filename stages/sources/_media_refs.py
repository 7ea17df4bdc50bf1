"""References to local media: their digests, the MEDIA_REF column, and known extensions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal

import pyarrow as pa

from winnow.contracts.errors import RecipeError
from winnow.contracts.identity import UID_BYTES
from winnow.contracts.media import MEDIA_REF

MediaKind = Literal["image", "audio"]

MEDIA_EXTENSIONS: dict[MediaKind, tuple[str, ...]] = {
    "image": (
        *("jpg", "jpeg", "png", "webp", "gif", "jpe", "jfif", "bmp", "tif", "tiff"),
        *("avif", "heic", "heif", "jxl", "jp2"),
    ),
    "audio": (
        *("wav", "flac", "mp3", "ogg", "oga", "opus", "m4a", "aac", "aif", "aiff", "wma"),
        *("weba", "mka"),
    ),
}
"""Lower case, without the dot; the first are preferred where a sample has several."""

Ref = tuple[str, int, int, bytes]
"""The fields of MEDIA_REF: path, offset, length, digest."""


def media_extensions(
    source: str, media: MediaKind, given: tuple[str, ...] | None
) -> tuple[str, ...]:
    """Return the extensions that are media, in order of preference; raise RecipeError."""
    if media not in MEDIA_EXTENSIONS:
        msg = f"{source}: media={media!r} is not one of {', '.join(MEDIA_EXTENSIONS)}"
        raise RecipeError(msg)
    if given is None:
        return MEDIA_EXTENSIONS[media]
    for extension in given:
        check_extension(source, "media_extensions", extension)
    if not given:
        msg = f"{source}: media_extensions is empty; leave it out or name one, such as jpg"
        raise RecipeError(msg)
    return given


def check_extension(source: str, parameter: str, extension: str) -> None:
    """Raise RecipeError unless ``extension`` is lower case, without a leading dot or a slash."""
    if not extension or extension != extension.lower().strip("./ ") or "/" in extension:
        fixed = extension.lower().strip("./ ") or "jpg"
        msg = f"{source}: {parameter}: {extension!r} is not an extension; write {fixed!r}"
        raise RecipeError(msg)


def digest_of(pieces: Iterable[bytes]) -> tuple[int, bytes]:
    """Return the length and the BLAKE2b-128 digest of bytes that come in pieces."""
    digest = hashlib.blake2b(digest_size=UID_BYTES)
    length = 0
    for piece in pieces:
        digest.update(piece)
        length += len(piece)
    return length, digest.digest()


def ref_array(refs: Sequence[Ref | None]) -> pa.StructArray:
    """Return a MEDIA_REF column; None is null."""
    nothing = (None,) * len(MEDIA_REF)
    columns = list(zip(*(ref or nothing for ref in refs), strict=True)) or [()] * len(MEDIA_REF)
    return pa.StructArray.from_arrays(
        [pa.array(c, field.type) for c, field in zip(columns, MEDIA_REF, strict=True)],
        fields=list(MEDIA_REF),
        mask=pa.array([ref is None for ref in refs], pa.bool_()),
    )
