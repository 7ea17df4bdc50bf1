"""Progress bars, as rich draws them."""

from __future__ import annotations

import time

from rich.console import Console

from winnow.pipeline.cli_progress import BarProgress


def drawn(progress: BarProgress) -> list[str]:
    console = Console(record=True, width=140)
    console.print(progress._bars)
    return console.export_text().splitlines()


def test_a_bar_tells_what_is_done_and_how_fast_in_the_step_s_own_unit() -> None:
    progress = BarProgress()
    progress.start("[download]", 100)
    progress.start("12 trials", 61_440, "samples")
    for _ in range(3):
        time.sleep(0.01)
        progress.advance("12 trials", 640)
    rows, samples = drawn(progress)
    assert rows.startswith("[download] ")  # no markup
    assert "0/100" in rows and "/s" not in rows
    assert "1920/61440" in samples and " samples/s" in samples


def test_a_step_of_unknown_size_ends_whole() -> None:
    progress = BarProgress()
    progress.start("read", 0)
    progress.advance("read", 7)
    assert "7/?" in drawn(progress)[0]
    progress.finish("read")
    assert "7/7" in drawn(progress)[0]


def test_long_names_of_steps_are_cut() -> None:
    progress = BarProgress()
    progress.start("x" * 60, 1)
    (line,) = drawn(progress)
    assert "x" * 37 + "..." in line and "x" * 38 not in line
