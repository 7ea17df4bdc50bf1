"""Small pictures shared by the trials of one machine: five seeds decode an export once.

    <folder>/<key>/pixels     uint8, all samples after each other
    <folder>/<key>/samples.json
    <folder>/.lock-<0..f>     held while an entry is made

The key digests the bytes of the shards, the picture's size, the caption's member and the columns.
Whatever else lies in the folder stays there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from winnow.contracts.errors import SetupError
from winnow.stages.train._members import Pixels
from winnow.stages.train._scratch import mapped
from winnow.stages.train.shards import Reading, Samples, SamplesRead

_VERSION = 1  # of what is written, and of how pictures are decoded
_PIXELS, _SAMPLES, _PART = "pixels", "samples.json", ".part-"
_ENTRY = re.compile(r"[0-9a-f]{32}")
_BLOCK = 4 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleCache:
    """A folder on a local disk for entries that several processes use.

    resized: says what the resize function does (its size and mode): equal texts, equal pictures.
    max_bytes: entries that were used longest ago are removed beyond it; the newest one always
    stays. A process that still reads a removed entry keeps its file.
    """

    folder: Path
    resized: str
    max_bytes: int = 16 << 30


def cached_samples(
    cache: SampleCache,
    paths: Sequence[str],
    resize: Callable[[Any], Pixels],
    reading: Reading,
) -> Samples:
    """Return what ``load_samples`` returns, decoded by the first process that asks for it.

    The others wait for it. If it dies, the next one starts anew: an entry appears whole or not,
    and one that was damaged is made again.

    Cost: one read of the shards for their digest, and for the first process their decoding.
    Fails: as load_samples; SetupError where a shard changes meanwhile.
    """
    try:
        cache.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"{cache.folder} cannot be written: {error}"
        raise SetupError(msg) from error
    key, stamps = _key(cache, paths, reading)
    with _lock(cache.folder, key):
        found = _open(cache.folder / key)
        if found is not None:
            return found
        part = cache.folder / f"{_PART}{key}"
        for left in (cache.folder / key, part):  # damaged; of a process that died
            shutil.rmtree(left, ignore_errors=True)
        part.mkdir()
        try:
            with open(part / _PIXELS, "wb") as out:
                read = reading.into(out, cache.folder, paths, resize)
                os.fsync(out.fileno())
            if _changed(paths, stamps):
                msg = "the shards changed while they were read; start again when they are whole"
                raise SetupError(msg)
            fields = {name: getattr(read, name) for name in SamplesRead.__slots__}
            with open(part / _SAMPLES, "w", encoding="utf-8") as out_text:
                json.dump(fields, out_text)
                out_text.flush()
                os.fsync(out_text.fileno())
            part.rename(cache.folder / key)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        made = _open(cache.folder / key)
    _make_room(cache, key)
    assert made is not None  # under the lock nobody removes it
    return made


def _key(
    cache: SampleCache, paths: Sequence[str], reading: Reading
) -> tuple[str, list[tuple[int, int]]]:
    """Return the key of an entry, and the stamps of the shards that it was made of."""
    stamps = []
    digest = hashlib.blake2b(digest_size=16)
    # None of the threads: they do not change what is read.
    what = [_VERSION, cache.resized, reading.captions, list(reading.columns)]
    digest.update(json.dumps(what).encode())
    for path in paths:
        content = hashlib.blake2b(digest_size=16)
        try:
            with open(path, "rb") as file:
                stamps.append(_stamp(os.fstat(file.fileno())))
                while block := file.read(_BLOCK):
                    content.update(block)
        except OSError as error:
            msg = f"the shard {path} cannot be read: {error}"
            raise SetupError(msg) from error
        digest.update(content.digest())
    return digest.hexdigest(), stamps


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _changed(paths: Sequence[str], stamps: list[tuple[int, int]]) -> bool:
    try:
        return stamps != [_stamp(Path(path).stat()) for path in paths]
    except OSError:
        return True


@contextlib.contextmanager
def _lock(folder: Path, key: str, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of the key's first digit; the system frees it when the process ends."""
    handle = os.open(folder / f".lock-{key[0]}", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def _open(entry: Path) -> Samples | None:
    """Return an entry and note that it was used; None where there is none, or not a whole one."""
    try:
        fields = json.loads((entry / _SAMPLES).read_text(encoding="utf-8"))
        read = SamplesRead(**{**fields, "shape": tuple(fields["shape"])})
        with open(entry / _PIXELS, "rb") as file:
            pixels = mapped(file, np.uint8, read.shape)
        os.utime(entry)
    except (FileNotFoundError, ValueError, TypeError, LookupError):
        return None
    return read.with_pixels(pixels)


def _make_room(cache: SampleCache, newest: str) -> None:
    """Remove what was used longest ago, and what dead processes left unfinished."""
    kept: list[tuple[float, int, str]] = []
    for entry in cache.folder.iterdir():
        key = entry.name.removeprefix(_PART)
        if not _ENTRY.fullmatch(key) or key == newest:
            continue
        if entry.name != key:
            _remove(cache.folder, key, whole=False)
        else:
            with contextlib.suppress(FileNotFoundError):
                kept.append((entry.stat().st_mtime, _size(entry), entry.name))
    total = _size(cache.folder / newest) + sum(size for _, size, _ in kept)
    for _, size, name in sorted(kept):
        if total <= cache.max_bytes:
            return
        if _remove(cache.folder, name, whole=True):
            total -= size


def _size(entry: Path) -> int:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sum(file.stat().st_size for file in entry.iterdir())
    return 0


def _remove(folder: Path, key: str, *, whole: bool) -> bool:
    """Remove an entry, or what is left of an unfinished one, unless its lock is held."""
    with _lock(folder, key, wait=False) as held:
        if not held:
            return False
        part = folder / f"{_PART}{key}"
        if whole:
            shutil.rmtree(part, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):
                (folder / key).rename(part)
        shutil.rmtree(part, ignore_errors=True)
    return True
