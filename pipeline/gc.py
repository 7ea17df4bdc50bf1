"""Removing what no recorded recipe uses: columns, ledgers, exports, what killed runs left."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

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
from winnow.pipeline.work import current_state

STALE_S = 3600.0
_RECORD = re.compile(r"[0-9a-f]{32}\.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Garbage:
    """Names that can go, with the bytes they hold."""

    names: tuple[str, ...]
    size_bytes: int


def find_garbage(storage: Storage) -> Garbage:
    """Return what no recipe in runs/ uses. Raises SetupError where a recipe cannot be followed."""
    used: set[str] = set()
    recorded = [n for n in storage.names("runs") if n.endswith(".yaml")]
    if not recorded:
        msg = f"{storage.root} has no recorded recipe; it does not look like a workspace"
        raise SetupError(msg)
    for name in recorded:
        recipe = name.removesuffix(".yaml")
        used |= _used_by(storage, f"runs/{name}") | _made_by(storage, made_name(recipe))
        used.add(made_name(recipe))
    found = [
        name
        for folder, keep in (("columns", used), ("ledger", used), ("export", used))
        for name in (f"{folder}/{n}" for n in storage.names(folder))
        if name not in keep
    ]
    for folder in (f"columns/{n}" for n in storage.names("columns")):
        if folder in used:
            found += _old_shards(storage, folder, used)
    found += [n for n in (f"{ROWS}/{n}" for n in storage.names(ROWS)) if _is_unused_row(n, used)]
    found += [n for n in (f"{FILES}/{n}" for n in storage.names(FILES)) if n not in used]
    records = [f"runs/{n}" for n in storage.names("runs") if _RECORD.fullmatch(n)]
    found += [n for n in records if n not in used]
    found += [f"{WORK}/{n}" for n in storage.names(WORK) if _is_done(storage, n, used)]
    found += _stale(storage)
    sizes = storage.sizes("")
    total = sum(size for name, size in sizes.items() if _below(name, found))
    return Garbage(names=tuple(sorted(found)), size_bytes=total)


def collect(storage: Storage, garbage: Garbage) -> None:
    """Remove garbage."""
    for name in garbage.names:
        storage.remove(name)


def _used_by(storage: Storage, name: str) -> set[str]:
    try:
        recipe = parse_recipe(storage.read(name).decode(), name)
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
        summary = json.loads(storage.read(f"ledger/{selection}/{SUMMARY}"))
        used |= {plan_export(state, e, summary).job.folder for e in recipe.exports}
    return used


def _made_by(storage: Storage, name: str) -> set[str]:
    """Return what a recipe's latest whole run made.

    It is in use until the recipe runs again, even where another recipe's patches have given the
    selection, or a stage over all rows, another name by now.
    """
    if not storage.exists(name):
        return set()
    made = json.loads(storage.read(name))
    ledger = f"ledger/{made['selection']}"
    used = {ledger, *made["exports"].values(), *made["columns"].values()}
    if storage.exists(f"{ledger}/{SUMMARY}"):
        for shard in json.loads(storage.read(f"{ledger}/{SUMMARY}"))["shards"]:
            content = shard.partition("~")[0]
            used.add(f"{ROWS}/{content}.parquet")
            used |= {f"{f}/{i}" for f in made["columns"].values() for i in (shard, content)}
    return used


def _old_shards(storage: Storage, folder: str, used: set[str]) -> list[str]:
    """Files of shards that no source has any more, in a folder of columns that is used."""
    names = [n for n in storage.names(folder) if n.endswith(".parquet")]
    return [f"{folder}/{n}" for n in names if f"{folder}/{n.partition('.')[0]}" not in used]


def _is_unused_row(name: str, used: set[str]) -> bool:
    return name.endswith(".parquet") and name not in used


def _is_done(storage: Storage, name: str, used: set[str]) -> bool:
    """Whether an export is committed, or unused, so that its units have nothing left to say."""
    folder = f"export/{name}"
    return folder not in used or storage.exists(f"{folder}/{MANIFEST}")


def _stale(storage: Storage) -> list[str]:
    """Temporary files that nobody has written to for an hour: their run was killed."""
    limit = time.time() - STALE_S
    names = []
    for name in storage.temporaries():
        path = Path(storage.path(name))
        if path.exists() and path.stat().st_mtime < limit:
            names.append(name)
    return names


def _below(name: str, folders: Iterable[str]) -> bool:
    return any(name == f or name.startswith(f"{f}/") for f in folders)
