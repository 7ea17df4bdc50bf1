"""Segments of videos of known content: the middle picture, the sound, what is frozen or silent."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tests.videos import FPS, LEVELS, RATE, waveform, write_video
from winnow.contracts.errors import RecipeError
from winnow.contracts.media import MediaCaps
from winnow.contracts.stage import WorkerOptions
from winnow.pipeline.run import RunReport
from winnow.stages._audio import decode_audio
from winnow.stages.sources.video import VideoFolder
from winnow.stages.video_segment import VideoSegment


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    write_video(root / "a.mkv", seconds=4, frozen=(2,), silent=(1,))
    write_video(root / "b.mp4", seconds=3)
    write_video(root / "c.mp4", seconds=2, sound=False)
    (root / "d.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(200))
    return root


def segments(folder: Path, stage: VideoSegment | None = None, **source: Any) -> list[dict]:
    stage = stage or VideoSegment()
    videos = VideoFolder(path=str(folder), **source)
    table = pa.Table.from_batches([b for file in videos.files() for b in videos.read(file)])
    batch = table.select(["uid", *stage.reads.names]).combine_chunks().to_batches()[0]
    out = stage.annotate(batch, stage.setup(WorkerOptions()), None)  # type: ignore[arg-type]
    assert out.schema == stage.writes
    return [{**a, **b} for a, b in zip(table.to_pylist(), out.to_pylist(), strict=True)]


def grey(jpeg: bytes) -> float:
    return float(np.median(np.asarray(Image.open(io.BytesIO(jpeg)).convert("L"))))


def of(rows: list[dict], name: str) -> list[dict]:
    return [row for row in rows if row["path"] == name]


def test_pictures_are_those_of_their_second(folder: Path) -> None:
    for name in ("a.mkv", "b.mp4", "c.mp4"):
        for second, row in enumerate(of(segments(folder), name)):
            assert row["video_segment_error"] is None
            assert grey(row["image"]) == pytest.approx(LEVELS[second], abs=6), (name, second)
            assert row["segment_frames"] == FPS


def test_sound_is_cut_at_the_sample(folder: Path) -> None:
    whole = waveform(4, silent=(1,))
    for second, row in enumerate(of(segments(folder), "a.mkv")):
        heard = decode_audio(row["audio"], MediaCaps())
        assert not isinstance(heard, str)
        assert heard.sample_rate == RATE
        assert heard.samples.shape == (1, RATE)
        expected = whole[second * RATE : (second + 1) * RATE]
        assert np.abs(heard.samples[0] - expected).max() < 2e-4, second


def test_lossy_sound_is_in_place(folder: Path) -> None:
    whole = waveform(3)
    for second, row in enumerate(of(segments(folder), "b.mp4")):
        heard = decode_audio(row["audio"], MediaCaps())
        assert not isinstance(heard, str)
        expected = whole[second * RATE : (second + 1) * RATE]
        inner = slice(2000, 14000)
        correlation = np.corrcoef(heard.samples[0][inner], expected[inner])[0, 1]
        assert correlation > 0.99, second


def test_silence_and_frozen_frames_are_marked(folder: Path) -> None:
    a = of(segments(folder), "a.mkv")
    assert [row["segment_silent"] for row in a] == [False, True, False, False]
    assert [row["segment_frozen"] for row in a] == [False, False, True, False]
    assert a[0]["segment_rms_dbfs"] == pytest.approx(20 * np.log10(0.4 / np.sqrt(2)), abs=0.1)
    c = of(segments(folder), "c.mp4")
    assert [row["audio"] for row in c] == [None, None]
    assert [row["segment_silent"] for row in c] == [None, None]


def test_rows_do_not_depend_on_what_else_is_in_the_batch(folder: Path) -> None:
    stage = VideoSegment(num_frames=2)
    videos = VideoFolder(path=str(folder))
    table = pa.Table.from_batches([b for file in videos.files() for b in videos.read(file)])
    whole = segments(folder, stage)
    for index in (0, 2, 3, 5):
        one = table.slice(index, 1).select(["uid", *stage.reads.names]).combine_chunks()
        found = stage.annotate(
            one.to_batches()[0],
            stage.setup(WorkerOptions()),
            None,  # type: ignore[arg-type]
        ).to_pylist()[0]
        for name in stage.writes.names:
            assert found[name] == whole[index][name], (index, name)


def test_more_frames(folder: Path) -> None:
    rows = of(segments(folder, VideoSegment(num_frames=4, max_side=32), segment_s=2.0), "a.mkv")
    assert len(rows) == 2
    shown = [grey(rows[0][f"frame_{i}"]) for i in (1, 2, 3, 4)]
    assert shown == pytest.approx([40, 40, 90, 90], abs=6)
    assert Image.open(io.BytesIO(rows[0]["image"])).size == (32, 32)


def test_what_cannot_be_read_has_a_code(folder: Path, tmp_path: Path) -> None:
    assert of(segments(folder), "d.mp4")[0]["video_segment_error"] in ("missing", "undecodable")
    write_video(tmp_path / "x.mp4", seconds=2)
    data = (tmp_path / "x.mp4").read_bytes()
    videos = VideoFolder(path=str(tmp_path))
    table = pa.Table.from_batches([b for file in videos.files() for b in videos.read(file)])
    stage = VideoSegment()
    batch = table.select(["uid", *stage.reads.names]).combine_chunks().to_batches()[0]

    def code() -> set[str | None]:
        state = stage.setup(WorkerOptions())
        out = stage.annotate(batch, state, None)  # type: ignore[arg-type]
        return set(out.column("video_segment_error").to_pylist())

    assert code() == {None}
    (tmp_path / "x.mp4").write_bytes(data[:-1] + b"\0")
    assert code() == {"changed"}
    (tmp_path / "x.mp4").unlink()
    assert code() == {"unreadable"}


def test_a_table_of_samples_that_is_longer_than_its_file_is_not_opened(tmp_path: Path) -> None:
    """FFmpeg would make an entry in memory for each of four billion."""
    write_video(tmp_path / "x.mp4", seconds=2)
    data = (tmp_path / "x.mp4").read_bytes()
    assert {row["video_segment_error"] for row in segments(tmp_path)} == {None}
    at = data.index(b"stsz") + 12
    (tmp_path / "x.mp4").write_bytes(data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :])
    rows = segments(tmp_path)
    assert [(row["image"], row["video_segment_error"]) for row in rows] in (
        [(None, "undecodable")], [(None, "missing")]
    )  # fmt: skip


def test_damage_costs_rows_not_the_run(tmp_path: Path) -> None:
    write_video(tmp_path / "x.mkv", seconds=3)
    data = bytearray((tmp_path / "x.mkv").read_bytes())
    rng = np.random.default_rng(0)
    for trial in range(12):
        hurt = bytearray(data)
        for place in rng.integers(200, len(data), 60):
            hurt[place] = int(rng.integers(256))
        (tmp_path / "x.mkv").write_bytes(bytes(hurt[: len(hurt) - trial * 500]))
        for row in segments(tmp_path):
            assert (row["image"] is None) == (row["video_segment_error"] is not None)


@pytest.mark.parametrize(("name", "codec"), [("x.ts", "mpeg4"), ("x.flv", "flv1")])
def test_files_without_an_index(tmp_path: Path, name: str, codec: str) -> None:
    """A search in them fails, or ends behind the place and at any frame: nothing may be lost."""
    seconds, fps = 46, 8
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width = stream.height = 32
        stream.pix_fmt, stream.gop_size = "yuv420p", 100
        # By itself the encoder makes a key frame where a picture changes much.
        stream.options = {"sc_threshold": "1000000000"}
        for index in range(seconds * fps):
            pixels = np.full((32, 32, 3), 30 + 4 * (index // fps), np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    rows = segments(tmp_path)
    shown = [row["image"] and grey(row["image"]) for row in rows[:seconds]]
    assert shown == pytest.approx([30 + 4 * second for second in range(seconds)], abs=3)
    assert [row["segment_frames"] for row in rows[1 : seconds - 1]] == [fps] * (seconds - 2)


def test_many_channels(tmp_path: Path) -> None:
    """PyAV crashes the process where it looks at more than eight planes."""
    write_video(tmp_path / "x.mkv", seconds=1, sound=False)
    with av.open(str(tmp_path / "x.mkv")) as source, av.open(str(tmp_path / "y.mkv"), "w") as out:
        copy = out.add_stream_from_template(source.streams.video[0])
        track = out.add_stream("pcm_s16le", rate=RATE, layout="hexadecagonal")
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                out.mux(packet)
        samples = np.zeros((RATE, 16), np.int16)
        samples[:, 3] = 16_000
        frame = av.AudioFrame.from_ndarray(
            samples.reshape(1, -1), format="s16", layout="hexadecagonal"
        )
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        out.mux(track.encode(frame))
        out.mux(track.encode(None))
    row = of(segments(tmp_path), "y.mkv")[0]
    heard = decode_audio(row["audio"], MediaCaps())
    assert not isinstance(heard, str)
    assert heard.samples.shape[0] == 1
    assert np.abs(heard.samples[0, : RATE // 2] - 1000 / 32768).max() < 1e-4


def test_a_film_of_a_telephone_is_upright(tmp_path: Path) -> None:
    write_video(tmp_path / "x.mp4", seconds=1, frozen=(0,), sound=False)
    data = bytearray((tmp_path / "x.mp4").read_bytes())
    place = data.find(b"\x40\0\0\0", data.find(b"tkhd")) - 32
    quarter = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 64 << 16, 0, 1 << 30)
    data[place : place + 36] = quarter
    (tmp_path / "x.mp4").write_bytes(bytes(data))
    pixels = np.asarray(Image.open(io.BytesIO(segments(tmp_path)[0]["image"])).convert("L"))
    assert pixels[1].max() < 30 < pixels[8:].min()  # the bar at the left is now the upper edge


def test_tags_in_another_code_page(tmp_path: Path) -> None:
    write_video(tmp_path / "x.mkv", seconds=1, title="titel")
    data = (tmp_path / "x.mkv").read_bytes()
    assert b"titel" in data
    (tmp_path / "x.mkv").write_bytes(data.replace(b"titel", b"t\xeftel"))
    assert [row["video_segment_error"] for row in segments(tmp_path)][0] is None


@pytest.mark.parametrize(
    ("payload", "kept"),
    [("[image, audio]", 5), ("[image, audio], require: all", 3), ("audio", 3), ("image", 5)],
)
def test_a_silent_film_is_exported_where_no_sound_is_asked_for(
    run: Callable[..., RunReport], tmp_path: Path, payload: str, kept: int
) -> None:
    (tmp_path / "v").mkdir()
    write_video(tmp_path / "v" / "a.mp4", seconds=3)
    write_video(tmp_path / "v" / "b.mp4", seconds=2, sound=False)
    report = run(
        f"name: t\nsource: {{use: video, path: '{tmp_path / 'v'}'}}\nstages: {{video_segment: }}\n"
        f"export: {{train: {{payload: {payload}}}}}\n"
    )
    assert report.failures == []
    assert report.summary["kept"] == kept


def test_a_store_that_was_away_is_asked_again(
    run: Callable[..., RunReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "v").mkdir()
    write_video(tmp_path / "v" / "a.mp4", seconds=2)
    text = (
        f"name: t\nsource: {{use: video, path: '{tmp_path / 'v'}'}}\n"
        "stages: {video_segment: , av_sync: }\nexport: {train: {payload: [image, audio]}}\n"
    )

    def away(path: str) -> Any:
        raise OSError(path)

    with monkeypatch.context() as patch:
        patch.setattr("winnow.stages._video.open_file", away)
        patch.setattr("winnow.stages.sources.video._look", lambda *_: (2.0, []))
        assert run(text).summary["kept"] == 0
    assert run(text).summary["kept"] == 0
    assert run(text, retry_failed=True).summary["kept"] == 2


@pytest.mark.parametrize(
    "bad", [{"num_frames": 0}, {"quality": 100}, {"max_side": 1}, {"silent_dbfs": 3.0}]
)
def test_bad_parameters(bad: dict) -> None:
    with pytest.raises(RecipeError, match=next(iter(bad))):
        VideoSegment(**bad)
