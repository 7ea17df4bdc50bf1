"""caption_stats against naive loops, and the shapes of captions."""

from __future__ import annotations

import math
import pickle

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.contracts.errors import RecipeError
from winnow.contracts.registry import STAGES
from winnow.stages.caption_stats import (
    MAX_CHARACTERS,
    CaptionStats,
    alphanumeric_ratio,
    caption_shape,
    character_repetition_ratio,
    split_words,
    word_repetition_ratio,
)


def _annotate(texts: list[str | None], **parameters: int) -> list[dict[str, object]]:
    stage = CaptionStats(**parameters)
    batch = pa.record_batch({"text": pa.array(texts, pa.string())})
    out = stage.annotate(batch, None, None)  # type: ignore[arg-type]
    assert out.schema == stage.writes
    return out.to_pylist()


def naive_words(text: str, n: int) -> float:
    words = [w.lower() for w in split_words(text)]
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return sum(grams.count(g) > 1 for g in grams) / len(grams) if grams else 0.0


def naive_characters(text: str, n: int) -> float:
    grams = [text[i : i + n] for i in range(len(text) - n + 1)]
    if not grams:
        return 0.0
    counts = sorted((grams.count(g) for g in set(grams)), reverse=True)
    repeated = sum(c > 1 for c in counts)
    return sum(counts[: min(int(math.sqrt(len(counts))), repeated)]) / len(grams)


texts = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="ab A1.\u8eca\u3001", max_size=60),
    st.lists(st.sampled_from(["red", "car", "Red", "a", "1"]), max_size=15).map(" ".join),
)


@settings(max_examples=300, deadline=None)
@given(texts, st.integers(1, 4), st.integers(2, 11))
def test_ratios_equal_naive_loops(text: str, words: int, characters: int) -> None:
    row = _annotate([text], word_ngram=words, character_ngram=characters)[0]
    letters = sum(1 for c in text if c.isalnum())
    assert row["num_characters"] == len(text)
    assert row["num_words"] == len(split_words(text))
    assert row["alphanumeric_ratio"] == pytest.approx(letters / max(1, len(text)))
    assert row["word_repetition_ratio"] == pytest.approx(naive_words(text, words))
    assert row["character_repetition_ratio"] == pytest.approx(naive_characters(text, characters))


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(max_codepoint=0x2FFF)))
def test_words_without_han_and_kana_are_datacomps(text: str) -> None:
    assert split_words(text) == text.split()


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        (" a  red\tcar\n", 3),
        ("\u8d64\u3044\u8eca", 3),
        ("iPhone\u7528\u30b1\u30fc\u30b9 2", 6),
        ("\u8eca\u3001\u9053\u3002\uff01", 2),
        ("\ube68\uac04 \uc790\ub3d9\ucc28", 2),
        ("\u0e23\u0e16\u0e2a\u0e35\u0e41\u0e14\u0e07", 1),
    ],
)
def test_words(text: str, count: int) -> None:
    assert len(split_words(text)) == count


def test_known_ratios() -> None:
    assert alphanumeric_ratio("ab 1!") == pytest.approx(0.6)
    shoes = ["buy", "shoes", "Buy", "shoes", "now"]
    assert word_repetition_ratio(shoes, 2) == pytest.approx(0.5)
    assert word_repetition_ratio(["cheap", "cheap"], 2) == 0.0
    assert character_repetition_ratio("ha" * 9, 10) == pytest.approx(5 / 9)
    assert character_repetition_ratio("A red car on a road.", 10) == 0.0


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("", "empty"),
        (" \n\t\0", "empty"),
        ("https://a.example/b.jpg?x=1", "url"),
        ("(http://a.example)", "url"),
        ("//cdn.example/a", "url"),
        ("www.example.org", "url"),
        ("shutterstock.com", "url"),
        ("data:image/png;base64,AAAA", "url"),
        ("see https://a.example now", "text"),
        ("//TODO", "text"),
        ("e.g. a car", "text"),
        ("red.car", "text"),
        ("jane.doe@mail.example.org", "email"),
        ("mailto:a@b.co", "email"),
        ("@jane", "text"),
        ("IMG_2034.jpg", "file_name"),
        ("IMG_2034", "file_name"),
        ("DSC00012 ", "file_name"),
        ("my photo of a cat.JPEG", "file_name"),
        ("index.html", "file_name"),
        ("a cat.jpg\na dog", "text"),
        ("x" * 300 + ".jpg", "text"),
        ("12.5.2020", "digits"),
        ("# 123", "digits"),
        ("\u0661\u0662\u0663", "digits"),
        ("3D", "text"),
        ("...", "text"),
        ("\U0001f600", "text"),
        ("A red car", "text"),
    ],
)
def test_shapes(text: str, shape: str) -> None:
    assert caption_shape(text) == shape


def test_null_is_missing_and_empty_is_not() -> None:
    missing, empty = _annotate([None, ""])
    assert missing == dict.fromkeys(missing, None) | {"caption_stats_error": "missing"}
    assert empty == {
        "num_words": 0,
        "num_characters": 0,
        "alphanumeric_ratio": 0.0,
        "word_repetition_ratio": 0.0,
        "character_repetition_ratio": 0.0,
        "caption_shape": "empty",
        "caption_stats_error": None,
    }


def test_empty_batch_and_split_invariance() -> None:
    assert _annotate([]) == []
    many = ["a red car", None, "12", "x" * 50, "\u8eca"]
    assert _annotate(many) == [row for text in many for row in _annotate([text])]


def test_a_long_caption_counts_whole_and_measures_its_beginning() -> None:
    text = "a b " * 250_000 + "!" * 10
    row = _annotate([text])[0]
    assert row["num_words"] == 500_001
    assert row["num_characters"] == 1_000_010
    assert row["alphanumeric_ratio"] == pytest.approx(0.5)
    assert len(text) > MAX_CHARACTERS


@pytest.mark.parametrize("hostile", ["a.jpg?" * 170_000, "a" * 10**6, "a.b." * 250_000 + "com"])
def test_hostile_captions_take_linear_time(hostile: str) -> None:
    """A shape pattern that backtracks would take minutes; the suite's time-out ends the test."""
    assert _annotate([hostile])[0]["num_characters"] == len(hostile)


@pytest.mark.parametrize(("name", "value"), [("word_ngram", 0), ("character_ngram", 1)])
def test_refuses_n_that_measures_nothing(name: str, value: int) -> None:
    with pytest.raises(RecipeError, match=f"{name}={value} .* at least"):
        CaptionStats(**{name: value})


def test_is_registered_and_pickles() -> None:
    assert STAGES.find("caption_stats") is CaptionStats
    stage = CaptionStats(word_ngram=3)
    assert pickle.loads(pickle.dumps(stage)) == stage
