"""Several captions per sample: drawn by seed, epoch and key, alike in memory and in a stream."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from open_clip.tokenizer import SimpleTokenizer

from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.identity import stable_hash64
from winnow.contracts.parameters import result_parameters
from winnow.contracts.trial import Dataset
from winnow.models.tokenizer import Tokenizer
from winnow.stages.train import _memory_source as memory
from winnow.stages.train._captions import caption_number
from winnow.stages.train._config import TrainConfig
from winnow.stages.train._network import Setup
from winnow.stages.train._stream_source import StreamSource
from winnow.stages.train.contrastive import ContrastiveTrainer
from winnow.stages.train.shards import Samples
from winnow.stages.train.streaming import ShardStream, StreamConfig

from .cards import COLORS, architecture, card, write_shard

SHARDS, ROWS, SEED = 2, 16, 5
NAMES = list(COLORS)


def _captions(index: int) -> list[str | None] | None:
    """Null, none, one, or several captions."""
    several: list[str | None] = [f"caption {i} of {index}" for i in range(index % 5)]
    return [None, [], several, [*several, None, " "]][index % 4]


def _expected(index: int, epoch: int) -> str:
    there = [c for c in _captions(index) or [] if c and c.strip()] or [f"text of {index}"]
    return there[stable_hash64("caption", SEED, epoch, f"key{index:04d}") % len(there)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("data")
    samples = [
        {
            "png": card(COLORS[NAMES[i % 8]], i, (40, 40), "PNG"),
            "txt": f"text of {i}".encode(),
            "json": json.dumps(
                {"several": _captions(i), "same": [f"text of {i}"], "words": "a", "none": []}
            ).encode(),
        }
        for i in range(SHARDS * ROWS)
    ]
    starts = range(0, SHARDS * ROWS, ROWS)
    shards = [write_shard(folder / f"{s}.tar", samples[s : s + ROWS], start=s) for s in starts]
    return Dataset(name="train", shards=tuple(shards), digest="ab", num_rows=len(samples))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("architecture") / "model.json"
    path.write_text(json.dumps(architecture(context_length=8)))
    return str(path)


def _trainer(model: str, **parameters: Any) -> ContrastiveTrainer:
    defaults: dict[str, Any] = {
        "model": model, "batch_size": 16, "learning_rate": 4e-3, "device": "cpu",
        "checkpoint_samples": 32,
    }  # fmt: skip
    return ContrastiveTrainer(**{**defaults, **parameters})


def test_memory_draws_what_a_naive_loop_draws() -> None:
    num_samples, size = 11, 4
    keys = [f"key{i:04d}" for i in range(num_samples)]
    samples = Samples(
        pixels=np.zeros((num_samples, 1, 1, 3), np.uint8),
        texts=[f"text of {i}" for i in range(num_samples)],
        digest="",
        skipped={},
        keys=keys,
        columns={"several": [_captions(i) for i in range(num_samples)]},
    )
    lists = memory.caption_lists(samples, "several")
    flat = [text for texts in lists for text in texts]
    source = memory.MemorySource(
        samples=samples,
        tokens=np.arange(len(flat), dtype=np.int32)[:, None],
        starts=np.cumsum([0, *map(len, lists)]),
        negatives=None,
        present=None,
        meanings=None,
        config=TrainConfig(batch_size=size, seed=SEED),
    )
    shown = [
        flat[token] for batch in islice(source.batches(0), 33) for token in batch[1][:, 0].tolist()
    ]
    assert len(shown) == 12 * num_samples
    for place, text in enumerate(shown):
        epoch, inside = divmod(place, num_samples)
        order = np.random.default_rng([SEED, epoch]).permutation(num_samples)
        assert text == _expected(int(order[inside]), epoch), place
    assert set(shown) == set(flat)  # in 12 epochs each caption has its turn
    later = next(iter(source.batches(7)))[1][:, 0].tolist()
    assert [flat[token] for token in later] == shown[28:32]


def test_a_stream_draws_what_memory_draws(data: Dataset) -> None:
    config = StreamConfig(
        batch_size=8, seed=SEED, num_lanes=2, buffer_samples=8, caption_choices="several"
    )

    def shown(step: int, count: int, config: StreamConfig = config) -> list[list[str]]:
        sizes = dict.fromkeys(data.shards, ROWS)
        stream = ShardStream(sizes, lambda image: np.zeros((1, 1, 3), np.uint8), config)
        return [batch.texts for batch in islice(stream.batches(step), count)]

    batches = shown(0, 12)
    for epoch in range(3):
        texts = Counter(text for batch in batches[4 * epoch : 4 * epoch + 4] for text in batch)
        assert texts == Counter(_expected(i, epoch) for i in range(SHARDS * ROWS))
    assert shown(5, 7) == batches[5:]
    tokens = StreamSource(
        dict.fromkeys(data.shards, ROWS),
        lambda image: np.zeros((1, 1, 3), np.uint8),
        tokenizer := Tokenizer(SimpleTokenizer(context_length=8), 8),
        config,
    )
    assert next(tokens.batches(6))[1].tolist() == tokenizer(batches[6]).tolist()


def test_draws_are_even_and_change_with_every_part() -> None:
    counts = Counter(caption_number(0, epoch, "a key", 3) for epoch in range(3000))
    assert all(900 < counts[number] < 1100 for number in range(3))
    draws = {
        tuple(caption_number(seed, epoch, key, 7) for epoch in range(9))
        for seed in (0, 1)
        for key in ("a", "b")
    }
    assert len(draws) == 4
    assert caption_number(0, 0, "a", 1) == 0


@pytest.mark.parametrize("stream", [False, True])
def test_an_interrupted_run_ends_with_the_same_bytes(
    stream: bool, data: Dataset, model: str, tmp_path: Path
) -> None:
    trainer = _trainer(model, caption_choices="several", stream=stream)
    expected = trainer.train(data, tmp_path / "whole", num_samples=96, seed=3)
    assert expected["setup"]["caption_choices"] == "several"
    if not stream:
        several = sum(
            max(1, len([c for c in _captions(i) or [] if c and c.strip()])) for i in range(32)
        )
        assert expected["data"]["num_captions"] == several

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.train(data, tmp_path / "cut", num_samples=96, seed=3, saved=stop)
    assert trainer.train(data, tmp_path / "cut", num_samples=96, seed=3) == expected
    weights = [(tmp_path / f / "model.safetensors").read_bytes() for f in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_one_caption_is_the_plain_trial(data: Dataset, model: str, tmp_path: Path) -> None:
    """The same weights as without the parameter, whose report says nothing of it."""
    plain = _trainer(model).train(data, tmp_path / "plain", num_samples=64, seed=3)
    same = _trainer(model, caption_choices="same").train(
        data, tmp_path / "same", num_samples=64, seed=3
    )
    weights = [(tmp_path / f / "model.safetensors").read_bytes() for f in ("plain", "same")]
    assert weights[0] == weights[1]
    assert plain["loss_curve"] == same["loss_curve"]
    assert "caption_choices" not in plain["setup"]
    assert "num_captions" not in plain["data"]
    assert plain["data"]["digest"] != same["data"]["digest"]


def test_a_trial_without_it_keeps_its_name() -> None:
    assert ContrastiveTrainer.version == 1
    assert "caption_choices" not in result_parameters(ContrastiveTrainer())
    several = ContrastiveTrainer(caption_choices="chosen_caption_all", hard_negatives="wrong")
    assert result_parameters(several)["caption_choices"] == "chosen_caption_all"
    assert several.columns == ("wrong", "chosen_caption_all")
    assert "caption_choices" not in Setup().recorded()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("words", "words of sample key0000 is no list of texts"),
        ("none", "no sample has a list of texts in the column none"),
        ("absent", "no sample has a list of texts in the column absent"),
    ],
)
def test_a_column_without_captions_is_refused(
    stream: bool, column: str, message: str, data: Dataset, model: str, tmp_path: Path
) -> None:
    trainer = _trainer(model, caption_choices=column, stream=stream)
    with pytest.raises(SetupError, match=message):
        trainer.train(data, tmp_path, num_samples=32, seed=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"caption_choices": ""}, "name a .json column"),
        ({"caption_choices": "a", "hard_negatives": "a"}, "with true captions"),
        ({"caption_choices": "a", "separation_weight": 1.0}, "one caption per sample"),
    ],
)
def test_bad_parameters(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        ContrastiveTrainer(**values)
