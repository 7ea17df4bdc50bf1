"""The engines of the transcript stage: how a Whisper is loaded."""

from __future__ import annotations

from winnow.models.ct2_whisper import Precision, load_converted_whisper
from winnow.models.whisper import Whisper
from winnow.models.whisper_files import WhisperFiles
from winnow.stages import _clip_batch
from winnow.stages._clip_batch import Device


def load_whisper(
    files: WhisperFiles,
    *,
    device: Device,
    precision: Precision,
    beam_size: int,
    max_tokens: int,
    batch_size: int,
    num_threads: int,
) -> Whisper:
    """Load a model; for engine hf chooses cuDNN's bit-stable kernels for this process.

    Fails: SetupError where the engine is missing or the model cannot run so.
    """
    if files.engine == "faster_whisper":
        return load_converted_whisper(
            files,
            device=device,
            precision=precision,
            beam_size=beam_size,
            max_tokens=max_tokens,
            num_threads=num_threads,
        )
    from winnow.models.hf_whisper import load_hf_whisper

    _clip_batch.choose_stable_kernels()
    plain: _clip_batch.Precision = "fp32" if precision == "int8" else precision
    return load_hf_whisper(
        files, device=device, precision=plain, batch_size=batch_size, max_tokens=max_tokens
    )
