"""Samples per second of the contrastive trainer against open_clip's own (open_clip_train).

Both train the same architecture from scratch on the same shards, in float32, with the same batch
size, vocabulary (CLIP's), optimizer, gradient clipping and processor cores, in processes of their
own, one after the other and in turn. Timed is the training with its reading and decoding, from the
first sample to the last; not imports. For ours also what it does before and after: reading every
shard once, tokens, writing the model.

    python benchmarks/trainer.py                    # a trial: pictures are decoded once
    python benchmarks/trainer.py --stream           # ShardStream: decoded in every epoch, as theirs
    python benchmarks/trainer.py --shards DIR --model ViT-B-32 --batch-size 256 --device cuda

Pictures are drawn at random, with edges, at --side pixels as JPEG. Their augmentation is a random
crop, ours a random crop and light. Needs open_clip_train (in open_clip_torch). It is made for
webdataset <= 0.2.86; with a newer one the end-of-shard marker, which it takes for a sample, is off.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

WORDS = ("red", "green", "blue", "small", "round", "old", "new", "bright", "wooden", "cat", "dog")
RESULT = "seconds of training and CPU seconds before it:"
THEIRS = (
    f"RESULT = {RESULT!r}"
    + """
import functools, sys, time
import open_clip, webdataset.tariterators as tars
if "eof_value" in tars.tar_file_expander.__code__.co_varnames:
    tars.tar_file_expander = functools.partial(tars.tar_file_expander, eof_value=None)
import torch
import open_clip_train.main as main
torch.set_num_threads(int(sys.argv[2]))
if sys.argv[1]:
    open_clip.add_model_config(sys.argv[1])
train, seconds, before = main.train_one_epoch, [], []
def timed(*arguments, **options):
    start = time.perf_counter()
    before.append(time.process_time())
    train(*arguments, **options)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds.append(time.perf_counter() - start)
main.train_one_epoch = timed
main.main(sys.argv[3:])
print(RESULT, sum(seconds), before[0])
"""
)


class Seconds(NamedTuple):
    """Of training: by the clock, and of all cores together."""

    wall: float
    cpu: float


def draw_shards(folder: Path, num_samples: int, num_shards: int, side: int) -> None:
    """Write pictures of overlapping rectangles with captions of random words."""
    import numpy as np
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(0)
    sizes = {}
    for shard in range(num_shards):
        name = f"{shard:05d}.tar"
        sizes[name] = num_samples // num_shards
        with tarfile.open(folder / name, "w") as tar:
            for index in range(sizes[name]):
                image = Image.new("RGB", (side, side), tuple(rng.integers(0, 256, 3).tolist()))
                draw = ImageDraw.Draw(image)
                for _ in range(40):
                    box = np.sort(rng.integers(0, side, (2, 2)), axis=0).ravel().tolist()
                    draw.rectangle(box, fill=tuple(rng.integers(0, 256, 3).tolist()))
                picture = io.BytesIO()
                image.save(picture, "JPEG", quality=90)
                caption = " ".join(rng.choice(WORDS, rng.integers(4, 16)))
                for extension, data in (("jpg", picture.getvalue()), ("txt", caption.encode())):
                    info = tarfile.TarInfo(f"{shard:05d}{index:06d}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    (folder / "sizes.json").write_text(json.dumps(sizes))


def model_file(folder: Path, model: str) -> str:
    """Write the architecture with CLIP's vocabulary, as both take it; return its path."""
    from winnow.models.checkpoint import architecture

    config = copy.deepcopy(architecture(model)["model_cfg"])
    config["text_cfg"]["vocab_size"] = 49_408
    path = folder / "benchmark-model.json"
    path.write_text(json.dumps(config))
    return str(path)


def theirs(work: Path, shards: Path, options: argparse.Namespace, samples: int) -> Seconds:
    """Time open_clip_train for all epochs."""
    tars = sorted(path.name for path in shards.glob("*.tar"))
    names = f"{{{tars[0].removesuffix('.tar')}..{tars[-1].removesuffix('.tar')}}}.tar"
    arguments = {
        "train-data": str(shards / names),
        "train-num-samples": samples,
        "dataset-type": "webdataset",
        "model": "benchmark-model",
        "batch-size": options.batch_size,
        "workers": options.workers,
        "epochs": options.epochs,
        "precision": "fp32",
        "device": options.device,
        "lr": 1e-3,
        "wd": 0.1,
        "beta2": 0.98,
        "eps": 1e-6,
        "warmup": 10,
        "grad-clip-norm": 1.0,
        "save-frequency": 0,
        "log-every-n-steps": 1_000_000,
        "logs": str(work / "logs"),
    }
    command = [sys.executable, "-c", THEIRS, str(work / "benchmark-model.json")]
    command.append(str(options.threads))
    for name, value in arguments.items():
        command += [f"--{name}", str(value)]
    return seconds_of(command)


def ours(work: Path, shards: Path, options: argparse.Namespace, samples: int) -> Seconds:
    """Time our trainer for as many samples."""
    kind = "stream" if options.stream else "trial"
    job = {
        "kind": kind,
        "shards": str(shards),
        "model": str(work / "benchmark-model.json"),
        "num_samples": samples * options.epochs,
        "batch_size": options.batch_size,
        "device": options.device,
        "threads": options.threads,
        "workers": options.workers,
    }
    return seconds_of([sys.executable, __file__, "--job", json.dumps(job)])


def seconds_of(command: list[str]) -> Seconds:
    """Run a command that prints its seconds of training and its CPU seconds before it."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    start = children_cpu_s()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    used = children_cpu_s() - start
    lines = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
    if done.returncode or not lines:
        sys.exit(f"{command[:3]} failed:\n{done.stderr[-4000:]}")
    wall, before = (float(word) for word in lines[-1].removeprefix(RESULT).split())
    return Seconds(wall, used - before)


def children_cpu_s() -> float:
    """Return the CPU seconds of all processes below this one that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_job(job: dict[str, Any]) -> None:
    """What the process of our trainer does."""
    import time

    import torch

    from winnow.stages.train.contrastive import TrainConfig

    torch.set_num_threads(job["threads"])
    config = TrainConfig(
        num_samples=job["num_samples"],
        batch_size=job["batch_size"],
        warmup_samples=10 * job["batch_size"],
        device=job["device"],
    )
    with tempfile.TemporaryDirectory() as folder:
        run = run_stream if job["kind"] == "stream" else run_trial
        import open_clip  # noqa: F401  (imports are not timed)

        import winnow.models.contrastive  # noqa: F401

        before = time.process_time()
        start = time.perf_counter()
        run(job, config, Path(folder))
        print(RESULT, time.perf_counter() - start, before)


def run_trial(job: dict[str, Any], config: Any, folder: Path) -> None:
    """As ``winnow train contrastive``."""
    from winnow.stages.train.on_shards import train_on_shards

    threads = job["threads"]
    train_on_shards([job["shards"]], folder, config, model=job["model"], num_threads=threads)


def run_stream(job: dict[str, Any], config: Any, folder: Path) -> None:
    """The same loop on a stream that decodes every sample in every epoch."""
    from open_clip.tokenizer import SimpleTokenizer

    from winnow.models.contrastive import Preprocess, build_network, save_model
    from winnow.models.tokenizer import Tokenizer
    from winnow.stages.train._shard_reader import shard_sizes
    from winnow.stages.train._stream_source import StreamSource
    from winnow.stages.train.contrastive import train_contrastive
    from winnow.stages.train.shards import shard_paths
    from winnow.stages.train.streaming import StreamConfig

    network_config = json.loads(Path(job["model"]).read_text())
    side = network_config["vision_cfg"]["image_size"]
    length = network_config["text_cfg"]["context_length"]
    work = round(side * 1.125)
    source = StreamSource(
        shard_sizes(shard_paths([job["shards"]])),
        Preprocess({"size": (work, work), "resize_mode": "squash"}).pixels,
        Tokenizer(SimpleTokenizer(context_length=length), length),
        StreamConfig(
            batch_size=config.batch_size,
            num_lanes=max(1, job["workers"]),
            num_processes=job["workers"],
            num_threads=1,
        ),
    )
    network = build_network(network_config, seed=0)
    preprocess = {"size": (side, side)}
    train_contrastive(
        network,
        source.batches,
        config,
        normalize=Preprocess(preprocess).normalize,
        image_size=side,
        folder=folder,
    )
    save_model(folder, network, config=network_config, preprocess=preprocess)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shards", type=Path, help="a folder of tars; drawn if not given")
    parser.add_argument("--samples", type=int, default=2048, help="in the drawn shards")
    parser.add_argument("--side", type=int, default=256, help="of the drawn pictures")
    parser.add_argument("--model", default="nano", help="architecture, as of `winnow train`")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=4, help="times each sample is seen")
    parser.add_argument("--threads", type=int, default=2, help="torch's, in the training process")
    parser.add_argument(
        "--workers", type=int, default=1, help="processes that decode; 0: the trainer's own"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--stream", action="store_true", help="decode in every epoch, as open_clip")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        run_job(json.loads(options.job))
        return
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        shards = options.shards or work / "shards"
        if options.shards is None:
            shards.mkdir()
            draw_shards(shards, options.samples, 8, options.side)
        samples = sum(json.loads((shards / "sizes.json").read_text()).values())
        samples -= samples % (options.batch_size * max(1, options.workers))
        model_file(work, options.model)
        compare(work, shards, options, samples)


def compare(work: Path, shards: Path, options: argparse.Namespace, samples: int) -> None:
    """Time both in turn; print rates by the clock and per CPU second, ratios and their spread."""
    seen = samples * options.epochs
    times: dict[str, list[Seconds]] = {"winnow": [], "open_clip_train": []}
    for repeat in range(options.repeats):
        pair = [("winnow", ours), ("open_clip_train", theirs)]
        for name, run in pair if repeat % 2 == 0 else pair[::-1]:
            times[name].append(run(work, shards, options, samples))
    print(
        f"{seen:,} samples each, {options.repeats} repeats in turn; load {os.getloadavg()[0]:.1f}"
    )
    for kind in Seconds._fields:
        rates = {n: [seen / getattr(t, kind) for t in ts] for n, ts in times.items()}
        for name, values in rates.items():
            shown = ", ".join(f"{value:,.0f}" for value in values)
            rate = statistics.median(values)
            print(f"{name:16} {rate:8,.0f} samples per {kind} second  ({shown})")
        ratios = [a / b for a, b in zip(*rates.values(), strict=True)]
        middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
        print(f"ratio            {middle:8.2f}  ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
