"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path


def user_path(name: str | os.PathLike[str]) -> Path:
    """Return a path with ``~`` and ``~user`` replaced by the home folder.

    ``~user`` stays as it is for a user who is not here (Path.expanduser raises RuntimeError): what
    opens the path then says that there is no such file.
    """
    return Path(os.path.expanduser(name))  # noqa: PTH111 - see above
