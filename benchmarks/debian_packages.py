"""Real input from Debian packages: downloaded and unpacked in a scratch folder, not installed."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path


@contextlib.contextmanager
def unpacked(packages: Sequence[str], scratch: Path, *, otherwise: str) -> Iterator[Path]:
    """Yield a folder that holds what the packages would install, from its root.

    otherwise: what a machine without apt-get can do; it ends the message.
    """
    missing = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    names = ", ".join(packages)
    if missing:
        msg = f"there is no {' and no '.join(missing)} here to get {names} with. {otherwise}"
        raise SystemExit(msg)
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".packages-") as folder:
        unsandboxed = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
        done = subprocess.run(["apt-get", *unsandboxed, "download", *packages], cwd=folder)
        if done.returncode:
            msg = (
                f"apt-get download {' '.join(packages)} failed (above); run `apt-get update` if "
                f"it does not know them. {otherwise}"
            )
            raise SystemExit(msg)
        for deb in Path(folder).glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", str(deb), folder], check=True)
            deb.unlink()
        yield Path(folder)
