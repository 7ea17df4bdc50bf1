"""Fingerprints: changed by everything that can change an output, and by nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from winnow.contracts.media import MediaCaps
from winnow.contracts.parameters import effort, later, result, result_parameters
from winnow.contracts.stage import GlobalStage, Stage
from winnow.pipeline.fingerprint import digest, source_key, stage_fingerprint
from winnow.pipeline.plan import make_plan
from winnow.pipeline.recipe import parse_recipe
from winnow.pipeline.shards import index_name
from winnow.pipeline.storage import Storage
from winnow.pipeline.work import State

CAPS = MediaCaps()


@dataclass(frozen=True, kw_only=True, slots=True)
class Model(Stage):
    """A stage with everything that a fingerprint looks at; never run."""

    threshold: float = result(0.5)
    names: tuple[str, ...] = ("a", "b")
    timeout_s: float = effort(1.0)
    workers: int = effort(1)
    weights: str = effort("w1")
    column: str = effort("text")

    @property
    def reads(self) -> pa.Schema:
        return pa.schema({self.column: pa.string() if self.column == "text" else pa.large_binary()})

    @property
    def writes(self) -> pa.Schema:
        return pa.schema({"model_error": pa.string()})

    def model_digest(self) -> str:
        return self.weights

    def annotate(self, batch: pa.RecordBatch, state: Any, media: Any) -> pa.RecordBatch:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool(GlobalStage):
    """A global stage; never run."""

    distance: int = result(4)
    memory: int = effort(1)
    reads = pa.schema({"text": pa.string()})
    writes = pa.schema({"pool": pa.int64()})

    def compute(self, inputs: Any, outputs: Any) -> Mapping[str, Any]:
        raise NotImplementedError


def of(stage: Any = None, inputs: Any = ("source",), caps: MediaCaps = CAPS, pool: Any = ()) -> str:
    return stage_fingerprint(stage or Model(), inputs, caps, pool)


@pytest.mark.parametrize(
    "other",
    [
        Model(threshold=0.25),
        Model(names=("b", "a")),
        Model(names=()),
        Model(weights="w2"),
        Pool(),
    ],
)
def test_a_fingerprint_changes_with_what_can_change_the_output(other: Any) -> None:
    assert of(other) != of()


@pytest.mark.parametrize("other", [Model(timeout_s=9.0), Model(workers=64)])
def test_a_fingerprint_does_not_change_with_effort(other: Any) -> None:
    assert of(other) == of()


def test_a_parameter_that_came_later_counts_only_away_from_its_default() -> None:
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Grown(Model):
        mode: str = later("old")

    def fingerprint(stage: Stage) -> str:
        return stage_fingerprint(stage, ["source"], CAPS)

    old, new = Grown(), Grown(mode="new")
    assert result_parameters(old) == result_parameters(Model())
    assert result_parameters(new) == {**result_parameters(Model()), "mode": "new"}
    assert fingerprint(old) == fingerprint(Model()) != fingerprint(new)


def test_a_fingerprint_changes_with_name_and_version(monkeypatch: pytest.MonkeyPatch) -> None:
    before = of()
    monkeypatch.setattr(Model, "version", 2)
    second = of()
    monkeypatch.setattr(Model, "name", "other")
    assert len({before, second, of()}) == 3


def test_a_fingerprint_changes_with_its_inputs_but_not_with_their_order() -> None:
    assert of(inputs=["a", "b"]) == of(inputs=["b", "a", "a"])
    assert len({of(inputs=i) for i in (["a"], ["b"], ["a", "b"], [])}) == 4


@pytest.mark.parametrize("caps", [MediaCaps(max_pixels=10), MediaCaps(max_duration_s=1.0)])
def test_media_caps_count_only_for_a_stage_that_reads_media(caps: MediaCaps) -> None:
    assert of(caps=caps) == of()
    assert of(Model(column="image"), caps=caps) != of(Model(column="image"))


def test_the_pool_counts_for_a_global_stage() -> None:
    assert len({of(Pool(), pool=p) for p in ([], ["a"], ["a", "b"], ["a r1"])}) == 4
    assert of(Pool(memory=9), pool=["a"]) == of(Pool(), pool=["a"])
    assert of(Pool(distance=9), pool=["a"]) != of(Pool(), pool=["a"])


def test_a_digest_tells_types_apart_and_not_the_order_of_keys() -> None:
    assert len({digest(v) for v in (1, 1.0, "1", True, None, [1], {"1": 1})}) == 7
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest(frozenset({"x", "y"})) == digest(["x", "y"])
    assert digest(CAPS) == digest(dataclasses.asdict(CAPS))
    assert len(digest(1)) == 32
    with pytest.raises(TypeError, match="a complex cannot enter a fingerprint"):
        digest(1j)


RECIPE = """
name: {name}
source: {{use: url_table, path: {path}}}
stages:
  toy_length: {{{length}}}
  toy_double:{double}
"""


def state(tmp_path: Path, workspace: str = "ws", **parts: str) -> State:
    path = tmp_path / "in.jsonl"
    path.write_text('{"url": "u", "text": "t"}\n')
    parts = {"name": "a", "path": str(path), "length": "", "double": " {}"} | parts
    plan = make_plan(parse_recipe(RECIPE.format(**parts)))
    found = State(plan=plan, storage=Storage(str(tmp_path / workspace)), shards=())
    found.enter("toy_length")
    found.enter("toy_double")
    return found


def test_a_change_goes_down_the_chain_and_names_and_places_do_not_matter(tmp_path: Path) -> None:
    base = state(tmp_path).fingerprints
    assert state(tmp_path, name="b", workspace="elsewhere").fingerprints == base
    assert state(tmp_path, length="log: x, pause_s: 0.0").fingerprints == base
    changed = state(tmp_path, length="factor: 2").fingerprints
    assert changed["toy_length"] != base["toy_length"]
    assert changed["toy_double"] != base["toy_double"]


def test_a_gate_is_outside_its_own_stage_and_inside_those_that_read_it(tmp_path: Path) -> None:
    base = state(tmp_path).fingerprints
    own = state(tmp_path, double='\n    when: "num_letters > 3"').fingerprints
    assert own == base
    gated = state(tmp_path, length="""when: "text != 'x'" """).fingerprints
    assert gated["toy_length"] == base["toy_length"]
    assert gated["toy_double"] != base["toy_double"]
    other = state(tmp_path, length="""when: "text != 'y'" """).fingerprints
    assert other["toy_double"] not in (gated["toy_double"], base["toy_double"])


def test_how_a_source_reads_its_files_counts_for_their_index(tmp_path: Path) -> None:
    source = state(tmp_path).plan.recipe.source
    (file,) = source.files()
    name = index_name(source, file, 10)
    assert index_name(source, dataclasses.replace(file, token="later"), 10) != name
    assert index_name(source, file, 11) != name
    assert index_name(dataclasses.replace(source, bad_rows="null"), file, 10) != name
    assert source_key(source)[:2] == ["url_table", source.version]
