"""The report of simulated ablations, read back: tables, text, page, safety, the same bytes."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests.ablation_simulation import Plan, scenes, simulate
from winnow.pipeline.ablation_contrasts import analyse
from winnow.pipeline.ablation_report import ablation_lines, make_blocks, write_ablation
from winnow.pipeline.ablation_results import Results
from winnow.pipeline.ablation_tables import CONTRASTS_FILE, METRICS_FILE
from winnow.pipeline.statistics import ArmResult, Design, Published
from winnow.pipeline.storage import Storage

DESIGN = Design(
    name="quality and quantity",
    description="60 % of the pool is noise.",
    metrics=("zero_shot.accuracy",),
    seeds=(0, 1, 2, 3, 4),
    budgets=(1, 4),
    scorers={"clip_noisy": "noisy: the headline", "clip_packaged": "packaged: in-distribution"},
    published=(Published(label="DataComp small", fraction=0.3, value=0.051),),
    descriptions={"reference CLIPScore": {"curated": 0.31, "raw": 0.24}},
    facts={"pool": "6,000 pairs"},
    command="winnow ablate recipe.yaml --workspace runs/x",
    fingerprints={"test set": "9b8c7d"},
)
PLANS = [p for p in scenes() if not any(x in p.arm for x in ("20%", "50%", "75%"))]
FAILED = {("clip_noisy 10%", 1, 3): "loss is nan at step 41"}
HOSTILE = (
    "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> {{ 7 * 7 }} $x^2$ ]]>\x00\u202e"
)
VOID = {"meta", "img", "br", "link"}


def simulated() -> list[ArmResult]:
    return simulate(PLANS, budgets=(1, 4), num_items=30, item_spread=0.05, failed=FAILED)


@pytest.fixture(scope="module")
def results() -> list[ArmResult]:
    return simulated()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, results: list[ArmResult]) -> Path:
    root = tmp_path_factory.mktemp("ablation")
    names = write_ablation(Storage(str(root)), "ablations/x", DESIGN, results)
    assert all((root / name).is_file() for name in names)
    return root / "ablations/x"


class Page(HTMLParser):
    """Tags with attributes and all text; fails where an element is not closed."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1] != "style":
            self.texts.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return "\n".join(self.texts)


def _check_safe(html: str) -> Page:
    page = Page(html)
    assert not {t for t, _ in page.tags} & {"script", "iframe", "img", "link", "object", "image"}
    for tag, attributes in page.tags:
        assert not [a for a in attributes if a.startswith("on")], (tag, attributes)
        for name in ("href", "xlink:href", "src"):
            target = attributes.get(name, "#")
            assert target.startswith("#") or re.fullmatch(r"(verdict|curve|gap)\.(png|svg)", target)
    assert "url(http" not in html and "@import" not in html
    return page


def test_metrics_hold_every_value_of_every_trial(folder: Path, results: list[ArmResult]) -> None:
    found = pq.read_table(folder / "metrics.parquet")
    assert found.schema.equals(METRICS_FILE)
    rows = found.to_pylist()
    lost = [r for r in rows if r["status"] == "failed"]
    assert len(rows) == sum(r.metrics.num_rows for r in results) + len(lost)
    assert [(r["arm"], r["seed"], r["error"], r["metric"]) for r in lost] == [
        ("clip_noisy 10%", 3, "loss is nan at step 41", None)
    ] * 2
    one = results[-1]
    mine = {
        (r["metric"], r["slice"]): r["value"]
        for r in rows
        if (r["arm"], r["budget"], r["seed"], r["split"])
        == (one.arm, one.budget, one.seed, one.split)
    }
    assert mine == {(e["metric"], e["slice"]): e["value"] for e in one.metrics.to_pylist()}


def test_means_are_those_of_the_test_set_over_seeds(folder: Path) -> None:
    found = pd.read_csv(folder / "means.csv")
    frame = pq.read_table(folder / "metrics.parquet").to_pandas()
    frame = frame[(frame["split"] == "test") & (frame["slice"] == "")].dropna(subset="value")
    grouped = frame.groupby(["metric", "budget", "arm", "kind"])["value"]
    expected = grouped.agg(num_seeds="count", mean="mean", sd="std").reset_index()
    assert len(found) > 20
    pd.testing.assert_frame_equal(found, expected, check_dtype=False, rtol=1e-5)


def test_contrasts_never_say_more_than_their_interval(folder: Path) -> None:
    found = pq.read_table(folder / "contrasts.parquet")
    assert found.schema.equals(CONTRASTS_FILE)
    rows = found.to_pylist()
    assert {r["family"] for r in rows} == {"table", "slices"}
    slices = [r for r in rows if r["family"] == "slices"]
    assert {(r["verdict"], r["low"], r["high"]) for r in slices} == {("described", None, None)}
    for row in (r for r in rows if r["family"] == "table"):
        excludes = row["low"] >= 0 or row["high"] <= 0
        assert excludes == (row["verdict"] in ("better", "worse")) == (row["p_corrected"] <= 0.05)
        assert row["exploratory"] == (row["num_seeds"] < 5)
    assert {r["verdict"] for r in rows if r["role"] == "primary"} == {"better"}


def test_the_terminal_gets_a_block_per_metric_and_budget(
    folder: Path, results: list[ArmResult]
) -> None:
    lines = ablation_lines(DESIGN, results)
    assert "\n".join(lines) + "\n" == (folder / "table.txt").read_text()
    assert lines[0] == (
        "ablation quality and quantity: Curated beats random data of the same size."
    )
    for budget in (1, 4):
        at = lines.index(f"zero shot accuracy, {budget}x samples (higher is better)")
        block = lines[at + 2 : at + 12]
        assert block[0].split()[0] == "curated" and "better" in block[0]
        assert block[-1].strip().startswith("oracle (ceiling: uses the truth)")
    failed = next(line for line in lines if line.strip().startswith("clip_noisy 10%  "))
    assert "4 of 5, 1 failed" in failed and "(exploratory, 4 seeds)" in failed
    assert lines[-1] == "  clip_noisy 10%, 1x, seed 3: failed: loss is nan at step 41"
    assert any("corrected as one table (Holm)" in line for line in lines)
    assert all(line.isascii() for line in lines)


def test_a_block_has_each_arm_once_and_random_beside_it(results: list[ArmResult]) -> None:
    analysis = analyse(DESIGN, Results(results))
    for block in make_blocks(analysis):
        labels = [line.arm.name for line in block.lines]
        assert len(set(labels)) == len(labels) == 10
        assert [labels[0], *labels[-2:]] == ["curated", "raw", "oracle"]
        first = block.lines[0]
        control = analysis.results.arm("curated.random", block.budget)
        assert control is not None
        values = list(analysis.results.values(control, block.metric).values())
        assert first.random == pytest.approx(sum(values) / 5)
        assert first.described == ("0.3100",)
        assert block.lines[-1].described == ("-",)


def test_a_study_that_names_no_primary_contrast_has_no_headline(
    tmp_path: Path, results: list[ArmResult]
) -> None:
    design = replace(DESIGN, primary_arm="")
    write_ablation(Storage(str(tmp_path)), "x", design, results)
    text = (tmp_path / "x/table.txt").read_text()
    first, second = text.splitlines()[:2]
    assert first == "ablation quality and quantity: No primary contrast was named."
    assert second.startswith("Of ") and "all secondary" in second
    assert "primary contrasts" not in text
    page = _check_safe((tmp_path / "x/index.html").read_text())
    assert "No primary contrast was named" in " ".join(page.texts)


def test_arms_that_were_not_run_are_counted_not_shown(results: list[ArmResult]) -> None:
    """Asked for a part of a study: the packaged curve, and all of 4x, were left out."""
    asked = [
        row if row.budget == 1 and "packaged" not in row.arm else _missing(row) for row in results
    ]
    lines = ablation_lines(DESIGN, asked)
    tables = [line for line in lines if "samples (" in line]
    assert tables == ["zero shot accuracy, 1x samples (higher is better)"]
    names = [line.arm.name for line in make_blocks(analyse(DESIGN, Results(asked)))[0].lines]
    assert "clip_noisy 10%" in names and not any("packaged" in name for name in names)
    assert not any("packaged: in-dist" in line and "peak" in line for line in lines)
    not_run = {line.split(":")[0].strip(): line for line in lines if "x, not run: " in line}
    assert "packaged" in not_run["1x, not run"] and "curated" not in not_run["1x, not run"]
    named, more = not_run["4x, not run"].split(": ")[1].split(" and ")
    arms = {row.arm for row in results if row.budget == 4}
    assert set(named.split(", ")) < arms
    assert len(named.split(", ")) + int(more.split()[0]) == len(arms)


def _missing(row: ArmResult) -> ArmResult:
    empty = {"metrics": row.metrics.slice(0, 0), "items": row.items.slice(0, 0)}
    return replace(row, status="missing", error="", **empty)


def test_the_page_says_what_was_compared_and_found(folder: Path) -> None:
    html = (folder / "index.html").read_text()
    page = _check_safe(html)
    for said in (
        "Curated beats random data of the same size",
        "Of 2 primary contrasts, named before the run: better in 2.",
        "winnow ablate recipe.yaml --workspace runs/x",
        "9b8c7d",
        "noisy: the headline",
        "10%, 1x, seed 3: failed: loss is nan at step 41",
        "30 %: 0.051",
        "language=de",
        "reference CLIPScore*",
        "oracle (ceiling: uses the truth)",
        "exploratory: 4 seeds",
    ):
        assert said in page.text, said
    assert html.count("<svg") == 3
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    used = {a["href"][1:] for _, a in page.tags if a.get("href", "").startswith("#")}
    used |= {a["xlink:href"][1:] for _, a in page.tags if "xlink:href" in a}
    used |= set(re.findall(r"url\(#([^)]+)\)", html))
    assert used <= set(ids)
    assert len(html) < 3 << 20


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    names = {"curated": HOSTILE, "raw": "raw"}
    plans = [
        replace(
            plan,
            arm=names.get(plan.arm, plan.arm + HOSTILE),
            control_of=plan.control_of and names.get(plan.control_of, plan.control_of + HOSTILE),
            slices=dict.fromkeys((f"caption={HOSTILE}",), 0.0) if plan.slices else {},
        )
        for plan in PLANS
    ]
    design = replace(
        DESIGN,
        budgets=(1,),
        name=HOSTILE,
        description=HOSTILE,
        primary_arm=HOSTILE,
        scorers={"clip_noisy": HOSTILE},
        facts={HOSTILE: HOSTILE},
        command=HOSTILE,
        fingerprints={HOSTILE: HOSTILE},
        descriptions={HOSTILE: {HOSTILE: 1.0}},
    )
    rows = simulate(plans, num_items=5, failed={(HOSTILE, 1, 1): HOSTILE})
    write_ablation(Storage(str(tmp_path)), "x", design, rows)
    page = _check_safe((tmp_path / "x/index.html").read_text())
    assert "{{ 7 * 7 }}" in page.text and "49" not in page.texts
    assert "\x00" not in (tmp_path / "x/table.txt").read_text()


def test_the_same_results_give_the_same_bytes_in_any_order_and_process(
    folder: Path, tmp_path: Path
) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests.pipeline.test_ablation_report import DESIGN, Storage, simulated\n"
        "from winnow.pipeline.ablation_report import write_ablation\n"
        "rows = simulated()[::-1]\n"
        "write_ablation(Storage(sys.argv[2]), 'y', DESIGN, rows)\n"
    )
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", script, root, str(tmp_path)]
    subprocess.run(command, check=True, env={"PYTHONHASHSEED": "7", "HOME": str(tmp_path)})
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "y").iterdir())
    assert len(names) == 11
    for name in names:
        assert (tmp_path / "y" / name).read_bytes() == (folder / name).read_bytes(), name


def test_results_that_grow_replace_the_report(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    design = replace(DESIGN, budgets=(1,), seeds=(0, 1))
    plans = [p for p in PLANS if not p.scorer and "%" not in p.arm]
    results = simulate(plans, num_items=10)
    write_ablation(storage, "x", design, [r for r in results if r.seed < 2])
    assert b"Exploratory" in storage.read("x/index.html")
    write_ablation(storage, "x", replace(design, seeds=(0, 1, 2, 3, 4)), results)
    assert b"Exploratory" not in storage.read("x/index.html")
    table = pq.read_table(io.BytesIO(storage.read("x/metrics.parquet")))
    assert set(table.column("seed").to_pylist()) == {0, 1, 2, 3, 4}


def test_nothing_but_failures_is_a_report_too(tmp_path: Path) -> None:
    plans = [
        Plan(arm="curated", truth={"m": 1.0}),
        Plan(arm="r", truth={"m": 1.0}, kind="random", control_of="curated"),
        Plan(arm="raw", truth={"m": 1.0}),
    ]
    failed = {(p.arm, 1, s): "no space left" for p in plans for s in range(5)}
    design = replace(DESIGN, metrics=("m",), budgets=(1,))
    write_ablation(Storage(str(tmp_path)), "x", design, simulate(plans, failed=failed))
    page = _check_safe((tmp_path / "x/index.html").read_text())
    assert "Not measured" in page.texts
    assert page.text.count("no space left") == 15
