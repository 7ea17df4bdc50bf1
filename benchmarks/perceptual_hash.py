"""perceptual_hash against imagehash, on the same images, in one run.

    OMP_NUM_THREADS=1 python benchmarks/perceptual_hash.py

Pictures with sides drawn at random from three ranges, a fifth of their JPEGs progressive. All times
are CPU time of one thread, decoding included where it says "from bytes": the median over rounds
that alternate between the two sides. The peer is ``imagehash.phash(PIL.Image.open(bytes))``, and
dhash likewise; the stage writes thumbnail and image_detail as well.

* the hash alone, and all that the stage writes, from decoded images;
* the stage from JPEG (at reduced size, the default, and in full) and from PNG, and the share of a
  PNG's decoding that is zlib's alone;
* whole passes: image_info and perceptual_hash, alone and beside a stage that reads every image at
  full size (clip_score, resize), with and without a reduced decode of its own for the hash.

Every hash of a lossless file or full decode is compared with imagehash's; a difference ends the
run. ``--new-sizes`` forgets, before each round, the weights that are kept per size: the other
extreme, where no size comes twice.
"""

from __future__ import annotations

import argparse
import io
import statistics
import struct
import time
import zlib
from collections.abc import Callable, Sequence

import imagehash
import numpy as np
import pyarrow as pa
from PIL import Image

from winnow.contracts.media import DecodedImage, MediaCaps
from winnow.stages import _lanczos
from winnow.stages import perceptual_hash as stage_module
from winnow.stages._media import BatchMedia, MediaCache
from winnow.stages.image_info import ImageInfo
from winnow.stages.perceptual_hash import (
    DHASH_SIZE,
    SIDE,
    Algorithm,
    PerceptualHash,
    difference_hash,
    low_frequencies,
    perceptual_hash,
)

RANGES = ((256, 512), (512, 1024), (1024, 2048))
PHASH, BOTH = ("phash",), ("phash", "dhash")
Hashes = list[list[int]]


def pictures(low: int, high: int, count: int) -> list[Image.Image]:
    """Pictures with structure at all scales and some grain, as photographs have."""
    rng = np.random.default_rng(0)
    return [picture(rng, *map(int, rng.integers(low, high, 2))) for _ in range(count)]


def picture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    total = rng.normal(0, 3, (height, width, 1)).repeat(3, axis=2)
    for scale in (4, 16, 64):
        cells = rng.integers(0, 256, (height // scale + 2, width // scale + 2, 3), np.uint8)
        layer = Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(layer, np.float64) * scale / 84
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def encoded(images: Sequence[Image.Image], kind: str) -> list[bytes]:
    found = []
    for i, image in enumerate(images):
        out = io.BytesIO()
        options = {"quality": 85, "progressive": i % 5 == 0} if kind == "JPEG" else {}
        image.save(out, kind, **options)
        found.append(out.getvalue())
    return found


def reference(images: Sequence[Image.Image], algorithms: Sequence[Algorithm]) -> Hashes:
    """imagehash, one image and algorithm at a time."""
    functions = {"phash": imagehash.phash, "dhash": imagehash.dhash}
    return [[int(str(functions[a](image)), 16) for image in images] for a in algorithms]


def hashes_only(images: Sequence[Image.Image], algorithms: Sequence[Algorithm]) -> Hashes:
    """The same numbers by Winnow's functions."""
    sizes = {"phash": (SIDE, SIDE), "dhash": DHASH_SIZE}
    grids = [_lanczos.lanczos_grids(i.convert("L"), [sizes[a] for a in algorithms]) for i in images]
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
        self._decoded = [DecodedImage(pixels=image, format="PNG") for image in images]

    def images(self, column: str = "image", *, min_side: int | None = None) -> object:
        return iter(self._decoded)


def stage_columns(batch: pa.RecordBatch, stage: PerceptualHash, media: object) -> Hashes:
    """Run the stage and return its hashes."""
    out = stage.annotate(batch, None, media)  # type: ignore[arg-type]
    return [out.column(a).to_pylist() for a in stage.algorithms]


class Bench:
    """Alternating rounds over the same images."""

    def __init__(self, rounds: int, count: int, new_sizes: bool) -> None:
        self.rounds, self.count, self.new_sizes = rounds, count, new_sizes

    def seconds(self, *sides: Callable[[], object]) -> list[float]:
        """Return the median CPU seconds of each side."""
        spent: list[list[float]] = [[] for _ in sides]
        for _ in range(self.rounds):
            for function, seconds in zip(sides, spent, strict=True):
                if self.new_sizes:
                    forget_sizes()
                began = time.thread_time()
                function()
                seconds.append(time.thread_time() - began)
        return [statistics.median(s) for s in spent]

    def show(self, label: str, theirs: Callable[[], Hashes], ours: Callable[[], Hashes]) -> None:
        """Print both times and how far the hashes are apart."""
        pairs = zip(sum(theirs(), []), sum(ours(), []), strict=True)
        bits = statistics.mean((a ^ b).bit_count() for a, b in pairs)
        if bits and "reduced" not in label:
            msg = f"{label}: the hashes differ from imagehash's"
            raise SystemExit(msg)
        first, second = (s / self.count * 1e3 for s in self.seconds(theirs, ours))
        print(
            f"  {label:<46} imagehash {first:7.3f} ms   winnow {second:7.3f} ms"
            f"   ratio {first / second:5.2f}" + (f"   {bits:.2f} bits apart" if bits else "")
        )


def forget_sizes() -> None:
    for cached in (
        _lanczos.integer_weights,
        _lanczos._weights,
        _lanczos._column_weights,
        stage_module._cell_shares,
    ):
        cached.cache_clear()


def from_decoded(bench: Bench, images: Sequence[Image.Image]) -> None:
    batch = pa.record_batch({"image": pa.nulls(len(images), pa.large_binary())})
    for algorithms in (PHASH, BOTH):
        label, stage = " + ".join(algorithms), PerceptualHash(algorithms=algorithms)

        def theirs(a: Sequence[Algorithm] = algorithms) -> Hashes:
            return reference(images, a)

        bench.show(
            f"{label}, decoded, hash alone", theirs, lambda a=algorithms: hashes_only(images, a)
        )
        bench.show(
            f"{label}, decoded, all columns",
            theirs,
            lambda s=stage: stage_columns(batch, s, Decoded(images)),
        )


def from_bytes(bench: Bench, data: Sequence[bytes], kind: str) -> None:
    batch = pa.record_batch({"image": pa.array(data, pa.large_binary())})
    for algorithms in (PHASH, BOTH):
        for decode in ("reduced", "full") if kind == "JPEG" else ("full",):
            stage = PerceptualHash(algorithms=algorithms, jpeg_decode=decode)

            def theirs(a: Sequence[Algorithm] = algorithms) -> Hashes:
                return reference([Image.open(io.BytesIO(d)) for d in data], a)

            def ours(s: PerceptualHash = stage) -> Hashes:
                with MediaCache(1 << 30, 0) as cache:
                    media = BatchMedia(batch, caps=MediaCaps(), cache=cache, first_row=0)
                    return stage_columns(batch, s, media)

            how = f"{kind} ({decode})" if kind == "JPEG" else kind
            bench.show(f"{' + '.join(algorithms)} from bytes, {how}", theirs, ours)


def inflate(bench: Bench, data: Sequence[bytes]) -> None:
    """What no decoder of PNG can do without: zlib's share of a whole decode."""
    packed = [png_stream(d) for d in data]
    alone, whole = bench.seconds(
        lambda: [zlib.decompress(p) for p in packed],
        lambda: [Image.open(io.BytesIO(d)).load() for d in data],
    )
    print(
        f"  PNG: zlib.decompress {alone / bench.count * 1e3:7.3f} ms"
        f"   Pillow, decoded {whole / bench.count * 1e3:7.3f} ms   share {alone / whole:5.2f}"
    )


def png_stream(data: bytes) -> bytes:
    """Return the joined IDAT chunks of a PNG file."""
    found, place = [], 8
    while place < len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"IDAT":
            found.append(data[place + 8 : place + 8 + length])
        place += 12 + length
    return b"".join(found)


def passes(bench: Bench, data: Sequence[bytes]) -> None:
    """Winnow against itself: what a reduced decode costs where a full one is made anyway."""
    batch = pa.record_batch({"image": pa.array(data, pa.large_binary())})

    def run(decode: str, full_size: bool) -> None:
        stage = PerceptualHash(jpeg_decode=decode)  # type: ignore[arg-type]
        with MediaCache(1 << 30, 0, full_size=full_size or decode == "full") as cache:
            media = BatchMedia(batch, caps=MediaCaps(), cache=cache, first_row=0)
            ImageInfo().annotate(batch, None, media)
            stage.annotate(batch, None, media)
            if full_size:
                for _ in media.images():
                    pass

    for label, full_size in (("alone", False), ("beside a full-size reader", True)):
        full, reduced = bench.seconds(
            lambda f=full_size: run("full", f), lambda f=full_size: run("reduced", f)
        )
        print(
            f"  image_info + phash, JPEG, {label:<25} full {full / bench.count * 1e3:7.3f} ms"
            f"   reduced {reduced / bench.count * 1e3:7.3f} ms   ratio {full / reduced:5.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=40, help="images per range of sizes")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--new-sizes", action="store_true", help="no size comes twice")
    options = parser.parse_args()
    for low, high in RANGES:
        images = pictures(low, high, options.images)
        jpegs = encoded(images, "JPEG")
        num_pixels = sum(image.width * image.height for image in images)
        bits = 8 * sum(map(len, jpegs)) / num_pixels
        print(f"sides of {low} to {high} pixels; JPEG of {bits:.1f} bits per pixel")
        bench = Bench(options.rounds, options.images, options.new_sizes)
        from_decoded(bench, images)
        from_bytes(bench, jpegs, "JPEG")
        passes(bench, jpegs)
        if high <= 1024:  # beyond, nothing but zlib is measured
            pngs = encoded(images, "PNG")
            from_bytes(bench, pngs, "PNG")
            inflate(bench, pngs)


if __name__ == "__main__":
    main()
