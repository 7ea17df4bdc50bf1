"""Progress on pipes: a line per step, and every so often."""

from __future__ import annotations

import logging

import pytest

from winnow.pipeline import progress as module
from winnow.pipeline.progress import LogProgress, Progress, duration_words, rate_words


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
    assert lines(caplog)[2].endswith("/s, 0 s left")


@pytest.fixture
def now(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands, in seconds; what is told is kept."""
    caplog.set_level(logging.INFO, "winnow.pipeline.progress")
    time = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: time[0])
    return time


def test_a_long_step_has_its_recent_rate_and_fewer_lines(
    caplog: pytest.LogCaptureFixture, now: list[float]
) -> None:
    """An hour of nothing, then 100 samples a second: what is left goes by the last lines."""
    progress = LogProgress(every_s=10.0)
    progress.start("2 trials", 1_000_000, "samples")
    now[0] = 3600.0
    for _ in range(3600):
        now[0] += 1.0
        progress.advance("2 trials", 100)
    found = lines(caplog)[1:]
    assert 60 <= len(found) <= 62
    assert found[-1].startswith("2 trials: 3")
    assert " samples, 100/s, 1 h 4" in found[-1]
    progress.finish("2 trials")
    assert lines(caplog)[-1] == "2 trials: done, 360,000 samples in 2 h 00 min"


def test_what_an_earlier_run_did_is_no_speed(
    caplog: pytest.LogCaptureFixture, now: list[float]
) -> None:
    """A trial that goes on says at once what its state had seen; then 10 samples a second."""
    progress = LogProgress(every_s=10.0)
    progress.start("1 trial", 1000, "samples")
    now[0] = 5.0
    progress.advance("1 trial", 600)
    for _ in range(5):
        now[0] += 1.0
        progress.advance("1 trial", 10)
    assert lines(caplog)[1] == "1 trial: 650 of 1,000 samples, 10/s, 35 s left"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (119.4, "119 s"), (120, "2 min"), (3540, "59 min"), (3599, "1 h 00 min"),
     (11_100, "3 h 05 min"), (4_000_000, "1,111 h 07 min")],
)  # fmt: skip
def test_durations(seconds: float, words: str) -> None:
    assert duration_words(seconds) == words


@pytest.mark.parametrize(
    ("rate", "words"), [(0.04, "0.04"), (0.251, "0.25"), (8.13, "8.1"), (1234.4, "1,234")]
)
def test_rates_keep_two_digits(rate: float, words: str) -> None:
    assert rate_words(rate) == words


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
