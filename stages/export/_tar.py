"""A tar writer for many small members: normalised ustar headers, one write per megabyte.

Every header says mode 0644, owner 0:0 without names, modification time 0. The bytes are those of
``tarfile`` with the same fields; names and sizes that ustar cannot hold go through ``tarfile``.
"""

from __future__ import annotations

import tarfile
from typing import BinaryIO

BLOCK_BYTES = tarfile.BLOCKSIZE
RECORD_BYTES = tarfile.RECORDSIZE
FLUSH_BYTES = 1 << 20
MAX_NAME_BYTES = 100
MAX_SIZE_BYTES = 8**11 - 1
"""What eleven octal digits hold; larger members need a pax header."""

_EMPTY = tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT)
_AFTER_NAME, _SIZE, _CHECKSUM = 100, 124, 148
_BEFORE_SIZE = _EMPTY[_AFTER_NAME:_SIZE]
_AFTER_SIZE = _EMPTY[_SIZE + 11 : _CHECKSUM]
_AFTER_CHECKSUM = _EMPTY[_CHECKSUM + 7 :]
# The checksum counts its own field as eight spaces; name and size are added per member.
_BASE_SUM = sum(_BEFORE_SIZE) + sum(_AFTER_SIZE) + sum(_AFTER_CHECKSUM[1:]) + 8 * ord(" ")


def tar_header(name: str, size: int) -> bytes:
    """Return the header block (or pax and header blocks) of a regular file."""
    raw = name.encode("utf-8", "surrogateescape")
    if len(raw) > MAX_NAME_BYTES or size > MAX_SIZE_BYTES or not name.isascii():
        info = tarfile.TarInfo(name)
        info.size = size
        return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    digits = b"%011o" % size
    checksum = b"%06o\0" % (_BASE_SUM + sum(raw) + sum(digits))
    return b"".join(
        (raw.ljust(100, b"\0"), _BEFORE_SIZE, digits, _AFTER_SIZE, checksum, _AFTER_CHECKSUM)
    )


class TarWriter:
    """Appends members to a binary stream that need not seek; ``close`` ends the archive."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._parts: list[bytes | memoryview] = []
        self._pending = 0
        self._size = 0

    def add(self, name: str, data: bytes | memoryview) -> None:
        """Append one member; ``data`` must stay as it is until the next flush."""
        size = len(data)
        header = tar_header(name, size)
        self._parts += (header, data, bytes(-size % BLOCK_BYTES))
        self._pending += len(header) + size + -size % BLOCK_BYTES
        if self._pending >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is pending."""
        self._out.write(b"".join(self._parts))
        self._size += self._pending
        self._parts, self._pending = [], 0

    def close(self) -> None:
        """Write the end of the archive, padded to whole records as GNU tar and tarfile do."""
        end = 2 * BLOCK_BYTES
        end += -(self._size + self._pending + end) % RECORD_BYTES
        self._parts.append(bytes(end))
        self._pending += end
        self.flush()
