"""Folders and what lies in them, local or in any fsspec store, in a stable order."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fsspec

from winnow.stages.sources._files import forget_listings, is_local, local_path, rebuild, token_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A file of a folder: its name, what opens it, and its change token ("" if it has no bytes to
    read: a dead link, a pipe, a device)."""

    name: str
    path: str
    token: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """A folder below a root: what lists it, its path relative to the root ("" for the root)."""

    path: str
    relative: str


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
