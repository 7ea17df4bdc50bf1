"""Digests of model files: plans ask for them again and again, so a file is read once."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path


def file_digest(path: Path, digest_size: int = 16) -> bytes:
    """Return BLAKE2b of a file's bytes; read once, as long as its time and size stay."""
    stat = path.stat()
    return _read(path, digest_size, stat.st_mtime_ns, stat.st_size)


def named_digest(named: Iterable[tuple[str, Path]]) -> bytes:
    """Return what stands for files under these names, in this order, to be digested with more."""
    return b"".join(f"{name}\0{file_digest(path).hex()}\0".encode() for name, path in named)


def files_digest(paths: Iterable[Path]) -> str:
    """Return 32 hex digits over the names and contents of files, in this order."""
    named = named_digest((path.name, path) for path in paths)
    return hashlib.blake2b(named, digest_size=16).hexdigest()


@functools.lru_cache(maxsize=1024)
def _read(path: Path, digest_size: int, _mtime_ns: int, _size: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=digest_size)).digest()
