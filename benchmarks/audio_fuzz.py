"""Fuzz the audio decoder: files of every container, mutated, decoded in child processes.

    python benchmarks/audio_fuzz.py --files 10000 --seed 0

Prints how the files ended (decoded, or which code), crashes and hangs by number, the slowest file
and the one that took most memory. The exit status is 1 if any file crashed a child, made it hang
or raised. File i of a seed is the same wherever FFmpeg is; ``--write I PATH`` saves it.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import resource
import selectors
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from winnow.contracts.media import MediaCaps
from winnow.stages._audio import ENCODED_FORMATS, decode_audio, encode_audio

CAPS = MediaCaps(max_duration_s=600.0)
ADDRESS_SPACE_BYTES = 8 << 30
STARTUP_S = 120.0

_ODD = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


@functools.cache
def corpus() -> tuple[bytes, ...]:
    """Return real files: each container with one and two channels, covers, video, odd codecs."""
    found = []
    for kind in ENCODED_FORMATS:
        for rate, channels, seconds in ((16_000, 1, 0.7), (44_100, 2, 0.4)):
            found.append(encode_audio(_sound(seconds, rate, channels), rate, kind))
    found.append(encode_audio(_sound(0.2, 48_000, 6), 48_000, "flac"))
    for muxer, codec, options in (
        ("wav", "adpcm_ms", {}),
        ("wav", "adpcm_ima_wav", {}),
        ("wav", "pcm_mulaw", {}),
        ("wav", "pcm_s24le", {}),
        ("ipod", "alac", {}),
        ("mp4", "aac", {"movflags": "frag_keyframe+empty_moov"}),
        ("matroska", "flac", {}),
        ("matroska", "aac", {}),
        ("ogg", "flac", {}),
        ("aiff", "pcm_s24be", {}),
    ):
        found.append(_muxed(muxer, codec, options))
    found.append(_muxed("mp4", "aac", {}, pictures=True))
    frames = np.random.default_rng(0).integers(0, 256, (40, 32), np.uint8)
    frames[:, 0] = 0x3C  # AMR, 12.2 kbit/s
    return (*found, b"#!AMR\n" + frames.tobytes())


def _sound(seconds: float, rate: int, channels: int) -> np.ndarray:
    rng, t = np.random.default_rng(0), np.arange(round(seconds * rate)) / rate
    tone = 0.4 * np.sin(2 * np.pi * (200 + 300 * t) * t)
    return (tone + 0.02 * rng.standard_normal((channels, len(t)))).astype(np.float32)


def _muxed(muxer: str, codec: str, options: dict[str, str], *, pictures: bool = False) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format=muxer, options={"fflags": "+bitexact", **options}) as container:
        video = container.add_stream("mpeg4", rate=10) if pictures else None
        stream = container.add_stream(codec, rate=16_000, layout="mono")
        if video is not None:
            video.width = video.height = 32
            video.pix_fmt = "yuv420p"
            picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
            picture.pts, picture.time_base = 0, Fraction(1, 10)
            container.mux([*video.encode(picture), *video.encode(None)])
        frame = av.AudioFrame.from_ndarray(_sound(0.6, 16_000, 1), "fltp", "mono")
        frame.sample_rate, frame.pts = 16_000, 0
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return out.getvalue()


def mutated(seed: int, index: int) -> bytes:
    """Return file ``index``: one of the corpus, hurt once to six times."""
    rng = np.random.default_rng([seed, index])
    files = corpus()
    data = bytearray(files[index % len(files)])
    for _ in range(int(rng.choice([1, 1, 1, 2, 3, 6]))):
        _hurt(rng, data, files)
    return bytes(data)


def _hurt(rng: np.random.Generator, data: bytearray, files: tuple[bytes, ...]) -> None:
    if not data:
        return
    # Headers are small, and where the demuxers are: half of the damage goes there.
    reach = len(data) if rng.random() < 0.5 else min(len(data), 400)
    at, size = int(rng.integers(reach)), int(rng.integers(1, 200))
    kind = rng.integers(9)
    if kind == 0:
        for position in rng.integers(0, reach, int(rng.integers(1, 30))):
            data[position] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del data[int(rng.integers(len(data))) :]
    elif kind == 2:
        data[at:at] = data[at : at + size * int(rng.integers(1, 20))]
    elif kind == 3:
        data[at:at] = rng.bytes(size)
    elif kind == 4:
        del data[at : at + size]
    elif kind == 5:
        data[at : at + size] = rng.bytes(size)
    elif kind == 6:
        number, width = int(rng.choice(_ODD)), int(rng.choice([1, 2, 4, 8]))
        order = "big" if rng.random() < 0.5 else "little"
        data[at : at + width] = (number & ((1 << 8 * width) - 1)).to_bytes(width, order)
    elif kind == 7:
        other = files[int(rng.integers(len(files)))]
        data[at:] = other[int(rng.integers(len(other))) :]
    else:
        data[at : at + size] = bytes(size)


@dataclass(kw_only=True)
class Report:
    """What became of the files."""

    outcomes: Counter[str] = field(default_factory=Counter)
    crashes: list[tuple[int, int]] = field(default_factory=list)
    hangs: list[int] = field(default_factory=list)
    raised: list[tuple[int, str]] = field(default_factory=list)
    slowest_s: float = 0.0
    slowest_file: int = -1
    most_memory_mb: float = 0.0
    most_memory_file: int = -1
    seconds: float = 0.0

    def add(self, line: dict) -> None:
        """Count a file that came back."""
        self.outcomes[line["outcome"]] += 1
        if line["outcome"] == "raised":
            self.raised.append((line["index"], line["error"]))
        if line["seconds"] > self.slowest_s:
            self.slowest_s, self.slowest_file = line["seconds"], line["index"]
        if line["memory_mb"] > self.most_memory_mb:
            self.most_memory_mb, self.most_memory_file = line["memory_mb"], line["index"]


def fuzz(num_files: int, seed: int, *, hang_s: float = 20.0) -> Report:
    """Decode all files in children; a child that dies or hangs is replaced behind that file."""
    report, next_file, started = Report(), 0, time.perf_counter()
    while next_file < num_files:
        next_file = _one_child(report, next_file, num_files, seed, hang_s)
    report.seconds = time.perf_counter() - started
    return report


def _one_child(report: Report, start: int, stop: int, seed: int, hang_s: float) -> int:
    """Run one child as far as it gets; return the file to go on with."""
    command = [sys.executable, __file__, "--child", str(start), str(stop), "--seed", str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        current, heard = start, False
        for text in _lines(child, STARTUP_S, hang_s):
            heard = True
            if text is None:
                child.kill()
                report.hangs.append(current)
                return current + 1
            line = json.loads(text)
            current = line["index"]
            if "outcome" in line:
                report.add(line)
                current += 1
        if not heard:
            msg = "a child ended before its first file"
            raise RuntimeError(msg)
        if child.wait() != 0:
            report.crashes.append((current, child.returncode))
            return current + 1
    return stop


def _lines(child: subprocess.Popen[str], first_s: float, then_s: float) -> Iterator[str | None]:
    """Yield the child's lines; None where it says nothing for too long."""
    assert child.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        wait_s, rest = first_s, ""
        while True:
            if not selector.select(wait_s):
                yield None
                return
            # read1, as a buffered line would hide from select.
            piece = child.stdout.buffer.read1(65_536).decode()  # type: ignore[attr-defined]
            if not piece:
                return
            *lines, rest = (rest + piece).split("\n")
            yield from lines
            wait_s = then_s


def run_child(start: int, stop: int, seed: int) -> None:
    """Decode the files and say so, before and after each."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    corpus()
    for index in range(start, stop):
        data = mutated(seed, index)
        print(json.dumps({"index": index}), flush=True)
        before_mb, began = _reset_peak_mb(), time.perf_counter()
        line: dict[str, object] = {"index": index}
        try:
            decoded = decode_audio(data, CAPS)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is a finding
            line |= {"outcome": "raised", "error": repr(error)[:200]}
        else:
            whole = "decoded, damaged" if getattr(decoded, "truncated", False) else "decoded"
            line |= {"outcome": decoded if isinstance(decoded, str) else whole}
        line |= {"seconds": time.perf_counter() - began, "memory_mb": _peak_mb() - before_mb}
        print(json.dumps(line), flush=True)


def _reset_peak_mb() -> float:
    """Make the peak begin again (Linux); return the memory in use."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak_mb()


def _peak_mb() -> float:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hang-s", type=float, default=20.0)
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=2, metavar=("I", "PATH"), help="save file I and stop")
    options = parser.parse_args()
    if options.child:
        run_child(*options.child, options.seed)
        return 0
    if options.write:
        Path(options.write[1]).write_bytes(mutated(options.seed, int(options.write[0])))
        return 0
    report = fuzz(options.files, options.seed, hang_s=options.hang_s)
    print(json.dumps(vars(report), indent=2))
    return 1 if report.crashes or report.hangs or report.raised else 0


if __name__ == "__main__":
    sys.exit(main())
