"""near_duplicate_texts against datasketch and Data-Juicer on the same documents.

    python benchmarks/text_dedupe.py --rows 7500
    python benchmarks/text_dedupe.py --rows 100000 --data-juicer PYTHON

``PYTHON`` is the interpreter of an environment with py-data-juicer, which is not a dependency; its
operator document_minhash_deduplicator runs there in its own process (numpy and pyarrow only for
the exchange). Without it, that row is left out.

Documents: words drawn by their frequency (wordfreq), no case, no punctuation, single spaces, so
that all three cut the same runs of five words: 55 % originals of 30 to 1,500 words; 25 % edits of
an earlier one (1 to 20 % of the words replaced, dropped or doubled); 5 % copies; 15 % pages that
fill one of 20 templates. Truth: every pair with Jaccard >= threshold over sets of runs, found
by a prefix index (Chaudhuri, Ganti and Kaushik 2006), which misses none, in plain Python.

Each tool runs once, alone, in a process of its own; its time is from texts in memory to its answer.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from winnow.contracts.identity import UID_TYPE
from winnow.contracts.stage import GlobalInputs, GlobalOutputs, ShardRef
from winnow.stages.dedupe.near_duplicate_texts import NearDuplicateTexts

NGRAM = 5
ROWS_PER_SHARD = 5000
Pairs = set[tuple[int, int]]


def documents(rows: int, seed: int = 0) -> list[str]:
    """Return the documents, the same for the same release of wordfreq."""
    from wordfreq import top_n_list, word_frequency

    words = [word for word in top_n_list("en", 30_000) if word.isascii() and word.isalpha()]
    weights = np.array([word_frequency(word, "en") for word in words])
    weights /= weights.sum()
    rng = np.random.default_rng(seed)

    def draw(count: int) -> list[str]:
        return [words[i] for i in rng.choice(len(words), count, p=weights)]

    templates = [draw(int(rng.integers(150, 500))) for _ in range(20)]
    found: list[list[str]] = []
    for _ in range(rows):
        kind = rng.random()
        if kind < 0.55 or not found:
            found.append(draw(int(np.clip(rng.lognormal(math.log(220), 0.7), 30, 1500))))
        elif kind < 0.80:
            base = found[int(rng.integers(len(found)))]
            found.append(_edit(base, rng.choice([0.01, 0.02, 0.03, 0.05, 0.1, 0.2]), draw, rng))
        elif kind < 0.85:
            found.append(list(found[int(rng.integers(len(found)))]))
        else:
            template = templates[int(rng.integers(20))]
            found.append([*template, *draw(int(rng.integers(40, 300)))])
    return [" ".join(words) for words in found]


def _edit(
    words: list[str],
    share: float,
    draw: Callable[[int], list[str]],
    rng: np.random.Generator,
) -> list[str]:
    """Return words with about ``share`` of them replaced, dropped or doubled."""
    out = []
    for word, chance, new in zip(words, rng.random(len(words)), draw(len(words)), strict=True):
        if chance >= share:
            out.append(word)
        elif chance < share / 2:
            out.append(new)
        elif chance < share * 0.75:
            out += [word, new]
    return out or words


def sets_of(texts: list[str]) -> list[npt.NDArray[np.int64]]:
    """Return the sorted distinct hashes of each document's runs of words."""
    return [np.unique(np.array([hash(s) for s in shingles(text)], np.int64)) for text in texts]


def shingles(text: str) -> Iterator[str]:
    """Yield runs of words; a text of fewer words is one run."""
    words = text.split()
    if len(words) < NGRAM:
        yield " ".join(words)
    for i in range(len(words) - NGRAM + 1):
        yield " ".join(words[i : i + NGRAM])


def similarity(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> float:
    """Return the Jaccard similarity of two sorted sets."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def true_pairs(sets: list[npt.NDArray[np.int64]], threshold: float) -> Pairs:
    """Return all pairs at or above the threshold: sets in order of rarity that are that similar
    share one of their first n - ceil(threshold * n) + 1 elements."""
    every, counts = np.unique(np.concatenate(sets), return_counts=True)
    index: dict[int, list[int]] = defaultdict(list)
    found: Pairs = set()
    for row, items in enumerate(sets):
        rarity = counts[np.searchsorted(every, items)]
        order = np.lexsort((items, rarity))
        length = len(items) - math.ceil(threshold * len(items) - 1e-9) + 1
        seen: set[int] = set()
        for item in items[order[:length]].tolist():
            seen.update(index[item])
            index[item].append(row)
        for other in seen:
            sizes = sorted((len(items), len(sets[other])))
            close = sizes[0] >= threshold * sizes[1] - 1e-9
            if close and similarity(items, sets[other]) >= threshold - 1e-9:
                found.add((other, row))
    return found


class Shards(GlobalInputs):
    """Texts in memory; a row's uid is its number."""

    def __init__(self, texts: list[str], scratch: Path) -> None:
        self.scratch, self._texts = scratch, texts
        cuts = [*range(0, len(texts), ROWS_PER_SHARD), len(texts)]
        self._first = {str(a): a for a in cuts}
        self.shards = tuple(ShardRef(id=str(a), num_rows=b - a) for a, b in pairwise(cuts))

    def table(self, shard: ShardRef) -> pa.Table:
        first = self._first[shard.id]
        uids = [i.to_bytes(16, "big") for i in range(first, first + shard.num_rows)]
        texts = self._texts[first : first + shard.num_rows]
        return pa.table({"uid": pa.array(uids, UID_TYPE), "text": pa.array(texts, pa.string())})


class Lists(GlobalOutputs):
    """Keeps the lists in row order."""

    def __init__(self) -> None:
        self.tables: list[pa.Table] = []

    def write(self, shard: ShardRef, columns: pa.Table) -> None:
        self.tables.append(columns)


def winnow(texts: list[str], args: argparse.Namespace) -> Any:
    stage = NearDuplicateTexts(
        threshold=args.threshold, num_permutations=args.permutations, num_threads=args.threads
    )
    lists = Lists()
    with tempfile.TemporaryDirectory() as folder:
        counters = stage.compute(Shards(texts, Path(folder)), lists)
    print(json.dumps(dict(counters)), file=sys.stderr)
    return pa.concat_tables(lists.tables)


def winnow_pairs(table: pa.Table) -> Pairs:
    """Write out the lists: a name stands for its group."""
    names, groups = table["near_duplicate_texts"].to_pylist(), table.column(2).to_pylist()
    members: dict[int, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        members[row if group is None else int.from_bytes(group, "big")].append(row)
    found: Pairs = set()
    for group, rows in members.items():
        found.update(combinations(rows, 2))
        for name in names[rows[0]]:
            for other in members.get(int.from_bytes(name, "big"), []):
                found.update((min(row, other), max(row, other)) for row in rows if row != other)
        assert group in rows
    return found


def datasketch(texts: list[str], args: argparse.Namespace) -> Any:
    """As its documentation has it: signatures in bulk, then query and insert."""
    from datasketch import MinHash, MinHashLSH

    lsh = MinHashLSH(threshold=args.threshold, num_perm=args.permutations)
    found = []
    for first in range(0, len(texts), 1000):
        part = texts[first : first + 1000]
        sets = [[s.encode() for s in set(shingles(text))] for text in part]
        hashes = MinHash.bulk(sets, num_perm=args.permutations)
        for row, minhash in enumerate(hashes, start=first):
            found += [(int(other), row) for other in lsh.query(minhash)]
            lsh.insert(row, minhash, check_duplication=False)
    return found


DATA_JUICER = """
import json, os, re, sys, time
import numpy as np
import pyarrow.parquet as pq
from data_juicer.core.data import NestedDataset
from data_juicer.ops.deduplicator.document_minhash_deduplicator import DocumentMinhashDeduplicator
source, target, threshold, permutations, processes = sys.argv[1:]
dataset = NestedDataset.from_dict(pq.read_table(source).to_pydict())
start, cpu = time.perf_counter(), os.times()
op = DocumentMinhashDeduplicator(tokenization="space", window_size=5, lowercase=True,
    num_permutations=int(permutations), jaccard_threshold=float(threshold))
hashed = dataset.map(op.compute_hash, num_proc=int(processes), load_from_cache_file=False)
kept, _ = op.process(hashed)
wall = time.perf_counter() - start
used = sum(os.times()[:4]) - sum(cpu[:4])
pairs = set()
for table in op.hash_tables:
    for rows in table.values():
        rows = sorted(rows)
        pairs.update((a, b) for i, a in enumerate(rows) for b in rows[i + 1:])
json.dump({"wall": wall, "cpu": used, "pairs": sorted(pairs), "kept": list(kept["row"]),
    "bands": [op.num_bands, op.num_rows_per_band],
    "peak_mb": int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) / 1024},
    open(target, "w"))
"""


def run_data_juicer(texts: Path, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    script, answer = folder / "run_peer.py", folder / "data_juicer.json"
    script.write_text(DATA_JUICER)
    values = [str(args.threshold), str(args.permutations), str(args.threads)]
    command = [args.data_juicer, str(script), str(texts), str(answer), *values]
    subprocess.run(command, check=True, capture_output=not args.verbose)
    found: dict[str, Any] = json.loads(answer.read_text())
    found["pairs"] = {(a, b) for a, b in found["pairs"]}
    return found


def run_here(tool: str, texts: Path, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run a tool in a process of its own."""
    answer = folder / f"{tool}.json"
    options = ["--tool", tool, "--texts", str(texts), "--answer", str(answer)]
    for name in ("threshold", "permutations", "threads"):
        options += [f"--{name}", str(getattr(args, name))]
    subprocess.run([sys.executable, __file__, *options], check=True)
    found: dict[str, Any] = json.loads(answer.read_text())
    found["pairs"] = {(a, b) for a, b in found["pairs"]}
    return found


def work(args: argparse.Namespace) -> None:
    """Be the process of one tool."""
    texts = pq.read_table(args.texts)["text"].to_pylist()
    run, pairs = {"winnow": (winnow, winnow_pairs), "datasketch": (datasketch, set)}[args.tool]
    if args.tool == "datasketch":
        pass  # imports are not timed
    start, cpu = time.perf_counter(), time.process_time()
    found = run(texts, args)
    wall, used = time.perf_counter() - start, time.process_time() - cpu
    answer = {"wall": wall, "cpu": used, "peak_mb": peak_mb(), "pairs": sorted(pairs(found))}
    Path(args.answer).write_text(json.dumps(answer))


def peak_mb() -> float:
    """Return the peak of this process alone; getrusage's is the parent's where that was larger."""
    found = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else math.nan


def describe(tool: str, found: dict[str, Any], truth: Pairs) -> None:
    """Print time and quality. A tool drops the later row of each of its pairs."""
    pairs = found["pairs"]
    kept = found.get("kept")
    dropped = {b for _, b in pairs}
    if kept is not None:
        dropped = {row for pair in pairs for row in pair} - set(kept)
    near: dict[int, set[int]] = defaultdict(set)
    for a, b in truth:
        near[a].add(b)
        near[b].add(a)
    right = sum(1 for row in dropped if near[row])
    ever = {b for _, b in truth}
    print(
        f"{tool:12} wall {found['wall']:7.1f} s  cpu {found['cpu']:7.1f} s  peak "
        f"{found['peak_mb']:6.0f} MB  pairs {len(pairs):8,}  recall "
        f"{len(pairs & truth) / max(len(truth), 1):.5f}  precision "
        f"{len(pairs & truth) / max(len(pairs), 1):.4f}  dropped {len(dropped):,} of "
        f"{len(ever):,}, of which without any true neighbour {len(dropped) - right:,}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=7500)
    parser.add_argument("--threshold", type=float, default=0.7)
    parser.add_argument("--permutations", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data-juicer", default="", help="an interpreter with py-data-juicer")
    parser.add_argument("--only", default="", help="one tool")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--tool", help=argparse.SUPPRESS)
    parser.add_argument("--texts", help=argparse.SUPPRESS)
    parser.add_argument("--answer", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.tool:
        work(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        texts = documents(args.rows)
        path = Path(folder) / "texts.parquet"
        pq.write_table(pa.table({"text": texts, "row": np.arange(len(texts))}), path)
        truth = true_pairs(sets_of(texts), args.threshold)
        words = sum(len(text.split()) for text in texts)
        degrees = Counter(row for pair in truth for row in pair)
        print(
            f"{args.rows:,} documents, {words:,} words, {len(truth):,} true pairs at Jaccard >= "
            f"{args.threshold} (most of one document: {max(degrees.values(), default=0)}), "
            f"{args.permutations} permutations",
            flush=True,
        )
        for tool in ("winnow", "datasketch"):
            if args.only in ("", tool):
                describe(tool, run_here(tool, path, args, Path(folder)), truth)
        if args.data_juicer:
            describe("data-juicer", run_data_juicer(path, args, Path(folder)), truth)


if __name__ == "__main__":
    main()
