"""perceptual_hash against imagehash, on the same images, in one run.

    OMP_NUM_THREADS=1 python benchmarks/perceptual_hash.py

Three comparisons, each the median over rounds that alternate between the two sides:

* the hash alone, from decoded images (luma, reduction, DCT, bits): CPU time of one thread;
* all that the stage writes (hashes, thumbnail, image_detail), from decoded images, against the
  hashes alone of imagehash: CPU time of one thread;
* the stage from bytes, decoding in ``--threads`` threads, against a loop of PIL.Image.open and
  imagehash: wall time, which is what more than one core is for, and CPU time of the process.

Every hash is compared with imagehash's; a difference ends the run.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable, Sequence

import imagehash
import numpy as np
import pyarrow as pa
from PIL import Image

from winnow.contracts.media import MediaCaps
from winnow.stages._lanczos import lanczos_grids
from winnow.stages._media import BatchMedia, MediaCache
from winnow.stages.perceptual_hash import (
    DHASH_SIZE,
    SIDE,
    Algorithm,
    PerceptualHash,
    difference_hash,
    low_frequencies,
    perceptual_hash,
)

Clock = Callable[[], float]
SIZES = ((224, 224), (512, 512), (640, 480), (1280, 960))


def pictures(size: tuple[int, int], count: int) -> list[Image.Image]:
    """Pictures with structure at all scales, as photographs have."""
    rng = np.random.default_rng(0)
    width, height = size
    made = []
    for _ in range(count):
        total = np.zeros((height, width, 3))
        for scale in (4, 16, 64):
            cells = rng.integers(0, 256, (height // scale + 1, width // scale + 1, 3), np.uint8)
            layer = Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)
            total += np.asarray(layer, np.float64) * scale / 84
        made.append(Image.fromarray(total.clip(0, 255).astype(np.uint8)))
    return made


def reference(images: Sequence[Image.Image], algorithms: Sequence[Algorithm]) -> list[list[int]]:
    """imagehash, one image and algorithm at a time."""
    functions = {"phash": imagehash.phash, "dhash": imagehash.dhash}
    return [[int(str(functions[a](image)), 16) for image in images] for a in algorithms]


def hashes_only(images: Sequence[Image.Image], algorithms: Sequence[Algorithm]) -> list[list[int]]:
    """The same numbers by Winnow's functions."""
    sizes = {"phash": (SIDE, SIDE), "dhash": DHASH_SIZE}
    grids = [lanczos_grids(i.convert("L"), [sizes[a] for a in algorithms]) for i in images]
    found = []
    for k, algorithm in enumerate(algorithms):
        stack = np.stack([g[k] for g in grids])
        is_phash = algorithm == "phash"
        bits = perceptual_hash(low_frequencies(stack)) if is_phash else difference_hash(stack)
        found.append(bits.tolist())
    return found


class Decoded:
    """Media that is decoded already."""

    def __init__(self, images: Sequence[Image.Image]) -> None:
        self._decoded = [_as_decoded(image) for image in images]

    def images(self, column: str = "image") -> object:
        return iter(self._decoded)


def _as_decoded(image: Image.Image) -> object:
    from winnow.contracts.media import DecodedImage

    return DecodedImage(pixels=image, format="PNG")


def stage_columns(batch: pa.RecordBatch, stage: PerceptualHash, media: object) -> list[list[int]]:
    """Run the stage and return its hashes."""
    out = stage.annotate(batch, None, media)  # type: ignore[arg-type]
    return [out.column(a).to_pylist() for a in stage.algorithms]


def ratio(
    theirs: Callable[[], list[list[int]]],
    ours: Callable[[], list[list[int]]],
    clock: Clock,
    rounds: int,
) -> tuple[float, float]:
    """Return the median seconds of both sides; raise where a hash differs."""
    if theirs() != ours():
        msg = "the hashes differ from imagehash's"
        raise SystemExit(msg)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for function, spent in zip((theirs, ours), seconds, strict=True):
            began = clock()
            function()
            spent.append(clock() - began)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def show(label: str, count: int, spent: tuple[float, float]) -> None:
    theirs, ours = spent
    print(
        f"  {label:<44} imagehash {theirs / count * 1e3:7.3f} ms"
        f"   winnow {ours / count * 1e3:7.3f} ms   ratio {theirs / ours:5.2f}"
    )


def from_decoded(size: tuple[int, int], count: int, rounds: int) -> None:
    images = pictures(size, count)
    batch = pa.record_batch({"image": pa.nulls(count, pa.large_binary())})
    for algorithms in (("phash",), ("phash", "dhash")):
        label, stage = "+".join(algorithms), PerceptualHash(algorithms=algorithms)
        spent = ratio(
            lambda a=algorithms: reference(images, a),
            lambda a=algorithms: hashes_only(images, a),
            time.thread_time,
            rounds,
        )
        show(f"{label}, decoded, hash alone", count, spent)
        spent = ratio(
            lambda a=algorithms: reference(images, a),
            lambda s=stage: stage_columns(batch, s, Decoded(images)),
            time.thread_time,
            rounds,
        )
        show(f"{label}, decoded, all columns", count, spent)


def from_bytes(size: tuple[int, int], count: int, rounds: int, threads: int, kind: str) -> None:
    encoded = []
    for image in pictures(size, count):
        out = io.BytesIO()
        image.save(out, kind, **({"quality": 90} if kind == "JPEG" else {}))
        encoded.append(out.getvalue())
    batch = pa.record_batch({"image": pa.array(encoded, pa.large_binary())})
    stage = PerceptualHash(algorithms=("phash", "dhash"))

    def theirs() -> list[list[int]]:
        return reference([Image.open(io.BytesIO(data)) for data in encoded], stage.algorithms)

    def ours() -> list[list[int]]:
        with MediaCache(1 << 28, threads) as cache:
            media = BatchMedia(batch, caps=MediaCaps(), cache=cache, first_row=0)
            return stage_columns(batch, stage, media)

    for name, clock in (("wall", time.perf_counter), ("CPU", time.process_time)):
        label = f"phash+dhash, {kind}, all columns, {name}"
        show(label, count, ratio(theirs, ours, clock, rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=40, help="images per size")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2, help="decoding threads")
    options = parser.parse_args()
    for size in SIZES:
        print(f"{size[0]} x {size[1]}")
        from_decoded(size, options.images, options.rounds)
        for kind in ("JPEG", "PNG"):
            from_bytes(size, options.images, options.rounds, options.threads, kind)


if __name__ == "__main__":
    main()
