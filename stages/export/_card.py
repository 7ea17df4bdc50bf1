"""The dataset card: README.md with the YAML front matter that Hugging Face's hub reads."""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa
import yaml

from winnow.contracts.exporter import ExportContext
from winnow.stages.export import _usage
from winnow.stages.export._features import tar_features
from winnow.stages.export._layout import Layout

_CREATIVE_COMMONS = (
    ("by", ("2.0", "2.5", "3.0", "4.0")),
    ("by-sa", ("3.0", "4.0")),
    ("by-nc", ("2.0", "3.0", "4.0")),
    ("by-nd", ("4.0",)),
    ("by-nc-nd", ("3.0", "4.0")),
    ("by-nc-sa", ("2.0", "3.0", "4.0")),
)
LICENSES = frozenset(
    {"apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "cc", "cc0-1.0", "gfdl", "gpl"}
    | {"cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "gpl-2.0", "gpl-3.0"}
    | {"lgpl-3.0", "mpl-2.0", "odbl", "odc-by", "openrail", "pddl", "unlicense", "unknown", "other"}
    | {f"cc-{kind}-{version}" for kind, versions in _CREATIVE_COMMONS for version in versions}
)
"""Identifiers that the hub knows (those that data has); others become ``other`` with a name."""
SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")


def card(layout: Layout, context: ExportContext) -> str:
    """Return the README.md of one export; a function of its arguments alone."""
    sections = [
        _front_matter(layout, context),
        f"# {context.name}",
        context.description.strip(),
        _summary(layout, context),
        _usage.usage(layout),
        _funnel(context),
        _sample(layout),
        _columns(layout),
        _files(layout),
        _recipe(context),
        _license(context),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def front_matter(layout: Layout, context: ExportContext) -> dict[str, Any]:
    """Return the card's metadata: licence, size, and how ``load_dataset`` reads the folder."""
    suffix = layout.suffix
    files = f"[0-9]*{suffix}"
    matter: dict[str, Any] = {
        "pretty_name": context.name,
        **_license_matter(context.license),
        "size_categories": [size_category(layout.num_rows)],
        "tags": ["winnow", layout.format],
    }
    if layout.data_files:
        split = {"split": "train", "path": files}
        matter["configs"] = [{"config_name": "default", "data_files": [split]}]
        if suffix == ".tar":
            features = tar_features(layout)
            matter["dataset_info"] = {"config_name": "default", "features": features}
    return matter


def size_category(num_rows: int) -> str:
    """Return the hub's size category, such as ``10K<n<100K``."""
    if num_rows < 1000:
        return "n<1K"
    power = min(len(str(num_rows)) - 4, len(SIZES) - 1)
    return f"n>{SIZES[-1]}" if power == len(SIZES) - 1 else f"{SIZES[power]}<n<{SIZES[power + 1]}"


def _front_matter(layout: Layout, context: ExportContext) -> str:
    matter = front_matter(layout, context)
    text = yaml.safe_dump(matter, sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{text}---"


def _license_matter(license_: str) -> dict[str, str]:
    name = license_.strip()
    if not name:
        return {"license": "unknown"}
    if name.lower() in LICENSES:
        return {"license": name.lower()}
    matter = {"license": "other", "license_name": _slug(name)}
    return matter | ({"license_link": name} if re.match(r"https?://", name) else {})


def _summary(layout: Layout, context: ExportContext) -> str:
    rows, files = layout.num_rows, len(layout.data_files)
    text = (
        f"**{rows:,} {_plural('sample', rows)}** in {files:,} {_plural('file', files)} "
        f"({size(layout.size_bytes)}), selected from {context.rows_read:,} rows by the recipe "
        f"`{context.recipe_name}`."
    )
    if context.selection:
        text += f" Selection: `{context.selection}`."
    return text


def _funnel(context: ExportContext) -> str:
    if not context.funnel:
        return ""
    lines = [
        "## How these rows were selected",
        "Each filter sees the rows that the filters above it kept. *null*: rows for which the "
        "filter had no value. *only*: rows that this filter alone refuses.",
        "",
        "| filter | keeps | kept | dropped | null | only |",
        "|---|---|--:|--:|--:|--:|",
        f"| *rows read* | | {context.rows_read:,} | | | |",
    ]
    for step in context.funnel:
        counts = " | ".join(_count(step.get(k)) for k in ("kept", "dropped", "null", "only"))
        description = code(str(step.get("description") or ""))
        lines.append(f"| {code(str(step['filter']))} | {description} | {counts} |")
    lines[1:2] = ["", lines[1]]
    return "\n".join(lines)


def _sample(layout: Layout) -> str:
    if layout.format == "parquet":
        return _parquet_row(layout)
    if layout.format == "llava":
        kinds = ", ".join(f"{n:,} {e}" for e, n in layout.extensions.items())
        return (
            "## What a sample is\n\n"
            "An entry of `llava.json`: `id`; `image`, the path of its picture from this folder; "
            "`conversations`, a list of `from` (`human` and `gpt` by turns) and `value`. The first "
            "value starts with `<image>`, where the picture stands. `00000.json` and those that "
            f"follow are parts of `llava.json`. Pictures: {kinds or 'none'}.\n\n"
            "`id` is the row's `uid` in hex, a digest of what the source says: the same row has it "
            "in every export and every run."
        )
    lines = _media_lines(layout)
    if layout.text is not None:
        lines.append(f"- `.txt`: the column `{layout.text}`, UTF-8; empty where it is null")
    lines.append("- `.json`: the annotations listed below, UTF-8, keys sorted")
    lines += [
        f"- {code(f'.{extension}')} ({count:,}): a sidecar of the source, as it was"
        for extension, count in layout.sidecars.items()
    ]
    if layout.pickles_omitted:
        lines.append(f"- left out: {layout.pickles_omitted:,} pickled members of the source")
    return (
        "## What a sample is\n\n"
        "Members of a tar with the same stem. The stem is the row's `uid` in hex, a digest of "
        "what the source says: the same row has it in every export and every run.\n\n"
        + "\n".join(lines)
    )


def _parquet_row(layout: Layout) -> str:
    if layout.payloads is None:
        said = f"`{layout.payload}` holds the bytes and a file name; the other columns are listed"
        said += " below."
    elif layout.payloads:
        names = " and ".join(f"`{name}`" for name in layout.payloads)
        said = f"{names} hold bytes and a file name, or null; the other columns are listed below."
    else:
        said = "The columns are listed below; there are no media."
    return (
        f"## What a row is\n\n{said} `uid` identifies the row by the content of its "
        "source, so it is the same in every export and every run; `key` is the `uid` in hex."
    )


def _media_lines(layout: Layout) -> list[str]:
    """Say which members are media: one line per payload, none where a sample is text alone."""
    lines = []
    for name, extensions in layout.media.items():
        members = ", ".join(f"`.{e}` ({n:,})" for e, n in extensions.items()) or "the media"
        what = "the media" if layout.payloads is None else f"the column {code(name)}"
        lines.append(f"- {members}: {what}, named by its format")
    if len(lines) > 1:
        lines.append("- a sample without one of them has no such member")
    return lines


def _columns(layout: Layout) -> str:
    named = {"parquet": "columns", "llava": "columns of `manifest.parquet`"}
    where = named.get(layout.format, "annotations")
    lines = [f"## The {where}", "", "| name | Arrow type |", "|---|---|"]
    lines += [f"| {code(f.name)} | {code(_type_name(f.type))} |" for f in layout.columns]
    if layout.suffix == ".tar":
        lines += [
            "",
            "In the `.json`, binary values are hex, times ISO 8601, decimals and uint64 strings, "
            "and NaN and infinities null.",
        ]
    return "\n".join(lines)


def _files(layout: Layout) -> str:
    lines = ["## Beside the data", ""]
    if layout.manifest is not None:
        lines.append("- `manifest.parquet`: one row per sample: its file and every annotation")
    if layout.suffix == ".tar":
        lines.append("- `sizes.json`: samples per tar, as open_clip wants it")
    lines.append("- `files.json`: rows, bytes and SHA-256 of every file")
    lines.append("- `croissant.json`: the same for machines (Croissant 1.0)")
    return "\n".join(lines)


def _recipe(context: ExportContext) -> str:
    if not context.recipe_yaml:
        return ""
    longest = max((len(run) for run in re.findall(r"`+", context.recipe_yaml)), default=0)
    fence = "`" * max(3, longest + 1)
    text = context.recipe_yaml.rstrip("\n")
    return f"## The recipe\n\n{fence}yaml\n{text}\n{fence}"


def _license(context: ExportContext) -> str:
    if not context.license:
        return "## Licence\n\nThe recipe states none: ask whoever gave you this before you use it."
    return f"## Licence\n\n{context.license}"


def code(text: str) -> str:
    """Return inline code that stays in its cell, whatever it holds; "" for nothing."""
    plain = " ".join(text.split()).replace("|", "\\|")
    if not plain:
        return ""
    longest = max((len(run) for run in re.findall(r"`+", plain)), default=0)
    fence = "`" * (longest + 1)
    space = " " if plain[0] == "`" or plain[-1] == "`" else ""
    return f"{fence}{space}{plain}{space}{fence}"


def size(num_bytes: int) -> str:
    """Return a size for people: 1.5 GB."""
    value = float(num_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _type_name(kind: pa.DataType) -> str:
    return str(kind.value_type if pa.types.is_dictionary(kind) else kind)


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else ""


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")[:64]
