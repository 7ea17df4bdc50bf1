"""Whisper by transformers: any WhisperForConditionalGeneration whose weights are safetensors.

The decoding is this file's own greedy loop, with transformers' rules for time stamps: ``generate``
does not give the probability of no speech, and drops rows that have ended from the batch.

Tensor suffixes: B batch, M mel bins, T frames, N samples, L tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from winnow.contracts.errors import SetupError
from winnow.contracts.media import Samples
from winnow.models.devices import DTYPES, Precision, choose_device
from winnow.models.hf_loading import load_whole
from winnow.models.whisper import HOP, SAMPLE_RATE, Clip, Floats, Written
from winnow.models.whisper_files import WhisperFiles

_NEEDED = ("no_timestamps_token_id", "decoder_start_token_id", "eos_token_id")


@dataclass(frozen=True, kw_only=True, slots=True)
class HfWhisper:
    """A loaded model; see ``winnow.models.whisper.Whisper``. settings: its generation_config."""

    network: Any
    extractor: Any
    tokenizer: Any
    settings: Any
    device: torch.device
    batch_size: int
    max_tokens: int
    languages: tuple[str, ...]

    @property
    def window_frames(self) -> int:
        """3000."""
        return int(self.extractor.nb_max_frames)

    @property
    def stamp_zero(self) -> int:
        """The token of 0.00 s."""
        return int(self.settings.no_timestamps_token_id) + 1

    @property
    def end(self) -> int:
        """The end token."""
        return int(self.settings.eos_token_id)

    def clip(self, samples_N: Samples) -> Clip:
        """Return the log-mel spectrogram, by transformers' own extractor.

        As there, a recording that fits one window is padded with silence before the spectrogram is
        made, a longer one behind it.
        """
        fits = len(samples_N) <= self.extractor.n_samples
        found = self.extractor(
            samples_N,
            sampling_rate=SAMPLE_RATE,
            padding="max_length" if fits else "longest",
            truncation=fits,
            return_tensors="np",
        )
        mel_MT = np.asarray(found.input_features[0], np.float32)
        return Clip(log_mel=mel_MT, num_frames=max(1, len(samples_N) // HOP))

    def encode(self, windows: Sequence[Floats]) -> torch.Tensor:
        """Run the encoder on exactly ``batch_size`` windows; padding comes last."""
        missing = self.batch_size - len(windows)
        batch_BMT = np.stack([*windows, *[np.zeros_like(windows[0])] * missing])
        dtype = next(self.network.parameters()).dtype
        with torch.inference_mode():
            features = torch.from_numpy(batch_BMT).to(self.device, dtype)
            states: torch.Tensor = self.network.model.encoder(features).last_hidden_state
        return states

    def languages_of(self, encoded: torch.Tensor) -> list[tuple[str, float]]:
        """Return the likeliest language of each window: the first token's, among the languages."""
        start = torch.full((len(encoded), 1), self.settings.decoder_start_token_id)
        logits_BV, _ = self._step(encoded, start.to(self.device), None)
        names = [name[2:-2] for name in self.settings.lang_to_id]
        ids = torch.tensor(list(self.settings.lang_to_id.values()), device=self.device)
        best = logits_BV[:, -1][:, ids].softmax(dim=1).max(dim=1)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [(names[index], value) for index, value in pairs]

    def write(self, encoded: torch.Tensor, languages: Sequence[str]) -> list[Written]:
        """Write greedily until the last row has ended."""
        count = len(languages)
        prompt = self._prompts([*languages, *["en"] * (self.batch_size - count)])
        rules = self._rules(prompt.shape[1])
        ids_BL, given, cache = prompt, prompt, None
        logs_B = torch.zeros(len(prompt), device=self.device)
        ended_B = torch.zeros(len(prompt), dtype=torch.bool, device=self.device)
        ended_B[count:] = True
        silent_B = logs_B
        for step in range(self.max_tokens):
            logits_BLV, cache = self._step(encoded, given, cache)
            if step == 0:
                silent_B = logits_BLV[:, 0].softmax(dim=1)[:, self.stamp_zero - 2]
            scores_BV = logits_BLV[:, -1]
            for rule in rules:
                scores_BV = rule(ids_BL, scores_BV)
            best = scores_BV.log_softmax(dim=1).max(dim=1)
            tokens_B = best.indices.masked_fill(ended_B, self.end)
            logs_B = logs_B + best.values.masked_fill(ended_B, 0.0)
            ended_B = ended_B | (tokens_B == self.end)
            given = tokens_B[:, None]
            ids_BL = torch.cat([ids_BL, given], dim=1)
            if bool(ended_B.all()):
                break
        texts = ids_BL[:count, prompt.shape[1] :].tolist()
        return [
            Written(tokens=_before(tokens, self.end), log_probability=log, no_speech=silent)
            for tokens, log, silent in zip(texts, logs_B.tolist(), silent_B.tolist(), strict=False)
        ]

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        words = [token for token in tokens if token < self.end]
        return str(self.tokenizer.decode(words, skip_special_tokens=True))

    def _prompts(self, languages: Sequence[str]) -> torch.Tensor:
        start = self.settings.decoder_start_token_id
        if len(self.languages) == 1:
            return torch.full((len(languages), 1), start, device=self.device)
        task = self.settings.task_to_id["transcribe"]
        rows = [[start, self.settings.lang_to_id[f"<|{code}|>"], task] for code in languages]
        return torch.tensor(rows, device=self.device)

    def _step(
        self, encoded: torch.Tensor, given_BL: torch.Tensor, cache: Any
    ) -> tuple[torch.Tensor, Any]:
        """Return float32 logits (B, L, V) of the given tokens, and the cache with them."""
        with torch.inference_mode():
            out = self.network(
                encoder_outputs=(encoded,),
                decoder_input_ids=given_BL,
                past_key_values=cache,
                use_cache=True,
            )
        return out.logits.float(), out.past_key_values

    def _rules(self, begin: int) -> list[Any]:
        from transformers.generation import logits_process as known

        rules: list[Any] = []
        device = str(self.device)
        if self.settings.suppress_tokens:
            rules.append(known.SuppressTokensLogitsProcessor(self.settings.suppress_tokens, device))
        if self.settings.begin_suppress_tokens:
            first = self.settings.begin_suppress_tokens
            rules.append(known.SuppressTokensAtBeginLogitsProcessor(first, begin, device))
        return [*rules, known.WhisperTimeStampLogitsProcessor(self.settings, begin_index=begin)]


def load_hf_whisper(
    files: WhisperFiles, *, device: str, precision: Precision, batch_size: int, max_tokens: int
) -> HfWhisper:
    """Load a model that was found; code from its folder never runs.

    Fails: SetupError where transformers is missing, where the folder holds no whole Whisper.
    """
    where = choose_device(device)
    network, extractor, tokenizer = load_whole(
        files,
        ("WhisperForConditionalGeneration", "WhisperFeatureExtractor", "AutoTokenizer"),
        dtype=DTYPES[precision],
        kind="Whisper",
        who="engine=hf needs",
    )
    settings = network.generation_config
    lacking = next((name for name in _NEEDED if getattr(settings, name, None) is None), None)
    if lacking is not None:
        msg = f"model={files.name!r}: generation_config.json has no {lacking}; a Whisper needs it"
        raise SetupError(msg)
    most = int(network.config.max_target_positions) - 4
    if max_tokens > most:
        msg = f"max_tokens={max_tokens} is more than the model takes; use {most}"
        raise SetupError(msg)
    multilingual = getattr(settings, "is_multilingual", False)
    languages = tuple(name[2:-2] for name in settings.lang_to_id) if multilingual else ("en",)
    return HfWhisper(
        network=network.to(where).eval(),
        extractor=extractor,
        tokenizer=tokenizer,
        settings=settings,
        device=where,
        batch_size=batch_size,
        max_tokens=max_tokens,
        languages=languages,
    )


def _before(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens
