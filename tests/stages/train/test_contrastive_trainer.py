"""The trainer as a trial sees it: killed and resumed, refused before it starts, measured after."""

from __future__ import annotations

import functools
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from winnow.contracts.errors import RecipeError, SetupError, ShardError
from winnow.contracts.parameters import result_parameters, validate
from winnow.contracts.registry import TRAINERS
from winnow.contracts.trial import Dataset, Embeddings
from winnow.models.checkpoint import PACKAGED, find_model
from winnow.models.contrastive import load_model
from winnow.stages.train.contrastive import ContrastiveTrainer
from winnow.stages.train.distributed import run_local

from .cards import COLORS, architecture, card, write_shard

MODEL = architecture(patch_dropout=0.25)


def _sample(index: int) -> dict[str, bytes]:
    names = list(COLORS)
    name, wrong = names[index % 8], names[(index + 1) % 8]
    annotations = {
        "class": name, "brightness": sum(COLORS[name]) / 3, "index": index,
        "swapped": None if index % 4 == 0 else f"a {wrong} card",
        "several": [f"a {wrong} card", " "] if index % 2 else [], "mixed": [index, name][index % 2],
    }  # fmt: skip
    return {
        "jpg": card(COLORS[name], index, (40, 44)), "txt": f"a {name} card".encode(),
        "json": json.dumps(annotations).encode(),
    }  # fmt: skip


def _dataset(folder: Path, samples: list[dict[str, bytes]], name: str = "train") -> Dataset:
    half = len(samples) // 2
    shards = (
        write_shard(folder / f"{name}-0.tar", samples[:half]),
        write_shard(folder / f"{name}-1.tar", samples[half:], start=half),
    )
    return Dataset(name=name, shards=shards, digest="00", num_rows=len(samples))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """64 coloured pictures in two shards."""
    return _dataset(tmp_path_factory.mktemp("data"), [_sample(i) for i in range(64)])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An architecture small enough to learn colours in a second; with randomness inside."""
    path = tmp_path_factory.mktemp("architecture") / "model.json"
    path.write_text(json.dumps(MODEL))
    return str(path)


def _trainer(model: str, **parameters: Any) -> ContrastiveTrainer:
    defaults: dict[str, Any] = {
        "model": model, "batch_size": 16, "learning_rate": 4e-3, "device": "cpu",
        "checkpoint_samples": 160,
    }  # fmt: skip
    return ContrastiveTrainer(**{**defaults, **parameters})


def _weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


CHILD = """
import sys
import time
from pathlib import Path
from winnow.contracts.trial import Dataset
from winnow.stages.train.contrastive import ContrastiveTrainer
from winnow.stages.train.distributed import run_local

model, folder, *shards = sys.argv[1:]
trainer = ContrastiveTrainer(
    model=model, batch_size=16, learning_rate=4e-3, device="cpu", checkpoint_samples=96,
    micro_batch_size=8,
)
data = Dataset(name="train", shards=tuple(shards), digest="00", num_rows=64)
trainer.train(
    data, Path(folder), num_samples=480, seed=3,
    saved=lambda: print("saved", flush=True) or time.sleep(0.1),
)
"""


def test_a_killed_trial_ends_with_the_same_weights_and_metrics(
    data: Dataset, model: str, tmp_path: Path
) -> None:
    """A child that waits after each state gets SIGKILL in mid-run, after its second one."""
    trainer = _trainer(model, micro_batch_size=8)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = trainer.train(data, whole, num_samples=480, seed=3)
    command = [sys.executable, "-c", CHILD, model, str(killed), *data.shards]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as child:
        assert child.stdout is not None
        for _ in range(2):
            assert child.stdout.readline() == "saved\n"
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert child.returncode == -signal.SIGKILL
    assert (killed / "training_state.pt").exists()
    assert not (killed / "model.safetensors").exists()
    seen: list[int] = []
    found = trainer.train(data, killed, num_samples=480, seed=3, progress=seen.append)
    assert sum(seen) == 480
    assert seen[0] > 2 * 96
    assert set(seen[1:]) == {16}
    assert found == expected
    assert _weights(killed) == _weights(whole)
    assert sorted(p.name for p in killed.iterdir()) == sorted(p.name for p in whole.iterdir())
    assert not (killed / "training_state.pt").exists()
    first, second = (trainer.load(f, data, ()).vectors["image"] for f in (whole, killed))
    assert (first == second).all()


def test_states_and_progress_are_reported(data: Dataset, model: str, tmp_path: Path) -> None:
    sizes: list[int] = []
    seen: list[int] = []

    def saved() -> None:
        sizes.append((tmp_path / "training_state.pt").stat().st_size)

    trainer = _trainer(model, checkpoint_samples=100)
    report = trainer.train(
        data, tmp_path, num_samples=310, seed=0, saved=saved, progress=seen.append
    )
    assert len(sizes) == 3
    assert seen == [16] * 20
    assert report["samples_seen"] == 320
    assert report["ran_on"]["device"] == "cpu"
    assert report["ran_on"]["torch"] == torch.__version__
    assert json.loads((tmp_path / "training.json").read_text()) == report


def test_effort_parameters_do_not_change_the_weights(
    data: Dataset, model: str, tmp_path: Path
) -> None:
    plain = _trainer(model)
    other = _trainer(model, checkpoint_samples=0, cache_folder=str(tmp_path / "cache"))
    assert result_parameters(plain) == result_parameters(other)
    assert plain.model_digest() == other.model_digest()
    for index, trainer in enumerate((plain, other, other)):
        trainer.train(data, tmp_path / str(index), num_samples=160, seed=1)
    assert _weights(tmp_path / "0") == _weights(tmp_path / "1") == _weights(tmp_path / "2")
    _trainer(model).train(data, tmp_path / "seed", num_samples=160, seed=2)
    assert _weights(tmp_path / "seed") != _weights(tmp_path / "0")


def test_it_learns_and_says_what_evaluations_need(
    data: Dataset, model: str, tmp_path: Path
) -> None:
    trainer = _trainer(model)
    trainer.train(data, tmp_path, num_samples=1600, seed=0)
    held_out = [_sample(i) for i in range(1000, 1100)]
    held_out[3] |= {"jpg": b"no image"}
    held_out[5] |= {"txt": b"  "}
    del held_out[7]["json"]
    test = _dataset(tmp_path, held_out, "test")
    found = trainer.load(tmp_path, test, ("class", "brightness", "index", "mixed"))
    assert isinstance(found, Embeddings)
    assert found.rows["key"].to_pylist() == [f"key{i:04d}" for i in range(100)]
    captions = found.rows["caption"].to_pylist()
    assert captions[:6] == ["a red card", "a green card", "a blue card", "a yellow card",
                            "a black card", None]  # fmt: skip
    assert found.rows["class"].to_pylist()[6:9] == ["pink", None, "red"]
    assert found.rows["index"].to_pylist()[98:] == [1098, 1099]
    assert found.rows["brightness"][0].as_py() == pytest.approx(280 / 3)
    assert found.rows["mixed"].to_pylist()[:2] == ["1000", "green"]
    image, text = found.vectors["image"], found.vectors["text"]
    assert np.isnan(image[3]).all()
    assert np.isnan(text[5]).all()
    used = np.delete(np.arange(100), [3, 5])
    for vectors in (image, text):
        assert vectors.dtype == np.float32
        assert np.linalg.norm(vectors[used], axis=1) == pytest.approx(1, abs=1e-5)
    classes = found.embed_texts([f"a {name} card" for name in COLORS])
    right = [list(COLORS).index(c) for c in (_class(i) for i in range(100))]
    assert (image[used] @ classes.T).argmax(1).tolist() == [right[i] for i in used]
    network = load_model(find_model(str(tmp_path)), device="cpu").network
    assert found.logit_scale == pytest.approx(float(network.logit_scale.detach().exp()))  # type: ignore[operator]
    assert found.logit_bias is None


def _class(index: int) -> str:
    return list(COLORS)[index % 8]


def test_vectors_are_those_of_the_model_one_by_one(data: Dataset) -> None:
    """Any model that clip_score can load; here a pretrained baseline."""
    trainer = ContrastiveTrainer(device="cpu")
    found = trainer.load(PACKAGED["tiny"], data, ())
    tiny = load_model(find_model("tiny"), device="cpu")
    for row in (0, 33, 63):
        sample = _sample(row)
        picture = tiny.preprocess.pixels(Image.open(io.BytesIO(sample["jpg"])))
        one = tiny.embed_images(torch.from_numpy(picture[None].copy()))[0].numpy()
        assert found.vectors["image"][row] == pytest.approx(one, abs=1e-5)
        text = tiny.embed_texts([sample["txt"].decode()])[0].numpy()
        assert found.vectors["text"][row] == pytest.approx(text, abs=1e-5)
    many = [f"{i} cards" for i in range(300)]
    assert found.embed_texts(many) == pytest.approx(tiny.embed_texts(many).numpy(), abs=1e-5)
    assert found.embed_texts([]).shape == (0, 192)


@pytest.mark.parametrize(
    "parameters",
    [
        {"hard_negatives": "swapped"},
        {"hard_negatives": "several", "loss": "siglip", "micro_batch_size": 5},
        {"shared_transformer": True, "separation_weight": 0.25},
        {"precision": "bf16"},
        {"precision": "bf16", "micro_batch_size": 6, "loss": "siglip"},
    ],
)
def test_every_option_learns_repeats_itself_and_loads(
    parameters: dict[str, Any], data: Dataset, model: str, tmp_path: Path
) -> None:
    trainer = _trainer(model, checkpoint_samples=0, **parameters)
    report = trainer.train(data, tmp_path / "a", num_samples=640, seed=0)
    assert report["loss_curve"][-1] < 0.8 * report["loss_curve"][0]
    trainer.train(data, tmp_path / "b", num_samples=640, seed=0)
    assert _weights(tmp_path / "a") == _weights(tmp_path / "b")
    assert load_file(tmp_path / "a" / "model.safetensors")["logit_scale"].dtype == torch.float32
    found = trainer.load(tmp_path / "a", data, ())
    classes = found.embed_texts([f"a {name} card" for name in COLORS])
    nearest = (found.vectors["image"] @ classes.T).argmax(1)
    assert np.mean(nearest == np.arange(64) % 8) > 0.6
    if "hard_negatives" in parameters:
        assert (
            report["data"]["num_hard_negatives"]
            == {"swapped": 48, "several": 32}[parameters["hard_negatives"]]
        )
    if "separation_weight" in parameters:
        assert report["separation_encoder"]["substitute"] is True


def test_hard_negatives_change_the_loss_by_what_they_add(
    data: Dataset, model: str, tmp_path: Path
) -> None:
    """The first loss: with 12 extra texts that are captions of the batch, known from the rest."""
    one = {"batch_size": 64, "augment_scale": 1.0, "brightness": 0.0, "checkpoint_samples": 0}
    losses = {}
    for column in (None, "swapped"):
        trainer = _trainer(model, **one, hard_negatives=column, vocabulary=560)
        report = trainer.train(data, tmp_path / str(column), num_samples=64, seed=0)
        losses[column] = report["loss_curve"][0]
    # At the start all cosines are nearly equal: ln 64 becomes the mean of ln 64 and ln (64 + 48).
    added = (np.log(64 + 48) - np.log(64)) / 2
    assert losses["swapped"] - losses[None] == pytest.approx(added, abs=0.1)


def test_weights_to_start_from(data: Dataset, model: str, tmp_path: Path) -> None:
    first = tmp_path / "first"
    report = _trainer(model).train(data, first, num_samples=1600, seed=0)
    again = _trainer(model, init=str(first), checkpoint_samples=0)
    second = again.train(data, tmp_path / "second", num_samples=160, seed=1)
    assert second["loss_curve"][0] < 0.7 * report["loss_curve"][0]
    merges = "bpe_merges.txt.gz"
    assert (tmp_path / "second" / merges).read_bytes() == (first / merges).read_bytes()
    assert again.model_digest() != _trainer(model).model_digest()
    tiny = ContrastiveTrainer(init=str(first), batch_size=16, device="cpu")
    with pytest.raises(SetupError, match="of another architecture: .* in the model to train"):
        tiny.check(data, 1600)
    with pytest.raises(RecipeError, match="leave vocabulary out"):
        _trainer(model, init=str(first), vocabulary=600).check(data, 1600)
    with pytest.raises(SetupError, match="two transformers"):
        _trainer(model, init=str(first), shared_transformer=True).check(data, 1600)


def test_a_state_of_another_network_is_refused(data: Dataset, model: str, tmp_path: Path) -> None:
    class Stop(BaseException):
        pass

    def stop() -> None:
        raise Stop

    with pytest.raises(Stop):
        _trainer(model).train(data, tmp_path, num_samples=1600, seed=0, saved=stop)
    wider = json.loads(Path(model).read_text())
    wider["model_cfg"]["embed_dim"] = 32
    (tmp_path / "wider.json").write_text(json.dumps(wider))
    with pytest.raises(SetupError, match="another network"):
        _trainer(str(tmp_path / "wider.json")).train(data, tmp_path, num_samples=1600, seed=0)
    (tmp_path / "training_state.pt").write_bytes(b"junk")
    with pytest.raises(SetupError, match="cannot be read"):
        _trainer(model).train(data, tmp_path, num_samples=1600, seed=0)


def test_what_cannot_train_is_refused_before_it_starts(
    data: Dataset, model: str, tmp_path: Path
) -> None:
    empty = Dataset(name="arm a", shards=(), digest="00", num_rows=0)
    with pytest.raises(SetupError, match="arm a: the selection is empty"):
        _trainer(model).check(empty, 1600)
    with pytest.raises(SetupError, match="train has 64 rows, fewer than a batch of 65"):
        _trainer(model, batch_size=65).check(data, 1600)
    with pytest.raises(RecipeError, match="'tinny' is no model"):
        ContrastiveTrainer(model="tinny", batch_size=16).check(data, 1600)
    with pytest.raises(RecipeError, match="separation_encoder='words'"):
        _trainer(model, separation_weight=1.0, separation_encoder="words").check(data, 1600)
    bad = [_sample(i) for i in range(64)]
    bad[9] |= {"jpg": b"no image"}
    damaged = _dataset(tmp_path, bad, "damaged")
    with pytest.raises(SetupError, match="pictures that cannot be read: 1 undecodable"):
        _trainer(model).train(damaged, tmp_path, num_samples=1600, seed=0)
    report = _trainer(model, skip_unreadable=True).train(
        damaged, tmp_path / "out", num_samples=64, seed=0
    )
    assert report["data"]["skipped"] == {"undecodable": 1}
    with pytest.raises(SetupError, match="no sample has a text in the column nothing"):
        _trainer(model, hard_negatives="nothing").train(data, tmp_path, num_samples=64, seed=0)
    with pytest.raises(SetupError, match="index of sample key0000 is no text"):
        _trainer(model, hard_negatives="index").train(data, tmp_path, num_samples=64, seed=0)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_loss_that_is_not_finite_fails_with_its_step(
    data: Dataset, model: str, tmp_path: Path
) -> None:
    trainer = _trainer(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("winnow.stages.train.loop._rate", lambda step, config: 1e30 if step else 0.0)
        with pytest.raises(ShardError, match=r"the loss is (nan|inf) at step [23]") as caught:
            trainer.train(data, tmp_path, num_samples=1600, seed=0)
    assert not caught.value.retryable
    assert not (tmp_path / "training.json").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"warmup": 1.0}, "warmup=1.0; use a share"),
        ({"num_threads": 0}, "num_threads=0"),
        ({"num_gpus": -1.0}, "num_gpus=-1.0"),
        ({"device": "cpu", "num_gpus": 1.0}, "device=cpu with num_gpus"),
        ({"batch_size": 0}, "batch_size=0: use at least 1"),
        ({"micro_batch_size": -1}, "micro_batch_size=-1"),
        ({"separation_weight": float("nan")}, "separation_weight=nan"),
        ({"learning_rate": 3.0}, "learning_rate=3.0"),
        ({"brightness": 1.5}, "brightness=1.5"),
    ],
)
def test_bad_parameters(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        ContrastiveTrainer(**values)


def test_a_recipe_finds_it_and_its_model_enters_the_fingerprint(model: str) -> None:
    factory = TRAINERS.find("contrastive")
    assert factory is ContrastiveTrainer
    trainer = factory(**validate(factory, {"model": "nano", "loss": "siglip"}))
    assert trainer.subject == "embeddings"
    assert trainer.resources.num_cpus == 1.0
    assert trainer.resources.num_gpus == 0.0
    assert ContrastiveTrainer(device="cuda").resources.num_gpus == 1.0
    assert ContrastiveTrainer(num_gpus=0.25, num_cpus=4.0).resources.num_gpus == 0.25
    assert ContrastiveTrainer(hard_negatives="swapped").columns == ("swapped",)
    digests = {ContrastiveTrainer(model=m).model_digest() for m in ("tiny", "small", "nano", model)}
    assert len(digests) == 4
    copy = Path(model).with_name("copy.json")
    copy.write_text(json.dumps(MODEL, indent=4))
    same = {ContrastiveTrainer(model=str(m)).model_digest() for m in (model, copy)}
    assert len(same) == 1
    weighted = {"separation_weight": 1.0}
    assert len({ContrastiveTrainer(**weighted, separation_encoder=e).model_digest()
                for e in ("hashed_words", "tiny")}) == 2  # fmt: skip


def test_the_registry_imports_no_torch() -> None:
    code = "import sys, winnow.stages.train.contrastive; print('torch' in sys.modules)"
    outcome = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert outcome.stdout.strip() == "False"


def _train_in_a_group(shards: tuple[str, ...], model: str, folder: Path, stop: bool) -> Any:
    from winnow.stages.train._config import TrainConfig
    from winnow.stages.train._network import Setup
    from winnow.stages.train.on_shards import train_setup

    config = TrainConfig(
        num_samples=320, batch_size=16, warmup_samples=32, learning_rate=1e-3, device="cpu",
        micro_batch_size=6, separation_weight=0.2, checkpoint_samples=160,
    )  # fmt: skip
    setup = Setup(model=model, hard_negatives="swapped", num_threads=1)

    def saved() -> None:
        if stop:
            msg = "stopped"
            raise ShardError(msg)

    return train_setup(shards, folder, config, setup, saved=saved)


def test_two_workers_train_the_model_of_one(data: Dataset, model: str, tmp_path: Path) -> None:
    """Without dropout, whose numbers depend on who embeds a row; interrupted and resumed."""
    still = json.loads(Path(model).read_text())
    still["model_cfg"]["vision_cfg"]["patch_dropout"] = 0.0
    (tmp_path / "still.json").write_text(json.dumps(still))
    path = str(tmp_path / "still.json")
    one = _train_in_a_group(data.shards, path, tmp_path / "one", stop=False)
    run = functools.partial(_train_in_a_group, data.shards, path, tmp_path / "two")
    with pytest.raises(ShardError, match="stopped"):
        run_local(functools.partial(run, stop=True), 2)
    assert (tmp_path / "two" / "training_state.pt").exists()
    two = run_local(functools.partial(run, stop=False), 2)
    assert two["loss_curve"] == pytest.approx(one["loss_curve"], abs=2e-3)
    first, second = (load_file(tmp_path / n / "model.safetensors") for n in ("one", "two"))
    for name, value in first.items():
        assert (second[name] - value).abs().max() < 2e-3, name
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == sorted(
        p.name for p in (tmp_path / "one").iterdir()
    )
