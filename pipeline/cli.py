"""The command ``winnow``.

Exit codes: 0 done, 1 some shards failed, 2 recipe or environment, 130 Ctrl-C.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import click
from rich.console import Console
from rich.table import Table

from winnow.contracts.errors import RunError, SetupError, WinnowError
from winnow.pipeline import describe, gc
from winnow.pipeline.cli_progress import make_progress
from winnow.pipeline.plan import Plan, check_models, make_plan
from winnow.pipeline.recipe import load_recipe, parse_recipe
from winnow.pipeline.run import (
    LATEST,
    RunOptions,
    RunReport,
    quiet_interrupt,
    run_recipe,
)
from winnow.pipeline.storage import Storage
from winnow.pipeline.work import State, current_state

F = TypeVar("F", bound=Callable[..., Any])
# What a recipe says is shown as it is: [a-z] is no markup, :x: no picture.
console = Console(
    highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 120
)
WORKSPACE = "runs/{name}"


LAZY = {
    "train": "winnow.pipeline.cli_train",
    "report": "winnow.pipeline.cli_report",
    "trial": "winnow.pipeline.cli_trial",
    "ablate": "winnow.pipeline.cli_trial",
    "objects": "winnow.pipeline.cli_objects",
}
"""Commands whose modules are loaded when they are used."""


class _Group(click.Group):
    """Turns Winnow's errors into a message and an exit code; a bug keeps its traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *LAZY])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in LAZY:
            found: click.Command = getattr(importlib.import_module(LAZY[cmd_name]), cmd_name)
            return found
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with quiet_interrupt():
                return super().invoke(ctx)
        except RunError as error:
            click.echo(f"winnow: {error}", err=True)
            sys.exit(2)
        except WinnowError as error:
            click.echo(f"winnow: {error}", err=True)
            sys.exit(1)


def _recipe_options(function: F) -> F:
    function = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="A.B.C=VALUE",
        help="Override a value, e.g. stages.clip_score.batch_size=64.",
    )(function)
    function = click.option(
        "--workspace", "-w", metavar="PATH", help="Folder or fsspec URL [runs/<recipe name>]."
    )(function)
    return click.argument("recipe")(function)


def execution_options(function: F) -> F:
    """Add the options of where and how units run; ``run_options`` makes RunOptions of them."""
    for option in (
        click.option(
            "--resolve", multiple=True, metavar="HOST=ADDR:PORT", help="Fetch HOST from there."
        ),
        click.option("--workers", type=click.IntRange(1), help="At most this many of a kind."),
        click.option("--num-cpus", type=click.IntRange(1), help="CPUs for Ray on this machine."),
        click.option(
            "--shared-filesystem", is_flag=True, help="All nodes see the local workspace."
        ),
        click.option("--address", help="Address of a running Ray cluster."),
        click.option("--executor", type=click.Choice(["auto", "ray", "inprocess"]), default="auto"),
    ):
        function = option(function)
    return function


def run_options(workspace: str, given: Mapping[str, Any], **more: Any) -> RunOptions:
    """Return RunOptions from what ``execution_options`` took."""
    names = ("executor", "address", "shared_filesystem", "num_cpus", "workers")
    resolve = dict(_pair(r) for r in given["resolve"])
    plain = {name: given[name] for name in names}
    return RunOptions(workspace=workspace, resolve=resolve, **plain, **more)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="winnow-data", prog_name="winnow")
@click.option("--verbose", "-v", is_flag=True, help="Say more.")
def main(verbose: bool) -> None:
    """Annotate once, select many times, materialise, measure."""
    level = logging.INFO if verbose or not sys.stderr.isatty() else logging.WARNING
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("winnow").setLevel(level)


@main.command()
@_recipe_options
def plan(recipe: str, workspace: str | None, overrides: tuple[str, ...]) -> None:
    """Check a recipe and print what is cached and what would run. Writes nothing."""
    checked = make_plan(load_recipe(recipe, overrides))
    check_models(checked)
    storage = Storage(workspace or WORKSPACE.format(name=checked.recipe.name))
    state = current_state(checked, storage)
    for line in describe.plan_lines(checked, state):
        click.echo(line)
    if state is not None:
        for line in describe.mixture_warnings(checked, state):
            click.echo(f"warning: {line}", err=True)


@main.command()
@_recipe_options
@execution_options
@click.option("--retry-failed", is_flag=True, help="Fetch again what failed in passing.")
@click.option("--deadline", type=float, default=3600.0, help="Seconds a shard may take.")
@click.option("--no-report", is_flag=True, help="Do not write the report.")
def run(
    recipe: str,
    workspace: str | None,
    overrides: tuple[str, ...],
    retry_failed: bool,
    deadline: float,
    no_report: bool,
    **given: Any,
) -> None:
    """Run a recipe. The same command again does only what is missing."""
    parsed = load_recipe(recipe, overrides)
    workspace = workspace or WORKSPACE.format(name=parsed.name)
    options = run_options(workspace, given, retry_failed=retry_failed, deadline_s=deadline)
    with make_progress() as progress:
        report = run_recipe(parsed, options, progress)
    _print_report(report, options.workspace)
    if report.summary and report.state is not None:
        _print_score(report.state, report.summary)
        if not no_report:
            _write_report(report, options.workspace)
    sys.exit(report.exit_code)


@main.command()
@click.argument("workspace")
@click.option("--selection", help="A selection's name or the start of it [the latest].")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def ledger(workspace: str, selection: str | None, as_json: bool) -> None:
    """Print the funnel of a selection: what was kept, what was dropped, by which filter."""
    summary = describe.load_summary(Storage(workspace), selection)
    if as_json:
        shown = {k: v for k, v in summary.items() if k not in ("shards", "kept_per_shard")}
        click.echo(json.dumps(shown, indent=1))
        return
    _print_funnel(summary)


@main.command()
@click.argument("uid")
@click.option("--workspace", "-w", required=True, help="Folder or fsspec URL.")
@click.option("--selection", help="A selection's name or the start of it [the latest].")
def explain(uid: str, workspace: str, selection: str | None) -> None:
    """Tell everything about one row: where it came from, its columns, why it was kept or not."""
    storage = Storage(workspace)
    summary = describe.load_summary(storage, selection)
    checked = _latest_plan(storage)
    state = current_state(checked, storage)
    if state is None:
        msg = "the source has changed since the last run; run the recipe again first"
        raise SetupError(msg)
    for story in describe.explain(checked, state, storage, uid, summary):
        click.echo(f"row {story.uid}")
        row = story.shard.first_row + story.position + 1
        click.echo(f"  read from {story.shard.file}, row {row}; shard {story.shard.id}")
        for name, value in story.columns.items():
            click.echo(f"  {name} = {describe.readable(value)}")
        click.echo(f"selection {summary['selection']}")
        for name, value in story.outcome.items():
            click.echo(f"  {name}: {value}")


@main.command(name="gc")
@click.argument("workspace")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
def gc_command(workspace: str, dry_run: bool) -> None:
    """Remove what no recipe that was run here uses, and nothing that Winnow did not make."""
    storage = Storage(workspace)
    garbage = gc.find_garbage(storage)
    for name in garbage.names:
        click.echo(name)
    if not dry_run:
        gc.collect(storage, garbage)
    verb = "would free" if dry_run else "freed"
    click.echo(f"{verb} {garbage.size_bytes / 1e6:.1f} MB in {len(garbage.names)} places")


@main.command()
@click.option("--study", is_flag=True, help="That of studies (trial, ablate).")
def schema(study: bool) -> None:
    """Print the JSON Schema of recipes."""
    from winnow.pipeline.recipe_schema import recipe_schema
    from winnow.pipeline.study_schema import study_schema

    found = study_schema() if study else recipe_schema()
    click.echo(json.dumps(found, indent=1, sort_keys=True))


def _latest_plan(storage: Storage) -> Plan:
    latest = json.loads(storage.read(LATEST))
    name = f"runs/{latest['recipe']}.yaml"
    if not storage.exists(name):
        msg = f"the recipe of the last run, {storage.path(name)}, was removed; run it again first"
        raise SetupError(msg)
    return make_plan(parse_recipe(storage.read(name).decode(), name))


def _pair(text: str) -> tuple[str, str]:
    host, equals, address = text.partition("=")
    if not (host and equals and address):
        msg = f"--resolve {text!r}: write it as HOST=ADDRESS:PORT"
        raise RunError(msg)
    return host, address


def _print_report(report: RunReport, workspace: str) -> None:
    if report.summary:
        _print_funnel(report.summary)
    for key, folder in report.exports.items():
        click.echo(f"export {key}: {workspace}/{folder}")
    if report.failures:
        what = "unit of work" if len(report.failures) == 1 else "units of work"
        click.echo(f"{len(report.failures)} {what} failed:", err=True)
        for failure in report.failures:
            click.echo(f"  {failure}", err=True)
        click.echo("the rest is committed; run the same command again to try these", err=True)


def _print_funnel(summary: dict[str, Any] | Any) -> None:
    click.echo(f"selection {summary['selection']} of {summary['rows']:,} rows")
    table = Table(box=None, pad_edge=False)
    for name, side in (
        ("filter", "left"),
        ("keeps rows with", "left"),
        ("dropped", "right"),
        ("only by it", "right"),
        ("null", "right"),
        ("left", "right"),
        ("share", "right"),
    ):
        table.add_column(name, justify=cast(Any, side), overflow="fold")
    for row in describe.funnel_rows(summary):
        table.add_row(*row)
    console.print(table)
    click.echo(
        f"{summary['rows']:,} read = {summary['kept']:,} kept + {summary['dropped']:,} dropped"
    )


def _print_score(state: State, summary: Mapping[str, Any]) -> None:
    """Print precision and recall, where the source knows the truth."""
    from winnow.pipeline import scoring

    entries = scoring.score_rows(state.storage, state.plan, state, summary)
    if not entries:
        return
    click.echo("against the ground truth of the source:")
    table = Table(box=None, pad_edge=False)
    for position, name in enumerate(scoring.HEADINGS):
        table.add_column(name, justify="left" if position < 2 else "right", overflow="fold")
    for row in scoring.score_table(entries):
        table.add_row(*row)
    console.print(table)
    click.echo(scoring.score_verdict(entries))


def _write_report(report: RunReport, workspace: str) -> None:
    """Write report/index.html."""
    from winnow.pipeline.report import write_report

    assert report.state is not None
    state = report.state
    name = write_report(state.storage, state.plan, state, report.summary, report.counters)
    click.echo(f"report: {workspace}/{name}")


if __name__ == "__main__":
    main()
