"""Progress on pipes: a line per step, and every so often."""

from __future__ import annotations

import logging

import pytest

from winnow.pipeline.progress import LogProgress, Progress


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records]


def test_a_step_is_told_when_it_begins_and_ends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "winnow.pipeline.progress")
    with LogProgress(every_s=3600) as progress:
        progress.start("read", 12_345)
        progress.advance("read", 10_000)
        progress.advance("read", 2_345)
        progress.finish("read")
    assert lines(caplog)[0] == "read: 12,345 rows"
    assert lines(caplog)[1].startswith("read: done, 12,345 rows in ")
    assert len(lines(caplog)) == 2


def test_a_long_step_is_told_with_its_rate_and_what_is_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "winnow.pipeline.progress")
    progress = LogProgress(every_s=0.0)
    progress.start("a", 100)
    progress.advance("a", 40)
    progress.advance("a", 60)
    assert "a: 40 of 100 rows, " in lines(caplog)[1]
    assert lines(caplog)[2].startswith("a: 100 of 100 rows, ")
    assert lines(caplog)[2].endswith(" rows/s, 0 s left")


def test_a_step_that_nobody_began_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    progress = LogProgress(every_s=0.0)
    progress.advance("unknown", 1)
    progress.finish("unknown")
    assert lines(caplog) == []


def test_the_base_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        progress.start("a", 1)
        progress.advance("a", 1)
        progress.finish("a")
    assert capsys.readouterr() == ("", "")
