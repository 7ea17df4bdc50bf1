"""The documentation says what is true: recipes parse, commands exist, links resolve, code runs."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from winnow.contracts.parameters import parameters_model
from winnow.contracts.registry import EXPORTERS, FILTERS, GLOBAL_STAGES, SOURCES, STAGES
from winnow.pipeline.cli import main
from winnow.pipeline.plan import make_plan
from winnow.pipeline.recipe import parse_recipe
from winnow.pipeline.study import load_study
from winnow.pipeline.study_results import study_lines
from winnow.stages.download import Download

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").rglob("*.md"))]
GUIDE = (ROOT / "docs" / "guide.md").read_text()
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path, *languages: str) -> Iterator[str]:
    for language, text in FENCE.findall(page.read_text()):
        if language in languages:
            yield text


def params(found: Iterator[tuple[Path, str]]) -> list[Any]:
    return [pytest.param(text, id=f"{page.name}-{i}") for i, (page, text) in enumerate(found)]


RECIPES = params(
    (p, t) for p in PAGES for t in blocks(p, "yaml") if t.startswith("name:") and "source:" in t
)
STUDIES = params((p, t) for p in PAGES for t in blocks(p, "yaml") if "\nevaluate:" in t)
MANIFESTS = params((p, t) for p in PAGES for t in blocks(p, "yaml") if "apiVersion:" in t)


@pytest.mark.parametrize("text", RECIPES)
def test_recipes_parse_and_plan(text: str, tmp_path: Path) -> None:
    """The plan checks columns too; a URL table stands in for one that the page only names."""
    parse_recipe(text)
    data = yaml.safe_load(text)
    source = data["source"]
    if source["use"] == "url_table":
        names = [source.get("url_column", "url"), source.get("text_column", "text")]
        table = pa.table({name: pa.array([], pa.string()) for name in names if name})
        pq.write_table(table, tmp_path / "table.parquet")
        source["path"] = str(tmp_path / "table.parquet")
    if source["use"] in ("file_table", "text_table"):
        names = [source.get(f"{kind}_column") for kind in ("image", "audio", "video")]
        table = pa.table({name: pa.array([], pa.string()) for name in ("text", *names) if name})
        pq.write_table(table, tmp_path / "table.parquet")
        source["path"] = str(tmp_path / "table.parquet")
    plan = make_plan(parse_recipe(yaml.safe_dump(data, sort_keys=False)))
    assert len(plan.recipe.stages) == len(data.get("stages", {}))


def command_lines(page: Path) -> Iterator[str]:
    """Lines of code, fenced or indented, that call winnow; continued lines are joined."""
    text = page.read_text()
    fenced = "\n".join(body for language, body in FENCE.findall(text) if language != "python")
    plain = FENCE.sub("", text)
    indented = "\n".join(line for line in plain.split("\n") if line.startswith("    "))
    for line in f"{fenced}\n{indented}".replace("\\\n", " ").split("\n"):
        found = re.search(r"(?:^|-- |entrypoint: )(winnow [a-z-].*)", line.strip())
        if found:
            yield found[1]


def parse(line: str) -> click.Context:
    """Parse a command line as winnow does, without running it."""
    words = shlex.split(line, comments=True)[1:]
    words = words[: words.index(">")] if ">" in words else words
    command: click.Command = main
    context = click.Context(main)
    while isinstance(command, click.Group):
        name = words.pop(0)
        found = command.get_command(context, name)
        assert found is not None, f"there is no command {name!r} in {line!r}"
        command = found
    return command.make_context(command.name, words, parent=context)


COMMANDS = params((p, line) for p in PAGES for line in command_lines(p))


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_exist_with_these_options(line: str) -> None:
    parse(line)


def spans(page: Path) -> list[str]:
    """Code within the text."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_text_exist(page: Path) -> None:
    """They may be incomplete: `winnow plan` stands for any plan."""
    for span in spans(page):
        if re.match(r"winnow [a-z]+( |$)", span):
            with contextlib.suppress(click.MissingParameter):
                parse(span.replace("...", ""))


def test_the_command_check_can_fail() -> None:
    with pytest.raises(click.NoSuchOption):
        parse("winnow run birds.yaml --retry")
    with pytest.raises(AssertionError, match="there is no command"):
        parse("winnow rum birds.yaml")
    assert len(COMMANDS) >= 15


def options_of(command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        yield from parameter.opts
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            found = command.get_command(click.Context(command), name)
            assert found is not None
            yield from options_of(found)


FOREIGN = {"--entrypoint-num-cpus", "--from-file", "--local-loss"}
"""Options in the text that are Ray's, kubectl's and open_clip's."""
SCRIPTS = "".join(path.read_text() for path in sorted((ROOT / "benchmarks").glob("*.py")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_in_the_text_exist(page: Path) -> None:
    named = {o for span in spans(page) for o in re.findall(r"(?<![\w-])--[a-z][a-z-]+", span)}
    scripts = re.findall(r'"(--[a-z-]+)"', SCRIPTS)
    assert named <= {*options_of(main), *scripts, *FOREIGN}


def test_ray_job_submit_has_these_options() -> None:
    from ray.dashboard.modules.job.cli import submit

    (line,) = (
        text.replace("\\\n", " ")
        for text in blocks(ROOT / "docs" / "cluster.md", "bash")
        if text.startswith("ray job submit")
    )
    ours, _, _ = line.partition(" -- ")
    named = {*re.findall(r"--[a-z][a-z-]+", ours), "--entrypoint-num-cpus"}
    assert len(named) == 4
    assert named <= {*options_of(submit)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_exist(page: Path) -> None:
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"(?:^    |`)make ([a-z][a-z-]*)", page.read_text(), re.MULTILINE)
    assert set(named) <= set(targets)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_resolve(page: Path) -> None:
    text = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(linked), f"{page.name} links to {target}"


@pytest.mark.parametrize("text", STUDIES)
def test_studies_parse_and_plan(text: str, tmp_path: Path) -> None:
    """With a recipe of the name that the page gives, over a table with an artist."""
    columns = {name: pa.array([], pa.string()) for name in ("url", "text", "artist")}
    pq.write_table(pa.table(columns), tmp_path / "table.parquet")
    recipe = {
        "name": "my-recipe",
        "source": {"use": "url_table", "path": str(tmp_path / "table.parquet")},
        "stages": {
            "download": {}, "image_info": {}, "perceptual_hash": {}, "near_duplicates": {},
            "clip_score": {"model": "tiny"},
        },
        "filters": {
            "decodable": {"use": "has_media", "error_column": "image_info_error", "on_null": "drop"}
        },
        "export": {"train": {"use": "webdataset"}},
    }  # fmt: skip
    (tmp_path / "my-recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    (tmp_path / "study.yaml").write_text(text)
    lines = list(study_lines(load_study(tmp_path / "study.yaml")))
    assert not [line for line in lines if line.startswith("warning")]


@pytest.mark.parametrize("text", MANIFESTS)
def test_the_ray_job_is_one(text: str) -> None:
    """Required fields by KubeRay's definition of ray.io/v1 (required: groupName, min, max)."""
    (job,) = yaml.safe_load_all(text)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    parse(job["spec"]["entrypoint"])
    assert "--address" in job["spec"]["entrypoint"]
    cluster = job["spec"]["rayClusterSpec"]
    groups = cluster["workerGroupSpecs"]
    for group in groups:
        assert {"groupName", "minReplicas", "maxReplicas", "template"} <= set(group)
    for group in [cluster["headGroupSpec"], *groups]:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        (container,) = group["template"]["spec"]["containers"]
        assert {"name", "image"} <= set(container)
    mounts = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    volumes = cluster["headGroupSpec"]["template"]["spec"]["volumes"]
    assert {m["name"] for m in mounts} == {v["name"] for v in volumes}


def row_of(name: str) -> str:
    found = re.findall(rf"^\| `{name}`.*$", GUIDE, re.MULTILINE)
    assert len(found) == 1, f"{name} has {len(found)} rows in the guide's tables"
    return str(found[0])


def own(registry: Any) -> list[str]:
    return [name for name in registry if registry[name].__module__.startswith("winnow.")]


NEEDED: dict[str, dict[str, Any]] = {
    "cross_fit_clip_score": {"models": ("tiny", "tiny")},
    "near_evaluation": {"evaluation": ("manifest.parquet",)},
    "caption": {"engine": "projector", "model": "./captioner"},
    "match_score": {"model": "./captioner"},
    "transcript": {"model": "./whisper"},
    "audio_text_score": {"model": "./clap"},
}
"""Parameters without a default."""


@pytest.mark.parametrize("name", [*own(STAGES), *own(GLOBAL_STAGES)])
def test_the_guide_has_every_stage_and_its_columns(name: str) -> None:
    stage: Any = (STAGES if name in STAGES else GLOBAL_STAGES)[name](**NEEDED.get(name, {}))
    row = row_of(name)
    for column in stage.writes.names:
        assert f"`{column}`" in row
    for code in re.findall(r'"([a-z_]+)"', (type(stage).__doc__ or "").partition("_error:")[2]):
        if code in ("missing", "too_large", "undecodable", "empty", "empty_text", "not_finite"):
            assert f"`{code}`" in row


@pytest.mark.parametrize("name", own(FILTERS))
def test_the_guide_has_every_filter_and_its_parameters(name: str) -> None:
    cell = row_of(name).rpartition(" | ")[2]
    named = set(re.findall(r"`(\w+)`", cell))
    assert named == set(parameters_model(FILTERS[name]).model_fields)


@pytest.mark.parametrize("name", [*own(SOURCES), *own(EXPORTERS)])
def test_the_guide_has_every_source_and_exporter(name: str) -> None:
    assert re.search(rf"`(use: )?{name}`", GUIDE)


def test_the_guide_has_every_code_of_the_download_stage() -> None:
    said = set(re.findall(r"^        ([a-z_]+) ", Download.__doc__ or "", re.MULTILINE))
    assert "private_address" in said
    missing = {code for code in said if f"`{code}`" not in GUIDE}
    assert not missing
    transient = GUIDE.partition("Transient")[2].partition("Final:")[0]
    for code in Download.transient_codes:
        number = code.removeprefix("http_")
        ranges = re.findall(r"`http_(\d+)` to `http_(\d+)`", transient)
        inside = number.isdigit() and any(a <= number <= b for a, b in ranges)
        assert f"`{code}`" in transient or inside


def plugin_files() -> dict[str, str]:
    text = (ROOT / "docs" / "writing_a_stage.md").read_text()
    found = re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return dict(found)


HOSTS = """
from winnow.pipeline.recipe import parse_recipe
from winnow.pipeline.run import RunOptions, run_recipe
import pathlib, sys
pathlib.Path("urls.txt").write_text("http://a/1\\nhttp://b/1\\nhttp://A/2\\nnone\\nhttp://a/3\\n")
recipe = parse_recipe('''
name: hosts
rows_per_shard: 2
source: {use: url_table, path: urls.txt, text_column: null}
stages: {rows_per_host: {}}
filters: {rare: {use: where, expression: "rows_of_host < 3", on_null: drop}}
''')
report = run_recipe(recipe, RunOptions(workspace="ws", executor="inprocess"))
print(report.summary["rows"], report.summary["kept"], report.summary["funnel"][0]["null"])
"""


def test_the_plugin_of_writing_a_stage_works(tmp_path: Path) -> None:
    """Lays the page's files out as an installer would and runs its tests."""
    files = plugin_files()
    project = tomllib.loads(files.pop("pyproject.toml"))["project"]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "winnow_blur" / "__init__.py").touch()
    info = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    groups = [
        "\n".join([f"[{group}]", *(f"{name} = {module}" for name, module in entries.items())])
        for group, entries in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))
    assert len(groups) == 3
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "2 passed" in python("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
    assert python("-c", HOSTS).split() == ["5", "1", "1"]
