"""Vocabularies against open_clip's full tokenizer."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from winnow.models.tokenizer import NUM_FIXED_TOKENS, Tokenizer, trimmed_merges, write_merges

CAPTIONS = [
    "a small cat and two dogs",
    "the cat sat",
    "a croissant to the left of a dog's bone",
] * 3
FULL = SimpleTokenizer(context_length=16)


def _words(tokenizer: SimpleTokenizer, text: str) -> list[str]:
    return [tokenizer.decoder[token] for token in tokenizer.encode(text)]


@pytest.fixture
def trimmed(tmp_path: Path) -> SimpleTokenizer:
    write_merges(trimmed_merges(CAPTIONS, 700), tmp_path / "m.gz")
    return SimpleTokenizer(bpe_path=str(tmp_path / "m.gz"), context_length=16)


def test_the_captions_keep_the_tokens_of_the_full_list(trimmed: SimpleTokenizer) -> None:
    assert trimmed.vocab_size == 700
    for caption in CAPTIONS:
        assert _words(trimmed, caption) == _words(FULL, caption)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SimpleTokenizer:
    path = tmp_path_factory.mktemp("vocabulary") / "m.gz"
    write_merges(trimmed_merges(CAPTIONS, 600), path)
    return SimpleTokenizer(bpe_path=str(path), context_length=16)


@settings(max_examples=50, deadline=None)
@given(text=st.text(min_size=1, max_size=40))
def test_any_other_text_falls_apart_but_is_not_lost(small: SimpleTokenizer, text: str) -> None:
    # Compared with the full list, which lower-cases and splits too.
    assert small.decode(small.encode(text)) == FULL.decode(FULL.encode(text))
    assert all(0 <= token < 600 for token in small.encode(text))


def test_the_most_used_words_win_a_small_vocabulary() -> None:
    captions = ["dog"] * 5 + ["croissant"]
    merges = trimmed_merges(captions, NUM_FIXED_TOKENS + 2)
    assert merges == ["d o", "do g</w>"]


def test_a_vocabulary_has_room_for_the_bytes() -> None:
    assert trimmed_merges(CAPTIONS, NUM_FIXED_TOKENS) == []
    with pytest.raises(ValueError, match="at least 514 tokens, not 513"):
        trimmed_merges(CAPTIONS, NUM_FIXED_TOKENS - 1)


def test_the_file_is_the_same_every_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_merges(["d o", "do g</w>"], tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_ordinary_captions_are_tokenised_as_open_clip_does(text: str) -> None:
    assert Tokenizer(FULL, 16)([text]).tolist() == FULL([text]).tolist()


@pytest.mark.parametrize(
    "text", ["word " * 5000, "  a \n b" + " " * 9000 + "c", "&amp; so on " * 50]
)
def test_long_captions_are_tokenised_as_open_clip_does(text: str) -> None:
    assert Tokenizer(FULL, 16)([text]).tolist() == FULL([text]).tolist()


def test_an_endless_word_costs_no_more_than_a_moment() -> None:
    endless = "".join(chr(97 + (i * i * 7 + i // 3) % 26) for i in range(300_000))
    start = time.monotonic()
    Tokenizer(SimpleTokenizer(context_length=77), 77)([endless])
    assert time.monotonic() - start < 20


def test_the_memory_of_words_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("winnow.models.tokenizer._CACHED_WORDS", 20)
    inner = SimpleTokenizer(context_length=16)
    tokenizer = Tokenizer(inner, 16)
    expected = FULL(["<start_of_text> w7 word"]).tolist()
    for i in range(100):
        tokenizer([f"{chr(97 + i % 26)}{chr(97 + i // 26)}xq"])
        assert len(inner.cache) <= 23
    assert tokenizer(["<start_of_text> w7 word"]).tolist() == expected
