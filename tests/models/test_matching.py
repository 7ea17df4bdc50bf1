"""A matching head is saved, found and loaded with its tower and tokenizer, and scores alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.matching_heads import TEXTS, first_stage, save_head
from winnow.contracts.errors import SetupError
from winnow.models.matching import MatchingModel, caption_tokens, load_matching
from winnow.models.matching_files import find_matching


def picture(seed: int, size: tuple[int, int] = (50, 40)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize(size)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_head(tmp_path_factory.mktemp("matching"))


@pytest.fixture(scope="module")
def model(folder: Path) -> MatchingModel:
    return load_matching(find_matching(str(folder)), device="cpu")


def pixels(model: MatchingModel, *sizes: tuple[int, int]) -> list[np.ndarray]:
    return [model.tower.pixels(picture(i, size)) for i, size in enumerate(sizes)]


def test_a_saved_head_scores_as_the_one_that_was_trained(model: MatchingModel) -> None:
    """A plain loop over pairs with the network that was saved, without padding."""
    stage = first_stage()
    tiles = pixels(model, (50, 40), (33, 90), (64, 64))
    features, mask = model.features(tiles)
    found = model.probability(features, mask, TEXTS)
    assert found.dtype == np.float32
    expected = []
    for image, text in zip(tiles, TEXTS, strict=True):
        patches = model.tower.forward(torch.from_numpy(image.copy()))
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            queries, _ = stage.qformer.encode(patches, None, torch.tensor([ids])[:, :19])
            no, yes = stage.matching(queries[0]).mean(dim=0).tolist()
        expected.append(1 / (1 + np.exp(no - yes)))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(found) > 1e-3


def test_a_fixed_length_cuts_and_pads(model: MatchingModel) -> None:
    features, mask = model.features(pixels(model, (50, 40)))
    free = model.probability(features, mask, ["a red cat"])
    fixed = model.probability(features, mask, ["a red cat"], num_tokens=15)
    np.testing.assert_allclose(fixed, free, atol=1e-6)
    ids = model.tokenizer("a red cat", add_special_tokens=False)["input_ids"]
    text = model.tokenizer.decode(ids[:2])
    cut = model.probability(features, mask, ["a red cat"], num_tokens=2)
    np.testing.assert_allclose(cut, model.probability(features, mask, [text]), atol=1e-6)
    assert abs(float(cut[0] - free[0])) > 1e-5


def test_tokens_are_padded_right_and_special_words_are_plain(model: MatchingModel) -> None:
    tokens, mask = caption_tokens(model.tokenizer, ["a cat", "", "</s>"], most=9)
    assert mask.sum(dim=1).tolist()[1] == 0
    assert mask.sum(dim=1).tolist()[2] > 1
    assert model.tokenizer.decode(tokens[0][mask[0]]) == "a cat"
    assert not (tokens[2] == model.tokenizer.eos_token_id).any()
    assert not tokens[~mask].any()
    assert caption_tokens(model.tokenizer, [""], most=9)[0].shape == (1, 1)


def test_tiles_of_other_images_do_not_matter(folder: Path) -> None:
    tiled = load_matching(find_matching(str(save_head(folder.parent, max_tiles=2))))
    tiles = pixels(tiled, (40, 40), (200, 60))
    assert [len(t) for t in tiles] == [1, 3]
    features, mask = tiled.features(tiles)
    assert features.shape == (2, 12, 32)
    assert mask.sum(dim=1).tolist() == [4, 12]
    together = tiled.probability(features, mask, TEXTS[:2])
    for row in range(2):
        one, seen = tiled.features(tiles[row : row + 1])
        assert one.shape == (1, 12, 32)
        alone = tiled.probability(one, seen, TEXTS[row : row + 1])
        np.testing.assert_allclose(alone, together[row], atol=1e-6)


def test_the_digest_is_of_the_content(folder: Path, tmp_path: Path) -> None:
    first = find_matching(str(folder)).digest()
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert find_matching(str(copy)).digest() == first
    document = json.loads((copy / "matching.json").read_text())
    document["tower"] = "elsewhere"
    (copy / "matching.json").write_text(json.dumps(document))
    assert find_matching(str(copy)).digest() == first
    document["tower_digest"] = "0" * 32
    (copy / "matching.json").write_text(json.dumps(document))
    assert find_matching(str(copy)).digest() != first
    weights = bytearray((folder / "matching.safetensors").read_bytes())
    weights[-1] ^= 1
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "matching.safetensors").write_bytes(weights)
    assert find_matching(str(other)).digest() != first


def test_copies_beside_the_head_win_over_the_names(folder: Path, tmp_path: Path) -> None:
    """As a projector that was saved with its parts: the folder can go anywhere."""
    moved = shutil.copytree(folder, tmp_path / "moved")
    document = json.loads((moved / "matching.json").read_text())
    shutil.copytree(document["tower"], moved / "tower")
    shutil.copytree(document["language_model"], moved / "language_model")
    document |= {"tower": "./gone", "language_model": "./gone"}
    (moved / "matching.json").write_text(json.dumps(document))
    model = load_matching(find_matching(str(moved)))
    features, mask = model.features(pixels(model, (50, 40)))
    assert 0 <= model.probability(features, mask, ["a cat"])[0] <= 1


def test_another_tower_or_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    for name, what in (("tower_digest", "vision tower"), ("tokenizer_digest", "tokenizer")):
        copy = shutil.copytree(folder, tmp_path / name)
        document = json.loads((copy / "matching.json").read_text())
        document[name] = "0" * 32
        (copy / "matching.json").write_text(json.dumps(document))
        with pytest.raises(SetupError, match=f"the {what} .* is not the one"):
            load_matching(find_matching(str(copy)))


def test_what_is_no_matching_head_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="there is no matching head in .*/nothing"):
        find_matching(str(tmp_path / "nothing"))
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "matching.safetensors").write_bytes(b"no tensors")
    with pytest.raises(SetupError, match="cannot be loaded"):
        load_matching(find_matching(str(copy)))
    (copy / "matching.json").write_text("{")
    with pytest.raises(SetupError, match="cannot be read"):
        find_matching(str(copy))
    (copy / "matching.json").write_text('{"format": 99}')
    with pytest.raises(SetupError, match="of another format than 1"):
        find_matching(str(copy))
