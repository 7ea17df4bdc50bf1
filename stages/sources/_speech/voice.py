"""Text to speech by espeak-ng: the same call gives the same samples, always.

espeak-ng keeps state from one utterance to the next (glottal phase, flutter, echo, two random
generators), which no call of its API resets. So each call loads a fresh copy of the library, seeds
both generators and unloads it: 1 ms. Checked on Linux; it needs that nothing else in the process
holds the same library file open.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from winnow.contracts.errors import RecipeError, SetupError
from winnow.stages.sources._scenes.model import Part

SPEAKERS: Mapping[Part, tuple[str, ...]] = MappingProxyType(
    {
        "train": (
            "m1", "m2", "m3", "m4", "m5", "m6", "f1", "f3", "f5", "Gene", "Hugo", "Reed", "boris",
            "michel", "shelby", "travis", "victor",
        ),
        "validation": ("f4", "m7", "marcelo", "quincy", "sandro", "steph"),
        "test": ("f2", "m8", "Annie", "david", "edward", "norbert", "rob", "zac"),
    }
)  # fmt: skip
"""Speaker variants by part. All are plain voices, of which Whisper tiny.en misses at most 28 % of
the words; across parts, any two differ by 5 dB or more in mean log-mel spectrum and pitch together
(RMS over 40 bins, plus 12 dB for an octave), within a part by 3.5 dB."""
VARIANTS = tuple(name for names in SPEAKERS.values() for name in names)
"""All of them."""
SPEEDS = (80, 450)
"""Least and greatest speed, words a minute."""
PITCHES = (0, 99)
_SYNCHRONOUS, _POSITION_IS_CHARACTER, _UTF8 = 2, 1, 1
_RATE, _VOLUME, _PITCH = 1, 2, 3
_QUIET = 45
"""Volume of all voices; at espeak-ng's own 100 the louder ones clip."""
_LOCK = threading.Lock()
_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


def synthesise(
    text: str, *, language: str = "en-us", variant: str = "", speed: int = 175, pitch: int = 50
) -> tuple[NDArray[np.float32], int]:
    """Return the spoken text, float32 (N,) in [-1, 1), and its sample rate (22050 Hz).

    language: one of ``languages()``. variant: one of ``variants()``, "" = the language's own voice.
    speed: words a minute (SPEEDS); pitch: 0 to 99 (PITCHES). Text without a word gives few or no
    samples.
    Cost:  8 ms for 4 s of speech; one utterance at a time in a process; the C library's ``rand`` is
        seeded.
    Fails: RecipeError for values that there are not; SetupError where espeak-ng is not installed or
        fails.
    """
    voice = _voice(language, variant)
    for name, value, (least, most) in (("speed", speed, SPEEDS), ("pitch", pitch, PITCHES)):
        if not least <= value <= most:
            msg = f"speech: {name}={value}; use {least} to {most}"
            raise RecipeError(msg)
    with _LOCK:
        return _spoken(text.encode() + b"\0", voice.encode(), speed, pitch)


def languages() -> tuple[str, ...]:
    """Return the languages that espeak-ng speaks, as BCP 47 codes in lower case ("en-us")."""
    return tuple(sorted(_languages()))


def variants() -> tuple[str, ...]:
    """Return all speaker variants there are, odd ones too; VARIANTS are the plain ones."""
    return tuple(sorted(path.name for path in (_files()[1] / "voices" / "!v").iterdir()))


@functools.cache
def _files() -> tuple[Path, Path]:
    """Return the library and the folder of its data."""
    try:
        import espeakng_loader
    except ImportError as error:
        msg = 'speech needs espeak-ng; run: pip install "winnow-data[speech]"'
        raise SetupError(msg) from error
    return Path(espeakng_loader.get_library_path()), Path(espeakng_loader.get_data_path())


@functools.cache
def _languages() -> dict[str, str]:
    """Return language -> file of its voice, which saves espeak-ng a search through all files."""
    found: dict[str, str] = {}
    folder = _files()[1] / "lang"
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            codes = [line.split()[1] for line in lines if line.startswith("language ")]
            if codes:
                found.setdefault(codes[0].lower(), path.relative_to(folder).as_posix())
    return found


@functools.cache
def _voice(language: str, variant: str) -> str:
    if language not in _languages():
        msg = f"speech: language={language!r}; use one of {', '.join(languages())}"
        raise RecipeError(msg)
    if variant and variant not in variants():
        msg = f"speech: variant={variant!r}; use one of {', '.join(variants())}"
        raise RecipeError(msg)
    return _languages()[language] + (f"+{variant}" if variant else "")


def _spoken(text: bytes, voice: bytes, speed: int, pitch: int) -> tuple[NDArray[np.float32], int]:
    blocks: list[NDArray[np.int16]] = []

    def take(samples: ctypes._Pointer[ctypes.c_short], count: int, events: object) -> int:
        if samples and count > 0:
            blocks.append(np.ctypeslib.as_array(samples, shape=(count,)).astype(np.int16))
        return 0

    path, data = _files()
    process = ctypes.CDLL(None)
    library = ctypes.CDLL(str(path))
    try:
        rate = int(library.espeak_Initialize(_SYNCHRONOUS, 0, str(data.parent).encode(), 0))
        callback = _CALLBACK(take)
        library.espeak_SetSynthCallback(callback)
        process.srand(1)
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        failed = rate <= 0 or library.espeak_SetVoiceByName(voice)
        failed = failed or library.espeak_SetParameter(_VOLUME, _QUIET, 0)
        failed = failed or library.espeak_SetParameter(_RATE, speed, 0)
        failed = failed or library.espeak_SetParameter(_PITCH, pitch, 0)
        failed = failed or _synth(library, text)
        library.espeak_Terminate()
    finally:
        process.dlclose(ctypes.c_void_p(library._handle))
    if failed:
        msg = f"espeak-ng fails on voice {voice.decode()!r} with data in {data}"
        raise SetupError(msg)
    whole = np.concatenate(blocks) if blocks else np.zeros(0, np.int16)
    return whole.astype(np.float32) / np.float32(32768), rate


def _synth(library: ctypes.CDLL, text: bytes) -> int:
    synth = library.espeak_Synth
    synth.argtypes = [
        ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int,
        ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p,
    ]  # fmt: skip
    return int(synth(text, len(text), 0, _POSITION_IS_CHARACTER, 0, _UTF8, None, None))
