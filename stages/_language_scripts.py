"""Which writing system a text is in, and which languages lid.176 knows in each."""

from __future__ import annotations

import re
from collections import Counter

# Code point ranges (start, end) of the scripts that lid.176 has languages for. All bounds are
# multiples of 16, so that one table of 16-character rows answers for the whole plane.
_RANGES: dict[str, tuple[tuple[int, int], ...]] = {
    "latin": ((0x00, 0x370), (0x1D00, 0x1DC0), (0x1E00, 0x1F00), (0x2C60, 0x2C80),
              (0xA720, 0xA800), (0xAB30, 0xAB70), (0xFB00, 0xFB10)),
    "greek": ((0x370, 0x400), (0x1F00, 0x2000)),
    "cyrillic": ((0x400, 0x530), (0x1C80, 0x1C90), (0x2DE0, 0x2E00), (0xA640, 0xA6A0)),
    "armenian": ((0x530, 0x590),),
    "hebrew": ((0x590, 0x600), (0xFB10, 0xFB50)),
    "arabic": ((0x600, 0x700), (0x750, 0x780), (0x8A0, 0x900), (0xFB50, 0xFE00), (0xFE70, 0xFF00)),
    "thaana": ((0x780, 0x7C0),),
    "devanagari": ((0x900, 0x980), (0xA8E0, 0xA900)),
    "bengali": ((0x980, 0xA00),),
    "gurmukhi": ((0xA00, 0xA80),),
    "gujarati": ((0xA80, 0xB00),),
    "oriya": ((0xB00, 0xB80),),
    "tamil": ((0xB80, 0xC00),),
    "telugu": ((0xC00, 0xC80),),
    "kannada": ((0xC80, 0xD00),),
    "malayalam": ((0xD00, 0xD80),),
    "sinhala": ((0xD80, 0xE00),),
    "thai": ((0xE00, 0xE80),),
    "lao": ((0xE80, 0xF00),),
    "tibetan": ((0xF00, 0x1000),),
    "myanmar": ((0x1000, 0x10A0), (0xA9E0, 0xAA00), (0xAA60, 0xAA80)),
    "georgian": ((0x10A0, 0x1100), (0x1C90, 0x1CC0), (0x2D00, 0x2D30)),
    "hangul": ((0x1100, 0x1200), (0x3130, 0x3190), (0xA960, 0xA980), (0xAC00, 0xD800)),
    "ethiopic": ((0x1200, 0x13A0), (0x2D80, 0x2DE0), (0xAB00, 0xAB30)),
    "khmer": ((0x1780, 0x1800), (0x19E0, 0x1A00)),
    "kana": ((0x3040, 0x3100), (0x31F0, 0x3200), (0xFF60, 0xFFA0)),
    "han": ((0x2E80, 0x2FE0), (0x3100, 0x3130), (0x31A0, 0x31F0), (0x3400, 0xA000),
            (0xF900, 0xFB00)),
}  # fmt: skip

_LANGUAGES = {
    "greek": "el",
    "cyrillic": "ru uk be bg mk sr kk ky mn tg tt ba cv ce av os sah myv mhr bxr kv krc lez rue"
    " tyv",
    "armenian": "hy",
    "hebrew": "he yi",
    "arabic": "ar fa ur arz ps ug sd ckb azb pnb mzn lrc",
    "thaana": "dv",
    "devanagari": "hi mr ne sa mai bh new gom dty",
    "bengali": "bn as bpy",
    "gurmukhi": "pa",
    "gujarati": "gu",
    "oriya": "or",
    "tamil": "ta",
    "telugu": "te",
    "kannada": "kn",
    "malayalam": "ml",
    "sinhala": "si",
    "thai": "th",
    "lao": "lo",
    "tibetan": "bo",
    "myanmar": "my",
    "georgian": "ka xmf",
    "hangul": "ko",
    "ethiopic": "am",
    "khmer": "km",
    "kana": "ja",
    "han": "zh ja wuu",
}
LANGUAGES_OF: dict[str, tuple[str, ...]] = {k: tuple(v.split()) for k, v in _LANGUAGES.items()}
"""Labels of lid.176 per script, the most common first; every other label is Latin."""

NOT_LATIN = frozenset(code for codes in LANGUAGES_OF.values() for code in codes) - {"sr"}
"""Labels that a text in Latin letters never gets. Serbian is written both ways."""

_NOT_LATIN_LETTER = re.compile(r"[^\W\d_\u0000-\u036f\u1e00-\u1eff]")
_LETTER = re.compile(r"[^\W\d_]")


def _rows() -> bytes:
    """Return the script of each row of 16 characters of plane 0; 0 is any other script."""
    rows = bytearray(0x1000)
    for number, ranges in enumerate(_RANGES.values(), start=1):
        for start, end in ranges:
            rows[start >> 4 : end >> 4] = bytes([number]) * ((end - start) >> 4)
    return bytes(rows)


_ROWS = _rows()
_NAMES = ("other", *_RANGES)
_LATIN, _HAN, _KANA = _NAMES.index("latin"), _NAMES.index("han"), _NAMES.index("kana")


def script_of(text: str) -> str:
    """Return the script of most letters; "none" without letters, "other" if lid.176 has no label.

    Of scripts with equally many letters, the one with lower code points: Latin before Greek.
    Japanese counts its Han characters as kana, because no Chinese text has kana.
    """
    if text.isascii() or not _NOT_LATIN_LETTER.search(text):
        return "latin" if _LETTER.search(text) else "none"
    counts: Counter[int] = Counter()
    for character in text:
        if character.isalpha():
            code = ord(character)
            if code < 0x10000:
                counts[_ROWS[code >> 4]] += 1
            else:
                counts[_HAN if 0x20000 <= code < 0x32000 else 0] += 1
    if not counts:
        return "none"
    if counts[_KANA]:
        counts[_KANA] += counts.pop(_HAN, 0)
    return _NAMES[max(counts, key=lambda script: (counts[script], -script))]
