"""``winnow trial`` and ``winnow ablate``: what a selection is worth to a model trained on it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import click
from rich.table import Table

from winnow.contracts.errors import ShardError
from winnow.pipeline.ablation import Outcome, run_study
from winnow.pipeline.cli import WORKSPACE, console, execution_options, run_options
from winnow.pipeline.cli_progress import make_progress
from winnow.pipeline.storage import Storage
from winnow.pipeline.study import Study, load_study
from winnow.pipeline.study_results import collect, design_of, study_lines

F = TypeVar("F", bound=Callable[..., Any])


def _study_options(function: F) -> F:
    for option in (
        click.option("--plan", "plan_only", is_flag=True, help="Only say what would be done."),
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="A.B=VALUE",
            help="Override a value, e.g. samples_seen=15000.",
        ),
        click.option(
            "--workspace", "-w", metavar="PATH", help="Folder or fsspec URL [runs/<study name>]."
        ),
        execution_options,
    ):
        function = option(function)
    return click.argument("study")(function)


@click.command()
@_study_options
@click.option("--arm", help="The selection to train on [the primary arm, else the first].")
@click.option("--seed", type=click.IntRange(0), help="[the study's first]")
@click.option("--budget", type=click.IntRange(1), help="[the study's first]")
def trial(study: str, arm: str | None, seed: int | None, budget: int | None, **given: Any) -> None:
    """Train a reference model on one selection of STUDY and print what it is worth.

    One seed and no control: a single figure, not a comparison. `winnow ablate` compares.
    """
    parsed = load_study(study, given.pop("overrides"))
    name = arm or (parsed.primary.arm if parsed.primary else parsed.arms[0].name)
    seeds = [parsed.settings.seeds[0] if seed is None else seed]
    budgets = [budget or parsed.settings.budgets[0]]
    outcome = _run(parsed, given, arms=[name], seeds=seeds, budgets=budgets, controls=False)
    if outcome is None:
        return
    if outcome.failures:
        raise ShardError(next(iter(outcome.failures.values())), retryable=False)
    _print_metrics(parsed, outcome, _workspace(parsed, given))


@click.command()
@_study_options
@click.option("--arm", "arms", multiple=True, help="Only these arms, with their controls.")
@click.option("--seed", "seeds", type=click.IntRange(0), multiple=True, help="Only these seeds.")
@click.option(
    "--budget", "budgets", type=click.IntRange(1), multiple=True, help="Only these budgets."
)
@click.option("--report-only", is_flag=True, help="Report what was trained; train nothing.")
def ablate(
    study: str,
    arms: tuple[str, ...],
    seeds: tuple[int, ...],
    budgets: tuple[int, ...],
    report_only: bool,
    **given: Any,
) -> None:
    """Train on every arm of STUDY, with every seed and budget, and compare them.

    The same command again does only what is missing. Exit code 1: some trials failed; the table
    says which.
    """
    from winnow.pipeline.ablation_report import ablation_lines, write_ablation

    parsed = load_study(study, given.pop("overrides"))
    part = {"arms": arms, "seeds": seeds, "budgets": budgets}
    outcome = _run(parsed, given, **part, train=not report_only)
    if outcome is None:
        return
    storage = Storage(_workspace(parsed, given))
    results = collect(parsed, outcome, storage)
    design = design_of(parsed, outcome, results)
    for line in ablation_lines(design, results):
        click.echo(line)
    # A part of a study must not take the place of the whole one's report.
    folder = f"ablations/{parsed.name}" + ("/part" if arms or seeds or budgets else "")
    names = write_ablation(storage, folder, design, results)
    for name in names:
        click.echo(f"wrote {_workspace(parsed, given)}/{name}")
    if outcome.failures:
        click.echo(f"{len(outcome.failures)} trials failed; the same command tries them again",
                   err=True)  # fmt: skip
        sys.exit(1)


def _run(study: Study, given: dict[str, Any], **part: Any) -> Outcome | None:
    if given.pop("plan_only"):
        part.pop("train", None)
        for line in study_lines(study, **part):
            click.echo(line)
        return None
    options = run_options(_workspace(study, given), given)
    with make_progress() as progress:
        outcome = run_study(study, options, progress, **part)
    for warning in outcome.prepared.warnings:
        click.echo(f"warning: {warning}", err=True)
    return outcome


def _workspace(study: Study, given: dict[str, Any]) -> str:
    return str(given["workspace"] or WORKSPACE.format(name=study.name))


def _print_metrics(study: Study, outcome: Outcome, workspace: str) -> None:
    entry = outcome.trials[0]
    results = collect(study, outcome, Storage(workspace))
    (result,) = [r for r in results if r.split == "test" and r.status == "done"]
    click.echo(
        f"{entry.name}: {result.num_rows:,} rows, {result.samples_seen:,} samples seen "
        f"({result.repeats:.1f} times each)"
    )
    table = Table(box=None, pad_edge=False)
    for heading, side in (("metric", "left"), ("slice", "left"), ("test", "right"),
                          ("items", "right")):  # fmt: skip
        table.add_column(heading, justify=cast(Any, side), overflow="fold")
    for row in result.metrics.to_pylist():
        value = "-" if row["value"] is None else f"{row['value']:.4f}"
        table.add_row(row["metric"], row["slice"], value, f"{row['num_items']:,}")
    console.print(table)
    click.echo(f"model: {workspace}/{entry.spec.checkpoint}")
