"""The report of real runs, read back as a browser would: structure, numbers, safety, size."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from winnow.contracts.errors import SetupError
from winnow.contracts.media import MediaCaps
from winnow.pipeline import report_cards
from winnow.pipeline.cli_report import find_state, report
from winnow.pipeline.report import REPORT, render_report, write_report
from winnow.pipeline.report_scan import MAX_VALUES, ValueCounts
from winnow.pipeline.run import RunReport
from winnow.pipeline.storage import Storage
from winnow.stages._audio import decode_audio

Runner = Callable[..., RunReport]
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></title><svg onload=alert(2)>",
    "' onmouseover='alert(3)",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(4)",
    "\u202eevil\u202c \x00\x07 bell",
    "]]><!--",
]
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Tags with attributes, text by element, and whether every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[tuple[str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {k: v or "" for k, v in attrs}
        self.tags.append((tag, found))
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):  # type: ignore[union-attr]
            self.open.append((tag, found.get("class", "")))

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1][0] == tag:
            self.open.pop()
        elif tag not in ("rect", "line"):
            raise AssertionError(f"</{tag}> closes {self.open[-3:]}")

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            tag, kind = self.open[-1]
            self.texts.setdefault(f"{tag}.{kind}" if kind else tag, []).append(data.strip())

    def attributes(self, tag: str, name: str) -> list[str]:
        return [a[name] for t, a in self.tags if t == tag and name in a]

    @property
    def text(self) -> str:
        return "\n".join(t for texts in self.texts.values() for t in texts)


def check_safe(html: str) -> Page:
    """No script, no handler, nothing loaded from elsewhere."""
    page = Page(html)
    allowed = (
        "html head meta title style body header h1 h2 h3 h4 h5 p b span i div nav a main section"
    )
    allowed += " section code pre table thead tbody tr th td svg g rect line text ul li img footer"
    allowed += " audio"
    assert {t for t, _ in page.tags} <= set(allowed.split())
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
    assert all(src.startswith("data:image/jpeg;base64,") for src in page.attributes("img", "src"))
    assert all(src.startswith("data:audio/mpeg;base64,") for src in page.attributes("audio", "src"))
    assert all(h.startswith(("#", "../export/")) for h in page.attributes("a", "href"))
    targets = {a["id"] for _, a in page.tags if "id" in a}
    assert {h[1:] for h in page.attributes("a", "href") if h.startswith("#")} <= targets
    return page


def make(workspace: Path, selection: str | None = None) -> str:
    storage = Storage(str(workspace))
    name = selection or json.loads(storage.read("runs/_latest.json"))["selection"]
    summary = json.loads(storage.read(f"ledger/{name}/_ledger.json"))
    state = find_state(storage, name)
    assert write_report(storage, state.plan, state, summary) == REPORT
    return (workspace / REPORT).read_text("utf-8")


def toy(data: Path, filters: str = "", *, description: str = "", shard: int = 20) -> str:
    return f"""
name: toy
description: {json.dumps(description)}
rows_per_shard: {shard}
source: {{use: url_table, path: {data}}}
stages:
  toy_length: {{}}
filters:
{filters or "  {}"}
"""


def write_rows(path: Path, texts: list[Any]) -> Path:
    lines = [json.dumps({"url": f"http://h/{i}", "text": t}) for i, t in enumerate(texts)]
    path.write_text("\n".join(lines) + "\n")
    return path


MINIMUM = '  long: {use: where, expression: "num_letters >= 30", on_null: drop}\n'


def test_histogram_and_sheets_are_those_of_the_rows(run: Runner, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    lengths = rng.integers(1, 60, 300).tolist()
    texts = [f"{i:04d}".ljust(max(4, n), "x") for i, n in enumerate(lengths)]
    run(toy(write_rows(tmp_path / "rows.jsonl", texts), MINIMUM))
    page = check_safe(make(tmp_path / "ws"))
    real = [len(t) for t in texts]

    kept = dropped = 0
    for tip in page.texts["title"][1:]:
        span, numbers = tip.split(": ")
        low, _, high = span.partition(" to ")
        inside = [n for n in real if int(low) <= n <= int(high or low)]
        found = [int(x) for x in re.findall(r"\d+", numbers)]
        assert found == [
            sum(n >= 30 for n in inside),
            sum(n < 30 for n in inside),
            0,
        ]
        kept, dropped = kept + found[0], dropped + found[1]
    assert (kept, dropped) == (sum(n >= 30 for n in real), sum(n < 30 for n in real))
    assert "keep \u2265 30" in page.texts["text.cut"]

    values = [int(v) for v in page.texts["div.value"]]
    assert values[:8] == sorted((n for n in real if n < 30), reverse=True)[:8]
    assert values[8:16] == sorted(n for n in real if n >= 30)[:8]
    assert len(page.texts["div.caption"]) == 16 + 32


def test_hostile_text_is_only_text(run: Runner, tmp_path: Path) -> None:
    texts = [*HOSTILE, *[h + " and much more of it" for h in HOSTILE]]
    filters = "  tag: {use: where, expression: \"text == '<script>x</script>'\", on_null: drop}\n"
    data = write_rows(tmp_path / "rows.jsonl", texts)
    run(toy(data, filters, description=HOSTILE[0]))
    html = make(tmp_path / "ws")
    page = check_safe(html)
    assert "<script" not in html
    assert HOSTILE[0] in page.texts["div.caption"]
    assert HOSTILE[4] in page.texts["div.caption"]
    assert "\u202e" not in html
    assert "\x07" not in html
    run(toy(data, MINIMUM, description=HOSTILE[1]))
    check_safe(make(tmp_path / "ws"))


def test_no_row_kept(run: Runner, tmp_path: Path) -> None:
    filters = '  none: {use: where, expression: "num_letters > 1000", on_null: drop}\n'
    run(toy(write_rows(tmp_path / "rows.jsonl", ["a", "bb", None]), filters))
    page = check_safe(make(tmp_path / "ws"))
    assert "No row was kept" in page.text
    assert "3 read = 0 kept + 3 dropped." in page.text
    assert "1 rows without a value, 1 of them dropped here." in page.text


def test_no_filter(run: Runner, tmp_path: Path) -> None:
    run(toy(write_rows(tmp_path / "rows.jsonl", ["a", "bb"])))
    page = check_safe(make(tmp_path / "ws"))
    assert "The recipe has no filter" in page.text
    assert sorted(page.texts["div.caption"]) == ["a", "bb"]


def test_no_value_at_all(run: Runner, tmp_path: Path) -> None:
    run(toy(write_rows(tmp_path / "rows.jsonl", [None, None]), MINIMUM))
    page = check_safe(make(tmp_path / "ws"))
    assert "No row has a value." in page.text
    assert [r for r in page.texts["td"] if r == "toy_length"] == ["toy_length"] * 2
    assert "empty" in page.text


def test_categories_are_counted(run: Runner, tmp_path: Path) -> None:
    texts = ["en"] * 5 + ["de"] * 3 + [f"x{i}" for i in range(40)] + [None]
    filters = "  english: {use: where, expression: \"text == 'en'\", on_null: drop}\n"
    run(toy(write_rows(tmp_path / "rows.jsonl", texts), filters))
    page = check_safe(make(tmp_path / "ws"))
    assert page.texts["div.count"][:2] == ["5 \u00b7 10.2%", "3 \u00b7 6.1%"]
    assert "\u2713 en" in page.texts["div.name yes"]
    assert "30 rows have one of 30 other values." in page.text


def test_the_value_asked_for_is_shown_even_where_it_is_rare(run: Runner, tmp_path: Path) -> None:
    texts = [f"common {i % 30}" for i in range(900)] + ["rare"]
    filters = "  odd: {use: where, expression: \"text != 'rare'\", on_null: drop}\n"
    run(toy(write_rows(tmp_path / "rows.jsonl", texts), filters, shard=100))
    page = check_safe(make(tmp_path / "ws"))
    assert "rare" in page.texts["div.name"]
    assert page.texts["div.count"][-1] == "1 \u00b7 0.1%"


def test_counting_of_values_is_bounded() -> None:
    rng = np.random.default_rng(0)
    counts = ValueCounts(asked=frozenset({"v99999"}))
    total = 0
    for shard in range(40):
        rare = [f"v{shard * 1000 + i}" for i in range(1000)]
        values = [*["often"] * 500, *["half"] * 200, *rare, None]
        values += ["v99999"] if shard == 0 else []
        counts.add(pa.chunked_array([pa.array(values)]), rng.integers(0, 3, len(values)))
        total += len(values)
    assert counts.forgot
    assert len(counts.counts) <= MAX_VALUES
    assert sum(counts.counts["often"]) == 20_000
    assert sum(counts.counts["half"]) == 8_000
    assert sum(counts.counts[None]) == 40
    assert sum(counts.counts["v99999"]) == 1


def test_the_report_is_the_same_again_and_depends_on_no_machine(
    run: Runner, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [f"{'y' * (i % 50)}{i}" for i in range(90)])
    run(toy(data, MINIMUM))
    first = make(tmp_path / "ws")
    assert make(tmp_path / "ws") == first
    run(toy(data, MINIMUM), workspace=str(tmp_path / "other"))
    assert make(tmp_path / "other") == first


def test_a_selection_by_other_filters_is_refused(run: Runner, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", ["a", "bb"])
    old = run(toy(data, MINIMUM)).summary
    run(toy(data))
    storage = Storage(str(tmp_path / "ws"))
    state = find_state(storage, json.loads(storage.read("runs/_latest.json"))["selection"])
    with pytest.raises(SetupError, match="was made by the filters long"):
        render_report(storage, state.plan, state, old)


def test_command_writes_old_selections_too(run: Runner, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", ["a", "b" * 40])
    old = run(toy(data, MINIMUM)).selection
    new = run(toy(data)).selection
    workspace = tmp_path / "ws"
    found = CliRunner().invoke(report, [str(workspace)])
    assert found.output == f"report {workspace}/{REPORT}\n"
    assert new in (workspace / REPORT).read_text()
    assert CliRunner().invoke(report, [str(workspace), "--selection", old[:8]]).exit_code == 0
    assert old in (workspace / REPORT).read_text()
    write_rows(data, ["a", "b" * 40, "c"])
    with pytest.raises(SetupError, match="gives the selection .* any more"):
        CliRunner().invoke(report, [str(workspace)], catch_exceptions=False)


def test_many_filters_stay_below_five_megabytes(run: Runner, tmp_path: Path) -> None:
    texts = ["\u4e00\u732b" * (1 + i % 300) + str(i) for i in range(600)]
    name = "num_letters"
    lines = [
        f'  f{n}: {{use: where, on_null: keep, expression: "{name} != {n} or {name} > {n}"}}'
        for n in range(3, 103)
    ]
    run(toy(write_rows(tmp_path / "rows.jsonl", texts), "\n".join(lines)))
    html = make(tmp_path / "ws")
    check_safe(html)
    assert html.count('<svg class="histogram"') == 100
    assert html.count("Around <code>") <= 40
    assert len(html.encode()) < 5_000_000 - report_cards.PICTURE_BUDGET


def test_counters_are_shown(run: Runner, tmp_path: Path) -> None:
    result = run(toy(write_rows(tmp_path / "rows.jsonl", ["a", "bb"])))
    storage = Storage(str(tmp_path / "ws"))
    state = find_state(storage, result.selection)
    counters = {"toy_length": {"rows": 2.0, "seconds": 0.5}, "idle": {"rows": 0}}
    html = render_report(storage, state.plan, state, result.summary, counters)
    row = ["toy_length", "2", "0.5", "4"]
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", html)
    assert any(cells[i : i + 4] == row for i in range(len(cells)))
    assert "idle" not in cells


def picture(seed: int, side: int = 200, shift: int = 0) -> Image.Image:
    """A picture of large random blocks, the same but for brightness where only shift differs."""
    blocks = np.random.default_rng(seed).integers(0, 230, (6, 6, 3)).astype(np.uint8)
    image = Image.fromarray(blocks).resize((side, side), Image.Resampling.BICUBIC)
    return image.point(lambda v: min(255, v + shift))


IMAGES = """
name: pictures
rows_per_shard: 7
source: {{use: folder, path: {data}}}
stages:
  image_info: {{}}
  perceptual_hash: {{}}
  near_duplicates: {{}}
filters:
  decodable: {{use: has_media, error_column: image_info_error, on_null: drop}}
  large: {{use: min_image_size, side: 150, on_null: drop}}
  drop_near_duplicates: {{prefer: ["largest width"], on_null: keep}}
export:
  train: {{use: webdataset, rows_per_file: 10}}
"""


@pytest.fixture
def pictures(run: Runner, tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for seed in range(12):
        picture(seed).save(folder / f"a{seed:02d}.png")
        (folder / f"a{seed:02d}.txt").write_text(f"picture <b>{seed}</b>")
    for seed in range(4):
        picture(seed, 260).save(folder / f"b{seed}.jpg", quality=95)
    picture(50, 149).save(folder / "small.png")
    picture(51, 20).save(folder / "smaller.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff" + bytes(500))
    run(IMAGES.format(data=folder))
    return tmp_path / "ws"


def test_pictures_are_small_jpegs(pictures: Path) -> None:
    page = check_safe(make(pictures))
    sources = page.attributes("img", "src")
    for source in set(sources):
        image = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        assert image.format == "JPEG"
        assert max(image.size) <= 132
    assert set(page.attributes("img", "alt")) >= {"picture <b>5</b>", "picture without a caption"}
    assert "undecodable" in page.text


def test_duplicates_stand_beside_the_row_that_was_kept(pictures: Path) -> None:
    html = make(pictures)
    (ledger,) = (pictures / "ledger").iterdir()
    rows = [r for f in ledger.glob("*.parquet") for r in pq.read_table(f).to_pylist()]
    pairs = {(r["duplicate_of"].hex(), r["uid"].hex) for r in rows if r["duplicate_of"]}
    assert len(pairs) == 4
    found = set()
    for cluster in html.split('<div class="cluster">')[1:]:
        uids = re.findall(r'<li class="card (kept)?" title="([0-9a-f]{32})">', cluster)
        found.add((uids[0][1], uids[1][1]))
        assert uids[0][0] == "kept"
        assert "<span>width</span> 260" in cluster.split("</li>")[0]
        assert "<span>width</span> 200" in cluster.split("</li>")[1]
    assert found == pairs


def test_the_export_says_how_to_load_it(pictures: Path) -> None:
    page = check_safe(make(pictures))
    (folder,) = (pictures / "export").iterdir()
    assert f"../export/{folder.name}/" in page.attributes("a", "href")
    assert "webdataset.WebDataset(shards" in "\n".join(page.texts["pre"])
    assert "on_null: keep" in "\n".join(page.texts["pre"])


def test_pictures_stop_at_the_budget(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = make(pictures)
    monkeypatch.setattr(report_cards, "PICTURE_BUDGET", 30_000)
    page = check_safe(make(pictures))
    shown = page.attributes("img", "src")
    assert sum(map(len, shown)) <= 30_000
    assert 0 < len(shown) < len(Page(full).attributes("img", "src"))
    assert "the report would be too large" in page.text


def test_a_row_that_killed_its_worker_is_not_decoded_again(run: Runner, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for seed in range(3):
        picture(seed).save(folder / f"{seed}.png")
    run(f"name: guilty\nsource: {{use: folder, path: {folder}}}\nstages: {{image_info: {{}}}}\n")
    assert len(Page(make(tmp_path / "ws")).attributes("img", "src")) == 3
    (file,) = (tmp_path / "ws" / "columns").glob("image_info-*/*.parquet")
    table = pq.read_table(file)
    at = table.schema.get_field_index("image_info_error")
    column = pa.array(["crashed_worker", None, None], pa.string())
    file.unlink()
    pq.write_table(table.set_column(at, table.schema.field(at), column), file)
    assert len(Page(make(tmp_path / "ws")).attributes("img", "src")) == 2


TRIPLES = """
name: triples
rows_per_shard: 4
source: {{use: file_table, path: {data}/t.csv, image_column: image, audio_column: audio}}
filters:
  long: {{use: where, expression: "length(text) >= 6", on_null: drop}}
"""


def tone(row: int, seconds: float) -> np.ndarray:
    return 0.3 * np.sin(np.arange(int(seconds * 8000)) * (0.1 + row / 40)).astype(np.float32)


@pytest.fixture
def triples(run: Runner, tmp_path: Path) -> Path:
    """Eight rows: recordings in four formats, pictures beside some, one broken, one hostile."""
    from winnow.stages._audio_encode import encode_audio

    folder = tmp_path / "data"
    folder.mkdir()
    lines = ["image,audio,text"]
    for row, kind in enumerate(["wav", "mp3", "opus", "flac"] * 2):
        sound = encode_audio(tone(row, 70.0 if row == 1 else 0.2 + row / 10), 8000, kind)
        (folder / f"{row}.{kind}").write_bytes(sound if row != 6 else b"RIFF\0\0\0\0WAVEjunk")
        if row % 2:
            picture(row).save(folder / f"{row}.jpg")
        text = "<script>" if row == 3 else "text " * (row % 3 + 1)
        lines.append(f"{f'{row}.jpg' if row % 2 else ''},{row}.{kind},{text}")
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    run(TRIPLES.format(data=folder))
    return tmp_path / "ws"


def test_recordings_can_be_seen_and_heard_beside_their_pictures(triples: Path) -> None:
    html = make(triples)
    page = check_safe(html)
    cards = {
        match[1]: match[2]
        for match in re.finditer(r'<li class="card[^"]*" title="(\w+)">(.*?)</li>', html, re.DOTALL)
    }
    assert len(cards) == 8
    # One is broken: seven can be heard; four have a picture beside the spectrum.
    assert sum("<audio controls" in card for card in cards.values()) == 7
    assert sum('<div class="picture"><img' in card for card in cards.values()) == 4
    assert "1 min 10 s" in page.texts["div.value"]
    clips = {base64.b64decode(s.partition(",")[2]) for s in page.attributes("audio", "src")}
    found = [decode_audio(clip, MediaCaps()) for clip in clips]
    assert len(clips) == 7
    lengths = sorted(round(heard.duration_s, 1) for heard in found if not isinstance(heard, str))
    assert lengths == [0.2, 0.4, 0.5, 0.6, 0.7, 0.9, 8.0]
    assert max(map(len, clips)) < 30_000
    assert html == make(triples)


def test_sounds_stop_at_their_budget_and_keep_their_picture(
    triples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Page(make(triples))
    monkeypatch.setattr(report_cards, "SOUND_BUDGET", 9_000)
    page = check_safe(make(triples))
    heard = page.attributes("audio", "src")
    assert 0 < len(heard) < len(full.attributes("audio", "src"))
    assert sum(map(len, heard)) <= 9_000
    assert page.attributes("img", "src") == full.attributes("img", "src")


def test_rows_of_text_alone_show_more_of_it(run: Runner, tmp_path: Path) -> None:
    words = " ".join(f"word{i}" for i in range(200))
    run(toy(write_rows(tmp_path / "in.jsonl", [words]), MINIMUM))
    html = make(tmp_path / "ws")
    (caption,) = check_safe(html).texts["div.caption"]
    assert caption == words[:399].rstrip() + "\u2026"
    assert 'class="card  whole"' in html
