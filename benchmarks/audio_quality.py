"""How well the filters of audio quality find known damage in synthesised speech.

    OMP_NUM_THREADS=1 python benchmarks/audio_quality.py --choose 1   # sweep thresholds on seed 1
    OMP_NUM_THREADS=1 python benchmarks/audio_quality.py              # report on seed 2

Utterances of espeak-ng, each with its own sentence, language, voice, speed, pitch, level (0 to
-18 dB), sample rate (16, 22.05, 44.1, 48 kHz) and codec (WAV, FLAC, MP3, Opus, Vorbis, AAC), and
one kind of damage, in equal numbers: none; white or pink noise; clipping, half of it scaled down
afterwards; silence of half the length, digital or at -70 dBFS; 8 kHz made into the file's rate; DC
(not in Opus, which removes it); no speech at all (noise, chords, clicks). Lossy codecs come last.

The stages and the filters are the real ones. Per filter: precision and recall for the kinds that it
is for (kinds in "either" count for neither), and the share that it drops of each kind. Rows with a
null are counted as kept. Then the estimated SNR against the true one (speech over noise, active
part of the speech; see stages/sources/_speech/damage.py), by noise and level.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from winnow.contracts.media import MediaCaps, Samples
from winnow.contracts.registry import FILTERS
from winnow.contracts.stage import WorkerOptions
from winnow.filters import expr
from winnow.stages._audio_encode import encode_audio
from winnow.stages._media import BatchMedia, MediaCache
from winnow.stages.audio_quality import AudioQuality
from winnow.stages.sources._speech import damage
from winnow.stages.sources._speech.sentences import sentence, voice_language
from winnow.stages.sources._speech.voice import VARIANTS, synthesise
from winnow.stages.voice_activity import VoiceActivity

LANGUAGES = ("en", "en", "de", "fr", "es")
RATES = (16_000, 22_050, 44_100, 48_000)
CODECS = ("wav", "flac", "mp3", "opus", "ogg", "m4a")
SNRS = (-5, 0, 5, 10, 15, 20, 25, 30)
Damage = Callable[[Samples, int, int], Samples]


class Judged(NamedTuple):
    """A filter with its suggested threshold, what it is for, and what counts for neither."""

    name: str
    parameter: str
    suggested: float
    targets: frozenset[str]
    either: frozenset[str]
    sweep: tuple[float, ...]
    column: str


def noisy(snr_db: float) -> Damage:
    def make(samples: Samples, rate: int, seed: int) -> Samples:
        color = ("white", "pink")[seed % 2]
        return damage.add_noise(samples, rate, snr_db, seed, color=color)  # type: ignore[arg-type]

    return make


def clipped(share: float) -> Damage:
    return lambda samples, rate, seed: damage.clip(samples, share) * (1.0, 0.7)[seed % 2]


def half_silent(samples: Samples, rate: int, seed: int) -> Samples:
    where = ("start", "end", "both", "inside")[seed % 4]
    quiet = damage.with_silence(samples, 0.5, where)  # type: ignore[arg-type]
    return quiet + damage.silent(len(quiet), seed, (None, -70.0)[seed // 4 % 2])


def speechless(samples: Samples, rate: int, seed: int) -> Samples:
    """Noise, a chord that fades again and again, or clicks."""
    num, rng = len(samples), np.random.default_rng(seed)
    if seed % 3 == 0:
        color = ("white", "pink")[seed // 3 % 2]
        return 0.1 * damage.noise(num, seed, color)  # type: ignore[arg-type]
    time = np.arange(num) / rate
    if seed % 3 == 1:
        tones = sum(np.sin(2 * np.pi * f * time) for f in rng.uniform(110, 880, 4))
        return (0.15 * tones * np.exp(-3 * (time % 0.7))).astype(np.float32)
    clicks = np.zeros(num, np.float32)
    for at in rng.integers(0, max(1, num - 200), 12):
        clicks[at : at + 200] += 0.5 * np.exp(-np.arange(200) / 30)[: num - at]
    return clicks


KINDS: dict[str, Damage] = {
    "clean": lambda samples, rate, seed: samples,
    **{f"noise {snr}": noisy(snr) for snr in (0, 5, 10, 20)},
    "clip 1 %": clipped(0.01),
    "clip 5 %": clipped(0.05),
    "half silent": half_silent,
    "from 8 kHz": lambda samples, rate, seed: damage.upsampled(samples, rate, rate),
    "DC 0.05": lambda samples, rate, seed: damage.dc_offset(samples, 0.05),
    "no speech": speechless,
}
ANY = frozenset(KINDS)
NOISE, CLIPS = {"noise 0", "noise 5", "noise 10"}, {"clip 1 %", "clip 5 %"}
# What has no speech is judged by min_speech_ratio alone: a chord has an SNR and a bandwidth.
EMPTY = frozenset({"no speech"})


def grid(first: float, last: float, count: int) -> tuple[float, ...]:
    return tuple(np.linspace(first, last, count).round(4).tolist())


JUDGED = (
    Judged(
        "min_audio_snr", "snr_db", 14.0, frozenset(NOISE), EMPTY | {"noise 20"}, grid(8, 24, 17),
        "snr_db",
    ),
    Judged(
        "max_clipping_ratio", "ratio", 0.001, frozenset(CLIPS), EMPTY,
        (0.0, 0.0001, 0.0003, 0.001, 0.003, 0.005), "clipping_ratio",
    ),
    Judged(
        "max_clipping_ratio", "pile_up", 0.001, frozenset(CLIPS), EMPTY,
        (0.0, 0.0001, 0.0003, 0.0005, 0.001, 0.002, 0.003, 0.005), "peak_pile_up",
    ),
    Judged(
        "max_silence_ratio", "ratio", 0.3, frozenset({"half silent"}), EMPTY, grid(0.1, 0.6, 11),
        "silence_ratio",
    ),
    Judged(
        "min_speech_ratio", "ratio", 0.3, EMPTY, frozenset({"half silent", "noise 0"}),
        grid(0.05, 0.95, 19), "speech_ratio",
    ),
    Judged(
        "min_bandwidth", "hz", 5000.0, frozenset({"from 8 kHz"}), EMPTY, grid(4000, 8500, 10),
        "bandwidth_hz",
    ),
    Judged(
        "max_dc_offset", "offset", 0.03, frozenset({"DC 0.05"}), EMPTY,
        (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04), "dc_offset",
    ),
)  # fmt: skip


def utterance(seed: int, number: int) -> tuple[Samples, int]:
    """Return one clean recording."""
    rng = np.random.default_rng([seed, number])
    language = LANGUAGES[number % len(LANGUAGES)]
    samples, rate = synthesise(
        sentence("audio_quality", seed, number, language=language),
        language=voice_language(language),
        variant=str(rng.choice(VARIANTS)),
        speed=int(rng.integers(140, 220)),
        pitch=int(rng.integers(20, 80)),
    )
    wanted = int(rng.choice(RATES))
    samples = damage.resample(samples, rate, wanted)
    peak_db = -float(rng.uniform(0.2, 18))
    return samples * np.float32(10 ** (peak_db / 20) / np.abs(samples).max()), wanted


def encoded(seed: int, per_kind: int) -> Iterator[tuple[str, str, bytes]]:
    """Yield kind, codec and file."""
    number = 0
    for kind, make in KINDS.items():
        for i in range(per_kind):
            samples, rate = utterance(seed, number)
            codec = CODECS[i % len(CODECS)]
            if kind == "DC 0.05" and codec == "opus":  # whose high-pass takes DC away
                codec = "mp3"
            hurt = make(samples, rate, number // len(CODECS) + i)
            yield kind, codec, encode_audio(hurt.astype(np.float32), rate, codec)
            number += 1


def measured(files: list[bytes]) -> pa.Table:
    """Return the columns of both stages."""
    batch = pa.record_batch({"audio": pa.array(files, pa.large_binary())})
    columns: dict[str, Any] = {}
    with MediaCache(1 << 28, 0) as cache:
        media = BatchMedia(batch, caps=MediaCaps(), cache=cache, first_row=0)
        for stage in (AudioQuality(), VoiceActivity()):
            out = stage.annotate(batch, stage.setup(WorkerOptions()), media)
            columns.update(zip(out.schema.names, out.columns, strict=True))
    return pa.table(columns)


def dropped(judged: Judged, threshold: float, table: pa.Table) -> np.ndarray:
    condition = FILTERS.find(judged.name)(**{judged.parameter: threshold})
    return np.array([kept is False for kept in expr.evaluate(condition, table).to_pylist()])


def score(judged: Judged, drops: np.ndarray, kinds: np.ndarray) -> tuple[float, float]:
    """Return precision and recall."""
    counted = ~np.isin(kinds, sorted(judged.either))
    wanted = np.isin(kinds, sorted(judged.targets))
    right = int((drops & wanted).sum())
    return right / max(1, int((drops & counted).sum())), right / int(wanted.sum())


def choose(table: pa.Table, kinds: np.ndarray) -> None:
    for judged in JUDGED:
        values = np.array(table[judged.column].to_pylist(), float)
        print(f"\n{judged.name} {judged.parameter} (suggested {judged.suggested:g})")
        for kind in KINDS:
            cuts = np.nanpercentile(values[kinds == kind], [0, 5, 50, 95, 100])
            print(f"  {kind:<12} 0/5/50/95/100 %: " + "  ".join(f"{c:10.4f}" for c in cuts))
        for threshold in judged.sweep:
            precision, recall = score(judged, dropped(judged, threshold, table), kinds)
            print(f"  {threshold:8g}  precision {precision:.3f}  recall {recall:.3f}")


def report(table: pa.Table, kinds: np.ndarray, codecs: np.ndarray) -> None:
    print(f"{'filter':<38} precision  recall   share dropped of each kind (%)")
    for judged in JUDGED:
        drops = dropped(judged, judged.suggested, table)
        precision, recall = score(judged, drops, kinds)
        shares = ", ".join(
            f"{kind} {100 * drops[kinds == kind].mean():.0f}"
            for kind in KINDS
            if drops[kinds == kind].any()
        )
        label = f"{judged.name} {judged.parameter}={judged.suggested:g}"
        print(f"{label:<38}   {precision:.3f}    {recall:.3f}   {shares}")
    print("\nrecall by codec, clipping")
    for judged in JUDGED[1:3]:
        drops, wanted = dropped(judged, judged.suggested, table), np.isin(kinds, sorted(CLIPS))
        by = {c: drops[wanted & (codecs == c)].mean() for c in CODECS}
        print(f"  {judged.parameter:<8} " + "  ".join(f"{c} {v:.2f}" for c, v in by.items()))


def snr_table(seed: int, count: int) -> None:
    print("\nsnr_db against the true SNR: bias, root mean square error (dB), by colour and level")
    for color in ("white", "pink"):
        for snr_db in SNRS:
            files = []
            for number in range(count):
                samples, rate = utterance(seed, 10_000 + number)
                hurt = damage.add_noise(samples, rate, snr_db, number, color=color)  # type: ignore[arg-type]
                files.append(encode_audio(hurt, rate, CODECS[number % len(CODECS)]))
            found = np.array(measured(files)["snr_db"].to_pylist(), float)
            error = found - snr_db
            print(
                f"  {color:<6} {snr_db:3d} dB   bias {error.mean():+6.2f}   rmse"
                f" {np.sqrt((error**2).mean()):5.2f}   spread {error.std():5.2f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--per-kind", type=int, default=60, help="utterances per kind of damage")
    parser.add_argument("--seed", type=int, default=2, help="seed of the report")
    parser.add_argument("--choose", type=int, help="a seed: sweep thresholds instead")
    options = parser.parse_args()
    seed = options.seed if options.choose is None else options.choose
    rows = list(encoded(seed, options.per_kind))
    kinds, codecs = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    table = measured([r[2] for r in rows])
    print(f"seed {seed}: {len(rows)} utterances, {options.per_kind} of each kind")
    if options.choose is not None:
        choose(table, kinds)
        return
    report(table, kinds, codecs)
    snr_table(seed, options.per_kind // 2)


if __name__ == "__main__":
    main()
