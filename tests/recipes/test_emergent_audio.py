"""Spoken names: what training and evaluation share, and that an export is triplets."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.recipes.test_scenes import RECIPES, run
from winnow.contracts.parameters import validate
from winnow.pipeline.study import load_study
from winnow.stages.sources.speech import SpeechSource
from winnow.stages.train._audio_samples import AUDIO_MEMBERS
from winnow.stages.train._shard_reader import read_shard
from winnow.stages.train.audio import AudioTrainer

STUDY = RECIPES / "ablations" / "emergent-audio.yaml"


def source(name: str, **changes: object) -> SpeechSource:
    values = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))["source"]
    values = {k: v for k, v in {**values, **changes}.items() if k != "use"}
    return SpeechSource(**validate(SpeechSource, values))


def test_sets_share_words_but_no_voice_and_no_picture() -> None:
    sets = {
        "train": source("spoken-names"),
        "validation": source("spoken-names-evaluation"),
        "test": source("spoken-names-evaluation", part="test", seed=13),
    }
    rows = {k: [s.world().row(i) for i in range(s.num_rows)] for k, s in sets.items()}
    voices = {k: {r.voice.variant for r in found} for k, found in rows.items()}
    grounds = {
        k: {(b.pattern, b.color) for r in found if r.picture for b in [r.picture.said.background]}
        for k, found in rows.items()
    }
    for one, two in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not voices[one] & voices[two]
        assert not grounds[one] & grounds[two]
    captions = {k: {r.text for r in found} for k, found in rows.items()}
    assert len(captions["test"]) >= 200
    assert captions["test"] <= captions["train"]


def test_the_arms_are_the_same_but_for_the_pairs() -> None:
    study = load_study(STUDY)
    trainers = {arm.name: study.changed_trainer(arm.rows) for arm in study.arms}
    told = {}
    for name, made in trainers.items():
        assert isinstance(made, AudioTrainer)
        told[name] = (made.pairs, made.shuffle_pairs)
        assert made.freeze == ("image", "text")
        assert made.init == "tiny"
    assert told == {
        "emergent": ({"image_audio": 1.0}, False),
        "shuffled": ({"image_audio": 1.0}, True),
        "direct": ({"audio_text": 1.0}, False),
    }
    assert len(study.settings.seeds) == 5


def test_an_export_is_triplets(tmp_path: Path) -> None:
    report = run("spoken-names-evaluation", tmp_path, "source.num_rows=6")
    folder = tmp_path / report.exports["evaluation"]
    tars = sorted(folder.glob("*.tar"))
    found = [s for tar in tars for s in read_shard(str(tar), lambda extension: True)]
    assert len(found) == 6
    for triplet in found:
        members = set(triplet) - {"__key__"}
        assert members & set(AUDIO_MEMBERS)
        assert {"jpg", "txt", "json"} <= members
