"""Which networks are trained and how they start; what is refused before any shard is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from winnow.contracts.errors import RecipeError
from winnow.contracts.trial import Dataset
from winnow.stages.train.contrastive import ContrastiveTrainer

from .cards import COLORS, architecture, card, write_shard

NOT_READ = Dataset(name="train", shards=("/no/such.tar",), digest="00", num_rows=64)
OTHERS = "Gr\u00fc\u00dfe {}: the quick brown fox ate {} \u6f22\u5b57"
CAPTIONS = {
    "cards": [f"a {name} card" for name in COLORS],
    "others": [OTHERS.format(n, n * n) for n in range(24)],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An architecture of a few thousand weights, with a vocabulary that captions choose."""
    path = tmp_path_factory.mktemp("architecture") / "model.json"
    path.write_text(json.dumps(architecture()))
    return str(path)


def _start(
    model: str, captions: list[str], folder: Path, *, seed: int = 7, **parameters: Any
) -> Path:
    """Train at a rate of 0: the model that is written is the one that training starts from."""
    torch.rand(3)  # another state of the generator that everything in a process shares
    folder.mkdir()
    color = next(iter(COLORS.values()))
    samples = [
        {"jpg": card(color, index, (32, 32)), "txt": text.encode()}
        for index, text in enumerate(captions)
    ]
    shard = write_shard(folder / "0.tar", samples)
    data = Dataset(name="train", shards=(shard,), digest="00", num_rows=len(samples))
    trainer = ContrastiveTrainer(model=model, batch_size=8, device="cpu", **parameters)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("winnow.stages.train.loop._rate", lambda step, config: 0.0)
        trainer.train(data, folder / "model", num_samples=16, seed=seed)
    return folder / "model"


@pytest.mark.parametrize(
    "parameters",
    [{}, {"loss": "siglip"}, {"shared_transformer": True}, {"vocabulary": 700}, {"stream": True}],
)
def test_arms_of_one_seed_start_from_the_same_weights(
    parameters: dict[str, Any], model: str, tmp_path: Path
) -> None:
    """Bit for bit, though the captions choose another vocabulary of the same size."""
    arms = [_start(model, texts, tmp_path / arm, **parameters) for arm, texts in CAPTIONS.items()]
    first, second = ((arm / "model.safetensors").read_bytes() for arm in arms)
    assert first == second
    other_seed = _start(model, CAPTIONS["cards"], tmp_path / "seed", seed=8, **parameters)
    assert (other_seed / "model.safetensors").read_bytes() != first
    if "stream" not in parameters:
        one, other = ((arm / "bpe_merges.txt.gz").read_bytes() for arm in arms)
        assert one != other


def test_siglip_starts_at_a_temperature_of_10_and_a_bias_of_minus_10(
    model: str, tmp_path: Path
) -> None:
    """Zhai et al. 2023, section 3.2; CLIP at 1 / 0.07 and without a bias."""
    written = load_file(
        _start(model, CAPTIONS["cards"], tmp_path / "a", loss="siglip") / "model.safetensors"
    )
    assert float(written["logit_bias"]) == -10
    assert float(written["logit_scale"].exp()) == pytest.approx(10, rel=1e-6)
    clip = load_file(_start(model, CAPTIONS["cards"], tmp_path / "b") / "model.safetensors")
    assert "logit_bias" not in clip
    assert float(clip["logit_scale"].exp()) == pytest.approx(1 / 0.07, rel=1e-6)


@pytest.mark.parametrize("name", ["RN50", "MobileCLIP2-S0"])
def test_parts_of_a_batch_are_refused_where_batch_norm_mixes_its_rows(name: str) -> None:
    given: dict[str, Any] = {"model": name, "batch_size": 16, "device": "cpu"}
    with pytest.raises(RecipeError, match=rf"micro_batch_size=8: model='{name}' has BatchNorm"):
        ContrastiveTrainer(**given, micro_batch_size=8).check(NOT_READ, 1600)
    for whole in (0, 16, 17):
        ContrastiveTrainer(**given, micro_batch_size=whole).check(NOT_READ, 1600)


@pytest.mark.parametrize(
    "parameters",
    [{"model": "tiny"}, {"model": "ViT-B-32"}, {"model": "small", "shared_transformer": True}],
)
def test_parts_of_a_batch_are_allowed_elsewhere_and_the_check_draws_no_numbers(
    parameters: dict[str, Any],
) -> None:
    torch.manual_seed(99)
    state = torch.get_rng_state()
    ContrastiveTrainer(**parameters, batch_size=16, micro_batch_size=8).check(NOT_READ, 1600)
    assert torch.equal(torch.get_rng_state(), state)
