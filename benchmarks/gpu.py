"""How busy the clip_score worker keeps its device: from JPEG bytes, against the bare forward.

    python benchmarks/gpu.py                          # whatever device there is
    python benchmarks/gpu.py --device cuda --model ViT-L-14 --processes 4

Needs neither Ray nor a network: torch, open_clip, pyarrow, Pillow, pydantic and this repository
(``pip install --no-deps -e .``). Two figures, in images (with their captions) per second:

    bare        both towers on tensors that already lie on the device, nothing else
    end to end  JPEG bytes and strings -> decode, resize, tokenise, forward -> Arrow columns, by
                ``--processes`` workers that share the device, each with ``--batches`` in flight

The ratio is the target: 0.95 on a GPU. The weights are random: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

CAPTION = "a red cat sits to the left of two old wooden boats on calm blue water at dusk"


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What is measured."""

    folder: str
    device: str
    precision: Any
    batch_size: int
    num_images: int
    seconds: float
    processes: int
    threads: int
    batches: int


def jpegs(count: int, seed: int) -> list[bytes]:
    """Return pictures as the web has them: 256 to 512 pixels, detail at every scale."""
    rng = np.random.default_rng(seed)
    encoded = []
    for _ in range(count):
        width, height = (int(v) for v in rng.integers(256, 513, 2))
        coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
        grain = rng.normal(0, 6, smooth.shape)
        buffer = io.BytesIO()
        pixels = np.clip(smooth + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG", quality=88)
        encoded.append(buffer.getvalue())
    return encoded


def batch_of(encoded: list[bytes], size: int, seed: int) -> pa.RecordBatch:
    """Return one batch of rows; no two captions are equal."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(CAPTION.split(), 12)) + f" {seed} {i}" for i in range(size)]
    columns = {
        "uid": pa.array([rng.bytes(16) for _ in range(size)], pa.binary(16)),
        "image": pa.array([encoded[i % len(encoded)] for i in range(size)], pa.large_binary()),
        "text": pa.array(texts, pa.string()),
    }
    return pa.RecordBatch.from_pydict(columns)


def worker(settings: Settings, index: int, ready: Barrier, results: Any) -> None:
    """Score batches for some seconds; report how many images and how long."""
    from winnow.contracts.media import MediaCaps
    from winnow.contracts.stage import WorkerOptions
    from winnow.stages._media import BatchMedia, MediaCache
    from winnow.stages.clip_score import ClipScore

    stage = ClipScore(
        model=settings.folder,
        device=settings.device,  # type: ignore[arg-type]
        precision=settings.precision,
        batch_size=settings.batch_size,
    )
    state = stage.setup(WorkerOptions(decode_threads=settings.threads))
    encoded = jpegs(min(settings.num_images, 256), seed=index)
    batches = [batch_of(encoded, settings.batch_size, 100 * index + i) for i in range(4)]
    caps = MediaCaps()

    def score(lane: int) -> int:
        done = 0
        with MediaCache(0, settings.threads) as cache:
            while done == 0 or time.monotonic() < until:
                batch = batches[(lane + done) % len(batches)]
                media = BatchMedia(batch, caps=caps, cache=cache, first_row=0)
                out = stage.annotate(batch, state, media)
                assert out.column("clip_score").null_count == 0
                done += 1
        return done

    until = 0.0
    score(0)  # warm up
    ready.wait(300)
    start = time.monotonic()
    until = start + settings.seconds
    with ThreadPoolExecutor(settings.batches) as lanes:
        total = sum(lanes.map(score, range(settings.batches)))
    results.put((total * settings.batch_size, time.monotonic() - start))


def end_to_end(settings: Settings) -> float:
    """Return images per second of all workers together."""
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(settings.processes), context.Queue()
    processes = [
        context.Process(target=worker, args=(settings, i, ready, results))
        for i in range(settings.processes)
    ]
    for process in processes:
        process.start()
    counts = [results.get(timeout=settings.seconds + 600) for _ in processes]
    for process in processes:
        process.join()
    return float(sum(images / seconds for images, seconds in counts))


def bare(settings: Settings) -> float:
    """Return images per second of the two towers on tensors that are there."""
    import torch

    from winnow.models.checkpoint import find_model
    from winnow.models.contrastive import load_model

    torch.set_num_threads(settings.processes)  # on a CPU: as many as the workers have together
    model = load_model(
        find_model(settings.folder), device=settings.device, precision=settings.precision
    )
    size = (settings.batch_size, 3, model.preprocess.height, model.preprocess.width)
    images = torch.randn(size, device=model.device, dtype=model.dtype)
    tokens = model.tokenizer([CAPTION] * settings.batch_size).to(model.device)
    network: Any = model.network

    @torch.inference_mode()
    def steps(seconds: float) -> float:
        count, start = 0, time.monotonic()
        while time.monotonic() - start < seconds:
            for _ in range(4):
                network.encode_image(images, normalize=True)
                scores = network.encode_text(tokens, normalize=True)
            scores.sum().item()  # waits for the device
            count += 4
        return count * settings.batch_size / (time.monotonic() - start)

    steps(min(3.0, settings.seconds))
    return steps(settings.seconds)


def random_model(name: str, folder: Path) -> None:
    """Write a model of this architecture with random weights."""
    from winnow.models.checkpoint import architecture
    from winnow.models.contrastive import build_network, save_model

    config = architecture(name)
    model = {k: v for k, v in config["model_cfg"].items() if k != "text_cfg"}
    text = {k: v for k, v in config["model_cfg"]["text_cfg"].items() if k != "tokenizer_kwargs"}
    model["text_cfg"] = {**text, "vocab_size": 49_408}
    network = build_network(model, seed=0)
    save_model(folder, network, config=model, preprocess=config["preprocess_cfg"])


def main() -> None:
    """Measure and print."""
    import torch

    gpu = torch.cuda.is_available()
    cores = os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if gpu else "cpu")
    parser.add_argument("--model", default="ViT-L-14" if gpu else "tiny", help="an architecture")
    parser.add_argument("--precision", default="bf16" if gpu else "fp32")
    parser.add_argument("--batch-size", type=int, default=256 if gpu else 64)
    parser.add_argument("--images", type=int, default=256, help="distinct pictures per worker")
    parser.add_argument("--seconds", type=float, default=20.0 if gpu else 4.0)
    parser.add_argument("--processes", type=int, default=min(4, cores))
    parser.add_argument("--threads", type=int, help="decode threads per process")
    parser.add_argument("--batches", type=int, default=3 if gpu else 1, help="in flight, each")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        random_model(options.model, Path(name))
        settings = Settings(
            folder=str(Path(name).resolve()),
            device=options.device,
            precision=options.precision,
            batch_size=options.batch_size,
            num_images=options.images,
            seconds=options.seconds,
            processes=options.processes,
            threads=options.threads or max(1, cores // options.processes),
            batches=options.batches,
        )
        there = torch.cuda.get_device_name() if options.device == "cuda" else f"{cores} CPU cores"
        print(f"{options.model}, {options.precision}, batches of {options.batch_size}, {there}")
        forward = bare(settings)
        print(f"bare        {forward:10,.0f} images/s")
        whole = end_to_end(settings)
        how = f"{settings.processes} processes x {settings.threads} decode threads"
        how += f", {settings.batches} batches in flight"
        print(f"end to end  {whole:10,.0f} images/s   ({how})")
        print(f"ratio       {whole / forward:10.2f}   (target on a GPU: 0.95)")


if __name__ == "__main__":
    main()
