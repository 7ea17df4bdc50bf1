"""Exported WebDataset shards as training data: every picture made small once, every caption kept.

The small pictures lie in one memory-mapped scratch file, so an epoch is any order of all samples
and costs no decoding: the order depends on the seed alone, and a run can start again anywhere.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import shutil
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from winnow.contracts.errors import SetupError
from winnow.contracts.media import MediaCaps
from winnow.stages._media import decode_image

Pixels = npt.NDArray[np.uint8]
IMAGE_MEMBERS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
_CHUNK = 256
_SPARE_BYTES = 1 << 30
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """Training data in the order of the shards.

    pixels: uint8 (N, H, W, 3).  texts: N captions.  digest: 32 hex digits over keys, captions and
    encoded images.  skipped: samples that were left out, by reason.
    """

    pixels: Pixels
    texts: list[str]
    digest: str
    skipped: dict[str, int]


def shard_paths(names: Sequence[str]) -> list[str]:
    """Return the tar files that folders, globs, brace patterns and paths name, in a fixed order.

    A folder with ``sizes.json`` (an export) means the tars that are listed there.
    Fails: SetupError where a name means no file.
    """
    import braceexpand

    found: list[str] = []
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            paths = [str(p) for p in _folder(path)]
        else:
            parts = [str(path)] if path.is_file() else list(braceexpand.braceexpand(str(path)))
            paths = [p for part in parts for p in sorted(glob.glob(part))]  # noqa: PTH207
        if not paths:
            msg = f"there is no shard at {name}; give tar files, a glob, or a folder with tars"
            raise SetupError(msg)
        found += paths
    return list(dict.fromkeys(found))


def _folder(path: Path) -> list[Path]:
    sizes = path / "sizes.json"
    if not sizes.is_file():
        return sorted(path.glob("*.tar"))
    names = sorted(json.loads(sizes.read_text(encoding="utf-8")))
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        msg = f"{sizes} lists {missing[0]}, which is not there; export again"
        raise SetupError(msg)
    return [path / name for name in names]


def load_samples(
    paths: Sequence[str],
    resize: Callable[[Any], Pixels],
    *,
    scratch: Path,
    captions: str = "txt",
    num_threads: int = 2,
) -> Samples:
    """Read all shards into a nameless scratch file in the folder ``scratch``.

    ``resize`` turns a decoded picture into uint8 (H, W, 3) of one size; ``captions`` is the member
    that holds the caption. Samples without a picture, without a caption, or whose picture cannot
    be decoded are left out and counted. No member is ever unpickled.

    Fails: SetupError for a tar that cannot be read, a full disk, or shards without any sample.
    """
    texts: list[str] = []
    skipped: Counter[str] = Counter()
    digest = hashlib.blake2b(digest_size=16)
    shape: tuple[int, ...] = ()

    def small(sample: dict[str, Any]) -> Pixels | str:
        return _small(sample, captions, resize)

    scratch.mkdir(parents=True, exist_ok=True)
    out = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115  (nameless: gone with the process)
    with ThreadPoolExecutor(num_threads, "decode") as pool:
        for chunk in _chunks(_samples(paths)):
            if shutil.disk_usage(scratch).free < _SPARE_BYTES:
                msg = f"less than 1 GB is left at {scratch}; put --out on a larger disk"
                raise SetupError(msg)
            for sample, pixels in zip(chunk, pool.map(small, chunk), strict=True):
                if isinstance(pixels, str):
                    skipped[pixels] += 1
                    continue
                caption = sample[captions]
                for part in (sample["__key__"].encode(), caption, _image(sample)):
                    digest.update(hashlib.blake2b(part, digest_size=16).digest())
                texts.append(caption.decode("utf-8", "replace").strip())
                out.write(pixels.tobytes())
                shape = pixels.shape
    if not texts:
        msg = f"no sample of {len(paths)} shards can be trained on; left out: {dict(skipped)}"
        raise SetupError(msg)
    out.flush()
    pixels = np.memmap(out, np.uint8, "r", shape=(len(texts), *shape))  # type: ignore[call-overload]
    return Samples(pixels=pixels, texts=texts, digest=digest.hexdigest(), skipped=dict(skipped))


def batch_indices(
    num_samples: int, batch_size: int, seed: int, step: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the sample numbers of each batch from ``step`` on, for ever: epochs of shuffled data.

    A batch may hold the end of one epoch and the start of the next.
    """
    orders: dict[int, npt.NDArray[np.int64]] = {}
    while True:
        picked = []
        for index in range(step * batch_size, (step + 1) * batch_size):
            epoch, place = divmod(index, num_samples)
            if epoch not in orders:
                orders = {k: v for k, v in orders.items() if k == epoch - 1}
                orders[epoch] = np.random.default_rng([seed, epoch]).permutation(num_samples)
            picked.append(orders[epoch][place])
        yield np.array(picked)
        step += 1


def _samples(paths: Sequence[str]) -> Iterator[dict[str, Any]]:
    import webdataset

    for path in paths:
        _check_whole(path)
        # No .decode(): every member stays bytes, so no pickle can run.
        dataset = webdataset.WebDataset(path, shardshuffle=False, empty_check=False)
        try:
            yield from dataset
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            msg = f"the shard {path} cannot be read: {error}"
            raise SetupError(msg) from error


def _check_whole(path: str) -> None:
    """A cut tar reads like a shorter one; the two zero blocks at its end tell (POSIX ustar)."""
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 1024))
        if size < 1024 or any(file.read()):
            msg = f"the shard {path} cannot be read: it is no tar, or cut short"
            raise SetupError(msg)


def _chunks(samples: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    iterator = iter(samples)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk


def _image(sample: dict[str, Any]) -> bytes:
    return next((sample[name] for name in IMAGE_MEMBERS if name in sample), b"")


def _small(sample: dict[str, Any], captions: str, resize: Callable[[Any], Pixels]) -> Pixels | str:
    caption = sample.get(captions)
    if not isinstance(caption, bytes) or not caption.strip():
        return "no caption"
    data = _image(sample)
    if not data:
        return "no image"
    decoded = decode_image(data, MediaCaps())
    return decoded if isinstance(decoded, str) else resize(decoded.pixels)
