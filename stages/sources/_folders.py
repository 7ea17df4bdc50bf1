"""Folders and what lies in them, local or in any fsspec store, in a stable order."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import fsspec

from winnow.contracts.errors import SetupError, ShardError
from winnow.contracts.identity import UID_BYTES
from winnow.contracts.source import SourceFile
from winnow.stages.sources._files import (
    forget_listings,
    is_local,
    local_path,
    near,
    printable,
    rebuild,
    token_of,
)
from winnow.stages.sources._media_refs import Ref, digest_of_file


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A file of a folder: its name, what opens it, and its change token ("" if it has no bytes to
    read: a dead link, a pipe, a device)."""

    name: str
    path: str
    token: str

    @property
    def stem(self) -> str:
        """The name up to its last dot."""
        return self.name.rpartition(".")[0]

    @property
    def extension(self) -> str:
        """What is behind the last dot, in lower case."""
        return self.name.rpartition(".")[2].lower()


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """A folder below a root: what lists it, its path relative to the root ("" for the root)."""

    path: str
    relative: str


def find_folders(
    source: str,
    path: str,
    media: str,
    extensions: Sequence[str],
    beside: Callable[[str], bool],
    more: str = "",
) -> list[SourceFile]:
    """Return the folders below ``path`` that hold files with one of ``extensions``, by name; the
    root's name is ".". Raises SetupError where there is none; ``media`` says what it would hold.

    The token of a folder is of these files and of those whose names ``beside`` accepts, and more.
    """
    root = root_of(path)
    found = []
    try:
        for folder, entries in walk_folders(root):
            if names := {entry.name for entry in with_extension(entries, extensions)}:
                used = [e for e in entries if e.name in names or beside(e.name)]
                name = printable(folder.relative) or "."
                found.append(SourceFile(path=folder.path, name=name, token=_token(used, more)))
    except (FileNotFoundError, NotADirectoryError):
        msg = f"{source}: there is no folder {path!r}; {near(root)}"
        raise SetupError(msg) from None
    except OSError as error:
        msg = f"{source}: a folder below {path!r} cannot be listed: {error}"
        raise SetupError(msg) from error
    if not found:
        msg = f"{source}: no {media} file below {path!r}; {near(root)}"
        raise SetupError(msg)
    return sorted(found, key=lambda file: file.name)


def read_folder(root: str, folder: str) -> tuple[str, list[Entry]]:
    """Return what comes before a name in a path relative to the root ("" or "inner/"), and the
    files of a folder, by name. Raises ShardError."""
    try:
        entries, _ = list_folder(folder)
    except OSError as error:
        msg = f"{printable(folder)}: the folder cannot be listed: {error}"
        raise ShardError(msg, retryable=not isinstance(error, FileNotFoundError)) from error
    inner = folder[len(root_of(root).rstrip("/")) :].strip("/")
    return f"{inner}/" if inner else "", entries


def with_extension(entries: Sequence[Entry], extensions: Sequence[str]) -> list[Entry]:
    """Return the files with one of ``extensions``, which are lower case; the files' may not be."""
    suffixes = tuple(f".{extension}" for extension in extensions)
    return [entry for entry in entries if entry.name.lower().endswith(suffixes)]


def whole_file(entry: Entry) -> Ref | None:
    """Return the reference to a whole file; None where it cannot be read or named."""
    if not entry.token or printable(entry.path) != entry.path:
        return None
    try:
        length, digest = digest_of_file(entry.path)
    except OSError:
        return None
    return Ref(entry.path, 0, length, digest)


def root_of(path: str) -> str:
    """Return what lists the folder that a recipe names: an absolute path or a URL."""
    return local_path(path) if is_local(path) else path.rstrip("/")


def _token(entries: Sequence[Entry], more: str) -> str:
    """Digest names, sizes and times."""
    digest = hashlib.blake2b(digest_size=UID_BYTES)
    for entry in entries:
        digest.update(f"{entry.name}\0{entry.token}\0".encode("utf-8", "surrogatepass"))
    digest.update(more.encode())
    return digest.hexdigest()


def list_folder(path: str) -> tuple[list[Entry], list[str]]:
    """Return the files and the names of the folders in a folder, both sorted; raises OSError.

    Links are followed; names that start with "." are left out.
    """
    if is_local(path):
        return _list_local(local_path(path))
    fs, inner = fsspec.core.url_to_fs(path)
    files, folders = [], []
    for info in fs.ls(inner, detail=True):
        full = info["name"].rstrip("/")
        name = full.rpartition("/")[2]
        if not name or name.startswith(".") or full == inner.rstrip("/"):
            continue
        if info["type"] == "directory":
            folders.append(name)
        else:
            files.append(Entry(name=name, path=rebuild(path, fs, full), token=token_of(info)))
    return sorted(files, key=lambda entry: entry.name), sorted(folders)


def _list_local(path: str) -> tuple[list[Entry], list[str]]:
    files, folders = [], []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                status = entry.stat()
            except OSError:  # a dead link, or one that leads to itself
                files.append(Entry(name=entry.name, path=entry.path, token=""))
                continue
            if stat.S_ISDIR(status.st_mode):
                folders.append(entry.name)
                continue
            info: dict[str, Any] = {"size": status.st_size, "mtime": status.st_mtime_ns}
            regular = stat.S_ISREG(status.st_mode)
            token = token_of(info) if regular else ""
            files.append(Entry(name=entry.name, path=entry.path, token=token))
    return sorted(files, key=lambda entry: entry.name), sorted(folders)


def walk_folders(root: str) -> Iterator[tuple[Folder, list[Entry]]]:
    """Yield every folder under ``root``, itself included, with its files; raises OSError.

    A link to a folder is followed unless it leads to a folder above itself, as ``find -L`` does.
    """
    if not is_local(root):
        forget_listings(root)
    stack: list[tuple[Folder, tuple[tuple[int, int], ...]]] = []
    stack.append((Folder(path=root, relative=""), ()))
    while stack:
        folder, above = stack.pop()
        here = _identity(folder.path)
        if here in above:
            continue
        entries, names = list_folder(folder.path)
        yield folder, entries
        for name in reversed(names):
            below = Folder(
                path=f"{folder.path.rstrip('/')}/{name}",
                relative=f"{folder.relative}/{name}" if folder.relative else name,
            )
            stack.append((below, (*above, here)))


def _identity(path: str) -> tuple[int, int]:
    """Return device and inode of a local folder; stores have no links and get what is unique."""
    if not is_local(path):
        return (-1, hash(path))
    status = os.stat(local_path(path))  # noqa: PTH116 - undecodable names
    return (status.st_dev, status.st_ino)
