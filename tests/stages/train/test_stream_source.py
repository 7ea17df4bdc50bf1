"""The trainer on a stream: learns, resumes to the same bytes, counts and refuses as in memory."""

from __future__ import annotations

import contextlib
import functools
import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file

from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.parameters import result_parameters
from winnow.contracts.trial import Dataset
from winnow.models.checkpoint import find_model
from winnow.models.contrastive import load_model
from winnow.models.tokenizer import Tokenizer
from winnow.stages.train._stream_source import StreamSource
from winnow.stages.train.contrastive import ContrastiveTrainer
from winnow.stages.train.distributed import current_workers, run_local
from winnow.stages.train.streaming import StreamConfig

from .cards import COLORS, architecture, card, write_shard

MODEL = architecture(context_length=8)
SHARDS, ROWS = 4, 16


def _sample(index: int) -> dict[str, bytes]:
    names = list(COLORS)
    name = names[index % 8]
    wrong = None if index % 4 else f"a {names[(index + 1) % 8]} card"
    return {
        "png": card(COLORS[name], index, (40, 40), "PNG"),
        "txt": f"a {name} card {index}".encode(),
        "json": json.dumps({"wrong": wrong, "none": None, "index": index}).encode(),
    }


def _dataset(folder: Path, samples: list[dict[str, bytes]]) -> Dataset:
    folder.mkdir(exist_ok=True)
    starts = range(0, SHARDS * ROWS, ROWS)
    shards = [
        write_shard(folder / f"{n}.tar", samples[start : start + ROWS], start=start)
        for n, start in enumerate(starts)
    ]
    return Dataset(name="train", shards=tuple(shards), digest="ab", num_rows=len(samples))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """64 coloured pictures in four shards."""
    samples = [_sample(i) for i in range(SHARDS * ROWS)]
    return _dataset(tmp_path_factory.mktemp("data"), samples)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Two pictures cannot be decoded, and one sample has no caption."""
    samples = [_sample(i) for i in range(SHARDS * ROWS)]
    for index in (9, 50):
        samples[index] |= {"png": b"no image"}
    samples[20] |= {"txt": b" "}
    return _dataset(tmp_path_factory.mktemp("damaged"), samples)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("architecture") / "model.json"
    path.write_text(json.dumps(MODEL))
    return str(path)


def _trainer(model: str, **parameters: Any) -> ContrastiveTrainer:
    defaults: dict[str, Any] = {
        "model": model, "batch_size": 16, "learning_rate": 4e-3, "device": "cpu",
        "checkpoint_samples": 0, "stream": True, "num_lanes": 4, "buffer_samples": 32,
    }  # fmt: skip
    return ContrastiveTrainer(**{**defaults, **parameters})


def _weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_stream_learns_with_clips_whole_vocabulary(
    data: Dataset, model: str, tmp_path: Path
) -> None:
    trainer = _trainer(model)
    report = trainer.train(data, tmp_path, num_samples=960, seed=0)
    assert report["loss_curve"][-1] < 0.8 * report["loss_curve"][0]
    assert {k: report["data"][k] for k in ("num_samples", "num_hard_negatives", "skipped")} == {
        "num_samples": 64, "num_hard_negatives": 0, "skipped": {},
    }  # fmt: skip
    assert report["setup"]["num_lanes"] == 4
    assert "skipped" not in report
    assert json.loads((tmp_path / "training.json").read_text()) == report
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "model.safetensors", "open_clip_config.json", "training.json",
    ]  # fmt: skip
    network = load_model(find_model(str(tmp_path)), device="cpu").network
    assert network.token_embedding.weight.shape[0] == 49_408  # type: ignore[union-attr, index]
    found = trainer.load(tmp_path, data, ())
    classes = found.embed_texts([f"a {name} card" for name in COLORS])
    nearest = (found.vectors["image"] @ classes.T).argmax(1)
    assert np.mean(nearest == np.arange(64) % 8) > 0.6


def test_the_shards_and_their_content_name_the_data(
    data: Dataset, model: str, tmp_path: Path
) -> None:
    """The state of a stream is of its shards: another export is refused, threads are not."""
    other = Dataset(name="train", shards=data.shards, digest="cd", num_rows=64)
    one = _trainer(model).train(data, tmp_path / "one", num_samples=160, seed=1)
    two = _trainer(model, num_threads=3).train(data, tmp_path / "two", num_samples=160, seed=1)
    assert one["data"]["digest"] == two["data"]["digest"]
    assert one["loss_curve"] == pytest.approx(two["loss_curve"], abs=2e-4)  # rounded to 1e-4
    third = _trainer(model).train(other, tmp_path / "three", num_samples=16, seed=1)
    assert third["data"]["digest"] != one["data"]["digest"]


@pytest.mark.parametrize("stop_after", [1, 3])
def test_an_interrupted_run_ends_with_the_same_bytes(
    stop_after: int, damaged: Dataset, model: str, tmp_path: Path
) -> None:
    """Stopped in the first epoch and in a later one; what was skipped before is not forgotten."""
    trainer = _trainer(
        model, checkpoint_samples=32, skip_unreadable=True, hard_negatives="wrong",
        micro_batch_size=8,
    )  # fmt: skip
    expected = trainer.train(damaged, tmp_path / "whole", num_samples=160, seed=3)
    assert expected["data"]["skipped"] == {"no caption": 1, "undecodable": 2}
    assert expected["data"]["num_samples"] == 61
    left = [stop_after]

    def stop() -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.train(damaged, tmp_path / "cut", num_samples=160, seed=3, saved=stop)
    assert (tmp_path / "cut" / "training_state.pt").exists()
    seen: list[int] = []
    found = trainer.train(damaged, tmp_path / "cut", num_samples=160, seed=3, progress=seen.append)
    assert sum(seen) == 160
    assert sum(seen[1:]) == 160 - 32 * stop_after - 16
    assert found == expected
    assert _weights(tmp_path / "cut") == _weights(tmp_path / "whole")


def test_an_epoch_gives_the_loop_every_sample_once(data: Dataset) -> None:
    tokenizer = Tokenizer(SimpleTokenizer(context_length=8), 8)
    captions = tokenizer([_sample(i)["txt"].decode() for i in range(64)])
    orders = []
    for threads in (1, 4):
        source = StreamSource(
            dict.fromkeys(data.shards, ROWS),
            lambda image: np.asarray(image.resize((2, 2)), np.uint8),
            tokenizer,
            StreamConfig(batch_size=8, num_lanes=2, buffer_samples=16, num_threads=threads),
        )
        shown = [row for batch in islice(source.batches(0), 8) for row in batch[1].tolist()]
        assert sorted(shown) == sorted(captions.tolist())
        orders.append(shown)
    assert orders[0] == orders[1] != captions.tolist()


def test_a_stream_starts_from_a_model_and_its_vocabulary(
    data: Dataset, model: str, tmp_path: Path
) -> None:
    first = _trainer(model, stream=False, num_lanes=1, buffer_samples=4096)
    before = first.train(data, tmp_path / "first", num_samples=960, seed=0)
    again = _trainer(model, init=str(tmp_path / "first"))
    report = again.train(data, tmp_path / "second", num_samples=64, seed=1)
    assert report["loss_curve"][0] < 0.9 * before["loss_curve"][0]
    merges = "bpe_merges.txt.gz"
    assert (tmp_path / "second" / merges).read_bytes() == (tmp_path / "first" / merges).read_bytes()


def test_what_a_stream_cannot_do_is_refused(
    data: Dataset, damaged: Dataset, model: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="vocabulary=600 with stream: .* or give init"):
        _trainer(model, vocabulary=600)
    with pytest.raises(RecipeError, match=r"separation_weight=0\.5 with stream"):
        _trainer(model, separation_weight=0.5)
    with pytest.raises(RecipeError, match="num_lanes=3: use a divisor of batch_size=16"):
        _trainer(model, num_lanes=3)
    with pytest.raises(RecipeError, match="set stream: true"):
        _trainer(model, stream=False)
    with pytest.raises(RecipeError, match="num_workers=0"):
        _trainer(model, num_workers=0)
    with pytest.raises(RecipeError, match="batch_size=16: use a multiple of num_workers=3"):
        _trainer(model, num_workers=3)
    with pytest.raises(RecipeError, match="num_lanes=4: use a multiple of num_workers=8"):
        _trainer(model, num_workers=8)
    with pytest.raises(SetupError, match="train has 4 shards, fewer than num_lanes=8"):
        _trainer(model, num_lanes=8).check(data, 160)
    with pytest.raises(SetupError, match="num_workers=2, but 1 were started"):
        _trainer(model, num_workers=2).train(data, tmp_path, num_samples=16, seed=0)
    with pytest.raises(SetupError, match="no sample has a text in the column none"):
        _trainer(model, hard_negatives="none").train(data, tmp_path, num_samples=16, seed=0)
    with pytest.raises(SetupError, match="cannot be read: 1 undecodable in one batch"):
        _trainer(model).train(damaged, tmp_path, num_samples=160, seed=0)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_trial_that_streams_nothing_keeps_its_name() -> None:
    """The fingerprint of what was trained before there were streams."""
    new = {"stream", "num_lanes", "buffer_samples", "num_workers"}
    assert new.isdisjoint(result_parameters(ContrastiveTrainer()))
    given = result_parameters(ContrastiveTrainer(stream=True, num_lanes=2, num_workers=2))
    assert {name: given[name] for name in new & given.keys()} == {
        "stream": True, "num_lanes": 2, "num_workers": 2,
    }  # fmt: skip


def _train_both(
    trainers: dict[str, ContrastiveTrainer], data: Dataset, folder: Path, stop: bool
) -> dict[str, Any]:
    def saved() -> None:
        if stop:
            raise KeyboardInterrupt

    own = folder / f"worker{current_workers().rank}"
    found = {}
    for name, trainer in trainers.items():
        with contextlib.suppress(KeyboardInterrupt):
            found[name] = trainer.train(data, own / name, num_samples=96, seed=5, saved=saved)
    return found


def test_workers_with_folders_of_their_own_resume_from_the_first(
    damaged: Dataset, model: str, tmp_path: Path
) -> None:
    """In memory and on a stream: the state is in the first one's folder only."""
    common = {"skip_unreadable": True, "checkpoint_samples": 48}
    memory = {"stream": False, "num_lanes": 1, "buffer_samples": 4096}

    def trainers(num_workers: int) -> dict[str, ContrastiveTrainer]:
        given: dict[str, Any] = {**common, "num_workers": num_workers}
        return {"stream": _trainer(model, **given), "memory": _trainer(model, **given, **memory)}

    expected = _train_both(trainers(1), damaged, tmp_path / "alone", stop=False)
    assert _train_both(trainers(1), damaged, tmp_path / "group", stop=True) == {}
    states = {p.relative_to(tmp_path / "group") for p in tmp_path.glob("group/*/*/*")}
    assert {str(s) for s in states} == {
        f"worker0/{name}/training_state.pt" for name in ("stream", "memory")
    }
    reports = run_local(
        functools.partial(_train_both, trainers(2), damaged, tmp_path / "group", stop=False), 2
    )
    for name, report in reports.items():
        assert report["data"] == expected[name]["data"]
        assert report["data"]["skipped"] == {"no caption": 1, "undecodable": 2}
        assert report["loss_curve"] == pytest.approx(expected[name]["loss_curve"], abs=2e-3)
        first, second = (
            load_file(tmp_path / n / "worker0" / name / "model.safetensors")
            for n in ("alone", "group")
        )
        for parameter, value in first.items():
            assert (second[parameter] - value).abs().max() < 2e-3, parameter
        assert list((tmp_path / "group" / "worker1" / name).iterdir()) == []
