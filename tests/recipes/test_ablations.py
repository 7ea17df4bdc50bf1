"""The studies that ship: each plans; the smoke study runs, smaller than `make ablate-smoke`."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from winnow.pipeline.cli import main
from winnow.pipeline.study import load_study
from winnow.pipeline.study_results import study_lines

RECIPES = Path(__file__).parents[2] / "recipes"
SCENES = sorted((RECIPES / "ablations").glob("scenes-*.yaml"))


@pytest.mark.parametrize("path", SCENES, ids=lambda p: p.name)
def test_studies_on_scenes_plan(path: Path) -> None:
    lines = list(study_lines(load_study(path)))
    assert not [line for line in lines if line.startswith("warning")]
    assert any(line.startswith("primary contrast: curated against") for line in lines)


@pytest.mark.parametrize("name", ["openclipart-trial.yaml", "ablations/openclipart.yaml"])
def test_studies_on_open_clip_art_plan(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an empty table with the columns of the real one."""
    names = ("url", "text", "title", "keywords", "artist", "license")
    (tmp_path / "data/openclipart").mkdir(parents=True)
    table = pa.table({n: pa.array([], pa.string()) for n in names})
    pq.write_table(table, tmp_path / "data/openclipart/urls.parquet")
    monkeypatch.chdir(tmp_path)
    lines = list(study_lines(load_study(RECIPES / name)))
    assert "test set: has_media, part" in lines
    assert not [line for line in lines if line.startswith("warning")]


def test_the_smoke_study_runs(tmp_path: Path) -> None:
    changes = [
        'set=["source.num_rows=400", "rows_per_shard=100"]',
        'evaluation.validation.set=["source.part=validation", "source.num_rows=40"]',
        'evaluation.test.set=["source.part=test", "source.num_rows=40"]',
        "samples_seen=256",
    ]
    arguments = [part for change in changes for part in ("--set", change)]
    study = str(RECIPES / "ablations" / "smoke.yaml")
    outcome = CliRunner().invoke(
        main, ["ablate", study, "-w", str(tmp_path), "--executor", "inprocess", *arguments],
        catch_exceptions=False,
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.output
    folder = tmp_path / "ablations" / "ablate-smoke"
    rows = pq.read_table(folder / "metrics.parquet").to_pylist()
    assert {(r["arm"], r["kind"]) for r in rows} == {
        ("raw", "arm"), ("curated", "arm"), ("random:curated", "random"), ("oracle", "oracle"),
    }  # fmt: skip
    assert {r["metric"].partition(".")[0] for r in rows} == {"retrieval", "swaps", "modality_gap"}
    sizes = {r["arm"]: r["num_rows"] for r in rows}
    assert sizes["curated"] == sizes["random:curated"] < sizes["raw"]
    assert {"index.html", "verdict.png", "gap.svg"} <= {p.name for p in folder.iterdir()}
