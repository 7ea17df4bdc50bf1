"""Word error: how far a caption is from the transcript of its recording."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa

from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.media import Media
from winnow.contracts.parameters import result
from winnow.contracts.registry import register_stage
from winnow.contracts.stage import Stage, WorkerOptions

NAME = "word_error"
INSTALL = 'pip install "winnow-data[audio,captions]"'
Normalise = Callable[[str], str]

_ASIDES = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|\([^()]*\)")
_BRACKETS = re.compile(r"[()\[\]<>]")
_UNSPACED = (  # Thai, Lao, Burmese, Khmer, kana, Han
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_HAS_UNSPACED = re.compile(f"[{_UNSPACED}]")
_SPACE_BESIDE = re.compile(f"(?<=[{_UNSPACED}]) | (?=[{_UNSPACED}])")


class Rates(NamedTuple):
    """Edits per word and per character of the reference."""

    words: float
    characters: float
    num_words: int


def plain_normal(text: str) -> str:
    """Return what is compared of a text: NFKC, case folded, letters, digits and their marks.

    What stands in (), [] or <> is left out (it describes and is not said), and all else is a space:
    as Whisper's normaliser for other languages (Radford et al. 2022, appendix C), except that it
    makes a space of combining marks too, which breaks Indic words.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    said = spoken(folded)
    kept = "".join(c if unicodedata.category(c)[0] in "LNM" else " " for c in said)
    return " ".join(kept.split())


def spoken(text: str) -> str:
    """Return a text without what stands in brackets, single ones dropped, white space single.

    Also what makes the patterns of Whisper's normaliser quadratic: thousands of open brackets.
    """
    return " ".join(_BRACKETS.sub(" ", _ASIDES.sub(" ", text)).split())


def split_words(normal: str) -> list[str]:
    """Return the words; each character of a script that writes no spaces is one, with its marks."""
    words: list[str] = []
    for token in normal.split():
        if not _HAS_UNSPACED.search(token):
            words.append(token)
            continue
        joined = False
        for character in token:
            alone = _HAS_UNSPACED.match(character) is not None
            mark = unicodedata.category(character)[0] == "M"
            if words and joined and (mark or not (alone or _HAS_UNSPACED.match(words[-1][0]))):
                words[-1] += character
            else:
                words.append(character)
            joined = True
    return words


def error_rates(reference: str, hypothesis: str) -> Rates | None:
    """Return the rates of two normalised texts, by jiwer; None where the reference has no word."""
    import jiwer

    words = split_words(reference)
    if not words:
        return None
    return Rates(
        words=float(jiwer.wer(" ".join(words), " ".join(split_words(hypothesis)))),
        characters=float(
            jiwer.cer(_SPACE_BESIDE.sub("", reference), _SPACE_BESIDE.sub("", hypothesis))
        ),
        num_words=len(words),
    )


@register_stage(NAME, version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class WordError(Stage):
    """Compare each caption with what was heard in its recording.

    Reads:   <text_column> (text): string, the reference.  <transcript_column> (transcript): string,
             the hypothesis.  <language_column> (transcript_language): string, unless
             ``language`` is given.
    Writes:  word_error_rate: float32, >= 0: substituted, deleted and inserted words over words of
             the caption (Levenshtein, by jiwer); above 1 where much more was heard. Han, kana,
             Thai, Lao, Khmer and Burmese write no spaces: each of their characters is a word, as
             in Whisper's evaluation.
             character_error_rate: float32, >= 0: the same of characters; the space between words
             is one, but none beside those scripts.
             num_reference_words: int32, words of the caption, as compared.
             word_error_error: string; null, or "empty_text" (no caption, or nothing of it is left
             to compare), "no_transcript" (null; an empty one, where nobody was heard, is compared
             and has the rate 1). The other columns are null exactly where it is set.
    Cost:    CPU only, about 0.3 ms a row.
    Fails:   a row never raises. RecipeError if a name is empty; SetupError where jiwer or
             transformers is missing.

    Both texts are normalised in the same way, by the language of the recording. English: Whisper's
    own normaliser, as transformers has it (contractions, numbers in words, titles, "um"), without
    its table of British spellings. Other languages: see ``plain_normal``.
    language: null = each row's own; "en" for all rows where captions are known to be English.
    """

    text_column: str = result("text")
    transcript_column: str = result("transcript")
    language_column: str = result("transcript_language")
    language: str | None = result(None)

    writes = pa.schema(
        {
            "word_error_rate": pa.float32(),
            "character_error_rate": pa.float32(),
            "num_reference_words": pa.int32(),
            "word_error_error": pa.string(),
        }
    )

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        names = (self.text_column, self.transcript_column, self.language_column)
        if not all(names) or self.text_column == self.transcript_column:
            msg = f"{NAME}: the columns {names} cannot be compared; name a caption and a transcript"
            raise RecipeError(msg)
        if self.language is not None and not self.language.isalpha():
            msg = f'{NAME}: language={self.language!r}; use a code such as "en"'
            raise RecipeError(msg)

    @property
    def reads(self) -> pa.Schema:
        """Both texts, and the language where it is a column."""
        columns = {self.text_column: pa.string(), self.transcript_column: pa.string()}
        if self.language is None:
            columns[self.language_column] = pa.string()
        return pa.schema(columns)

    def setup(self, options: WorkerOptions) -> Normalise:
        """Return Whisper's English normaliser."""
        try:
            import jiwer  # noqa: F401
            from transformers.models.whisper.english_normalizer import EnglishTextNormalizer
        except ImportError as error:
            msg = f"{NAME} needs jiwer and transformers: {INSTALL}"
            raise SetupError(msg) from error
        english: Normalise = EnglishTextNormalizer({})
        return english

    def annotate(self, batch: pa.RecordBatch, state: Normalise, media: Media) -> pa.RecordBatch:
        """Compare one batch."""
        texts = batch.column(self.text_column).to_pylist()
        heard = batch.column(self.transcript_column).to_pylist()
        if self.language is None:
            languages = batch.column(self.language_column).to_pylist()
        else:
            languages = [self.language] * batch.num_rows
        rows = [
            self._row(text, said, state if language == "en" else None)
            for text, said, language in zip(texts, heard, languages, strict=True)
        ]
        return pa.RecordBatch.from_pylist(rows, schema=self.writes)

    def _row(
        self, text: str | None, heard: str | None, english: Normalise | None
    ) -> dict[str, object]:
        if text is None:
            return {"word_error_error": "empty_text"}
        if heard is None:
            return {"word_error_error": "no_transcript"}
        reference, hypothesis = _normal_pair(text, heard, english)
        rates = error_rates(reference, hypothesis)
        if rates is None:
            return {"word_error_error": "empty_text"}
        return {
            "word_error_rate": rates.words,
            "character_error_rate": rates.characters,
            "num_reference_words": rates.num_words,
        }


def _normal_pair(text: str, heard: str, english: Normalise | None) -> tuple[str, str]:
    """Return both texts normalised; plainly where the English rules fail on either."""
    if english is not None:
        try:
            return english(spoken(text)), english(spoken(heard))
        except (ValueError, ArithmeticError, LookupError, AssertionError, TypeError):
            pass
    return plain_normal(text), plain_normal(heard)
