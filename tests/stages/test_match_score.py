"""The stage match_score: the head's own numbers, codes, lists, and bits that do not depend on
neighbours."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from tests.matching_heads import save_head
from tests.scored import annotate, picture, png
from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.media import DecodedImage, MediaCaps, MediaFailure
from winnow.contracts.parameters import result_parameters, validate
from winnow.contracts.registry import STAGES
from winnow.contracts.stage import WorkerOptions
from winnow.models.matching import load_matching
from winnow.models.matching_files import find_matching
from winnow.stages.match_score import MatchScore

CAPTIONS = [
    "a red cat", "two blue dogs to the left of a house", "a drawing of nothing in particular",
    "zyzzyva", "a b c", "caf\u00e9 \u2014 \u72ac",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_head(tmp_path_factory.mktemp("matching")))


def _stage(folder: str, **options: Any) -> MatchScore:
    return MatchScore(**{"model": folder, "batch_size": 8, "num_tokens": 12} | options)


@pytest.fixture(scope="module")
def state(folder: str) -> Any:
    """Of any stage with this model."""
    return _stage(folder).setup(WorkerOptions())


def _batch(images: list[bytes | None], texts: list[Any]) -> pa.RecordBatch:
    many = any(isinstance(text, list) for text in texts)
    columns = {
        "uid": pa.array([bytes([i]) * 16 for i in range(len(images))], pa.binary(16)),
        "image": pa.array(images, pa.large_binary()),
        "text": pa.array(texts, pa.list_(pa.string()) if many else pa.string()),
    }
    return pa.RecordBatch.from_pydict(columns)


def _six() -> pa.RecordBatch:
    return _batch([png(picture(i)) for i in range(6)], list(CAPTIONS))


def _expected(folder: str, images: list[int], texts: list[str]) -> list[float]:
    """One pair at a time, without padding."""
    model = load_matching(find_matching(folder))
    found = []
    for seed, text in zip(images, texts, strict=True):
        features, mask = model.features([model.tower.pixels(picture(seed))])
        found.append(float(model.probability(features, mask, [text])[0]))
    return found


def test_scores_are_those_of_each_pair_alone(folder: str, state: Any) -> None:
    out = annotate(_stage(folder, num_tokens=40), state, _six())
    assert out.column("match_score_error").null_count == 6
    scores = out.column("match_score").to_numpy()
    np.testing.assert_allclose(scores, _expected(folder, list(range(6)), CAPTIONS), atol=1e-5)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert np.ptp(scores) > 1e-3


def test_many_captions_of_each_image(folder: str, state: Any) -> None:
    """More captions than a batch has room for; null and empty ones among them."""
    lists = [CAPTIONS, ["a cat", None, " \t", "a dog"], CAPTIONS[::-1], [], None, [None, ""]]
    images = [png(picture(i)) for i in range(6)]
    stage = _stage(folder, many=True, num_tokens=40)
    out = annotate(stage, state, _batch(images, lists))
    assert out.column("match_score_error").to_pylist() == [None] * 3 + ["empty_text"] * 3
    found = out.column("match_score").to_pylist()
    assert found[3:] == [None] * 3
    assert [v is None for v in found[1]] == [False, True, True, False]
    for row, texts in ((0, CAPTIONS), (1, ["a cat", "a dog"]), (2, CAPTIONS[::-1])):
        expected = _expected(folder, [row] * len(texts), texts)
        np.testing.assert_allclose([v for v in found[row] if v is not None], expected, atol=1e-5)


def test_one_caption_in_a_list_is_one_caption(folder: str, state: Any) -> None:
    listed = _batch(_six().column("image").to_pylist(), [[c] for c in CAPTIONS])
    many = annotate(_stage(folder, many=True), state, listed).column("match_score")
    plain = annotate(_stage(folder), state, _six()).column("match_score")
    assert many.flatten().equals(plain)


def test_neighbours_and_padding_do_not_change_a_bit(folder: str, state: Any) -> None:
    stage = _stage(folder)
    whole = annotate(stage, state, _six())
    images = _six().column("image").to_pylist()
    for row in range(6):
        other = [png(picture(100 + i)) if i != row else images[row] for i in range(6)]
        texts = [f"other {i}" if i != row else CAPTIONS[row] for i in range(6)]
        found = annotate(stage, state, _batch(other, texts))
        assert found.slice(row, 1).equals(whole.slice(row, 1))
    assert annotate(stage, state, _six().slice(0, 2)).equals(whole.slice(0, 2))


def test_other_threads_do_not_change_a_bit(folder: str, state: Any) -> None:
    stage = _stage(folder)
    expected = annotate(stage, state, _six())
    torch.set_num_threads(3)
    again = _stage(folder).setup(WorkerOptions(decode_threads=1))
    assert annotate(stage, again, _six()).equals(expected)


def test_rows_that_cannot_be_scored_get_a_code(folder: str, state: Any) -> None:
    good, broken = png(picture(1)), png(picture(2))[:60]
    huge = png(Image.new("1", (3000, 2000)))
    batch = _batch(
        [good, None, broken, huge, good, good, None, good],
        ["a cat", "a cat", "a cat", "a cat", None, " \t\n", None, "a cat"],
    )
    out = annotate(_stage(folder), state, batch, MediaCaps(max_pixels=1_000_000))
    assert out.column("match_score_error").to_pylist() == [
        None, "missing", "undecodable", "too_large", "empty_text", "empty_text", "missing", None,
    ]  # fmt: skip
    scores = out.column("match_score").to_pylist()
    assert [v is None for v in scores] == [False, *[True] * 6, False]
    assert scores[0] == pytest.approx(scores[7], abs=1e-6)


def test_a_batch_of_nothing_but_failures_and_an_empty_one(folder: str, state: Any) -> None:
    stage = _stage(folder)
    out = annotate(stage, state, _batch([None, None], ["a", None]))
    assert out.column("match_score_error").to_pylist() == ["missing", "missing"]
    assert annotate(stage, state, _batch([], [])).num_rows == 0


def test_a_model_that_overflows_gives_no_score(folder: str) -> None:
    stage = _stage(folder, many=True)
    state = stage.setup(WorkerOptions())
    with torch.no_grad():
        state.model.first_stage.matching.weight.fill_(float("inf"))
    out = annotate(stage, state, _batch([png(picture(0))], [["a cat", "a dog"]]))
    assert out.column("match_score_error").to_pylist() == ["not_finite"]
    assert out.column("match_score").to_pylist() == [None]


class _Media:
    """Pixels that Pillow cannot convert."""

    def images(self, column: str = "image") -> Iterator[DecodedImage | MediaFailure]:
        class Broken(Image.Image):
            def convert(self, *args: Any, **kwargs: Any) -> Image.Image:
                raise OSError("broken data stream")

        image = Broken()
        image._mode, image._size = "L", (8, 8)
        yield DecodedImage(pixels=image, format="PNG")
        yield DecodedImage(pixels=picture(1), format="PNG")


def test_an_image_that_cannot_be_converted_costs_its_row(folder: str, state: Any) -> None:
    batch = _batch([b"-", b"-"], ["a cat", CAPTIONS[1]])
    out = _stage(folder).annotate(batch, state, _Media())
    assert out.column("match_score_error").to_pylist() == ["undecodable", None]
    expected = _expected(folder, [1], [CAPTIONS[1]])[0]
    assert out.column("match_score")[1].as_py() == pytest.approx(expected, abs=1e-4)


def test_names_and_fingerprint(folder: str, tmp_path: Path) -> None:
    stage = _stage(folder, column="m2", text_column="captions", many=True, num_gpus=0.5)
    assert stage.reads.field("captions").type == pa.list_(pa.string())
    assert stage.writes.names == ["m2", "m2_error"]
    assert stage.writes.field("m2").type == pa.list_(pa.float32())
    assert "model" not in result_parameters(stage)
    assert stage.model_digest() == find_matching(folder).digest()
    assert stage.batch_rows == 8
    assert stage.resources.num_gpus == 0.5
    assert STAGES["match_score"] is MatchScore
    assert pickle.loads(pickle.dumps(stage)) == stage
    with pytest.raises(SetupError, match="there is no matching head"):
        _stage(str(tmp_path)).model_digest()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"column": "text"}, "column='text' cannot be written"),
        ({"batch_size": 0}, "batch_size=0; use 1 to 65536"),
        ({"num_tokens": 0}, "num_tokens=0; use 1 to 4096"),
        ({"model": ""}, "give the folder of a projector with a trained matching head"),
        ({"device": "cpu", "num_gpus": 1.0}, "leave one of them out"),
    ],
)
def test_bad_parameters(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        MatchScore(**validate(MatchScore, {"model": "./head"} | values))
