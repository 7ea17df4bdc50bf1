"""Decoded pictures that the trials of one machine share: five seeds decode a selection once.

    <temporary folder>/winnow-cache-<user id>/

It holds 16 GB at most, and may be deleted at any time. ``cache_folder: ""`` in a study's ``trial``
does without; another folder may be named there.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import stat
import tempfile
from pathlib import Path

from winnow.contracts.parameters import role_of
from winnow.contracts.trial import Trainer

log = logging.getLogger(__name__)

ROOM_BYTES = 32 << 30
"""Twice what the cache may hold has to be free, so that no small or in-memory disk is filled."""


def with_shared_cache(trainer: Trainer) -> Trainer:
    """Return a trainer whose ``cache_folder`` is the shared one, where it has one and it is null.

    Only an ``effort`` parameter of this name is set: results and fingerprints stay what they are.
    """
    if not dataclasses.is_dataclass(trainer):
        return trainer
    roles = {field.name: role_of(field) for field in dataclasses.fields(trainer)}
    if roles.get("cache_folder") != "effort" or trainer.cache_folder is not None:
        return trainer
    folder = shared_cache(Path(tempfile.gettempdir()), ROOM_BYTES)
    if folder is None:
        return trainer
    return dataclasses.replace(trainer, cache_folder=str(folder))


def shared_cache(parent: Path, room_bytes: int) -> Path | None:
    """Return a folder that this user alone can enter; None where there is none, or no room.

    Whoever else could write there could change what models are trained on.
    """
    folder = parent / f"winnow-cache-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        log.info("no shared cache: %s", error)
        return None
    owned = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    if not owned or stat.S_IMODE(status.st_mode) & 0o077:
        log.warning("%s is not used as a cache: others can write there", folder)
        return None
    return folder if free >= room_bytes else None
