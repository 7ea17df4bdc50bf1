"""Input files by path, folder, glob, brace range or fsspec URL: names, change tokens, opening."""

from __future__ import annotations

import difflib
import errno
import glob
import os
import posixpath
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from stat import S_ISREG
from typing import Any, BinaryIO, cast

import fsspec
from braceexpand import braceexpand

from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.source import SourceFile

_NO_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ELOOP})
_MAGIC = frozenset("*?[")
_BUFFER_BYTES = 1 << 20
_STAMPS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")
"""What fsspec's backends call the thing that changes with a file, best first."""
_FILESYSTEMS: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
"""The filesystem of each open stream: some (zip) close their files when nobody holds them."""

Matches = Callable[[str], bool]


def is_local(path: str) -> bool:
    """Return whether ``path`` is a path of this machine (no scheme, or ``file:``).

    "::" joins the links of an fsspec chain, of which an absolute path is none: a file may be called
    ``std::vector.png``, and fsspec would open ``std`` for it.
    """
    if path.startswith("/") and "://" not in path:
        return True
    return "::" not in path and ("://" not in path or path.startswith(("file://", "local://")))


def local_path(path: str) -> str:
    """Return the absolute local path of a local path or ``file://`` URL; ``~`` is expanded."""
    return os.path.abspath(  # noqa: PTH100 - Path.absolute keeps ".."
        os.path.expanduser(path.split("://", 1)[-1])  # noqa: PTH111 - surrogates, "" and "//" stay
    )


def open_file(path: str) -> BinaryIO:
    """Open a local path or fsspec URL for buffered reading; raises OSError."""
    if is_local(path):
        return open(local_path(path), "rb", buffering=_BUFFER_BYTES)
    fs, inner = fsspec.core.url_to_fs(path)
    stream = fs.open(inner, "rb")
    _FILESYSTEMS[stream] = fs
    return cast(BinaryIO, stream)


def forget_listings(path: str) -> None:
    """Make the store of a URL list anew: fsspec keeps listings for the life of the process."""
    _filesystem(path)[0].invalidate_cache()


def printable(name: str) -> str:
    r"""Return a name that UTF-8 can hold: undecodable bytes of a file name become ``\xff``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def token_of(info: Mapping[str, Any]) -> str:
    """Return what changes when a file changes: its size, and its ETag or modification time."""
    stamp = next((info[key] for key in _STAMPS if info.get(key)), "")
    return f"{info.get('size')}-{stamp}"


def local_info(path: str) -> dict[str, Any]:
    """Return size, modification time (ns) and type ("file" or "other") of a local file, links
    followed; raises OSError."""
    stat = os.stat(path)  # noqa: PTH116 - a Path cannot be made of every file name
    kind = "file" if S_ISREG(stat.st_mode) else "other"
    return {"size": stat.st_size, "mtime": stat.st_mtime_ns, "type": kind}


def find_files(
    source: str, path: str | tuple[str, ...], matches: Matches, kinds: str
) -> list[SourceFile]:
    """Return the files that ``path`` names, sorted by name; raise SetupError if there is none.

    Each entry is a file, a folder (searched recursively for names that ``matches`` accepts; names
    that start with "." or "_" are skipped, links to folders are not followed), a glob (``**``
    crosses folders) or a brace range ``{000..099}``. A file that exists is never taken for a
    pattern. A file named outright must exist. ``kinds`` says in messages what ``matches`` wants.
    """
    patterns = (path,) if isinstance(path, str) else path
    for pattern in patterns:
        if not is_local(pattern):
            forget_listings(pattern)
    literals = _expand_all(source, patterns)
    with ThreadPoolExecutor(16) as pool:  # each entry may be a round trip to a store
        parts = list(pool.map(lambda p: _find_one(source, p, matches, kinds), literals))
    shared = _common_root([root for root, _ in parts])
    tokens = {path: token for _, files in parts for path, token in files.items()}
    for path_found in tokens:
        if printable(path_found) != path_found:
            msg = f"{source}: the file name {printable(path_found)!r} is not UTF-8; rename the file"
            raise SetupError(msg)
    listed = [
        SourceFile(path=path_found, name=_relative(path_found, shared), token=token)
        for path_found, token in tokens.items()
    ]
    return sorted(listed, key=lambda f: f.name)


def _expand_all(source: str, patterns: Sequence[str]) -> list[str]:
    """Expand braces in the patterns that are not files themselves; keep the first of equals."""
    literals: dict[str, None] = {}
    for pattern in patterns or ("",):
        if not pattern:
            msg = f"{source}: path is empty; give a file, a folder, a glob or a URL"
            raise RecipeError(msg)
        if "{" not in pattern or _info(pattern) is not None:
            literals[pattern] = None
            continue
        try:
            literals.update(dict.fromkeys(braceexpand(pattern)))
        except ValueError as error:  # unbalanced braces
            msg = f"{source}: path={pattern!r}: {error}; write ranges as {{000..099}}"
            raise RecipeError(msg) from None
    return list(literals)


def _find_one(
    source: str, pattern: str, matches: Matches, kinds: str
) -> tuple[str, dict[str, str]]:
    """Return the root of a pattern (its folder, or what comes before the first wildcard) and its
    files with their tokens."""
    info = _info(pattern)
    full = local_path(pattern) if is_local(pattern) else pattern
    if info is not None and info.get("type") != "directory":
        return _place(full).rpartition("/")[0], {full: token_of(info)}
    if info is not None:
        files = _walk(full, matches)
        if not files:
            msg = f"{source}: no {kinds} under {pattern!r}; {near(full)}"
            raise SetupError(msg)
        return _place(full).rstrip("/"), files
    if not _MAGIC & set(pattern):
        msg = f"{source}: there is no file or folder {pattern!r}; {near(full)}"
        raise SetupError(msg)
    files = _glob(full)
    if not files:
        msg = f"{source}: no file matches {pattern!r}; {near(_fixed_prefix(full))}"
        raise SetupError(msg)
    return _fixed_prefix(_place(full)), files


def _info(path: str) -> Mapping[str, Any] | None:
    if is_local(path):
        local = local_path(path)
        try:
            kind = "directory" if Path(local).is_dir() else "file"
            return {**local_info(local), "type": kind}
        except (OSError, ValueError):
            return None
    fs, inner = _filesystem(path)
    try:
        return cast("Mapping[str, Any]", fs.info(inner))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        # HTTP's folders and some stores answer a wildcard with an error that is not "not found".
        if _MAGIC & set(inner):
            return None
        msg = f"cannot look at {path!r}: {error}"
        raise SetupError(msg) from error


def _filesystem(path: str) -> tuple[Any, str]:
    try:
        return cast("tuple[Any, str]", fsspec.core.url_to_fs(path))
    except (ValueError, ImportError) as error:
        # An unknown scheme, or a backend that is not installed (s3fs): fsspec says which.
        msg = f"cannot open {path!r}: {error}"
        raise SetupError(msg) from error


def _walk(root: str, matches: Matches) -> dict[str, str]:
    if is_local(root):
        return _walk_local(root, matches)
    fs, inner = _filesystem(root)
    base = inner.rstrip("/")
    return {
        rebuild(root, fs, name): token_of(info)
        for name, info in fs.find(inner, detail=True).items()
        if matches(name) and not _hidden(name[len(base) :].strip("/").split("/"))
    }


def _walk_local(root: str, matches: Matches) -> dict[str, str]:
    files: dict[str, str] = {}
    for folder, folders, names in os.walk(root, onerror=_cannot_list):
        folders[:] = [name for name in folders if not _hidden([name])]
        for name in names:
            if matches(name) and not _hidden([name]):
                path = os.path.join(folder, name)  # noqa: PTH118 - undecodable names
                if (info := _file_info(path)) is not None:
                    files[path] = token_of(info)
    return files


def _file_info(path: str) -> dict[str, Any] | None:
    """Return what ``local_info`` says; None for a dead link, one to itself, what was removed
    meanwhile, and a pipe, the opening of which would wait for a writer."""
    try:
        info = local_info(path)
    except OSError as error:
        if error.errno in _NO_FILE:
            return None
        raise
    return info if info["type"] == "file" else None


def _cannot_list(error: OSError) -> None:
    if isinstance(error, FileNotFoundError):  # removed meanwhile
        return
    msg = f"a folder cannot be listed, its files would be missing: {printable(str(error))}"
    raise SetupError(msg) from error


def _glob(pattern: str) -> dict[str, str]:
    if is_local(pattern):
        found = glob.glob(pattern, recursive=True)  # noqa: PTH207 - keeps the given spelling
        paths = [path for path in found if Path(path).is_file()]
        if "**" in pattern:
            # A link to a folder above leads to the same file again and again: shortest path wins.
            by_file: dict[str, str] = {}
            for path in sorted(paths, key=lambda p: (len(p), p)):
                by_file.setdefault(os.path.realpath(path), path)
            paths = list(by_file.values())
        return {path: token_of(local_info(path)) for path in paths}
    fs, inner = _filesystem(pattern)
    names = [n for n, info in fs.glob(inner, detail=True).items() if info["type"] == "file"]
    with ThreadPoolExecutor(16) as pool:  # a glob's details are not those of info() everywhere
        infos = list(pool.map(fs.info, names))
    return {rebuild(pattern, fs, n): token_of(info) for n, info in zip(names, infos, strict=True)}


def rebuild(url: str, fs: Any, name: str) -> str:
    """Return the URL of ``name``, found through ``url``, with the links of a chain kept."""
    links = url.split("::")
    place = links.index(_place(url))
    scheme = links[place].split("://", 1)[0]
    if name.startswith(f"{scheme}://"):
        links[place] = name
    else:
        # Some backends (memory) start their paths with "/", others with the bucket.
        links[place] = f"{scheme}://{name.lstrip('/') if scheme != 'file' else name}"
    return "::".join(links)


def _place(url: str) -> str:
    """Return the link of a chain (``simplecache::s3://...``) that holds the path."""
    return next((link for link in url.split("::") if "://" in link), url)


def _hidden(parts: Sequence[str]) -> bool:
    return any(part.startswith((".", "_")) for part in parts)


def _fixed_prefix(pattern: str) -> str:
    """Return the folder before the first wildcard."""
    first = min(pattern.index(c) for c in _MAGIC if c in pattern)
    return pattern[:first].rpartition("/")[0]


def _common_root(roots: Sequence[str]) -> str:
    if len(set(roots)) == 1:
        return roots[0]
    schemes = {root.split("://", 1)[0] if "://" in root else "" for root in roots}
    if len(schemes) > 1:
        return ""
    split = [root.split("/") for root in roots]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "/".join(shared)


def _relative(path: str, root: str) -> str:
    prefix = root.rstrip("/") + "/"
    inner = _place(path)
    return inner[len(prefix) :] if root and inner.startswith(prefix) else path


def near(path: str) -> str:
    """Say what there is where ``path`` was looked for."""
    folder, wanted = path, ""
    while folder and not _is_folder(folder):
        folder, _, wanted = folder.rstrip("/").rpartition("/")
        if folder.endswith(":/") or not folder:
            return "there is no such folder either"
    names = _names(folder)
    if not names:
        return f"{folder!r} is empty"
    close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.6)
    shown = ", ".join(names[:5]) + (f", ... ({len(names)} in all)" if len(names) > 5 else "")
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
    return f"{folder!r} holds: {shown}{hint}"


def _is_folder(path: str) -> bool:
    if is_local(path):
        return Path(local_path(path)).is_dir()
    try:
        fs, inner = _filesystem(path)
        return bool(fs.isdir(inner))
    except (OSError, ValueError):
        return False


def _names(folder: str) -> list[str]:
    try:
        if is_local(folder):
            return sorted(printable(entry.name) for entry in Path(local_path(folder)).iterdir())
        fs, inner = _filesystem(folder)
        return sorted(posixpath.basename(n.rstrip("/")) for n in fs.ls(inner, detail=False))
    except (OSError, ValueError):
        return []
