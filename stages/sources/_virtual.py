"""Virtual webs: files that are ranges of rows, kinds of noise by share, copies of earlier rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from winnow.contracts.errors import RecipeError
from winnow.contracts.identity import stable_hash64
from winnow.contracts.source import SourceFile

Shares = tuple[tuple[str, float], ...]
"""(kind, share) in the order of the source's table of noise; the rest is clean."""
_LEAST_CLEAN = 0.05
_ATTEMPTS = 256


def range_files(source: str, num_rows: int, rows_per_file: int) -> list[SourceFile]:
    """Return part-00000, part-00001 ...: each names its rows in its path."""
    found = []
    for part, first in enumerate(range(0, num_rows, rows_per_file)):
        stop = min(first + rows_per_file, num_rows)
        name = f"part-{part:05d}"
        found.append(SourceFile(path=f"{source}:{first}-{stop}", name=name, token=f"{stop}"))
    return found


def batches_of(file: SourceFile, num_rows: int) -> Iterator[range]:
    """Yield the rows of a file of ``range_files``, at most so many at a time."""
    first, stop = (int(part) for part in file.path.partition(":")[2].split("-"))
    for start in range(first, stop, num_rows):
        yield range(start, min(start + num_rows, stop))


def checked_shares(
    source: str, given: Mapping[str, float], kinds: Sequence[str], copies: Collection[str]
) -> Shares:
    """Return the shares in the order of ``kinds``. Raises RecipeError for bad ones.

    copies: kinds that need clean rows to be copies of.
    """
    for kind, share in given.items():
        if kind not in kinds:
            msg = f"{source}: there is no noise {kind!r}; use some of {', '.join(kinds)}"
            raise RecipeError(msg)
        if not 0 <= share <= 1:
            msg = f"{source}: noise {kind}={share} is not a share; use a number from 0 to 1"
            raise RecipeError(msg)
    total = sum(given.values())
    if total > 1 + 1e-9:
        msg = f"{source}: the shares of noise add up to {total:g}; keep them at or below 1"
        raise RecipeError(msg)
    clean = 1 - total
    if clean < _LEAST_CLEAN and any(given.get(kind) for kind in copies):
        msg = (
            f"{source}: {clean:.3g} clean rows leave nothing to copy; leave at least "
            f"{_LEAST_CLEAN} clean"
        )
        raise RecipeError(msg)
    return tuple((kind, float(given[kind])) for kind in kinds if given.get(kind))


def kind_at(shares: Shares, place: float, clean: str) -> str:
    """Return the kind of noise that a number in [0, 1) falls on, ``clean`` beyond all shares."""
    for kind, share in shares:
        if place < share:
            return kind
        place -= share
    return clean


def earlier_row(purpose: str, seed: int, index: int, fits: Callable[[int], bool]) -> int | None:
    """Return an earlier row that fits, by hash; None where none of some attempts does."""
    for attempt in range(_ATTEMPTS if index else 0):
        candidate = stable_hash64(purpose, seed, index, attempt) % index
        if fits(candidate):
            return candidate
    return None
