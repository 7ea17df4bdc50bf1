"""``winnow objects``: how often objects come in a set's annotations, alone and together."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq

from winnow.contracts.errors import SetupError
from winnow.contracts.paths import user_path
from winnow.stages._object_statistics import ObjectStatistics, count_objects
from winnow.stages.train.shards import json_values, read_samples, shard_paths

_BATCH_ROWS = 4096
_MANIFEST = "manifest.parquet"


@click.command()
@click.argument("export")
@click.option("--column", required=True, help="Lists of names, one per object in the picture.")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path, dir_okay=False), required=True,
    help="JSON file to write.",
)  # fmt: skip
def objects(export: str, column: str, output: Path) -> None:
    """Count the objects of EXPORT, and the pairs of them, for the evaluation pope.

    EXPORT is an export's folder, tars or Parquet files, or a glob. Pictures count, not instances.
    The same annotations give the same bytes.
    """
    found = object_statistics(export, column)
    try:
        output.write_text(found.to_json(), encoding="utf-8")
    except OSError as error:
        msg = f"{output} cannot be written: {error}"
        raise SetupError(msg) from error
    click.echo(
        f"{len(found.objects):,} objects and {len(found.pairs):,} pairs in {found.num_rows:,} "
        f"annotated rows: {output}"
    )


def object_statistics(export: str, column: str) -> ObjectStatistics:
    """Count a column of lists of names over an export, in one read.

    Fails: SetupError where nothing can be read, no row has the column, or it holds anything else.
    """
    parquet = _parquet_files(export)
    rows = _parquet_rows(parquet, column) if parquet else _sample_rows(export, column)
    found = count_objects(_checked(names, export, column) for names in rows)
    if not found.num_rows:
        msg = f"no row of {export} has a value in column {column!r}; export it with the set"
        raise SetupError(msg)
    return found


def _parquet_files(export: str) -> list[str]:
    """The Parquet files that are data; none where the export has tars."""
    path = user_path(export)
    if path.is_dir() and not any(path.glob("*.tar")):
        return sorted(str(p) for p in path.glob("*.parquet") if p.name != _MANIFEST)
    return [str(path)] if path.suffix == ".parquet" and path.is_file() else []


def _parquet_rows(files: list[str], column: str) -> Iterator[Any]:
    for name in files:
        try:
            with pq.ParquetFile(name) as file:
                if column not in file.schema_arrow.names:
                    raise SetupError(_no_column(name, column, file.schema_arrow.names))
                for batch in file.iter_batches(_BATCH_ROWS, columns=[column]):
                    yield from batch.column(0).to_pylist()
        except (OSError, pa.ArrowInvalid) as error:
            msg = f"{name} cannot be read: {error}"
            raise SetupError(msg) from error


def _sample_rows(export: str, column: str) -> Iterator[Any]:
    for sample in read_samples(shard_paths([export]), "json".__eq__):
        yield json_values(sample, [column])[0]


def _checked(names: Any, export: str, column: str) -> list[str] | None:
    if names is None or (isinstance(names, list) and all(isinstance(n, str) for n in names)):
        return names
    msg = (
        f"column {column!r} of {export} holds {names!r:.60}; use one with lists of names, such as "
        '["dog", "dog", "cat"]'
    )
    raise SetupError(msg)


def _no_column(where: str, column: str, names: list[str]) -> str:
    near = difflib.get_close_matches(column, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
    return f"{where} has no column {column!r}; {hint}"
