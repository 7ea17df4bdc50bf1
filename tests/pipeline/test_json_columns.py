"""What users have in the .json of their shards, from the source through the export to a lesson."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.stages.train.projector_parts import tower
from tests.stages.train.test_shards import png, write_tar
from winnow.contracts.errors import RecipeError
from winnow.models.conversation import Turn
from winnow.models.vision_tower import VisionTower
from winnow.pipeline.arms import Recipes
from winnow.pipeline.plan import make_plan
from winnow.pipeline.run import RunReport
from winnow.pipeline.study import load_study
from winnow.stages.train._projector_lessons import LessonReading, Lessons, read_lessons
from winnow.stages.train._projector_pictures import PictureWriter
from winnow.stages.train._projector_senses import SensesWriter

Runner = Callable[..., RunReport]
Samples = dict[str, dict[str, bytes]]

INTERLEAVED = "list<struct<text: string, image: int32>>"
CONVERSATIONS = "list<struct<from: string, value: string>>"
COLUMNS = {"interleaved": INTERLEAVED, "conversations": CONVERSATIONS,
           "truth_objects": "list<string>", "width": "int32"}  # fmt: skip
TALK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a cat"}]
NUM_ROWS = 6


@pytest.fixture(scope="module")
def eye(tmp_path_factory: pytest.TempPathFactory) -> VisionTower:
    return VisionTower.load(tower(tmp_path_factory.mktemp("tower")), device="cpu")


def sample(row: int) -> dict[str, bytes]:
    """Two pictures and a text about them; every other row has words about picture 1 only."""
    said = [{"image": 0, "text": None}, {"text": f"first of {row}"}, {"image": 1},
            {"text": f"second of {row}", "image": None}]  # fmt: skip
    document = {
        "interleaved": said if row % 2 else said[2:],
        "conversations": [*TALK, {"from": "human", "value": "And?"},
                          {"from": "gpt", "value": f"number {row}"}],
        "truth_objects": ["cat"] * row,
        "width": 8,
    }  # fmt: skip
    data = json.dumps(document).encode()
    return {"png": png(row), "1.png": png(row + 50), "txt": b"words", "json": data}


def recipe(shard: str, columns: dict[str, str] | None) -> dict[str, Any]:
    source: dict[str, Any] = {"use": "webdataset", "path": shard}
    if columns is not None:
        source |= {"json_columns": columns, "rename": {"width": "original_width"}}
    return {"name": "own-shards", "rows_per_shard": 4, "source": source,
            "stages": {"image_info": {}}, "filters": {},
            "export": {"train": {"use": "webdataset", "rows_per_file": 4}}}  # fmt: skip


def exported(run: Runner, tmp_path: Path, shard: str) -> list[str]:
    run(yaml.safe_dump(recipe(shard, COLUMNS)))
    (folder,) = (tmp_path / "ws" / "export").iterdir()
    return [str(path) for path in sorted(folder.glob("*.tar"))]


def lessons(eye: VisionTower, folder: Path, shards: list[str], **reading: Any) -> Lessons:
    pictures = PictureWriter(eye, folder, torch.device("cpu"), keep_features=False)
    return read_lessons(shards, LessonReading(**reading), eye, SensesWriter(pictures, None))


def seen(found: Lessons) -> dict[tuple[str | int, ...], torch.Tensor]:
    """What is learned: the parts of each row, and the features of its pictures."""
    features = {}
    for lesson, first in zip(found.lessons, found.senses.picture_of, strict=True):
        assert first >= 0
        features[lesson.parts] = found.senses.pictures.features([first, first + 1])[0]
    return features


def test_texts_with_two_pictures_are_learned_from_the_export(
    run: Runner, eye: VisionTower, tmp_path: Path
) -> None:
    samples = {f"k{row}": sample(row) for row in range(NUM_ROWS)}
    torn = json.dumps({"interleaved": [{"text": "words"}, {"image": "1"}]}).encode()
    shard = write_tar(tmp_path / "own.tar", {**samples, "torn": {**sample(9), "json": torn}})
    reading = {"interleaved": "interleaved"}
    own = lessons(eye, tmp_path, [shard], **reading)
    found = lessons(eye, tmp_path, exported(run, tmp_path, shard), **reading)
    assert found.skipped == own.skipped == {"bad interleaved text": 1}
    assert {lesson.parts for lesson in found.lessons} == {
        (0, f"first of {row}", 1, f"second of {row}") if row % 2 else (1, f"second of {row}")
        for row in range(NUM_ROWS)
    }
    before, after = seen(own), seen(found)
    assert before.keys() == after.keys()
    for parts, features in before.items():
        assert torch.equal(after[parts], features)
        assert not torch.equal(features[0], features[1])


def test_conversations_and_objects_are_learned_from_the_export(
    run: Runner, eye: VisionTower, tmp_path: Path
) -> None:
    samples = {f"k{row}": sample(row) for row in range(NUM_ROWS)}
    shards = exported(run, tmp_path, write_tar(tmp_path / "own.tar", samples))
    found = lessons(eye, tmp_path, shards, conversations="conversations")
    assert found.skipped == {}
    assert {lesson.turns for lesson in found.lessons} == {
        (Turn("What?", "a cat"), Turn("And?", f"number {row}")) for row in range(NUM_ROWS)
    }
    documents = []
    for path in shards:
        with tarfile.open(path) as tar:
            members = [tar.extractfile(info) for info in tar if info.name.endswith(".json")]
            documents += [json.loads(member.read()) for member in members if member is not None]
    assert sorted(len(one["truth_objects"]) for one in documents) == list(range(NUM_ROWS))
    assert {(one["original_width"], *set(one["truth_objects"])) for one in documents} == {
        (8,),
        (8, "cat"),
    }
    # And `metadata` is what the user wrote, byte for byte.
    written = {data["json"].decode() for data in samples.values()}
    assert {one["metadata"] for one in documents} == written


def test_an_arm_exports_the_columns_that_its_trial_learns_from(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "own.tar", {f"k{row}": sample(row) for row in range(NUM_ROWS)})
    study = {
        "name": "study", "recipe": "pool.yaml", "evaluation": {"test": {"keep": []}},
        "trial": {"use": "projector", "connector": "perceiver_xattn",
                  "interleaved": "interleaved"},
        "evaluate": {"caption_quality": {}}, "samples_seen": 64, "arms": {"raw": {"keep": []}},
    }  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    for columns in (None, COLUMNS):
        (tmp_path / "pool.yaml").write_text(yaml.safe_dump(recipe(shard, columns)))
        loaded = load_study(tmp_path / "study.yaml")
        (arm,) = loaded.arms
        if columns is None:
            with pytest.raises(RecipeError, match="interleaved"):
                make_plan(Recipes(loaded).arm(arm))
        else:
            plan = make_plan(Recipes(loaded).arm(arm))
            (export,) = plan.recipe.exports
            assert export.exporter.columns == ("interleaved",)


@pytest.mark.parametrize(
    ("trial", "kept"),
    [
        ({"connector": "perceiver_xattn", "interleaved": "interleaved"}, 3),
        ({"connector": "mlp", "conversations": "conversations"}, 5),
        ({"connector": "mlp"}, 2),
    ],
)
def test_a_pool_keeps_what_its_trial_can_learn_from(
    tmp_path: Path, run: Runner, trial: dict[str, Any], kept: int
) -> None:
    """Of 6 rows 0 and 1 have a caption, 0, 1 and 2 an interleaved text, 1 to 4 turns; 5 nothing."""
    samples = {}
    for row in range(NUM_ROWS):
        data = sample(row)
        document = json.loads(data["json"])
        if row > 1:
            data.pop("txt")
        if row > 2:
            document.pop("interleaved")
        if row not in range(1, 5):
            document.pop("conversations")
        samples[f"k{row}"] = {**data, "json": json.dumps(document).encode()}
    shard = write_tar(tmp_path / "own.tar", samples)
    study = {
        "name": "study", "recipe": "pool.yaml", "evaluation": {"test": {"keep": []}},
        "trial": {"use": "projector", **trial}, "evaluate": {"caption_quality": {}},
        "samples_seen": 64, "arms": {"raw": {"keep": []}},
    }  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    (tmp_path / "pool.yaml").write_text(yaml.safe_dump(recipe(shard, COLUMNS)))
    loaded = load_study(tmp_path / "study.yaml")
    chosen = Recipes(loaded).arm(loaded.arms[0])
    report = run(yaml.safe_dump(dict(chosen.resolved)))
    assert report.summary["kept"] == kept
