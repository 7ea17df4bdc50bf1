"""The training loop: it learns, repeats itself bit for bit, goes on after an interruption."""

from __future__ import annotations

import copy
import io
import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from winnow.contracts.errors import RecipeError, SetupError, ShardError
from winnow.contracts.stage import WorkerOptions
from winnow.models.checkpoint import find_model
from winnow.models.contrastive import load_model
from winnow.models.losses import Outputs, contrastive_loss
from winnow.pipeline.cli_train import train as train_command
from winnow.stages.clip_score import ClipScore
from winnow.stages.train.contrastive import Progress, TrainConfig, augment
from winnow.stages.train.loop import _rate
from winnow.stages.train.on_shards import train_on_shards
from winnow.stages.train.shards import batch_indices, load_samples, shard_paths

from .cards import COLORS, architecture, card, write_shard

MODEL = architecture()
SIZE = (40, 56)


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was run",))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tars of 32 coloured pictures each, some samples that cannot be used, a sizes.json."""
    folder = tmp_path_factory.mktemp("export")
    names = list(COLORS)
    for shard in range(3):
        samples = []
        for index in range(32):
            name = names[index % 8]
            picture = card(COLORS[name], 100 * shard + index, SIZE)
            samples.append(
                {
                    "jpg": picture,
                    "txt": f"a {name} card".encode(),
                    "title": f"{name} title".encode(),
                    "pkl": pickle.dumps(_Bomb()),
                }
            )
        samples += [{"jpg": picture}, {"txt": b"words"}, {"jpg": b"no image", "txt": b"words"}]
        write_shard(folder / f"{shard:05d}.tar", samples, prefix=f"{shard:05d}-")
    (folder / "sizes.json").write_text(json.dumps({f"{i:05d}.tar": 35 for i in range(3)}))
    (folder / "other.tar").write_bytes(b"not listed in sizes.json")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An architecture small enough to learn colours in a second."""
    path = tmp_path_factory.mktemp("architecture") / "model.json"
    path.write_text(json.dumps(MODEL))
    return str(path)


CONFIG = TrainConfig(
    num_samples=1600, batch_size=16, learning_rate=4e-3, warmup_samples=160, seed=5, device="cpu",
    checkpoint_samples=320,
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shards: Path, model: str) -> Path:
    """The result of one run."""
    folder = tmp_path_factory.mktemp("trained")
    train_on_shards([str(shards)], folder, CONFIG, model=model, num_threads=1)
    return folder


def test_it_learns_and_the_stage_loads_the_result(trained: Path) -> None:
    report = json.loads((trained / "training.json").read_text())
    curve = report["loss_curve"]
    # Two of each colour in a batch of 16: the loss cannot fall below ln 2.
    assert np.mean(curve[-10:]) < 1.15 < 0.5 * np.mean(curve[:3]) * 2
    assert report["samples_seen"] == 1600
    assert report["data"]["num_samples"] == 96
    assert report["data"]["skipped"] == {"no caption": 3, "no image": 3, "undecodable": 3}
    assert sorted(p.name for p in trained.iterdir()) == [
        "bpe_merges.txt.gz", "model.safetensors", "open_clip_config.json", "training.json",
    ]  # fmt: skip
    stage = ClipScore(model=str(trained), batch_size=8)
    network = stage.setup(WorkerOptions()).model
    texts = network.embed_texts([f"a {name} card" for name in COLORS])
    fresh = [Image.open(io.BytesIO(card(COLORS[n], 9000, (33, 61)))) for n in COLORS]
    pixels = torch.from_numpy(np.stack([network.preprocess.pixels(i) for i in fresh]))
    assert (network.embed_images(pixels) @ texts.T).argmax(1).tolist() == list(range(8))


def test_the_same_seed_gives_the_same_bytes(
    trained: Path, shards: Path, model: str, tmp_path: Path
) -> None:
    train_on_shards([str(shards)], tmp_path, CONFIG, model=model, num_threads=1)
    for name in ("model.safetensors", "open_clip_config.json", "training.json"):
        assert (tmp_path / name).read_bytes() == (trained / name).read_bytes(), name
    assert find_model(str(tmp_path)).digest() == find_model(str(trained)).digest()


class _Killed(BaseException):
    pass


def test_an_interrupted_run_ends_with_the_same_bytes(
    trained: Path, shards: Path, model: str, tmp_path: Path
) -> None:
    seen: list[int] = []

    def kill(progress: Progress) -> None:
        seen.append(progress.samples_seen)
        if progress.samples_seen >= 1000:
            raise _Killed

    with pytest.raises(_Killed):
        train_on_shards([str(shards)], tmp_path, CONFIG, model=model, num_threads=1, report=kill)
    again: list[int] = []
    train_on_shards(
        [str(shards)], tmp_path, CONFIG, model=model, num_threads=1,
        report=lambda progress: again.append(progress.samples_seen),
    )  # fmt: skip
    assert again[0] == 960 + 16  # 960 is the last multiple of 320 before the kill
    assert (tmp_path / "model.safetensors").read_bytes() == (
        trained / "model.safetensors"
    ).read_bytes()
    assert (tmp_path / "training.json").read_bytes() == (trained / "training.json").read_bytes()


def test_a_checkpoint_of_other_parameters_is_refused(
    shards: Path, model: str, tmp_path: Path
) -> None:
    def kill(progress: Progress) -> None:
        if progress.samples_seen >= 400:
            raise _Killed

    with pytest.raises(_Killed):
        train_on_shards([str(shards)], tmp_path, CONFIG, model=model, num_threads=1, report=kill)
    other = TrainConfig(num_samples=1600, batch_size=16, seed=6, device="cpu")
    with pytest.raises(SetupError, match="a run with other parameters or data"):
        train_on_shards([str(shards)], tmp_path, other, model=model)
    with pytest.raises(SetupError, match="a run with other parameters or data"):
        train_on_shards([str(shards / "00001.tar")], tmp_path, CONFIG, model=model)


def test_siglip_learns_too(shards: Path, model: str, tmp_path: Path) -> None:
    config = TrainConfig(
        num_samples=1600, batch_size=16, learning_rate=3e-3, warmup_samples=160, loss="siglip",
        device="cpu",
    )  # fmt: skip
    report = train_on_shards(
        [str(shards)], tmp_path, config, model=model, captions="title", num_threads=1
    )
    assert report["loss_curve"][-1] < 0.5 * report["loss_curve"][0]
    network = load_model(find_model(str(tmp_path)), device="cpu").network
    assert network.logit_bias is not None


def test_the_loss_is_the_published_one(shards: Path, model: str, tmp_path: Path) -> None:
    """The first step's loss against a naive loop over the initial network's embeddings."""
    losses: list[float] = []
    config = TrainConfig(
        num_samples=16, batch_size=16, device="cpu", augment_scale=1.0, brightness=0.0
    )
    captured: list[Outputs] = []

    def spy(outputs: Outputs, **options: Any) -> torch.Tensor:
        captured.append(outputs)
        return contrastive_loss(outputs, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("winnow.models.losses.contrastive_loss", spy)
        train_on_shards(
            [str(shards)], tmp_path, config, model=model, num_threads=1,
            report=lambda progress: losses.append(progress.loss),
        )  # fmt: skip
    found = (captured[0].images, captured[0].texts, captured[0].scale)
    images, texts, scale = (value.detach().double().numpy() for value in found)
    naive = 0.0
    for i in range(16):
        for a, b in ((images[i], texts), (texts[i], images)):
            logits = [float(scale) * float(a @ other) for other in b]
            naive += math.log(sum(math.exp(v) for v in logits)) - logits[i]
    assert losses[0] == pytest.approx(naive / 32, abs=1e-5)


def test_a_loss_that_is_not_finite_stops_with_its_step(
    shards: Path, model: str, tmp_path: Path
) -> None:
    config = TrainConfig(num_samples=1600, batch_size=16, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("winnow.stages.train.loop._rate", lambda step, config: 1e30 if step else 0.0)
        with pytest.raises(ShardError, match=r"the loss is (nan|inf) at step [23]") as caught:
            train_on_shards([str(shards)], tmp_path, config, model=model, num_threads=1)
    assert not caught.value.retryable


def test_weights_that_the_last_step_breaks_are_no_model(
    shards: Path, model: str, tmp_path: Path
) -> None:
    """The loss is that before a step, so it does not tell."""
    config = TrainConfig(num_samples=16, batch_size=16, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("winnow.stages.train.loop._rate", lambda step, config: math.inf)
        with pytest.raises(ShardError, match="are not finite after step 1") as caught:
            train_on_shards([str(shards)], tmp_path, config, model=model, num_threads=1)
    assert not caught.value.retryable
    assert not (tmp_path / "training.json").exists()


@pytest.mark.parametrize(("broken", "kept"), [(40, 20), (100, 80)])
def test_a_broken_state_is_never_written_so_the_next_run_heals(
    broken: int, kept: int, trained: Path, shards: Path, model: str, tmp_path: Path
) -> None:
    """A fault at a step with a state, among them the last: the state before it goes on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "winnow.stages.train.loop._rate",
            lambda step, config: math.inf if step + 1 == broken else _rate(step, config),
        )
        with pytest.raises(ShardError, match=f"are not finite after step {broken};"):
            train_on_shards([str(shards)], tmp_path, CONFIG, model=model, num_threads=1)
    state = tmp_path / "training_state.pt"
    assert torch.load(state, weights_only=True)["step"] == kept
    train_on_shards([str(shards)], tmp_path, CONFIG, model=model, num_threads=1)
    assert find_model(str(tmp_path)).digest() == find_model(str(trained)).digest()


def _draw(seed: int, count: int) -> torch.Tensor:
    return torch.rand(4, count, generator=torch.Generator().manual_seed(seed))


def test_crops_stay_inside_and_whole_pictures_stay_as_they_are() -> None:
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(50, 200, (6, 32, 32, 3), np.uint8))
    still: dict[str, float] = {"scale": 1.0, "brightness": 0.0}
    same = augment(pixels, 32, _draw(1, len(pixels)), **still)
    assert same.dtype == torch.uint8
    assert (same.int() - pixels.int()).abs().max() <= 1
    moving: dict[str, float] = {"scale": 0.8, "brightness": 0.1}
    first = augment(pixels, 24, _draw(1, len(pixels)), **moving)
    again = augment(pixels, 24, _draw(1, len(pixels)), **moving)
    other = augment(pixels, 24, _draw(2, len(pixels)), **moving)
    assert first.shape == (6, 24, 24, 3)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.min() >= 50 * 0.9 - 1
    assert first.max() <= 200 * 1.1 + 1
    left = torch.zeros(64, 32, 32, 3, dtype=torch.uint8)
    left[:, :, :16] = 200  # never mirrored: captions say left and right
    crops = augment(left, 24, _draw(3, len(left)), **moving).float()
    assert (crops[:, :, :6].mean((1, 2, 3)) > crops[:, :, -6:].mean((1, 2, 3))).all()


def test_crops_are_those_of_an_affine_grid() -> None:
    """Against torch's own grid: scale and shift per image, then its light."""
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (9, 36, 36, 3), np.uint8))
    draw = _draw(4, 9)
    found = augment(pixels, 32, draw, scale=0.7, brightness=0.2)
    side = 0.7 + 0.3 * draw[0]
    theta = torch.zeros(9, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    for axis in (0, 1):
        theta[:, axis, 2] = (2 * draw[1 + axis] - 1) * (1 - side)
    grid = torch.nn.functional.affine_grid(theta, [9, 3, 32, 32], align_corners=False)
    images = pixels.permute(0, 3, 1, 2).float()
    crops = torch.nn.functional.grid_sample(
        images, grid, padding_mode="reflection", align_corners=False
    )
    light = (1 + 0.2 * (2 * draw[3] - 1))[:, None, None, None]
    expected = (crops * light).clamp(0, 255).permute(0, 2, 3, 1)
    assert (found.float() - expected).abs().max() <= 0.51


def test_every_epoch_shows_every_sample_once() -> None:
    stream = batch_indices(10, 4, seed=3, step=0)
    seen = np.concatenate([next(stream) for _ in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert list(seen[:10]) != list(seen[10:])
    later = batch_indices(10, 4, seed=3, step=3)
    assert list(next(later)) == list(seen[12:16])
    assert list(next(batch_indices(10, 4, seed=4, step=0))) != list(seen[:4])


def test_what_names_shards(shards: Path, tmp_path: Path) -> None:
    three = [str(shards / f"0000{i}.tar") for i in range(3)]
    assert shard_paths([str(shards)]) == three
    assert shard_paths([str(shards / "0*.tar")]) == three
    assert shard_paths([str(shards / "{00001..00002}.tar")]) == three[1:]
    assert shard_paths([three[2], three[0], three[2]]) == [three[2], three[0]]
    write_shard(tmp_path / "b.tar", [])
    write_shard(tmp_path / "a.tar", [])
    assert shard_paths([str(tmp_path)]) == [str(tmp_path / "a.tar"), str(tmp_path / "b.tar")]
    (tmp_path / "sizes.json").write_text('{"c.tar": 1}')
    with pytest.raises(SetupError, match=r"lists c.tar, which is not there"):
        shard_paths([str(tmp_path)])
    with pytest.raises(SetupError, match="there is no shard at"):
        shard_paths([str(tmp_path / "*.zip")])


def test_samples_keep_order_and_pixels(shards: Path, tmp_path: Path) -> None:
    def tiny(image: Image.Image) -> Any:
        return np.asarray(image.convert("RGB").resize((4, 4)))

    samples = load_samples(shard_paths([str(shards)]), tiny, scratch=tmp_path, num_threads=3)
    assert samples.texts[:9] == [f"a {name} card" for name in COLORS] + ["a red card"]
    assert samples.pixels.shape == (96, 4, 4, 3)
    expected = Image.open(io.BytesIO(card(COLORS["blue"], 102, SIZE))).resize((4, 4))
    assert (samples.pixels[34] == np.asarray(expected)).all()
    again = load_samples(shard_paths([str(shards)]), tiny, scratch=tmp_path, num_threads=1)
    assert again.digest == samples.digest
    fewer = load_samples([str(shards / "00000.tar")], tiny, scratch=tmp_path)
    assert fewer.digest != samples.digest


def test_a_damaged_shard_is_named(shards: Path, model: str, tmp_path: Path) -> None:
    data = (shards / "00000.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: len(data) // 2])
    (tmp_path / "junk.tar").write_bytes(b"junk" * 1000)
    for name in ("cut.tar", "junk.tar"):
        with pytest.raises(SetupError, match=f"{name} cannot be read"):
            train_on_shards([str(tmp_path / name)], tmp_path / "out", CONFIG, model=model)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_samples": 0}, "num_samples=0: use at least 1"),
        ({"batch_size": 0}, "batch_size=0: use at least 1"),
        ({"augment_scale": 0.0}, "augment_scale=0.0"),
        ({"learning_rate": 3.0}, "learning_rate=3.0"),
    ],
)
def test_bad_configurations(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        TrainConfig(**values)


def test_bad_input_is_refused_before_training(shards: Path, model: str, tmp_path: Path) -> None:
    large = TrainConfig(num_samples=1000, batch_size=97, device="cpu")
    with pytest.raises(SetupError, match="hold 96 usable samples .* fewer than a batch of 97"):
        train_on_shards([str(shards)], tmp_path, large, model=model)
    with pytest.raises(SetupError, match="no sample of 1 shards can be trained on"):
        write_shard(tmp_path / "bad.tar", [{"jpg": b"x", "txt": b"y"}])
        train_on_shards([str(tmp_path / "bad.tar")], tmp_path, CONFIG, model=model)
    with pytest.raises(RecipeError, match="vocabulary=100: use at least 514"):
        train_on_shards([str(shards)], tmp_path, CONFIG, model=model, vocabulary=100)
    with pytest.raises(RecipeError, match="is no model"):
        train_on_shards([str(shards)], tmp_path, CONFIG, model="no-such-model")
    assert not [p for p in tmp_path.iterdir() if p.suffix != ".tar"]


def test_the_whole_vocabulary_of_clip_can_be_asked_for(shards: Path, tmp_path: Path) -> None:
    config = copy.deepcopy(MODEL["model_cfg"])
    config["text_cfg"] |= {"vocab_size": 49408, "width": 8, "heads": 1}
    (tmp_path / "m.json").write_text(json.dumps(config))
    one = TrainConfig(num_samples=16, batch_size=16, device="cpu")
    train_on_shards(
        [str(shards)], tmp_path / "full", one, model=str(tmp_path / "m.json"), num_threads=1
    )
    assert not (tmp_path / "full" / "bpe_merges.txt.gz").exists()
    assert find_model(str(tmp_path / "full")).tokenizer is None
    train_on_shards(
        [str(shards)], tmp_path / "cut", one, model=str(tmp_path / "m.json"), vocabulary=600,
        num_threads=1,
    )  # fmt: skip
    cut = load_model(find_model(str(tmp_path / "cut")), device="cpu")
    assert cut.network.vocab_size == 600


def test_the_command(shards: Path, model: str, tmp_path: Path) -> None:
    arguments = [
        "contrastive", str(shards), "--out", str(tmp_path / "out"), "--model", model,
        "--samples", "320", "--batch-size", "16", "--seed", "3", "--device", "cpu",
        "--threads", "1", "--micro-batch-size", "9", "--shared-transformer",
    ]  # fmt: skip
    outcome = CliRunner().invoke(train_command, arguments, catch_exceptions=False)
    assert outcome.exit_code == 0
    assert "320 of 320 pairs" in outcome.output
    assert "trained on 96 pairs (left out: 3 no caption, 3 no image, 3 undecodable)" in (
        outcome.output
    )
    assert find_model(str(tmp_path / "out")).config["embed_dim"] == 24
    missing = CliRunner().invoke(train_command, ["contrastive", "/no/such", "--out", "x"])
    assert isinstance(missing.exception, SetupError)
