"""What is there and what is left to do: a workspace against a plan, by file names only.

A stage's folder holds, per shard: the base file, patches ".r<n>", and gate markers ".g<digest>".
Listing the folders once tells everything; nothing grows with the number of rows.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from winnow.contracts.parameters import result_parameters
from winnow.contracts.stage import GlobalStage, Stage
from winnow.pipeline.columns import SOURCE, ColumnSet
from winnow.pipeline.fingerprint import digest, stage_fingerprint
from winnow.pipeline.global_unit import STAGE_FILE, GlobalUnit
from winnow.pipeline.pass_unit import Mode, PassUnit, StageTask
from winnow.pipeline.plan import Pass, Plan
from winnow.pipeline.recipe import StageEntry
from winnow.pipeline.shards import Shard, content_of, index_name, list_shards
from winnow.pipeline.storage import Storage
from winnow.pipeline.units import Unit, UnitResult

LIBRARIES = ("numpy", "pillow", "pyarrow", "torch", "open_clip_torch", "imagehash", "duckdb")
_NUMBER_STEP = 1 << 16
_COLUMN_FILE = re.compile(
    r"([0-9a-f]{32}(?:~[0-9]+)?)(?:\.(r[0-9]+|g[0-9a-f]{12}|gated))?\.parquet"
)


@dataclass(kw_only=True, slots=True)
class State:
    """Fingerprints, folders and files of a plan's stages, as far as they can be known now.

    retry_failed: rows with transient codes are tried again, once per run and shard.
    """

    plan: Plan
    storage: Storage
    shards: tuple[Shard, ...]
    retry_failed: bool = False
    fingerprints: dict[str, str] = field(default_factory=dict)
    sets: dict[str, ColumnSet] = field(default_factory=dict)
    present: dict[str, dict[str, set[str]]] = field(default_factory=dict)
    committed: set[str] = field(default_factory=set)
    """Keys of the global stages that are done."""
    retried: set[tuple[str, str]] = field(default_factory=set)
    _numbers: dict[str, int] | None = None
    _copies: dict[str, list[Shard]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.fingerprints[SOURCE] = "source"
        self.sets[SOURCE] = self.plan.source_set()
        for shard in self.shards:
            self._copies.setdefault(shard.content_id, []).append(shard)

    @property
    def contents(self) -> list[Shard]:
        """The shards that differ in content, in source order."""
        return [copies[0] for copies in self._copies.values()]

    def enter(self, key: str) -> None:
        """Compute a stage's fingerprint and look at its files; its inputs must be entered."""
        entry = self.plan.entry(key)
        inputs = self.plan.inputs(key)
        pool: list[str] = []
        if entry.is_global:
            for shard in self.shards:
                numbers = [f"{w}:{n}" for w in inputs for n in self.patches(w, shard.id)]
                pool.append(" ".join([shard.id, *numbers]))
            pool.sort()
        known = [self.visible(w) for w in inputs]
        fingerprint = stage_fingerprint(entry.stage, known, self.plan.recipe.media, pool)
        self.fingerprints[key] = fingerprint
        self.sets[key] = self.plan.column_set(key, fingerprint)
        self.present[key] = defaultdict(set)
        for name in self.storage.names(self.sets[key].folder):
            if name == STAGE_FILE:
                self.committed.add(key)
            elif (parts := parse_column_file(name)) is not None:
                self.present[key][parts[0]].add(parts[1])

    def visible(self, writer: str) -> str:
        """Return what identifies a writer's columns as others see them.

        Its fingerprint, and its gate where it has one: rows outside it are null to its readers, so
        what they make of them changes with the gate, though its own files do not.
        """
        fingerprint, when = self.fingerprints[writer], self.sets[writer].when
        if when is None:
            return fingerprint
        writers = sorted({self.plan.origins[n] for n in when.columns() if n != "uid"})
        return digest([fingerprint, str(when), [self.visible(w) for w in writers]])

    def patches(self, writer: str, shard_id: str) -> tuple[int, ...]:
        """Return the numbers of a shard's patches of one writer."""
        suffixes = self.present.get(writer, {}).get(self.sets[writer].stem(shard_id), ())
        return tuple(sorted(int(s[1:]) for s in suffixes if s.startswith("r")))

    def all_patches(self, shard_id: str) -> dict[str, tuple[int, ...]]:
        """Return the patches of a shard by writer."""
        found = {w: self.patches(w, shard_id) for w in self.sets}
        return {w: numbers for w, numbers in found.items() if numbers}

    def record(self, key: str) -> dict[str, Any]:
        """Return what ``_stage.json`` says of a stage."""
        stage = self.plan.entry(key).stage
        return {
            "stage": stage.name,
            "version": stage.version,
            "fingerprint": self.fingerprints[key],
            "parameters": json.loads(json.dumps(result_parameters(stage), default=str)),
            "model_digest": stage.model_digest() if isinstance(stage, Stage) else "",
            "inputs": {w or "source": self.fingerprints[w] for w in self.plan.inputs(key)},
            "columns": {f.name: str(f.type) for f in stage.writes},
            "libraries": library_versions(),
        }

    def write_record(self, key: str) -> None:
        """Commit a per-row stage's ``_stage.json``."""
        if key not in self.committed:
            text = json.dumps(self.record(key), indent=1, sort_keys=True)
            self.storage.put(f"{self.sets[key].folder}/{STAGE_FILE}", text.encode())

    def missing(self, key: str) -> int:
        """Return how many rows a stage has still to see (its gate and patches not looked at)."""
        if self.plan.entry(key).is_global:
            return 0 if key in self.committed else sum(s.num_rows for s in self.shards)
        return sum(s.num_rows for s in self._files(key) if "" not in self._suffixes(key, s))

    def regated(self, key: str) -> int:
        """Return the rows of shards on which a stage's gate is new: it may select more of them."""
        entry = self.plan.entry(key)
        if entry.is_global:
            return 0
        return sum(
            s.num_rows
            for s in self._files(key)
            if "" in self._suffixes(key, s) and self._has_new_gate(entry, s)
        )

    def missing_pass(self, pass_: Pass) -> int:
        """Return how many rows a pass has still to see."""
        return sum(
            s.num_rows
            for s in self.shards
            if any("" not in self._suffixes(k, s) for k in pass_.keys if self._has_file(k, s))
        )

    def global_unit(self, key: str) -> GlobalUnit:
        """Return the unit of a global stage."""
        entry = self.plan.entry(key)
        assert isinstance(entry.stage, GlobalStage)
        writers = self.closure(self.plan.inputs(key))
        return GlobalUnit(
            storage=self.storage,
            key=key,
            stage=entry.stage,
            columns=self.sets[key],
            sets=tuple(self.sets[w] for w in writers),
            shards=self.shards,
            patches={s.id: self.all_patches(s.id) for s in self.shards},
            record=self.record(key),
        )

    def next_unit(self, shard: Shard, passes: Sequence[Pass]) -> Unit | None:
        """Return the next unit of a shard and its copies within a segment; None: all is there."""
        for copy in self._copies[shard.content_id]:
            for pass_ in passes:
                unit = (
                    self._base(copy, pass_)
                    or self._patch(copy, pass_)
                    or self._gate(copy, pass_)
                    or self._retry(copy, pass_)
                )
                if unit is not None:
                    return unit
        return None

    def done(self, unit: PassUnit, result: UnitResult) -> None:
        """Remember what a unit committed."""
        for key, suffix in result.committed:
            self.present[key][self.sets[key].stem(unit.shard.id)].add(suffix)

    def _suffixes(self, key: str, shard: Shard) -> set[str]:
        return self.present[key].get(self.sets[key].stem(shard.id), set())

    def _has_file(self, key: str, shard: Shard) -> bool:
        """Whether a shard has a file of its own, or shares that of the shard it is a copy of."""
        return self.sets[key].placed or shard.id == shard.content_id

    def _files(self, key: str) -> list[Shard]:
        """Return the shards with a file of their own."""
        return [s for s in self.shards if self._has_file(key, s)]

    def _base(self, shard: Shard, pass_: Pass) -> Unit | None:
        entries = [e for e in pass_.entries if "" not in self._suffixes(e.key, shard)]
        if not entries:
            return None
        covers: dict[str, set[int]] = {}
        tasks = []
        for entry in entries:
            covers[entry.key] = set()
            for writer in self.plan.inputs(entry.key, gate=True):
                covers[entry.key] |= {*self.patches(writer, shard.id)}
                covers[entry.key] |= covers.get(writer, set())
            marker = self._marker(entry, shard) if entry.when is not None else None
            tasks.append(self._task(entry, marker, tuple(sorted(covers[entry.key]))))
        return self._unit(shard, pass_, tasks, "base")

    def _patch(self, shard: Shard, pass_: Pass) -> Unit | None:
        lacking: dict[int, list[StageEntry]] = defaultdict(list)
        for entry in pass_.entries:
            have = self.patches(entry.key, shard.id)
            for number in self._input_patches(entry, shard, lacking):
                if number not in have:
                    lacking[number].append(entry)
        if not lacking:
            return None
        number = min(lacking)
        entries = lacking[number]
        writers = {w for e in entries for w in self.plan.inputs(e.key, gate=True)}
        tasks = [self._task(entry, None, ()) for entry in entries]
        return self._unit(shard, pass_, tasks, "patch", number, tuple(sorted(writers)))

    def _input_patches(
        self, entry: StageEntry, shard: Shard, lacking: dict[int, list[StageEntry]]
    ) -> set[int]:
        """Patches of an entry's inputs, those that this very unit will write included."""
        found: set[int] = set()
        for writer in self.plan.inputs(entry.key, gate=True):
            found |= {*self.patches(writer, shard.id)}
            found |= {n for n, entries in lacking.items() if writer in {e.key for e in entries}}
        return found

    def _gate(self, shard: Shard, pass_: Pass) -> Unit | None:
        for entry in pass_.entries:
            if self._has_new_gate(entry, shard):
                number = self._new_number(entry.key, shard)
                tasks = [self._task(entry, self._marker(entry, shard), ())]
                return self._unit(shard, pass_, tasks, "gate", number)
        return None

    def _has_new_gate(self, entry: StageEntry, shard: Shard) -> bool:
        """Whether rows that another gate left were not looked at under this one (or none)."""
        suffixes = self._suffixes(entry.key, shard)
        if entry.when is None and not any(s.startswith("g") for s in suffixes):
            return False
        return self._marker(entry, shard) not in suffixes

    def _retry(self, shard: Shard, pass_: Pass) -> Unit | None:
        if not self.retry_failed:
            return None
        for entry in pass_.entries:
            stage, tag = entry.stage, (entry.key, self.sets[entry.key].stem(shard.id))
            if isinstance(stage, Stage) and stage.transient_codes and tag not in self.retried:
                self.retried.add(tag)
                number = self._new_number(entry.key, shard)
                return self._unit(shard, pass_, [self._task(entry, None, ())], "retry", number)
        return None

    def _marker(self, entry: StageEntry, shard: Shard) -> str:
        """Name what is annotated on this shard under a gate: its text, and the inputs as they are.

        The patches of all inputs count, not only of those that the gate reads: where another
        recipe with a narrower gate patched the stage, rows outside its gate are not selected now.
        """
        writers = self.plan.inputs(entry.key, gate=True)
        seen = [[self.visible(w), self.patches(w, shard.id)] for w in writers]
        return "g" + digest([str(entry.when), seen])[:12]

    def _task(self, entry: StageEntry, marker: str | None, covers: tuple[int, ...]) -> StageTask:
        assert isinstance(entry.stage, Stage)
        return StageTask(
            key=entry.key,
            stage=entry.stage,
            columns=self.sets[entry.key],
            marker=marker,
            covers=covers,
        )

    def _unit(
        self,
        shard: Shard,
        pass_: Pass,
        tasks: Sequence[StageTask],
        mode: Mode,
        number: int = 0,
        rows_from: tuple[str, ...] = (),
    ) -> PassUnit:
        keys = [t.key for t in tasks]
        inputs = {w for k in keys for w in self.plan.inputs(k, gate=True)}
        return PassUnit(
            storage=self.storage,
            shard=shard,
            sets=tuple(self.sets[w] for w in self.closure([*inputs, *keys])),
            patches=self.all_patches(shard.id),
            tasks=tuple(tasks),
            mode=mode,
            number=number,
            rows_from=rows_from,
            chunk_rows=pass_.chunk_rows,
            caps=self.plan.recipe.media,
            needs=pass_.resources,
        )

    def closure(self, writers: Iterable[str]) -> list[str]:
        """Writers, and those that their gates read, the source first."""
        found = {SOURCE}
        queue = list(writers)
        while queue:
            writer = queue.pop()
            if writer in found:
                continue
            found.add(writer)
            when = self.plan.entry(writer).when
            if when is not None:
                queue += [self.plan.origins[n] for n in when.columns() if n != "uid"]
        return sorted(found)

    def _new_number(self, key: str, shard: Shard) -> int:
        """Return a patch number that no other patch of the shard has, in any recipe.

        The upper part counts; the lower part names the stage, so that two runs at once that patch
        different stages cannot take the same number.
        """
        if self._numbers is None:
            self._numbers = _highest_numbers(self.storage)
        here = max((n for w in self.sets for n in self.patches(w, shard.id)), default=0)
        highest = max(here, self._numbers.get(shard.content_id, 0))
        low = int(digest(self.fingerprints[key])[:4], 16)
        return (highest // _NUMBER_STEP + 1) * _NUMBER_STEP + low


def parse_column_file(name: str) -> tuple[str, str] | None:
    """Return shard and suffix ("" for the base file); None for what Winnow did not put there."""
    found = _COLUMN_FILE.fullmatch(name)
    return None if found is None else (found[1], found[2] or "")


def current_shards(plan: Plan, storage: Storage) -> tuple[Shard, ...] | None:
    """Return the shards of a source that was read before; None where some file was not."""
    recipe = plan.recipe
    names = [index_name(recipe.source, f, recipe.rows_per_shard) for f in recipe.source.files()]
    if not all(storage.exists(name) for name in names):
        return None
    return tuple(list_shards(storage, names))


def current_state(plan: Plan, storage: Storage) -> State | None:
    """Return what a workspace holds of a plan; None where some source file was not read yet."""
    shards = current_shards(plan, storage)
    if shards is None:
        return None
    state = State(plan=plan, storage=storage, shards=shards)
    for entry in plan.recipe.stages:
        state.enter(entry.key)
    return state


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries whose output can differ between versions."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _highest_numbers(storage: Storage) -> dict[str, int]:
    highest: dict[str, int] = {}
    for folder in storage.names("columns"):
        for name in storage.names(f"columns/{folder}"):
            stem, suffix = parse_column_file(name) or ("", "")
            if suffix.startswith("r"):
                content = content_of(stem)
                highest[content] = max(highest.get(content, 0), int(suffix[1:]))
    return highest
