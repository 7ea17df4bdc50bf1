"""Whisper by CTranslate2, with faster-whisper's features and tokens.

One window at a time: in a batch the rows would be computed together, and each row's last bits would
depend on when the others end.

Tensor suffixes: M mel bins, T frames, N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from winnow.contracts.errors import SetupError
from winnow.contracts.media import Samples
from winnow.models.whisper import Clip, Floats, Written
from winnow.models.whisper_files import INSTALL, WhisperFiles

Precision = Literal["fp32", "int8", "bf16", "fp16"]

_COMPUTE = {"fp32": "float32", "int8": "int8", "bf16": "bfloat16", "fp16": "float16"}
_MAX_INITIAL_STAMP = 50
"""A window's first stamp is at most 1 s, as in the reference."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertedWhisper:
    """A loaded model; see ``winnow.models.whisper.Whisper``."""

    model: Any
    tokenizer: Any
    suppressed: tuple[int, ...]
    beam_size: int
    max_tokens: int
    languages: tuple[str, ...]
    batch_size: int = 1

    @property
    def window_frames(self) -> int:
        """3000."""
        return int(self.model.feature_extractor.nb_max_frames)

    @property
    def stamp_zero(self) -> int:
        """The token of 0.00 s."""
        return int(self.tokenizer.timestamp_begin)

    @property
    def end(self) -> int:
        """The end token."""
        return int(self.tokenizer.eot)

    def clip(self, samples_N: Samples) -> Clip:
        """Return the log-mel spectrogram, by faster-whisper."""
        mel_MT = self.model.feature_extractor(samples_N)
        num_frames = max(1, mel_MT.shape[1] - 1)  # the last one is of the padding
        return Clip(log_mel=mel_MT[:, :num_frames], num_frames=num_frames)

    def encode(self, windows: Sequence[Floats]) -> Any:
        """Run the encoder on one window."""
        (window_MT,) = windows
        return self.model.encode(np.ascontiguousarray(window_MT, np.float32))

    def languages_of(self, encoded: Any) -> list[tuple[str, float]]:
        """Return the likeliest language of the window."""
        token, probability = self.model.model.detect_language(encoded)[0][0]
        return [(token[2:-2], float(probability))]

    def write(self, encoded: Any, languages: Sequence[str]) -> list[Written]:
        """Write by beam search, or greedily where the beam is one wide."""
        prompt = self._prompt(languages[0])
        found = self.model.model.generate(
            encoded,
            [prompt],
            beam_size=self.beam_size,
            max_length=2 * self.max_tokens,  # CTranslate2 writes half as many at most
            return_scores=True,
            return_no_speech_prob=True,
            suppress_blank=True,
            suppress_tokens=list(self.suppressed),
            max_initial_timestamp_index=_MAX_INITIAL_STAMP,
        )[0]
        tokens = found.sequences_ids[0]
        return [
            Written(
                tokens=tokens,
                log_probability=float(found.scores[0]) * len(tokens),
                no_speech=float(found.no_speech_prob),
            )
        ]

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return str(self.tokenizer.decode(list(tokens)))

    def _prompt(self, language: str) -> list[int]:
        if self.tokenizer.task is None:
            return [self.tokenizer.sot]
        token = self.tokenizer.tokenizer.token_to_id(f"<|{language}|>")
        return [self.tokenizer.sot, token, self.tokenizer.task]


def load_converted_whisper(
    files: WhisperFiles,
    *,
    device: str,
    precision: Precision,
    beam_size: int,
    max_tokens: int,
    num_threads: int,
) -> ConvertedWhisper:
    """Load a model that was found.

    Fails: SetupError without faster-whisper, for files that CTranslate2 does not read, and for a
    precision or device that it does not have here.
    """
    try:
        from faster_whisper import WhisperModel
        from faster_whisper.tokenizer import Tokenizer
        from faster_whisper.transcribe import get_suppressed_tokens
    except ImportError as error:
        msg = f"engine=faster_whisper needs faster-whisper: {INSTALL}"
        raise SetupError(msg) from error
    try:
        model = WhisperModel(
            str(files.folder),
            device=device,
            compute_type=_COMPUTE[precision],
            cpu_threads=num_threads,
            num_workers=1,
            local_files_only=True,
        )
    except (RuntimeError, ValueError, OSError, LookupError, TypeError) as error:
        msg = f"model={files.name!r} cannot be loaded from {files.folder}: {error}"
        raise SetupError(msg) from error
    multilingual = model.model.is_multilingual
    tokenizer = Tokenizer(
        model.hf_tokenizer, multilingual, task="transcribe", language="en" if multilingual else None
    )
    return ConvertedWhisper(
        model=model,
        tokenizer=tokenizer,
        suppressed=tuple(get_suppressed_tokens(tokenizer, [-1])),
        beam_size=beam_size,
        max_tokens=max_tokens,
        languages=tuple(model.supported_languages),
    )
