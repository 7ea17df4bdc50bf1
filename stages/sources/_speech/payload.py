"""Row -> what its URL answers with: status, content type and bytes; and the samples in them."""

from __future__ import annotations

import math

from winnow.contracts.identity import stable_hash64
from winnow.contracts.media import Samples
from winnow.stages._audio_encode import encode_audio
from winnow.stages.sources._scenes.draw import Draw
from winnow.stages.sources._scenes.payload import Answer
from winnow.stages.sources._speech import damage
from winnow.stages.sources._speech.noise import Row, Voice, World
from winnow.stages.sources._speech.sentences import sentence, voice_language
from winnow.stages.sources._speech.voice import synthesise

TYPES = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
    "opus": "audio/ogg; codecs=opus",
    "ogg": "audio/ogg",
    "m4a": "audio/mp4",
}
TRIM_SHARE = 0.05
"""Of the samples of a trimmed near-duplicate, from both ends together."""
_WHERE: tuple[damage.Where, ...] = ("start", "end", "both", "inside")
_PAGE = """<!DOCTYPE html>
<html><head><title>Episode {index}</title></head>
<body><h1>This recording is no longer here</h1><p>Please visit our <a href="/">home page</a>.</p>
</body></html>
"""


def answer(world: World, row: Row) -> Answer:
    """Return what the URL of a row answers with; the same bytes every time."""
    if row.kind == "dead_link":
        gone = stable_hash64("gone", world.seed, row.index) % 5 == 0
        return Answer(status=410 if gone else 404, content_type="text/plain", body=b"not here\n")
    if row.kind == "html":
        page = _PAGE.format(index=row.index).encode()
        return Answer(status=200, content_type="text/html; charset=utf-8", body=page)
    body = audio_bytes(world, row)
    if row.kind == "corrupt":
        body = _corrupt(body, Draw("speech damage", world.seed, row.index))
    drip = row.kind == "slow_link"
    return Answer(status=200, content_type=TYPES[row.format], body=body, drip=drip)


def audio_bytes(world: World, row: Row) -> bytes:
    """Return the file of a row, whole even where the row is ``corrupt``."""
    samples, rate = recording(world, row)
    bit_rate = None
    if row.changes:
        draw = Draw("speech bit rate", world.seed, row.index)
        bit_rate = 1000 * draw.pick((48, 64, 96, 128))
    data = encode_audio(samples[None], rate, row.format, bit_rate=bit_rate)
    return damage.truncate_bytes(data, row.kept_ratio) if row.kind == "truncated_bytes" else data


def recording(world: World, row: Row) -> tuple[Samples, int]:
    """Return what is encoded, float32 (N,), and its rate."""
    draw = Draw("speech sound", world.seed, row.number)
    if row.kind == "silent":
        return _silent(row, draw), row.sample_rate
    clear, rate = spoken(world, row)
    utterances = _others(world, row) if row.color == "babble" else ()
    seed = draw.integer(0, 2**31)
    sound = damage.add_noise(clear, rate, row.snr_db, seed, color=row.color, utterances=utterances)
    if row.kind == "upsampled":
        return damage.upsampled(sound, rate, row.sample_rate), row.sample_rate
    return _altered(world, row, sound, draw), rate


def duration_s(world: World, row: Row) -> float:
    """Return the seconds of ``recording``, without making more of it than the speech."""
    if row.kind == "silent":
        return _silent_s(Draw("speech sound", world.seed, row.number))
    samples, rate = _said(row.said, row.voice)
    share = 1 - TRIM_SHARE if "trim" in row.changes else 1.0
    if row.kind == "truncated":
        share = row.kept_ratio
    return len(samples) / rate * share / (1 - row.silence_ratio)


def spoken(world: World, row: Row) -> tuple[Samples, int]:
    """Return the speech of a row before anything is added, and its rate.

    Its ``active_rms`` is -28 to -18 dB of full scale.
    """
    samples, rate = _said(row.said, row.voice)
    level = Draw("speech level", world.seed, row.number).uniform(-28, -18)
    if row.kind != "upsampled":
        samples, rate = damage.resample(samples, rate, row.sample_rate), row.sample_rate
    return damage.gain(samples, level - _decibel(damage.active_rms(samples, rate))), rate


def _decibel(rms: float) -> float:
    return 20 * math.log10(max(rms, 1e-9))


def _said(text: str, voice: Voice) -> tuple[Samples, int]:
    return synthesise(
        text,
        language=voice_language(voice.language),
        variant=voice.variant,
        speed=voice.speed,
        pitch=voice.pitch,
    )


def _silent_s(draw: Draw) -> float:
    return draw.uniform(2, 6)


def _silent(row: Row, draw: Draw) -> Samples:
    num_samples = round(_silent_s(draw) * row.sample_rate)
    level = -80.0 if draw.chance(0.5) else None
    return damage.silent(num_samples, draw.integer(0, 2**31), level)


def _others(world: World, row: Row) -> list[Samples]:
    """Return what three other voices say, at the row's rate."""
    found = []
    for number in range(3):
        draw = Draw("speech babble", world.seed, row.number, number)
        voice = Voice(
            language="en",
            variant=draw.pick(world.voices),
            speed=draw.integer(150, 190),
            pitch=draw.integer(35, 65),
        )
        text = sentence(world.seed, row.number, "babble", number, part=world.part)
        samples, rate = _said(text, voice)
        found.append(damage.resample(samples, rate, row.sample_rate))
    return found


def _altered(world: World, row: Row, sound: Samples, draw: Draw) -> Samples:
    """Return the sound with what its kind does to it."""
    match row.kind:
        case "clipped":
            return damage.clip(sound, row.clipped_ratio)
        case "mostly_silent":
            where: damage.Where = draw.pick(_WHERE)
            return damage.with_silence(sound, row.silence_ratio, where)
        case "truncated":
            return damage.truncate(sound, row.kept_ratio)
        case "dc_offset":
            offset = draw.uniform(0.05, 0.3)
            return damage.dc_offset(sound, offset if draw.chance(0.5) else -offset)
        case "near_duplicate":
            return _near(world, row, sound)
    return sound


def _near(world: World, row: Row, sound: Samples) -> Samples:
    draw = Draw("speech changes", world.seed, row.index)
    if "trim" in row.changes:
        sound = damage.trim(sound, TRIM_SHARE, draw.integer(0, 2**31))
    if "gain" in row.changes:
        change = draw.uniform(3, 8)
        sound = damage.gain(sound, change if draw.chance(0.5) else -change)
    return sound


def _corrupt(body: bytes, draw: Draw) -> bytes:
    """Return random bytes, in half of the cases behind the first 16 to 40 of the file."""
    seed = draw.integer(0, 2**31)
    blocks = (stable_hash64("random", seed, i).to_bytes(8, "little") for i in range(256))
    head = body[: draw.integer(16, 40)] if draw.chance(0.5) else b""
    return head + b"".join(blocks)
