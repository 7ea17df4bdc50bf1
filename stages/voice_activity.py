"""Where somebody speaks, by Silero VAD."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.media import Media, Samples
from winnow.contracts.parameters import result
from winnow.contracts.registry import register_stage
from winnow.contracts.stage import Stage, WorkerOptions
from winnow.models.file_digest import files_digest
from winnow.models.package_files import package_folder
from winnow.stages._audio_column import check_audio_column

SAMPLE_RATE = 16_000
FRAME = 512
"""Samples per probability: 32 ms."""
CONTEXT = 64
"""Samples of the frame before that the network sees too."""
MAX_FRAMES = 512
"""Frames per call of the network: 16 s. The last bits may depend on it, so it is fixed."""
EXIT_MARGIN = 0.15
"""Speech ends under ``threshold`` less this, 0.01 at least: Silero's ``neg_threshold``."""
_FILE = "silero_vad_16k_sequence.onnx"
_SEGMENT = pa.struct([("start_s", pa.float32()), ("end_s", pa.float32())])
_ERROR = "voice_activity_error"

Floats = npt.NDArray[np.float32]
Segments = list[tuple[int, int]]


def speech_probabilities(session: Any, samples_N: Samples) -> Floats:
    """Return the probability of speech of each frame of a 16 kHz waveform; the last is padded.

    The network's memory starts empty for each waveform and goes on through it.
    """
    num_frames = max(1, -(-samples_N.size // FRAME))
    padded_N = np.zeros(CONTEXT + num_frames * FRAME, np.float32)
    padded_N[CONTEXT : CONTEXT + samples_N.size] = samples_N
    frames_TN = np.lib.stride_tricks.sliding_window_view(padded_N, CONTEXT + FRAME)[::FRAME]
    memory = {"h": np.zeros((1, 1, 128), np.float32), "c": np.zeros((1, 1, 128), np.float32)}
    found = []
    for start in range(0, num_frames, MAX_FRAMES):
        inputs = {"input": np.ascontiguousarray(frames_TN[start : start + MAX_FRAMES]), **memory}
        values, hidden, cell = session.run(["speech_probs", "hn", "cn"], inputs)
        memory = {"h": hidden, "c": cell}
        found.append(values.reshape(-1))
    return np.concatenate(found)


def speech_runs(
    probabilities: Floats, num_samples: int, threshold: float, lengths: tuple[float, float]
) -> Segments:
    """Return the (start, end) samples of speech, not padded.

    Speech starts at a frame of ``threshold`` or more. It ends at the first frame under
    ``threshold`` - EXIT_MARGIN that is followed by no frame of ``threshold`` for the shortest
    silence. lengths: the shortest speech (longer ones are kept) and the shortest silence, samples.
    """
    min_speech, min_silence = lengths
    leave = max(threshold - EXIT_MARGIN, 0.01)
    found: Segments = []
    start = end = -1
    for i, probability in enumerate(probabilities.tolist()):
        at = i * FRAME
        if probability >= threshold:
            end = -1
            start = at if start < 0 else start
        elif probability < leave and start >= 0:
            end = at if end < 0 else end
            if at - end >= min_silence:
                found.append((start, end))
                start = end = -1
    if start >= 0:
        found.append((start, num_samples))
    return [(a, b) for a, b in found if b - a > min_speech]


def padded_runs(runs: Segments, num_samples: int, pad: int) -> Segments:
    """Return runs that are ``pad`` samples longer at both ends; a short gap is halved instead."""
    if not runs:
        return []
    starts, ends = [max(0, runs[0][0] - pad)], []
    for (_, end), (start, _) in zip(runs, runs[1:], strict=False):
        share = min(pad, (start - end) // 2)
        ends.append(end + share)
        starts.append(start - share)
    ends.append(min(num_samples, runs[-1][1] + pad))
    return list(zip(starts, ends, strict=True))


@register_stage("voice_activity", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class VoiceActivity(Stage):
    """Find speech with Silero VAD, the model that its package carries.

    Reads:   audio (or ``audio_column``): large_binary, encoded; null where the download failed.
    Writes:  speech_ratio: float32 in [0, 1], seconds of speech over all seconds.
             num_speech_segments: int32, stretches of speech.
             speech_seconds: float32, their sum.
             speech_start_s, speech_end_s: float32, where the first starts and the last ends; null
                 where there is no speech.
             speech_segments: list<struct<start_s: float32, end_s: float32>>, in order; only with
                 ``write_segments``.
             voice_activity_error: string; null, or the code of the decoder: "missing" |
                 "too_large" | "undecodable" | "too_long" | "no_audio" | "is_video" | "not_finite".
                 Where it is set, all other columns are null.
             Segments are those of silero_vad.get_speech_timestamps with the same ``threshold``,
             min_speech_duration_ms, min_silence_duration_ms and speech_pad_ms. Times are of the
             mono waveform at 16 kHz, which may be one of its samples longer than the recording.
    Cost:    CPU only, one thread, row by row: the network's memory runs through a recording, so
             rows gain nothing from a batch. Reads the pass's waveform at 16 kHz.
    Fails:   a bad row never raises. RecipeError for parameters that cannot be meant; SetupError
             where silero-vad or onnxruntime is not installed.
    """

    audio_column: str = result("audio")
    threshold: float = result(0.5)
    min_speech_ms: int = result(250)
    min_silence_ms: int = result(100)
    speech_pad_ms: int = result(30)
    write_segments: bool = result(False)

    def __post_init__(self) -> None:
        check_audio_column("voice_activity", self.audio_column)
        if not 0 < self.threshold < 1:
            msg = f"voice_activity: threshold={self.threshold}; use a value in (0, 1), such as 0.5"
            raise RecipeError(msg)
        for name in ("min_speech_ms", "min_silence_ms", "speech_pad_ms"):
            if getattr(self, name) < 0:
                msg = f"voice_activity: {name}={getattr(self, name)}; use 0 or more"
                raise RecipeError(msg)

    @property
    def reads(self) -> pa.Schema:
        """The recording."""
        return pa.schema({self.audio_column: pa.large_binary()})

    @property
    def writes(self) -> pa.Schema:
        """See the class."""
        segments = [("speech_segments", pa.list_(_SEGMENT))] if self.write_segments else []
        return pa.schema(
            [
                ("speech_ratio", pa.float32()),
                ("num_speech_segments", pa.int32()),
                ("speech_seconds", pa.float32()),
                ("speech_start_s", pa.float32()),
                ("speech_end_s", pa.float32()),
                *segments,
                (_ERROR, pa.string()),
            ]
        )

    def model_digest(self) -> str:
        """Return the digest of the packaged network."""
        return files_digest([_model_path()])

    def setup(self, options: WorkerOptions) -> Any:
        """Return the network, on one thread of the CPU."""
        path = _model_path()
        try:
            import onnxruntime
        except ImportError as error:
            raise SetupError(_advice("onnxruntime")) from error
        session_options = onnxruntime.SessionOptions()
        session_options.intra_op_num_threads = session_options.inter_op_num_threads = 1
        return onnxruntime.InferenceSession(
            str(path), sess_options=session_options, providers=["CPUExecutionProvider"]
        )

    def annotate(self, batch: pa.RecordBatch, state: Any, media: Media) -> pa.RecordBatch:
        rows = [
            {_ERROR: waveform} if isinstance(waveform, str) else self._listen(state, waveform)
            for waveform in media.waveforms(self.audio_column, sample_rate=SAMPLE_RATE)
        ]
        return pa.RecordBatch.from_pylist(rows, schema=self.writes)

    def _listen(self, session: Any, samples_N: Samples) -> dict[str, Any]:
        per_ms = SAMPLE_RATE // 1000
        probabilities = speech_probabilities(session, samples_N)
        lengths = (self.min_speech_ms * per_ms, self.min_silence_ms * per_ms)
        runs = speech_runs(probabilities, samples_N.size, self.threshold, lengths)
        runs = padded_runs(runs, samples_N.size, self.speech_pad_ms * per_ms)
        num_samples = sum(end - start for start, end in runs)
        return {
            "speech_ratio": num_samples / max(1, samples_N.size),
            "num_speech_segments": len(runs),
            "speech_seconds": num_samples / SAMPLE_RATE,
            "speech_start_s": runs[0][0] / SAMPLE_RATE if runs else None,
            "speech_end_s": runs[-1][1] / SAMPLE_RATE if runs else None,
            "speech_segments": [
                {"start_s": start / SAMPLE_RATE, "end_s": end / SAMPLE_RATE} for start, end in runs
            ],
        }


def _model_path() -> Path:
    """Return the packaged network. The package is not imported: that sets torch's threads."""
    folder = package_folder("silero_vad")
    if folder is None or not (path := folder / "data" / _FILE).is_file():
        raise SetupError(_advice("silero-vad 6.2.2 or later"))
    return path


def _advice(package: str) -> str:
    return f'voice_activity needs {package}; run: pip install "winnow-data[audio]"'
