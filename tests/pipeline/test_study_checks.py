"""Mistakes of a study are found before anything trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from winnow.contracts.errors import RunError
from winnow.pipeline.ablation import run_study
from winnow.pipeline.run import RunOptions
from winnow.pipeline.study import load_study

from .studies import RECIPE, write_study

SPLIT = {"use": "split", "near_duplicates": False, "parts": {"train": 0.6, "test": 0.4}}


def _refused(folder: Path, message: str, **changes: Any) -> None:
    study = load_study(write_study(folder, **changes))
    with pytest.raises(RunError, match=message):
        run_study(study, RunOptions(workspace=str(folder / "w"), executor="inprocess"))
    assert not (folder / "w" / "trials").exists(), "nothing may be trained"


def test_a_primary_metric_that_nobody_measures(tmp_path: Path) -> None:
    primary = {"arm": "curated", "metrics": ["retrieval.recall@1"]}
    _refused(tmp_path, r"gives 'retrieval.recall@1'; they give .*mean_recall@1", primary=primary)


def test_a_set_that_cannot_be_measured_as_asked(tmp_path: Path) -> None:
    """All pictures are PNG: one class."""
    _refused(
        tmp_path,
        "the validation set cannot be measured as asked: zero_shot",
        evaluate={"zero_shot": {"label": "image_format"}},
        primary=None,
    )


def test_a_test_set_that_is_in_the_pool(tmp_path: Path) -> None:
    _refused(
        tmp_path,
        "48 rows of raw are in the test set too",
        evaluation={"test": {"keep": ["decodable"]}},
    )


def test_validation_and_test_that_share_rows(tmp_path: Path) -> None:
    test = {"recipe": "test.yaml", "keep": ["decodable"]}
    _refused(
        tmp_path,
        "16 rows of test are in the validation set too",
        evaluation={"validation": test, "test": test},
    )


def test_equal_pictures_under_other_names(tmp_path: Path) -> None:
    write_study(tmp_path)
    picture = Image.open(tmp_path / "test" / "000.png")
    (tmp_path / "pool" / "copy.png").write_bytes((tmp_path / "test" / "000.png").read_bytes())
    (tmp_path / "pool" / "copy.txt").write_text("another name for it")
    assert picture.size == (72, 72)
    _refused(tmp_path, "1 pictures of equal bytes of raw are in the test set too")


def test_a_split_keeps_the_parts_apart(tmp_path: Path) -> None:
    part = {"use": "split_is", "on_null": "drop"}
    study = write_study(
        tmp_path,
        stages={"split": SPLIT},
        pool={"keep": ["decodable"], "add": {"part": {**part, "parts": ["train"]}}},
        evaluation={"test": {"keep": ["decodable"], "add": {"part": {**part, "parts": ["test"]}}}},
        trial={"use": "contrastive", "model": "nano", "batch_size": 8, "device": "cpu"},
        arms={"raw": {"keep": [], "random": False}},
        primary=None,
        samples_seen=8,
    )
    outcome = run_study(
        load_study(study),
        RunOptions(workspace=str(tmp_path / "w"), executor="inprocess"),
        seeds=[0],
    )
    assert outcome.failures == {}
    sizes = (outcome.prepared.arms["raw"].num_rows, outcome.prepared.sets[0].num_rows)
    assert sum(sizes) == 48


def test_what_is_described_must_have_a_mean(tmp_path: Path) -> None:
    _refused(tmp_path, "describe: there is no column 'clip_score'", describe=["clip_score"])
    _refused(tmp_path, "describe: caption_shape is a string", describe=["caption_shape"])


def test_folds_must_be_the_parts_of_the_split(tmp_path: Path) -> None:
    parts = {str(k): 0.25 for k in range(4)}
    _refused(
        tmp_path,
        "has folds=2, but the stage fold writes 0, 1, 2, 3 into fold",
        stages={"fold": {**SPLIT, "parts": parts, "column": "fold"}},
        scorers={"noisy": {"column": "noisy", "folds": 2}},
    )


def test_the_truth_may_not_come_in_by_a_stage(tmp_path: Path) -> None:
    """A score of true captions would select by the truth, whatever its name."""
    study = write_study(
        tmp_path,
        recipe="scenes.yaml",
        evaluation={"test": {"recipe": "test.yaml", "keep": ["decodable"]}},
        stages={"judge": {"use": "clip_score", "text_column": "truth_caption", "column": "judge"}},
        arms={
            "curated": {
                "keep": [],
                "add": {
                    "judged": {
                        "use": "min_clip_score", "column": "judge", "threshold": 0.3,
                        "on_null": "drop",
                    }
                },
            }
        },
    )  # fmt: skip
    (tmp_path / "scenes.yaml").write_text(
        "name: s\nsource: {use: scenes, num_rows: 10}\nstages: {download: {}, image_info: {}}\n"
        "filters:\n  decodable: {use: has_media, error_column: image_info_error, on_null: drop}\n"
        "export: {train: {use: webdataset}}\n"
    )
    with pytest.raises(RunError, match="the filter judged reads judge, which a stage made of the"):
        run_study(
            load_study(study), RunOptions(workspace=str(tmp_path / "w"), executor="inprocess")
        )


def test_rows_without_a_caption_are_in_no_arm(tmp_path: Path) -> None:
    """A trainer leaves them out; then an arm and its control would not be of one size."""
    write_study(tmp_path)
    for index in range(0, 12, 2):
        (tmp_path / "pool" / f"{index:03}.txt").write_text("  \n")
    outcome = run_study(
        load_study(write_study(tmp_path)),
        RunOptions(workspace=str(tmp_path / "w"), executor="inprocess"),
        arms=["raw"],
        seeds=[0],
    )
    assert outcome.prepared.pool_rows == outcome.prepared.arms["raw"].num_rows == 42


def test_look_alikes_of_evaluation_pictures_leave_the_pool_for_all_arms(tmp_path: Path) -> None:
    """A darker copy of a test picture: other bytes, the same picture."""
    recipe = {**RECIPE, "stages": {**RECIPE["stages"], "perceptual_hash": {}}}
    study = write_study(tmp_path, apart={"min_detail": 0.0, "thumbnail_distance": 4.0})
    for part in ("pool", "validation", "test"):
        source = {"use": "folder", "path": str(tmp_path / part)}
        (tmp_path / f"{part}.yaml").write_text(yaml.safe_dump({**recipe, "source": source}))
    chance = np.random.default_rng(5)
    rough = Image.fromarray(chance.integers(0, 255, (9, 9, 3), np.uint8)).resize((72, 72))
    rough.save(tmp_path / "test" / "rough.png")
    (tmp_path / "test" / "rough.txt").write_text("a rough picture")
    rough.point(lambda v: int(v * 0.97)).save(tmp_path / "pool" / "copy.png")
    (tmp_path / "pool" / "copy.txt").write_text("a copy of it")
    options = RunOptions(workspace=str(tmp_path / "w"), executor="inprocess")
    outcome = run_study(load_study(study), options, arms=["raw"], seeds=[0], train=False)
    folder = tmp_path / "w" / outcome.prepared.arms["raw"].folder
    kept = pq.read_table(folder / "manifest.parquet", columns=["path", "near_evaluation"])
    assert "copy.png" not in kept["path"].to_pylist()
    assert set(kept["near_evaluation"].to_pylist()) == {False}
    assert 0 < len(kept) < 49


def _copied_part(folder: Path, count: int) -> str:
    """A recipe of ``count`` pictures of the pool, with their captions."""
    write_study(folder)
    (folder / "own").mkdir()
    for name in sorted((folder / "pool").iterdir())[: 2 * count]:
        (folder / "own" / name.name).write_bytes(name.read_bytes())
    recipe = {**RECIPE, "source": {"use": "folder", "path": str(folder / "own")}}
    (folder / "own.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return "own.yaml"


def test_rows_that_trained_a_model_that_judges_them(tmp_path: Path) -> None:
    own = _copied_part(tmp_path, 12)
    study = write_study(
        tmp_path,
        stages={"score": {"use": "clip_score", "model": "trained:judge", "column": "score"}},
        models={"judge": {"recipe": own, "keep": ["decodable"], "samples_seen": 16,
                          "trial": {"batch_size": 8}}},
    )  # fmt: skip
    options = RunOptions(workspace=str(tmp_path / "w"), executor="inprocess")
    said = "12 pictures of equal bytes of raw trained the model judge|12 rows of raw trained"
    with pytest.raises(RunError, match=said):
        run_study(load_study(study), options, arms=["raw"])


def test_a_scorer_s_rows_are_held_against_the_evaluation_sets(tmp_path: Path) -> None:
    """The arm has calm captions only; the scorer learns from every row, the shared one too."""
    write_study(tmp_path)
    source = tmp_path / "test" / "000.png"
    (tmp_path / "pool" / "copy.png").write_bytes(source.read_bytes())
    (tmp_path / "pool" / "copy.txt").write_text("CLICK HERE")
    calm = {"use": "where", "expression": 'text != "CLICK HERE"', "on_null": "drop"}
    study = write_study(
        tmp_path,
        stages={"fold": {"use": "split", "parts": {"0": 0.5, "1": 0.5}, "column": "fold",
                         "near_duplicates": False}},
        scorers={"own": {"column": "own_score", "folds": 2, "samples_seen": 16,
                         "keep": ["decodable"]}},
        arms={"curated": {"keep": ["decodable"], "add": {"calm": calm}}},
    )  # fmt: skip
    options = RunOptions(workspace=str(tmp_path / "w"), executor="inprocess")
    with pytest.raises(RunError, match="1 pictures of equal bytes of .* are in the test set too"):
        run_study(load_study(study), options)
    assert not (tmp_path / "w" / "trials").exists()
