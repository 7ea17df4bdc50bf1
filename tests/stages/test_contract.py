"""One contract for every registered stage: a new stage is tested here without a line of its own.

A stage that needs parameters, a model or a network gets them from ``EXAMPLES``.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import hashlib
import io
import pickle
import re
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.sounds import mutated_sounds
from winnow.contracts.media import MEDIA_REF, MediaCaps
from winnow.contracts.parameters import parameters_model, result_parameters, validate
from winnow.contracts.registry import STAGES
from winnow.contracts.stage import Stage, WorkerOptions
from winnow.stages._media import BatchMedia, MediaCache

CAPS = MediaCaps(max_pixels=1_000_000)


def small_clip(folder: Path) -> dict[str, Any]:
    """A contrastive model with random weights."""
    from winnow.models.contrastive import build_network, save_model
    from winnow.models.tokenizer import trimmed_merges

    config: dict[str, Any] = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16,
        },
        "text_cfg": {"context_length": 12, "vocab_size": 560, "width": 32, "heads": 2, "layers": 1},
    }  # fmt: skip
    path = folder / "model"
    merges = trimmed_merges(["a red cat and a blue dog"], 560)
    save_model(path, build_network(config, seed=3), config=config, preprocess={}, merges=merges)
    return {"model": str(path), "batch_size": 8, "write_embeddings": True}


def plain_clip(folder: Path) -> dict[str, Any]:
    """The same, for stages that write no embeddings."""
    return {"model": small_clip(folder)["model"], "batch_size": 8}


def matching_head(folder: Path) -> dict[str, Any]:
    """A Q-Former of random weights with its tower and tokenizer."""
    from tests.matching_heads import save_head

    return {"model": str(save_head(folder)), "batch_size": 8, "num_tokens": 12}


def two_clips(folder: Path) -> dict[str, Any]:
    """Models of two folds; a third fold has none."""
    return {"models": (small_clip(folder)["model"],) * 2, "batch_size": 8}


def flat_evaluation(folder: Path) -> dict[str, Any]:
    """One black picture."""
    table = {"phash": pa.array([0], pa.uint64()), "thumbnail": pa.array([bytes(192)], "binary")}
    table["thumbnail"] = table["thumbnail"].cast(pa.binary(192))
    pq.write_table(pa.table(table), folder / "evaluation.parquet")
    return {"evaluation": (str(folder / "evaluation.parquet"),)}


def small_captioner(engine: str) -> Callable[[Path], dict[str, Any]]:
    """A captioner with random weights."""

    def make(folder: Path) -> dict[str, Any]:
        from tests.captioners import blip, projector

        model = (blip if engine == "hf" else projector)(folder / "model")
        return {
            "engine": engine, "model": model, "batch_size": 8, "max_tokens": 4, "keep_cut": True,
        }  # fmt: skip

    return make


def small_whisper(engine: str) -> Callable[[Path], dict[str, Any]]:
    """A Whisper with random weights."""

    def make(folder: Path) -> dict[str, Any]:
        from tests import speech_models

        model = speech_models.whisper(folder / "hf")
        if engine == "faster_whisper":
            model = speech_models.converted(model, folder / "ct2")
        return {
            "engine": engine, "model": model, "batch_size": 8, "max_tokens": 8,
            "write_segments": True,
        }  # fmt: skip

    return make


def small_clap(folder: Path) -> dict[str, Any]:
    """A CLAP with random weights."""
    from tests import speech_models

    return {"model": speech_models.clap(folder / "clap"), "batch_size": 4, "write_embeddings": True}


def fixed(**parameters: Any) -> Callable[[Path], dict[str, Any]]:
    return lambda _: parameters


EXAMPLES: dict[str, list[Callable[[Path], dict[str, Any]]]] = {
    "audio_text_score": [small_clap],
    "caption": [
        small_captioner("hf"),
        small_captioner("projector"),
        # Port 9 of this machine: nobody answers.
        fixed(engine="endpoint", model="m", url="http://127.0.0.1:9/v1", retries=0),
        fixed(
            engine="endpoint",
            model="m",
            url="http://127.0.0.1:9/v1",
            retries=0,
            prompt="{note} {named:list}",
        ),
    ],
    "caption_choice": [
        fixed(),
        fixed(policy="all_passing", unsupported="named"),
        fixed(
            raw_score=("clip", "match"),
            synthetic_scores=("clips", "matches"),
            threshold=(0.5, 0.3),
        ),
    ],
    "caption_scores": [plain_clip],
    "clip_score": [small_clip],
    "cross_fit_clip_score": [two_clips],
    # No row's URL is one that may be fetched: the network stays untouched.
    "download": [fixed(timeout_s=2.0, retries=0, respect_robots=False)],
    "hallucination": [plain_clip, lambda f: plain_clip(f) | {"single": True, "tiles": 0}],
    "instructions": [
        fixed(vocabulary="scenes"),
        fixed(
            objects=None,
            groups="groups",
            relations="relations",
            background="background",
            written="written",
        ),
        fixed(vocabulary="scenes", written={"detail": "told"}),
    ],
    "language": [fixed(), fixed(method="fasttext")],
    "match_score": [matching_head, lambda folder: matching_head(folder) | {"many": True}],
    "near_evaluation": [flat_evaluation],
    "perceptual_hash": [fixed(), fixed(algorithms=("dhash", "phash"))],
    "resize": [
        fixed(),
        fixed(mode="keep_ratio", image_size=20, encode_format="png"),
        fixed(mode="no", encode_format="webp", skip_reencode=True),
    ],
    "transcript": [small_whisper("faster_whisper"), small_whisper("hf")],
}

CASES = [
    pytest.param((name, make), id=f"{name}-{i}" if i else name)
    for name in STAGES
    if STAGES[name].__module__.startswith("winnow.stages.")
    for i, make in enumerate(EXAMPLES.get(name, [fixed()]))
]

Built = tuple[Stage, Any]


@pytest.fixture(scope="module", params=CASES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A stage and its worker's state."""
    name, make = request.param
    folder = tmp_path_factory.mktemp(name)
    parameters = make(folder)
    missing = [
        f.name
        for f in dataclasses.fields(STAGES[name])
        if f.default is dataclasses.MISSING and f.name not in parameters
    ]
    if missing:
        pytest.skip(f"{name} needs {', '.join(missing)}: add it to EXAMPLES")
    stage = STAGES[name](**parameters)
    return stage, stage.setup(WorkerOptions(scratch=folder, caps=CAPS))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def bomb() -> bytes:
    """A PNG whose header says 60,000 x 60,000."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\x00\x00\x10\x00IDAT" + bytes(100)


def mutated_images() -> Iterator[bytes]:
    """Good images, then twelve ways of hurting them."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8)).resize((60, 45))
    exif = Image.Exif()
    exif[0x0112] = 8
    kinds = [
        ("JPEG", {"exif": exif}),
        ("PNG", {}),
        ("WEBP", {}),
        ("GIF", {}),
        ("TIFF", {}),
        ("BMP", {}),
    ]
    for kind, options in kinds:
        data = encoded(picture, kind, **options)
        yield data
        yield data[: len(data) // 2]  # truncated
        yield data[:-1]
        yield data[:20]  # header only
        yield data[:10] + rng.bytes(len(data) - 10)  # header of one, body of noise
        middle = len(data) // 2
        yield data[:middle] + bytes(30) + data[middle + 30 :]  # a hole
        flipped = bytearray(data)
        for position in rng.integers(0, len(data), 10):
            flipped[position] ^= 1 << int(rng.integers(8))
        yield bytes(flipped)
        yield data[::-1]
        yield data + b"\x00" * 1000 + data  # something behind it
        yield data[:8] + b"\xff" * 40 + data[48:]  # absurd sizes
    yield bomb()
    yield encoded(picture, "PDF")
    yield encoded(picture, "EPS")
    yield encoded(picture.convert("RGBA"), "PNG")
    yield encoded(picture.convert("LAB"), "TIFF")
    yield encoded(picture.quantize(4), "GIF", save_all=True, append_images=[picture.quantize(4)])
    yield from (b"", b"\x00", b"<html><body>404</body></html>", pickle.dumps(print))


@functools.cache
def hostile_videos() -> tuple[dict[str, Any], ...]:
    """References to videos: whole, cut, damaged, playlists, gone, changed."""
    from tests.videos import write_video

    folder = Path(tempfile.mkdtemp(prefix="winnow-videos-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_video(folder / "whole.mp4", seconds=2)
    whole = (folder / "whole.mp4").read_bytes()
    playlist = b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"
    flipped = bytearray(whole)
    for position in np.random.default_rng(0).integers(100, len(whole), 40):
        flipped[position] ^= 255
    bodies = [whole, whole[: len(whole) // 2], bytes(flipped), playlist, b"", b"<html></html>"]
    references = []
    for index, body in enumerate(bodies):
        path = folder / f"{index}.mp4"
        path.write_bytes(body)
        digest = hashlib.blake2b(body, digest_size=16).digest()
        reference = {"path": str(path), "offset": 0, "length": len(body), "digest": digest}
        references += [reference] * 3
    gone = {**references[0], "path": str(folder / "gone.mp4")}
    changed = {**references[0], "digest": bytes(16)}
    beyond = {**references[0], "offset": 1 << 40}
    return (*references, gone, changed, beyond, {**references[0], "path": None})


HOSTILE_STRINGS = [
    "a photo of two red cats on a sofa",
    "",
    " \t\n",
    "\x00",
    "a\x00b",
    "%s %n {0} ${HOME} `id`",
    "\u202eright to left",
    "e\u0301" * 50,
    "\U0001f408" * 40,
    "1234567890",
    "word " * 3_000,
    "x" * 20_000,
    "ftp://example.com/a.jpg",
    "file:///etc/passwd",
    "http://127.0.0.1/a.jpg",
    "http://[::ffff:10.0.0.1]/",
    "http://0x7f.1/",
    "http://:@/\\\\",
    "IMG_0001.JPG",
    "someone@example.com",
    "'; DROP TABLE rows; --",
    "\u4e00\u53ea\u732b",
]


CLOSED: dict[str, list[Any]] = {
    "fold": ["0", "1", "2", None, ""],
    "segment_start_s": [0.0, 0.0, 0.5, -1.0, float("nan"), float("inf"), 1e300, None],
    "segment_end_s": [1.0, 2.0, 0.25, 1.0, 1.0, float("inf"), 1e9, None],
}
"""Columns with few right values, which hostile ones of their type would never hit."""


def column(name: str, kind: pa.DataType, num_rows: int) -> pa.Array:
    """Hostile values of a type, nulls among them."""
    if name in CLOSED:
        values: list[Any] = CLOSED[name]
    elif pa.types.is_large_binary(kind) and "audio" in name:
        values = [*mutated_sounds(), None]
    elif pa.types.is_large_binary(kind) or pa.types.is_binary(kind):
        values = [*mutated_images(), None]
    elif pa.types.is_fixed_size_binary(kind):
        width = kind.byte_width
        values = [bytes(width), b"\xff" * width, bytes(i % 256 for i in range(width)), None]
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        values = [*HOSTILE_STRINGS, None]
    elif pa.types.is_boolean(kind):
        values = [True, False, None]
    elif pa.types.is_integer(kind):
        values = [0, 1, 100, None]
    elif pa.types.is_floating(kind):
        values = [0.0, -1.5, float("nan"), float("inf"), None]
    elif kind == MEDIA_REF:
        values = [*hostile_videos(), None]
    elif pa.types.is_struct(kind):
        children = [column(name, field.type, 24).to_pylist() for field in kind]
        rows = [
            dict(zip([f.name for f in kind], row, strict=True))
            for row in zip(*children, strict=True)
        ]
        values = [*rows, None]
    elif pa.types.is_list(kind):
        inner = column(name, kind.value_type, 24).to_pylist()
        values = [[], [None], *([inner[i], *inner[:i]] for i in range(0, 24, 5)), inner, None]
    else:
        pytest.skip(f"no hostile values for {kind} yet: add them to column()")
    return pa.array([values[i % len(values)] for i in range(num_rows)], kind)


def batch_for(stage: Stage, num_rows: int, *, nulls: bool = False) -> pa.RecordBatch:
    names, arrays = ["uid"], [pa.array([bytes([i]) * 16 for i in range(num_rows)], pa.binary(16))]
    for field in stage.reads:
        names.append(field.name)
        arrays.append(
            pa.nulls(num_rows, field.type) if nulls else column(field.name, field.type, num_rows)
        )
    return pa.RecordBatch.from_arrays(arrays, names)


def rows_of(stage: Stage) -> int:
    """Enough rows to see every hostile value; a whole batch where the stage fixes its size."""
    return stage.batch_rows or 72


def annotate(built: Built, batch: pa.RecordBatch) -> pa.RecordBatch:
    stage, state = built
    with MediaCache(1 << 24, 2) as cache:
        media = BatchMedia(batch, caps=CAPS, cache=cache, first_row=0)
        out = stage.annotate(batch, state, media)
    assert out.schema.equals(stage.writes)
    assert out.num_rows == batch.num_rows
    out.validate(full=True)
    return out


def error_column(stage: Stage) -> str:
    """Stages whose columns can be renamed name their error after them."""
    renamed = f"{getattr(stage, 'column', stage.name)}_error"
    return renamed if renamed in stage.writes.names else f"{stage.name}_error"


def codes(stage: Stage, out: pa.RecordBatch) -> list[str | None]:
    return out.column(error_column(stage)).to_pylist()


def all_rows(built: Built) -> Iterator[pa.RecordBatch]:
    """Hostile rows in batches of a size that the stage takes."""
    whole = batch_for(built[0], 72)
    for start in range(0, whole.num_rows, rows_of(built[0])):
        yield whole.slice(start, rows_of(built[0]))


def test_every_stage_of_this_package_is_here() -> None:
    assert {"caption_stats", "image_info", "perceptual_hash", "resize"} <= set(STAGES)


def test_declarations(built: Built) -> None:
    stage, _ = built
    kind = type(stage)
    assert kind.version >= 1
    assert kind.__dataclass_params__.frozen
    assert all(f.kw_only for f in dataclasses.fields(kind))
    assert stage.writes.names[-1] == error_column(stage)
    assert stage.writes.field(error_column(stage)).type == pa.string()
    assert not set(stage.writes.names) & {"uid", *stage.reads.names}
    assert all(isinstance(code, str) for code in stage.transient_codes)
    payloads = [f for f in stage.reads if pa.types.is_binary(f.type)]
    assert not payloads, "payload columns are large_binary"


def test_the_docstring_is_the_contract(built: Built) -> None:
    stage, _ = built
    text = type(stage).__doc__ or ""
    for heading in ("Reads:", "Writes:", "Cost:", "Fails:"):
        assert heading in text
    for name in stage.writes.names:
        assert re.search(rf"\b{name}\b", text), f"{name} is not in the docstring"


def test_it_is_frozen_and_survives_a_pickle(built: Built) -> None:
    stage, _ = built
    again = pickle.loads(pickle.dumps(stage))
    assert again == stage
    assert again.writes.equals(stage.writes)
    assert result_parameters(again) == result_parameters(stage)
    for field in dataclasses.fields(stage):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(stage, field.name, None)


def test_its_parameters_can_come_from_yaml(built: Built) -> None:
    stage, _ = built
    values = {f.name: getattr(stage, f.name) for f in dataclasses.fields(stage)}
    lists = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
    assert validate(type(stage), lists) == values
    assert parameters_model(type(stage)).model_json_schema()["additionalProperties"] is False


def test_an_empty_batch(built: Built) -> None:
    assert annotate(built, batch_for(built[0], 0)).num_rows == 0


def test_all_null(built: Built) -> None:
    """Null in, a code and nulls out: nothing is made up."""
    out = annotate(built, batch_for(built[0], rows_of(built[0]), nulls=True))
    assert None not in codes(built[0], out)
    for name in built[0].writes.names[:-1]:
        assert out.column(name).null_count == out.num_rows, name


def test_hostile_rows_cost_only_themselves(built: Built) -> None:
    stage, _ = built
    text = type(stage).__doc__ or ""
    seen: set[str | None] = set()
    for batch in all_rows(built):
        seen |= set(codes(stage, annotate(built, batch)))
    assert len(seen - {None}) >= 1, "no row failed"
    if stage.deterministic:
        assert None in seen, "no row went well"
    for code in seen - {None}:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", str(code))
        assert re.search(rf"\b{code}\b", text), f"{code} is not in the docstring"


def test_the_cut_into_batches_changes_nothing(built: Built) -> None:
    stage, _ = built
    if stage.batch_rows is not None:
        pytest.skip(f"{stage.name} fixes its batches at {stage.batch_rows} rows")
    batch = batch_for(stage, 72)
    whole = annotate(built, batch)
    cuts = [0, 1, 2, 9, 40, 72]
    parts = [annotate(built, batch.slice(a, b - a)) for a, b in zip(cuts, cuts[1:], strict=False)]
    assert pa.Table.from_batches(parts).combine_chunks().equals(pa.table(whole).combine_chunks())


def test_rows_stay_in_order(built: Built) -> None:
    stage, _ = built
    if stage.batch_rows is not None:
        pytest.skip(f"{stage.name} fixes its batches at {stage.batch_rows} rows")
    batch = batch_for(stage, 72)
    order = pa.array(np.random.default_rng(0).permutation(72))
    assert annotate(built, batch.take(order)).equals(annotate(built, batch).take(order))


def test_the_input_is_not_changed(built: Built) -> None:
    batch = next(all_rows(built))
    before = repr(batch.to_pylist())  # NaN is not equal to itself
    annotate(built, batch)
    assert repr(batch.to_pylist()) == before
