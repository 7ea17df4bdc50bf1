"""hallucination: what texts name, what CLIP's ranks support, and a naive loop over crops."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.media import DecodedImage, MediaCaps
from winnow.contracts.parameters import result_parameters, validate
from winnow.contracts.stage import WorkerOptions
from winnow.models.checkpoint import find_model
from winnow.models.contrastive import build_network, load_model, save_model
from winnow.models.tokenizer import trimmed_merges
from winnow.stages._media import BatchMedia, MediaCache
from winnow.stages.hallucination import Hallucination, best_names, crops, read_objects

NAMES = ["cat", "dog", "hot dog", "owl", "car", "traffic light", "cow", "fox", "bus", "tree"]
CONFIG: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16,
    },
    "text_cfg": {"context_length": 12, "vocab_size": 560, "width": 32, "heads": 2, "layers": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights, and a file of names."""
    path = tmp_path_factory.mktemp("model")
    merges = trimmed_merges(["a picture of a cat dog hot owl car"], 560)
    save_model(path, build_network(CONFIG, seed=3), config=CONFIG, preprocess={}, merges=merges)
    lines = ["cat\tkitten\tkitty", *NAMES[1:], ""]
    (path / "objects.txt").write_text("\n".join(lines))
    return path


def picture(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (8, 9, 3), np.uint8)).resize((70, 60)).save(buffer, "PNG")
    return buffer.getvalue()


def checked(
    folder: Path,
    images: list[bytes | None],
    texts: list[Any],
    raws: list[str | None],
    **parameters: Any,
) -> list[dict[str, Any]]:
    values = {"model": str(folder), "objects": str(folder / "objects.txt"), "batch_size": 8}
    stage = Hallucination(**(values | parameters))
    columns: dict[str, Any] = {
        "uid": pa.array([bytes([i]) * 16 for i in range(len(images))], pa.binary(16)),
        "image": pa.array(images, pa.large_binary()),
        "synthetic_captions": pa.array(texts, stage.reads.field("synthetic_captions").type),
        "text": pa.array(raws, pa.string()),
    }
    batch = pa.RecordBatch.from_pydict(columns)
    with MediaCache(1 << 24, 2) as cache:
        media = BatchMedia(batch, caps=MediaCaps(), cache=cache, first_row=0)
        out = stage.annotate(batch, stage.setup(WorkerOptions()), media)
    assert out.schema.equals(stage.writes)
    return out.to_pylist()


def supported_by_a_naive_loop(folder: Path, image: bytes, tiles: int, num_best: int) -> set[str]:
    """One crop and one name at a time."""
    model = load_model(find_model(str(folder)), device="cpu")
    whole = Image.open(io.BytesIO(image)).convert("RGB")
    pictures = [whole]
    for y in range(tiles):
        for x in range(tiles):
            left, top = round(x * 35 / max(1, tiles - 1)), round(y * 30 / max(1, tiles - 1))
            pictures.append(whole.crop((left, top, left + 35, top + 30)))
    fits = {}
    for name in NAMES:
        text = model.embed_texts([f"a picture of {'an' if name == 'owl' else 'a'} {name}"])[0]
        fits[name] = max(
            float(model.embed_images(torch.tensor(model.preprocess.pixels(p))[None])[0] @ text)
            for p in pictures
        )
    return set(sorted(NAMES, key=lambda name: -fits[name])[:num_best])


@pytest.mark.parametrize(("tiles", "share"), [(0, 0.3), (1, 0.3), (3, 0.5)])
def test_clip_supports_what_a_naive_loop_supports(folder: Path, tiles: int, share: float) -> None:
    images: list[bytes | None] = [picture(i) for i in range(3)]
    found = checked(
        folder, images, [[" and ".join(NAMES)]] * 3, [None] * 3, tiles=tiles, rank_share=share
    )
    for image, row in zip(images, found, strict=True):
        assert image is not None
        supported = supported_by_a_naive_loop(folder, image, tiles, round(share * 10))
        (names,) = row["unsupported_objects"]
        assert names == [name for name in NAMES if name not in supported]
        assert row["num_unsupported_objects"] == 10 - round(share * 10)


def test_the_raw_caption_supports_what_it_names(folder: Path) -> None:
    texts = ["Two kittens, hot dogs and an OWL.", "a dog's car", None, "nothing at all"]
    (row,) = checked(
        folder, [picture(0)], [texts], ["cats, a hot dog, foxes and cars"], rank_share=0.01
    )
    supported = supported_by_a_naive_loop(folder, picture(0), 3, 1)
    expected = [["owl"], ["dog"], [], []]
    expected = [[name for name in names if name not in supported] for names in expected]
    assert row["unsupported_objects"] == expected
    assert row["num_unsupported_objects"] == sum(map(len, expected)) >= 1
    alone = checked(folder, [picture(0)], [texts], ["cats"], raw_column=None, rank_share=0.01)
    assert len(alone[0]["unsupported_objects"][0]) > len(expected[0])


def test_what_a_text_denies_is_neither_named_nor_supported(folder: Path) -> None:
    supported = supported_by_a_naive_loop(folder, picture(0), 3, 1)
    one, two = [name for name in ("cat", "dog", "owl") if name not in supported][:2]
    texts = [f"There is no {one}.", f"a {two} without {one}s", f"{one}s or {two}s"]
    raw = f"no {one} or {two}"
    (row,) = checked(folder, [picture(0)], [texts], [raw], rank_share=0.01)
    assert row["unsupported_objects"] == [[], [two], [one, two]]
    assert row["num_unsupported_objects"] == 2


def test_a_full_share_supports_everything_and_one_text_is_one_list(folder: Path) -> None:
    texts = ["a cat and an owl", "a dog"]
    images: list[bytes | None] = [picture(0), picture(1)]
    rows = checked(folder, images, texts, [None, None], single=True, rank_share=1.0)
    assert [row["unsupported_objects"] for row in rows] == [[[]], [[]]]
    assert [row["num_unsupported_objects"] for row in rows] == [0, 0]
    few = checked(folder, images, texts, [None, None], single=True, rank_share=0.1)
    assert sum(row["num_unsupported_objects"] for row in few) >= 1


def test_names_of_all_captions_count_once(folder: Path) -> None:
    (row,) = checked(
        folder, [picture(0)], [["cat, dog, owl, car, bus", "a cat and a cat"]], [None],
        rank_share=0.1,
    )  # fmt: skip
    lists = row["unsupported_objects"]
    assert row["num_unsupported_objects"] == len({name for names in lists for name in names})
    assert all(len(set(names)) == len(names) for names in lists)


def test_neighbours_do_not_change_a_row(folder: Path) -> None:
    images: list[bytes | None] = [picture(i) for i in range(6)]
    texts = [[" and ".join(NAMES[i : i + 5])] for i in range(6)]
    whole = checked(folder, images, texts, [None] * 6)
    assert checked(folder, images[::-1], texts[::-1], [None] * 6) == whole[::-1]
    assert checked(folder, images[2:4], texts[2:4], [None] * 2) == whole[2:4]


def test_rows_that_cannot_be_checked_get_a_code(folder: Path) -> None:
    images = [None, picture(0)[:50], picture(0), picture(0), picture(1)]
    rows = checked(
        folder, images, [["a cat"], ["a cat"], None, [None, " "], ["a cat"]], ["cat"] * 5
    )
    codes = ["missing", "undecodable", "empty_text", "empty_text", None]
    assert [row["unsupported_objects_error"] for row in rows] == codes
    for row, code in zip(rows, codes, strict=True):
        assert (row["unsupported_objects"] is None) == (code is not None)
        assert (row["num_unsupported_objects"] is None) == (code is not None)


def test_ranks_and_crops_by_hand() -> None:
    scores = np.array([0.3, 0.1, 0.3, 0.2], np.float32)
    assert best_names(scores, 1) == {0, 2}  # equal ones stay in
    assert best_names(scores, 3) == {0, 2, 3}
    image = DecodedImage(pixels=Image.new("RGB", (5, 1)), format="PNG")
    assert [c.pixels.size for c in crops(image, 2) if not isinstance(c, str)] == [(5, 1)] + [
        (3, 1)
    ] * 4
    assert crops("missing", 3) == ["missing"]
    assert read_objects("cat\t kitty\t\n\n dog \n") == (["cat", "dog"], {"kitty": "cat"})


def test_what_enters_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("cat\ndog\n")
    stage = Hallucination(model=str(folder), objects=str(path))
    before = stage.model_digest()
    path.write_text("cat\towl\ndog\n")
    assert stage.model_digest() != before
    assert "objects" not in result_parameters(stage)
    assert result_parameters(stage)["rank_share"] == 0.1
    path.write_text("cat\n")
    with pytest.raises(SetupError, match="has 1 names"):
        stage.model_digest()
    with pytest.raises(SetupError, match="cannot be read"):
        Hallucination(objects=str(tmp_path / "none.txt")).model_digest()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank_share": 0.0}, "rank_share=0.0"),
        ({"tiles": 17}, "tiles=17"),
        ({"raw_column": "image"}, "have to be different names"),
        ({"column": "text"}, "cannot be written"),
        ({"batch_size": 0}, "hallucination: batch_size=0"),
    ],
)
def test_bad_parameters(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Hallucination(**validate(Hallucination, values))
