"""word_error against jiwer called plainly, transformers' normalisers and a naive Levenshtein."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jiwer
import numpy as np
import pyarrow as pa
import pytest
from transformers.models.whisper.english_normalizer import (
    BasicTextNormalizer,
    EnglishTextNormalizer,
)

from tests.scored import annotate
from winnow.contracts.errors import RecipeError
from winnow.contracts.parameters import result_parameters, validate
from winnow.contracts.registry import STAGES
from winnow.contracts.stage import WorkerOptions
from winnow.stages.word_error import WordError, error_rates, plain_normal, split_words, spoken


def distance(a: Sequence[object], b: Sequence[object]) -> int:
    """Edits from ``a`` to ``b``, by the table of all prefixes."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (x != y)))
    return row[-1]


def _compare(rows: list[tuple[Any, Any, Any]], **values: Any) -> list[dict[str, Any]]:
    stage = WordError(**values)
    columns = {
        name: pa.array([row[i] for row in rows], pa.string())
        for i, name in enumerate(("text", "transcript", "transcript_language"))
        if name in stage.reads.names
    }
    uids = pa.array([bytes([i]) * 16 for i in range(len(rows))], pa.binary(16))
    batch = pa.RecordBatch.from_pydict({"uid": uids, **columns})
    found: list[dict[str, Any]] = annotate(stage, stage.setup(WorkerOptions()), batch).to_pylist()
    return found


def test_rates_are_jiwers_and_those_of_a_plain_table() -> None:
    rng = np.random.default_rng(0)
    words = ["a", "ab", "dog", "tree", "caf\u00e9", "\u00fcber", "seven"]
    for _ in range(60):
        reference = " ".join(rng.choice(words, rng.integers(1, 12)))
        hypothesis = " ".join(rng.choice(words, rng.integers(0, 12)))
        found = error_rates(reference, hypothesis)
        assert found is not None
        assert found.words == jiwer.wer(reference, hypothesis)
        assert found.characters == jiwer.cer(reference, hypothesis)
        count = len(reference.split())
        edits = distance(reference.split(), hypothesis.split())
        assert found.words == pytest.approx(edits / count)
        assert found.characters == pytest.approx(distance(reference, hypothesis) / len(reference))
        assert found.num_words == count


def test_english_is_normalised_as_whisper_does() -> None:
    text = "Mr. Smith won't pay twenty-one dollars (laughs), um, it's late!"
    heard = "mister Smith will not pay $21. It is late"
    (row,) = _compare([(text, heard, "en")])
    assert row["word_error_rate"] == row["character_error_rate"] == 0
    english = EnglishTextNormalizer({})
    assert row["num_reference_words"] == len(english(text).split())
    (plain,) = _compare([(text, heard, "de")])
    assert plain["word_error_rate"] > 0.3
    (forced,) = _compare([(text, heard, None)], language="en")
    assert forced == row


def test_other_languages_are_normalised_plainly() -> None:
    basic = BasicTextNormalizer()
    for text in (
        "Das MUSEUM, gestern: [Musik] kaufte (leise) ein Bild!", "caf\u00e9 \u2014 na\u00efve",
        "\uff26\uff55\uff4c\uff4c width", "a_b-c...d 3,5", "",
    ):  # fmt: skip
        assert plain_normal(text) == basic(text).strip()
    hindi = "\u0939\u093f\u0928\u094d\u0926\u0940"
    assert plain_normal(hindi) == hindi  # Whisper's makes five pieces of this word
    (row,) = _compare([("Stra\u00dfe, gro\u00df", "STRASSE GROSS", "de")])
    assert row["word_error_rate"] == 0


def test_scripts_without_spaces_are_counted_by_character() -> None:
    assert split_words("iphone\u624b\u673aab \u4eca\u5929") == [
        "iphone", "\u624b", "\u673a", "ab", "\u4eca", "\u5929",
    ]  # fmt: skip
    assert split_words("\u0e01\u0e33\u0e17\u0e35\u0e48") == [
        "\u0e01", "\u0e33", "\u0e17\u0e35\u0e48",
    ]  # fmt: skip
    chinese = ("\u4eca\u5929\u5929\u6c14\u5f88\u597d", "\u4eca\u5929 \u5929\u6c14 \u597d", "zh")
    (row,) = _compare([chinese])
    assert row["num_reference_words"] == 6
    assert row["word_error_rate"] == row["character_error_rate"] == np.float32(1 / 6)


def test_rows_that_cannot_be_compared_get_a_code() -> None:
    rows = _compare(
        [
            (None, "x", "en"), ("a cat", None, "en"), ("", "x", "en"), (" ?! ", "x", "de"),
            ("[music]", "x", "en"), ("a cat", "", "en"), ("a cat", "a cat", None),
            (None, None, None),
        ]
    )  # fmt: skip
    assert [row["word_error_error"] for row in rows] == [
        "empty_text", "no_transcript", "empty_text", "empty_text", "empty_text", None, None,
        "empty_text",
    ]  # fmt: skip
    for row in rows:
        failed = row["word_error_error"] is not None
        assert all((v is None) == failed for k, v in row.items() if k != "word_error_error")
    assert (rows[5]["word_error_rate"], rows[6]["word_error_rate"]) == (1.0, 0.0)


def test_more_words_than_the_caption_has_are_above_one() -> None:
    (row,) = _compare([("yes", "no no no no", "en")])
    assert row["word_error_rate"] == 4


@pytest.mark.parametrize(
    "text",
    ["(" * 20_000, "[" * 20_000, "<" * 20_000, " " * 20_000 + "x", "1" * 9_000, "\x00\u202e"],
)
def test_hostile_text_ends_soon(text: str) -> None:
    """Whisper's own patterns take seconds and more for these brackets; its numbers have an end."""
    (row,) = _compare([("a cat " + text, text + " a cat", "en")])
    assert row["word_error_error"] is None


def test_brackets_without_a_partner_are_dropped() -> None:
    assert spoken("a (b) c) [d (e] <f> ((g)) h") == "a c h"


def test_names_and_parameters() -> None:
    assert STAGES["word_error"] is WordError
    assert WordError().reads.names == ["text", "transcript", "transcript_language"]
    stage = WordError(text_column="title", transcript_column="second", language="en")
    assert stage.reads.names == ["title", "second"]
    assert result_parameters(WordError()) == {
        "text_column": "text", "transcript_column": "transcript",
        "language_column": "transcript_language", "language": None,
    }  # fmt: skip
    for values, message in (
        ({"text_column": ""}, "cannot be compared"),
        ({"text_column": "transcript"}, "cannot be compared"),
        ({"language": "e n"}, "language='e n'"),
    ):
        with pytest.raises(RecipeError, match=message):
            WordError(**validate(WordError, values))
