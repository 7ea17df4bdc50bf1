"""Sidecar members of incoming WebDataset samples: read by reference, verified, never pickles."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from types import TracebackType
from typing import Any, BinaryIO

import pyarrow as pa

from winnow.contracts.errors import ShardError
from winnow.contracts.identity import content_digest
from winnow.stages.sources._files import is_local, local_path, open_file

MEMBERS = "members"
"""The column: list<struct<extension, path, offset, length, digest>>."""
PICKLE_PARTS = frozenset(
    {"pickle", "pkl", "pyd", "p", "pth", "pt", "ckpt", "dill", "joblib", "cloudpickle", "jpgs"}
)
"""Extension parts that some reader unpickles (webdataset: pyd, pickle, pth; Data-Juicer: jpgs)."""
READERS_FIELDS = frozenset({"__key__", "__url__", "__local_path__"})
"""Fields that readers add to a sample: a member of that name is an error to them."""
MAX_OPEN_FILES = 16


def is_pickle(extension: str, head: bytes) -> bool:
    """Whether a member may be unpickled by a reader: by any part of its extension, or its bytes.

    ``head``: pickle protocols 2 to 5 start with 0x80 and the protocol's number; gzip and the like
    hide the bytes but not the extension.
    """
    if not PICKLE_PARTS.isdisjoint(extension.lower().split(".")):
        return True
    return len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5


def has_members(schema: pa.Schema) -> bool:
    """Whether the rows carry references to sidecar members."""
    index = schema.get_field_index(MEMBERS)
    if index < 0 or not pa.types.is_list(schema.field(index).type):
        return False
    entry = schema.field(index).type.value_type
    wanted = {"extension", "path", "offset", "length", "digest"}
    return pa.types.is_struct(entry) and wanted <= {f.name for f in entry}


def members_of(batch: pa.RecordBatch) -> list[list[dict[str, Any]]] | None:
    """Return the members of each row in the source's order; None where the rows carry none."""
    if not has_members(batch.schema):
        return None
    rows = batch.column(MEMBERS).to_pylist()
    return [row or [] for row in rows]


def free_extension(extension: str, taken: set[str]) -> str:
    """Return the extension, behind as many ``source.`` as keep it apart from those taken and from
    what webdataset and ``datasets`` call a sample's key and origin.

    Readers compare extensions without case. A NUL, which would end the name in a tar's header and
    so make it another (``pickle`` of ``pickle\\0x``), is spelled out.
    """
    extension = extension.replace("\0", "\\0")
    lowered = {t.lower() for t in taken} | READERS_FIELDS
    while extension.lower() in lowered:
        extension = f"source.{extension}"
    return extension


class SidecarReader:
    """Reads referenced bytes and checks their digests; keeps the last few files open."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, BinaryIO] = OrderedDict()

    def __enter__(self) -> SidecarReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def read(self, member: Mapping[str, Any], uid: bytes) -> bytes:
        """Return the bytes of one member; ShardError where they are not what the source read."""
        path, length = member["path"], member["length"]
        try:
            file = self._open(path)
            file.seek(member["offset"])
            data = file.read(length)
        except FileNotFoundError:
            what = f"{path} is no longer there"
            raise _changed(what, uid) from None
        if len(data) != length or content_digest(data) != member["digest"]:
            what = f"{path} ({member['extension']} at {member['offset']}) is not what was read"
            raise _changed(what, uid)
        return data

    def _open(self, path: str) -> BinaryIO:
        file = self._files.pop(path, None)
        if file is None:
            if len(self._files) >= MAX_OPEN_FILES:
                self._files.popitem(last=False)[1].close()
            # Sidecars are small and stand anywhere: open_file's buffer would be read for each.
            file = open(local_path(path), "rb") if is_local(path) else open_file(path)  # noqa: SIM115
        self._files[path] = file
        return file


def _changed(what: str, uid: bytes) -> ShardError:
    fix = "put the source file back, or run again so that the changed file is read anew"
    return ShardError(f"{what}; {fix}", stage="export", uid=uid.hex(), retryable=False)
