"""Simulated ablations: seed effects, item effects and a known truth, for tests and examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from winnow.contracts.trial import ITEMS, METRICS
from winnow.pipeline.statistics import ArmResult

POOL = 6000
BASE = 15_360


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One arm to simulate: its true mean per metric, and what it is."""

    arm: str
    truth: Mapping[str, float]
    kind: Any = "arm"
    control_of: str = ""
    scorer: str = ""
    fraction: float | None = None
    num_rows: int = POOL
    slices: Mapping[str, float] = field(default_factory=dict)
    """Slice -> what is added to the truth there."""


def simulate(
    plans: Sequence[Plan],
    *,
    seeds: Sequence[int] = range(5),
    budgets: Sequence[int] = (1,),
    num_items: int = 200,
    seed_spread: float = 0.01,
    item_spread: float = 0.2,
    noise: float = 0.1,
    random_state: int = 0,
    failed: Mapping[tuple[str, int, int], str] | None = None,
    with_items: bool = True,
) -> list[ArmResult]:
    """Return one result per arm, budget, seed and split.

    An item's value is the truth + an effect of the seed (shared by all arms: the initialisation) +
    one of arm and seed + one of the item + one of arm and item + noise.
    """
    generator = np.random.default_rng(random_state)
    found = []
    metrics = list(dict.fromkeys(m for plan in plans for m in plan.truth))
    shared = {(s, m): generator.normal(0, seed_spread) for s in seeds for m in metrics}
    item = {m: generator.normal(0, item_spread, num_items) for m in metrics}
    for plan in plans:
        mine = {m: generator.normal(0, item_spread / 2, num_items) for m in metrics}
        for budget in budgets:
            for seed in seeds:
                own = {m: generator.normal(0, seed_spread) for m in metrics}
                for split in ("validation", "test"):
                    rows, items = [], []
                    for m, truth in plan.truth.items():
                        values = truth + 0.03 * np.log2(budget) + shared[seed, m] + own[m]
                        values = values + item[m] + mine[m] + generator.normal(0, noise, num_items)
                        rows.append(_row(m, "", values.mean(), num_items))
                        for name, extra in plan.slices.items():
                            part = values[: num_items // 3].mean() + extra
                            rows.append(_row(m, name, part, num_items // 3))
                        items += [(m, f"i{k:05}", v) for k, v in enumerate(values.tolist())]
                    error = (failed or {}).get((plan.arm, budget, seed), "")
                    rows, items = ([], []) if error else (rows, items if with_items else [])
                    found.append(_result(plan, budget, seed, split, error, rows, items))
    return found


def _row(metric: str, slice_: str, value: float, num_items: int) -> dict[str, Any]:
    return {
        "metric": metric,
        "slice": slice_,
        "value": float(value),
        "num_items": num_items,
        "higher_is_better": None if metric.startswith("modality_gap") else True,
    }


def _result(
    plan: Plan,
    budget: int,
    seed: int,
    split: Any,
    error: str,
    rows: list[dict[str, Any]],
    items: list[tuple[str, str, float]],
) -> ArmResult:
    columns = list(zip(*items, strict=True)) or [(), (), ()]
    return ArmResult(
        arm=plan.arm,
        kind=plan.kind,
        control_of=plan.control_of,
        scorer=plan.scorer,
        fraction=plan.fraction,
        curve="" if plan.fraction is None else f"{plan.scorer} sweep",
        budget=budget,
        seed=seed,
        num_rows=plan.num_rows,
        samples_seen=BASE * budget,
        repeats=BASE * budget / plan.num_rows,
        status="failed" if error else "done",
        error=error,
        split=split,
        metrics=pa.Table.from_pylist(rows, METRICS),
        items=pa.table([pa.array(c, f.type) for c, f in zip(columns, ITEMS, strict=True)], ITEMS),
    )


def scenes(*, effect: float = 1.0) -> list[Plan]:
    """Return arms like those of the scenes ablation; ``effect`` scales all differences."""
    metrics = {
        "zero_shot.accuracy": 0.36,
        "retrieval.image_to_text_recall@1": 0.22,
        "modality_gap.centroid_distance": 0.8,
        "modality_gap.linear_separability": 0.95,
    }
    fractions = (0.1, 0.2, 0.3, 0.4, 0.5, 0.75)
    quality = {
        "clip_noisy": (-0.06, 0.02, 0.09, 0.11, 0.08, 0.03),
        "clip_packaged": (-0.03, 0.07, 0.13, 0.14, 0.09, 0.03),
    }
    luck = (-0.10, -0.05, -0.02, -0.005, 0.0, 0.0)

    def truth(shift: float) -> dict[str, float]:
        return {
            m: v - effect * shift * (0.5 if m.startswith("modality") else -1)
            for m, v in metrics.items()
        }

    slices = {"language=de": -0.12 * effect, "language=en": 0.01 * effect, "class=bicycle": 0.0}
    rows = int(POOL * 0.38)
    plans = [
        Plan(arm="curated", truth=truth(0.12), num_rows=rows, slices=slices),
        Plan(
            arm="curated.random",
            truth=truth(-0.02),
            kind="random",
            control_of="curated",
            num_rows=rows,
            slices=dict.fromkeys(slices, 0.0),
        ),
        Plan(arm="without near duplicates", truth=truth(0.1), num_rows=rows + 500),
        Plan(
            arm="without near duplicates.random",
            truth=truth(-0.01),
            kind="random",
            control_of="without near duplicates",
            num_rows=rows + 500,
        ),
        Plan(arm="raw", truth=truth(0.0), num_rows=POOL),
        Plan(arm="oracle", truth=truth(0.2), kind="oracle", num_rows=int(POOL * 0.4)),
    ]
    for scorer, shifts in quality.items():
        for fraction, shift, random in zip(fractions, shifts, luck, strict=True):
            name = f"{scorer} {fraction:.0%}"
            size = int(POOL * fraction)
            plans.append(
                Plan(
                    arm=name,
                    truth=truth(shift),
                    scorer=scorer,
                    fraction=fraction,
                    num_rows=size,
                )
            )
            plans.append(
                Plan(
                    arm=f"{name}.random",
                    truth=truth(random),
                    kind="random",
                    control_of=name,
                    num_rows=size,
                )
            )
    return plans
