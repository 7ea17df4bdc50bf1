"""A folder sink, a small pool of kept rows of every type, and finished exports of them."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import functools
import hashlib
import io
import wave
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from winnow.contracts.exporter import ExportContext, Exporter, FileSummary
from winnow.contracts.identity import row_uid
from winnow.stages.export import _manifest
from winnow.stages.export.llava import Llava
from winnow.stages.export.parquet import Parquet
from winnow.stages.export.webdataset import WebDataset

NUM_ROWS = 40
CONVERSATIONS = pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))
RECIPE = 'name: pets\n# a fence in a comment: ```\nsource: {use: url_table, path: "urls.parquet"}\n'


@dataclass
class FolderSink:
    """Commits a file when its block ends well, as the workspace does."""

    folder: Path

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        buffer = WriteOnly()
        yield buffer
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(buffer.data))

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        with open(self.folder / name, "rb") as file:
            yield file


class WriteOnly:
    """A sink that can do nothing but write: no seek, no tell, no read."""

    closed = False

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> int:
        self.data += data
        return len(data)


def encoded_image(row: int, kind: str = "JPEG") -> bytes:
    """A distinct small picture: its top left pixel block says which row it is of."""
    pixels = np.full((24, 32, 3), 255, np.uint8)
    pixels[:, :] = (row * 5 % 256, row * 11 % 256, row * 23 % 256)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def conversation_of(row: int) -> list[dict[str, str]]:
    """One or two questions and answers in LLaVA's form."""
    turns = [("human", f"<image>\nWhat is {row}?"), ("gpt", f'The "number" \u6f22 {row}.')]
    turns += [("human", "Is it even?"), ("gpt", "Yes." if row % 2 else "No.")] * (row % 2)
    return [{"from": who, "value": value} for who, value in turns]


def make_rows(num_rows: int = NUM_ROWS, kinds: Sequence[str] = ("JPEG",)) -> pa.RecordBatch:
    """Rows as the pipeline gives them, with a column of every Arrow type that stages write."""
    uids = [row_uid("row", i) for i in range(num_rows)]
    count = range(num_rows)
    kind_of = [kinds[i % len(kinds)] for i in count]
    half = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(num_rows * 4) / 7, pa.float16()), 4)
    when = [datetime.datetime(2026, 1, 2, 3, 4, 5, i, datetime.UTC) for i in count]
    columns: dict[str, pa.Array] = {
        "uid": pa.array(uids, pa.binary(16)),
        "key": pa.array([u.hex() for u in uids]),
        "image": pa.array([encoded_image(i, k) for i, k in enumerate(kind_of)], pa.large_binary()),
        "text": pa.array([f'a caption, "quoted" \u00e4\u6f22\U0001f431 number {i}' for i in count]),
        "url": pa.array([f"http://scenes.test/{i}.jpg" for i in count]).dictionary_encode(),
        "width": pa.array([32] * num_rows, pa.int32()),
        "phash": pa.array([2**64 - 1 - i for i in count], pa.uint64()),
        "pdq": pa.array([bytes([i % 256] * 32) for i in count], pa.binary(32)),
        "clip_score": pa.array(
            [[0.28, None, float("nan"), 0.31][i % 4] for i in count], pa.float32()
        ),
        "ratio": pa.array([[1.5, float("inf"), -0.0, 1e-300][i % 4] for i in count], pa.float64()),
        "animated": pa.array([[True, False, None][i % 3] for i in count], pa.bool_()),
        # Null in the first rows: what an inference from five samples would take for always null.
        "image_error": pa.array(
            ["late" if i == num_rows - 1 else None for i in count], pa.string()
        ),
        "nothing": pa.nulls(num_rows),
        "taken": pa.array(when, pa.timestamp("us", "UTC")),
        "day": pa.array([datetime.date(2026, 1, 1 + i % 28) for i in count], pa.date32()),
        "price": pa.array([decimal.Decimal(i) / 100 for i in count], pa.decimal128(9, 2)),
        "near_duplicates": pa.array(
            [None if i % 5 == 4 else uids[: i % 3] for i in count], pa.list_(pa.binary(16))
        ),
        "box": pa.array(
            [None if i % 4 == 3 else {"x": i, "score": float("nan")} for i in count],
            pa.struct([("x", pa.int16()), ("score", pa.float32())]),
        ),
        "image_embedding": half,
        "chosen_caption_all": pa.array(
            [[[f"caption {i}", "a cat"], [], None][i % 3] for i in count], pa.list_(pa.string())
        ),
        "named_objects": pa.array(
            [[[["cat"], []], None][i % 2] for i in count], pa.list_(pa.list_(pa.string()))
        ),
        "conversations": pa.array([conversation_of(i) for i in count], CONVERSATIONS),
    }
    return pa.RecordBatch.from_pydict(columns)


def encoded_sound(row: int) -> bytes:
    """A distinct WAV of 50 ms: every sample says which row it is of."""
    out = io.BytesIO()
    with wave.open(out, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(row.to_bytes(2, "little") * 400)
    return out.getvalue()


def make_triples(num_rows: int = 12) -> pa.RecordBatch:
    """Rows of image and audio: by turns both, the image alone, the audio alone; a second image in
    every other one."""
    rows = make_rows(num_rows)
    count = range(num_rows)
    images = [None if i % 3 == 2 else encoded_image(i) for i in count]
    sounds = [None if i % 3 == 1 else encoded_sound(i) for i in count]
    crops = [encoded_image(i + 100) if i % 2 else None for i in count]
    index = rows.schema.get_field_index("image")
    rows = rows.set_column(index, "image", pa.array(images, pa.large_binary()))
    rows = rows.append_column("audio", pa.array(sounds, pa.large_binary()))
    return rows.append_column("crop", pa.array(crops, pa.large_binary()))


def context_of(rows: pa.RecordBatch, **changes: Any) -> ExportContext:
    """The context of an export of these rows."""
    fields = [f for f in rows.schema if f.type != pa.large_binary()]
    values: dict[str, Any] = {
        "name": "pets",
        "recipe_name": "pets-recipe",
        "recipe_yaml": RECIPE,
        "selection": "0123abcd",
        "schema": pa.schema([*fields, pa.field("file", pa.string())]),
        "funnel": [
            {
                "filter": "min_clip_score",
                "description": "clip_score >= 0.2 | a `bar`",
                "kept": rows.num_rows,
                "dropped": 12345,
                "null": 3,
                "only": 7,
            }
        ],
        "rows_read": rows.num_rows + 12345,
        "rows_kept": rows.num_rows,
        "license": "CC-BY-4.0",
        "description": "Pictures of *pets*.",
    }
    return ExportContext(**(values | changes))


def export(
    exporter: Exporter,
    rows: pa.RecordBatch,
    folder: Path,
    manifest_is_known: bool = True,
    **changes: Any,
) -> ExportContext:
    """Write a whole export as the pipeline does: data files, manifest, then what is beside."""
    folder.mkdir(parents=True, exist_ok=True)
    sink, files, parts = FolderSink(folder), [], []
    exporter.payloads(rows.schema)
    context = context_of(rows, **changes)
    for index, start in enumerate(range(0, rows.num_rows, exporter.rows_per_file)):
        part = rows.slice(start, exporter.rows_per_file)
        name = exporter.file_name(index)
        with sink.create(name) as out:
            extra = exporter.write_part(iter([part.slice(0, 3), part.slice(3)]), out, sink)
        files.append(summary_of(folder / name, part.num_rows, extra))
        table = pa.Table.from_batches([part])
        names = pa.array([name] * part.num_rows)
        parts.append(table.append_column("file", names).select(context.schema.names))
    with sink.create(_manifest.MANIFEST_NAME) as out:
        _manifest.merge(iter(parts), out, context.schema)
    if manifest_is_known:
        files.append(summary_of(folder / _manifest.MANIFEST_NAME, rows.num_rows, {}))
    exporter.finish(files, context, sink)
    return context


def summary_of(path: Path, num_rows: int, extra: Mapping[str, Any]) -> FileSummary:
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    return FileSummary(
        name=path.name, num_rows=num_rows, size_bytes=len(data), sha256=digest, extra=extra
    )


@pytest.fixture(scope="session")
def rows() -> pa.RecordBatch:
    return make_rows()


@pytest.fixture(scope="session")
def mixed_rows() -> pa.RecordBatch:
    """JPEG, PNG, WebP and GIF by turns."""
    return make_rows(kinds=("JPEG", "PNG", "WEBP", "GIF"))


@pytest.fixture(scope="session")
def tars(rows: pa.RecordBatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tars of 20 JPEG samples and what is beside them."""
    folder = tmp_path_factory.mktemp("tars") / "pets"
    export(WebDataset(rows_per_file=20), rows, folder)
    return folder


@pytest.fixture(scope="session")
def mixed_tars(mixed_rows: pa.RecordBatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tars of 20 samples in four formats."""
    folder = tmp_path_factory.mktemp("mixed") / "pets"
    export(WebDataset(rows_per_file=20), mixed_rows, folder)
    return folder


@pytest.fixture(scope="session")
def parquets(rows: pa.RecordBatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two Parquet files of 20 rows."""
    folder = tmp_path_factory.mktemp("parquets") / "pets"
    export(Parquet(rows_per_file=20), rows, folder)
    return folder


@pytest.fixture(scope="session")
def llavas(mixed_rows: pa.RecordBatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaVA's JSON in two parts, and pictures in four formats."""
    folder = tmp_path_factory.mktemp("llavas") / "pets"
    export(Llava(rows_per_file=20), mixed_rows, folder)
    return folder


@pytest.fixture(scope="session")
def make_context(rows: pa.RecordBatch) -> Callable[..., ExportContext]:
    """Make a context of the pool's rows with some values changed."""
    return functools.partial(context_of, rows)


@pytest.fixture(scope="session")
def recipe() -> str:
    """The recipe of every context."""
    return RECIPE


@pytest.fixture(scope="session")
def tars_alone(rows: pa.RecordBatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tars that were described before there was a manifest."""
    folder = tmp_path_factory.mktemp("alone") / "pets"
    export(WebDataset(rows_per_file=20), rows, folder, manifest_is_known=False)
    return folder


@pytest.fixture(scope="session")
def triples() -> pa.RecordBatch:
    """Twelve rows of which some lack the image, some the audio."""
    return make_triples()


@pytest.fixture(scope="session")
def triple_tars(triples: pa.RecordBatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tars of image, audio and text."""
    folder = tmp_path_factory.mktemp("triples") / "triple-tars"
    export(WebDataset(rows_per_file=6, payload=("image", "audio", "crop")), triples, folder)
    return folder


@pytest.fixture(scope="session")
def triple_parquets(triples: pa.RecordBatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two Parquet files of image, audio and text."""
    folder = tmp_path_factory.mktemp("triples") / "triple-parquets"
    export(Parquet(rows_per_file=6, payload=("image", "audio", "crop")), triples, folder)
    return folder


@pytest.fixture(scope="session")
def text_tars(triples: pa.RecordBatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tars of texts alone."""
    folder = tmp_path_factory.mktemp("texts") / "texts"
    export(WebDataset(rows_per_file=6, payload=()), triples, folder)
    return folder
