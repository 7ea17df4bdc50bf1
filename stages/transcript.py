"""Transcript: what is said in a recording, by Whisper."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyarrow as pa

from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.media import Media, Samples
from winnow.contracts.parameters import effort, result
from winnow.contracts.registry import register_stage
from winnow.contracts.stage import Resources, Stage, WorkerOptions
from winnow.models.ct2_whisper import Precision
from winnow.models.whisper import SAMPLE_RATE, Whisper, transcribe
from winnow.models.whisper import Transcript as Heard
from winnow.models.whisper_files import Engine, find_whisper
from winnow.stages import _clip_batch
from winnow.stages._clip_batch import Device
from winnow.stages._transcript_engines import load_whisper

NAME = "transcript"
SEGMENT = pa.struct(
    [
        pa.field("start_s", pa.float32()),
        pa.field("end_s", pa.float32()),
        pa.field("text", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class TranscriptWorker:
    """A loaded model and its digest."""

    model: Whisper
    digest: str


@register_stage(NAME, version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class Transcript(Stage):
    """Write down what is said in each recording, and how sure of it the model is.

    Reads:   <audio_column> (audio): large_binary, encoded bytes.
    Writes:  <column> (transcript): string, white space single; "" where no window has a letter or a
                 digit.
             <column>_language (transcript_language): string, Whisper's code ("en"): ``language``,
                 or the likeliest one of the first 30 s. An English model says "en" of everything.
             <column>_language_probability (transcript_language_probability): float32 in [0, 1]; 1
                 from an English model; null also where ``language`` is given.
             <column>_no_speech_probability (transcript_no_speech_probability): float32 in [0, 1],
                 of the token for no speech, as the first of a window's text; the mean of the
                 windows, each weighted by the time it covers.
             <column>_log_probability (transcript_log_probability): float32, <= 0, natural logarithm
                 of the tokens' probabilities, after the rules that forbid tokens; mean over the
                 tokens of all windows, stamps and ends included.
             <column>_compression_ratio (transcript_compression_ratio): float32, >= 0, bytes of text
                 over bytes after zlib, of the window where it is highest.
             <column>_segments (transcript_segments): list<struct<start_s: float32, end_s: float32,
                 text: string>>, in seconds; only with write_segments.
             <column>_model (transcript_model): string, the model's digest.
             <column>_error (transcript_error): string; null, or a code below. The other columns are
                 null where it is one of the first seven, and there where it is one of the others.
    Cost:    one pass of the encoder per window of 30 s, however short the recording, and one of the
             decoder per token.
    Fails:   a bad row never raises. Codes:
        missing, too_large, undecodable, too_long, no_audio, is_video   the recording (see
                             contracts/media.py)
        not_finite           the recording has such samples, or the model overflows (fp16)
        empty                no letter and no digit was written
        repetition           a window's compression ratio is above 2.4 (Whisper's own bound), or
                             most of its text is one thing of up to 40 characters five times on end;
                             the filter ``transcript_is`` takes other bounds
             RecipeError for parameters that cannot be meant; SetupError where a model's files or
             its engine are missing, or where it does not know ``language``; ShardError where the
             GPU's memory does not hold a batch.

    Recordings of any length are heard in windows of 30 s as Whisper's reference does it (Radford et
    al. 2022); each is written without being told the text before it, at temperature 0 and in one
    attempt, and nothing is left out as silence: the probabilities say what to think of it. The same
    recording gives the same text always.

    engine="faster_whisper": a model in CTranslate2's format by folder (./folder), as
        package:NAME/FOLDER inside an installed Python package, by its name on the hub (org/name,
        org/name@revision), or a short name of faster-whisper ("tiny.en", "large-v3"). One recording
        at a time. Needs the extra ``audio``. Validated with tiny.en on English sentences.
    engine="hf": a Whisper of transformers by folder or name on the hub; safetensors only, no code
        from there. Greedy. Needs the extra ``captions``. Equal to transformers' ``generate``, and
        to engine faster_whisper, on small random models.
    Transcripts in other languages than English, and the language that is found, are tested on small
    random models only, and with engine hf only: they are not validated here.
    language: a code of Whisper; null = found by the model (English models: "en").
    beam_size: paths of the search; 1 is greedy. Of engine faster_whisper.
    max_tokens: of one window, then it is cut; 224 is the reference's limit.
    precision: "int8" is for engine faster_whisper. On CPUs it is the faster one.
    batch_size: windows at once, for engine hf, always that many: the last bits of a probability
        depend on it. num_threads: of the CPU; it is inside the fingerprint for the same reason.
    device, num_gpus: as for ``clip_score``.
    column: another name makes room for a second model in the same recipe.
    """

    engine: Engine = result("faster_whisper")
    model: str = effort()
    language: str | None = result(None)
    beam_size: int = result(1)
    max_tokens: int = result(224)
    precision: Precision = result("fp32")
    batch_size: int = result(8)
    write_segments: bool = result(False)
    audio_column: str = result("audio")
    column: str = result(NAME)
    device: Device = effort("auto")
    num_gpus: float | None = effort(None)
    num_threads: int = result(1)

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        _clip_batch.check_options(
            NAME,
            batch_size=self.batch_size,
            num_threads=self.num_threads,
            num_gpus=self.num_gpus,
            device=self.device,
        )
        _clip_batch.check_column(NAME, self.column, (self.audio_column,))
        _require(bool(self.model.strip()), "model", self.model, "a folder or a name")
        _require(1 <= self.beam_size <= 64, "beam_size", self.beam_size, "in 1..64")
        _require(4 <= self.max_tokens <= 224, "max_tokens", self.max_tokens, "in 4..224")
        code = self.language
        good = code is None or (code.isascii() and code.isalpha() and code == code.lower())
        _require(good, "language", code, 'a code of Whisper, such as "en"')
        if self.engine == "hf" and (self.beam_size > 1 or self.precision == "int8"):
            msg = f"{NAME}: beam_size above 1 and precision=int8 are for engine=faster_whisper"
            raise RecipeError(msg)

    @property
    def reads(self) -> pa.Schema:
        """The recording's bytes."""
        return pa.schema({self.audio_column: pa.large_binary()})

    @property
    def writes(self) -> pa.Schema:
        """Text, language, measures, error."""
        columns: dict[str, pa.DataType] = {
            "": pa.string(),
            "_language": pa.string(),
            "_language_probability": pa.float32(),
            "_no_speech_probability": pa.float32(),
            "_log_probability": pa.float32(),
            "_compression_ratio": pa.float32(),
        }
        if self.write_segments:
            columns["_segments"] = pa.list_(SEGMENT)
        columns |= {"_model": pa.string(), "_error": pa.string()}
        return pa.schema({f"{self.column}{name}": kind for name, kind in columns.items()})

    @property
    def resources(self) -> Resources:
        """A whole GPU for device=cuda unless num_gpus says otherwise; none for auto and cpu."""
        return _clip_batch.resources(
            num_threads=self.num_threads, num_gpus=self.num_gpus, device=self.device
        )

    @property
    def batch_rows(self) -> int | None:
        """Whole batches, for the engine whose last bits depend on their shape."""
        return self.batch_size if self.engine == "hf" else None

    def model_digest(self) -> str:
        """Digest of weights, configuration, tokenizer and preprocessing."""
        return find_whisper(self.model, self.engine).digest()

    def setup(self, options: WorkerOptions) -> TranscriptWorker:
        """Load the model; chooses cuDNN's bit-stable kernels for this process."""
        files = find_whisper(self.model, self.engine)
        model = load_whisper(
            files,
            device=self.device,
            precision=self.precision,
            beam_size=self.beam_size,
            max_tokens=self.max_tokens,
            batch_size=self.batch_size,
            num_threads=self.num_threads,
        )
        if self.language not in (None, *model.languages):
            known = ", ".join(model.languages[:100])
            msg = f"{NAME}: language={self.language!r} is not one of {self.model}'s: {known}"
            raise SetupError(msg)
        return TranscriptWorker(model, files.digest())

    def annotate(
        self, batch: pa.RecordBatch, state: TranscriptWorker, media: Media
    ) -> pa.RecordBatch:
        """Transcribe one batch."""
        rows: list[dict[str, object]] = [{}] * batch.num_rows
        group: list[tuple[int, Samples]] = []
        waves = media.waveforms(self.audio_column, sample_rate=SAMPLE_RATE)

        def write() -> None:
            with _clip_batch.forward_pass(
                NAME, batch_size=self.batch_size, num_threads=self.num_threads
            ):
                found = transcribe(state.model, [w for _, w in group], language=self.language)
            for (row, _), one in zip(group, found, strict=True):
                rows[row] = self._row(one, state.digest)
            group.clear()

        for row, wave in enumerate(waves):
            if isinstance(wave, str):
                rows[row] = {f"{self.column}_error": wave}
                continue
            group.append((row, wave))
            if len(group) == state.model.batch_size:
                write()
        if group:
            write()
        return pa.RecordBatch.from_pylist(rows, schema=self.writes)

    def _row(self, heard: Heard, digest: str) -> dict[str, object]:
        measures = (heard.no_speech_probability, heard.log_probability)
        if not all(map(math.isfinite, measures)):
            return {f"{self.column}_error": "not_finite"}
        code = "empty" if not heard.text else "repetition" if heard.repeats else None
        segments = [
            {"start_s": one.start_s, "end_s": one.end_s, "text": one.text.strip()}
            for one in heard.segments
        ]
        values = {
            "": heard.text,
            "_language": heard.language,
            "_language_probability": heard.language_probability,
            "_no_speech_probability": heard.no_speech_probability,
            "_log_probability": heard.log_probability,
            "_compression_ratio": heard.compression_ratio,
            "_segments": segments if self.write_segments else None,
            "_model": digest,
            "_error": code,
        }
        return {f"{self.column}{name}": value for name, value in values.items()}


def _require(good: bool, name: str, value: object, allowed: str) -> None:
    if not good:
        msg = f"{NAME}: {name}={value!r} is not allowed; it must be {allowed}"
        raise RecipeError(msg)
