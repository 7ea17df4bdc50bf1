"""``winnow train contrastive`` with several workers on Ray: one model, as of one worker."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

from winnow.pipeline.cli_train import train

MODEL = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16,
    },
    "text_cfg": {"context_length": 8, "vocab_size": 520, "width": 32, "heads": 2, "layers": 1},
}  # fmt: skip


@pytest.mark.ray
def test_two_workers_write_the_model_of_one(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative paths mean the caller's folder, not the workers'."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    with tarfile.open("data.tar", "w") as tar:
        for index in range(16):
            picture = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(picture, "PNG")
            for ext, data in (("png", picture.getvalue()), ("txt", f"no {index}".encode())):
                info = tarfile.TarInfo(f"{index:03d}.{ext}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    Path("model.json").write_text(json.dumps(MODEL))
    for workers in ("1", "2"):
        arguments = [
            "contrastive", "data.tar", "--out", f"out{workers}", "--model", "model.json",
            "--samples", "48", "--batch-size", "8", "--threads", "1", "--device", "cpu",
            "--workers", workers,
        ]  # fmt: skip
        outcome = CliRunner().invoke(train, arguments, catch_exceptions=False)
        assert outcome.exit_code == 0
        assert "trained on 16 pairs (left out: none)" in outcome.output
    one, two = (load_file(f"out{n}/model.safetensors") for n in (1, 2))
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert (two[name] - value).abs().max() < 1e-3, name
