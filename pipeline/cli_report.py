"""``winnow report``: write the report of a selection again, without running anything."""

from __future__ import annotations

import json

import click

from winnow.contracts.errors import RunError, SetupError
from winnow.pipeline import describe
from winnow.pipeline.plan import make_plan
from winnow.pipeline.recipe import parse_recipe
from winnow.pipeline.report import write_report
from winnow.pipeline.run import LATEST
from winnow.pipeline.selection import select_unit
from winnow.pipeline.storage import Storage
from winnow.pipeline.work import State, current_state


@click.command()
@click.argument("workspace")
@click.option("--selection", help="A selection's name or the start of it [the latest].")
def report(workspace: str, selection: str | None) -> None:
    """Write WORKSPACE/report/index.html: funnel, histograms, sample sheets, duplicates."""
    storage = Storage(workspace)
    summary = describe.load_summary(storage, selection)
    state = find_state(storage, str(summary["selection"]))
    name = write_report(storage, state.plan, state, summary)
    click.echo(f"report {storage.root.rstrip('/')}/{name}")


def find_state(storage: Storage, selection: str) -> State:
    """Return plan and state of the recipe that gives this selection now, the latest run first.

    Raises SetupError where none does: the source or the annotations have changed since.
    """
    latest = f"{json.loads(storage.read(LATEST))['recipe']}.yaml" if storage.exists(LATEST) else ""
    names = [n for n in storage.names("runs") if n.endswith(".yaml")]
    for name in sorted(names, key=lambda n: n != latest):
        state = _state(storage, f"runs/{name}")
        if state is not None and select_unit(state).selection == selection:
            return state
    msg = (
        f"no recipe that was run in {storage.root} gives the selection {selection} any more: its "
        "source or its annotations have changed; run the recipe again"
    )
    raise SetupError(msg)


def _state(storage: Storage, name: str) -> State | None:
    """Return the state of a recorded recipe; None where it cannot be followed any more."""
    try:
        plan = make_plan(parse_recipe(storage.read(name).decode(), name))
        return current_state(plan, storage)
    except RunError:
        return None
