"""Videos of known length and subtitles become rows, one per second."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from tests.videos import write_video
from winnow.contracts.errors import RecipeError, SetupError
from winnow.stages._subtitles import MAX_SHOWN, Cue, sidecar_cues, texts_between
from winnow.stages.sources.video import VideoFolder

SRT = """1
00:00:00,200 --> 00:00:00,900
<i>Good</i> morning

2
00:00:00,950 --> 00:00:02,050
A dog
and a cat

3
00:00:03,000 --> 00:00:03,500
The end
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    (root / "inner").mkdir()
    write_video(root / "a.mp4", seconds=4)
    (root / "a.srt").write_text(SRT, encoding="utf-8")
    write_video(root / "inner" / "b.mkv", seconds=2, sound_s=2.5)
    (root / "inner" / "b.en.vtt").write_text("WEBVTT\n\n00:01.200 --> 00:02.000\nHi <b>you</b>\n")
    (root / "inner" / "page.mp4").write_text("<html>no video</html>")
    (root / "inner" / "notes.txt").write_text("not a video")
    return root


def rows(source: VideoFolder) -> list[dict]:
    batches = [batch for file in source.files() for batch in source.read(file)]
    return pa.Table.from_batches(batches).to_pylist()


def test_segments_cover_the_longest_stream(folder: Path) -> None:
    found = rows(VideoFolder(path=str(folder)))
    a = [row for row in found if row["path"] == "a.mp4"]
    assert [row["segment"] for row in a] == [0, 1, 2, 3]
    assert [row["segment_start_s"] for row in a] == [0, 1, 2, 3]
    assert a[-1]["segment_end_s"] == pytest.approx(4, abs=0.1)
    b = [row for row in found if row["path"] == "inner/b.mkv"]
    assert len(b) == 3, "2.5 s of sound, 2 s of pictures"
    assert b[-1]["segment_end_s"] == pytest.approx(2.5, abs=0.05)
    assert len({row["uid"] for row in found}) == len(found)
    assert len({str(row["video_ref"]) for row in a}) == 1


def test_text_is_what_is_shown_in_the_segment(folder: Path) -> None:
    found = {(r["path"], r["segment"]): r["text"] for r in rows(VideoFolder(path=str(folder)))}
    assert found["a.mp4", 0] == "Good morning A dog and a cat"
    assert found["a.mp4", 1] == "A dog and a cat"
    assert found["a.mp4", 2] == "A dog and a cat"
    assert found["a.mp4", 3] == "The end"
    assert found["inner/b.mkv", 0] is None
    assert found["inner/b.mkv", 1] == "Hi you"


def test_no_video_is_one_row(folder: Path) -> None:
    page = [row for row in rows(VideoFolder(path=str(folder))) if "page" in row["path"]]
    assert len(page) == 1
    assert page[0]["segment"] is None
    assert page[0]["video_ref"] is not None


def test_other_segments_are_other_rows(folder: Path) -> None:
    one = {row["uid"] for row in rows(VideoFolder(path=str(folder)))}
    half = rows(VideoFolder(path=str(folder), segment_s=0.5))
    assert not one & {row["uid"] for row in half if row["segment"] is not None}
    assert sum(row["path"] == "a.mp4" for row in half) == 8


def test_long_videos_are_cut(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = rows(VideoFolder(path=str(folder), max_segments=2))
    assert sum(row["path"] == "a.mp4" for row in found) == 2
    assert "cut at 2" in caplog.text


@pytest.mark.parametrize("bad", [{"segment_s": 0}, {"max_segments": 0}, {"extensions": (".MP4",)}])
def test_bad_parameters(bad: dict) -> None:
    with pytest.raises(RecipeError, match=next(iter(bad))):
        VideoFolder(path="x", **bad)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no video file"):
        VideoFolder(path=str(tmp_path)).files()
    with pytest.raises(SetupError, match="no folder"):
        VideoFolder(path=str(tmp_path / "no")).files()


@pytest.mark.parametrize("data", [b"", b"\xff\xfe\x00garbage", b"1\n2\n3\n" * 50, b"WEBVTT"])
def test_garbage_has_no_cues(data: bytes) -> None:
    for extension in ("srt", "vtt", "ass"):
        assert all(cue.text for cue in sidecar_cues(data, extension))


def test_an_old_encoding_is_read() -> None:
    cues = sidecar_cues("1\n00:00:01,000 --> 00:00:02,000\ncafé\n".encode("cp1252"), "srt")
    assert cues == [Cue(start_s=1.0, end_s=2.0, text="café")]


def test_text_between_is_half_open() -> None:
    cues = [Cue(start_s=0, end_s=1, text="a"), Cue(start_s=1, end_s=2, text="b")]
    spans = [(0, 0.5), (0.5, 1.5), (1, 2), (2, 3)]
    assert list(texts_between(cues, spans)) == ["a", "a b", "b", None]


def test_subtitles_made_to_hurt_cost_little() -> None:
    """Each of 50,000 is shown all the time: all of them for every segment would be gigabytes."""
    cues = [Cue(start_s=0, end_s=1e5, text=f"{i} " + "x" * 100) for i in range(50_000)]
    texts = list(texts_between(cues, [(i, i + 1) for i in range(3600)]))
    assert texts[0] is not None
    assert texts[0].split()[::2] == [str(i) for i in range(MAX_SHOWN)]
    assert set(texts) == {texts[0]}


def test_subtitles_in_utf_16() -> None:
    data = "1\n00:00:01,000 --> 00:00:02,000\ngr\u00fc\u00df\n\n".encode("utf-16")
    assert [cue.text for cue in sidecar_cues(data, "srt")] == ["gr\u00fc\u00df"]
