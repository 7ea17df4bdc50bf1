"""A small study of real files: coloured squares with captions, every third caption wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

COLORS = {
    "red": (220, 20, 20), "green": (20, 160, 20), "blue": (20, 20, 220), "black": (0, 0, 0),
    "white": (255, 255, 255), "yellow": (240, 230, 20), "pink": (250, 160, 190),
    "orange": (250, 140, 10),
}  # fmt: skip
RECIPE: dict[str, Any] = {
    "name": "squares",
    "source": {"use": "folder", "path": ""},
    "rows_per_shard": 16,
    "stages": {"image_info": {}, "caption_stats": {}},
    "filters": {
        "decodable": {"use": "has_media", "error_column": "image_info_error", "on_null": "drop"},
        # A wrong caption shouts, so a cheap filter can find it.
        "calm": {"use": "where", "expression": "num_characters < 30", "on_null": "drop"},
    },
    "export": {"train": {"use": "webdataset", "rows_per_file": 16}},
}
STUDY: dict[str, Any] = {
    "name": "squares-study",
    "recipe": "pool.yaml",
    "pool": {"keep": ["decodable"]},
    "evaluation": {
        "validation": {"recipe": "validation.yaml", "keep": ["decodable"]},
        "test": {"recipe": "test.yaml", "keep": ["decodable"]},
    },
    "trial": {
        "use": "contrastive", "model": "nano", "batch_size": 16, "learning_rate": 0.002,
        "num_threads": 1, "device": "cpu", "checkpoint_samples": 64, "augment_scale": 1.0,
    },
    "samples_seen": 128,
    "seeds": [0, 1],
    "evaluate": {"retrieval": {"at": [1, 5]}},
    "arms": {"raw": {"keep": [], "random": False}, "curated": {}},
    "primary": {"arm": "curated", "metrics": ["retrieval.mean_recall@1"]},
}  # fmt: skip


def write_study(folder: Path, **changes: Any) -> Path:
    """Write pictures, recipes and the study; return the study's path."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = (("pool", 48, True), ("validation", 16, False), ("test", 16, False))
    for seed, (part, count, noisy) in enumerate(parts):
        _pictures(folder / part, count, noisy, seed)
        recipe = {**RECIPE, "source": {"use": "folder", "path": str(folder / part)}}
        (folder / f"{part}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
    return path


def _pictures(folder: Path, count: int, noisy: bool, seed: int) -> None:
    if folder.exists():
        return
    folder.mkdir()
    chance = np.random.default_rng(seed)
    names = list(COLORS)
    for index in range(count):
        name = names[index % len(names)]
        noise = chance.integers(-15, 15, (72, 72, 3))
        pixels = np.clip(np.array(COLORS[name]) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03}.png")
        text = f"a {name} square"
        if noisy and index % 3 == 0:
            text = f"CLICK HERE FOR A FREE {names[(index + 3) % len(names)]} THING"
        (folder / f"{index:03}.txt").write_text(text)
