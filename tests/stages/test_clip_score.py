"""clip_score against a plain open_clip loop; padding, codes, digests, roles."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
from PIL import Image

from tests.scored import annotate, picture, png
from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.media import DecodedImage, MediaCaps, MediaFailure
from winnow.contracts.parameters import result_parameters, validate
from winnow.contracts.registry import STAGES
from winnow.contracts.stage import WorkerOptions
from winnow.models.contrastive import build_network, save_model
from winnow.models.tokenizer import trimmed_merges
from winnow.stages.clip_score import ClipScore

CAPTIONS = [
    "a red cat", "two blue dogs to the left of a house", "a drawing of nothing in particular",
    "zyzzyva", "a b c d e f g h i j k l m n o p q r s t u v w x y z", "caf\u00e9 \u2014 \u72ac",
]  # fmt: skip
CONFIG: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16,
    },
    "text_cfg": {"context_length": 12, "vocab_size": 600, "width": 32, "heads": 2, "layers": 2},
}  # fmt: skip
HAS_GPU = torch.cuda.is_available()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ViT made from a configuration, saved."""
    path = tmp_path_factory.mktemp("model")
    merges = trimmed_merges(CAPTIONS, 600)
    save_model(path, build_network(CONFIG, seed=3), config=CONFIG, preprocess={}, merges=merges)
    return path


def _batch(images: list[bytes | None], texts: list[str | None]) -> pa.RecordBatch:
    columns = {
        "uid": pa.array([bytes([i]) * 16 for i in range(len(images))], pa.binary(16)),
        "image": pa.array(images, pa.large_binary()),
        "text": pa.array(texts, pa.string()),
    }
    return pa.RecordBatch.from_pydict(columns)


def _six() -> pa.RecordBatch:
    return _batch([png(picture(i)) for i in range(6)], list(CAPTIONS))


def test_scores_equal_a_plain_open_clip_loop(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    network, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    network.eval()
    expected, vectors = [], []
    with torch.no_grad():
        for seed, caption in enumerate(CAPTIONS):
            image = network.encode_image(transform(picture(seed))[None], normalize=True)[0]
            text = network.encode_text(tokenizer([caption]), normalize=True)[0]
            expected.append(float(image @ text))
            vectors.append((image.numpy(), text.numpy()))
    stage = ClipScore(model=str(folder), batch_size=8, write_embeddings=True)
    out = annotate(stage, stage.setup(WorkerOptions()), _six())
    assert out.column("clip_score_error").null_count == 6
    np.testing.assert_allclose(out.column("clip_score").to_numpy(), expected, atol=1e-5)
    for row in range(6):
        for column, vector in zip(("image_embedding", "text_embedding"), vectors[row], strict=True):
            got = np.array(out.column(column)[row].as_py(), np.float16)
            np.testing.assert_allclose(got, vector, atol=6e-4)  # half a step of float16 near 1


def test_neighbours_and_padding_do_not_change_a_bit(folder: Path) -> None:
    stage = ClipScore(model=str(folder), batch_size=8, write_embeddings=True)
    state = stage.setup(WorkerOptions())
    whole = annotate(stage, state, _six())
    images = _six().column("image").to_pylist()
    for row in range(6):
        lonely = _batch(
            [image if i == row else None for i, image in enumerate(images)], list(CAPTIONS)
        )
        alone = annotate(stage, state, lonely)
        assert alone.slice(row, 1).equals(whole.slice(row, 1))
        other = [png(picture(100 + i)) if i != row else images[row] for i in range(6)]
        texts = [f"other {i}" if i != row else CAPTIONS[row] for i in range(6)]
        assert (
            annotate(stage, state, _batch(other, texts)).slice(row, 1).equals(whole.slice(row, 1))
        )
    short = annotate(stage, state, _six().slice(0, 2))
    assert short.equals(whole.slice(0, 2))


def test_other_threads_do_not_change_a_bit(folder: Path) -> None:
    """Decode threads, the thread that calls, and what other stages told torch."""
    stage = ClipScore(model=str(folder), batch_size=64)
    expected = annotate(stage, stage.setup(WorkerOptions(decode_threads=1)), _six())
    state = stage.setup(WorkerOptions(decode_threads=3))
    torch.set_num_threads(3)
    with ThreadPoolExecutor(3) as pool:
        for out in pool.map(lambda _: annotate(stage, state, _six()), range(6)):
            assert out.equals(expected)
    assert annotate(stage, state, _six()).equals(expected)


def test_rows_that_cannot_be_scored_get_a_code(folder: Path) -> None:
    good, broken = png(picture(1)), png(picture(2))[:60]
    huge = png(Image.new("1", (3000, 2000)))
    batch = _batch(
        [good, None, broken, huge, good, good, None, b"<html>", good],
        ["a cat", "a cat", "a cat", "a cat", None, " \t\n", None, "a dog", "a cat"],
    )
    stage = ClipScore(model=str(folder), batch_size=16, write_embeddings=True)
    caps = MediaCaps(max_pixels=1_000_000)
    out = annotate(stage, stage.setup(WorkerOptions()), batch, caps)
    assert out.column("clip_score_error").to_pylist() == [
        None, "missing", "undecodable", "too_large", "empty_text", "empty_text", "missing",
        "undecodable", None,
    ]  # fmt: skip
    failed = [False, True, True, True, True, True, True, True, False]
    for name in ("clip_score", "image_embedding", "text_embedding"):
        assert [not v.is_valid for v in out.column(name)] == failed
    scores = out.column("clip_score").to_pylist()
    assert scores[0] == scores[8] is not None


def test_a_batch_of_nothing_but_failures_and_an_empty_one(folder: Path) -> None:
    stage = ClipScore(model=str(folder), batch_size=4, write_embeddings=True)
    state = stage.setup(WorkerOptions())
    out = annotate(stage, state, _batch([None, None], ["a", None]))
    assert out.column("clip_score_error").to_pylist() == ["missing", "missing"]
    assert out.column("image_embedding").to_pylist() == [None, None]
    assert annotate(stage, state, _batch([], [])).num_rows == 0


def test_a_model_that_overflows_gives_no_score(folder: Path) -> None:
    stage = ClipScore(model=str(folder), batch_size=4)
    state = stage.setup(WorkerOptions())
    with torch.no_grad():
        state.model.network.visual.proj.fill_(float("inf"))
    out = annotate(stage, state, _batch([png(picture(0))], ["a cat"]))
    assert out.column("clip_score_error").to_pylist() == ["not_finite"]
    assert out.column("clip_score").to_pylist() == [None]


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


def test_an_image_that_cannot_be_converted_costs_its_row(folder: Path) -> None:
    stage = ClipScore(model=str(folder), batch_size=4)
    batch = _batch([b"-", b"-"], ["a cat", "a dog"])
    out = stage.annotate(batch, stage.setup(WorkerOptions()), _Media())
    assert out.column("clip_score_error").to_pylist() == ["undecodable", None]


def test_other_columns_can_be_scored(folder: Path) -> None:
    stage = ClipScore(model=str(folder), image_column="resized_image", text_column="title")
    assert stage.reads.names == ["resized_image", "title"]
    batch = _six().rename_columns(["uid", "resized_image", "title"])
    plain = ClipScore(model=str(folder))
    expected = annotate(plain, plain.setup(WorkerOptions()), _six())
    assert annotate(stage, stage.setup(WorkerOptions()), batch).equals(expected)


def test_what_enters_the_fingerprint(folder: Path) -> None:
    stage = ClipScore(model=str(folder), num_gpus=0.25, num_threads=3)
    assert result_parameters(stage) == {
        "batch_size": 64, "precision": "fp32", "image_column": "image", "text_column": "text",
        "write_embeddings": False, "num_threads": 3, "column": "clip_score",
    }  # fmt: skip
    assert stage.batch_rows == 64
    assert stage.resources.num_cpus == 3
    assert stage.resources.num_gpus == 0.25
    assert ClipScore(model=str(folder), device="cuda").resources.num_gpus == 1
    assert ClipScore(model=str(folder)).resources.num_gpus == 0


def test_the_columns_are_known_without_the_model(folder: Path) -> None:
    assert ClipScore(model=str(folder)).writes.names == ["clip_score", "clip_score_error"]
    wide = ClipScore(model=str(folder), write_embeddings=True).writes
    assert wide.field("image_embedding").type == pa.list_(pa.float16(), 24)
    assert wide.names[-1] == "clip_score_error"


def test_two_models_fit_into_one_recipe(folder: Path) -> None:
    plain = ClipScore(model=str(folder), batch_size=8, write_embeddings=True)
    second = ClipScore(model=str(folder), batch_size=8, write_embeddings=True, column="second")
    assert second.writes.names == ["second", "image_embedding", "text_embedding", "second_error"]
    expected = annotate(plain, plain.setup(WorkerOptions()), _six())
    found = annotate(second, second.setup(WorkerOptions()), _six())
    assert found.rename_columns(plain.writes.names).equals(expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"column": ""}, "column='' cannot be written; use a new name, such as 'clip_score'"),
        ({"column": "text"}, "column='text' cannot be written"),
        ({"batch_size": 0}, "batch_size=0; use 1 to 65536"),
        ({"num_threads": 0}, "num_threads=0; use at least 1"),
        ({"num_gpus": -1.0}, "num_gpus=-1.0"),
        ({"device": "cpu", "num_gpus": 1.0}, "leave one of them out"),
        ({"model": "vit-b-32"}, "did you mean .*ViT-B-32"),
    ],
)
def test_bad_parameters(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        ClipScore(**validate(ClipScore, values))


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_an_error_before_work(folder: Path) -> None:
    with pytest.raises(SetupError, match="torch sees no GPU here"):
        ClipScore(model=str(folder), device="cuda").setup(WorkerOptions())


def test_the_stage_travels_to_workers(folder: Path) -> None:
    assert STAGES["clip_score"] is ClipScore
    stage = ClipScore(model=str(folder))
    assert pickle.loads(pickle.dumps(stage)) == stage


def test_the_packaged_model_prefers_true_captions() -> None:
    from winnow.stages.sources._scenes import SceneOptions, caption, render, scene

    stage = ClipScore(batch_size=64)
    state = stage.setup(WorkerOptions())
    described = [scene(424_242, i, SceneOptions()) for i in range(64)]
    images = [png(render(d, d.width, d.height)) for d in described]
    texts = [caption(d) for d in described]
    true = annotate(stage, state, _batch(images, texts)).column("clip_score").to_numpy()
    swapped = annotate(stage, state, _batch(images, texts[1:] + texts[:1]))
    assert (true > swapped.column("clip_score").to_numpy()).mean() > 0.9
    from winnow.models.checkpoint import PACKAGED

    assert sum(f.stat().st_size for f in PACKAGED["tiny"].iterdir()) <= 10_000_000


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA device")
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.03)])
def test_a_gpu_gives_the_cpus_scores(folder: Path, precision: Any, tolerance: float) -> None:
    scores = []
    for device, kind in (("cpu", "fp32"), ("cuda", precision)):
        stage = ClipScore(model=str(folder), device=device, precision=kind)  # type: ignore[arg-type]
        out = annotate(stage, stage.setup(WorkerOptions()), _six())
        scores.append(out.column("clip_score").to_numpy())
    np.testing.assert_allclose(scores[1], scores[0], atol=tolerance)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA device")
def test_neighbours_do_not_change_a_bit_on_a_gpu(folder: Path) -> None:
    stage = ClipScore(model=str(folder), batch_size=64, precision="bf16", device="cuda")
    state = stage.setup(WorkerOptions())
    whole = annotate(stage, state, _six())
    assert annotate(stage, state, _six().slice(0, 2)).equals(whole.slice(0, 2))
