"""How often objects come in a set's pictures, alone and together: the prior of hallucination."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from winnow.contracts.errors import SetupError
from winnow.contracts.paths import user_path

MAKE = "winnow objects EXPORT --column COLUMN --output FILE"


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectStatistics:
    """Counts of pictures, not of instances: a picture with three dogs has "dog" once.

    num_rows: annotated pictures. objects: name -> pictures with it. pairs: (a, b), a < b ->
    pictures with both.
    """

    num_rows: int
    objects: Mapping[str, int]
    pairs: Mapping[tuple[str, str], int]

    def by_frequency(self) -> list[str]:
        """Return the names, the most frequent first, ties by alphabet."""
        return sorted(self.objects, key=lambda name: (-self.objects[name], name))

    def companions(self) -> dict[str, list[str]]:
        """Return name -> the names that ever come with it, the most frequent first, ties by
        alphabet."""
        found: dict[str, list[tuple[int, str]]] = {name: [] for name in self.objects}
        for (a, b), count in self.pairs.items():
            found[a].append((-count, b))
            found[b].append((-count, a))
        return {name: [other for _, other in sorted(pairs)] for name, pairs in found.items()}

    def to_json(self) -> str:
        """Return the same text for the same counts."""
        pairs: dict[str, dict[str, int]] = {}
        for (a, b), count in self.pairs.items():
            pairs.setdefault(a, {})[b] = count
        document = {"num_rows": self.num_rows, "objects": dict(self.objects), "pairs": pairs}
        return json.dumps(document, indent=1, sort_keys=True) + "\n"


def count_objects(lists: Iterable[Sequence[str] | None]) -> ObjectStatistics:
    """Count the names of each row; None = not annotated. Memory grows with the names only."""
    objects: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    num_rows = 0
    for names in lists:
        if names is not None:
            num_rows += 1
            different = sorted(set(names))
            objects.update(different)
            pairs.update(itertools.combinations(different, 2))
    return ObjectStatistics(num_rows=num_rows, objects=dict(objects), pairs=dict(pairs))


def read_statistics(who: str, path: str) -> ObjectStatistics:
    """Return what ``winnow objects`` wrote.

    Fails: SetupError where the file cannot be read or holds something else.
    """
    try:
        document = json.loads(user_path(path).read_text(encoding="utf-8"))
        pairs = document["pairs"].items()
        found = ObjectStatistics(
            num_rows=int(document["num_rows"]),
            objects={str(name): int(count) for name, count in document["objects"].items()},
            pairs={(min(a, b), max(a, b)): int(n) for a, row in pairs for b, n in row.items()},
        )
        _check(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        msg = f"{who}: statistics {path} cannot be read ({error!r}); make them with `{MAKE}`"
        raise SetupError(msg) from error
    return found


def _check(found: ObjectStatistics) -> None:
    if min((found.num_rows, *found.objects.values(), *found.pairs.values())) < 0:
        msg = "a count is negative"
        raise ValueError(msg)
    if unknown := sorted({name for pair in found.pairs for name in pair} - found.objects.keys()):
        msg = f"{unknown[0]!r} is in a pair, but not among the objects"
        raise ValueError(msg)


def files_digest(*paths: str | None) -> str:
    """Return a digest of the bytes of some files, "" where there is none.

    Fails: SetupError where one cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        if path is not None:
            try:
                data = user_path(path).read_bytes()
            except OSError as error:
                msg = f"{path} cannot be read: {error}"
                raise SetupError(msg) from error
            digest.update(hashlib.blake2b(data, digest_size=16).digest())
        else:
            digest.update(b"-")
    return digest.hexdigest() if any(path is not None for path in paths) else ""
