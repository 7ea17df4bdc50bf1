"""Pictures of simulated ablations: there or not, whole, the same bytes, and what they hold."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from tests.ablation_simulation import Plan, scenes, simulate
from winnow.pipeline.ablation_canvas import Picture, line, new_figure
from winnow.pipeline.ablation_charts import pictures
from winnow.pipeline.ablation_contrasts import Analysis, analyse
from winnow.pipeline.ablation_results import Results
from winnow.pipeline.statistics import Design, mean_interval

PLANS = [p for p in scenes() if not any(x in p.arm for x in ("20%", "50%", "75%"))]
DESIGN = Design(
    name="d",
    metrics=("zero_shot.accuracy", "retrieval.image_to_text_recall@1"),
    seeds=(0, 1, 2, 3, 4),
    scorers={"clip_noisy": "noisy $x$ <b>", "clip_packaged": "packaged"},
)


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyse(DESIGN, Results(simulate(PLANS, num_items=20)))


@pytest.fixture(scope="module")
def drawn(analysis: Analysis) -> Iterator[list[Picture]]:
    yield pictures(analysis)


def test_each_picture_is_a_png_and_a_well_formed_svg(drawn: list[Picture]) -> None:
    assert [p.name for p in drawn] == ["verdict", "curve", "gap"]
    for picture in drawn:
        image = Image.open(io.BytesIO(picture.png))
        image.load()
        assert image.width > 600 and len(np.unique(np.asarray(image.convert("L")))) > 20
        root = ET.fromstring(picture.svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        tags = {node.tag.rsplit("}", 1)[-1] for node in root.iter()}
        assert not tags & {"script", "image", "foreignObject", "date"}
        assert b"Software" not in picture.png and b"Date" not in picture.png


def test_a_users_settings_change_no_byte_and_stay_as_they_were(
    analysis: Analysis, drawn: list[Picture]
) -> None:
    with mpl.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.hashsalt": "x"}):
        again = pictures(analysis)
        assert mpl.rcParams["font.size"] == 30
    assert again == drawn


def test_only_what_there_is_to_draw() -> None:
    plans = [
        Plan(arm="curated", truth={"m": 0.5}, num_rows=10),
        Plan(arm="r", truth={"m": 0.4}, kind="random", control_of="curated", num_rows=10),
        Plan(arm="raw", truth={"m": 0.4}),
    ]
    design = replace(DESIGN, metrics=("m",))
    rows = simulate(plans, num_items=5)
    assert [p.name for p in pictures(analyse(design, Results(rows)))] == ["verdict"]
    assert pictures(analyse(design, Results([r for r in rows if r.arm == "raw"]))) == []


def test_failed_trials_leave_holes_and_no_error() -> None:
    failed = {(plan.arm, 1, s): "x" for plan in PLANS for s in range(4) if "10%" in plan.arm}
    failed |= {("clip_noisy 30%", 1, s): "x" for s in range(5)}
    failed |= {("curated", 1, s): "x" for s in range(5)}
    found = analyse(DESIGN, Results(simulate(PLANS, num_items=5, failed=failed)))
    assert [p.name for p in pictures(found)] == ["verdict", "curve", "gap"]


def test_points_and_bars_are_the_means_and_intervals() -> None:
    _, axes = new_figure(3, 3, 1, 1)
    values = {0.1: [0.2, 0.3, 0.25], 0.5: [0.4, 0.5, 0.6]}
    handle = line(axes[0, 0], list(values.items()), "black", "o", "-")
    assert handle[0].get_ydata().tolist() == pytest.approx([np.mean(v) for v in values.values()])
    ends = [segment for bars in handle[2] for segment in bars.get_segments()]
    for segment, found in zip(ends, values.values(), strict=True):
        mean, half = mean_interval(found)
        assert segment[:, 1].tolist() == pytest.approx([mean - half, mean + half])
