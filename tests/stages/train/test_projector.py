"""The trainer as a trial sees it: it learns, is killed and resumed, is refused, is measured."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from winnow.contracts.errors import RecipeError, SetupError, ShardError
from winnow.contracts.parameters import result_parameters, validate
from winnow.contracts.registry import TRAINERS
from winnow.contracts.trial import Captioner, Dataset
from winnow.models.matching import load_matching
from winnow.models.matching_files import find_matching
from winnow.models.projector_files import find_projector, load_projector
from winnow.stages.train._projector_schedule import Phase
from winnow.stages.train.projector import ProjectorTrainer

from .cards import COLORS, card, write_shard
from .projector_parts import language_model, tower

NAMES = list(COLORS)


def _sample(index: int) -> dict[str, bytes]:
    name = NAMES[index % 8]
    talk = [
        {"from": "human", "value": "<image>\nWhat color is the card?"},
        {"from": "gpt", "value": name},
        {"from": "human", "value": "Is it blue?"},
        {"from": "gpt", "value": "yes" if name == "blue" else "no"},
    ]
    document = {"class": name, "talk": None if index % 4 == 0 else talk}
    return {
        "png": card(COLORS[name], index, (32, 32), "PNG"),
        "txt": f"a {name} card".encode(),
        "json": json.dumps(document).encode(),
    }


def _dataset(folder: Path, samples: list[dict[str, bytes]], name: str = "train") -> Dataset:
    half = len(samples) // 2
    shards = (
        write_shard(folder / f"{name}-0.tar", samples[:half]),
        write_shard(folder / f"{name}-1.tar", samples[half:], start=half),
    )
    return Dataset(name=name, shards=shards, digest="00", num_rows=len(samples))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """16 coloured cards in two shards."""
    return _dataset(tmp_path_factory.mktemp("data"), [_sample(i) for i in range(16)])


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A tower and a language model of a few thousand weights."""
    folder = tmp_path_factory.mktemp("parts")
    return {"tower": tower(folder / "tower"), "language_model": language_model(folder / "lm")}


def _trainer(parts: dict[str, str], **parameters: Any) -> ProjectorTrainer:
    defaults: dict[str, Any] = {
        "batch_size": 8, "learning_rate": 3e-3, "device": "cpu", "checkpoint_samples": 0,
        "num_queries": 2, "depth": 1, "heads": 2,
    }  # fmt: skip
    return ProjectorTrainer(**{**parts, **defaults, **parameters})


def _weights(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.safetensors"))}


def test_it_learns_to_caption_and_says_what_evaluations_need(
    data: Dataset, parts: dict[str, str], tmp_path: Path
) -> None:
    """From nothing: LLaVA's two stages, the second with the whole language model."""
    trainer = _trainer(
        parts, schedule="llava", first_share=0.1, second_learning_rate=5e-3, batch_size=16
    )
    report = trainer.train(data, tmp_path / "model", num_samples=1600, seed=0)
    first, second = report["stages"]
    assert (first["trains"], second["trains"]) == ("connector", "connector+lm")
    assert (first["num_steps"], second["num_steps"]) == (10, 90)
    held_out = [_sample(i) for i in range(100, 116)]
    held_out[3] |= {"png": b"no image"}
    held_out[5] |= {"txt": b" "}
    found = trainer.load(
        tmp_path / "model", _dataset(tmp_path, held_out, "test"), ("class", "none")
    )
    assert isinstance(found, Captioner)
    assert found.rows["key"].to_pylist() == [f"key{i:04d}" for i in range(16) if i != 3]
    colors = found.rows["class"].to_pylist()
    assert found.rows["caption"].to_pylist()[:5] == [
        "a black card", "a white card", "a pink card", "a red card", None,
    ]  # fmt: skip
    assert found.rows["none"].null_count == 15
    rows = [*range(15), 0]
    said = found.generate(rows, [trainer.prompt] * 16, 12)
    assert [one.text for one in said[:15]] == [f"a {color} card" for color in colors]
    assert all(one.finished and one.num_tokens == 4 for one in said)
    assert said[15].text == said[0].text
    _check_likelihoods(found, said, trainer.prompt)


def _check_likelihoods(found: Captioner, said: list[Any], prompt: str) -> None:
    """Of its own answers, of answers about another picture, and where their tokens are."""
    rows, texts = list(range(15)), [one.text for one in said[:15]]
    own = found.token_log_likelihoods(rows, [prompt] * 15, texts)
    for one, logs in zip(said[:15], own, strict=True):
        assert logs.shape == (3,)
        end = one.log_likelihood - logs.sum()  # the end of the text, which is not among them
        assert -0.1 < end <= 1e-6
    swapped = found.token_log_likelihoods([*rows[1:], 0], [prompt] * 15, texts)
    drop = np.array(own) - np.array(swapped)
    assert (drop[:, 1] > 1).all()
    assert abs(drop[:, 0]).max() < 0.1
    assert found.tokens("a red card") == [(0, 1), (2, 5), (6, 10)]
    assert found.use_kind == "attention_mass"
    assert found.use_of_image is not None
    mass = np.array(found.use_of_image(rows, [prompt] * 15, texts))
    assert mass.shape == (15, 3)
    assert ((mass > 0) & (mass < 1)).all()
    assert found.facts["samples_without_picture"] == 1
    assert found.facts["image_tokens"] == 4


CHILD = """
import json
import sys
import time
from pathlib import Path
from winnow.contracts.trial import Dataset
from winnow.stages.train.projector import ProjectorTrainer

parameters, folder, *shards = sys.argv[1:]
data = Dataset(name="train", shards=tuple(shards), digest="00", num_rows=16)
ProjectorTrainer(**json.loads(parameters)).train(
    data, Path(folder), num_samples=160, seed=3,
    saved=lambda: print("saved", flush=True) or time.sleep(0.1),
)
"""


def test_a_killed_trial_ends_with_the_same_model(
    data: Dataset, parts: dict[str, str], tmp_path: Path
) -> None:
    """A child that waits after each state gets SIGKILL after its second one, in the last stage."""
    values = {
        **parts, "batch_size": 8, "device": "cpu", "checkpoint_samples": 56, "schedule": "llava",
        "text_share": 0.3, "conversations": "talk", "micro_batch_size": 5, "weight_decay": 0.05,
        "second_learning_rate": 1e-3,
    }  # fmt: skip
    trainer = ProjectorTrainer(**values)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = trainer.train(data, whole, num_samples=160, seed=3)
    command = [sys.executable, "-c", CHILD, json.dumps(values), str(killed), *data.shards]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as child:
        assert child.stdout is not None
        for _ in range(2):
            assert child.stdout.readline() == "saved\n"
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert child.returncode == -signal.SIGKILL
    assert (killed / "training_state.pt").exists()
    assert not (killed / "projector.json").exists()
    seen: list[int] = []
    found = trainer.train(data, killed, num_samples=160, seed=3, progress=seen.append)
    assert sum(seen) == 160
    assert 0 < sum(seen[1:]) <= 160 - 2 * 56
    assert found == expected
    assert _weights(killed) == _weights(whole)
    assert "lm.safetensors" in _weights(whole)
    names = [sorted(p.name for p in folder.iterdir()) for folder in (whole, killed)]
    assert names[0] == names[1]
    assert "training_state.pt" not in names[0]


class Stop(BaseException):
    """Ends a run after it has written a state."""


def _stop() -> None:
    raise Stop


@pytest.mark.parametrize(
    "parameters",
    [
        {
            "connector": "qformer",
            "representation_share": 0.5,
            "representation_learning_rate": 1e-3,
            "representation_batch_size": 12,
        },
        {"connector": "instruct_qformer", "conversations": "talk", "schedule": "llava_lora"},
        {"connector": "perceiver_xattn", "text_share": 0.4, "heads": 2},
    ],
)
def test_every_connector_goes_on_in_any_stage_and_loads(
    parameters: dict[str, Any], data: Dataset, parts: dict[str, str], tmp_path: Path
) -> None:
    """Stopped after every second step."""
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
    assert loaded.config.connector == parameters["connector"]
    if loaded.config.connector in ("qformer", "instruct_qformer"):
        # Whole after the first stage, though the connector goes on learning.
        matching = load_matching(find_matching(str(tmp_path / "whole")), device="cpu")
        learned = dict(loaded.connector.named_parameters())["queries"]
        kept = matching.first_stage.qformer.queries
        assert (learned - kept).abs().max() > 1e-5
        first = expected["stages"][0]
        assert first["objective"] == "representation"
        size = parameters.get("representation_batch_size", 8)
        assert (first["num_steps"], first["batch_size"]) == (24 // size, size)
        assert first["samples_seen"] == 24
    assert all(p.requires_grad is False for p in loaded.tower.parameters())


def test_effort_parameters_do_not_change_the_weights(
    data: Dataset, parts: dict[str, str], tmp_path: Path
) -> None:
    """Features kept or computed again each time, with tiles of wide pictures among them."""
    samples = [_sample(i) for i in range(16)]
    for index in (2, 9):
        samples[index] |= {"png": card(COLORS["pink"], index, (70, 32), "PNG")}
    wide = _dataset(tmp_path, samples, "wide")
    kept = _trainer(parts, max_tiles=2)
    again = dataclasses.replace(kept, cache_bytes=0, checkpoint_samples=16)
    assert result_parameters(kept) == result_parameters(again)
    assert kept.model_digest() == again.model_digest()
    for trainer, name in ((kept, "kept"), (again, "again")):
        trainer.train(wide, tmp_path / name, num_samples=48, seed=0)
    assert _weights(tmp_path / "kept") == _weights(tmp_path / "again")
    kept.train(wide, tmp_path / "seed", num_samples=48, seed=1)
    assert _weights(tmp_path / "seed") != _weights(tmp_path / "kept")
    views = [t.load(tmp_path / "kept", wide, ()) for t in (kept, again)]
    first, second = (v.token_log_likelihoods([2, 3], ["what"] * 2, ["a card"] * 2) for v in views)
    assert np.array_equal(first, second)


def test_passes_of_unequal_answers_add_up_to_the_whole_batch(
    data: Dataset, parts: dict[str, str], tmp_path: Path
) -> None:
    """Conversations and captions have different numbers of tokens; bf16 runs too."""
    loaded = {}
    for size in (0, 3):
        trainer = _trainer(parts, conversations="talk", micro_batch_size=size, warmup=0.0)
        report = trainer.train(data, tmp_path / str(size), num_samples=8, seed=0)
        loaded[size] = load_file(tmp_path / str(size) / "connector.safetensors")
        loaded[f"loss {size}"] = report["stages"][0]["loss_curve"]
    assert loaded["loss 0"] == pytest.approx(loaded["loss 3"], abs=2e-4)
    begun = load_file(_fresh(data, parts, tmp_path) / "connector.safetensors")
    for name, value in loaded[0].items():
        # Adam's first step is the sign of the gradient: tokens counted wrongly would turn some.
        assert (loaded[3][name] - value).abs().max() < 1e-4, name
        assert (begun[name] - value).abs().max() > 1e-3
    mixed = _trainer(parts, precision="bf16").train(data, tmp_path / "bf16", num_samples=8, seed=0)
    assert mixed["stages"][0]["loss_curve"][0] == pytest.approx(loaded["loss 0"][0], rel=0.2)


def _fresh(data: Dataset, parts: dict[str, str], folder: Path) -> Path:
    _trainer(parts, learning_rate=1e-12).train(data, folder / "fresh", num_samples=8, seed=0)
    return folder / "fresh"


def test_texts_alone_keep_the_language(
    data: Dataset, parts: dict[str, str], tmp_path: Path
) -> None:
    """Perplexity on lines that no picture goes with, learned in half of the last stage's steps."""
    lines = ["two pink card next to a black card .", "no red on the white card ."]
    (tmp_path / "lines.txt").write_text("\n\n".join(lines) + "\n")
    texts = str(tmp_path / "lines.txt")
    common = {"schedule": "llava", "first_share": 0.2, "second_learning_rate": 5e-3}
    trainer = _trainer(parts, **common, text_share=0.5, text_file=texts)
    report = trainer.train(data, tmp_path / "with", num_samples=200, seed=0)
    first, second = report["stages"]
    # Alone, the connector does not touch the language.
    assert first["text_share"] == 0
    assert first["text_perplexity_before"] == first["text_perplexity_after"]
    assert second["text_perplexity_before"] == first["text_perplexity_after"]
    assert second["text_perplexity_after"] < 0.3 * second["text_perplexity_before"]
    without = _trainer(parts, **common, text_file=texts)
    other = without.train(data, tmp_path / "without", num_samples=200, seed=0)
    assert other["stages"][1]["text_perplexity_after"] > second["text_perplexity_after"]
    assert trainer.model_digest() != _trainer(parts).model_digest()


def test_one_of_several_captions_is_learned_each_epoch(
    data: Dataset, parts: dict[str, str], tmp_path: Path
) -> None:
    samples = [_sample(i) for i in range(16)]
    for index, sample in enumerate(samples):
        choices = [f"the {NAMES[index % 8]} card", f"a {NAMES[index % 8]} picture", " "]
        sample["json"] = json.dumps({"all": choices if index % 2 else None}).encode()
        if index % 2:
            del sample["txt"]
    several = _dataset(tmp_path, samples, "several")
    trainer = _trainer(parts, caption_choices="all", batch_size=4)
    report = trainer.train(several, tmp_path / "model", num_samples=32, seed=0)
    assert report["data"]["num_samples"] == 16
    assert trainer.columns == ("all",)
    stopping = dataclasses.replace(trainer, checkpoint_samples=20)
    with pytest.raises(Stop):
        stopping.train(several, tmp_path / "cut", num_samples=32, seed=0, saved=_stop)
    assert trainer.train(several, tmp_path / "cut", num_samples=32, seed=0) == report
    assert _weights(tmp_path / "cut") == _weights(tmp_path / "model")
    with pytest.raises(SetupError, match="no sample has a list of texts in the column talks"):
        _trainer(parts, caption_choices="talks").train(data, tmp_path, num_samples=8, seed=0)


def test_texts_with_two_pictures_are_learned(parts: dict[str, str], tmp_path: Path) -> None:
    samples = []
    for index in range(8):
        one, two = NAMES[index], NAMES[(index + 3) % 8]
        row = [{"image": 0, "text": None}, {"image": None, "text": f"a {one} card"},
               {"image": 1, "text": None}, {"image": None, "text": f"a {two} card"}]  # fmt: skip
        sample = {
            "png": card(COLORS[one], index, (32, 32), "PNG"),
            "1.png": card(COLORS[two], index, (32, 32), "PNG"),
            "json": json.dumps({"row": row if index else None}).encode(),
        }
        samples.append(sample)
    del samples[7]["1.png"]
    pairs = _dataset(tmp_path, samples, "pairs")
    trainer = _trainer(
        parts, connector="perceiver_xattn", interleaved="row", batch_size=6, learning_rate=1e-2
    )
    report = trainer.train(pairs, tmp_path / "model", num_samples=360, seed=0)
    assert report["data"]["skipped"] == {"bad interleaved text": 1, "no image": 1}
    assert (report["data"]["num_samples"], report["data"]["num_pictures"]) == (6, 12)
    curve = report["stages"][0]["loss_curve"]
    assert curve[-1] < 0.6 * curve[0]
    assert trainer.columns == ("row",)


def test_a_model_to_start_from(data: Dataset, parts: dict[str, str], tmp_path: Path) -> None:
    first = tmp_path / "first"
    report = _trainer(parts).train(data, first, num_samples=320, seed=0)
    again = _trainer(parts, init=str(first))
    second = again.train(data, tmp_path / "second", num_samples=16, seed=1)
    assert second["stages"][0]["loss_curve"][0] < 0.8 * report["stages"][0]["loss_curve"][0]
    assert second["model"]["started_from"] == find_projector(str(first)).digest()
    assert again.model_digest() != _trainer(parts).model_digest()
    with pytest.raises(SetupError, match="has depth=1, the model to train depth=2"):
        _trainer(parts, init=str(first), depth=2).check(data, 16)
    other = {**parts, "language_model": language_model(tmp_path / "lm", width=16)}
    with pytest.raises(SetupError, match="another language_model than"):
        _trainer(other, init=str(first)).check(data, 16)


def test_what_cannot_train_is_refused_before_it_starts(
    data: Dataset, parts: dict[str, str], tmp_path: Path
) -> None:
    empty = Dataset(name="arm a", shards=(), digest="00", num_rows=0)
    with pytest.raises(SetupError, match="arm a: the selection is empty"):
        _trainer(parts).check(empty, 16)
    with pytest.raises(SetupError, match="train has 16 rows, fewer than a batch of 17"):
        _trainer(parts, batch_size=17).check(data, 16)
    with pytest.raises(RecipeError, match="'patchez' is no model"):
        _trainer({**parts, "tower": "patchez"}).check(data, 16)
    random = {**parts, "language_model": language_model(tmp_path / "lm", weights=False)}
    with pytest.raises(SetupError, match="allow_random_lm: true"):
        _trainer(random).check(data, 16)
    _trainer(random, allow_random_lm=True).check(data, 16)
    with pytest.raises(SetupError, match="text_file=.* cannot be read"):
        _trainer(
            parts, schedule="llava", text_share=0.5, text_file=str(tmp_path / "none.txt")
        ).check(data, 16)
    silent = [{k: v for k, v in _sample(i).items() if k != "txt"} for i in range(16)]
    talks = _dataset(tmp_path, silent, "talks")
    with pytest.raises(SetupError, match="learns from captions, which 0 samples have"):
        _trainer(parts, schedule="llava", conversations="talk").train(
            talks, tmp_path / "out", num_samples=16, seed=0
        )
    report = _trainer(parts, conversations="talk").train(
        talks, tmp_path / "out", num_samples=16, seed=0
    )
    assert report["data"]["skipped"] == {"no caption": 4}
    assert report["data"]["num_conversations"] == 12


def test_a_state_of_another_run_is_refused(
    data: Dataset, parts: dict[str, str], tmp_path: Path
) -> None:
    trainer = _trainer(parts, checkpoint_samples=8)
    with pytest.raises(Stop):
        trainer.train(data, tmp_path, num_samples=64, seed=0, saved=_stop)
    for other in ({"learning_rate": 1e-4}, {"prompt": "What is this?"}, {"captions": "json"}):
        with pytest.raises(SetupError, match="other parameters or data"):
            dataclasses.replace(trainer, **other).train(data, tmp_path, num_samples=64, seed=0)


def test_a_broken_state_is_never_written_so_the_next_run_heals(
    data: Dataset, parts: dict[str, str], tmp_path: Path
) -> None:
    """A fault at a step with a state; the one before it ends like a run without the fault."""
    trainer, rate = _trainer(parts, checkpoint_samples=16), Phase.rate
    expected = trainer.train(data, tmp_path / "whole", num_samples=48, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Phase, "rate", lambda phase, n: math.inf if n == 3 else rate(phase, n))
        with pytest.raises(ShardError, match="are not finite after step 4;") as caught:
            trainer.train(data, tmp_path / "cut", num_samples=48, seed=1)
    assert not caught.value.retryable
    seen: list[int] = []
    found = trainer.train(data, tmp_path / "cut", num_samples=48, seed=1, progress=seen.append)
    assert seen == [2 * 8, *[8] * 4]
    assert found == expected
    assert _weights(tmp_path / "cut") == _weights(tmp_path / "whole")


def test_a_loss_that_is_not_finite_fails_with_its_step(
    data: Dataset, parts: dict[str, str], tmp_path: Path
) -> None:
    """Embeddings that overflow in the softmax."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(parts["language_model"])
    with torch.no_grad():
        network.lm_head.weight.fill_(3e38)
    network.save_pretrained(tmp_path / "lm")
    AutoTokenizer.from_pretrained(parts["language_model"]).save_pretrained(tmp_path / "lm")
    trainer = _trainer({**parts, "language_model": str(tmp_path / "lm")})
    with pytest.raises(ShardError, match=r"the loss is (nan|inf) at step 1;") as caught:
        trainer.train(data, tmp_path / "out", num_samples=16, seed=0)
    assert not caught.value.retryable
    assert not (tmp_path / "out" / "training.json").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"connector": "mpl"}, "connector='mpl'; use one of linear, mlp"),
        ({"schedule": "blip"}, "schedule='blip'; use one of connector, llava, llava_lora"),
        ({"interleaved": "row"}, "connector=mlp: only perceiver_xattn"),
        ({"interleaved": "row", "connector": "perceiver_xattn", "schedule": "llava"},
         "use schedule: connector"),
        ({"interleaved": "row", "connector": "perceiver_xattn", "conversations": "talk"},
         "exclude each other"),
        ({"text_share": 0.3}, "nothing would learn from them"),
        ({"text_share": 0.6, "schedule": "llava"}, "text_share=0.6; use a share from 0 to 0.5"),
        ({"representation_share": 0.5}, "only qformer and instruct_qformer"),
        ({"warmup": 1.5}, "warmup=1.5"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"num_queries": 0}, "num_queries=0; use at least 1"),
        ({"device": "cpu", "num_gpus": 1.0}, "device=cpu with num_gpus"),
        ({"num_gpus": -1.0}, "num_gpus=-1.0"),
    ],
)  # fmt: skip
def test_bad_parameters(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        ProjectorTrainer(**values)


def test_a_recipe_finds_it(parts: dict[str, str]) -> None:
    factory = TRAINERS.find("projector")
    assert factory is ProjectorTrainer
    trainer = factory(**validate(factory, {**parts, "connector": "qformer", "device": "cuda"}))
    assert trainer.subject == "captions"
    assert trainer.resources.num_gpus == 1.0
    assert ProjectorTrainer(conversations="talk").columns == ("talk",)
    code = "import sys, winnow.stages.train.projector; print('torch' in sys.modules)"
    outcome = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert outcome.stdout.strip() == "False"
