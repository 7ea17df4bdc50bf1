"""Walk the members of an uncompressed tar in one forward read, at many times tarfile's speed.

Formats: POSIX ustar and pax (POSIX.1-2017, utility ``pax``) and GNU tar (its manual, "Basic Tar
Format"). Whatever is rarer (sparse files, binary names in pax headers, vendors' types) is parsed by
``tarfile``, one member at a time, so that names, sizes and offsets are always those of tarfile.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, NoReturn

from winnow.contracts.errors import ShardError

BLOCK = 512
_CHUNK = 1 << 20
_ADLER_MODULUS = 65521
_ZERO = bytes(BLOCK)
_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ")
_MAX_HEADER_BYTES = 16 << 20
_MAX_DIGITS = 20
_PAX_RECORD = re.compile(rb"(\d{1,20}) ([^=]+)=")
_PAX_WORDS = (b"path=", b"size=", b"sparse", b"hdrcharset")

Pax = tuple[bytes | None, int | None]
"""The path and size that a pax header sets; None where it does not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One member: its name as stored, where its bytes are, where the next header starts.

    regular: a file, not a link, folder or device.  plain: its content is just the ``size`` bytes at
    ``offset`` (false for a sparse file).  folder: a directory.
    """

    name: str
    regular: bool
    plain: bool
    folder: bool
    offset: int
    size: int
    end: int


class TarWalk:
    """One pass over a tar; reads forward only, so any stream will do.

    ``reopen`` opens the same file again, seekable; used only for what tarfile has to parse.
    """

    def __init__(self, stream: BinaryIO, path: str, reopen: Callable[[], BinaryIO]) -> None:
        self._stream, self._path, self._reopen = stream, path, reopen
        self._second: BinaryIO | None = None
        self.position = 0

    def __iter__(self) -> Iterator[Member]:
        """Yield the members in order; between two of them the caller may read the first's bytes.

        Raises ShardError with the byte offset where the archive is cut, joined or not a tar.
        """
        try:
            while (member := self._next()) is not None:
                yield member
                self._skip_to(member.end)
        finally:
            if self._second is not None:
                self._second.close()

    def content(self, member: Member) -> Iterator[bytes]:
        """Yield the bytes of a plain member in pieces of at most 1 MiB."""
        self._skip_to(member.offset)
        return self._pieces(member.size)

    def fail(self, problem: str) -> NoReturn:
        """Raise the error for this file; reading it again cannot help."""
        msg = f"{self._path}: broken tar: {problem}"
        raise ShardError(msg, retryable=False)

    def _next(self) -> Member | None:
        start, name, size = self.position, None, None
        while True:
            at = self.position
            header = self._read(BLOCK)
            if at == 0 and header.startswith(_COMPRESSED):
                self.fail("it is compressed; unpack it first, media are read by offset")
            if len(header) < BLOCK or header == _ZERO:
                if at != start:
                    self.fail(f"the extended header at byte {start} has no member")
                self._check_end(at, header)
                return None
            length = self._checked_size(at, header)
            match header[156:157]:
                case b"L" if name is None:
                    name = self._extension(at, length).split(b"\0", 1)[0]
                case b"K":
                    self._extension(at, length)
                case b"x":
                    found = _read_pax(self._extension(at, length))
                    if found is None or (name, size) != (None, None):
                        return self._by_tarfile(start)
                    name, size = found
                case b"g":
                    if _read_pax(self._extension(at, length)) != (None, None):
                        self.fail(f"the global header at byte {at} renames members; repack")
                    start = self.position if at == start else start
                case b"0" | b"\0" | b"7" | b"1" | b"2" | b"3" | b"4" | b"5" | b"6":
                    return self._member(header, name, length if size is None else size)
                case _:
                    return self._by_tarfile(start)

    def _member(self, header: bytes, name: bytes | None, size: int) -> Member:
        kind = header[156:157]
        short = header[:100].split(b"\0", 1)[0]
        folder = kind == b"5" or (kind == b"\0" and short.endswith(b"/"))
        regular = kind in (b"0", b"\0", b"7") and not folder
        if name is None:
            prefix = header[345:500].split(b"\0", 1)[0]
            name = prefix + b"/" + short if prefix else short
        return Member(
            name=name.decode("utf-8", "surrogateescape"),
            regular=regular,
            plain=regular,
            folder=folder,
            offset=self.position,
            size=size,
            end=self.position + (_padded(size) if regular else 0),
        )

    def _by_tarfile(self, start: int) -> Member:
        if self._second is None:
            self._second = self._reopen()
        self._second.seek(start)
        try:
            archive = tarfile.TarFile(
                fileobj=self._second, encoding="utf-8", errors="surrogateescape"
            )
            info = archive.next()
        except (tarfile.TarError, ValueError, RecursionError) as error:
            self.fail(f"the header at byte {start}: {error}")
        if info is None:
            self.fail(f"the header at byte {start} cannot be read")
        return Member(
            name=info.name,
            regular=info.isreg(),
            plain=info.isreg() and not info.issparse(),
            folder=info.isdir(),
            offset=info.offset_data,
            size=info.size,
            end=archive.offset,
        )

    def _checked_size(self, at: int, header: bytes) -> int:
        """Return the size field of a header whose checksum is right."""
        try:
            stored = _number(header[148:156])
            size = _number(header[124:136])
        except ValueError:
            stored = size = -1
        if stored < 0 or size < 0 or not _checksum_fits(header, stored):
            self.fail(f"there is no tar header at byte {at}")
        return size

    def _extension(self, at: int, size: int) -> bytes:
        if size > _MAX_HEADER_BYTES:
            self.fail(f"the extended header at byte {at} claims {size} bytes")
        data = b"".join(self._pieces(_padded(size)))
        return data[:size]

    def _check_end(self, at: int, header: bytes) -> None:
        """Accept zeros up to the end of the file; anything else would be swallowed rows."""
        if len(header) < BLOCK:
            self.fail(
                f"the file ends at byte {at + len(header)} without the end-of-archive marker; "
                "make it again, or append 1,024 zero bytes if it is known to be whole"
            )
        while piece := self._read(_CHUNK):
            if piece.count(0) != len(piece):
                self.fail(
                    f"data after the end-of-archive marker at byte {at}; archives that were "
                    "joined with cat must be split, or joined with `tar --concatenate`"
                )

    def _pieces(self, size: int) -> Iterator[bytes]:
        while size > 0:
            piece = self._read(min(size, _CHUNK))
            if not piece or len(piece) < min(size, _CHUNK):
                self.fail(
                    f"the file ends at byte {self.position}, {size - len(piece)} bytes before the "
                    "end of a member"
                )
            size -= len(piece)
            yield piece

    def _read(self, size: int) -> bytes:
        """Return ``size`` bytes, or fewer at the end of the file."""
        data = self._stream.read(size)
        while len(data) < size:
            more = self._stream.read(size - len(data))
            if not more:
                break
            data += more
        self.position += len(data)
        return data

    def _skip_to(self, position: int) -> None:
        for _ in self._pieces(position - self.position):
            pass


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _number(field: bytes) -> int:
    """Return a number field: octal digits, or GNU's base 256 where the first bit is set."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.split(b"\0", 1)[0].strip() or b"0", 8)


def _checksum_fits(header: bytes, stored: int) -> bool:
    """Return whether the header's bytes add up, its checksum field counted as eight spaces.

    Adler-32's low half is 1 + the sum of the bytes modulo 65521: sixty times as fast as ``sum``.
    Some old writers added signed bytes, so a mismatch is counted again that way.
    """
    blank = header[:148] + b"        " + header[156:]
    if (zlib.adler32(blank) & 0xFFFF) - 1 == stored % _ADLER_MODULUS:
        return True
    return sum(b - 256 if b > 127 else b for b in blank) == stored


def _read_pax(data: bytes) -> Pax | None:
    """Return the path and size that the records set; None where tarfile has to decide."""
    if not any(word in data for word in _PAX_WORDS):
        return None, None
    path: bytes | None = None
    size: int | None = None
    position = 0
    while position < len(data):
        record = _PAX_RECORD.match(data, position)
        if record is None:
            return None
        length, key = int(record[1]), record[2]
        end = position + length
        if end > len(data) or end <= record.end() or data[end - 1 : end] != b"\n":
            return None
        value = data[record.end() : end - 1]
        if key == b"hdrcharset" or key.startswith(b"GNU.sparse"):
            return None
        if key == b"path":
            path = value.rstrip(b"/")
        elif key == b"size":
            if not value.isdigit() or len(value) > _MAX_DIGITS:
                return None
            size = int(value)
        position = end
    return path, size
