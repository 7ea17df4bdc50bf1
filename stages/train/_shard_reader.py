"""The samples of one tar shard, in one forward read from a local path or an fsspec URL."""

from __future__ import annotations

import json
import posixpath
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from winnow.contracts.errors import SetupError, ShardError
from winnow.stages.sources._files import is_local, open_file, rebuild
from winnow.stages.sources._tar import TarWalk

KEY = "__key__"
MAX_MEMBER_BYTES = 256 << 20
"""A longer member is as if it were not there: a buffer of samples has to fit into memory."""

Sample = dict[str, Any]
"""``KEY`` -> the key, extension in lower case -> the member's bytes."""

# As webdataset groups members: the key ends at the first dot of the last part of the path.
_NAME = re.compile(r"((?:.*/)?[^.]+)\.([^/]*)")
_META = re.compile(r"__[^/]*__(?:$|/)")
_NO_SIZES = (ValueError, TypeError, AttributeError, OverflowError, RecursionError)


def read_shard(path: str, wanted: Callable[[str], bool]) -> Iterator[Sample]:
    """Yield the samples of a shard with those members whose extension is ``wanted``.

    Consecutive members with one key are one sample; of two members with one extension the first
    counts. Nothing is decoded or unpickled.

    Fails: SetupError where the file cannot be opened; ShardError where it is cut short, joined, no
    tar, or reading stops, with the samples before it already yielded.
    """
    try:
        stream = open_file(path)
    except _store_errors(ValueError, ImportError) as error:
        msg = f"the shard {path} cannot be read: {error}"
        raise SetupError(msg) from error
    sample: Sample = {}
    with stream:
        walk = TarWalk(stream, path, lambda: open_file(path))
        try:
            for member in walk:
                match = _NAME.fullmatch(member.name) if member.plain else None
                if match is None or _META.match(member.name):
                    continue
                key, extension = match[1], match[2].lower()
                if sample.get(KEY) != key:
                    if sample:
                        yield sample
                    sample = {KEY: key}
                small = member.size <= MAX_MEMBER_BYTES
                if small and extension not in sample and wanted(extension):
                    sample[extension] = b"".join(walk.content(member))
        except _store_errors() as error:
            msg = f"the shard {path} cannot be read to its end: {error}"
            raise ShardError(msg) from error
    if sample:
        yield sample


def count_samples(path: str) -> int:
    """Return the number of samples of a shard, in one read of it; fails as read_shard."""
    return sum(1 for _ in read_shard(path, lambda extension: False))


def shard_sizes(paths: Sequence[str], *, num_threads: int = 4) -> dict[str, int]:
    """Return path -> number of samples, usable or not.

    From the ``sizes.json`` beside a shard, which exports have; other shards are read once.
    """
    folders = sorted({posixpath.dirname(path) for path in paths})
    known = {folder: _listed(folder) for folder in folders}
    sizes = {path: known[posixpath.dirname(path)].get(posixpath.basename(path)) for path in paths}
    unknown = [path for path, size in sizes.items() if size is None]
    with ThreadPoolExecutor(num_threads) as pool:
        counted = dict(zip(unknown, pool.map(count_samples, unknown), strict=True))
    return {path: counted[path] if size is None else size for path, size in sizes.items()}


def remote_shards(url: str) -> list[str]:
    """Return the tars that a URL names: one file, a glob, or a folder (its sizes.json, or *.tar).

    Fails: SetupError where the store cannot be asked.
    """
    import fsspec

    try:
        fs, inner = fsspec.core.url_to_fs(url)
        if not (set("*?[") & set(inner)) and not inner.endswith(".tar"):
            folder = url.rstrip("/")
            listed = _listed(folder)
            if listed:
                return [f"{folder}/{name}" for name in sorted(listed)]
            inner = f"{inner.rstrip('/')}/*.tar"
        return [rebuild(url, fs, str(name)) for name in sorted(fs.glob(inner))]
    except _store_errors(ValueError, ImportError) as error:
        msg = f"the shards at {url} cannot be listed: {error}"
        raise SetupError(msg) from error


def _listed(folder: str) -> dict[str, int]:
    """What sizes.json says; {} where there is none."""
    path = posixpath.join(folder, "sizes.json")
    try:
        with open_file(path) as file:
            sizes = json.load(file)
        found = {str(name): int(size) for name, size in sizes.items()}
        if any(size < 0 for size in found.values()):
            msg = "a size is below 0"
            raise ValueError(msg)
        return found
    except FileNotFoundError:
        return {}
    except _store_errors(*_NO_SIZES) as error:
        if isinstance(error, _store_errors()) and not is_local(path):
            return {}  # some stores refuse to name what is not there
        msg = f"{path} cannot be read: {error}; it should map the names of tars to their sizes"
        raise SetupError(msg) from error


def _store_errors(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """What opening and reading raise; an HTTP connection that breaks is no OSError in fsspec."""
    http = sys.modules.get("aiohttp")
    return (OSError, *others) if http is None else (OSError, http.ClientError, *others)
