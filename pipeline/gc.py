"""Removing what no recorded recipe uses: columns, ledgers, exports, what killed runs left.

Only files and folders with the names that Winnow gives; what a user keeps beside them stays.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from winnow.contracts.errors import RunError, SetupError
from winnow.pipeline.export_plan import plan_export
from winnow.pipeline.export_rows import WORK
from winnow.pipeline.export_unit import MANIFEST
from winnow.pipeline.plan import make_plan
from winnow.pipeline.recipe import parse_recipe
from winnow.pipeline.run import made_name
from winnow.pipeline.selection import SUMMARY, select_unit
from winnow.pipeline.shards import FILES, ROWS, index_name
from winnow.pipeline.storage import Storage
from winnow.pipeline.work import current_state, parse_column_file

STALE_S = 3600.0
_OURS = {
    "columns": re.compile(r".+-[0-9a-f]{32}"),
    "ledger": re.compile(r"[0-9a-f]{32}"),
    "export": re.compile(r".+-[0-9a-f]{12}"),
    ROWS: re.compile(r"[0-9a-f]{32}\.parquet"),
    FILES: re.compile(r"[0-9a-f]{32}\.json"),
    "runs": re.compile(r"[0-9a-f]{32}\.json"),
    WORK: re.compile(r".+-[0-9a-f]{12}"),
}
"""Folder -> the names that Winnow gives in it, as far as they can be garbage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Garbage:
    """Names that can go, with the bytes they hold."""

    names: tuple[str, ...]
    size_bytes: int


def find_garbage(storage: Storage) -> Garbage:
    """Return what no recipe in runs/ uses. Raises SetupError where a recipe cannot be followed."""
    # Listed before the recipes are followed: what a run makes from now on is no garbage.
    there = [
        f"{folder}/{name}"
        for folder, ours in _OURS.items()
        for name in storage.names(folder)
        if ours.fullmatch(name)
    ]
    shards = {n: storage.names(n) for n in there if n.startswith("columns/")}
    used = _used(storage)
    found = [name for name in there if _is_garbage(storage, name, used)]
    for folder, names in shards.items():
        if folder in used:
            found += _old_shards(folder, names, used)
    found += _stale(storage)
    sizes, everything = storage.sizes(""), set(found)
    total = sum(size for name, size in sizes.items() if _below(name, everything))
    return Garbage(names=tuple(sorted(found)), size_bytes=total)


def collect(storage: Storage, garbage: Garbage) -> None:
    """Remove garbage. Raises SetupError that names what could not be removed."""
    for name in garbage.names:
        storage.remove(name)
    left = [name for name in garbage.names if storage.exists(name)]
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        msg = f"{storage.path(left[0])}{more} could not be removed: no permission, or in use"
        raise SetupError(msg)


def _used(storage: Storage) -> set[str]:
    """Return what some recipe in runs/ uses, or made."""
    recorded = [n for n in storage.names("runs") if n.endswith(".yaml")]
    if not recorded:
        msg = f"{storage.root} has no recorded recipe; it does not look like a workspace"
        raise SetupError(msg)
    used: set[str] = set()
    for name in recorded:
        made = made_name(name.removesuffix(".yaml"))
        used |= {made} | _used_by(storage, f"runs/{name}") | _made_by(storage, made)
    return used


def _used_by(storage: Storage, name: str) -> set[str]:
    try:
        text = storage.read(name).decode()
    except IsADirectoryError:  # the workspace of a recipe with such a name
        return set()
    try:
        recipe = parse_recipe(text, name)
        plan = make_plan(recipe)
        state = current_state(plan, storage)
        files = recipe.source.files()
    except RunError as error:
        msg = (
            f"{name} cannot be followed, so nothing is removed: {error}\nremove {name} to forget it"
        )
        raise SetupError(msg) from None
    if state is None:
        # Its columns are not garbage: the shards that did not change would be annotated again.
        msg = (
            f"{name} has source files that were not read yet, so nothing is removed: run it first, "
            f"or remove {name} to forget it"
        )
        raise SetupError(msg)
    used = {index_name(recipe.source, f, recipe.rows_per_shard) for f in files}
    used |= {f"{ROWS}/{s.content_id}.parquet" for s in state.shards}
    for columns in state.sets.values():
        used.add(columns.folder)
        used |= {columns.file(s).removesuffix(".parquet") for s in state.shards}
    selection = select_unit(state).selection
    used.add(f"ledger/{selection}")
    if storage.exists(f"ledger/{selection}/{SUMMARY}"):
        summary = _json(storage, f"ledger/{selection}/{SUMMARY}")
        used |= {plan_export(state, e, summary).job.folder for e in recipe.exports}
    return used


def _made_by(storage: Storage, name: str) -> set[str]:
    """Return what a recipe's latest whole run made.

    It is in use until the recipe runs again, even where another recipe's patches have given the
    selection, or a stage over all rows, another name by now.
    """
    if not storage.exists(name):
        return set()
    made = _json(storage, name)
    ledger = f"ledger/{made['selection']}"
    used = {ledger, *made["exports"].values(), *made["columns"].values()}
    if storage.exists(f"{ledger}/{SUMMARY}"):
        for shard in _json(storage, f"{ledger}/{SUMMARY}")["shards"]:
            content = shard.partition("~")[0]
            used.add(f"{ROWS}/{content}.parquet")
            used |= {f"{f}/{i}" for f in made["columns"].values() for i in (shard, content)}
    return used


def _old_shards(folder: str, names: Sequence[str], used: Set[str]) -> list[str]:
    """Files of shards that no source has any more, in a folder of columns that is used."""
    files = [(n, parts[0]) for n in names if (parts := parse_column_file(n)) is not None]
    return [f"{folder}/{name}" for name, stem in files if f"{folder}/{stem}" not in used]


def _is_garbage(storage: Storage, name: str, used: Set[str]) -> bool:
    """Whether what has a name of Winnow's can go.

    The work of an export: once it is committed, or unused, its units have nothing left to say. An
    export: if it was begun or committed, else it is somebody's folder with such a name.
    """
    folder, _, own = name.rpartition("/")
    if folder == WORK:
        return f"export/{own}" not in used or storage.exists(f"export/{own}/{MANIFEST}")
    if name in used:
        return False
    begun = folder != "export" or bool(storage.names(f"{WORK}/{own}"))
    return begun or storage.exists(f"{name}/{MANIFEST}")


def _json(storage: Storage, name: str) -> Any:
    try:
        return json.loads(storage.read(name))
    except ValueError:
        msg = f"{storage.path(name)} is damaged, so nothing is removed; remove it and run again"
        raise SetupError(msg) from None


def _stale(storage: Storage) -> list[str]:
    """Temporary files that nobody has written to for an hour: their run was killed."""
    limit = time.time() - STALE_S
    names = []
    for name in storage.temporaries():
        path = Path(storage.path(name))
        if path.exists() and path.stat().st_mtime < limit:
            names.append(name)
    return names


def _below(name: str, found: Set[str]) -> bool:
    """Whether a file, or a folder that it is in, was found."""
    while name and name not in found:
        name = name.rpartition("/")[0]
    return bool(name)
