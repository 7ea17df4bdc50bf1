"""What the shipped studies promise: who is compared with whom, on what, for how long."""

from __future__ import annotations

from pathlib import Path

import pytest

from winnow.models.checkpoint import architecture
from winnow.pipeline.study import Study, load_study
from winnow.stages.train.contrastive import ContrastiveTrainer
from winnow.stages.train.projector import ProjectorTrainer

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
FRACTIONS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0]
CONNECTORS = {
    "mlp",
    "linear",
    "qformer",
    "instruct_qformer",
    "perceiver_prefix",
    "perceiver_xattn",
}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def study(name: str) -> Study:
    return load_study(RECIPES / f"{name}.yaml")


def test_quality_against_quantity() -> None:
    found = study("ablations/scenes-quality-vs-quantity")
    settings, names = found.settings, {arm.name for arm in found.arms}
    for scorer in ("noisy", "packaged"):
        curve = [a.fraction for a in found.arms if a.name.startswith(f"{scorer}:")]
        assert curve == FRACTIONS
    curated = settings.arms["curated"]
    assert curated.keep == "all", "every cheap filter"
    left_out = {name for name in names if name.startswith("curated-without:")}
    assert len(left_out) == 9 and "curated-without:agree" in left_out
    assert "oracle" in names and settings.arms["raw"].keep == []
    assert (settings.budgets, settings.seeds) == ([1, 4], [0, 1, 2, 3, 4])
    assert settings.apart is not None and set(settings.evaluation) == {"validation", "test"}
    noisy = settings.scorers["noisy"]
    parts = (settings.stages["fold"] or {})["parts"]
    assert (noisy.folds, len(parts)) == (5, 5)
    assert (settings.stages["fold"] or {})["near_duplicates"] is True
    assert "noisy rows" in noisy.label and "in-distribution" in settings.scorers["packaged"].label
    assert settings.primary is not None
    assert {m.partition(".")[0] for m in settings.primary.metrics} == {
        "retrieval",
        "zero_shot",
        "swaps",
    }


def test_open_clip_art_is_split_by_artist_and_look() -> None:
    for name in ("ablations/openclipart", "openclipart-trial"):
        settings = study(name).settings
        split = settings.stages["split"] or {}
        assert split["group_by"] == ["artist"] and split["near_duplicates"] is True
        assert settings.apart is not None
        test = settings.evaluation["test"]
        assert [rule["use"] for rule in test.add.values()] == ["split_is"] and test.keep == []
    assert len(study("ablations/openclipart").settings.seeds) == 5


def test_the_smoke_study_is_small() -> None:
    found = study("ablations/smoke")
    assert found.settings.samples_seen <= 15_000
    assert {a.name for a in found.arms} == {"raw", "curated", "oracle"}  # and random rows: four
    assert [a.name for a in found.arms if a.rows.random and not a.is_oracle] == ["curated"]
    assert (found.settings.seeds, found.settings.budgets) == ([0], [1])


def test_datacomp_s_small_scale_is_the_paper_s() -> None:
    found = study("datacomp-small")
    trainer = found.trainer
    assert isinstance(trainer, ContrastiveTrainer)
    assert (trainer.model, trainer.batch_size, trainer.learning_rate) == ("ViT-B-32", 4096, 5e-4)
    assert trainer.weight_decay == 0.2
    assert round(trainer.warmup * found.settings.samples_seen / trainer.batch_size) == 500
    assert found.settings.samples_seen == 12_800_000
    published = {(p.label, p.fraction): p.value for p in found.settings.published}
    clip = {f: v for (label, f), v in published.items() if label == "CLIP L/14"}
    assert clip == {0.1: 0.021, 0.2: 0.042, 0.3: 0.051, 0.4: 0.050, 0.5: 0.045, 0.75: 0.035}
    random = {f: v for (label, f), v in published.items() if label == "random"}
    assert random == {0.1: 0.010, 0.25: 0.022, 0.5: 0.027, 0.75: 0.028}
    assert published["no filter", 1.0] == 0.025
    assert "Only parsed and planned" in found.settings.note


@pytest.mark.parametrize("name", ["connectors", "connectors-as-published"])
def test_connectors_share_everything_but_themselves(name: str) -> None:
    found = study(f"ablations/{name}")
    trainers = {arm.name: found.changed_trainer(arm.rows) for arm in found.arms}
    size = architecture("patches")["model_cfg"]["vision_cfg"]
    num_patches = (size["image_size"] // size["patch_size"]) ** 2
    assert num_patches >= 196
    for arm, trainer in trainers.items():
        assert isinstance(trainer, ProjectorTrainer)
        assert (trainer.connector, trainer.tower, trainer.language_model) == (
            arm,
            "patches",
            "tiny-lm",
        )
        assert 4 * trainer.num_queries <= num_patches
        # LLaVA's connectors train the language model in their second stage; no other does.
        learns = name == "connectors-as-published" and arm in ("mlp", "linear")
        assert trainer.schedule == ("llava" if learns else "connector")
    assert set(trainers) == CONNECTORS - ({"perceiver_prefix"} if "published" in name else set())
    asked = {"caption_quality", "pope", "chair", "fact_errors", "question_answering", "grounding"}
    assert set(found.evaluations) == asked
    assert {arm.rows.keep == [] and not arm.rows.random for arm in found.arms} == {True}


def test_capfilt_has_its_policies_and_a_pool_of_bad_captions() -> None:
    found = study("capfilt")
    (change,) = found.settings.set
    noise = change.partition("{")[2].rstrip("}").split(",")
    kinds = dict(part.split(": ") for part in noise)
    bad = sum(float(v) for k, v in kinds.items() if k.strip().endswith("_caption"))
    assert bad == pytest.approx(0.6)
    assert {arm.name for arm in found.arms} == {
        "raw",
        "raw_filtered",
        "synthetic",
        "better",
        "all_passing",
        "mixed",
        "raw_else_synthetic",
        "sampled",
        "second_round",
        "oracle",
    }
    models = found.settings.models
    assert {name: model.recipe is not None for name, model in models.items()} == {
        "captioner": True,
        "filter": True,
        "captioner_2": False,
    }
    assert models["captioner_2"].folds == 2, "nobody captions what it learned from"
    primary = found.settings.primary
    assert primary is not None
    assert (primary.arm, primary.against) == ("raw_else_synthetic", "raw_filtered")
