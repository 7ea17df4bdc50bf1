"""CapFilt and the comparison of connectors, end to end and small: what is learned from what."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from winnow.pipeline.cli import main

RECIPES = Path(__file__).parents[2] / "recipes"


def _ablate(name: str, workspace: Path, changes: list[str], *more: str) -> str:
    arguments = [part for change in changes for part in ("--set", change)]
    outcome = CliRunner().invoke(
        main,
        ["ablate", str(RECIPES / name), "-w", str(workspace), "--executor", "inprocess"]
        + [*more, *arguments],
        catch_exceptions=False,
    )
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


@pytest.fixture(scope="module")
def capfilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("capfilt")
    trusted = '["source.part=train", "source.seed=101", "source.num_rows=40"]'
    noise = "source.noise={swapped_caption: 0.5, boilerplate_caption: 0.1}"
    changes = [
        f'set=["{noise}", "source.num_rows=80", "rows_per_shard=40"]',
        *(f"models.{name}.set={trusted}" for name in ("captioner", "filter")),
        *(f"models.{name}.samples_seen=64" for name in ("captioner", "captioner_2")),
        *(f"models.{name}.trial.batch_size=8" for name in ("captioner", "captioner_2")),
        "models.filter.samples_seen=64",
        "models.filter.trial.batch_size=32",
        'evaluation.validation.set=["source.part=validation", "source.num_rows=30"]',
        'evaluation.test.set=["source.part=test", "source.num_rows=30"]',
        "samples_seen=64",
        "trial.batch_size=8",
        # Anything that an untrained captioner says passes; the raw captions are judged.
        *(f"stages.{name}.threshold=-1.0" for name in ("passing", "second")),
        *(f"stages.{name}.keep_cut=true" for name in ("captions", "captions_2", "sampled")),
        *(f"stages.{name}.max_tokens=8" for name in ("captions", "captions_2", "sampled")),
    ]
    arms = ("raw", "synthetic", "all_passing", "raw_else_synthetic", "second_round")
    named = [part for arm in arms for part in ("--arm", arm)]
    _ablate("capfilt.yaml", workspace, changes, "--seed", "0", *named)
    return workspace


def _recipe(workspace: Path, name: str) -> tuple[dict, Path]:
    """The recipe of an arm or a model, and what it exported."""
    for file in sorted((workspace / "runs").glob("*.yaml")):
        recipe = yaml.safe_load(file.read_text())
        if recipe["name"] == f"capfilt-{name}":
            made = yaml.safe_load(file.with_suffix(".json").read_text())
            return recipe, workspace / made["exports"]["train"]
    pytest.fail(f"there is no recipe of {name}")


def test_every_arm_is_trained_and_has_its_captions(capfilt: Path) -> None:
    rows = pq.read_table(capfilt / "ablations/capfilt/part/metrics.parquet").to_pylist()
    done = {(r["arm"], r["kind"]) for r in rows if r["status"] == "done"}
    assert {("raw", "arm"), ("synthetic", "arm"), ("second_round", "arm")} <= done
    assert ("random:raw_else_synthetic", "random") in done
    manifest = pq.read_table(_recipe(capfilt, "synthetic")[1] / "manifest.parquet")
    for row in manifest.to_pylist():
        assert row["synthetic"] == row["captions"][0]
        assert row["synthetic_source"] == "synthetic"


def test_a_choice_keeps_what_passes_and_says_where_it_is_from(capfilt: Path) -> None:
    _, folder = _recipe(capfilt, "raw_else_synthetic")
    rows = pq.read_table(folder / "manifest.parquet").to_pylist()
    assert rows
    for row in rows:
        if row["raw_match"] >= 0.5:
            assert (row["first"], row["first_source"]) == (row["text"], "raw")
        else:
            assert (row["first"], row["first_source"]) == (row["captions"][0], "synthetic")
            assert row["match"][0] >= 0.5
        assert row["first_score"] >= 0.5


def test_all_that_passes_is_there_for_the_trainer(capfilt: Path) -> None:
    _, folder = _recipe(capfilt, "all_passing")
    rows = pq.read_table(folder / "manifest.parquet").to_pylist()
    assert {len(row["passing_all"]) for row in rows} == {2}
    for row in rows:
        assert set(row["passing_all"]) == {row["text"], *row["captions"]}


def test_no_captioner_of_the_second_round_saw_the_rows_that_it_captions(capfilt: Path) -> None:
    seen = {}
    for fold in (0, 1):
        recipe, folder = _recipe(capfilt, f"model-captioner_2-fold-{fold}")
        assert "captions_2" not in recipe["stages"]
        seen[fold] = {r["half"] for r in pq.read_table(folder / "manifest.parquet").to_pylist()}
    assert seen == {0: {"1"}, 1: {"0"}}
    recipe, folder = _recipe(capfilt, "second_round")
    models = recipe["stages"]["captions_2"]["models"]
    assert len(set(models)) == 2
    rows = pq.read_table(folder / "manifest.parquet").to_pylist()
    assert {(r["half"], r["captions_2_model"]) for r in rows if r["captions_2"]} == {
        ("0", next(r["captions_2_model"] for r in rows if r["half"] == "0")),
        ("1", next(r["captions_2_model"] for r in rows if r["half"] == "1")),
    }
    assert len({r["captions_2_model"] for r in rows if r["captions_2"]}) == 2


def test_the_trusted_rows_are_not_in_the_pool(capfilt: Path) -> None:
    trusted = pq.read_table(_recipe(capfilt, "model-captioner")[1] / "manifest.parquet")
    pool = pq.read_table(_recipe(capfilt, "raw")[1] / "manifest.parquet")
    assert not set(trusted["image_digest"].to_pylist()) & set(pool["image_digest"].to_pylist())


def test_connectors_are_compared_on_the_same_rows(tmp_path: Path) -> None:
    changes = [
        'set=["source.num_rows=24"]',
        'evaluation.test.set=["source.num_rows=6"]',
        "samples_seen=32",
        "trial.batch_size=8",
        "trial.num_queries=4",
        "trial.tower=tiny",
        "evaluate={pope: {objects: truth_objects}, caption_quality: {max_tokens: 4}}",
        "primary.metrics=[pope.accuracy]",
    ]
    arms = ("mlp", "perceiver_prefix", "perceiver_xattn")
    named = [part for arm in arms for part in ("--arm", arm)]
    _ablate("ablations/connectors.yaml", tmp_path, changes, "--seed", "0", *named)
    folder = tmp_path / "ablations/connectors/part"
    rows = pq.read_table(folder / "metrics.parquet").to_pylist()
    done = [r for r in rows if r["status"] == "done"]
    assert {r["arm"] for r in done} == set(arms)
    assert {r["num_rows"] for r in done} == {24}
    assert {r["metric"].partition(".")[0] for r in done} == {"pope", "caption_quality", "model"}
    tokens = {r["arm"]: r["value"] for r in done if r["metric"] == "model.image_tokens"}
    assert tokens == {"mlp": 16, "perceiver_prefix": 4, "perceiver_xattn": 4}
    assert "4 image tokens" in (folder / "index.html").read_text(encoding="utf-8")
    contrasts = pq.read_table(folder / "contrasts.parquet").to_pylist()
    primary = [c for c in contrasts if c["role"] == "primary"]
    assert {(c["arm"], c["other"]) for c in primary} == {("perceiver_prefix", "mlp")}
