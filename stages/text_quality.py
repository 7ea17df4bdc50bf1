"""Quality of documents: what the rules of Gopher and C4 look at, in numbers; perplexity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from winnow.contracts.media import Media
from winnow.contracts.parameters import effort
from winnow.contracts.registry import register_stage
from winnow.contracts.stage import Stage, WorkerOptions
from winnow.stages import _text_rules as rules
from winnow.stages._words import split_words

if TYPE_CHECKING:
    from winnow.models.language_model import LanguageModel

NAME = "text_quality"
_MEASURES: dict[str, pa.DataType] = {
    "num_text_words": pa.int32(),
    "mean_word_length": pa.float32(),
    "symbol_word_ratio": pa.float32(),
    "bullet_line_ratio": pa.float32(),
    "ellipsis_line_ratio": pa.float32(),
    "alphabetic_word_ratio": pa.float32(),
    "num_stop_words": pa.int32(),
    "duplicate_line_ratio": pa.float32(),
    "duplicate_line_character_ratio": pa.float32(),
    "duplicate_paragraph_ratio": pa.float32(),
    "duplicate_paragraph_character_ratio": pa.float32(),
    "terminal_line_ratio": pa.float32(),
    "clean_line_ratio": pa.float32(),
    "num_clean_sentences": pa.int32(),
    "num_javascript_lines": pa.int32(),
    "num_policy_lines": pa.int32(),
    "has_curly_bracket": pa.bool_(),
    "has_lorem_ipsum": pa.bool_(),
    **{f"top_{n}gram_ratio": pa.float32() for n in rules.TOP_NGRAMS},
    **{f"duplicate_{n}gram_ratio": pa.float32() for n in rules.DUPLICATE_NGRAMS},
}
_BLOCK_CHARACTERS = 1 << 20


def measure(text: str, words: Sequence[str]) -> tuple[Any, ...]:
    """Return every measure but those of runs of words, in order of the columns."""
    lines = rules.lines_of(text)
    by_line, by_paragraph = rules.repeats(lines), rules.repeats(rules.paragraphs_of(text))
    cleaning = rules.clean_lines(lines, [_at_least_words(line) for line in lines])
    lowered = text.lower()
    return (
        len(words),
        sum(map(len, words)) / len(words) if words else 0.0,
        rules.symbol_ratio(text, len(words)),
        rules.starting_share(lines, rules.BULLETS),
        rules.ending_share(lines, rules.ELLIPSES),
        rules.alphabetic_share(words),
        len(rules.STOP_WORDS.intersection(words)),
        by_line.share,
        by_line.character_share,
        by_paragraph.share,
        by_paragraph.character_share,
        cleaning.terminal,
        cleaning.kept,
        cleaning.sentences,
        cleaning.javascript,
        cleaning.policy,
        "{" in text or "}" in text,
        "lorem ipsum" in lowered,
    )


def _at_least_words(line: str) -> int:
    """Return the number of words, up to what a rule asks for where that is seen at once."""
    if line.count(" ") >= rules.MIN_LINE_WORDS and "  " not in line:
        return rules.MIN_LINE_WORDS
    return len(split_words(line))


@register_stage(NAME, version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class TextQuality(Stage):
    """Measure each document by the rules of Gopher (Rae et al. 2021) and C4 (Raffel et al. 2020).

    Words are parts between white space in small letters, with their punctuation; each Han or kana
    character is a word. Thai, Lao, Khmer and Burmese write no spaces: there a phrase is one word,
    and the word counts, mean_word_length and runs of words say little; nor do stop words and
    sentences in other languages than English. Lines and paragraphs are those with something in
    them. Ratios are 0 where there is no word or no line.

    Reads:   text: string; null = no text.
    Writes:  num_text_words: int32.  mean_word_length: float32, characters.
             symbol_word_ratio: float32, "#" or ellipses ("...", U+2026), the more frequent, a word.
             bullet_line_ratio, ellipsis_line_ratio: float32 in [0, 1], lines that start with a
             bullet (U+2022 and its kind, "-", "*"), lines that end in an ellipsis.
             alphabetic_word_ratio: float32 in [0, 1], words with a letter.
             num_stop_words: int32 in 0..8, which of the, be, to, of, and, that, have, with occur.
             duplicate_line_ratio, duplicate_paragraph_ratio: float32 in [0, 1], those that came
             before among all; duplicate_line_character_ratio, duplicate_paragraph_character_ratio:
             their characters among those of all.
             top_2gram_ratio, top_3gram_ratio, top_4gram_ratio: float32 in [0, 1], share of the
             words' characters in the most frequent run of n words (the longest, then the first, of
             equally frequent ones); 0 if no run occurs twice.
             duplicate_5gram_ratio, duplicate_6gram_ratio, duplicate_7gram_ratio,
             duplicate_8gram_ratio, duplicate_9gram_ratio, duplicate_10gram_ratio: float32 in
             [0, 1], share of the words' characters in runs of n words that came before, each
             character once.
             terminal_line_ratio: float32 in [0, 1], lines that end in . ! ? or a quotation mark,
             and not in "...".  clean_line_ratio: lines that C4 would keep: these, of 5 words or
             more, without "javascript" and without the words of a policy notice.
             num_clean_sentences: int32, sentences in those: marks . ! ? before white space, and the
             end of the line.  num_javascript_lines, num_policy_lines: int32.
             has_curly_bracket, has_lorem_ipsum: bool.
             text_perplexity: float32 >= 1, if ``language_model`` is given: of the text's first
             tokens, as many as the model takes at once (each text by itself, so that it depends on
             no other); null also where no token can be scored.
             text_quality_error: string; null, or "missing" (text is null: all else is null too).
    Cost:    CPU, about 0.22 ms for 330 words; with a language model one pass of it per text.
    Fails:   a row never raises. SetupError where a language model is missing or does not load.

    language_model: null, "tiny-lm" (packaged), a folder, or a name on the Hugging Face hub. Its
    content enters the fingerprint.
    """

    language_model: str | None = effort(None)
    device: str = effort("auto")

    @property
    def reads(self) -> pa.Schema:
        """The document."""
        return pa.schema({"text": pa.string()})

    @property
    def writes(self) -> pa.Schema:
        """Measures, perplexity, error."""
        perplexity = {} if self.language_model is None else {"text_perplexity": pa.float32()}
        return pa.schema({**_MEASURES, **perplexity, "text_quality_error": pa.string()})

    def model_digest(self) -> str:
        """Digest of the language model's files."""
        if self.language_model is None:
            return ""
        from winnow.models.language_model import find_language_model

        return find_language_model(self.language_model).digest()

    def setup(self, options: WorkerOptions) -> LanguageModel | None:
        """Load the language model, if there is one."""
        if self.language_model is None:
            return None
        from winnow.models.language_model import find_language_model, load_language_model

        return load_language_model(find_language_model(self.language_model), device=self.device)

    def annotate(
        self, batch: pa.RecordBatch, state: LanguageModel | None, media: Media
    ) -> pa.RecordBatch:
        """Return the measures of each document."""
        column = batch.column("text")
        rows = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
        texts = column.drop_null().to_pylist()
        measured = _measured(texts)
        arrays = [_spread(values, rows, batch.num_rows, measured.field(i).type)
                  for i, values in enumerate(measured.columns)]  # fmt: skip
        if state is not None:
            values = pa.array([_perplexity(state, text) for text in texts], pa.float32())
            arrays.append(_spread(values, rows, batch.num_rows, pa.float32()))
        errors = pa.array(["missing"] * batch.num_rows, pa.string(), mask=column.is_valid())
        return pa.RecordBatch.from_arrays([*arrays, errors], schema=self.writes)


def _measured(texts: Sequence[str]) -> pa.Table:
    """Return the measures, block by block: what a text gets does not depend on its block."""
    tables = []
    first = 0
    while first < len(texts):
        last, size = first, 0
        while last < len(texts) and (last == first or size < _BLOCK_CHARACTERS):
            size += len(texts[last])
            last += 1
        tables.append(_block(texts[first:last]))
        first = last
    return pa.concat_tables(tables or [pa.schema(_MEASURES).empty_table()]).combine_chunks()


def _block(texts: Sequence[str]) -> pa.Table:
    words = [split_words(text.lower()) for text in texts]
    columns = list(zip(*map(measure, texts, words), strict=True))
    repetition = rules.WordRuns(words).repetition()
    columns += [tuple(repetition.top[n]) for n in rules.TOP_NGRAMS]
    columns += [tuple(repetition.duplicate[n]) for n in rules.DUPLICATE_NGRAMS]
    schema = pa.schema(_MEASURES)
    arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.table(arrays, schema=schema)


def _spread(
    values: pa.ChunkedArray | pa.Array, rows: np.ndarray, num_rows: int, kind: pa.DataType
) -> pa.Array:
    """Return a column with the values at their rows and null elsewhere."""
    places = np.full(num_rows, -1)
    places[rows] = np.arange(len(rows))
    index = pa.array(places, mask=places < 0)
    found = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return found.cast(kind).take(index)


def _perplexity(model: LanguageModel, text: str) -> float | None:
    from winnow.models.language_model import perplexity

    value = perplexity(model, [text], batch_size=1).value
    return None if math.isnan(value) else value
