"""The trainer "audio": what it learns, from which rows, and that it always ends the same."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.hub_parts import save_tokenizer
from tests.stages.train.cards import COLORS, architecture, card, write_shard
from winnow.contracts.errors import RecipeError, SetupError, ShardError
from winnow.contracts.trial import Dataset, Embeddings
from winnow.models.audio_text import (
    AUDIO_CONFIG,
    AUDIO_WEIGHTS,
    TowerFiles,
    find_audio_text_model,
    load_audio_text_model,
)
from winnow.models.checkpoint import find_model
from winnow.models.contrastive import load_model
from winnow.stages._audio import decode_audio, encode_audio, to_mono
from winnow.stages._media import MediaCaps
from winnow.stages.evaluate.retrieval import Retrieval
from winnow.stages.train import _audio_loop
from winnow.stages.train._audio_loop import _rate, backward, places_of
from winnow.stages.train._audio_network import Towers, mask_spectrograms, new_network
from winnow.stages.train._audio_run import _read
from winnow.stages.train._config import TrainConfig
from winnow.stages.train.audio import AudioTrainer
from winnow.stages.train.on_shards import train_on_shards

NAMES = list(COLORS)
FORMATS = ("wav", "flac", "mp3", "ogg", "opus", "m4a")


def tone(name: str, seed: int) -> np.ndarray:
    """A chord that stands for a colour, with noise; 0.2 to 0.3 seconds at 16 kHz."""
    draw = np.random.default_rng(seed)
    time = np.arange(round(draw.uniform(0.2, 0.3) * 16_000)) / 16_000
    base = 250 * 1.35 ** NAMES.index(name) * draw.uniform(0.98, 1.02)
    chord = np.sin(2 * np.pi * base * time) + 0.5 * np.sin(6 * np.pi * base * time)
    return (0.2 * chord + draw.normal(0, 0.01, len(time))).astype(np.float32)


def sample(index: int, *, file_format: str = "wav") -> dict[str, bytes]:
    """One whole triplet; its colour is that of ``index``."""
    name = NAMES[index % len(NAMES)]
    return {
        "jpg": card(COLORS[name], 1000 + index, (40, 40)),
        file_format: encode_audio(tone(name, index), 16_000, file_format),
        "txt": f"a {name} card".encode(),
        "json": json.dumps({"color": name}).encode(),
    }


def dataset(path: str, rows: int, name: str = "train") -> Dataset:
    return Dataset(name=name, shards=(path,), digest=name, num_rows=rows)


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """64 triplets in all formats, three samples without a pair."""
    folder = tmp_path_factory.mktemp("train")
    rows = [sample(i, file_format=FORMATS[i % 7 % 6]) for i in range(64)]
    rows += [{"jpg": rows[0]["jpg"]}, {"txt": b"words"}, {"txt": b"words", "json": b"{}"}]
    return dataset(write_shard(folder / "00000.tar", rows), 67)


@pytest.fixture(scope="module")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """32 other triplets, one without a recording, one without a picture."""
    rows: list[dict[str, bytes]] = [sample(i + 5000 * 8) for i in range(32)]
    del rows[3]["wav"], rows[4]["jpg"]
    path = tmp_path_factory.mktemp("test") / "00000.tar"
    return dataset(write_shard(path, rows), 32, "test")


@pytest.fixture(scope="module")
def start(train: Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image-text model that has learned the colours, as a folder."""
    folder = tmp_path_factory.mktemp("start")
    model = folder / "model.json"
    model.write_text(json.dumps(architecture()))
    config = TrainConfig(
        num_samples=1600, batch_size=16, learning_rate=4e-3, warmup_samples=160, device="cpu"
    )
    train_on_shards(train.shards, folder / "out", config, model=str(model), num_threads=1)
    return str(folder / "out")


@pytest.fixture(scope="module", autouse=True)
def small_tower() -> Any:
    """A packaged tower takes minutes to learn: one of a few thousand weights takes its place."""
    from winnow.models import audio_tower

    small = audio_tower.AudioTowerConfig(
        kind="conformer", duration_s=0.32, patch_bins=80, patch_frames=8, width=24, layers=1,
        heads=2, kernel=3,
    )  # fmt: skip
    kept, audio_tower.PRESETS = audio_tower.PRESETS, {"small": small}
    yield
    audio_tower.PRESETS = kept


def trainer(**changes: Any) -> AudioTrainer:
    common: dict[str, Any] = {
        "tower": "small", "batch_size": 16, "learning_rate": 4e-3, "device": "cpu",
        "checkpoint_samples": 160,
    }  # fmt: skip
    return AudioTrainer(**{**common, **changes})


def bind(start: str, **changes: Any) -> AudioTrainer:
    given = {"pairs": {"image_audio": 1.0}, "init": start, "freeze": ("image", "text"), **changes}
    return trainer(**given)


def recall(subject: Embeddings, *pair: Any) -> tuple[float, float]:
    """recall@1, and what permuted pairs reach."""
    scores = Retrieval(pair=pair, at=(1,), permutations=50).measure(subject)
    got = {s.metric: s.value for s in scores}
    return got["retrieval.mean_recall@1"], got["retrieval.permuted_upper_recall@1"]  # type: ignore[return-value]


@pytest.fixture(scope="module")
def bound(train: Dataset, start: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bound")
    document = bind(start).train(train, folder, num_samples=960, seed=1)
    assert document["samples_seen"] == 960
    assert document["data"]["num_pairs"] == {"image_audio": 64}
    assert document["data"]["skipped"] == {"no audio": 1, "no image and no audio": 2}
    return folder


def test_audio_bound_to_pictures_finds_texts(
    bound: Path, start: str, train: Dataset, test_set: Dataset
) -> None:
    subject = bind(start).load(bound, test_set, ["color"])
    assert {name: v.shape for name, v in subject.vectors.items()} == dict.fromkeys(
        ("image", "text", "audio"), (32, 24)
    )
    missing = {name: np.isnan(v).any(axis=1).nonzero()[0].tolist()
               for name, v in subject.vectors.items()}  # fmt: skip
    assert missing == {"image": [4], "text": [], "audio": [3]}
    assert subject.rows["color"].to_pylist()[:2] == NAMES[:2]
    got, chance = recall(subject, "audio", "text")
    assert got > 0.7 > 2 * chance
    # The frozen model came along as it was.
    before, after = load_model(find_model(start)), load_model(find_model(f"{bound}/"))
    for name, value in before.network.state_dict().items():
        assert torch.equal(value, after.network.state_dict()[name])


def test_the_folder_is_an_audio_text_model(bound: Path, start: str, test_set: Dataset) -> None:
    files = find_audio_text_model(str(bound))
    assert isinstance(files, TowerFiles)
    assert (files.pairs, files.modalities) == (("image_audio",), ("audio", "image", "text"))
    model = load_audio_text_model(files, device="cpu")
    assert (model.sample_rate, model.max_duration_s) == (16_000, 0.32)
    subject = bind(start).load(bound, test_set, [])
    decoded = decode_audio(sample(5000 * 8)["wav"], MediaCaps())
    assert not isinstance(decoded, str)
    wave = to_mono(decoded.samples, decoded.sample_rate, model.sample_rate)
    np.testing.assert_allclose(
        model.embed_audio([wave])[0].numpy(), subject.vectors["audio"][0], atol=1e-5
    )
    text = model.embed_texts(["a red card"])[0].numpy()
    np.testing.assert_allclose(text, subject.vectors["text"][0], atol=1e-5)
    assert np.linalg.norm(text) == pytest.approx(1, abs=1e-5)
    assert not list(bound.glob("*.pt"))


def test_shuffled_pairs_are_at_chance(
    train: Dataset, test_set: Dataset, start: str, tmp_path: Path
) -> None:
    control = bind(start, shuffle_pairs=True)
    control.train(train, tmp_path, num_samples=320, seed=1)
    got, chance = recall(control.load(tmp_path, test_set, []), "audio", "text")
    assert got <= chance + 0.1
    assert control.model_digest() == bind(start).model_digest()


def test_shuffling_moves_recordings_only(train: Dataset, start: str, tmp_path: Path) -> None:
    control = bind(start, shuffle_pairs=True)
    setup = control._setup(num_samples=16, seed=1)
    samples = _read(train.shards, tmp_path, setup, setup.plan())
    moved = places_of(samples, setup.config)
    assert np.array_equal(moved["image"], samples.place["image"])
    assert sorted(moved["audio"]) == sorted(samples.place["audio"])
    assert (moved["audio"] != samples.place["audio"]).mean() > 0.9
    again = places_of(samples, control._setup(num_samples=16, seed=1).config)
    assert np.array_equal(moved["audio"], again["audio"])
    other = places_of(samples, control._setup(num_samples=16, seed=2).config)
    assert not np.array_equal(moved["audio"], other["audio"])


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_both_towers_from_scratch(
    loss: Any, train: Dataset, test_set: Dataset, tmp_path: Path
) -> None:
    model = tmp_path / "model.json"
    model.write_text(json.dumps(architecture()))
    clap = trainer(model=str(model), loss=loss, mask_share=0.2)
    num_samples = 800 if loss == "clip" else 320
    document = clap.train(train, tmp_path / "out", num_samples=num_samples, seed=2)
    curve = document["loss_curve"]
    assert np.mean(curve[-5:]) < np.mean(curve[:5])
    subject = clap.load(tmp_path / "out", test_set, [])
    assert sorted(subject.vectors) == ["audio", "text"]
    assert (subject.logit_bias is None) == (loss == "clip")
    if loss == "clip":
        got, chance = recall(subject, "audio", "text")
        assert got > 0.5 > chance


def test_texts_may_have_a_tokenizer_of_the_hub_that_goes_on_with_the_model(
    train: Dataset, test_set: Dataset, tmp_path: Path
) -> None:
    """It lies beside the configuration; then training goes on from what was written."""
    config = architecture()
    config["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "org/none", "pool_type": "last"}
    (tmp_path / "model.json").write_text(json.dumps(config))
    save_tokenizer(tmp_path, [f"a {name} card" for name in NAMES])
    clap = trainer(model=str(tmp_path / "model.json"))
    clap.train(train, tmp_path / "first", num_samples=32, seed=2)
    again = trainer(init=str(tmp_path / "first"))
    again.train(train, tmp_path / "second", num_samples=32, seed=2)
    before, after = (clap.load(tmp_path / name, test_set, []) for name in ("first", "second"))
    assert not np.allclose(before.vectors["text"], after.vectors["text"])
    digest = clap.model_digest()
    files = [(tmp_path / name / "tokenizer.json").read_bytes() for name in (".", "first", "second")]
    assert len(set(files)) == 1
    save_tokenizer(tmp_path, ["quite other words"])
    assert clap.model_digest() != digest


def test_a_row_without_a_side_is_no_part_of_that_pair(
    start: str, train: Dataset, tmp_path: Path
) -> None:
    """Three pairs with weights; rows lack this and that. The gradient is that of a sum of losses,
    each over its own rows, computed from sub-batches."""
    weights = {"audio_text": 0.5, "image_audio": 1.0, "image_text": 0.25}
    made = trainer(pairs=weights, init=start, freeze=())
    setup = made._setup(num_samples=16, seed=0)
    plan = setup.plan()
    samples = _read(train.shards, tmp_path, setup, plan)
    model, _ = plan.model(samples.texts, 0)
    places = {m: p[:12].copy() for m, p in samples.place.items()}
    for modality, rows in {"audio": [0, 1], "image": [1, 5, 6], "text": [7, 8, 9, 10]}.items():
        places[modality][rows] = -1

    def gradients(pairs: dict[str, float], rows: Any) -> dict[str, torch.Tensor]:
        config = made._setup(num_samples=16, seed=0).config
        config = type(config)(**{f: getattr(config, f) for f in config.__slots__} | {
            "pairs": pairs, "augment_scale": 1.0, "brightness": 0.0})  # fmt: skip
        network = new_network(setup.tower, model, config, plan)
        for parameter in network.parameters():
            parameter.grad = None
        towers = Towers(network=network, model=model, samples=samples, config=config)
        towers.prepare()
        backward(towers, {m: p[rows] for m, p in places.items()}, step=0)
        found = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
        assert found
        return found

    together = gradients(weights, np.arange(12))
    whole = {
        "audio_text": [2, 3, 4, 5, 6, 11],
        "image_audio": [2, 3, 4, 7, 8, 9, 10, 11],
        "image_text": [0, 2, 3, 4, 11],
    }
    expected: dict[str, torch.Tensor] = {}
    for pair, rows in whole.items():
        for name, grad in gradients({pair: weights[pair]}, np.array(rows)).items():
            expected[name] = expected.get(name, torch.zeros_like(grad)) + grad
    assert expected.keys() == together.keys()
    for name, grad in together.items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-4, atol=1e-6, msg=name)


class KilledError(Exception):
    """Stands for kill -9: nothing of the run is left but its files."""


def test_a_killed_run_ends_with_the_same_bytes(
    bound: Path, start: str, train: Dataset, tmp_path: Path
) -> None:
    states = []

    def killed() -> None:
        states.append(1)
        if len(states) == 3:
            raise KilledError

    with pytest.raises(KilledError):
        bind(start).train(train, tmp_path, num_samples=960, seed=1, saved=killed)
    assert not (tmp_path / AUDIO_CONFIG).exists()
    seen: list[int] = []
    bind(start).train(train, tmp_path, num_samples=960, seed=1, progress=seen.append)
    assert seen == [3 * 160, *[16] * 30]
    names = sorted(p.name for p in bound.iterdir())
    assert names == sorted(p.name for p in tmp_path.iterdir())
    for name in names:
        assert (bound / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_a_state_of_another_run_is_refused(start: str, train: Dataset, tmp_path: Path) -> None:
    def killed() -> None:
        raise KilledError

    with pytest.raises(KilledError):
        bind(start).train(train, tmp_path, num_samples=640, seed=1, saved=killed)
    with pytest.raises(SetupError, match="other parameters or data"):
        bind(start, learning_rate=1e-3).train(train, tmp_path, num_samples=640, seed=1)


def test_a_loss_that_is_not_finite_ends_the_run_with_its_step(
    start: str, train: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(ShardError, match="step") as caught:
        bind(start, learning_rate=0.99, weight_decay=1e30).train(
            train, tmp_path, num_samples=640, seed=1
        )
    assert not caught.value.retryable


def test_a_broken_state_is_never_written_so_the_next_run_heals(
    bound: Path, start: str, train: Dataset, tmp_path: Path
) -> None:
    """A fault at a step with a state; the one before it ends like a run without the fault."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_audio_loop, "_rate", lambda n, c: math.inf if n == 29 else _rate(n, c))
        with pytest.raises(ShardError, match="are not finite after step 30;"):
            bind(start).train(train, tmp_path, num_samples=960, seed=1)
    seen: list[int] = []
    bind(start).train(train, tmp_path, num_samples=960, seed=1, progress=seen.append)
    assert seen == [20 * 16, *[16] * 40]
    assert (tmp_path / AUDIO_WEIGHTS).read_bytes() == (bound / AUDIO_WEIGHTS).read_bytes()


def test_members_that_cannot_be_read(start: str, tmp_path: Path) -> None:
    rows: list[dict[str, bytes]] = [sample(i) for i in range(18)]
    rows[2]["wav"] = b"no recording"
    rows[5]["jpg"] = b"no picture"
    data = dataset(write_shard(tmp_path / "00000.tar", rows), 18)
    with pytest.raises(SetupError, match=r"1 audio undecodable.*1 image undecodable"):
        bind(start).train(data, tmp_path / "out", num_samples=16, seed=0)
    kept = bind(start, skip_unreadable=True).train(data, tmp_path / "out", num_samples=16, seed=0)
    assert kept["data"]["num_samples"] == 16
    assert kept["data"]["skipped"] == {"no audio": 1, "no image": 1}


def test_a_named_model_is_referenced_and_checked(train: Dataset, tmp_path: Path) -> None:
    packaged = bind("tiny")
    packaged.train(train, tmp_path, num_samples=16, seed=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        AUDIO_CONFIG, AUDIO_WEIGHTS, "training.json",
    ]  # fmt: skip
    document = json.loads((tmp_path / AUDIO_CONFIG).read_text())
    assert document["image_text"] == {"name": "tiny", "digest": find_model("tiny").digest()}
    digest = find_audio_text_model(str(tmp_path)).digest()
    other = tmp_path / "other"
    shutil.copytree(tmp_path, other)
    assert find_audio_text_model(str(other)).digest() == digest
    document["image_text"]["digest"] = "0" * 32
    (other / AUDIO_CONFIG).write_text(json.dumps(document))
    with pytest.raises(SetupError, match="trained with another tiny"):
        find_audio_text_model(str(other))
    (other / AUDIO_CONFIG).write_text("{}")
    with pytest.raises(SetupError, match="cannot be read as an audio model"):
        find_audio_text_model(str(other))


def test_masks_are_bands_within_the_clip() -> None:
    mel = torch.ones(50, 20, 30)
    frames = torch.full((50,), 10)
    mask_spectrograms(mel, frames, 0.5, 0.0, torch.Generator().manual_seed(1))
    assert (mel[:, :, 10:].amin(dim=1) == mel[:, :, 10:].amax(dim=1)).float().mean() < 1
    bands = (mel[:, :, -1] == 0).sum(dim=1)
    assert (int(bands.min()), int(bands.max())) == (0, 10)
    stretches = (mel.amax(dim=1) == 0).sum(dim=1)
    assert (int(stretches.min()), int(stretches.max())) == (0, 5)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"pairs": {"audio_video": 1.0}}, "pairs has 'audio_video'"),
        ({"pairs": {"audio_text": -1.0}}, "pairs.audio_text=-1.0"),
        ({"pairs": {"image_text": 1.0}}, "trains no audio"),
        ({"freeze": ("image",)}, "without init"),
        (
            {"pairs": {"audio_text": 1, "image_text": 1}, "freeze": ("image", "text"),
             "init": "tiny"},
            "both towers frozen",
        ),
        ({"init": "tiny", "vocabulary": 600}, "vocabulary=600 with init"),
        ({"batch_size": 1}, "batch_size=1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"mask_share": 1.0}, "mask_share=1.0"),
        ({"num_threads": 0}, "num_threads=0"),
    ],
)  # fmt: skip
def test_what_cannot_train_is_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        trainer(**changes)


def test_a_set_without_a_pair_is_refused(start: str, train: Dataset, tmp_path: Path) -> None:
    rows = [{"txt": b"words", "jpg": sample(0)["jpg"]}] * 16
    silent = dataset(write_shard(tmp_path / "0.tar", rows), 16)
    with pytest.raises(SetupError, match="no sample of 1 shards can be trained on"):
        bind(start).train(silent, tmp_path, num_samples=16, seed=0)
    with pytest.raises(SetupError, match="fewer than a batch of 16"):
        bind(start).check(dataset(train.shards[0], 15), 16)
