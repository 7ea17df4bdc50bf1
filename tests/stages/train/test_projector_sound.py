"""The trainer "projector" with an audio tower: what it hears, what it drops, that it goes on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.models.projector_audio_parts import audio_tower, chord
from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.parameters import result_parameters, validate
from winnow.contracts.trial import Dataset
from winnow.models.audio_tower import Frames
from winnow.models.projector import build_projector
from winnow.models.projector_audio import FrozenAudioTower
from winnow.models.projector_files import find_projector, load_projector
from winnow.stages._audio import encode_audio
from winnow.stages.train._projector_sound import (
    ModalityDropout,
    Senses,
    Sounds,
    SoundWriter,
    heard_frames,
)
from winnow.stages.train.projector import ProjectorTrainer

from .cards import COLORS, card, write_shard
from .projector_parts import language_model, tower

NAMES = list(COLORS)


def _sample(index: int) -> dict[str, bytes]:
    """A card and a chord, of one colour each: only both together know the caption."""
    one, two = NAMES[index % 4], NAMES[index // 4 % 4]
    return {
        "png": card(COLORS[one], index, (32, 32), "PNG"),
        "flac": encode_audio(chord(NAMES.index(two), index)[None], 16_000, "flac"),
        "txt": f"a {one} card next to {two}".encode(),
        "json": json.dumps({"seen": one, "heard": two}).encode(),
    }


def _without(sample: dict[str, bytes], *names: str) -> dict[str, bytes]:
    return {name: data for name, data in sample.items() if name not in names}


def _dataset(folder: Path, samples: list[dict[str, bytes]], name: str = "train") -> Dataset:
    path = write_shard(folder / f"{name}.tar", samples)
    return Dataset(name=name, shards=(path,), digest="00", num_rows=len(samples))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """16 rows with both, 4 without a picture, 4 without a sound, 4 that cannot be used."""
    rows = [_sample(i) for i in range(16)]
    rows += [_without(_sample(i), "png") for i in range(16, 20)]
    rows += [_without(_sample(i), "flac") for i in range(20, 23)]
    rows += [{**_sample(23), "flac": b"no sound"}]
    rows += [_without(_sample(24), "png", "flac"), _without(_sample(25), "png", "txt")]
    rows += [{**_without(_sample(26), "flac"), "png": b"no picture"}]
    rows += [{**_sample(27), "png": b"", "flac": b"RIFF"}]
    return _dataset(tmp_path_factory.mktemp("data"), rows)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Towers and a language model of a few thousand weights."""
    folder = tmp_path_factory.mktemp("parts")
    return {
        "tower": tower(folder / "tower"),
        "language_model": language_model(folder / "lm"),
        "audio_tower": audio_tower(folder / "ears"),
    }


def _trainer(parts: dict[str, str], **parameters: Any) -> ProjectorTrainer:
    defaults: dict[str, Any] = {
        "batch_size": 8, "learning_rate": 3e-3, "device": "cpu", "checkpoint_samples": 0,
        "num_queries": 2, "depth": 1, "heads": 2, "audio_queries": 2,
    }  # fmt: skip
    return ProjectorTrainer(**{**parts, **defaults, **parameters})


def _weights(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.safetensors"))}


def test_it_learns_from_both_and_answers_about_either(
    data: Dataset, parts: dict[str, str], tmp_path: Path
) -> None:
    trainer = _trainer(
        parts, schedule="llava", first_share=0.1, second_learning_rate=5e-3, batch_size=16
    )
    report = trainer.train(data, tmp_path / "model", num_samples=2400, seed=0)
    assert report["data"]["skipped"] == {
        "no image and no audio": 1, "no caption": 1, "undecodable and no audio": 1,
        "no image and audio undecodable": 1,
    }  # fmt: skip
    found = {name: report["data"][name] for name in ("num_samples", "num_pictures")}
    assert found == {"num_samples": 24, "num_pictures": 20}
    assert report["data"]["num_recordings"] == 20
    assert report["data"]["without_picture"] == report["data"]["without_recording"] == 4
    assert report["data"]["unreadable"] == {"audio undecodable": 1}
    assert report["model"]["modality_dropout"] == 0.25
    held_out = [_sample(i) for i in range(1000, 1016)]
    held_out += [_without(_sample(i), "png") for i in range(1016, 1020)]
    held_out += [_without(_sample(i), "flac") for i in range(1020, 1024)]
    held_out += [_without(_sample(5), "flac", "png")]
    view = trainer.load(tmp_path / "model", _dataset(tmp_path, held_out, "test"), ("seen", "heard"))
    assert view.rows["key"].to_pylist() == [f"key{i:04d}" for i in range(24)]
    assert view.facts["samples_without_both"] == 1
    assert view.facts["rows_without_picture"] == view.facts["rows_without_recording"] == 4
    answers = view.generate(list(range(23, -1, -1)), [trainer.prompt] * 24, 12)[::-1]
    said = [answer.text.split() for answer in answers]
    assert all(len(words) == 6 for words in said)
    seen, heard = view.rows["seen"].to_pylist(), view.rows["heard"].to_pylist()
    rows = [i for i in range(24) if not 16 <= i < 20]
    assert np.mean([said[i][1] == seen[i] for i in rows]) > 0.9
    rows = list(range(20))
    assert np.mean([said[i][5] == heard[i] for i in rows]) > 0.9


@pytest.mark.parametrize("missing", ["png", "flac"])
def test_one_modality_alone_trains(missing: str, parts: dict[str, str], tmp_path: Path) -> None:
    """Nothing is dropped then: the other null learns, and no row has two."""
    rows = [_without(_sample(i), missing) for i in range(8)]
    trainer = _trainer(parts, modality_dropout=0.5)
    report = trainer.train(_dataset(tmp_path, rows), tmp_path / "out", num_samples=16, seed=0)
    counts = report["data"]["num_pictures"], report["data"]["num_recordings"]
    assert counts == ((0, 8) if missing == "png" else (8, 0))
    config = find_projector(str(tmp_path / "out")).config
    begun = build_projector(config, seed=0, device="cpu").audio
    ended = load_projector(tmp_path / "out", device="cpu").audio
    assert begun is not None
    assert ended is not None
    learned = {
        "png": not torch.equal(begun.null_image_embedding, ended.null_image_embedding),
        "flac": not torch.equal(begun.null_audio_embedding, ended.null_audio_embedding),
    }
    assert learned == {"png": missing == "png", "flac": missing == "flac"}


class Stop(BaseException):
    """Ends a run after it has written a state."""


def _stop() -> None:
    raise Stop


@pytest.mark.parametrize(
    "parameters",
    [
        {"audio_connector": "perceiver_prefix", "schedule": "llava", "text_share": 0.3},
        {"connector": "qformer", "audio_connector": "instruct_qformer", "micro_batch_size": 5},
    ],
)
def test_a_stopped_run_ends_with_the_same_bytes(
    parameters: dict[str, Any], data: Dataset, parts: dict[str, str], tmp_path: Path
) -> None:
    """Stopped after every second step; a first stage learns from pictures only."""
    trainer = _trainer(parts, **parameters)
    expected = trainer.train(data, tmp_path / "whole", num_samples=48, seed=1)
    stopping = dataclasses.replace(trainer, checkpoint_samples=16)
    stops = 0
    while not (tmp_path / "cut" / "training.json").exists():
        try:
            found = stopping.train(data, tmp_path / "cut", num_samples=48, seed=1, saved=_stop)
        except Stop:
            stops += 1
    assert stops == 2
    assert found == expected
    assert _weights(tmp_path / "cut") == _weights(tmp_path / "whole")
    loaded = load_projector(tmp_path / "whole", device="cpu")
    assert loaded.audio is not None
    assert loaded.config.audio_connector == parameters["audio_connector"]
    other = dataclasses.replace(trainer, modality_dropout=0.4)
    other.train(data, tmp_path / "other", num_samples=48, seed=1)
    assert _weights(tmp_path / "other") != _weights(tmp_path / "whole")


def test_a_state_and_a_start_of_another_model_are_refused(
    data: Dataset, parts: dict[str, str], tmp_path: Path
) -> None:
    trainer = _trainer(parts, checkpoint_samples=8)
    with pytest.raises(Stop):
        trainer.train(data, tmp_path / "out", num_samples=32, seed=0, saved=_stop)
    changes: list[dict[str, Any]] = [{"modality_dropout": 0.3}]
    changes += [{"audio_tower": audio_tower(tmp_path / "ears", seed=1)}]
    for change in changes:
        other = dataclasses.replace(trainer, **change)
        with pytest.raises(SetupError, match="other parameters or data"):
            other.train(data, tmp_path / "out", num_samples=32, seed=0)
    trainer.train(data, tmp_path / "out", num_samples=32, seed=0)
    again = dataclasses.replace(trainer, init=str(tmp_path / "out"), checkpoint_samples=0)
    again.train(data, tmp_path / "again", num_samples=8, seed=0)
    with pytest.raises(SetupError, match="has an audio_tower, the model to train no"):
        dataclasses.replace(again, audio_tower=None).check(data, 8)
    with pytest.raises(SetupError, match="has audio_connector=mlp, the model to train audio_c"):
        dataclasses.replace(again, audio_connector="linear").check(data, 8)
    with pytest.raises(SetupError, match="another audio_tower than"):
        dataclasses.replace(again, **changes[1]).check(data, 8)
    with pytest.raises(SetupError, match="has no audio_model.json"):
        dataclasses.replace(trainer, audio_tower=str(tmp_path)).check(data, 8)


def test_dropout_has_its_share_and_depends_on_seed_step_and_row_only() -> None:
    dropout = ModalityDropout(share=0.25, seed=3)
    lost = [dropout.dropped(row, step) for row in range(100) for step in range(200)]
    for kind in ("image", "audio"):
        # 20,000 draws: four standard errors.
        assert abs(lost.count(kind) / len(lost) - 0.25) < 4 * (0.25 * 0.75 / len(lost)) ** 0.5
    assert set(lost) == {"image", "audio", None}
    assert dropout.dropped(5, 7) == ModalityDropout(share=0.25, seed=3).dropped(5, 7)
    for other in (ModalityDropout(share=0.25, seed=4), dropout):
        step = 8 if other is dropout else 7
        agree = [other.dropped(r, step) == dropout.dropped(r, 7) for r in range(2000)]
        assert 0.3 < np.mean(agree) < 0.45  # 0.25^2 + 0.25^2 + 0.5^2 = 0.375
    halves = [ModalityDropout(share=0.5, seed=0).dropped(r, 0) for r in range(500)]
    assert None not in halves
    assert {ModalityDropout(share=0.0, seed=0).dropped(r, 0) for r in range(500)} == {None}


class Place:
    """As ``Pictures`` and ``Sounds``: features that are the places themselves."""

    def features(self, places: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        assert set(places) != {-1}
        return torch.tensor(places), torch.tensor([p >= 0 for p in places])


class Ears:
    """Records what a projector hears."""

    def __init__(self) -> None:
        self.heard: Any = None
        self.audio = self

    def hearing(self, sound: Any) -> Any:
        import contextlib

        self.heard = sound
        return contextlib.nullcontext()


def test_no_row_loses_both_and_batches_do_not_matter() -> None:
    place: Any = Place()
    have = [(r % 5 != 3, r % 5 != 4) for r in range(40)]
    senses = Senses(
        pictures=place, picture_of=[r if s else -1 for r, (s, _) in enumerate(have)],
        sounds=place, sound_of=[r if h else -1 for r, (_, h) in enumerate(have)],
    )  # fmt: skip
    dropout = ModalityDropout(share=0.3, seed=0)

    def perceived(rows: list[int], step: int, how: ModalityDropout | None) -> list[list[int]]:
        ears: Any = Ears()
        with senses.of(ears, rows, how, step) as (seen, _):
            heard = ears.heard
            none = [-1] * len(rows)
            return [none if seen is None else seen.tolist(),
                    none if heard is None else heard[0].tolist()]  # fmt: skip

    lost = 0
    for step in range(10):
        whole = perceived(list(range(40)), step, dropout)
        for row, (seen, heard) in enumerate(zip(*whole, strict=True)):
            kept = seen == row, heard == row
            assert any(kept)
            if not all(have[row]):
                assert kept == have[row]
            lost += have[row] == (True, True) != kept
        for rows in ([7, 5, 6], list(range(39, -1, -1)), [3], [4]):
            part = perceived(rows, step, dropout)
            assert part == [[side[row] for row in rows] for side in whole]
    assert 0.5 < lost / (10 * 24) < 0.7
    kept = perceived(list(range(40)), 0, None)
    assert [(s >= 0, h >= 0) for s, h in zip(*kept, strict=True)] == have


def test_recordings_are_kept_as_their_tokens(parts: dict[str, str], tmp_path: Path) -> None:
    """20 of them, more than go through the tower at once; float16 of what it gives alone."""
    ears = FrozenAudioTower.load(parts["audio_tower"])
    writer = SoundWriter(ears, tmp_path, torch.device("cpu"))
    clips: list[Frames] = []
    for index in range(20):
        data = encode_audio(chord(index % 8, index, 0.05 + index / 50)[None], 16_000, "wav")
        clip = heard_frames(ears, data)
        assert not isinstance(clip, str)
        clips.append(clip)
        writer.add(clip)
        writer.add(None)
    sounds: Sounds = writer.done()
    assert len(sounds) == len(writer) == 20
    places = [19, 0, -1, 7]
    features, mask = sounds.features(places)
    for row, place in enumerate(places):
        if place < 0:
            assert not mask[row].any()
            continue
        tokens, real = ears([clips[place]])
        alone = tokens[0][real[0]]
        assert int(mask[row].sum()) == len(alone)
        torch.testing.assert_close(features[row][mask[row]], alone, atol=2e-3, rtol=2e-3)
    assert len(SoundWriter(ears, tmp_path, torch.device("cpu")).done()) == 0
    assert heard_frames(ears, b"") == "no audio"
    assert heard_frames(ears, b"no sound") == "audio undecodable"


def test_old_fingerprints_stay_and_bad_parameters_are_refused(parts: dict[str, str]) -> None:
    assert not [name for name in result_parameters(ProjectorTrainer()) if "audio" in name]
    assert "modality_dropout" not in result_parameters(ProjectorTrainer())
    own = result_parameters(_trainer(parts, modality_dropout=0.2))
    assert (own["audio_queries"], own["modality_dropout"]) == (2, 0.2)
    plain = {k: v for k, v in parts.items() if k != "audio_tower"}
    assert _trainer(parts).model_digest() != _trainer(plain).model_digest()
    factory: Any = ProjectorTrainer
    assert (
        factory(**validate(factory, {**parts, "audio_connector": "linear"})).modality_dropout
        is None
    )
    for values, message in (
        ({"modality_dropout": 0.6}, "modality_dropout=0.6; use a share from 0 to 0.5"),
        ({"audio_connector": "perceiver_xattn"}, "audio_connector='perceiver_xattn'; use one of"),
        ({"audio_queries": 0}, "audio_queries=0; use at least 1"),
        ({"connector": "perceiver_xattn"}, "audio_tower with connector=perceiver_xattn"),
        ({"modality_dropout": 0.2, "audio_tower": None}, "without audio_tower"),
    ):
        with pytest.raises(RecipeError, match=message):
            _trainer(parts, **values)
