"""cross_fit_clip_score against clip_score itself, model by model, bit for bit."""

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

from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.identity import stable_hash64
from winnow.contracts.media import MediaCaps
from winnow.contracts.parameters import result_parameters, validate
from winnow.contracts.stage import WorkerOptions
from winnow.models.contrastive import build_network, save_model
from winnow.models.tokenizer import trimmed_merges
from winnow.stages import _clip_batch
from winnow.stages._media import BatchMedia, MediaCache
from winnow.stages.clip_score import ClipScore
from winnow.stages.cross_fit_clip_score import CrossFitClipScore

NUM_ROWS = 60
WORDS = ["a", "red", "cat", "two", "blue", "dogs", "to", "the", "left", "of", "an", "old", "house"]


def config(image_size: int) -> dict[str, Any]:
    return {
        "embed_dim": 24,
        "vision_cfg": {
            "image_size": image_size, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16,
        },
        "text_cfg": {"context_length": 12, "vocab_size": 600, "width": 32, "heads": 2, "layers": 2},
    }  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Three models with other weights, the last one of another image size."""
    names = []
    for seed, size in enumerate((32, 32, 24)):
        path = tmp_path_factory.mktemp("model")
        merges = trimmed_merges([" ".join(WORDS)], 600)
        network = build_network(config(size), seed=seed)
        save_model(path, network, config=config(size), preprocess={}, merges=merges)
        names.append(str(path))
    return tuple(names)


def png(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    size = tuple(int(v) for v in rng.integers(20, 60, 2))
    image = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize(size)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def rows(folds: list[str | None], **columns: Any) -> pa.RecordBatch:
    rng = np.random.default_rng(9)
    values = {
        "uid": [bytes([i]) * 16 for i in range(len(folds))],
        "image": [png(i) for i in range(len(folds))],
        "text": [" ".join(rng.choice(WORDS, 1 + i % 9)) for i in range(len(folds))],
        "fold": folds,
        **columns,
    }
    kinds = {"uid": pa.binary(16), "image": pa.large_binary()}
    arrays = {n: pa.array(v, kinds.get(n, pa.string())) for n, v in values.items()}
    return pa.RecordBatch.from_pydict(arrays)


def annotate(stage: Any, batch: pa.RecordBatch, state: Any = None) -> pa.RecordBatch:
    state = state or stage.setup(WorkerOptions())
    with MediaCache(1 << 24, 2) as cache:
        caps = MediaCaps(max_pixels=1_000_000)
        out = stage.annotate(batch, state, BatchMedia(batch, caps=caps, cache=cache, first_row=0))
    assert out.schema == stage.writes
    assert out.num_rows == batch.num_rows
    return out


def mixed_folds() -> list[str | None]:
    """Uneven folds, so that some models fill batches and others only begin one."""
    rng = np.random.default_rng(4)
    return [None if v == 3 else str(v) for v in rng.choice([0, 0, 0, 0, 1, 2, 3], NUM_ROWS)]


def test_every_row_has_the_score_of_its_model_bit_for_bit(models: tuple[str, ...]) -> None:
    batch = rows(mixed_folds())
    by_model = []
    for name in models:
        single = ClipScore(model=name, batch_size=8)
        state = single.setup(WorkerOptions())
        parts = [annotate(single, batch.slice(a, 8), state) for a in range(0, NUM_ROWS, 8)]
        scores = [part.column("clip_score") for part in parts]
        by_model.append(np.concatenate([s.to_numpy() for s in scores]))
    stage = CrossFitClipScore(models=models, batch_size=8)
    out = annotate(stage, batch)
    uids = batch.column("uid").to_pylist()
    expected = [
        by_model[int(fold) if fold else stable_hash64("cross_fit_clip_score", uid) % 3][i]
        for i, (fold, uid) in enumerate(zip(mixed_folds(), uids, strict=True))
    ]
    found = out.column("cross_fit_clip_score").to_numpy()
    assert found.tobytes() == np.array(expected, np.float32).tobytes()
    assert len(set(found.tolist())) == NUM_ROWS
    nulls = [stable_hash64("cross_fit_clip_score", u) % 3 for u in uids]
    assert len({n for n, f in zip(nulls, mixed_folds(), strict=True) if f is None}) == 3


def test_cut_order_and_neighbours_do_not_change_a_bit(models: tuple[str, ...]) -> None:
    stage = CrossFitClipScore(models=models, batch_size=8)
    state = stage.setup(WorkerOptions())
    batch = rows(mixed_folds())
    whole = annotate(stage, batch, state)
    cuts = [0, 1, 2, 9, 33, NUM_ROWS]
    parts = [
        annotate(stage, batch.slice(a, b - a), state) for a, b in zip(cuts, cuts[1:], strict=False)
    ]
    assert pa.Table.from_batches(parts).combine_chunks().equals(pa.table(whole).combine_chunks())
    order = pa.array(np.random.default_rng(0).permutation(NUM_ROWS))
    assert annotate(stage, batch.take(order), state).equals(whole.take(order))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cut_and_neighbours_do_not_change_a_bit_on_a_gpu(
    models: tuple[str, ...], precision: Any
) -> None:
    stage = CrossFitClipScore(models=models, batch_size=16, precision=precision, device="cuda")
    state = stage.setup(WorkerOptions())
    batch = rows(mixed_folds())
    whole = annotate(stage, batch, state)
    order = pa.array(np.random.default_rng(0).permutation(NUM_ROWS))
    assert annotate(stage, batch.take(order), state).equals(whole.take(order))


def test_each_row_passes_one_model_once(
    models: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts the rows that enter a forward pass, and the passes."""
    seen: list[int] = []
    embed = _clip_batch.PaddedPass.embed

    def counting(self: Any, images: Any, texts: Any, codes: Any) -> Any:
        seen.append(len(texts))
        return embed(self, images, texts, codes)

    monkeypatch.setattr(_clip_batch.PaddedPass, "embed", counting)
    folds = ["0"] * 33 + ["2"] * 8
    annotate(CrossFitClipScore(models=models, batch_size=16), rows(folds))
    assert sorted(seen) == [1, 8, 16, 16]


def test_rows_that_cannot_be_scored_get_a_code(models: tuple[str, ...]) -> None:
    huge = io.BytesIO()
    Image.new("1", (3000, 2000)).save(huge, "PNG")
    folds = ["0", "3", "-1", "1", "0", "0", "0", " 1", "2"]
    images = [png(0), png(1), png(2), None, png(4)[:60], huge.getvalue(), png(6), None, png(8)]
    batch = rows(folds, image=images, text=["a cat"] * 6 + [" \t", "a cat", "a cat"])
    out = annotate(CrossFitClipScore(models=models, batch_size=4), batch)
    assert out.column("cross_fit_clip_score_error").to_pylist() == [
        None, "unknown_fold", "unknown_fold", "missing", "undecodable", "too_large", "empty_text",
        "missing", None,
    ]  # fmt: skip
    scored = [s is not None for s in out.column("cross_fit_clip_score").to_pylist()]
    assert scored == [True] + [False] * 7 + [True]


def test_an_overflowing_model_costs_its_own_fold(models: tuple[str, ...]) -> None:
    stage = CrossFitClipScore(models=models, batch_size=4)
    state = stage.setup(WorkerOptions())
    with torch.no_grad():
        state.models[1].network.visual.proj.fill_(float("inf"))
    out = annotate(stage, rows(["0", "1", "2"]), state)
    assert out.column("cross_fit_clip_score_error").to_pylist() == [None, "not_finite", None]


def test_all_models_enter_the_fingerprint_in_order(models: tuple[str, ...]) -> None:
    digest = CrossFitClipScore(models=models).model_digest()
    swapped = CrossFitClipScore(models=(models[1], models[0], models[2]))
    fewer = CrossFitClipScore(models=models[:2])
    assert len({digest, swapped.model_digest(), fewer.model_digest()}) == 3
    stage = CrossFitClipScore(models=models, column="c", fold="part", num_gpus=0.5)
    assert result_parameters(stage) == {
        "fold": "part", "column": "c", "batch_size": 64, "precision": "fp32",
        "image_column": "image", "text_column": "text", "num_threads": 1,
    }  # fmt: skip
    assert stage.writes.names == ["c", "c_error"]
    assert stage.reads.names == ["image", "text", "part"]
    assert stage.resources.num_gpus == 0.5
    assert pickle.loads(pickle.dumps(stage)) == stage


def test_calls_are_whole_batches_of_bounded_size(models: tuple[str, ...]) -> None:
    sizes = {b: CrossFitClipScore(models=models, batch_size=b).batch_rows for b in (8, 1024, 9000)}
    assert sizes == {8: 96, 1024: 4096, 9000: 9000}


def test_missing_weights_are_found_in_planning(tmp_path: Path, models: tuple[str, ...]) -> None:
    (tmp_path / "open_clip_config.json").write_text(
        (Path(models[0]) / "open_clip_config.json").read_text()
    )
    stage = CrossFitClipScore(models=(models[0], str(tmp_path)))
    with pytest.raises(SetupError, match="there are no weights"):
        stage.model_digest()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"models": ["tiny"]}, "at least two"),
        ({"models": ["tiny", "vit-b-32"]}, "did you mean .*ViT-B-32"),
        ({"fold": ""}, "such as 'fold'"),
        ({"fold": "text"}, "fold='text'"),
        ({"column": "fold"}, "column='fold' cannot be written"),
        ({"batch_size": 0}, "cross_fit_clip_score: batch_size=0"),
    ],
)
def test_bad_parameters(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        CrossFitClipScore(**validate(CrossFitClipScore, {"models": ["tiny", "tiny"], **values}))
