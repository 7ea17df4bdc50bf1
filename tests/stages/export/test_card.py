"""The dataset card: front matter, tables and code that say what is in the folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from winnow.contracts.exporter import ExportContext, FileSummary
from winnow.stages.export._card import card, code, front_matter, size, size_category
from winnow.stages.export._layout import Layout
from winnow.stages.export._usage import shards


def matter_of(text: str) -> dict[str, Any]:
    head = text.split("---\n", 2)[1]
    matter: dict[str, Any] = yaml.safe_load(head)
    return matter


def described(context: ExportContext, *files: FileSummary) -> str:
    layout = Layout.of(files, context, exporter="webdataset", text="text")
    return card(layout, context)


@pytest.fixture
def context(make_context: Any) -> ExportContext:
    made: ExportContext = make_context()
    return made


def test_front_matter_is_what_the_hub_reads(tars: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    loaded = hub.DatasetCard.load(tars / "README.md")
    assert loaded.data.license == "cc-by-4.0"
    assert loaded.data.size_categories == ["n<1K"]
    assert loaded.data.configs[0]["data_files"] == [{"split": "train", "path": "[0-9]*.tar"}]
    names = [feature["name"] for feature in loaded.data.dataset_info["features"]]
    assert names == ["jpg", "txt", "json", "__key__", "__url__"]


def test_the_card_says_what_is_there(tars: Path) -> None:
    text = (tars / "README.md").read_text()
    assert "**40 samples** in 2 files" in text
    assert "selected from 12,385 rows by the recipe `pets-recipe`" in text
    assert (
        "| `min_clip_score` | `` clip_score >= 0.2 \\| a `bar` `` | 40 | 12,345 | 3 | 7 |" in text
    )
    assert "| `image_embedding` | `fixed_size_list<item: halffloat>[4]` |" in text
    assert "'{00000..00001}.tar'" in text


def test_the_recipe_is_verbatim_though_it_holds_a_fence(tars: Path, recipe: str) -> None:
    text = (tars / "README.md").read_text()
    assert f"````yaml\n{recipe.rstrip()}\n````" in text


def test_rendered_tables_have_all_their_cells(tars: Path, parquets: Path) -> None:
    markdown_it = pytest.importorskip("markdown_it")
    render = markdown_it.MarkdownIt("commonmark").enable("table").render
    for folder in (tars, parquets):
        body = (folder / "README.md").read_text().split("---\n", 2)[2]
        html = render(body)
        for table in re.findall(r"<table>.*?</table>", html, re.DOTALL):
            tr = re.findall(r"<tr>.*?</tr>", table, re.DOTALL)
            widths = {len(re.findall(r"<t[dh]", row)) for row in tr}
            assert len(widths) == 1, table
        assert "<code>clip_score &gt;= 0.2 | a `bar`</code>" in html
        assert html.count("<h1>") == 1


def test_it_says_nothing_of_this_machine_or_this_moment(tars: Path) -> None:
    import socket

    for name in ("README.md", "croissant.json", "files.json", "sizes.json"):
        text = (tars / name).read_text()
        assert str(tars.parent) not in text
        assert socket.gethostname() not in text


def test_an_export_without_rows_has_a_card(context: ExportContext) -> None:
    text = described(context)
    assert "**0 samples** in 0 files" in text
    assert "This export has no rows." in text
    assert "configs" not in matter_of(text)


@pytest.mark.parametrize(
    ("license_", "matter"),
    [
        ("", {"license": "unknown"}),
        ("MIT", {"license": "mit"}),
        ("CC0-1.0", {"license": "cc0-1.0"}),
        ("My Terms, v2", {"license": "other", "license_name": "my-terms-v2"}),
        (
            "https://a.test/terms",
            {
                "license": "other",
                "license_name": "https-a.test-terms",
                "license_link": "https://a.test/terms",
            },
        ),
    ],
)
def test_licenses(make_context: Any, license_: str, matter: dict[str, str]) -> None:
    context = make_context(license=license_)
    layout = Layout.of((), context, exporter="webdataset", text="text")
    found = front_matter(layout, context)
    assert {k: v for k, v in found.items() if k.startswith("license")} == matter


def test_what_open_clip_skips_is_said(mixed_tars: Path) -> None:
    text = (mixed_tars / "README.md").read_text()
    assert "It skips 10 samples" in text


@pytest.mark.parametrize(
    ("count", "category"),
    [
        (0, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (9999, "1K<n<10K"),
        (10_000, "10K<n<100K"),
        (5 * 10**8, "100M<n<1B"),
        (10**9, "1B<n<10B"),
        (10**13, "n>1T"),
    ],
)
def test_size_categories(count: int, category: str) -> None:
    assert size_category(count) == category


def test_shard_patterns() -> None:
    assert shards(["00000.tar"]) == "00000.tar"
    assert shards(["00000.tar", "00001.tar"]) == "{00000..00001}.tar"
    wide = ["99998.tar", "99999.tar", "100000.tar", "100001.tar"]
    assert shards(wide) == "{99998..99999}.tar::{100000..100001}.tar"


def test_shard_patterns_name_every_tar() -> None:
    braceexpand = pytest.importorskip("braceexpand").braceexpand
    names = [f"{i:05d}.tar" for i in range(99_990, 100_010)]
    assert [n for p in shards(names).split("::") for n in braceexpand(p)] == names


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2_500_000_000, "2.5 GB"),
     (10**13, "10.0 TB")],
)  # fmt: skip
def test_sizes(num_bytes: int, text: str) -> None:
    assert size(num_bytes) == text


def test_code_survives_a_table_cell() -> None:
    assert code("a | b") == "`a \\| b`"
    assert code("`a`") == "`` `a` ``"
    assert code("two\nlines") == "`two lines`"
    assert code("") == ""


def test_the_name_of_a_sidecar_writes_nothing_else_into_the_card(context: ExportContext) -> None:
    extra = {"columns": ["uid"], "extensions": {"jpg": 1}, "sidecars": {"a`\n\n# Owned": 1}}
    file = FileSummary(name="00000.tar", num_rows=1, size_bytes=1, sha256="", extra=extra)
    body = described(context, file).split("---\n", 2)[2]
    assert "\n# Owned" not in body
    assert "- ``.a` # Owned`` (1): a sidecar" in body
