"""Exported WebDataset shards as training data: every picture made small once, every caption kept.

The small pictures lie in one memory-mapped scratch file, so an epoch is any order of all samples
and costs no decoding: the order depends on the seed alone, and a run can start again anywhere.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import numpy.typing as npt

from winnow.contracts.errors import SetupError, ShardError
from winnow.contracts.identity import content_digest
from winnow.contracts.paths import user_path
from winnow.stages.sources._files import is_local, printable
from winnow.stages.train._members import (
    IMAGE_MEMBERS,
    Pixels,
    decoded_picture,
    image_member,
    text_member,
)
from winnow.stages.train._scratch import check_room, mapped, scratch_file
from winnow.stages.train._shard_reader import KEY, Sample, read_shard, remote_shards

T = TypeVar("T")
_CHUNK = 256
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """Training data in the order of the shards.

    pixels: uint8 (N, H, W, 3).  texts: N captions.  digest: 32 hex digits over keys, captions,
    encoded images and the columns that were asked for.  skipped: samples that were left out, by
    reason.  keys: N keys of the samples.  columns: name -> N values of the .json members as JSON
    has them; None where a sample has no such value or no .json that can be read.
    """

    pixels: Pixels
    texts: list[str]
    digest: str
    skipped: dict[str, int]
    keys: list[str] = field(default_factory=list)
    columns: Mapping[str, list[Any]] = field(default_factory=dict)


def shard_paths(names: Sequence[str]) -> list[str]:
    """Return the tars that folders, globs, brace patterns, paths and URLs name, in a fixed order.

    A folder with ``sizes.json`` (an export) means the tars that are listed there.
    Fails: SetupError where a name means no file.
    """
    import braceexpand

    found: list[str] = []
    for name in names:
        path = user_path(name)
        if not is_local(name):
            paths = [p for part in braceexpand.braceexpand(name) for p in remote_shards(part)]
        elif path.is_dir():
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
    columns: Sequence[str] = (),
    num_threads: int = 2,
) -> Samples:
    """Read all shards into a nameless scratch file in the folder ``scratch``.

    ``resize`` turns a decoded picture into uint8 (H, W, 3) of one size; ``captions`` is the member
    that holds the caption; ``columns`` are read from the .json members. Samples without a picture,
    without a caption, or whose picture cannot be decoded are left out and counted. No member is
    ever unpickled. Where several runs read the same shards, see ``_sample_cache.cached_samples``.

    Fails: SetupError for a tar that cannot be read, a full disk, or shards without any sample.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    out = scratch_file(scratch)
    reading = Reading(captions=captions, columns=tuple(columns), num_threads=num_threads)
    read = reading.into(out, scratch, paths, resize)
    return read.with_pixels(mapped(out, np.uint8, read.shape))


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplesRead:
    """Samples whose pixels lie in a file: what ``Samples`` holds, and the shape of the pixels."""

    shape: tuple[int, ...]
    texts: list[str]
    digest: str
    skipped: dict[str, int]
    keys: list[str]
    columns: dict[str, list[Any]]

    def with_pixels(self, pixels: Pixels) -> Samples:
        """Return the samples with their pixels."""
        return Samples(
            pixels=pixels,
            texts=self.texts,
            digest=self.digest,
            skipped=self.skipped,
            keys=self.keys,
            columns=self.columns,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What is read of each sample, and with how many decoding threads; see ``load_samples``."""

    captions: str = "txt"
    columns: tuple[str, ...] = ()
    num_threads: int = 2

    def wanted(self, extension: str) -> bool:
        """Whether a member with this extension is needed."""
        needed = extension == self.captions or (extension == "json" and bool(self.columns))
        return needed or extension in IMAGE_MEMBERS

    def into(
        self,
        out: IO[bytes],
        folder: Path,
        paths: Sequence[str],
        resize: Callable[[Any], Pixels],
    ) -> SamplesRead:
        """Append the pixels of all samples to ``out``, a file in ``folder``."""
        texts: list[str] = []
        keys: list[str] = []
        columns: dict[str, list[Any]] = {name: [] for name in self.columns}
        skipped: Counter[str] = Counter()
        digest = hashlib.blake2b(digest_size=16)
        shape: tuple[int, ...] = ()

        def small(sample: Sample) -> Pixels | str:
            return small_picture(sample, self.captions, resize)

        stream = decoded_samples(
            paths,
            self.wanted,
            small,
            num_threads=self.num_threads,
            scratch=folder,
            together=_CHUNK,
        )
        for sample, pixels in stream:
            if isinstance(pixels, str):
                skipped[pixels] += 1
                continue
            values = json_values(sample, self.columns)
            parts = [sample[KEY].encode("utf-8", "surrogateescape"), sample[self.captions]]
            parts += [image_member(sample)]
            parts += [json.dumps(v, sort_keys=True).encode() for v in values]
            for part in parts:
                digest.update(content_digest(part))
            keys.append(printable(sample[KEY]))
            texts.append(text_member(sample, self.captions))
            for name, value in zip(self.columns, values, strict=True):
                columns[name].append(value)
            out.write(pixels.tobytes())
            shape = pixels.shape
        if not texts:
            msg = f"no sample of {len(paths)} shards can be trained on; left out: {dict(skipped)}"
            raise SetupError(msg)
        out.flush()
        return SamplesRead(
            shape=(len(texts), *shape),
            texts=texts,
            digest=digest.hexdigest(),
            skipped=dict(skipped),
            keys=keys,
            columns=columns,
        )


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


def read_samples(paths: Sequence[str], wanted: Callable[[str], bool]) -> Iterator[Sample]:
    """Yield the samples of all shards in order, with the members whose extension is wanted.

    Fails: SetupError for a shard that cannot be read.
    """
    for path in paths:
        try:
            yield from read_shard(path, wanted)
        except ShardError as error:
            msg = f"the shard {path} cannot be read: {error}"
            raise SetupError(msg) from error


def decoded_samples(
    paths: Sequence[str],
    wanted: Callable[[str], bool],
    decode: Callable[[Sample], T],
    *,
    num_threads: int,
    scratch: Path | None = None,
    together: int = 64,
) -> Iterator[tuple[Sample, T]]:
    """Yield what ``read_samples`` does, each sample with what ``decode`` makes of it.

    Threads decode ``together`` samples at a time. scratch: a folder that has to have room before
    each of these times. Fails: as read_samples; SetupError for a full disk.
    """
    stream = read_samples(paths, wanted)
    with ThreadPoolExecutor(num_threads, "decode") as pool:
        while chunk := list(islice(stream, together)):
            if scratch is not None:
                check_room(scratch)
            yield from zip(chunk, pool.map(decode, chunk), strict=True)


def json_values(sample: Mapping[str, Any], columns: Sequence[str]) -> list[Any]:
    """Return values of a sample's .json member; None where there is none that can be read."""
    if not columns:
        return []
    try:
        document = json.loads(sample.get("json", b"null"))
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        return [None] * len(columns)
    return [document.get(name) for name in columns]


def small_picture(
    sample: Mapping[str, Any], captions: str, resize: Callable[[Any], Pixels]
) -> Pixels | str:
    """Return the resized picture of a sample, or why the sample cannot be used."""
    caption = sample.get(captions)
    if not isinstance(caption, bytes) or not caption.strip():
        return "no caption"
    return decoded_picture(image_member(sample), resize)
