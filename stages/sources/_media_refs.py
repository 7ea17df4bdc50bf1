"""References to local media: their digests, the MEDIA_REF column, and known extensions."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple
from urllib.parse import unquote

import pyarrow as pa

from winnow.contracts.errors import RecipeError, ShardError
from winnow.contracts.identity import UID_BYTES
from winnow.contracts.media import MEDIA_REF
from winnow.stages.sources._files import is_local, local_path, open_file, printable

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

_CHUNK = 1 << 20


class Ref(NamedTuple):
    """Where the bytes of a medium are: the fields of MEDIA_REF."""

    path: str
    offset: int
    length: int
    digest: bytes


class FoundFile(NamedTuple):
    """A file that untrusted text names: its path within the root ("/", no "."), its reference, or
    the problem: "missing", "outside", "unreadable". A blank name has none of them."""

    relative: str | None = None
    ref: Ref | None = None
    problem: Literal["missing", "outside", "unreadable"] | None = None


def check_no_references(source: str, kept: pa.Schema, names: Mapping[str, str]) -> None:
    """Raise RecipeError where a kept column (its name in the table -> in the rows) would be taken
    for references to local media: a table could then have any file or address opened."""
    for old, new in names.items():
        if new.endswith("_ref") and kept.field(old).type == MEDIA_REF:
            msg = (
                f"{source}: the column {old!r} holds references to media, and a table is not "
                f"trusted to say which files are opened; leave it out of keep, or set rename: "
                f"{{{old}: {new}erence}}"
            )
            raise RecipeError(msg)


def folder_of(path: str) -> str:
    """Return the folder of a file, local or of a store."""
    return path.rpartition("/")[0] or "/"


def file_below(root: str, name: str | None) -> FoundFile:
    """Return the file that ``name`` is, relative to ``root``, if it is below it.

    "outside": an absolute path, one with ".." (in a store also "%2e%2e"), with "::" or "://" (which
    fsspec takes for another store), or one that leads out of the root by a link. A local root's
    links are followed.
    Raises ShardError, retryable, where a store does not answer.
    """
    if name is None or not name.strip():
        return FoundFile()
    parts = [part for part in name.split("/") if part not in ("", ".")]
    relative = "/".join(parts)
    if name.startswith(("/", "~")) or ".." in parts or "::" in name or "://" in name or not parts:
        return FoundFile(relative=name, problem="outside")
    if not is_local(root):
        if ".." in re.split(r"[/\\]", unquote(relative)):  # %2e%2e: a URL's path is made plain
            return FoundFile(relative=relative, problem="outside")
        return _read_file(f"{root.rstrip('/')}/{relative}", relative)
    base = os.path.realpath(local_path(root))
    path = f"{local_path(root).rstrip('/')}/{relative}"
    try:
        real = os.path.realpath(path, strict=True)
        if os.path.commonpath([base, real]) != base:
            return FoundFile(relative=relative, problem="outside")
        if not stat.S_ISREG(os.stat(real).st_mode):  # noqa: PTH116 - a Path is not any file's name
            return FoundFile(relative=relative, problem="unreadable")
    except (FileNotFoundError, NotADirectoryError):
        return FoundFile(relative=relative, problem="missing")
    except (OSError, ValueError):
        return FoundFile(relative=relative, problem="unreadable")
    return _read_file(path, relative, opened=real)


def _read_file(path: str, relative: str, opened: str = "") -> FoundFile:
    if printable(path) != path:
        return FoundFile(relative=relative, problem="unreadable")
    try:
        length, digest = digest_of_file(opened or path)
    except FileNotFoundError:
        return FoundFile(relative=relative, problem="missing")
    except (PermissionError, IsADirectoryError, ValueError):
        return FoundFile(relative=relative, problem="unreadable")
    except OSError as error:
        if opened:
            return FoundFile(relative=relative, problem="unreadable")
        msg = f"{printable(path)}: the store does not answer: {error}"
        raise ShardError(msg) from error
    return FoundFile(relative=relative, ref=Ref(path, 0, length, digest))


def media_extensions(
    source: str, media: MediaKind, given: tuple[str, ...] | None, also: MediaKind | None
) -> dict[MediaKind, tuple[str, ...]]:
    """Return medium -> its extensions in order of preference: the first medium, whose extensions
    may be given, and ``also`` where there is one.

    Raises RecipeError where one is no medium, or both are one, or an extension is of both.
    """
    if media not in MEDIA_EXTENSIONS:
        msg = f"{source}: media={media!r} is not one of {', '.join(MEDIA_EXTENSIONS)}"
        raise RecipeError(msg)
    for extension in given or ():
        check_extension(source, "media_extensions", extension)
    if given is not None and not given:
        msg = f"{source}: media_extensions is empty; leave it out or name one, such as jpg"
        raise RecipeError(msg)
    own = given or MEDIA_EXTENSIONS[media]
    if also is None:
        return {media: own}
    if also == media or also not in MEDIA_EXTENSIONS:
        other = next(kind for kind in MEDIA_EXTENSIONS if kind != media)
        msg = f"{source}: also={also!r} with media={media!r}; write also: {other}, or leave it out"
        raise RecipeError(msg)
    both = sorted(set(own) & set(MEDIA_EXTENSIONS[also]))
    if both:
        msg = f"{source}: media_extensions has {both[0]!r}, which is {also} by ``also``; remove it"
        raise RecipeError(msg)
    return {media: own, also: MEDIA_EXTENSIONS[also]}


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


def digest_of_file(path: str) -> tuple[int, bytes]:
    """Return the length and the digest of a whole file; raises OSError."""
    with open_file(path) as stream:
        return digest_of(iter(functools.partial(stream.read, _CHUNK), b""))


def ref_array(refs: Sequence[Ref | None]) -> pa.StructArray:
    """Return a MEDIA_REF column; None is null."""
    nothing = (None,) * len(MEDIA_REF)
    columns = list(zip(*(ref or nothing for ref in refs), strict=True)) or [()] * len(MEDIA_REF)
    return pa.StructArray.from_arrays(
        [pa.array(c, field.type) for c, field in zip(columns, MEDIA_REF, strict=True)],
        fields=list(MEDIA_REF),
        mask=pa.array([ref is None for ref in refs], pa.bool_()),
    )
