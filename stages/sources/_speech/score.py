"""Which kinds of noise each filter of recordings is meant to catch, for ``_scenes.score.score``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

CATCHES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "has_media": ("dead_link", "slow_link", "html", "corrupt"),
        "decodable": ("corrupt",),
        "drop_repeated_rows": ("repeated_row",),
        "language_is": ("foreign_text",),
        "audio_duration": ("truncated", "truncated_bytes"),
        "not_truncated_audio": ("truncated_bytes",),
        "min_audio_snr": ("noisy",),
        "max_clipping_ratio": ("clipped",),
        "max_silence_ratio": ("silent", "mostly_silent"),
        "min_speech_ratio": ("silent", "mostly_silent"),
        "min_bandwidth": ("upsampled",),
        "max_dc_offset": ("dc_offset",),
        "max_word_error_rate": (
            "wrong_text",
            "wrong_language",
            "foreign_text",
            "truncated",
            "truncated_bytes",
            "silent",
            "noisy",
        ),
        "min_audio_text_score": ("wrong_text", "wrong_language", "foreign_text"),
        "drop_near_duplicates": ("near_duplicate", "exact_duplicate"),
    }
)
