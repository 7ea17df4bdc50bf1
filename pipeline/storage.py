"""Files that appear only when they are whole, on a local disk or any fsspec URL.

First writer wins: two attempts at the same file can never mix, and the loser is told so (where a
backend has neither hard links nor an exclusive create, as long as they do not end at one moment).
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from winnow.contracts.errors import SetupError

TEMPORARY = ".tmp-"
_TEMPORARY_NAME = re.compile(r"\.tmp-(?:[0-9]+-[0-9a-f]{12}|probe-[0-9a-f]{16})")
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_COPY_BYTES = 1 << 20


class Commit:
    """The outcome of one ``Storage.create`` block: ``won`` is False if the file was there first."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.won = False

    def touch(self) -> None:
        """Say that the file is still being made: what writes hold back can take hours to come."""
        os.utime(self.file.fileno())


class Storage:
    """A folder for a workspace. ``root`` is a local path or an fsspec URL."""

    def __init__(self, root: str) -> None:
        self.root = root
        try:
            self._fs, base = fsspec.core.url_to_fs(root)
        except (ValueError, ImportError) as error:
            msg = f"the workspace {root!r} cannot be opened: {error}"
            raise SetupError(msg) from None
        self.is_local = "file" in _protocols(self._fs)
        self._base = str(Path(base).absolute()) if self.is_local else base.rstrip("/")

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return (Storage, (self._base if self.is_local else self.root,))

    def path(self, name: str) -> str:
        """Return the full path of a name within the storage."""
        return f"{self._base}/{name}" if name else self._base

    def url(self, name: str) -> str:
        """Return what another reader opens a name by: a path, or an fsspec URL."""
        return self.path(name) if self.is_local else f"{self.root.rstrip('/')}/{name}"

    def exists(self, name: str) -> bool:
        """Whether a committed file is there."""
        return (
            Path(self.path(name)).exists()
            if self.is_local
            else bool(self._fs.exists(self.path(name)))
        )

    def names(self, folder: str) -> list[str]:
        """Return the sorted names of committed files and folders in a folder; [] without it."""
        path = self.path(folder)
        if self.is_local:
            try:
                found = os.listdir(path)  # noqa: PTH208
            except (FileNotFoundError, NotADirectoryError):
                return []
        else:
            self._fs.invalidate_cache(path)
            try:
                entries = self._fs.ls(path, detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
            found = [str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries]
        return sorted(n for n in found if n and not n.startswith(TEMPORARY))

    def sizes(self, folder: str) -> dict[str, int]:
        """Return name -> bytes of the files below a folder, names relative to the storage."""
        found = self._fs.find(self.path(folder), detail=True)
        start = len(self._base) + 1
        return {str(k)[start:]: int(v.get("size") or 0) for k, v in found.items()}

    def read(self, name: str) -> bytes:
        """Return a committed file's bytes."""
        return cast(bytes, self._fs.cat_file(self.path(name)))

    def open(self, name: str) -> BinaryIO:
        """Open a committed file, seekable."""
        if self.is_local:
            return open(self.path(name), "rb")
        return cast(BinaryIO, self._fs.open(self.path(name), "rb"))

    def download(self, name: str, path: Path) -> None:
        """Copy a committed file to a local path."""
        with self.open(name) as source, open(path, "wb") as out:
            shutil.copyfileobj(source, out, _COPY_BYTES)

    def upload(self, path: Path, name: str) -> bool:
        """Commit a copy of a local file; False if it was there first."""
        with open(path, "rb") as source, self.create(name) as commit:
            shutil.copyfileobj(source, commit.file, _COPY_BYTES)
        return commit.won

    def parquet(self, name: str) -> pq.ParquetFile:
        """Open a committed Parquet file."""
        if self.is_local:
            return pq.ParquetFile(pa.memory_map(self.path(name)))
        return pq.ParquetFile(self._fs.open(self.path(name), "rb"))

    def put(self, name: str, data: bytes) -> bool:
        """Commit a small file; False if it was there first."""
        with self.create(name) as commit:
            commit.file.write(data)
        return commit.won

    def replace(self, name: str, data: bytes) -> None:
        """Write a small file whatever was there: only for what is not an output (reports)."""
        path = self.path(name)
        if self.is_local:
            temporary = self._temporary(path)
            try:
                with open(temporary, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        else:
            self._fs.pipe_file(path, data)

    @contextmanager
    def create(self, name: str) -> Iterator[Commit]:
        """Open a temporary file; commit it when the block ends without an exception."""
        path = self.path(name)
        if self.is_local:
            temporary = self._temporary(path)
        else:
            handle, raw = tempfile.mkstemp(prefix="winnow-")
            os.close(handle)
            temporary = Path(raw)
        try:
            with open(temporary, "w+b") as file:
                commit = Commit(file)
                yield commit
                file.flush()
                if self.is_local:
                    os.fsync(file.fileno())
            commit.won = (
                self._link(temporary, path) if self.is_local else self._upload(temporary, path)
            )
        finally:
            temporary.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Remove a file or a folder with all that is in it; of a link, the link."""
        path = self.path(name)
        if self.is_local:
            if Path(path).is_dir() and not Path(path).is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                Path(path).unlink(missing_ok=True)
        elif self._fs.exists(path):
            self._fs.rm(path, recursive=True)

    def temporaries(self) -> list[str]:
        """Return names of temporary files that a killed run left behind."""
        if not self.is_local:
            return []
        start = len(self._base) + 1
        found = Path(self._base).rglob(f"{TEMPORARY}*")
        return sorted(str(p)[start:] for p in found if _TEMPORARY_NAME.fullmatch(p.name))

    def check_writable(self) -> None:
        """Raise SetupError unless files can be created here; leaves nothing behind."""
        probe = f"{TEMPORARY}probe-{secrets.token_hex(8)}"
        try:
            if self.is_local:
                self._check_local(probe)
            else:
                self._fs.pipe_file(self.path(probe), b"")
                self._fs.rm_file(self.path(probe))
        except (OSError, PermissionError) as error:
            msg = (
                f"the workspace {self.root!r} is not writable: {error}; "
                "choose another with --workspace"
            )
            raise SetupError(msg) from None

    def _check_local(self, probe: str) -> None:
        base = Path(self._base)
        if base.is_dir():
            (base / probe).touch()
            (base / probe).unlink()
            return
        parent = base.parent
        while not parent.exists():
            parent = parent.parent
        there = base.exists() or base.is_symlink()
        if there or not parent.is_dir():
            msg = f"{base if there else parent} is not a folder"
            raise NotADirectoryError(msg)
        if not os.access(parent, os.W_OK | os.X_OK):
            msg = f"no permission to create {base}"
            raise PermissionError(msg)

    def _temporary(self, path: str) -> Path:
        folder = Path(path).parent
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(6)}"

    def _link(self, temporary: Path, path: str) -> bool:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # A file system without hard links (exFAT, some mounts): look, then rename.
            if Path(path).exists():
                return False
            temporary.rename(path)
        folder = os.open(Path(path).parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return True

    def _upload(self, temporary: Path, path: str) -> bool:
        """Exclusive create where the backend has it (S3: If-None-Match), else look, then put."""
        try:
            self._fs.put_file(str(temporary), path, mode="create")
        except FileExistsError:
            return False
        except (TypeError, NotImplementedError, ValueError):
            if self._fs.exists(path):
                return False
            self._fs.put_file(str(temporary), path)
        return True


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
