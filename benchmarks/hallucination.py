"""How well the stage ``hallucination`` finds objects that are not there, on labelled scenes.

    python benchmarks/hallucination.py --rows 300

True captions of scenes, as a captioner would write them; in half of them one named object is
exchanged for one that the picture does not hold. Half of the rows keep their raw caption (another
true sentence about the picture), half have none. An object that the stage reports is right if it
was planted.
"""

from __future__ import annotations

import argparse
import io
import time
from dataclasses import dataclass

import pyarrow as pa

from winnow.contracts.identity import row_uid, stable_hash64
from winnow.contracts.media import MediaCaps
from winnow.contracts.stage import WorkerOptions
from winnow.stages._media import BatchMedia, MediaCache
from winnow.stages.hallucination import Hallucination
from winnow.stages.sources._scenes import CONCEPTS, SceneOptions, caption, render, scene

PLAIN = 1  # a caption template that names everything and nothing else
SHARES = (0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One row. planted: the name that is not in the picture, None where the caption is true."""

    image: bytes
    synthetic: str
    raw: str | None
    planted: str | None


def case(number: int, seed: int) -> Case:
    """Return one row; even rows are planted, and every second pair of rows has no raw caption."""
    drawn = scene(seed, number, SceneOptions())
    buffer = io.BytesIO()
    render(drawn, drawn.width, drawn.height).save(buffer, "JPEG", quality=92)
    text, planted = caption(drawn, variant=PLAIN), None
    if number % 2 == 0:
        names = [group.concept for group in drawn.groups]
        absent = [name for name in CONCEPTS if name not in names]
        planted = absent[stable_hash64("planted", seed, number) % len(absent)]
        victim = drawn.groups[stable_hash64("victim", seed, number) % len(drawn.groups)]
        kept = [n for n in names if n != victim.concept]
        text = "a picture of " + " and ".join([*kept, planted])
    raw = caption(drawn, variant=0) if number % 4 < 2 else None
    return Case(image=buffer.getvalue(), synthetic=text, raw=raw, planted=planted)


def annotate(stage: Hallucination, cases: list[Case]) -> list[list[str]]:
    """Return the names that the stage reports, per row."""
    state = stage.setup(WorkerOptions())
    found: list[list[str]] = []
    for start in range(0, len(cases), stage.batch_rows):
        part = cases[start : start + stage.batch_rows]
        batch = pa.RecordBatch.from_pydict(
            {
                "uid": pa.array([row_uid(start + i) for i in range(len(part))], pa.binary(16)),
                "image": pa.array([c.image for c in part], pa.large_binary()),
                "synthetic_captions": pa.array([c.synthetic for c in part], pa.string()),
                "text": pa.array([c.raw for c in part], pa.string()),
            }
        )
        with MediaCache(1 << 26, 2) as cache:
            media = BatchMedia(batch, caps=MediaCaps(), cache=cache, first_row=0)
            out = stage.annotate(batch, state, media)
        assert out.column(f"{stage.column}_error").null_count == len(part)
        found += [lists[0] for lists in out.column(stage.column).to_pylist()]
    return found


def rates(cases: list[Case], found: list[list[str]]) -> str:
    """Return precision and recall as text."""
    reported = sum(map(len, found))
    planted = sum(c.planted is not None for c in cases)
    right = sum(c.planted in names for c, names in zip(cases, found, strict=True) if c.planted)
    clean = [names for c, names in zip(cases, found, strict=True) if c.planted is None]
    kept = sum(not names for names in clean) / max(1, len(clean))
    precision = right / reported if reported else float("nan")
    return f"{precision:9.3f} {right / max(1, planted):7.3f} {kept:12.3f}"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--seed", type=int, default=20_261)
    arguments = parser.parse_args()
    cases = [case(number, arguments.seed) for number in range(arguments.rows)]
    print(f"{len(cases)} rows, model {arguments.model}; precision and recall per object,")
    print("kept: share of true captions about which nothing is reported")
    print("tiles rank_share raw caption  precision  recall   kept  seconds")
    for tiles in (0, 3):
        for share in SHARES:
            stage = Hallucination(
                model=arguments.model, single=True, tiles=tiles, rank_share=share, batch_size=64
            )
            start = time.perf_counter()
            found = annotate(stage, cases)
            seconds = time.perf_counter() - start
            for has_raw in (True, False):
                rows = [i for i, c in enumerate(cases) if (c.raw is not None) == has_raw]
                line = rates([cases[i] for i in rows], [found[i] for i in rows])
                said = "yes" if has_raw else "no"
                print(f"{tiles:5d} {share:10.2f} {said:>11s} {line} {seconds:7.1f}", flush=True)


if __name__ == "__main__":
    main()
