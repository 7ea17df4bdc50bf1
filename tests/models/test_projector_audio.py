"""The audio side of a projector: where its tokens stand, what its nulls learn, what is saved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.models.projector_audio_parts import CONFIG, audio_tower, chord
from tests.models.projector_parts import build, language_model, pictures, tower
from winnow.contracts.errors import RecipeError, SetupError
from winnow.models.audio_tower import stacked
from winnow.models.conversation import Turn
from winnow.models.generation import Sampling
from winnow.models.projector import Projector, load_projector, projector_digest, save_projector
from winnow.models.projector_audio import PREFIXES, FrozenAudioTower, find_audio_tower

pytest.importorskip("transformers")

PROMPTS, ANSWERS = ["What is it?"] * 3, ["a red cat", "two dogs", "none"]
TURNS = [(Turn(prompt, answer),) for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parts")
    tower(path / "tower")
    language_model(path / "lm")
    audio_tower(path / "ears")
    return path


def fused(parts: Path, connector: str = "linear", **sizes: Any) -> Projector:
    sizes = {"audio_connector": "mlp", "audio_queries": 3, **sizes}
    return build(parts, connector, audio_tower=str(parts / "ears"), **sizes)


def heard(projector: Projector, numbers: Sequence[int | None]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of a chord per row; None: no sound."""
    assert projector.audio is not None
    ears = projector.audio.tower
    lengths = [0.3 - 0.1 * (n or 0) for n in numbers]
    clips = [
        ears.frames(chord(n or 0, duration_s=s)) for n, s in zip(numbers, lengths, strict=True)
    ]
    features, mask = ears(clips)
    mask[[i for i, n in enumerate(numbers) if n is None]] = False
    return features, mask


def logs(
    projector: Projector, seen: Sequence[bool], numbers: Sequence[int | None]
) -> list[np.ndarray]:
    assert projector.audio is not None
    shown = pictures(len(seen))
    features, mask = projector.features(
        [p if s else None for p, s in zip(shown, seen, strict=True)]
    )
    rows = len(seen)
    with projector.audio.hearing(heard(projector, numbers)):
        return projector.token_log_likelihoods(features, mask, PROMPTS[:rows], ANSWERS[:rows])


@pytest.mark.parametrize(
    ("connector", "audio_connector"),
    [("linear", "perceiver_prefix"), ("qformer", "instruct_qformer"), ("instruct_qformer", "mlp")],
)
def test_image_tokens_then_audio_tokens_nulls_for_what_is_missing(
    parts: Path, connector: str, audio_connector: str
) -> None:
    """Row by row against both connectors alone."""
    projector = fused(parts, connector, audio_connector=audio_connector)
    side = projector.audio
    assert side is not None
    shown = pictures(3)
    features, mask = projector.features([shown[0], None, shown[2]])
    sounds, sounds_mask = heard(projector, [0, 1, None])
    words = torch.tensor([projector.encode("What is it?")] * 3)
    with torch.no_grad(), side.hearing((sounds, sounds_mask)):
        found = projector.image_tokens(features, mask, num_rows=3, instructions=PROMPTS)
    assert found.row_of == [0, 1, 2]
    for row in range(3):
        asked = words[row : row + 1]
        with torch.no_grad():
            image = side.null_image_embedding
            if row != 1:
                image = projector.connector(features[[row]], mask[[row]], asked, None)[0]
            audio = side.null_audio_embedding
            if row != 2:
                real = sounds_mask[row]
                audio = side.connector(sounds[[row]][:, real], None, asked, None)[0]
        expected = torch.cat([image, audio])
        torch.testing.assert_close(found.tokens[row][found.valid[row]], expected, atol=2e-5, rtol=0)
    assert side.null_image_embedding.shape == (16 if connector == "linear" else 4, 32)
    assert side.null_audio_embedding.shape == (4 if audio_connector == "mlp" else 3, 32)


def test_a_null_learns_only_where_its_modality_is_missing(parts: Path) -> None:
    projector = fused(parts)
    side = projector.audio
    assert side is not None
    shown = pictures(3)
    projector.set_trainable("connector")
    nulls = side.null_image_embedding, side.null_audio_embedding

    def gradients(seen: Sequence[bool], numbers: Sequence[int | None]) -> list[torch.Tensor | None]:
        projector.zero_grad(set_to_none=True)
        given = [p if s else None for p, s in zip(shown, seen, strict=True)]
        features, mask = projector.features(given)
        with side.hearing(heard(projector, numbers)):
            projector.loss(features, mask, TURNS)[0].backward()
        assert all(p.grad is None for p in side.tower.parameters())
        return [null.grad for null in nulls]

    assert gradients([True] * 3, [0, 1, 0]) == [None, None]
    image, audio = gradients([True, False, True], [0, 1, 0])
    assert audio is None
    assert image is not None
    assert (image.abs().sum(dim=1) > 0).all()
    image, audio = gradients([True] * 3, [None, 1, 0])
    assert image is None
    assert audio is not None
    assert (audio.abs().sum(dim=1) > 0).all()
    image, audio = gradients([False, True, True], [0, None, 1])
    assert image is not None
    assert audio is not None
    # A row's part of the gradient does not depend on the rows beside it: only their sum is divided.
    alone = gradients([False, True, True], [0, 0, 1])[0]
    torch.testing.assert_close(image, alone, atol=1e-6, rtol=1e-3)


def test_a_row_answers_as_it_does_alone_and_by_what_it_hears(parts: Path) -> None:
    projector = fused(parts, audio_connector="perceiver_prefix")
    together = logs(projector, [True, False, True], [0, 1, None])
    assert projector.audio is not None
    alone = []
    for row, (seen, number) in enumerate([(True, 0), (False, 1), (True, None)]):
        features, mask = projector.features([pictures(3)[row] if seen else None])
        with projector.audio.hearing(heard(projector, [number])):
            alone += projector.token_log_likelihoods(features, mask, PROMPTS[:1], [ANSWERS[row]])
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    swapped = logs(projector, [True, False, True], [1, 0, None])
    assert abs(swapped[0] - together[0]).max() > 1e-3
    assert abs(swapped[1] - together[1]).max() > 1e-3
    np.testing.assert_allclose(swapped[2], together[2], atol=1e-5)
    # Outside, nothing is heard: the null, as for a row whose mask is empty.
    features, mask = projector.features([None, None, pictures(3)[2]])
    silent = projector.token_log_likelihoods(features, mask, PROMPTS, ANSWERS)
    np.testing.assert_allclose(silent[2], together[2], atol=1e-4)
    bare = projector.token_log_likelihoods(None, None, PROMPTS, ANSWERS)
    np.testing.assert_allclose(bare[1], silent[1], atol=1e-4)
    said = projector.generate(None, None, PROMPTS[:1], Sampling(max_tokens=3))
    assert said[0].num_tokens in (1, 2, 3)


@pytest.mark.parametrize("copy", [False, True])
def test_saved_and_loaded_it_says_the_same(parts: Path, tmp_path: Path, copy: bool) -> None:
    ears = tmp_path / "ears"
    shutil.copytree(parts / "ears", ears)
    projector = build(parts, "mlp", audio_tower=str(ears), audio_connector="qformer",
                      audio_queries=2)  # fmt: skip
    with torch.no_grad():
        for weight in projector.set_trainable("connector"):
            weight += torch.randn(weight.shape, generator=torch.manual_seed(1)) / 20
    projector.eval()
    save_projector(tmp_path / "saved", projector, copy=copy)
    names = load_file(tmp_path / "saved" / "connector.safetensors")
    assert {"audio.null_image_embedding", "audio.null_audio_embedding"} < set(names)
    assert not any("tower" in name for name in names)
    digest = projector_digest(tmp_path / "saved")
    place = tmp_path / "saved"
    if copy:
        place = place.rename(tmp_path / "moved")
        shutil.rmtree(ears)
    loaded = load_projector(place, device="cpu")
    for one, other in zip(
        logs(projector, [True, False, True], [0, 1, None]),
        logs(loaded, [True, False, True], [0, 1, None]),
        strict=True,
    ):
        assert np.array_equal(one, other)
    save_projector(tmp_path / "again", loaded)
    assert projector_digest(tmp_path / "again") == digest
    if not copy:
        audio_tower(ears, seed=1)
        with pytest.raises(SetupError, match="the audio_tower .*ears is not the one"):
            load_projector(tmp_path / "saved")


def test_without_an_audio_tower_nothing_of_it_is_written(parts: Path, tmp_path: Path) -> None:
    plain, both = build(parts, "linear"), fused(parts)
    save_projector(tmp_path / "plain", plain)
    document = json.loads((tmp_path / "plain" / "projector.json").read_text())
    assert [key for key in (*document, *document["config"]) if "audio" in key] == []
    assert {n.split(".")[0] for n in load_file(tmp_path / "plain/connector.safetensors")} == {
        "connector"
    }
    assert load_projector(tmp_path / "plain", device="cpu").audio is None
    # The first connector starts from the same weights with and without an audio side.
    for one, other in zip(plain.connector.parameters(), both.connector.parameters(), strict=True):
        assert torch.equal(one, other)


def test_facts_count_both_sides(parts: Path) -> None:
    plain, both = build(parts, "linear").facts(), fused(parts, audio_connector="linear")
    found, side = both.facts(), both.audio
    assert side is not None
    learned = 24 * 32 + 32 + (16 + 4) * 32
    assert found["trained_parameters"] - plain["trained_parameters"] == learned
    ears = sum(p.numel() for p in side.tower.parameters())
    assert found["parameters"] - plain["parameters"] == learned + ears
    assert (found["image_tokens"], found["audio_tokens"]) == (16, 4)
    assert found["flops_per_recording"] > 2 * 4 * 24 * 32
    assert found["flops_per_image"] > plain["flops_per_image"]
    assert "audio_tokens" not in plain


def test_the_frozen_tower_gives_its_tokens_before_pooling(parts: Path) -> None:
    ears = FrozenAudioTower.load(str(parts / "ears"))
    clips = [ears.frames(chord(2)), ears.frames(chord(3, duration_s=0.1))]
    tokens, mask = ears(clips)
    assert tokens.shape == (2, ears.num_tokens, ears.width) == (2, 4, 24)
    assert mask.tolist() == [[True] * 4, [True, True, False, False]]
    pooled = torch.stack([t[m].mean(dim=0) for t, m in zip(tokens, mask, strict=True)])
    with torch.no_grad():
        vectors = ears.tower(*stacked(clips, CONFIG))
        torch.testing.assert_close(ears.tower.projection(pooled), vectors, atol=1e-5, rtol=0)
    assert not ears.train().training
    assert ears.digest() == find_audio_tower(str(parts / "ears")).digest()


def test_what_cannot_be_built_is_refused(parts: Path, tmp_path: Path) -> None:
    assert "perceiver_xattn" not in PREFIXES
    for connector, audio in (("perceiver_xattn", "mlp"), ("mlp", "perceiver_xattn")):
        with pytest.raises(RecipeError, match="perceiver_xattn' with audio_tower; use one of"):
            fused(parts, connector, audio_connector=audio)
    with pytest.raises(SetupError, match="has no audio_model.json"):
        build(parts, "mlp", audio_tower=str(tmp_path))
    audio_tower(tmp_path / "other")
    path = tmp_path / "other" / "audio_model.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "format": 9}))
    with pytest.raises(SetupError, match="has format 9"):
        find_audio_tower(str(tmp_path / "other"))
    path.write_text(json.dumps({**document, "tower": {"kind": "lstm"}}))
    with pytest.raises(SetupError, match="cannot be read as an audio model"):
        find_audio_tower(str(tmp_path / "other"))
    with pytest.raises(SetupError, match="a picture and its recording needs 166 tokens"):
        fused(parts, "linear", audio_connector="qformer", audio_queries=150)
    projector = fused(parts)
    assert projector.audio is not None
    with (
        projector.audio.hearing(heard(projector, [0, 1])),
        pytest.raises(SetupError, match="3 rows, but sound for 2"),
    ):
        projector.loss(None, None, TURNS)
