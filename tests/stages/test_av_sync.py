"""Videos whose sound begins late, ends early or is in step."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from tests.videos import write_video
from winnow.contracts.stage import WorkerOptions
from winnow.stages.av_sync import AvSync
from winnow.stages.sources.video import VideoFolder


def measured(folder: Path) -> dict[str, dict]:
    videos, stage = VideoFolder(path=str(folder)), AvSync()
    table = pa.Table.from_batches([b for file in videos.files() for b in videos.read(file)])
    batch = table.select(["uid", "video_ref"]).combine_chunks().to_batches()[0]
    out = stage.annotate(batch, stage.setup(WorkerOptions()), None)  # type: ignore[arg-type]
    assert out.schema == stage.writes
    return dict(zip(table["path"].to_pylist(), out.to_pylist(), strict=True))


def test_offset_and_drift(tmp_path: Path) -> None:
    write_video(tmp_path / "together.mkv", seconds=3)
    write_video(tmp_path / "late.mkv", seconds=3, sound_delay_s=0.25)
    write_video(tmp_path / "short.mkv", seconds=3, sound_s=2.4)
    write_video(tmp_path / "aac.mp4", seconds=3)
    write_video(tmp_path / "mute.mp4", seconds=1, sound=False)
    (tmp_path / "page.mp4").write_text("<html>")
    found = measured(tmp_path)
    for name, start, drift in (("together", 0, 0), ("late", 0.25, 0), ("short", 0, -0.6)):
        row = found[f"{name}.mkv"]
        assert row["av_sync_error"] is None
        assert row["av_start_offset_s"] == pytest.approx(start, abs=0.02), name
        assert row["av_drift_s"] == pytest.approx(drift, abs=0.02), name
        assert row["av_gap_s"] == pytest.approx(0, abs=0.02), name
    assert abs(found["aac.mp4"]["av_start_offset_s"]) < 0.1
    assert found["mute.mp4"]["av_sync_error"] == "no_audio"
    assert found["page.mp4"]["av_sync_error"] == "undecodable"


def test_other_bytes_are_not_measured(tmp_path: Path) -> None:
    write_video(tmp_path / "x.mkv", seconds=1)
    videos, stage = VideoFolder(path=str(tmp_path)), AvSync()
    table = pa.Table.from_batches([b for file in videos.files() for b in videos.read(file)])
    batch = table.select(["uid", "video_ref"]).combine_chunks().to_batches()[0]
    write_video(tmp_path / "x.mkv", seconds=1, sound_delay_s=0.2)
    out = stage.annotate(batch, stage.setup(WorkerOptions()), None)  # type: ignore[arg-type]
    assert out.column("av_sync_error").to_pylist() == ["changed"]
