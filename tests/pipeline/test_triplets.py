"""Image, audio and text in one recipe, from the source to the tars and back."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import wave
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.servers import LoopbackServer, answer
from winnow.pipeline.report import render_report
from winnow.pipeline.run import RunReport
from winnow.pipeline.storage import Storage
from winnow.stages.sources.webdataset import WebDataset

Runner = Callable[..., RunReport]
NUM_ROWS = 24


def picture(row: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8 + row, 8), (row * 9, 3, 200)).save(out, "PNG")
    return out.getvalue()


def sound(row: int) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(row.to_bytes(2, "little") * 300)
    return out.getvalue()


MEDIA = {f"{i}.png": picture(i) for i in range(NUM_ROWS)}
MEDIA |= {f"{i}.wav": sound(i) for i in range(NUM_ROWS)}


def has(row: int) -> tuple[bool, bool]:
    """Whether a row has its image, its audio: every fourth has neither."""
    return row % 4 in (0, 1), row % 4 in (0, 2)


def table(path: Path, name: Callable[[str], str]) -> Path:
    """A table of names of media; a name that leads nowhere where a row has not this medium."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["picture", "sound", "text"])
        for row in range(NUM_ROWS):
            image, audio = has(row)
            first = name(f"{row}.png" if image else "none.png")
            writer.writerow([first, name(f"{row}.wav" if audio else "none.wav"), f"text {row}"])
    return path


def samples_of(folder: Path) -> dict[str, dict[str, bytes]]:
    """The members of every sample of the tars, by text."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                stem, _, end = info.name.partition(".")
                found.setdefault(stem, {})[end] = tar.extractfile(info).read()  # type: ignore[union-attr]
    return {members["txt"].decode(): members for members in found.values()}


def expected(require: str) -> dict[str, set[str]]:
    """The media of every row that is kept."""
    kept = {}
    for row in range(NUM_ROWS):
        image, audio = has(row)
        if (image and audio) if require == "all" else (image or audio):
            kept[f"text {row}"] = {*(["png"] if image else []), *(["wav"] if audio else [])}
    return kept


def check(report: RunReport, workspace: Path, require: str) -> Path:
    """The ledger balances, and the tars hold what it kept, byte for byte."""
    kept = expected(require)
    assert (report.summary["rows"], report.summary["kept"]) == (NUM_ROWS, len(kept))
    (folder,) = (workspace / "export").iterdir()
    samples = samples_of(folder)
    assert {text: {*members} - {"txt", "json"} for text, members in samples.items()} == kept
    for text, members in samples.items():
        for end in kept[text]:
            assert members[end] == MEDIA[f"{text.split()[1]}.{end}"]
    return folder


@pytest.mark.parametrize(
    ("require", "shuffle"), [("any", "bucket"), ("all", "bucket"), ("any", "global")]
)
def test_files_named_by_a_table(run: Runner, tmp_path: Path, require: str, shuffle: str) -> None:
    for name, data in MEDIA.items():
        (tmp_path / name).write_bytes(data)
    path = table(tmp_path / "pool.csv", str)
    source = f"use: file_table, path: '{path}', image_column: picture, audio_column: sound"
    report = run(
        f"name: t\nrows_per_shard: 5\nsource: {{{source}}}\n"
        f"stages: {{image_info: }}\n"
        f"export: {{train: {{payload: [image, audio], require: {require}, rows_per_file: 7, "
        f"shuffle: {shuffle}}}}}\n"
    )
    folder = check(report, tmp_path / "ws", require)
    # What was written reads back as the same triplets.
    back = WebDataset(path=str(folder), also="audio")
    rows = [row for f in back.files() for b in back.read(f) for row in b.to_pylist()]
    assert {
        row["text"]: {
            *(["png"] if row["image_ref"] else []),
            *(["wav"] if row["audio_ref"] else []),
        }
        for row in rows
    } == expected(require)
    assert all(row["members"] == [] for row in rows)


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    running = LoopbackServer()
    for name, data in MEDIA.items():
        running.routes[f"/{name}"] = answer(data)
    yield running
    running.close()


def test_two_columns_of_urls(run: Runner, tmp_path: Path, server: LoopbackServer) -> None:
    path = table(tmp_path / "pool.csv", lambda name: f"http://media.test/{name}")
    report = run(
        f"name: t\nsource: {{use: url_table, path: '{path}', url_column: picture}}\n"
        "stages:\n"
        "  download: {per_host: 32}\n"
        "  download_audio: {use: download, media: audio, url_column: sound, per_host: 32,\n"
        "    max_duration_s: 60.0}\n"
        "export: {train: {payload: [image, audio]}}\n",
        resolve={"media.test": server.address},
    )
    folder = check(report, tmp_path / "ws", "any")
    documents = {text: json.loads(members["json"]) for text, members in samples_of(folder).items()}
    assert documents["text 1"]["download_audio_error"] == "http_404"
    assert documents["text 2"]["download_error"] == "http_404"


def test_texts_alone_of_a_pool_with_pictures(run: Runner, tmp_path: Path) -> None:
    for name, data in MEDIA.items():
        (tmp_path / name).write_bytes(data)
    path = table(tmp_path / "pool.csv", str)
    source = f"use: file_table, path: '{path}', image_column: picture, keep: []"
    for shuffle in ("bucket", "global"):
        report = run(
            f"name: t\nsource: {{{source}}}\n"
            f"export: {{train: {{payload: [], shuffle: {shuffle}}}}}\n",
            workspace=str(tmp_path / shuffle),
        )
        assert report.summary["kept"] == NUM_ROWS
        (folder,) = (tmp_path / shuffle / "export").iterdir()
        samples = samples_of(folder)
        assert len(samples) == NUM_ROWS
        assert {end for members in samples.values() for end in members} == {"txt", "json"}


def test_a_balance_of_modalities_is_in_ledger_and_report(run: Runner, tmp_path: Path) -> None:
    for name, data in MEDIA.items():
        (tmp_path / name).write_bytes(data)
    path = table(tmp_path / "pool.csv", str)
    source = f"use: file_table, path: '{path}', image_column: picture, audio_column: sound"
    text = (
        f"name: t\nrows_per_shard: 5\nsource: {{{source}}}\n"
        "filters:\n  even:\n    use: balanced_rows\n    on_null: drop\n"
        "    present: {image: image_ref is not None, audio: audio_ref is not None}\n"
        "    cap: {image+audio: 2, '*': 4}\n"
        "export: {train: {payload: [image, audio]}}\n"
    )
    report = run(text)
    assert report.summary["kept"] == 2 + 4 + 4
    media, even = report.summary["funnel"]
    assert (media["dropped"], even["dropped"]) == (6, 8)
    assert even["rule"].startswith("audio 4 of 6, image 4 of 6, image+audio 2 of 6 (at most (")
    storage = Storage(str(tmp_path / "ws"))
    reasons = []
    for name in storage.names(f"ledger/{report.selection}"):
        if name.endswith(".parquet"):
            rows = storage.parquet(f"ledger/{report.selection}/{name}").read().to_pylist()
            reasons += [json.loads(row["value"]) for row in rows if row["filter"] == "even"]
    assert Counter((r["group"], r["kept"], r["of"]) for r in reasons) == {
        ("image+audio", 2, 6): 4, ("image", 4, 6): 2, ("audio", 4, 6): 2
    }  # fmt: skip
    assert report.state is not None
    page = render_report(storage, report.state.plan, report.state, report.summary)
    assert "image+audio</div>" in page
    other = run(text.replace("cap:", "seed: 1\n    cap:"), workspace=str(tmp_path / "other"))
    assert other.summary["kept"] == 10
    assert other.selection != report.selection
