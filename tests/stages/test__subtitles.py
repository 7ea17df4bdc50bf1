"""Subtitle files against the formats' own rules, and what is shown against a naive search."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.stages import _subtitles
from winnow.stages._subtitles import MAX_CHARACTERS, Cue, sidecar_cues, texts_between

SRT = "1\n00:00:01,000 --> 00:00:02,000\n{}\n\n2\n01:00:03,000 --> 01:00:04,500\nend\n\n"
VTT = (
    "WEBVTT - a file\n\nNOTE none of this\nis shown\n\nSTYLE\n::cue {{ color: red }}\n\n"
    "00:01.000 --> 00:02.000 align:start position:0%\n{}\n\nname\n01:00:03.000 --> 01:00:04.500\n"
    "end\n\n"
)
ASS = (
    "[Script Info]\nScriptType: v4.00+\n\n[Events]\nFormat: Layer, Start, End, Style, Name, "
    "MarginL, MarginR, MarginV, Effect, Text\n"
    "Dialogue: 0,1:00:03.00,1:00:04.50,Default,,0,0,0,,end\n"
    "Dialogue: 0,0:00:01.00,0:00:02.00,Default,,0,0,0,,{}\n"
)
FILES = {"srt": SRT, "vtt": VTT, "ass": ASS}


def first(extension: str, text: str) -> str:
    """Read a file of two cues, check both times, return what the first one says."""
    cues = sidecar_cues(FILES[extension].format(text).encode(), extension)
    assert [(cue.start_s, cue.end_s) for cue in cues] == [(1.0, 2.0), (3603.0, 3604.5)]
    assert cues[1].text == "end"
    return cues[0].text


@pytest.mark.parametrize(
    ("extension", "text", "plain"),
    [
        ("srt", "<i>two</i>\n lines", "two lines"),
        ("srt", "<font color='#ff0000'>red</font> {\\an8}top", "red top"),
        ("srt", "if 1 < 2 and 3 > 2", "if 1 < 2 and 3 > 2"),
        ("srt", "I <3 you", "I <3 you"),
        ("srt", "<c.yellow>a</c><00:00:01.500>b", "ab"),
        ("srt", "\u202eleft, e\u0301, \U0001f408", "\u202eleft, e\u0301, \U0001f408"),
        # W3C WebVTT, 3.2 and 6.4: tags and time stamps are no text, five characters have names.
        ("vtt", "<v Bob>Hello</v> <c.loud.red>you</c>, <00:01.500>now", "Hello you, now"),
        ("vtt", "<ruby>A<rt>B</rt></ruby> <lang en>word</lang>", "AB word"),
        ("vtt", "this &amp; that, 1 &lt; 2, 2 &gt; 1", "this & that, 1 < 2, 2 > 1"),
        ("vtt", "a\nb", "a b"),
        # Backslashes and braces mean nothing in WebVTT; but what is a style in other formats is
        # one in files that were turned into WebVTT line by line.
        ("vtt", "C:\\new\\Notes\\home", "C:\\new\\Notes\\home"),
        ("vtt", "{a} }", "{a} }"),
        ("vtt", "{\\an8}top", "top"),
        ("ass", "{\\b1}bold{\\b0}, two\\Nlines\\nor\\hmore", "bold, two lines or more"),
        ("ass", "a, b{a comment},, c", "a, b,, c"),
    ],
)  # fmt: skip
def test_what_a_cue_says(extension: str, text: str, plain: str) -> None:
    assert first(extension, text) == plain


def test_a_long_cue_is_cut_and_one_that_takes_no_time_is_none() -> None:
    assert first("srt", "x" * 5000) == "x" * MAX_CHARACTERS
    data = SRT.format("gone").replace("00:00:02,000", "00:00:01,000").encode()
    assert [cue.text for cue in sidecar_cues(data, "srt")] == ["end"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_encodings_and_ends_of_lines(encoding: str, newline: str) -> None:
    data = SRT.format("gr\u00fc\u00df\u20ac").replace("\n", newline).encode(encoding)
    assert [cue.text for cue in sidecar_cues(data, "srt")] == ["gr\u00fc\u00df\u20ac", "end"]


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(list(FILES)),
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=8),
    st.integers(0, 400),
)
def test_damage_never_raises(extension: str, edits: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(FILES[extension].format("said").encode())
    for at, value in edits:
        data[at % len(data)] = value
    cues = sidecar_cues(bytes(data)[:cut], extension)
    assert cues == sorted(cues, key=lambda cue: cue.start_s)
    assert all(cue.text and cue.end_s > cue.start_s for cue in cues)


times = st.integers(0, 12).map(float)


@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.tuples(times, st.integers(1, 6), st.sampled_from("abcdefgh")), max_size=14),
    st.lists(times, max_size=8),
    st.integers(1, 8),
    st.integers(1, 4),
)
def test_what_is_shown_is_that_of_a_naive_search(
    made: list[tuple[float, int, str]], starts: list[float], length: int, most: int
) -> None:
    cues = [Cue(start_s=s, end_s=s + n, text=t) for s, n, t in sorted(made)]
    counted: list[Cue] = []
    for cue in cues:
        if sum(other.end_s > cue.start_s for other in counted) < most:
            counted.append(cue)
    pieces = [(start, start + length) for start in sorted(starts)]
    expected = []
    for start, end in pieces:
        texts: list[str] = []
        for cue in counted:
            if cue.start_s < end and cue.end_s > start and cue.text not in texts:
                texts.append(cue.text)
        expected.append(" ".join(texts) or None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_subtitles, "MAX_SHOWN", most)
        assert list(texts_between(cues, pieces)) == expected


def test_a_long_piece_has_all_that_is_shown_one_after_the_other() -> None:
    cues = [Cue(start_s=2 * i, end_s=2 * i + 2, text=f"{i}") for i in range(300)]
    assert list(texts_between(cues, [(0, 600)])) == [" ".join(map(str, range(300)))]
