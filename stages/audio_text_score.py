"""Audio-text score: how well a recording and its caption agree, by CLAP or a tower trained here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from winnow.contracts.errors import RecipeError
from winnow.contracts.media import Media, MediaFailure, Samples
from winnow.contracts.parameters import effort, result
from winnow.contracts.registry import register_stage
from winnow.contracts.stage import Resources, Stage, WorkerOptions
from winnow.stages import _clip_batch
from winnow.stages._clip_batch import Device, Floats, Precision

if TYPE_CHECKING:
    from winnow.models.audio_text import AudioTextFiles, AudioTextModel

NAME = "audio_text_score"


@register_stage(NAME, version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class AudioTextScore(Stage):
    """Score each audio-text pair with a contrastive model.

    Reads:   <audio_column> (audio): large_binary, encoded bytes.  <text_column> (text): string.
    Writes:  <column> (audio_text_score): float32, the cosine of the two embeddings, in [-1, 1]
             (CLAP, Wu et al. 2023; Elizalde et al. 2023); null exactly when <column>_error is set.
             audio_embedding, audio_text_embedding: fixed_size_list<float16>[width], unit vectors of
             recording and caption; only with write_embeddings, under these names whatever
             ``column`` is; null where the score is.
             <column>_error: string (audio_text_score_error); null, or "missing" | "too_large" |
             "undecodable" | "too_long" | "no_audio" | "is_video" | "not_finite" (the recording; see
             contracts/media.py; "not_finite" also: a model that overflows in fp16), "empty_text"
             (null or white space).
    Cost:    one forward pass of both towers; the model's own share of a GPU where num_gpus says so.
             A batch is always ``batch_size`` rows: rows that fail, and those that a short batch
             lacks, are padding, because a score's last bits depend on the shape of the batch.
    Fails:   a bad row never raises. SetupError for a model that is not there or is none of these;
             ShardError where the GPU's memory does not hold a batch.

    model: the folder of a model trained here (with audio_model.json), or a CLAP of transformers by
    folder (./folder) or by its name on the hub (org/name, org/name@revision); safetensors only. The
    *content* it names enters the fingerprint. CLAP needs the extra ``captions``.
    A model hears the beginning of a recording, CLAP the first 10 s; a shorter one is repeated as
    CLAP's own preprocessing says. A caption is cut at 77 tokens (of CLAP).
    precision: of CLAP; a tower trained here computes in float32.
    num_threads: torch's threads on the CPU, inside the fingerprint as for ``clip_score``, whose
    other parameters are these too.
    """

    model: str = effort()
    batch_size: int = result(32)
    precision: Precision = result("fp32")
    audio_column: str = result("audio")
    text_column: str = result("text")
    write_embeddings: bool = result(False)
    device: Device = effort("auto")
    num_gpus: float | None = effort(None)
    num_threads: int = result(1)
    column: str = result(NAME)

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        _clip_batch.check_options(
            NAME,
            batch_size=self.batch_size,
            num_threads=self.num_threads,
            num_gpus=self.num_gpus,
            device=self.device,
        )
        _clip_batch.check_column(NAME, self.column, (self.audio_column, self.text_column))
        if not self.model.strip():
            msg = f"{NAME}: model={self.model!r}; give a folder, or a CLAP's name on the hub"
            raise RecipeError(msg)

    @property
    def reads(self) -> pa.Schema:
        """The recording's bytes and the caption."""
        return pa.schema({self.audio_column: pa.large_binary(), self.text_column: pa.string()})

    @property
    def writes(self) -> pa.Schema:
        """The score, the embeddings where asked for, the error."""
        columns: dict[str, pa.DataType] = {self.column: pa.float32()}
        if self.write_embeddings:
            vector = pa.list_(pa.float16(), self._files().width)
            columns |= {"audio_embedding": vector, "audio_text_embedding": vector}
        return pa.schema({**columns, f"{self.column}_error": pa.string()})

    @property
    def resources(self) -> Resources:
        """A whole GPU for device=cuda unless num_gpus says otherwise; none for auto and cpu."""
        return _clip_batch.resources(
            num_threads=self.num_threads, num_gpus=self.num_gpus, device=self.device
        )

    @property
    def batch_rows(self) -> int:
        """A score's last bits depend on the shape of its batch."""
        return self.batch_size

    def model_digest(self) -> str:
        """Digest of weights, configuration, tokenizer and preprocessing."""
        return self._files().digest()

    def setup(self, options: WorkerOptions) -> AudioTextModel:
        """Load the model; chooses cuDNN's bit-stable kernels for this process."""
        from winnow.models.audio_text import load_audio_text_model

        _clip_batch.choose_stable_kernels()
        return load_audio_text_model(self._files(), device=self.device, precision=self.precision)

    def annotate(
        self, batch: pa.RecordBatch, state: AudioTextModel, media: Media
    ) -> pa.RecordBatch:
        """Score one batch of up to ``batch_size`` rows."""
        _clip_batch.check_rows(NAME, batch.num_rows, self.batch_size)
        texts = batch.column(self.text_column).to_pylist()
        waves = _heard(media.waveforms(self.audio_column, sample_rate=state.sample_rate), state)
        codes = [_clip_batch.row_code(w, text) for w, text in zip(waves, texts, strict=True)]
        found = None
        if any(code is None for code in codes):
            found = self._embed(state, waves, texts, codes)
        return _clip_batch.scored(self.writes, found, codes)

    def _files(self) -> AudioTextFiles:
        from winnow.models.audio_text import find_audio_text_model

        return find_audio_text_model(self.model)

    def _embed(
        self,
        model: AudioTextModel,
        waves: Sequence[Samples | MediaFailure],
        texts: Sequence[str],
        codes: list[str | None],
    ) -> tuple[Floats, Floats]:
        """Return unit vectors (2, rows, width), audio then text, and their cosines.

        Rows with a code are padding. Sets the code "not_finite".
        """
        silence = np.zeros(model.sample_rate, np.float32)
        missing = self.batch_size - len(codes)
        heard, said = [silence] * len(codes), [""] * len(codes)
        for row, (wave, text) in enumerate(zip(waves, texts, strict=True)):
            if codes[row] is None and not isinstance(wave, str):
                heard[row], said[row] = wave, text
        with _clip_batch.forward_pass(
            NAME, batch_size=self.batch_size, num_threads=self.num_threads
        ):
            text_BD = model.embed_texts([*said, *[""] * missing])
            audio_BD = model.embed_audio([*heard, *[silence] * missing])
            return _clip_batch.compared(audio_BD, text_BD, codes)


def _heard(
    waves: Iterable[Samples | MediaFailure], model: AudioTextModel
) -> list[Samples | MediaFailure]:
    """Return what the model hears of each recording, so that no batch holds hours of sound."""
    most = int(model.max_duration_s * model.sample_rate)
    return [wave if isinstance(wave, str) else wave[:most].copy() for wave in waves]
