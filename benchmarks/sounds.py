"""Real recordings and pictures from Debian packages as tables that recipes read.

    python benchmarks/sounds.py build --out data/sounds                  # needs apt-get
    python benchmarks/sounds.py build --out data/sounds-demo --synthesised   # needs no package
    python benchmarks/sounds.py score --workspace runs/sounds

audio.parquet: recordings with texts, for recipes/audio-text.yaml; triplets.parquet: recordings with
pictures and texts, for recipes/triplets.yaml. Letters, words, animals, instruments and samples are
as people recorded them; gcompris' pictured words and whole sentences are spoken by espeak-ng. A
known share is damaged, and says so in ``truth_kind`` (docs/audio.md).
"""

from __future__ import annotations

import argparse
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import sounds_packages as packages
from debian_packages import unpacked
from sounds_packages import Found

from winnow.contracts.media import MediaCaps
from winnow.stages._audio import decode_audio, encode_audio
from winnow.stages.sources._speech import damage
from winnow.stages.sources._speech.sentences import sentence
from winnow.stages.sources._speech.voice import VARIANTS, synthesise

SCHEMA = pa.schema(
    {
        "audio": pa.string(),
        "image": pa.string(),
        "text": pa.string(),
        "spoken_language": pa.string(),
        "said": pa.string(),
        "origin": pa.string(),
        "truth_kind": pa.string(),
        "truth_snr_db": pa.float32(),
    }
)
"""audio, image: relative paths. spoken_language: ISO 639 code, null for sounds that are no speech.
said: what is spoken, where it is known. truth_kind: "recorded", "spoken" (by espeak-ng), "noisy",
"clipped", "silent", "copy" (encoded again) or "wrong_text"; truth_snr_db of the noisy ones."""

VOICES = {
    "cs": "cs", "de": "de", "el": "el", "en": "en-us", "es": "es", "fi": "fi", "fr": "fr-fr",
    "hu": "hu", "it": "it", "nl": "nl", "pl": "pl", "pt": "pt", "ro": "ro", "ru": "ru", "sv": "sv",
    "tr": "tr",
}  # fmt: skip
"""Languages that the pictured words are spoken in -> espeak-ng's voice."""
SNRS_DB = (0.0, 5.0, 10.0, 20.0)
NUM_SENTENCES = 400
DAMAGED_SHARE = 0.2
_KINDS = ("noisy", "clipped", "silent", "copy")


class Table:
    """Media files in a folder and the rows that name them."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.rows: list[dict[str, Any]] = []

    def put(self, path: str, data: bytes) -> str:
        """Write a file; return its relative path."""
        target = self.out / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.is_file():
            target.write_bytes(data)
        return path

    def add(self, found: Found, kind: str, **more: Any) -> None:
        """Write the files of a recording, and its row."""
        self.rows.append(
            {
                "audio": None if found.audio is None else self.put(*found.audio),
                "image": None if found.image is None else self.put(*found.image),
                "text": found.text,
                "spoken_language": found.language,
                "said": found.said,
                "origin": found.origin,
                "truth_kind": kind,
                **more,
            }
        )

    def write(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """Write a table; it is there when it is whole."""
        part = self.out / f"{name}.part"
        pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), part)
        part.replace(self.out / name)


def recordings(tree: Path) -> Iterator[Found]:
    """Yield all that people recorded."""
    yield from packages.letters(tree)
    yield from packages.words(tree)
    yield from packages.samples(tree)
    yield from packages.animals(tree)
    yield from packages.instruments(tree)


def spoken_words(tree: Path, rng: random.Random) -> Iterator[Found]:
    """Yield the pictured words, spoken in the languages that there are voices for."""
    for language, word in packages.pictured_words(tree):
        if language in VOICES and word.said is not None:
            data = speak(word.said, VOICES[language], rng)
            name = f"spoken/{language}/{word.text.replace(' ', '_')}.flac"
            yield Found(
                origin=word.origin,
                text=word.text,
                audio=(name, data),
                image=word.image,
                language=language,
                said=word.said,
            )


def sentences(rng: random.Random, count: int) -> Iterator[Found]:
    """Yield English sentences of 3 s and more."""
    for index in range(count):
        text = sentence("sounds", index)
        yield Found(
            origin="sentences",
            text=text,
            audio=(f"sentences/{index:04d}.flac", speak(text, "en-us", rng)),
            language="en",
            said=text,
        )


def speak(text: str, language: str, rng: random.Random) -> bytes:
    """Return a FLAC of the text, in one of the plain voices."""
    samples, rate = synthesise(
        text, language=language, variant=rng.choice(VARIANTS), speed=rng.randint(140, 190)
    )
    return encode_audio(samples, rate, "flac")


def damaged(found: Found, kind: str, rng: random.Random) -> tuple[Found, float | None] | None:
    """Return a damaged copy of a recording and its SNR; None where it cannot be decoded."""
    assert found.audio is not None
    path, data = found.audio
    audio = decode_audio(data, MediaCaps())
    if isinstance(audio, str):
        return None
    samples = audio.samples.mean(axis=0)
    seed, snr_db, extension = rng.randrange(1 << 30), None, "flac"
    if kind == "noisy":
        snr_db = rng.choice(SNRS_DB)
        samples = damage.add_noise(samples, audio.sample_rate, snr_db, seed)
    elif kind == "clipped":
        samples = damage.clip(samples, 0.05)
    elif kind == "silent":
        samples = np.zeros_like(samples)
    else:
        extension = rng.choice(["mp3", "opus"])
        samples = samples * 0.7
    encoded = encode_audio(samples.astype(np.float32), audio.sample_rate, extension)
    return (
        Found(
            origin=found.origin,
            text=found.text,
            audio=(f"damaged/{kind}/{path.rpartition('.')[0]}.{extension}", encoded),
            language=found.language,
            said=found.said,
        ),
        snr_db,
    )


def build(tree: Path | None, out: Path, num_sentences: int, seed: int = 0) -> Counter[str]:
    """Write the media, audio.parquet and triplets.parquet; return rows by kind.

    tree: where the packages are unpacked; None: sentences alone.
    """
    rng, table = random.Random(seed), Table(out)
    originals = [] if tree is None else list(recordings(tree))
    for found in originals:
        table.add(found, "recorded")
    said = list(sentences(rng, num_sentences))
    for found in said:
        table.add(found, "spoken")
    for index, found in enumerate(said[: len(said) // 5]):
        other = said[(index + 1) % len(said)]
        wrong = Found(
            origin=found.origin, text=other.text, language="en", said=found.said,
            audio=(f"wrong/{index:04d}.flac", speak(found.text, "en-us", rng)),
        )  # fmt: skip
        table.add(wrong, "wrong_text")
    pool = [*originals, *said]
    for found in rng.sample(pool, round(DAMAGED_SHARE * len(pool))):
        kind = rng.choice(_KINDS)
        copy = damaged(found, kind, rng)
        if copy is not None:
            table.add(copy[0], kind, truth_snr_db=copy[1])
    audio_rows = list(table.rows)
    if tree is not None:
        for found in spoken_words(tree, rng):
            table.add(found, "spoken")
    triplets = [row for row in table.rows if row["image"] is not None]
    table.write("audio.parquet", audio_rows)
    if triplets:
        table.write("triplets.parquet", triplets)
    counts = Counter(f"{row['origin']}, {row['truth_kind']}" for row in audio_rows)
    counts["triplets"] = len(triplets)
    return counts


CATCHES = {
    "max_silence_ratio": ("silent",),
    "max_clipping_ratio": ("clipped",),
    "speech_is_clear": ("noisy",),
    "max_word_error_rate": ("wrong_text",),
    "drop_near_duplicates": ("copy",),
}
"""Filters of recipes/audio-text.yaml -> the kinds of rows that they are meant to drop."""


def _ledger(root: Path, latest: Path) -> Iterator[dict[str, Any]]:
    """Yield of each row: uid, kind, stem (of the undamaged file), digest, end, copied."""
    columns = ["uid", "truth_kind", "truth_snr_db", "audio_path", "audio_ref"]
    for file in sorted(latest.glob("*.parquet")):
        rows = pq.read_table(root / "rows" / file.name, columns=columns).to_pylist()
        ends = pq.read_table(file, columns=["filter", "duplicate_of"]).to_pylist()
        for row, end in zip(rows, ends, strict=True):
            kind, snr_db = row["truth_kind"], row["truth_snr_db"]
            path = re.sub("^damaged/[a-z]+/", "", row["audio_path"])
            yield {
                "uid": row["uid"],
                "kind": "little noise" if kind == "noisy" and snr_db > 10 else kind,
                "stem": path.rpartition(".")[0],
                "digest": row["audio_ref"]["digest"],
                "end": end["filter"] or "kept",
                "copied": end["duplicate_of"],
            }


def score(workspace: str) -> None:
    """Print for each kind of row what dropped it, and for each filter precision and recall."""
    root = Path(workspace)
    latest = max((root / "ledger").iterdir(), key=lambda folder: folder.stat().st_mtime)
    found = {row["uid"].bytes: row for row in _ledger(root, latest)}
    kept = {row["stem"] for row in found.values() if row["end"] == "kept" and row["kind"] != "copy"}
    pairs: Counter[tuple[str, str]] = Counter()
    for row in found.values():
        kind, end = row["kind"], row["end"]
        other = found.get(getattr(row["copied"], "bytes", row["copied"]))
        if other is not None:
            same = row["stem"] == other["stem"] or row["digest"] == other["digest"]
            kind = "copy" if same else kind  # who of a pair goes is as right as the other way round
        elif kind == "copy" and end == "kept" and row["stem"] not in kept:
            end = "kept alone"  # the original was dropped before
        pairs[kind, end] += 1
    for kind in sorted({kind for kind, _ in pairs}):
        ends = {name: count for (k, name), count in pairs.items() if k == kind}
        told = ", ".join(f"{name} {count}" for name, count in sorted(ends.items()))
        print(f"{kind:12} {sum(ends.values()):6,}  {told}")
    for name, kinds_meant in CATCHES.items():
        dropped = sum(count for (_, n), count in pairs.items() if n == name)
        right = sum(count for (k, n), count in pairs.items() if n == name and k in kinds_meant)
        meant = sum(
            count for (k, n), count in pairs.items() if k in kinds_meant and n in (name, "kept")
        )
        if dropped and meant:
            print(f"{name:24} precision {right / dropped:.3f}  recall {right / meant:.3f}")


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("build", help="write media and tables")
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--tree", type=Path, help="the packages, unpacked; null: apt-get gets them")
    one.add_argument("--synthesised", action="store_true", help="sentences alone, no packages")
    one.add_argument("--sentences", type=int, default=NUM_SENTENCES, help="how many (%(default)s)")
    two = commands.add_parser("score", help="what was dropped, against the truth")
    two.add_argument("--workspace", required=True)
    chosen = parser.parse_args()
    if chosen.command == "score":
        score(chosen.workspace)
        return
    if chosen.synthesised:
        counts = build(None, chosen.out, chosen.sentences)
    elif chosen.tree is not None:
        if not (chosen.tree / "usr/share").is_dir():
            names = ", ".join(packages.PACKAGES)
            msg = f"--tree {chosen.tree} has no usr/share; unpack {names} there"
            raise SystemExit(msg)
        counts = build(chosen.tree, chosen.out, chosen.sentences)
    else:
        otherwise = "Or unpack them on any machine and say --tree FOLDER, or --synthesised."
        with unpacked(packages.PACKAGES, chosen.out, otherwise=otherwise) as tree:
            counts = build(tree, chosen.out, chosen.sentences)
    for name, count in sorted(counts.items()):
        print(f"{count:6,}  {name}")


if __name__ == "__main__":
    main()
