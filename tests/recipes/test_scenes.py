"""The scenes recipes of the trials, end to end: a pool with noise, and frozen evaluation sets."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from winnow.pipeline.cli_report import find_state
from winnow.pipeline.recipe import load_recipe
from winnow.pipeline.run import RunOptions, RunReport, run_recipe
from winnow.pipeline.scoring import score_rows
from winnow.pipeline.storage import Storage

RECIPES = Path(__file__).parents[2] / "recipes"
NUM_POOL = 160


def run(name: str, workspace: Path, *sets: str) -> RunReport:
    recipe = load_recipe(RECIPES / f"{name}.yaml", list(sets))
    report = run_recipe(recipe, RunOptions(workspace=str(workspace), executor="inprocess"))
    assert report.exit_code == 0
    return report


def samples(folder: Path) -> list[dict[str, Any]]:
    """The samples of an export's shards: the .json with ``image``, a picture, and ``txt``."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                key, _, extension = member.name.partition(".")
                data = archive.extractfile(member)
                assert data is not None
                sample = found.setdefault(key, {})
                if extension == "json":
                    sample.update(json.load(data))
                elif extension == "txt":
                    sample["txt"] = data.read().decode()
                else:
                    sample["image"] = Image.open(io.BytesIO(data.read()))
    return list(found.values())


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunReport]:
    workspace = tmp_path_factory.mktemp("pool")
    sets = [f"source.num_rows={NUM_POOL}", "source.noise.slow_link=0.0"]
    return workspace, run("scenes-pool", workspace, *sets)


@pytest.mark.parametrize("part", ["validation", "test"])
def test_evaluation_sets_are_clean_square_and_small(part: str, tmp_path: Path) -> None:
    sets = ["source.num_rows=60", f"source.part={part}"]
    report = run("scenes-evaluation", tmp_path, *sets)
    found = samples(tmp_path / report.exports["evaluation"])
    assert len(found) == 60
    for sample in found:
        assert sample["image"].size == (72, 72)
        assert sample["truth_kind"] == "clean"
        assert sample["txt"] == sample["text"] == sample["truth_caption"]
        assert sample["truth_hard_negative"] != sample["txt"]
        assert sample["phash"]  # what near-duplicates of the pool are looked for by
    for name in ("truth_swap_attribute", "truth_swap_relation", "truth_swap_count", "truth_class"):
        assert sum(sample[name] is not None for sample in found) >= 8


def test_the_pool_has_the_noise_that_it_says() -> None:
    recipe = yaml.safe_load((RECIPES / "scenes-pool.yaml").read_text(encoding="utf-8"))
    source = recipe["source"]
    assert sum(source["noise"].values()) == pytest.approx(0.6, abs=0.01)
    assert 0.25 <= source["noise"]["swapped_caption"] <= 0.3
    # above tiny ones, below near-duplicates that lost their edge
    assert 60 < recipe["filters"]["min_image_size"]["side"] < 0.95 * source["sizes"][0]


def test_pool_and_evaluation_sets_differ_in_part_and_noise_only() -> None:
    sources = [
        yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))["source"]
        for name in ("scenes-pool", "scenes-evaluation")
    ]
    assert [source.pop("part") for source in sources] == ["train", "validation"]
    for source in sources:
        del source["noise"], source["num_rows"]
    assert sources[0] == sources[1]


def test_the_filters_keep_what_is_clean(pool: tuple[Path, RunReport]) -> None:
    workspace, report = pool
    storage = Storage(str(workspace))
    state = find_state(storage, report.selection)
    entries = {e["filter"]: e for e in score_rows(storage, state.plan, state, report.summary) or ()}
    assert entries["overall"]["clean_share"] > 0.9
    assert entries["overall"]["clean_kept"] > 0.9
    assert entries["min_clip_score"]["precision"] > 0.9
    assert entries["min_clip_score"]["recall"] > 0.9
    assert entries["min_image_size"]["precision"] == 1.0
    assert entries["has_media"]["recall"] == 1.0


def test_the_kept_rows_are_ready_to_train_on(pool: tuple[Path, RunReport]) -> None:
    workspace, report = pool
    found = samples(workspace / report.exports["train"])
    assert 0.3 * NUM_POOL < len(found) < 0.5 * NUM_POOL
    assert all(min(sample["image"].size) == 72 for sample in found)
    assert all(max(sample["image"].size) <= 76 for sample in found)  # crops of near-duplicates
    kinds = Counter(sample["truth_kind"] for sample in found)
    assert kinds["clean"] > 0.85 * len(found)
