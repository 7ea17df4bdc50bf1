"""caption_scores against clip_score itself, caption by caption."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from winnow.contracts.errors import RecipeError
from winnow.contracts.media import MediaCaps
from winnow.contracts.parameters import result_parameters, validate
from winnow.contracts.stage import WorkerOptions
from winnow.models.contrastive import ContrastiveModel, build_network, save_model
from winnow.models.tokenizer import trimmed_merges
from winnow.stages._media import BatchMedia, MediaCache
from winnow.stages.caption_scores import CaptionScores
from winnow.stages.clip_score import ClipScore

CONFIG: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16,
    },
    "text_cfg": {"context_length": 12, "vocab_size": 600, "width": 32, "heads": 2, "layers": 2},
}  # fmt: skip
LISTS: list[list[str | None] | None] = [
    ["a red cat", "two blue dogs", "zyzzyva"],
    ["a red cat"],
    [f"a drawing of {i} cats" for i in range(13)],  # more than a batch
    [None, "a red cat", " \t", "two blue dogs"],
    [],
    None,
    ["", None],
    ["a red cat", "two blue dogs"],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ViT made from a configuration, saved."""
    path = tmp_path_factory.mktemp("model")
    merges = trimmed_merges(["a red cat two blue dogs drawing of"], 600)
    save_model(path, build_network(CONFIG, seed=3), config=CONFIG, preprocess={}, merges=merges)
    return path


def png(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    size = tuple(int(v) for v in rng.integers(20, 90, 2))
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize(size).save(buffer, "PNG")
    return buffer.getvalue()


def annotate(stage: Any, state: Any, images: list[bytes | None], texts: pa.Array) -> pa.RecordBatch:
    uids = pa.array([bytes([i]) * 16 for i in range(len(images))], pa.binary(16))
    columns = {"uid": uids, "image": pa.array(images, pa.large_binary())}
    batch = pa.RecordBatch.from_pydict({**columns, stage.text_column: texts})
    with MediaCache(1 << 24, 2) as cache:
        media = BatchMedia(batch, caps=MediaCaps(), cache=cache, first_row=0)
        out = stage.annotate(batch, state, media)
    assert out.schema.equals(stage.writes)
    return out


def scored(
    folder: Path, images: list[bytes | None], lists: list[Any], state: Any = None
) -> list[dict[str, Any]]:
    stage = CaptionScores(model=str(folder), batch_size=8)
    texts = pa.array(lists, pa.list_(pa.string()))
    return annotate(stage, state or stage.setup(WorkerOptions()), images, texts).to_pylist()


def test_scores_are_those_of_clip_score(folder: Path) -> None:
    images: list[bytes | None] = [png(i) for i in range(len(LISTS))]
    found = scored(folder, images, LISTS)
    plain = ClipScore(model=str(folder), batch_size=8)
    state = plain.setup(WorkerOptions())
    compared = 0
    for image, texts, row in zip(images, LISTS, found, strict=True):
        if row["caption_scores"] is None:
            assert row["caption_scores_error"] == "empty_text"
            continue
        assert row["caption_scores_error"] is None
        assert len(row["caption_scores"]) == len(texts or [])
        for start in range(0, len(texts or []), 8):
            part = pa.array((texts or [])[start : start + 8], pa.string())
            out = annotate(plain, state, [image] * len(part), part)
            expected = out.column("clip_score").to_pylist()
            got = row["caption_scores"][start : start + 8]
            assert [v is None for v in got] == [v is None for v in expected]
            pairs = [(a, b) for a, b in zip(got, expected, strict=True) if a is not None]
            np.testing.assert_allclose(*np.transpose(pairs), atol=1e-6, rtol=0)
            compared += len(pairs)
    assert compared == 3 + 1 + 13 + 2 + 2
    assert [r["caption_scores_error"] for r in found[4:7]] == ["empty_text"] * 3


def test_each_picture_is_embedded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    inner = ContrastiveModel.embed_images

    def counted(self: ContrastiveModel, pixels: torch.Tensor) -> torch.Tensor:
        calls.append(len(pixels))
        return inner(self, pixels)

    monkeypatch.setattr(ContrastiveModel, "embed_images", counted)
    scored(folder, [png(i) for i in range(len(LISTS))], LISTS)
    assert calls == [8]


def test_neighbours_do_not_change_a_bit(folder: Path) -> None:
    images: list[bytes | None] = [png(i) for i in range(len(LISTS))]
    whole = scored(folder, images, LISTS)
    assert scored(folder, images[2:4], LISTS[2:4]) == whole[2:4]
    assert scored(folder, images[::-1], LISTS[::-1]) == whole[::-1]


def test_rows_that_cannot_be_scored_get_a_code(folder: Path) -> None:
    found = scored(folder, [None, png(1)[:60], None, png(2)], [["a"], ["a"], None, ["a"]])
    codes = [row["caption_scores_error"] for row in found]
    assert codes == ["missing", "undecodable", "missing", None]
    assert [row["caption_scores"] is None for row in found] == [True, True, True, False]
    assert scored(folder, [], []) == []


def test_a_model_that_overflows_gives_no_score(folder: Path) -> None:
    stage = CaptionScores(model=str(folder), batch_size=8)
    state = stage.setup(WorkerOptions())
    with torch.no_grad():
        state.model.network.visual.proj.fill_(float("inf"))
    (row,) = scored(folder, [png(0)], [["a cat", None]], state)
    assert row == {"caption_scores": None, "caption_scores_error": "not_finite"}


def test_what_enters_the_fingerprint(folder: Path) -> None:
    stage = CaptionScores(model=str(folder), num_threads=2, text_column="texts", column="second")
    assert result_parameters(stage) == {
        "batch_size": 64, "precision": "fp32", "image_column": "image", "text_column": "texts",
        "num_threads": 2, "column": "second",
    }  # fmt: skip
    assert stage.model_digest() == ClipScore(model=str(folder)).model_digest()
    assert stage.writes.names == ["second", "second_error"]
    assert stage.batch_rows == 64
    assert pickle.loads(pickle.dumps(stage)) == stage


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"column": "synthetic_captions"}, "cannot be written; use a new name"),
        ({"batch_size": 0}, "caption_scores: batch_size=0"),
        ({"model": "vit-b-32"}, "did you mean .*ViT-B-32"),
    ],
)
def test_bad_parameters(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        CaptionScores(**validate(CaptionScores, values))
