"""audio_fingerprint and near_duplicates on speech of which the truth is known.

    OMP_NUM_THREADS=1 python benchmarks/audio_duplicates.py --utterances 2000 --edits 2 --seed 2

Recordings that resemble each other and are no copies: for every base sentence, three that differ
in one word (same voice, pace and pitch) and two other voices that say it at the same pace; single
words; other languages; and some that are no speech (noise, tones, melodies, chords, bursts). Each
is edited in some of the ways of EDITS, drawn at random, and encoded; everything goes through the
two stages as a recipe would run them.

Printed: recall (share of edits that are neighbours of their original) by edit and by kind of
recording; precision (share of listed pairs that come from one recording) with the kinds of the
false ones; and with ``--sweep`` both over a grid of thresholds. The defaults were chosen on another
seed than the default one.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import soxr

from winnow.contracts.media import MediaCaps
from winnow.contracts.stage import GlobalInputs, GlobalOutputs, ShardRef
from winnow.stages._audio_encode import encode_audio
from winnow.stages._media import BatchMedia, MediaCache
from winnow.stages.audio_fingerprint import AudioFingerprint
from winnow.stages.dedupe.near_duplicates import NearDuplicates
from winnow.stages.sources._speech.voice import VARIANTS, synthesise

Sound = tuple[np.ndarray, int]
Edit = Callable[[np.ndarray, int, np.random.Generator], bytes]

PARTS = tuple(
    tuple(text.split("|"))
    for text in (
        "the teacher|my neighbour|a young farmer|the old captain|our doctor|the painter|the mayor",
        "bought the|carried the|painted the|repaired the|found the|lost the|borrowed the|sold the",
        "small|broken|yellow|heavy|wooden|ancient|shiny|cheap|green|quiet",
        "bicycle|window|basket|ladder|piano|lantern|wagon|mirror|bottle|kettle",
        "near the river|in the market|behind the church|at the station|under the bridge",
        "yesterday|on Monday|last winter|before lunch|in April|after the storm|this morning",
    )
)
_WORDS = (
    "cat dog sun moon tree red blue green one two three four five six seven eight nine ten apple "
    "house bird fish milk bread stone water fire hand foot nose door lamp ring ship song"
)
WORDS = tuple(_WORDS.split())
NO_SPEECH = ("noise", "steady tone", "melody", "chords", "bursts")
LANGUAGES = ("de", "es", "it", "nl", "pl", "sv", "pt", "cs", "tr")
RATE = 22_050


def trimmed(left: float, right: float, kind: str = "wav", bit_rate: int | None = None) -> Edit:
    def edit(samples: np.ndarray, rate: int, rng: np.random.Generator) -> bytes:
        start, stop = int(len(samples) * left), len(samples) - int(len(samples) * right)
        return encode_audio(samples[start:stop], rate, kind, bit_rate=bit_rate)

    return edit


def noisy(ratio_db: float) -> Edit:
    def edit(samples: np.ndarray, rate: int, rng: np.random.Generator) -> bytes:
        sigma = np.sqrt((samples**2).mean()) * 10 ** (-ratio_db / 20)
        return encode_audio(samples + rng.normal(0, sigma, len(samples)), rate, "wav")

    return edit


def resampled(wanted: int) -> Edit:
    return lambda samples, rate, rng: encode_audio(
        soxr.resample(samples, rate, wanted), wanted, "wav"
    )


def gained(low_db: float, high_db: float) -> Edit:
    return lambda samples, rate, rng: encode_audio(
        samples * 10 ** (rng.uniform(low_db, high_db) / 20), rate, "wav"
    )


def padded(samples: np.ndarray, rate: int, rng: np.random.Generator) -> bytes:
    left, right = (np.zeros(int(rate * rng.uniform(0, 0.5)), np.float32) for _ in range(2))
    return encode_audio(np.concatenate([left, samples, right]), rate, "flac")


EDITS: dict[str, Edit] = {
    "mp3 128": trimmed(0, 0, "mp3", 128_000),
    "mp3 48": trimmed(0, 0, "mp3", 48_000),
    "opus 32": trimmed(0, 0, "opus", 32_000),
    "opus 16": trimmed(0, 0, "opus", 16_000),
    "aac 64": trimmed(0, 0, "m4a", 64_000),
    "vorbis": trimmed(0, 0, "ogg"),
    "gain -30 to 5 dB": gained(-30, 5),
    "16 kHz": resampled(16_000),
    "8 kHz": resampled(8_000),
    "44.1 kHz": resampled(44_100),
    "noise 30 dB": noisy(30),
    "noise 20 dB": noisy(20),
    "silence around": padded,
    "start cut 5 %": trimmed(0.05, 0),
    "end cut 5 %": trimmed(0, 0.05),
    "both cut 2.5 %": trimmed(0.025, 0.025),
    "both cut 5 %": trimmed(0.05, 0.05),
    "start cut 5 %, mp3 64": trimmed(0.05, 0, "mp3", 64_000),
    "end cut 5 %, mp3 48": trimmed(0, 0.05, "mp3", 48_000),
    "start cut 5 %, opus 24": trimmed(0.05, 0, "opus", 24_000),
    "both cut 5 %, opus 32": trimmed(0.05, 0.05, "opus", 32_000),
}


def utterances(rng: np.random.Generator, count: int) -> Iterator[tuple[str, Sound]]:
    """Yield (kind, sound); no two are made of the same words, voice, speed and pitch."""
    seen: set[tuple[object, ...]] = set()

    def spoken(
        kind: str, words: list[str], language: str, variant: str, pace: tuple[int, int]
    ) -> Iterator[tuple[str, Sound]]:
        key = (*words, language, variant, pace)
        if key not in seen:
            seen.add(key)
            speed, pitch = pace
            sound = synthesise(
                " ".join(words), language=language, variant=variant, speed=speed, pitch=pitch
            )
            yield kind, sound

    for number in range(count // 8):
        words = [str(rng.choice(part)) for part in PARTS]
        voice, *others = map(str, rng.choice(VARIANTS, 3, replace=False))
        pace = int(rng.choice([150, 175, 200])), int(rng.choice([35, 50, 65]))
        yield from spoken("sentence", words, "en-us", voice, pace)
        for _ in range(3):
            at = int(rng.integers(len(PARTS)))
            other = [*words[:at], str(rng.choice(PARTS[at])), *words[at + 1 :]]
            yield from spoken("another word", other, "en-us", voice, pace)
        for name in others:
            yield from spoken("another voice", words, "en-us", name, pace)
        yield from spoken("single word", [str(rng.choice(WORDS))], "en-us", voice, pace)
        yield from spoken("language", words[2:4], str(rng.choice(LANGUAGES)), "", pace)
        if number % 2 == 0:
            yield no_speech(rng, number // 2 % 5)


def no_speech(rng: np.random.Generator, kind: int) -> tuple[str, Sound]:
    time_N = np.arange(int(rng.uniform(0.5, 6) * RATE)) / RATE
    count, tau = len(time_N), 2 * np.pi
    if kind == 0:
        return "noise", (rng.normal(0, 0.1, count).astype(np.float32), RATE)
    if kind == 1:
        tone = np.sin(tau * rng.uniform(100, 3000) * time_N) * 0.3
        return "steady tone", (tone.astype(np.float32), RATE)
    if kind == 2:
        notes = 220 * 2 ** (rng.integers(0, 24, rng.integers(3, 12)) / 12)
        phase = tau * np.cumsum(np.repeat(notes, count // len(notes) + 1)[:count]) / RATE
        melody = sum(np.sin(phase * h) / h for h in range(1, 5)) * 0.2
        return "melody", (np.asarray(melody, np.float32), RATE)
    sound = np.zeros(count)
    if kind == 3:
        for start in range(0, count, RATE // 2):
            fading = np.exp(-3 * time_N[: count - start])
            for pitch in 220 * 2 ** (rng.choice(24, 3, replace=False) / 12):
                sound[start:] += 0.15 * fading * np.sin(tau * pitch * time_N[: count - start])
        return "chords", (sound.astype(np.float32), RATE)
    for start in rng.integers(0, count - 2000, 8):
        sound[start : start + 2000] += rng.normal(0, 0.2, 2000) * np.exp(-np.arange(2000) / 400)
    return "bursts", (sound.astype(np.float32), RATE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Fingerprints, and of each row the recording it is made of, its kind and its edit."""

    table: pa.Table
    recording: np.ndarray
    kind: np.ndarray
    edit: np.ndarray


def make(seed: int, count: int, edits: int) -> Corpus:
    rng = np.random.default_rng(seed)
    stage, names = AudioFingerprint(), list(EDITS)
    batches, recording, kinds, done = [], [], [], []
    stage_s = 0.0
    for number, (kind, (samples, rate)) in enumerate(utterances(rng, count)):
        chosen = [str(name) for name in rng.choice(names, edits, replace=False)]
        files = [encode_audio(samples, rate, "wav")]
        files += [EDITS[name](samples, rate, rng) for name in chosen]
        batch = pa.record_batch({"audio": pa.array(files, pa.large_binary())})
        start = time.process_time()
        with MediaCache(1 << 24, 0) as cache:
            media = BatchMedia(batch, caps=MediaCaps(), cache=cache, first_row=0)
            batches.append(stage.annotate(batch, None, media))
        stage_s += time.process_time() - start
        recording += [number] * len(files)
        kinds += [kind] * len(files)
        done += ["", *chosen]
    table = pa.Table.from_batches(batches)
    uids = [number.to_bytes(16, "big") for number in range(table.num_rows)]
    table = table.add_column(0, "uid", pa.array(uids, pa.binary(16)))
    seconds = np.frombuffer(b"".join(filter(None, table["audio_thumbnail"].to_pylist())), np.uint8)
    loud_s = float(seconds.reshape(-1, 572)[:, :4].copy().view("<f4").sum())
    codes = Counter(filter(None, table["audio_fingerprint_error"].to_pylist()))
    print(
        f"seed {seed}: {number + 1:,} recordings, {table.num_rows:,} files; audio_fingerprint "
        f"{stage_s / table.num_rows * 1000:.1f} CPU-ms a file, decoding included "
        f"({loud_s / stage_s:.0f} s of audio per CPU-s); failures {dict(codes)}",
        flush=True,
    )
    return Corpus(
        table=table, recording=np.array(recording), kind=np.array(kinds), edit=np.array(done)
    )


class _Rows(GlobalInputs):
    def __init__(self, table: pa.Table, scratch: Path) -> None:
        self.scratch, self._table = scratch, table
        self.shards = (ShardRef(id="0", num_rows=table.num_rows),)

    def table(self, shard: ShardRef) -> pa.Table:
        return self._table


class _Lists(GlobalOutputs):
    lists: list[list[bytes] | None]

    def write(self, shard: ShardRef, columns: pa.Table) -> None:
        self.lists = columns["near_duplicate_audio"].to_pylist()


def listed_pairs(corpus: Corpus, stage: NearDuplicates) -> tuple[set[tuple[int, int]], float]:
    """Return the pairs of rows that are neighbours (groups written out), and the CPU seconds."""
    outputs, start = _Lists(), time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        stage.compute(_Rows(corpus.table, Path(scratch)), outputs)
    seconds = time.process_time() - start
    near = [{int.from_bytes(u, "big") for u in names or ()} for names in outputs.lists]
    columns = [corpus.table[c].to_pylist() for c in ("audio_hash", "audio_thumbnail")]
    groups: dict[object, list[int]] = {}
    for row, key in enumerate(zip(*columns, strict=True)):
        groups.setdefault(key if key[0] is not None else row, []).append(row)
    members = {rows[0]: rows for rows in groups.values()}
    pairs: set[tuple[int, int]] = set()
    for row, names in enumerate(near):
        for name in names:
            for other in members.get(name, [name]):
                if other != row:
                    pairs.add((min(row, other), max(row, other)))
    return pairs, seconds


def scores(corpus: Corpus, pairs: set[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return which edits are found, false where the row is no edit, and the false pairs."""
    original = np.flatnonzero(corpus.edit == "")[corpus.recording]
    found = np.array([(min(r, o), max(r, o)) in pairs for r, o in enumerate(original.tolist())]) & (
        corpus.edit != ""
    )
    listed = np.array(sorted(pairs))
    return found, listed[corpus.recording[listed[:, 0]] != corpus.recording[listed[:, 1]]]


def report(corpus: Corpus) -> None:
    pairs, seconds = listed_pairs(corpus, NearDuplicates(hash="audio_hash"))
    found, false = scores(corpus, pairs)
    edited = corpus.edit != ""
    speech = ~np.isin(corpus.kind, NO_SPEECH)
    for name, column in (("edit (speech)", corpus.edit), ("kind", corpus.kind)):
        print(f"recall by {name}:")
        rows = edited & speech if column is corpus.edit else edited
        for value in sorted(set(column[rows].tolist())):
            here = rows & (column == value)
            print(f"  {value:24} {found[here].mean():.3f}  of {here.sum():,}")
    print(
        f"recall {found[edited].mean():.4f}, speech {found[edited & speech].mean():.4f}; "
        f"{len(pairs):,} pairs, {len(false)} false: precision {1 - len(false) / len(pairs):.4f}; "
        f"near_duplicates {seconds:.1f} CPU-s"
    )
    kinds = Counter(tuple(sorted(corpus.kind[pair].tolist())) for pair in false)
    for names, number in kinds.most_common():
        print(f"  false: {number} {' / '.join(names)}")


def sweep(corpus: Corpus) -> None:
    edited = corpus.edit != ""
    for distance in (8, 10, 12):
        for level in (1.4, 1.6, 1.8, 2.0, 2.4):
            for spectrum in (0.4, 0.6, 0.8, 30.0):
                stage = NearDuplicates(
                    hash="audio_hash",
                    distance=distance,
                    thumbnail_distance=level,
                    flat_thumbnail_distance=level / 2,
                    spectrum_distance=spectrum,
                )
                pairs, _ = listed_pairs(corpus, stage)
                found, false = scores(corpus, pairs)
                print(
                    f"distance {distance}, {level} dB, spectrum {spectrum} dB: recall "
                    f"{found[edited].mean():.4f}, precision {1 - len(false) / len(pairs):.4f}",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--utterances", type=int, default=2000)
    parser.add_argument("--edits", type=int, default=2, help="of each recording")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--sweep", action="store_true", help="a grid of thresholds as well")
    args = parser.parse_args()
    corpus = make(args.seed, args.utterances, args.edits)
    report(corpus)
    if args.sweep:
        sweep(corpus)


if __name__ == "__main__":
    main()
