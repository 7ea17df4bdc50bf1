"""What a token of text costs, against sums by hand and differences of whole passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.projector_audio_parts import audio_tower
from tests.models.projector_parts import CONNECTORS, WIDTH, build, language_model, tower
from winnow.models.flops import count_flops
from winnow.models.projector import Projector, ProjectorConfig, build_projector
from winnow.models.projector_measures import TEXT_TOKENS

pytest.importorskip("transformers")
pytest.importorskip("peft")

ROTARY = 2 * (WIDTH // 4 // 2)
"""Of one token; a matrix product in some versions of transformers."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parts")
    tower(path / "tower")
    language_model(path / "lm")
    language_model(path / "gpt2", "gpt2", bos=False)
    return path


def by_differences(projector: Projector, num_text: int) -> float:
    """One more token of ``num_text``, from passes over whole rows without a cache.

    Such a pass over n tokens takes a n + c n^2 operations, with n attended to by each of them (no
    kernel that counts leaves out the half that is masked), and one token with a cache a + c n.
    """
    gated, network = projector.gated, projector.network
    features = torch.zeros(1, projector.tower.patches_per_tile, projector.tower.width)
    tokens = projector.image_tokens(features, None, num_rows=1, instructions=["Describe."]).tokens
    before = tokens if gated is None else tokens[:, :0]

    def whole(num_tokens: int) -> int:
        ids = torch.ones(1, num_tokens, dtype=torch.long)
        row: Any = torch.cat([before, projector.language.embed(ids)], dim=1)
        if gated is None:
            return count_flops(lambda: network(inputs_embeds=row, use_cache=False))
        real = torch.ones(1, 1, tokens.shape[1], dtype=torch.bool)
        with gated.looking_at(gated.media(tokens[:, None], real, torch.zeros_like(ids))):
            return count_flops(lambda: network(inputs_embeds=row, use_cache=False))

    last, middle, first = (whole(num_text - back) for back in (0, 1, 2))
    length = before.shape[1] + num_text
    square = (last - 2 * middle + first) / 2
    linear = last - middle - square * (2 * length - 1)
    return linear + square * length


@pytest.mark.parametrize("name", CONNECTORS)
def test_a_token_of_text_is_the_difference_of_two_passes(folder: Path, name: str) -> None:
    projector = build(folder, name)
    found = projector.facts()["flops_per_text_token"]
    assert found == by_differences(projector, TEXT_TOKENS + 1)
    assert projector.gated is None or projector.gated._media is None


def test_a_token_of_text_counted_by_hand(folder: Path) -> None:
    found = {
        name: build(folder, name).facts()["flops_per_text_token"]
        for name in ("linear", "perceiver_prefix", "perceiver_xattn")
    }
    inner, layers, queries = 48, 2, 4
    vocabulary = build(folder, "linear").network.get_input_embeddings().num_embeddings  # type: ignore[operator]
    seen = 16 + TEXT_TOKENS + 1
    attention = 2 * WIDTH * (2 * WIDTH + 2 * WIDTH // 2) + 2 * 2 * seen * WIDTH
    expected = layers * (attention + 3 * 2 * WIDTH * inner) + 2 * WIDTH * vocabulary
    assert found["linear"] in (expected, expected + ROTARY)
    # Fewer image tokens are less to attend to, in each layer.
    per_key = layers * 2 * 2 * WIDTH
    assert found["linear"] - found["perceiver_prefix"] == (16 - queries) * per_key
    # Gated layers: queries and output, attention to the picture, a feed-forward of 4 x the width.
    block = 2 * 2 * WIDTH * WIDTH + 2 * 2 * queries * WIDTH + 2 * 2 * WIDTH * 4 * WIDTH
    added = layers * block - queries * per_key
    assert found["perceiver_xattn"] - found["perceiver_prefix"] == added


def test_every_second_layer_costs_half(folder: Path) -> None:
    plain = build(folder, "perceiver_prefix").facts()["flops_per_text_token"]
    one, two = (
        build(folder, "perceiver_xattn", cross_every=every).facts()["flops_per_text_token"]
        for every in (2, 1)
    )
    bare = plain - 4 * 2 * 2 * 2 * WIDTH  # without its image tokens
    assert two - bare == 2 * (one - bare) > 0


def test_tokens_of_sound_are_attended_to_as_well(folder: Path) -> None:
    (folder / "ears").mkdir()
    ears = audio_tower(folder / "ears")
    plain = build(folder, "linear").facts()
    both = build(folder, "linear", audio_tower=ears, audio_connector="linear").facts()
    more = both["flops_per_text_token"] - plain["flops_per_text_token"]
    assert more == both["audio_tokens"] * 2 * 2 * 2 * WIDTH > 0


def test_a_short_context_holds_less_text(folder: Path) -> None:
    """Nine tiles of 16 image tokens are 144 of the 160 positions, which GPT-2 cannot exceed."""
    config = ProjectorConfig(
        tower=str(folder / "tower"),
        language_model=str(folder / "gpt2"),
        connector="linear",
        max_tiles=8,
    )
    long = build_projector(config, seed=0, device="cpu")
    facts = long.facts()
    assert (facts["image_tokens"], long.language.context) == (144, 160)
    config = ProjectorConfig(
        tower=config.tower, language_model=config.language_model, connector="linear"
    )
    short = build_projector(config, seed=0, device="cpu").facts()
    keys = 160 - (16 + TEXT_TOKENS + 1)
    more = facts["flops_per_text_token"] - short["flops_per_text_token"]
    assert more == 2 * keys * 2 * 2 * WIDTH
